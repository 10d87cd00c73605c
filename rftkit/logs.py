"""The log of a run, one record a step under the field names of our log.jsonl, whoever wrote it:
we ourselves, TRL and Unsloth, or verl, directly or as a table of W&B."""

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from statistics import mean, variance
from typing import Any

from rftkit.console import Reporter, validation_text
from rftkit.files import UserError, read_json, shorten

# Our fields, and what TRL and Unsloth (past and present) and verl call them; the first counts.
OURS = {
    "reward_mean": "reward critic/score/mean critic/rewards/mean",
    "reward_std": "",
    "dead_groups": "frac_reward_zero_std",
    "completion_tokens": "completions/mean_length completion_length response_length/mean",
    "truncated": "completions/clipped_ratio response_length/clip_ratio",
    "entropy": "actor/entropy actor/entropy_loss",
    "kl": "actor/kl_loss actor/reward_kl_penalty",
    "grad_norm": "actor/grad_norm",
    "loss": "actor/pg_loss",
    "eval_loss": "",
    "lost": "grader/lost",
}
NAMES = {name: ours for ours, theirs in OURS.items() for name in (*theirs.split(), ours)}
PARTS = {"rewards": "sub_rewards", "sub_rewards": "sub_rewards", "grader_errors": "errors"}
# What only our own log has, as it stands there.
OBJECTS = ("sub_rewards", "errors", "validation", "alarms")
# Where a log has several, the optimiser's own step comes before a logger's count of calls.
STEPS = ("train/global_step", "training/global_step", "global_step", "step", "_step", "Step")
NO_TASK_METRIC = re.compile("time|per_second|num_tokens|loss|coef|ratio|_std|/")
GAIN = 0.02  # a change of a grade (0 to 1) that counts: our own

Points = list[tuple[int, float]]  # (step, value)
Records = Sequence[dict[str, Any]]  # the objects of log.jsonl
KEPT_START = (
    "kept step 0: this adapter is the untrained start, no validation beat it; to keep another, "
    "set keep_start to false or take one of checkpoints/best/"
)


@dataclass
class Log:
    """A run's records, in the order in which they were written."""

    source: str
    records: list[dict[str, Any]]
    best_is_kept: bool = False  # the run hands back its best checkpoint, not its last
    notes: list[str] = field(default_factory=list)  # what was left out in reading

    def points(self, name: str) -> Points:
        return points_of(self.records, name)

    def series(self, name: str) -> dict[str, Points]:
        """Each part of an object that is logged a step (sub_rewards, errors) as points; else 0."""
        parts = [(record["step"], record[name]) for record in self.records if record.get(name)]
        keys = sorted({key for _, part in parts for key in part})
        return {key: finite((step, part.get(key, 0.0)) for step, part in parts) for key in keys}

    def validations(self) -> list[dict[str, Any]]:
        return validations_of(self.records)

    def dead_share(self) -> Points:
        """Share of dead groups; where a log lacks it, a reward std of 0 says as much."""
        spread = self.points("reward_std")
        return self.points("dead_groups") or [(step, float(std <= 1e-6)) for step, std in spread]

    def decline(self) -> tuple[float, str]:
        """(step of the best validation, it and the last one as text), where the last lies below the
        best one's interval (without one: by more than a tenth); else (infinity, "")."""
        if not self.validations():
            return math.inf, ""
        best, last = best_of(self.validations()), self.validations()[-1]
        if last["mean"] >= best.get("low", 0.9 * best["mean"]):
            return math.inf, ""
        texts = [f"{v['metric']} {v['mean']:.3f} at step {v['step']}" for v in (best, last)]
        return best["step"], " -> ".join(texts)

    def gained(self) -> bool:
        """Did the run get better: by its validations where there are any, else by its reward?"""
        if len(self.validations()) > 1:
            first, *_, last = self.validations()
            return last.get("low", last["mean"]) > first["mean"]
        return moved(self.points("reward_mean"), +1, GAIN)

    def held_out_gain(self) -> float:
        """As a share of the first validation or of what it lacked, whichever is less, or NaN."""
        if len(self.validations()) < 2:
            return math.nan
        first, last = (self.validations()[i]["mean"] for i in (0, -1))
        return (last - first) / max(min(first, 1 - first) if first < 1 else first, GAIN)

    @property
    def graded(self) -> bool:
        """Completions are sampled and graded (GRPO); an SFT log holds neither number anywhere."""
        return bool(self.points("reward_mean") or self.points("dead_groups"))


def notes_of_run(run: Path) -> list[str]:
    """What must be known of the adapter that a finished run kept."""
    record = read_json(run / "training.json") if (run / "training.json").exists() else {}
    return [KEPT_START] if record.get("best", {}).get("step") == 0 else []


def points_of(log: Records, name: str) -> Points:
    """(step, value) wherever the log holds a finite number of this name."""
    return finite((record["step"], record.get(name)) for record in log)


def validations_of(log: Records, start: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Each validation with its step, metric, mean and maybe low and high; first `start`."""
    seen = [(0, start), *((record["step"], record.get("validation")) for record in log)]
    return [{"step": step, **found} for step, found in seen if found and "mean" in found]


def best_of(validations: Records) -> dict[str, Any]:
    return max(validations, key=lambda validation: validation["mean"])


def alarms_of(log: Records) -> list[dict[str, Any]]:
    """Every alarm of a log with its step."""
    return [{"step": r["step"], **alarm} for r in log for alarm in r.get("alarms", [])]


class Lines:
    """What a run tells of itself as text, an observer of train(): the plan, the gate, validations,
    alarms, the end. A `reporter` shows each step in its bar."""

    def __init__(self, say: Callable[[str], Any] = print, reporter: Reporter | None = None):
        self.say, self.reporter = say, reporter
        self.log: list[dict[str, Any]] = []
        self.start: dict[str, Any] | None = None
        self.steps, self.ended = 0, None

    def begin(self, plan: Any, log: list[dict[str, Any]], start: dict[str, Any]) -> None:
        self.log, self.steps, self.start, self.ended = list(log), plan.steps, start or None, None
        if self.reporter:
            self.reporter.stage("training", plan.steps)
        self.say("\n".join(plan.lines()))

    def gate(self, signal: Any) -> None:
        self.say(f"signal gate: {signal.verdict}: {signal.reason}")
        for finding in signal.findings:
            self.say(f"  {finding.name}: {finding.evidence}\n    -> {finding.setting}")

    def __call__(self, record: dict[str, Any]) -> None:
        self.log.append(record)
        if self.reporter:
            bar = self.reporter.bar
            self.reporter.update(bar, description=self.headline(), completed=record["step"])
        if "validation" in record or "alarms" in record:
            self.say(self.headline())
        for alarm in record.get("alarms", []):
            self.say(f"  ALARM {alarm['name']}: {alarm['cause']}")

    def end(self, run: Any) -> None:
        self.ended = run.training["stopped"]
        for line in [] if self.reporter else ending(run):  # a command prints its result itself
            self.say(line)

    def headline(self) -> str:
        """One line: the step, the time left or what ended the run, the reward, the validation."""
        zero = {"step": 0, "seconds": 0.0}
        last, recent = [zero, *self.log][-1], self.log[-21:]
        line = f"step {last['step']}/{self.steps or last['step']}"
        if self.ended:
            line += f", ended by {self.ended}"
        elif self.log:  # of the last 20, validations and all; the first one's clock holds the gate
            mean = sum(last.get("timings", {}).values())
            if len(recent) > 1:
                mean = (last["seconds"] - recent[0]["seconds"]) / (last["step"] - recent[0]["step"])
            line += f", {timedelta(seconds=round(mean * (self.steps - last['step'])))} left"
        if last.get("reward_mean") is not None:
            std, dead = last.get("group_spread") or 0, last.get("dead_groups") or 0
            line += f"; reward {last['reward_mean']:.2f} (std in a group {std:.2f})"
            line += f"; dead groups {dead:.0%}"
        if validations := validations_of(self.log, self.start):
            best = best_of(validations)
            line += f"; {validation_text(validations[-1])}"
            line += f", best {best['mean']:.3f} at step {best['step']}"
        return line


def ending(run: Any) -> list[str]:
    """What a finished run came to."""
    lines = [f"{run.training['steps']} steps, ended by {run.training['stopped']}: {run.out}"]
    if run.best:
        kept = f"kept step {run.best['step']}, {validation_text(run.best)}"
        lines.append(f"{kept}, before training {run.start['mean']:.3f}")
    return lines + notes_of_run(run.out)


def finite(values: Iterable[tuple[int, float | None]]) -> Points:
    return [(step, value) for step, value in values if value is not None and math.isfinite(value)]


def held(points: Points, bad: Callable) -> list[int]:
    """The bad steps of every eight of which at least five are bad (of a log with fewer than five
    steps: all). A good step now and then does not hide a bad level."""
    steps: set[int] = set()
    for start in range(len(points)):
        inside = [step for step, value in points[start : start + 8] if bad(value)]
        steps.update(inside if len(inside) >= min(5, len(points)) else ())
    return sorted(steps)


def change(points: Points, width: int | None = None) -> tuple[float, float, float]:
    """(mean at the start, mean at the end, standard error of their difference); NaN, which passes
    no comparison, where the log is too short. width   steps at each end: 10, of a third at most"""
    width, values = width or min(10, len(points) // 3), [value for _, value in points]
    if width < 3:
        return math.nan, math.nan, math.nan
    first, last = values[:width], values[-width:]
    return mean(first), mean(last), math.sqrt((variance(first) + variance(last)) / width)


def moved(points: Points, direction: int, least: float) -> bool:
    """Did the values rise (+1) or fall (-1), by more than `least` and three standard errors?"""
    before, after, error = change(points)
    return direction * (after - before) > max(least, 3 * error)


def read_log(path: str | Path) -> Log:
    """A run folder (ours, or a trainer's output folder), a log.jsonl, a trainer_state.json or its
    log_history, verl's JSON lines, or a W&B run's history as .csv or .json."""
    folder = Path(path)
    states = folder.glob("checkpoint-[0-9]*/trainer_state.json")
    newest = sorted(states, key=lambda state: -int(state.parent.name.split("-")[1]))
    places = (folder, folder / "log.jsonl", folder / "trainer_state.json", *newest)
    file = next(filter(Path.is_file, places), None)
    if file is None:
        raise UserError(f"{path}: no log, expected a run, a log or an exported table: name one")
    log, entries = Log(str(file), []), []
    if file.suffix == ".csv":
        import pandas

        with suppress(pandas.errors.EmptyDataError):
            # An empty cell was not logged; NaN was, as it stands there.
            table = pandas.read_csv(file, keep_default_na=False, na_values=[""])
            entries = [row.dropna().to_dict() for _, row in table.iterrows()]
    elif file.suffix == ".json":
        state = read_json(file)
        state = state if isinstance(state, dict) else {"log_history": state}
        log.best_is_kept = state.get("best_model_checkpoint") is not None
        entries = [entry for entry in state.get("log_history", []) if isinstance(entry, dict)]
    else:
        log.best_is_kept = (file.parent / "training.json").exists()
        entries = read_lines(file, log.notes)
    for entry in entries:
        step = next((entry[name] for name in STEPS if name in entry), None)
        try:
            if fields := renamed(entry):
                add_record(log.records, {"step": int(float(step))} | fields)
        except (ValueError, TypeError):
            raise UserError(f"{log.source}: {step!r} is no step, expected a number") from None
    if not log.records:
        names = sorted({name for entry in entries for name in entry} - {*STEPS})
        seen = f"names seen {shorten(', '.join(names)) or 'none'}"
        raise UserError(f"{log.source}: not read: {seen}, expected TRL's or verl's: rename them")
    return log


def add_record(records: list[dict[str, Any]], record: dict[str, Any]) -> None:
    """A validation that was logged by itself joins its step; a step that was logged twice stays."""
    last = records[-1] if records else {}
    again = {key for key in record.keys() & last.keys() if None not in (record[key], last[key])}
    if again - {"validation", "eval_loss"} == {"step"} and last["step"] == record["step"]:
        last |= {key: value for key, value in record.items() if value is not None}
    else:
        records.append(record)


def read_lines(path: str | Path, notes: list[str] | None = None) -> list[dict[str, Any]]:
    """One object a line, none without a file; verl puts its numbers under "data". A last line that
    a kill truncated is left out, with a note."""
    entries = []
    lines = Path(path).read_bytes().rstrip().split(b"\n") if Path(path).exists() else []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            entries.append(entry | (entry.get("data") or {}))
        except (ValueError, TypeError, AttributeError):
            if number < len(lines):
                raise UserError(f"{path}:{number}: no JSON object: delete the line") from None
            if notes is not None:
                notes.append(f"the last line ({number}) is truncated: the run died or still writes")
    return entries


def renamed(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry under our names; {} where it holds no quantity that the doctor knows."""
    fields = {name: entry[name] for name in OBJECTS if isinstance(entry.get(name), (dict, list))}
    values, held_out = {}, {}
    for key, value in entry.items():
        with suppress(ValueError, TypeError):
            name = re.sub("^eval/", "eval_", key.removeprefix("train/"))
            values[name] = None if value is None else float(value)
    if all(values[name] is None for name in values.keys() & NAMES.keys() - {"eval_loss"}):
        # A table's row of a validation alone has null for all else.
        values = {name: value for name, value in values.items() if value is not None}
    for name, value in values.items():
        kind, _, part = name.removesuffix("/mean").partition("/")
        if name in NAMES:
            fields.setdefault(NAMES[name], value)
        elif kind in PARTS and part and not part.endswith("/std"):
            fields.setdefault(PARTS[kind], {})[part] = value
        elif value is not None and name.startswith("eval_"):
            held_out[name.removeprefix("eval_")] = value
        elif value is not None and name.startswith(("val-core/", "val/")):  # verl
            held_out[name.partition("/")[2].replace("/", " ")] = value
    # A metric of the task's own before the reward, which is what is trained on.
    own = [n for n in held_out if n not in NAMES and not NO_TASK_METRIC.search(n)]
    metric = min(own, key=lambda name: "mean@" not in name, default="reward")
    if metric in held_out:
        fields.setdefault("validation", {"metric": metric, "mean": held_out[metric]})
    return fields
