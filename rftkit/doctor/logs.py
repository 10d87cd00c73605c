"""Logs, whoever wrote them, as one record a step under our names."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rftkit.data.errors import UserError

# Our names (the fields of log.jsonl), and what TRL, older TRL and Unsloth call the same.
NAMES = {
    "reward_mean": ("reward",),
    "reward_std": ("reward_std",),
    "dead_groups": ("frac_reward_zero_std",),
    "completion_tokens": ("completions/mean_length", "completion_length"),
    "truncated": ("completions/clipped_ratio",),
    "clip_ratio": ("clip_ratio/region_mean", "clip_ratio"),
    "lost": ("grader/lost",),
    **{name: (name,) for name in ("entropy", "kl", "grad_norm", "loss", "eval_loss")},
}
LARGEST = 3.4e38  # of a weight or gradient in fp32 or bf16: beyond it training itself has infinity
NO_NUMBERS = {"nan", "inf", "infinity"}  # as text, whatever the case and sign
NO_TASK_METRIC = {"runtime", "samples_per_second", "steps_per_second", "num_tokens", "reward"}


@dataclass
class Log:
    """A run's records, in the order in which they were written.

    best_is_kept   the run hands back its best checkpoint, not its last
    lost           step -> share of the step's answers that the grader could not grade
    notes          what was left out in reading
    """

    source: str
    records: list[dict[str, Any]]
    best_is_kept: bool = False
    lost: dict[int, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def points(self, name: str) -> list[tuple[int, float]]:
        """(step, value) wherever the log holds a finite number of this name."""
        found = [(r["step"], finite(r.get(name))) for r in self.records]
        return [(step, value) for step, value in found if value is not None]

    def looks(self) -> list[tuple[int, dict[str, Any]]]:
        """(step, validation) of every held-out look that has a mean; its interval, where it has
        one whole, under `low` and `high`."""
        found = [(r["step"], clean_look(r.get("validation"))) for r in self.records]
        return [(step, look) for step, look in found if look]

    def parts(self, name: str) -> list[tuple[int, dict[str, Any]]]:
        """(step, object) wherever the log holds an object of this name: sub_rewards, errors."""
        found = [(r["step"], r.get(name)) for r in self.records]
        return [(step, value) for step, value in found if isinstance(value, dict)]

    def alarms(self) -> list[tuple[int, str]]:
        """(step, name) of every alarm that our watchdogs wrote into the log."""
        told = [(r["step"], r.get("alarms")) for r in self.records]
        return [
            (step, alarm["name"])
            for step, alarms in told
            if isinstance(alarms, list)
            for alarm in alarms
            if isinstance(alarm, dict) and isinstance(alarm.get("name"), str)
        ]

    @property
    def graded(self) -> bool:
        """Answers are sampled and graded (GRPO); an SFT log holds neither number anywhere."""
        return bool(self.points("reward_mean") or self.points("dead_groups"))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def finite(value: Any) -> float | None:
    """A logged value as a number; None, which counts as missing, for all that is none: NaN, text,
    and what lies beyond LARGEST."""
    return float(value) if is_number(value) and abs(value) <= LARGEST else None


def is_nan_or_infinite(value: Any) -> bool:
    """NaN or infinite: as a number, or as the text that some trainers write for it."""
    if isinstance(value, str):
        return value.strip().lstrip("+-").lower() in NO_NUMBERS
    return is_number(value) and finite(value) is None


def clean_look(validation: Any) -> dict[str, Any] | None:
    """A held-out look's metric, mean and interval; None without a mean."""
    if not isinstance(validation, dict) or finite(validation.get("mean")) is None:
        return None
    metric = validation.get("metric")
    look = {"metric": metric if isinstance(metric, str) else "the metric"}
    look["mean"] = finite(validation["mean"])
    interval = {name: finite(validation.get(name)) for name in ("low", "high")}
    return look if None in interval.values() else look | interval


def read_log(path: str | Path) -> Log:
    """A run folder (ours, or a trainer's output folder), a log.jsonl or a trainer_state.json.

    Raises UserError for a path that is not there, or a file that is broken, empty or no log. A
    torn last line of a log.jsonl is left out, which the log's notes say.
    """
    path = Path(path)
    if path.is_dir():
        return read_folder(path)
    try:
        content = path.read_bytes()
        whole, note = (content, None) if path.suffix == ".json" else without_torn_end(content)
        text = whole.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{path}: cannot be read ({reason}), expected a run folder, a log.jsonl or a "
            "trainer_state.json: correct the path"
        ) from None
    # Only a line feed ends a line: U+2028 and its like may stand in a name.
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"{path}: empty, expected one object a step: did the run take a step?")
    if path.suffix == ".json":
        return read_trainer_state(path, text)
    records = [read_line(path, number, line) for number, line in lines]
    return Log(str(path), records, notes=[note] if note else [])


def without_torn_end(content: bytes) -> tuple[bytes, str | None]:
    """(a log.jsonl's whole lines, a note where the last one is torn): its line feed is written
    last. A torn line that stands alone is kept, to be named as what it is."""
    whole, feed, last = content.rpartition(b"\n")
    try:
        json.loads(last.strip() or b"{}")
    except (ValueError, RecursionError):
        if whole.strip():
            number = whole.count(b"\n") + 2
            return whole + feed, (
                f"the last line (line {number}) is torn and was left out: the run died in it, or "
                "is still writing; the same `rftkit train` goes on from its last checkpoint"
            )
    return content, None


def read_folder(folder: Path) -> Log:
    states = folder.glob("checkpoint-*/trainer_state.json")
    newest = sorted(states, key=checkpoint_number)[::-1]
    tried = [folder / "log.jsonl", folder / "trainer_state.json", *newest]
    found = next((path for path in tried if path.is_file()), None)
    if found is None:
        raise UserError(
            f"{folder}: no log in this folder, expected log.jsonl or trainer_state.json: name a "
            "run folder, or the log itself"
        )
    log = read_log(found)
    if found.name == "log.jsonl":
        log.lost = lost_answers(folder / "samples.jsonl")
        log.best_is_kept = (folder / "training.json").exists()
    return log


def checkpoint_number(state: Path) -> int:
    """The step in the folder's name; -1 for checkpoint-best and the like."""
    number = state.parent.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def read_line(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}:{number}: not whole JSON ({error}), expected one object a step: a line is "
            "torn where a run died; delete that line"
        ) from None
    if not isinstance(record, dict) or not is_step(record.get("step")):
        raise UserError(
            f'{path}:{number}: without a whole number "step", expected a step\'s log object: '
            "name the run's log.jsonl"
        )
    return record


def is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**15


def lost_answers(samples: Path) -> dict[int, float]:
    """From samples.jsonl: step -> share of its answers without a grade, where there are any."""
    counts: dict[int, list[int]] = {}
    try:
        with open(samples, encoding="utf-8") as lines:
            for line in lines:
                sample = json.loads(line)
                if not is_step(sample["step"]):
                    raise TypeError("a step is a whole number")
                count = counts.setdefault(sample["step"], [0, 0])
                count[0] += sample["grade"] is None
                count[1] += 1
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass  # not there, or still being written: the log alone is judged then
    return {step: lost / drawn for step, (lost, drawn) in counts.items() if lost}


# --- TRL's and Unsloth's trainer_state.json -----------------------------------------------------


def read_trainer_state(path: Path, text: str) -> Log:
    try:
        state = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: not whole JSON ({error}), expected TRL's trainer_state.json: it is torn; "
            "take the one of the checkpoint before"
        ) from None
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise UserError(
            f"{path}: without a list log_history, expected TRL's trainer_state.json: it stands in "
            "each checkpoint folder"
        )
    records: dict[int, dict[str, Any]] = {}
    for entry in history:
        found = renamed(entry)
        if found and is_step(entry.get("step")):
            records.setdefault(entry["step"], {"step": entry["step"]}).update(found)
    if not records:
        raise UserError(f"{path}: log_history holds no step, expected some: set logging_steps=1")
    return Log(str(path), list(records.values()), state.get("best_model_checkpoint") is not None)


def renamed(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of log_history under our names; {} for the summary at the end."""
    found: dict[str, Any] = {}
    for ours, theirs in NAMES.items():
        for name in theirs:
            if name in entry:
                found.setdefault(ours, entry[name])
    parts = {
        key.split("/")[1].strip(): value
        for key, value in entry.items()
        if key.startswith("rewards/") and not key.endswith("std")
    }
    if parts:
        found["sub_rewards"] = parts
    errors = {
        key.removeprefix("grader_errors/"): value
        for key, value in entry.items()
        if key.startswith("grader_errors/")
    }
    if errors:
        found["errors"] = errors
    held_out = {
        key.removeprefix("eval_"): value
        for key, value in entry.items()
        if key.startswith("eval_") and "/" not in key and finite(value) is not None
    }
    # A metric of the task's own before the reward, which is what is trained on.
    others = {name for group in NAMES.values() for name in group} | set(NAMES) | NO_TASK_METRIC
    for metric in [*(name for name in held_out if name not in others), "reward"]:
        if metric in held_out:
            found["validation"] = {"metric": metric, "mean": held_out[metric]}
            break
    return found
