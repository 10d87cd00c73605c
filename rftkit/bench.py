"""Systems side by side on the same rows, prompts and seeds, and what every report says of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rftkit.console import Reporter
from rftkit.environment import machine, peak_memory_mb, versions
from rftkit.evaluation import (
    Interval,
    MetricFunction,
    SystemResult,
    clusters_of,
    evaluate,
    paired_record,
)
from rftkit.files import markdown_table
from rftkit.graders.answer import PROGRAM_FAILED
from rftkit.policy import Policy
from rftkit.records import SamplingConfig
from rftkit.task import Task

Rows = list[dict[str, Any]]
Pair = tuple[str, str, str, bool]  # later system, earlier system, metric, greedy?


@dataclass
class Bench:
    """Systems on the same rows, prompts and seeds. samples: answers a row for the headline."""

    task: Task
    rows: Rows
    sampling: SamplingConfig
    samples: int
    reporter: Reporter
    functions: Mapping[str, MetricFunction] = field(default_factory=dict)  # metrics of your own
    results: dict[str, SystemResult] = field(default_factory=dict)

    @property
    def headline(self) -> str:
        """The metric that the picture and the paired differences show first."""
        return next(iter(self.functions), self.task.headline)

    def add(
        self, name: str, policy: Policy, weight: float = 1.0, votes: int = 0, prefill: str = ""
    ) -> SystemResult:
        """Evaluate a system. weight: what an answer costs beside others; votes: k of maj@k."""
        self.reporter.stage(f"evaluating {name}")
        result = self.results[name] = evaluate(
            policy,
            self.task,
            self.rows,
            replace(self.sampling, prefill=prefill),
            self.samples,
            name,
            extra_samples=votes if votes > self.samples else 0,
            progress=lambda done: self.reporter.work(done * weight),
            functions=self.functions,
        )
        value = result.values[self.headline].mean()
        self.reporter.say(f"{name}: {self.headline} {value:.3f} at T = 1")
        return result

    def to_json(self, names: Iterable[str], pairs: Iterable[Pair]) -> dict[str, Any]:
        """The fields that every report.json has, for these systems and paired differences."""
        clusters = clusters_of(self.rows, self.task)
        chosen = [self.results[name] for name in names]
        return {
            "task": self.task.name,
            "n_cases": len(self.rows),
            "headline": self.headline,
            "clustered_by": self.task.group_by,
            "sampling": {"samples": self.samples, **self.sampling.to_json()},
            "systems": [r.to_json(clusters) | count_answers(r) for r in chosen],
            "paired": [
                paired_record(self.results[a], self.results[b], metric, clusters, greedy)
                for a, b, metric, greedy in pairs
            ],
            "peak_rss_mb": peak_memory_mb(),
            "seed": self.sampling.seed,
            "machine": machine(),
            "date": time.strftime("%Y-%m-%d"),
            "versions": versions(),
        }


def count_answers(result: SystemResult) -> dict[str, Any]:
    """How many answers were drawn, and how many of them say little about the model."""
    drawn = [s for group in (*result.samples, *result.greedy_samples) for s in group]
    failed = sum(sample.finish_reason == "error" for sample in drawn)
    cut = sum(sample.finish_reason == "length" for sample in drawn)
    return {
        "answers": len(drawn),
        "truncated": round(cut / len(drawn), 4),
        "failed": failed,  # never came
        "ungraded": sum(sample.grade is None for sample in drawn) - failed,
        "grader_errors": sum(PROGRAM_FAILED in sample.errors for sample in drawn),
    }


# --- tables and files --------------------------------------------------------------------------


def systems_table(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """Rows of a table: the headline with its interval and greedy, the other metrics' means."""
    systems, headline = report["systems"], report["headline"]
    metrics = {k: None for s in systems for k, v in s.items() if isinstance(v, dict) and "low" in v}
    others = [metric for metric in metrics if metric != headline]
    return [
        {
            "system": system["name"],
            f"{headline} at T = 1": str(Interval(**system[headline])),
            "greedy": f"{system['greedy'][headline]:.3f}",
        }
        | {name: f"{system[name]['mean']:.3f}" if name in system else "" for name in others}
        for system in systems
    ]


def paired_table(report: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "paired difference": f"{pair['a']} - {pair['b']}",
            "metric": pair["metric"],
            "difference, 95 % interval": paired_text(pair),
        }
        for pair in report["paired"]
    ]


def paired_text(pair: Mapping[str, Any]) -> str:
    return f"{Interval(pair['difference'], pair['low'], pair['high']):+}"


def report_text(report: Mapping[str, Any], sentences: Sequence[str]) -> str:
    """report.md: the tables, what they say, where it was measured."""
    sampling, by = report["sampling"], report["clustered_by"] or "row"
    parts = [
        f"# {report['task']}: {report['n_cases']} rows, seed {report['seed']}",
        markdown_table(systems_table(report)),
        markdown_table(paired_table(report)),
        *sentences,
        f"{sampling['samples']} answers a row at T = 1, at most {sampling['max_new_tokens']} "
        "tokens; mean over rows of the mean over a row's answers, with 95 % bootstrap intervals "
        f"clustered by {by}; greedy: the likeliest answer. A paired difference compares two "
        f"systems row by row. Measured {report['date']}, {report['machine']}, in "
        f"{report['seconds']:.0f} s.",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def append_samples(out: Path, result: SystemResult) -> None:
    """Lines of samples.jsonl; `greedy` tells the two ways of drawing apart."""
    from rftkit.training.store import append_lines

    for groups, greedy in ((result.samples, False), (result.greedy_samples, True)):
        lines = [sample.to_json() | {"greedy": greedy} for group in groups for sample in group]
        append_lines(out / "samples.jsonl", lines)
