"""Watchdogs: what must not go on unseen for a hundred steps. Each names its cause.

what is seen                                   what happens
not-finite gradient or loss                    the step is skipped (weights keep), its batch saved;
                                               three in a row stop the run
no group had a spread for watchdog_steps       the run ends, its batch saved; the best adapter is
                                               kept
entropy under entropy_floor as long            the same
garbage in the first batch                     stop before a weight has changed, batch saved
the grader fails on more than 5 % of a batch   stop at a checkpoint before the batch, batch saved
a python grader's own program fails            an alarm from half a batch on (those answers score
                                               0); on a whole batch: stop as above
the disk is full                               stop; the last whole checkpoint stands

A run that was stopped can go on: mend the cause and start it again. One that ended is finished;
another config begins a run of its own.
"""

from __future__ import annotations

import errno
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rftkit.files import UserError
from rftkit.graders.answer import PROGRAM_FAILED
from rftkit.records import Sample
from rftkit.training.store import append_lines

SKIPS_IN_A_ROW = 3
GARBAGE_SHARE = 0.5  # of the first batch
CUT_SHARE = 0.9
FAILING_SHARE = 0.5


class TrainingStopped(UserError):
    """A watchdog stopped the run. `cause` is its name; the run folder can go on."""

    def __init__(self, cause: str, message: str):
        super().__init__(message)
        self.cause = cause


class Watchdogs:
    """Reads each step's log object; counts what must last before it is an alarm."""

    def __init__(self, watchdog_steps: int, entropy_floor: float):
        self.watchdog_steps, self.entropy_floor = watchdog_steps, entropy_floor
        self.start_again()

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
        found = []
        self.dead = self.dead + 1 if record.get("dead_groups") == 1 else 0
        entropy = record.get("entropy")
        flat = entropy is not None and entropy < self.entropy_floor
        self.flat = self.flat + 1 if flat else 0
        if 0 < self.watchdog_steps <= self.dead:
            cause = (
                f"for {self.dead} steps all answers to a prompt got the same grade, so nothing "
                "was learned: harder or easier rows, partial credit in the grader, more answers "
                "per prompt (`rftkit signal` measures which)"
            )
            found.append({"name": "all groups dead", "cause": cause, "stops": True})
        if 0 < self.watchdog_steps <= self.flat:
            cause = (
                f"for {self.flat} steps the entropy was under {self.entropy_floor} nats a token "
                f"(now {entropy:.4f}): the answers no longer differ, so nothing new is tried. "
                "A larger beta, a smaller learning rate"
            )
            found.append({"name": "entropy collapse", "cause": cause, "stops": True})
        share = (record.get("errors") or {}).get(PROGRAM_FAILED, 0.0)
        if share >= FAILING_SHARE and not self.failing:
            cause = (
                f"the grader's own program failed on {share:.0%} of the answers, which scored 0 "
                "for it: grade one of samples.jsonl with `rftkit grade` to see its traceback"
            )
            found.append({"name": "grader errors", "cause": cause})
        self.failing = share >= FAILING_SHARE
        return found

    def skip_alarm(self, loss: float | None) -> dict[str, Any]:
        what = "the loss" if loss is None or not math.isfinite(loss) else "a gradient"
        cause = (
            f"{what} was not finite: the step was skipped, its batch saved. "
            "A smaller learning rate; on a GPU without bf16, fp32"
        )
        stops = self.skipped >= SKIPS_IN_A_ROW
        return {"name": "not finite", "cause": cause, "stops": stops}

    def start_again(self) -> None:
        self.dead = self.flat = self.skipped = 0
        self.failing = False

    def state(self) -> dict[str, int]:
        names = ("dead", "flat", "skipped", "failing")
        return {name: getattr(self, name) for name in names}

    def load(self, state: dict[str, int]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


# --- the first batch ---------------------------------------------------------------------------


def garbage_in_first_batch(
    tokenizer: Any,
    prompts: Sequence[str],
    completions: Sequence[Sequence[int]],
    ends: set[int],
) -> list[str]:
    """What is wrong with the first batch, one sentence each; empty where it is sound.

    prompts      the texts that the model read, template included
    completions  token ids of each answer, end token included
    ends         token ids that end an answer
    """
    found = []
    begin = tokenizer.bos_token
    doubled = begin and sum(text.startswith(begin * 2) for text in prompts)
    if doubled:
        found.append(f"{doubled} prompts begin with {begin} twice: the template adds it again")
    if any(not text.strip() for text in prompts):
        found.append("a prompt is empty after the chat template: the template drops the messages")
    names = tuple(tokenizer.convert_ids_to_tokens(sorted(ends)))
    closed = sum(text.rstrip().endswith(names) for text in prompts)
    if closed:
        found.append(
            f"{closed} prompts end with {' or '.join(names)}: the chat template does not open the "
            "assistant's turn, or ends it itself"
        )
    total = len(completions)
    empty = sum(not [t for t in ids if t not in ends] for ids in completions)
    if empty > GARBAGE_SHARE * total:
        found.append(
            f"{empty} of {total} answers are empty, ended at once: to the model its turn is over"
        )
    cut = sum(not ids or ids[-1] not in ends for ids in completions)
    if cut > CUT_SHARE * total:
        found.append(
            f"{cut} of {total} answers never ended by themselves (end token: {names[0]}): the end "
            "token is not the one the model learned, or max_completion_tokens is far too short"
        )
    # Other control tokens may be the model's own way of marking its thinking.
    special = {tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id} - ends
    bodies = [[t for t in ids if t in special] for ids in completions]
    speaking = sum(map(bool, bodies))
    if speaking > GARBAGE_SHARE * total:
        common = Counter(t for body in bodies for t in body).most_common(3)
        names = ", ".join(tokenizer.convert_ids_to_tokens([t for t, _ in common]))
        found.append(
            f"{speaking} of {total} answers contain {names} in their midst: the model takes the "
            "prompt for something else than its chat template"
        )
    return found


# --- what is left behind -----------------------------------------------------------------------


def save_batch(out: Path, step: int, name: str, samples: Sequence[Sample]) -> Path:
    """The batch of a step that went wrong: alarms/step-000012-not-finite.jsonl."""
    place = out / "alarms" / f"step-{step:06d}-{name.replace(' ', '-')}.jsonl"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    append_lines(place, [{"step": step} | sample.to_json() for sample in samples])
    return place


def is_full_disk(error: BaseException, out: Path) -> bool:
    """Did writing fail for want of space? safetensors and torch say so in words of their own."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if "No space left" in str(error) or "os error 28" in str(error):
        return True
    words = ("PytorchStreamWriter", "unexpected pos", "iostream")
    full = shutil.disk_usage(out).free < 1_000_000
    return full and any(word in str(error) for word in words)
