"""Validation during a run: which adapter is kept, when to stop, and an alarm.

Every validation has the same prompts and random numbers, so two of them differ by the model alone.
They are compared by the TASK's metric: the best by reward would be the one that fools the grader.
"""

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rftkit import evaluation
from rftkit.environment import gathered, process
from rftkit.policy import LocalPolicy, Prompt
from rftkit.records import SamplingConfig
from rftkit.rows import read_rows
from rftkit.task import Task
from rftkit.training.config import RunConfig
from rftkit.training.store import copy_adapter, save_adapter

BEST_KEPT = 3
VALIDATION_SEED = 12_345
Values = dict[str, list[float]]  # of the grade and the headline metric: a number a held-out row


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
