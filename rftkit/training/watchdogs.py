"""Watchdogs: what must not go on unseen for a hundred steps. Each names its cause.

what is seen                                   what happens
not-finite gradient or loss                    the step is skipped (weights keep), its batch saved;
                                               three in a row stop the run
no group had different grades, or the entropy  the run ends, its batch saved; the best adapter is
stayed under entropy_floor, watchdog_steps     kept
long
garbage in the first batch                     stop before a weight has changed, batch saved
the grader fails on more than 5 % of a batch   stop, batch saved; the last checkpoint stands
a python grader fails on a whole batch         the same
the disk is full                               stop; the last checkpoint stands

A run that was stopped can be resumed: fix the cause and start it again. One that ended is finished.
"""

from __future__ import annotations

import errno
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rftkit.files import UserError
from rftkit.records import Sample
from rftkit.training.store import append_lines, sample_lines

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
        alarms = []
        entropy = record.get("entropy")
        self.dead = self.dead + 1 if record.get("dead_groups") == 1 else 0
        self.flat = self.flat + 1 if entropy is not None and entropy < self.entropy_floor else 0
        if 0 < self.watchdog_steps <= self.dead:
            cause = (
                f"for {self.dead} steps all answers to a prompt got the same grade, so nothing "
                "was learned: take harder or easier rows, partial credit in the grader, or more "
                "answers per prompt (`rftkit signal` measures which)"
            )
            alarms.append({"name": "all groups dead", "cause": cause, "stops": True})
        if 0 < self.watchdog_steps <= self.flat:
            cause = (
                f"for {self.flat} steps the entropy was under {self.entropy_floor} nats a token "
                f"(now {entropy:.4f}), so the answers no longer differ: take a larger beta or a "
                "smaller learning rate"
            )
            alarms.append({"name": "entropy collapse", "cause": cause, "stops": True})
        return alarms

    def skip_alarm(self, loss: float | None) -> dict[str, Any]:
        what = "the loss" if loss is None or not math.isfinite(loss) else "a gradient"
        cause = (
            f"{what} was not finite, so the step was skipped and its batch saved: take a smaller "
            "learning rate, or fp32 on a GPU without bf16"
        )
        stops = self.skipped >= SKIPS_IN_A_ROW
        return {"name": "not finite", "cause": cause, "stops": stops}

    def restart(self) -> None:
        self.dead = self.flat = self.skipped = 0


def garbage_in_first_batch(
    tokenizer: Any,
    prompts: Sequence[str],
    completions: Sequence[Sequence[int]],
    ends: set[int],
) -> list[str]:
    """What is wrong with the first batch beside its template, one sentence each.

    prompts      texts, template included; completions: token ids; ends: ids that end an answer
    """
    faults = []
    begin, total = tokenizer.bos_token, len(completions)
    doubled = begin and sum(text.startswith(begin * 2) for text in prompts)
    if doubled:
        faults.append(f"{doubled} prompts begin with {begin} twice: the template adds it again")
    empty = sum(not [t for t in ids if t not in ends] for ids in completions)
    if empty > GARBAGE_SHARE * total:
        faults.append(
            f"{empty} of {total} answers are empty, ended at once: to the model its turn is over"
        )
    truncated = sum(not ids or ids[-1] not in ends for ids in completions)
    if truncated > TRUNCATED_SHARE * total:
        names = ", ".join(tokenizer.convert_ids_to_tokens(sorted(ends)))
        faults.append(
            f"{truncated} of {total} answers never ended with {names}: the model learned another "
            "end token, or max_completion_tokens is too short"
        )
    # Other control tokens may be the model's own way of marking its thinking.
    special = {tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id} - ends
    confused = [special.intersection(ids) for ids in completions if special.intersection(ids)]
    if len(confused) > GARBAGE_SHARE * total:
        names = ", ".join(tokenizer.convert_ids_to_tokens(sorted(set().union(*confused))))
        faults.append(
            f"{len(confused)} of {total} answers contain {names}: the model takes the prompt for "
            "something else than its chat template"
        )
    return faults


def save_batch(out: Path, step: int, name: str, samples: Sequence[Sample]) -> Path:
    """The batch of a step that went wrong: alarms/step-000012-not-finite.jsonl."""
    place = out / "alarms" / f"step-{step:06d}-{name.replace(' ', '-')}.jsonl"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    append_lines(place, sample_lines(step, samples))
    return place


def is_full_disk(error: BaseException, out: Path) -> bool:
    """Did writing fail for want of space? safetensors and torch say so in words of their own."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if "No space left" in str(error) or "os error 28" in str(error):
        return True
    return "PytorchStreamWriter" in str(error) and shutil.disk_usage(out).free < 1_000_000
