"""The gate before step 1: is there anything to learn from these rewards?

`rftkit.signal` samples the policy that will be trained, a few answers a row, and says go, fix or
undecided. "fix" ends here, before hours are spent; "undecided" is said aloud and goes on. The
verdict stands in RUN/gate.json, and a run that goes on does not ask again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rftkit.data.errors import UserError
from rftkit.data.writing import write_json
from rftkit.policy import LocalPolicy
from rftkit.task import Task
from rftkit.training.config import RunConfig
from rftkit.training.record import Observer


class GateSaysFix(UserError):
    """The gate's verdict is "fix" (exit code 3). `verdict` is gate.json's object."""

    exit_code = 3

    def __init__(self, message: str, verdict: dict[str, Any]):
        super().__init__(message)
        self.verdict = verdict


def pass_gate(
    policy: LocalPolicy,
    task: Task,
    rows: list[dict[str, Any]],
    config: RunConfig,
    out: Path,
    observers: Sequence[Observer] = (),
    force: bool = False,
) -> dict[str, Any]:
    """Measure, store, and raise GateSaysFix unless `force`; -> gate.json's object.

    An observer with a method `gate(signal)` is shown the whole signal, its samples among it.
    """
    place, told = out / "gate.json", False
    if place.exists():  # of this very config and data: open_folder clears what others left
        verdict = json.loads(place.read_text(encoding="utf-8"))
    else:
        verdict = measure_gate(policy, task, rows, config, observers)
        told = any(hasattr(observer, "gate") for observer in observers)
    verdict["forced"] = force and verdict["verdict"] == "fix"
    write_json(place, verdict)
    if verdict["verdict"] == "fix" and not force:
        lines = [f"{out}: the signal gate says fix, nothing was trained"]
        for found in [] if told else verdict["findings"]:
            lines += [f"  {found['name']}: {found['evidence']}", f"    -> {found['knob']}"]
        lines.append(f"The answers behind it: {place}; --force trains all the same")
        raise GateSaysFix("\n".join(lines), verdict)
    return verdict


def measure_gate(
    policy: LocalPolicy,
    task: Task,
    rows: list[dict[str, Any]],
    config: RunConfig,
    observers: Sequence[Observer],
) -> dict[str, Any]:
    """Sample, judge, show it to the observers that want to see it."""
    from rftkit.signal import measure_signal

    policy.model.eval()
    signal = measure_signal(
        policy,
        task,
        rows,
        answers=config.answers_per_prompt,
        max_completion_tokens=config.max_completion_tokens,
        temperature=config.temperature,
        completions=config.steps * config.batch,
        seed=config.seed,
    )
    for observer in observers:
        if hasattr(observer, "gate"):
            observer.gate(signal)
    return signal.to_json()
