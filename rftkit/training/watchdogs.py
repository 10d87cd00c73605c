"""Watchdogs: what must not go on unseen for a hundred steps. Each names its cause.

They skip a step whose gradient is not finite, and stop the run after three in a row; end it when
for watchdog_steps all groups are dead or the entropy is under its floor; stop it before a weight
has changed when the first batch is garbage. trainer.py stops it when the grader fails, run.py when
the disk is full. Each saves its batch. A stopped run resumes once the cause is fixed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rftkit.environment import process
from rftkit.files import UserError
from rftkit.records import Sample
from rftkit.training.store import append_samples

SKIPS_IN_A_ROW = 3
GARBAGE_SHARE = 0.5  # of the first batch
TRUNCATED_SHARE = 0.9  # of the first batch
CAUSES = {
    "all groups dead": "all answers to a prompt got the same grade: take other rows, partial "
    "credit or more answers per prompt (see `rftkit signal`)",
    "entropy collapse": "the entropy was under entropy_floor, the answers no longer differ: take a "
    "larger beta or a smaller learning rate",
}


class TrainingStopped(UserError):
    """A watchdog stopped the run, which can be resumed."""


@dataclass
class Watchdogs:
    """Reads each step's log object; counts what must last before it is an alarm."""

    watchdog_steps: int
    entropy_floor: float
    dead: int = 0  # steps in a row without a live group
    flat: int = 0  # steps in a row under the entropy floor
    skipped: int = 0  # steps in a row with a gradient that is not finite

    def not_finite(self, parameters: Iterable[Any]) -> bool:
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
        counted = {"all groups dead": self.dead, "entropy collapse": self.flat}
        return [
            {"name": name, "cause": f"for {steps} steps {CAUSES[name]}", "stops": True}
            for name, steps in counted.items()
            if 0 < self.watchdog_steps <= steps
        ]

    def skip_alarm(self, loss: float | None) -> dict[str, Any]:
        """loss: None where it was not finite."""
        stops = self.skipped >= SKIPS_IN_A_ROW
        if stops:  # once the cause is fixed, the full patience is due again
            self.skipped = 0
        what = "the loss" if loss is None else "a gradient"
        cause = f"{what} was not finite, so the step was skipped: take a smaller learning rate"
        return {"name": "not finite", "cause": cause, "stops": stops}


def garbage_in_first_batch(
    tokenizer: Any, prompts: Sequence[str], completions: Sequence[Sequence[int]], ends: set[int]
) -> list[str]:
    """What is wrong with rendered prompts and completions (token ids, `ends` end an answer)."""

    def names(ids: set[int | None]) -> str:
        return ", ".join(tokenizer.convert_ids_to_tokens(sorted(ids - {None})))

    begin, total = tokenizer.bos_token, len(completions)
    # Other control tokens may be the model's own way of marking its thinking.
    special = {tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id} - ends
    doubled = sum(text.startswith(begin * 2) for text in prompts) if begin else 0
    empty = sum(ends.issuperset(ids) for ids in completions)
    truncated = sum(not ids or ids[-1] not in ends for ids in completions)
    confused = sum(not special.isdisjoint(ids) for ids in completions)
    faults = {
        f"{doubled} prompts begin with {begin} twice: the template adds it again": doubled,
        f"{empty} of {total} answers are empty: to the model its turn is over": empty
        > GARBAGE_SHARE * total,
        f"{truncated} of {total} answers never ended with {names(ends)}: the model learned another "
        "end token, or max_completion_tokens is too short": truncated > TRUNCATED_SHARE * total,
        f"{confused} of {total} answers contain one of {names(special)}: the model takes the "
        "prompt for something else than its chat template": confused > GARBAGE_SHARE * total,
    }
    return [fault for fault, holds in faults.items() if holds]


def save_batch(out: Path, step: int, name: str, samples: Sequence[Sample]) -> Path:
    """As alarms/step-000012-not-finite.jsonl, by the first process."""
    place = out / "alarms" / f"step-{step:06d}-{name.replace(' ', '-')}.jsonl"
    if process()[0] > 0:
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    append_samples(place, samples, step=step)
    return place
