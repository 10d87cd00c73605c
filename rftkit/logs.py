"""The log of a run, one record a step under the field names of our log.jsonl, whoever wrote it:
we ourselves, or TRL and Unsloth (trainer_state.json)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, variance
from typing import Any

from rftkit.files import UserError, read_json

# What TRL, older TRL and Unsloth call our fields.
TRL_NAMES = {
    "reward": "reward_mean",
    "reward_std": "reward_std",
    "frac_reward_zero_std": "dead_groups",
    "completions/mean_length": "completion_tokens",
    "completion_length": "completion_tokens",
    "completions/clipped_ratio": "truncated",
    "clip_ratio/region_mean": "clip_ratio",
    "grader/lost": "lost",
} | {name: name for name in ("clip_ratio", "entropy", "kl", "grad_norm", "loss", "eval_loss")}
NO_TASK_METRIC = re.compile("runtime|per_second|num_tokens|/")
GAIN = 0.02  # a change of a grade (0 to 1) that counts: our own

Points = list[tuple[int, float]]  # (step, value)


@dataclass
class Log:
    """A run's records, in the order in which they were written."""

    source: str
    records: list[dict[str, Any]]
    best_is_kept: bool = False  # the run hands back its best checkpoint, not its last
    notes: list[str] = field(default_factory=list)  # what was left out in reading

    def points(self, name: str) -> Points:
        """(step, value) wherever the log holds a finite number of this name."""
        return finite((record["step"], record.get(name)) for record in self.records)

    def series(self, name: str) -> dict[str, Points]:
        """Each part of an object that is logged a step (sub_rewards, errors) as points; 0 where
        the step's object lacks it."""
        parts = [(record["step"], record[name]) for record in self.records if record.get(name)]
        keys = sorted({key for _, part in parts for key in part})
        return {key: finite((step, part.get(key, 0.0)) for step, part in parts) for key in keys}

    def validations(self) -> list[tuple[int, dict[str, Any]]]:
        """(step, {metric, mean, and where it was logged the interval low, high})."""
        return [(r["step"], r["validation"]) for r in self.records if r.get("validation")]

    def dead_share(self) -> Points:
        """Share of dead groups; where a log lacks it, a reward std of 0 says as much."""
        spread = self.points("reward_std")
        return self.points("dead_groups") or [(step, float(std <= 1e-6)) for step, std in spread]

    def decline(self) -> tuple[float, str]:
        """(step of the best validation, it and the last one as text), where the last lies below the
        best one's interval (without one: by more than a twentieth); else (infinity, "")."""
        if not self.validations():
            return math.inf, ""
        best, last = max(self.validations(), key=lambda v: v[1]["mean"]), self.validations()[-1]
        if last[1]["mean"] >= best[1].get("low", 0.95 * best[1]["mean"]):
            return math.inf, ""
        texts = [f"{v['metric']} {v['mean']:.3f} at step {step}" for step, v in (best, last)]
        return best[0], " -> ".join(texts)

    def gained(self) -> bool:
        """Did the run get better: by its validations where there are any, else by its reward?"""
        if len(self.validations()) > 1:
            (_, first), *_, (_, last) = self.validations()
            return last.get("low", last["mean"]) > first["mean"]
        return moved(self.points("reward_mean"), +1, GAIN)

    @property
    def graded(self) -> bool:
        """Completions are sampled and graded (GRPO); an SFT log holds neither number anywhere."""
        return bool(self.points("reward_mean") or self.points("dead_groups"))


def finite(values: Iterable[tuple[int, float | None]]) -> Points:
    return [(step, value) for step, value in values if value is not None and math.isfinite(value)]


def held(points: Points, bad: Callable, least: int = 5, window: int = 8) -> list[int]:
    """The bad steps of every `window` steps of which at least `least` are bad (of a log with fewer
    than `least` steps: all). A good step now and then does not hide a bad level."""
    steps: set[int] = set()
    for start in range(len(points)):
        inside = [step for step, value in points[start : start + window] if bad(value)]
        steps.update(inside if len(inside) >= min(least, len(points)) else ())
    return sorted(steps)


def change(points: Points) -> tuple[float, float, float]:
    """(mean at the start, mean at the end, standard error of their difference); NaN, which passes
    no comparison, where the log is too short."""
    width, values = min(10, len(points) // 3), [value for _, value in points]
    if width < 3:
        return math.nan, math.nan, math.nan
    first, last = values[:width], values[-width:]
    return mean(first), mean(last), math.sqrt((variance(first) + variance(last)) / width)


def moved(points: Points, direction: int, least: float) -> bool:
    """Did the values rise (+1) or fall (-1), by more than `least` and three standard errors?"""
    before, after, error = change(points)
    return direction * (after - before) > max(least, 3 * error)


def read_log(path: str | Path) -> Log:
    """A run folder (ours, or a trainer's output folder), a log.jsonl or a trainer_state.json."""
    folder = Path(path)
    states = folder.glob("checkpoint-[0-9]*/trainer_state.json")
    newest = sorted(states, key=lambda state: -int(state.parent.name.split("-")[1]))
    for place in (folder, folder / "log.jsonl", folder / "trainer_state.json", *newest):
        if place.is_file():
            return read_trainer_state(place) if place.suffix == ".json" else read_log_lines(place)
    raise UserError(f"{path}: no log, expected log.jsonl or trainer_state.json: name a run")


def read_log_lines(path: Path) -> Log:
    """A truncated last line is left out, which the log's notes say."""
    log = Log(str(path), [], best_is_kept=(path.parent / "training.json").exists())
    lines = path.read_bytes().rstrip().split(b"\n")
    for place, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            log.records.append(record | {"step": int(record["step"])})
        except (ValueError, TypeError, KeyError):
            if place < len(lines) or not log.records:
                expected = "expected one JSON object with a step a line: delete the line"
                raise UserError(f"{path}:{place}: {expected}") from None
            log.notes.append(f"the last line ({place}) is truncated: the run died or still writes")
    return log


def read_trainer_state(path: Path) -> Log:
    state = read_json(path)
    records: dict[int, dict[str, Any]] = {}
    for entry in state.get("log_history", []):
        if fields := renamed(entry):
            records.setdefault(entry["step"], {"step": entry["step"]}).update(fields)
    if not records:
        expected = "expected the trainer_state.json of a checkpoint: set logging_steps=1"
        raise UserError(f"{path}: no step in log_history, {expected}")
    return Log(str(path), list(records.values()), state.get("best_model_checkpoint") is not None)


def renamed(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of log_history under our names; {} for the summary at the end."""
    fields: dict[str, Any] = {ours: entry[t] for t, ours in TRL_NAMES.items() if t in entry}
    for key, value in entry.items():
        kind, _, part = key.removesuffix("/mean").partition("/")
        if kind in ("rewards", "grader_errors") and not part.endswith("/std"):
            fields.setdefault("sub_rewards" if kind == "rewards" else "errors", {})[part] = value
    held_out = [key.removeprefix("eval_") for key in entry if key.startswith("eval_")]
    # A metric of the task's own before the reward, which is what is trained on.
    own = [n for n in held_out if n not in TRL_NAMES and not NO_TASK_METRIC.search(n)]
    metric = own[0] if own else "reward"
    if metric in held_out:
        fields["validation"] = {"metric": metric, "mean": entry[f"eval_{metric}"]}
    return fields
