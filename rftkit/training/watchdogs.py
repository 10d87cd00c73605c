"""What watches a run: validations, which say what adapter is kept and when to stop, and watchdogs.

Every validation has the same prompts and random numbers, so two of them differ by the model alone.
They are compared by the TASK's metric: the best by reward would be the one that fools the grader.

Watchdogs name the cause of what must not go on unseen for a hundred steps. They skip a step whose
gradient is not finite, and stop the run after three in a row; end it when for watchdog_steps all
groups are dead or the entropy is under its floor; stop it before a weight has changed when the
first batch is garbage. trainer.py stops it when the grader fails, run.py when the disk is full.
Each saves its batch. A stopped run resumes once the cause is fixed.
"""

import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rftkit import evaluation
from rftkit.environment import gathered, process
from rftkit.files import UserError
from rftkit.policy import LocalPolicy, Prompt
from rftkit.records import Sample, SamplingConfig
from rftkit.rows import read_rows
from rftkit.task import Task
from rftkit.training.config import RunConfig
from rftkit.training.store import append_samples, copy_adapter, save_adapter

BEST_KEPT = 3
VALIDATION_SEED = 12_345
Values = dict[str, list[float]]  # of the grade and the headline metric: a number a held-out row
SKIPS_IN_A_ROW = 3
GARBAGE_SHARE = 0.5  # of the first batch
TRUNCATED_SHARE = 0.9  # of the first batch
CAUSES = {
    "all groups dead": "all answers to a prompt got the same grade: take other rows, partial "
    "credit or more answers per prompt (see `rftkit signal`)",
    "entropy collapse": "the entropy was under entropy_floor, the answers no longer differ: take a "
    "larger beta or a smaller learning rate",
}


@dataclass
class Progress:
    """What the validations came to so far; a checkpoint keeps it."""

    start: dict[str, Any] = field(default_factory=dict)  # the validation before step 1
    best: dict[str, Any] = field(default_factory=dict)  # the best one, and its "step"
    kept: list[dict[str, Any]] = field(default_factory=list)  # the best three: {"step", "mean"}
    since_best: int = 0  # validations after the best one
    seconds: float = 0.0
    start_values: Values = field(default_factory=dict)
    best_values: Values = field(default_factory=dict)


class HeldOut:
    """The best three adapters stand in checkpoints/best/, the best one in adapter/ as well."""

    def __init__(
        self, task: Task, rows: list[dict], config: RunConfig, out: Path, progress: Progress
    ):
        self.task, self.config, self.out, self.progress = task, config, out, progress
        limit = config.max_completion_tokens
        self.sampling = SamplingConfig(1.0, max_new_tokens=limit, seed=VALIDATION_SEED)
        # Empty: no validation. Checked here once, not in each validation.
        self.rows = read_rows(rows[: config.eval_rows] if config.eval_every else [])
        self.clusters = evaluation.clusters_of(self.rows, task)

    def validate(self, policy: LocalPolicy, step: int) -> tuple[dict[str, Any], list[dict]]:
        """(its record, its alarms); the adapter is saved where it is among the best. Of several
        processes each draws for its share of the rows, the first one does the rest."""
        import torch

        began, progress, samples = time.perf_counter(), self.progress, self.config.eval_samples
        training, (number, count) = policy.model.training, process()
        prompts = [Prompt(row, place) for place, row in enumerate(self.rows)][number::count]
        policy.model.eval()
        with torch.random.fork_rng():  # the run goes on as if nothing had been drawn
            shares = gathered(policy.sample(prompts, samples, self.sampling))
        policy.model.train(training)
        if number > 0:
            return {}, []
        drawn = [shares[place % count][place // count] for place in range(len(self.rows))]
        result = evaluation.measure(policy.name, self.task, self.rows, drawn, samples=samples)
        values = {k: result.values[k].tolist() for k in ("grade", self.task.headline)}
        faulty = ["sample_parse_error" in s.errors for group in result.samples for s in group]
        record = {
            "metric": self.task.headline,
            **evaluation.bootstrap(values[self.task.headline], self.clusters).to_json(),
            "grade": round(float(result.values["grade"].mean()), 4),
            "parse_error": round(sum(faulty) / len(faulty), 4),
            "patterns": evaluation.rounded(result.patterns),
            "n": len(self.rows),
        }
        alarms = self.drift(values, step)
        if step > 0 or self.config.keep_start:
            self.keep(policy, step, record, values)
        record["seconds"] = round(time.perf_counter() - began, 3)
        progress.seconds += record["seconds"]
        if step == 0:
            progress.start, progress.start_values = record, values
        return record, alarms

    def keep(self, policy: LocalPolicy, step: int, record: dict[str, Any], values: Values) -> None:
        """Save the adapter where it is among the best three; of equals, the earlier is better."""
        progress, entry = self.progress, {"step": step, "mean": record["mean"]}
        ranked = sorted([*progress.kept, entry], key=lambda e: (-e["mean"], e["step"]))
        progress.kept = ranked[:BEST_KEPT]
        progress.since_best += 1
        if entry in progress.kept:
            save_adapter(policy.model, self.place(step), policy.tokenizer)
        if entry == ranked[0]:
            progress.since_best = 0
            progress.best, progress.best_values = {"step": step, **record}, values
            self.install_best()

    def place(self, step: int) -> Path:
        return self.out / "checkpoints" / "best" / f"step-{step:06d}"

    def install_best(self) -> None:
        copy_adapter(self.place(self.progress.best["step"]), self.out / "adapter")

    def remove_others(self) -> None:
        """Adapters no longer among the best three go, but only once a checkpoint knows the present
        three: until then a resumed run would need the ones before."""
        kept = {self.place(entry["step"]) for entry in self.progress.kept}
        for place in {*self.out.glob("checkpoints/best/step-*")} - kept:
            shutil.rmtree(place, ignore_errors=True)

    def drift(self, values: Values, step: int) -> list[dict[str, Any]]:
        """An alarm where the held-out grade rose since the best validation and the task metric
        fell: both 95 % intervals of the paired differences leave out 0."""
        before, since = self.progress.best_values, self.progress.best.get("step", 0)
        if not before or self.task.headline == "grade":
            return []
        metric, grade = (
            evaluation.paired_difference(values[name], before[name], self.clusters)
            for name in (self.task.headline, "grade")
        )
        if metric.high >= 0 or grade.low <= 0:
            return []
        changes = f"held-out {self.task.headline} changed by {metric}, the grade by {grade}"
        cause = f"since step {since} {changes}: read the best-paid answers and fix the grader"
        alarm = {"name": "reward and task part", "cause": cause, "step": step, "since": since}
        return [alarm | {"metric": metric.to_json(), "grade": grade.to_json()}]


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


def find_garbage(
    tokenizer: Any, prompts: Sequence[str], completions: Sequence[Sequence[int]], ends: set[int]
) -> list[str]:
    """What is wrong with the first batch: its rendered prompts, its completions (token ids)."""

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
