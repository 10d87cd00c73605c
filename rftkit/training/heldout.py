"""Looks at held-out rows during a run: which adapter is kept, when to stop, and an alarm.

The held-out rows are sampled with the same prompts and the same random numbers at every look, so
two looks differ by the model alone. What is compared is the TASK's metric, never the reward: a
grader that can be fooled raises the reward of a model that gets worse, and the best checkpoint by
reward would be the one that fools it best.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rftkit.evaluation import bootstrap, clusters_of, paired_difference, pattern_shares, row_values
from rftkit.policy import LocalPolicy
from rftkit.records import Sample, SamplingConfig
from rftkit.task import Task
from rftkit.training.config import RunConfig
from rftkit.training.store import copy_adapter, save_adapter

BEST_KEPT = 3
LOOK_SEED = 12_345
PARSE_ERRORS = ("sample_parse_error",)


class HeldOut:
    """The looks of one run: the best three adapters in checkpoints/best/, the best in adapter/."""

    def __init__(self, task: Task, rows: list[dict], config: RunConfig, out: Path):
        self.task, self.config, self.out = task, config, out
        self.rows = rows[: config.eval_rows]
        self.folder = out / "checkpoints" / "best"
        self.start: dict[str, Any] = {}
        self.best: dict[str, Any] = {}
        self.kept: list[dict[str, Any]] = []  # best first: {"step", "mean"}
        self.looks_since_best = 0
        self.seconds = 0.0
        # One number a held-out row, of the best look: what the alarm compares with.
        self.best_values: dict[str, list[float]] = {}
        self.start_values: dict[str, list[float]] = {}  # the same before step 1
        self.alarms: list[dict[str, Any]] = []

    def look(
        self, policy: LocalPolicy, step: int, log: Sequence[dict[str, Any]] = ()
    ) -> dict[str, Any]:
        """One validation record; the adapter is saved where it is among the best so far.

        log   the steps up to here, for the alarm: did the training reward rise?
        """
        began = time.perf_counter()
        samples = self.sample(policy)
        self.task.grade(self.rows, samples)
        values = row_values(self.task.headline, self.task, self.rows, samples)
        grades = row_values("grade", self.task, self.rows, samples)
        flat = [sample for group in samples for sample in group]
        faulty = sum(any(e in PARSE_ERRORS for e in s.errors) for s in flat)
        record = {
            "metric": self.task.headline,
            **bootstrap(values, clusters_of(self.rows, self.task)).to_json(),
            "grade": round(float(grades.mean()), 4),
            "parse_error": round(faulty / max(len(flat), 1), 4),
            "patterns": rounded(pattern_shares(self.task, samples)),
            "n": len(self.rows),
        }
        now = {"metric": values.tolist(), "grade": grades.tolist()}
        self.alarms = self.part(now, step, log)
        self.keep(policy, step, record, now)
        record["seconds"] = round(time.perf_counter() - began, 3)
        self.seconds += record["seconds"]
        if step == 0:
            self.start, self.start_values = record, now
        return record

    def sample(self, policy: LocalPolicy) -> list[list[Sample]]:
        import torch

        training = policy.model.training
        policy.model.eval()
        settings = SamplingConfig(
            temperature=1.0, max_new_tokens=self.config.max_completion_tokens, seed=LOOK_SEED
        )
        prompts = [row["messages"] for row in self.rows]
        with torch.random.fork_rng():  # looking must not change what is drawn next
            samples = policy.sample(prompts, self.config.eval_samples, settings)
        policy.model.train(training)
        return samples

    # --- the best three ------------------------------------------------------------------------

    def keep(
        self, policy: LocalPolicy, step: int, record: dict[str, Any], now: dict[str, list[float]]
    ) -> None:
        """Save the adapter where it is among the best three; of equals, the earlier is better."""
        if step == 0 and not self.config.keep_start:
            return
        better = not self.best or record["mean"] > self.best["mean"]
        self.looks_since_best = 0 if better else self.looks_since_best + 1
        entry = {"step": step, "mean": record["mean"]}
        self.kept = sorted([*self.kept, entry], key=lambda e: (-e["mean"], e["step"]))[:BEST_KEPT]
        if entry in self.kept:
            save_adapter(policy.model, self.place(step))
        if better:
            self.best, self.best_values = {"step": step, **record}, now
            copy_adapter(self.place(step), self.out / "adapter")

    def place(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"

    def restore_best(self) -> None:
        """adapter/ is the best look that is remembered: before a kill there were later ones."""
        if self.best:
            copy_adapter(self.place(self.best["step"]), self.out / "adapter")

    def clear(self) -> None:
        """Remove adapters that are no longer among the best three. Called once a checkpoint that
        knows the present three is whole: until then the one before may still need its own."""
        kept = {self.place(entry["step"]).name for entry in self.kept}
        for place in self.folder.glob("step-*"):
            if place.name not in kept:
                shutil.rmtree(place, ignore_errors=True)

    @property
    def no_longer_improves(self) -> bool:
        return 0 < self.config.patience <= self.looks_since_best

    # --- the alarm -----------------------------------------------------------------------------

    def part(
        self, now: dict[str, list[float]], step: int, log: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Alarms of a look: the reward went up since the best look, and the task metric went down.

        Down: the 95 % interval of the paired difference on the held-out rows lies below 0. Up: the
        same of the held-out grades lies above 0 ("hacked": the grader likes what the task does
        not), or the training reward rose by more than two standard errors ("overfitted").
        """
        if not self.best_values or self.task.headline == "grade":
            return []  # where the metric is the reward they cannot part
        clusters = clusters_of(self.rows, self.task)
        metric = paired_difference(now["metric"], self.best_values["metric"], clusters)
        if metric.high >= 0:
            return []
        grade = paired_difference(now["grade"], self.best_values["grade"], clusters)
        since, name = self.best["step"], self.task.headline
        fell = f"held-out {name} fell by {-metric.mean:.3f} [{-metric.high:.3f}, {-metric.low:.3f}]"
        known = {"step": step, "since": since, "metric": metric.to_json(), "grade": grade.to_json()}
        if grade.low > 0:
            cause = (
                f"since step {since} the reward rises and the task gets worse: held-out grade up "
                f"by {grade.mean:.3f} [{grade.low:.3f}, {grade.high:.3f}], {fell}. The grader pays "
                "for something else than the task: read the best-paid answers, mend the grader"
            )
            return [{"name": "reward and task part", "cause": cause, **known}]
        if rises(log, since, self.config.eval_every):
            cause = (
                f"since step {since} the training reward rises and {fell}: what is learned holds "
                "for the training rows alone. Stop here, take more rows or a smaller learning rate"
            )
            return [{"name": "training and held-out part", "cause": cause, **known}]
        return []

    # --- what a checkpoint keeps ---------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        names = ("start", "best", "kept", "looks_since_best", "seconds", "best_values",
                 "start_values")  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def load(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


def rises(log: Sequence[dict[str, Any]], since: int, window: int) -> bool:
    """Is the mean training reward of the last `window` steps above that of the `window` steps up to
    `since` (of the first ones, where that is the start) by more than two standard errors?"""
    since = max(since, window)
    rewards = {r["step"]: r["reward_mean"] for r in log if r.get("reward_mean") is not None}
    last = max(rewards, default=0)
    now = [rewards[s] for s in range(last - window + 1, last + 1) if s in rewards]
    then = [rewards[s] for s in range(since - window + 1, since + 1) if s in rewards]
    if len(now) < 3 or len(then) < 3 or last - window < since:
        return False
    error = (statistics.variance(now) / len(now) + statistics.variance(then) / len(then)) ** 0.5
    return statistics.mean(now) - statistics.mean(then) > 2 * error


def rounded(values: dict[str, float], digits: int = 4) -> dict[str, float]:
    return {k: round(float(v), digits) for k, v in values.items()}
