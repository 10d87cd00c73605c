"""Watchdogs: what must not go on unseen for a hundred steps. Each names its cause.

A gradient or loss that is not finite    skips the step; three in a row stop the run.
All groups dead, or the entropy under entropy_floor, for watchdog_steps in a row    ends the run,
with its best adapter.
Garbage in the first batch    stops before a weight has changed.
A grader that fails on more than 5 % of a batch, a python grader on all of it    stops the run.
A full disk    stops the run.

Each saves its batch (but the full disk). A run that was stopped can be resumed from its last
checkpoint, once the cause is fixed; one that ended is finished.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rftkit.files import UserError
from rftkit.records import Sample
from rftkit.training.store import append_samples

SKIPS_IN_A_ROW = 3
GARBAGE_SHARE = 0.5  # of the first batch
TRUNCATED_SHARE = 0.9  # of the first batch


class TrainingStopped(UserError):
    """A watchdog stopped the run. `cause` is its name; the run can be resumed."""

    def __init__(self, cause: str, message: str):
        super().__init__(message)
        self.cause = cause


@dataclass
class Watchdogs:
    """Reads each step's log object; counts what must last before it is an alarm."""

    watchdog_steps: int
    entropy_floor: float
    dead: int = 0  # steps in a row without a live group
    flat: int = 0  # steps in a row under the entropy floor
    skipped: int = 0  # steps in a row with a gradient that is not finite

    def not_finite(self, parameters: Sequence[Any]) -> bool:
        """Called before the optimiser's step: True where a gradient is NaN or infinite. Then no
        parameter keeps its gradient, and the optimiser has nothing to do."""
        import torch

        trained = [p for p in parameters if p.grad is not None]
        if not trained or bool(torch.stack([p.grad.isfinite().all() for p in trained]).all()):
            self.skipped = 0
            return False
        for parameter in trained:
            parameter.grad = None
        self.skipped += 1
        return True

    def read(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        """Alarms of a step: {"name", "cause", "stops"}. `stops` ends the run, as patience does."""
        entropy = record.get("entropy")
        self.dead = self.dead + 1 if record.get("dead_groups") == 1 else 0
        self.flat = self.flat + 1 if entropy is not None and entropy < self.entropy_floor else 0
        causes = {}
        if 0 < self.watchdog_steps <= self.dead:
            causes["all groups dead"] = (
                f"for {self.dead} steps all answers to a prompt got the same grade, so nothing "
                "was learned: take other rows, partial credit in the grader, or more answers per "
                "prompt (`rftkit signal` measures which)"
            )
        if 0 < self.watchdog_steps <= self.flat:
            causes["entropy collapse"] = (
                f"for {self.flat} steps the entropy was under {self.entropy_floor} nats a token, "
                "so the answers no longer differ: take a larger beta or a smaller learning rate"
            )
        return [{"name": n, "cause": cause, "stops": True} for n, cause in causes.items()]

    def skip_alarm(self, loss: float | None) -> dict[str, Any]:
        """loss   None where it was not finite"""
        cause = (
            f"{'the loss' if loss is None else 'a gradient'} was not finite, so the step was "
            "skipped: take a smaller learning rate, or fp32 on a GPU without bf16"
        )
        stops = self.skipped >= SKIPS_IN_A_ROW
        if stops:  # once the cause is fixed, the full patience is due again
            self.skipped = 0
        return {"name": "not finite", "cause": cause, "stops": stops}


def garbage_in_first_batch(
    tokenizer: Any,
    prompts: Sequence[str],
    completions: Sequence[Sequence[int]],
    ends: set[int],
) -> list[str]:
    """What is wrong with the first batch beside its template, one sentence each.

    prompts      texts, template included; completions: token ids; ends: ids that end an answer
    """
    begin, total = tokenizer.bos_token, len(completions)
    # Other control tokens may be the model's own way of marking its thinking.
    special = {tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id} - ends
    doubled = sum(text.startswith(begin * 2) for text in prompts) if begin else 0
    empty = sum(ends.issuperset(ids) for ids in completions)
    truncated = sum(not ids or ids[-1] not in ends for ids in completions)
    confused = sum(not special.isdisjoint(ids) for ids in completions)
    faults = []
    if doubled:
        faults.append(f"{doubled} prompts begin with {begin} twice: the template adds it again")
    if empty > GARBAGE_SHARE * total:
        faults.append(f"{empty} of {total} answers are empty: to the model its turn is over")
    if truncated > TRUNCATED_SHARE * total:
        names = ", ".join(tokenizer.convert_ids_to_tokens(sorted(ends)))
        faults.append(
            f"{truncated} of {total} answers never ended with {names}: the model learned another "
            "end token, or max_completion_tokens is too short"
        )
    if confused > GARBAGE_SHARE * total:
        names = ", ".join(tokenizer.convert_ids_to_tokens(sorted(special - {None})))
        faults.append(
            f"{confused} of {total} answers contain one of {names}: the model takes the prompt for "
            "something else than its chat template"
        )
    return faults


def save_batch(out: Path, step: int, name: str, samples: Sequence[Sample]) -> Path:
    """As alarms/step-000012-not-finite.jsonl."""
    place = out / "alarms" / f"step-{step:06d}-{name.replace(' ', '-')}.jsonl"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    append_samples(place, step, samples)
    return place


def is_full_disk(error: BaseException, out: Path) -> bool:
    """Did writing fail for want of space? safetensors and torch say so in words of their own."""
    text = str(error)
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in text:
        return True
    return "PytorchStreamWriter" in text and shutil.disk_usage(out).free < 1_000_000
