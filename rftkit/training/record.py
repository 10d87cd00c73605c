"""The record of a run: one log object a step, told to every file and to everyone who watches.

log.jsonl holds it, events.jsonl says it in the shape of OpenAI's fine-tuning API, samples.jsonl has
the answers, observers hear it. A checkpoint notes how long the three files were; a run that goes on
cuts them back to there, so that no line is lost and none stands twice.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rftkit.data.errors import UserError
from rftkit.data.records import Sample

# Hears each step's log object. It may have methods too, each of which may be missing:
#   begin(plan, log, start)   before the first step; `log` holds the steps of an earlier session,
#                             `start` the look at the held-out rows before step 1 (or is empty)
#   gate(signal)              after the signal gate
#   answers(record, samples)  the completions of the step that was just logged
#   end(run)                  after the last step
Observer = Callable[[dict[str, Any]], None]

FILES = ("log.jsonl", "events.jsonl", "samples.jsonl")

# The fields of a step's log object, and what TRL calls those that it measures. `None` stands where
# a method has no such number (SFT has no reward).
FIELDS = {
    "reward_mean": "reward",
    "reward_std": "reward_std",
    "sub_rewards": None,
    "dead_groups": "frac_reward_zero_std",
    "completion_tokens": "completions/mean_length",
    "truncated": "completions/clipped_ratio",
    "entropy": "entropy",
    "kl": "kl",
    "grad_norm": "grad_norm",
    "loss": "loss",
    "patterns": None,
}


def record_of(step: int, logs: dict[str, Any]) -> dict[str, Any]:
    """TRL's log of a step as our log object; what is not finite becomes None (JSON has no NaN)."""
    record: dict[str, Any] = {"step": step, "seconds": 0.0}
    for ours, trl in FIELDS.items():
        value = logs.get(trl)
        record[ours] = None if value is None or not math.isfinite(value) else round(float(value), 6)
    return record


class Recorder:
    """One object a step: to log.jsonl, to events.jsonl in OpenAI's shape, to the observers."""

    def __init__(
        self,
        out: Path,
        observers: Sequence[Observer],
        steps: int,
        positions: dict[str, int] | None = None,
        seconds: float = 0.0,
    ):
        """positions, seconds   of the checkpoint that the run goes on from"""
        self.out, self.observers, self.steps = out, observers, steps
        self.started = time.perf_counter() - seconds
        for name in FILES:
            cut_back(out / name, (positions or {}).get(name, 0))
        self.log = read_lines(out / "log.jsonl")

    @property
    def seconds(self) -> float:
        """Since the run began, without the time between its sessions."""
        return round(time.perf_counter() - self.started, 3)

    def begin(self, plan: Any, start: dict[str, Any]) -> None:
        for observer in self.observers:
            if hasattr(observer, "begin"):
                observer.begin(plan, list(self.log), start)

    def step(self, record: dict[str, Any], samples: Sequence[Sample] = ()) -> None:
        record["seconds"] = self.seconds
        append_lines(self.out / "samples.jsonl", step_lines(record["step"], samples))
        append_lines(self.out / "events.jsonl", [self.event(record), *self.alarm_events(record)])
        append_lines(self.out / "log.jsonl", [record])
        self.log.append(record)
        for observer in self.observers:
            observer(record)
            if hasattr(observer, "answers"):
                observer.answers(record, list(samples))

    def event(self, record: dict[str, Any]) -> dict[str, Any]:
        """What OpenAI's fine-tuning API reports of a step (object fine_tuning.job.event)."""
        said = [f"Step {record['step']}/{self.steps}"]
        if record.get("reward_mean") is not None:
            said.append(f"train mean reward={record['reward_mean']:.2f}")
        if "validation" in record:
            look = record["validation"]
            said.append(f"full validation mean reward={look['grade']:.2f}")
            said.append(f"full validation mean parse error={look['parse_error']:.2f}")
        data = {key: value for key, value in record.items() if key != "patterns"}
        return event(f"event-{record['step']}", "info", "metrics", ", ".join(said), data)

    def alarm_events(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            event(f"event-{record['step']}-{alarm['name']}", "warn", "message",
                  f"Step {record['step']}/{self.steps}: {alarm['cause']}", alarm)
            for alarm in record.get("alarms", [])
        ]  # fmt: skip

    def positions(self) -> dict[str, int]:
        """How long each file is, in bytes, and on the disk: what a checkpoint notes."""
        found = {}
        for name in FILES:
            with open(self.out / name, "ab") as file:
                os.fsync(file.fileno())
                found[name] = file.tell()
        return found


def event(name: str, level: str, kind: str, message: str, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "object": "fine_tuning.job.event",
        "id": name,
        "created_at": int(time.time()),
        "level": level,
        "type": kind,
        "message": message,
        "data": data,
    }


def step_lines(step: int, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    return [{"step": step} | sample.to_json() for sample in samples]


def append_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Lines of JSON at the end of a file, in one write."""
    if records:
        with open(path, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))


def cut_back(path: Path, size: int) -> None:
    """Keep a file's first `size` bytes; a missing file is made."""
    with open(path, "ab") as file:
        file.truncate(size)


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file; a last line that was torn is left out.

    Raises UserError for a line that is no object: something else than a run has written there.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}), expected a run's log: change its rights"
        ) from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line, parse_constant=lambda name: None)  # NaN is no number
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise UserError(
                f"{path}:{number}: not a JSON object, expected the record of a step: remove the "
                "line, or train anew into another folder"
            )
        found.append(record)
    return found
