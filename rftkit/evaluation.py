"""Held-out evaluation: the same rows, prompts and seeds for every system, and intervals.

A number about a model is a mean over rows of the mean over a row's samples, with a 95 % bootstrap
interval over whole groups: rows that share an answer are not independent.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from statistics import mode
from typing import Any

import numpy as np

from rftkit.files import plural
from rftkit.graders.answer import PROGRAM_FAILED
from rftkit.policy import Policy, Prompt
from rftkit.records import Sample, SamplingConfig
from rftkit.rows import Source, read_rows
from rftkit.task import Task

RESAMPLES = 2_000
Groups = list[list[Sample]]  # samples[row][index]
MetricFunction = Callable[[dict[str, Any], Sample], float]  # (row, sample) -> one number


@dataclass
class Interval:
    """A mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def __format__(self, sign: str) -> str:
        """As "0.314 [0.271, 0.357]"; f"{interval:+}" shows the signs of a difference."""
        return f"{self.mean:{sign}.3f} [{self.low:{sign}.3f}, {self.high:{sign}.3f}]"

    def __str__(self) -> str:
        return f"{self:}"

    def to_json(self) -> dict[str, float]:
        return rounded(asdict(self))


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {key: round(value, 4) for key, value in values.items()}


def bootstrap(values: Sequence[float], clusters: Sequence[Any], seed: int = 0) -> Interval:
    """Mean of one value a row, with the 95 % percentile interval over 2,000 resamples of clusters:
    Efron & Tibshirani, An Introduction to the Bootstrap (1993), ch. 13; clusters: Field & Welsh,
    J. R. Stat. Soc. B 69:369 (2007)."""
    values = np.asarray(values, float)
    _, number = np.unique(np.asarray(clusters), return_inverse=True)
    total, size = np.bincount(number, values), np.bincount(number)
    picks = np.random.default_rng(seed).integers(len(size), size=(RESAMPLES, len(size)))
    means = total[picks].sum(1) / size[picks].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def paired_difference(a: Sequence[float], b: Sequence[float], clusters: Sequence[Any]) -> Interval:
    """Mean of a - b over the same rows, with its interval: it says more than two intervals do."""
    return bootstrap(np.asarray(a, float) - np.asarray(b, float), clusters)


def permutation_p(a: Sequence[float], b: Sequence[float], clusters: Sequence[Any]) -> float:
    """p of "no difference": the share of 9,999 draws, each with a random sign for every cluster's
    sum of a - b, whose mean is as far from 0 as measured (Fisher, The Design of Experiments, 1935,
    section 21). Two-sided; exact for up to 13 clusters; 1 for a single one."""
    from scipy.stats import permutation_test

    _, number = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(number, np.asarray(a, float) - np.asarray(b, float))
    draws = {"permutation_type": "samples", "n_resamples": 9_999, "rng": 0}
    return 1.0 if len(sums) < 2 else float(permutation_test((sums,), np.sum, **draws).pvalue)


def clusters_of(rows: list[dict], task: Task) -> list[str]:
    """What the rows of an interval are clustered by: the task's group, else each row alone."""
    if task.group_by is None:
        return [str(i) for i in range(len(rows))]
    return [json.dumps(row.get(task.group_by)) for row in rows]


def sample_metric(metric: str, task: Task, row: dict[str, Any], sample: Sample) -> float:
    """One sample's value: topK, mrr (1 / place of the reference), or grade."""
    if metric == "grade":
        return sample.grade or 0.0
    place = task.place(row, sample)
    if metric == "mrr":
        return 1 / place if place else 0.0
    if metric.startswith("top") and metric[3:].isdigit():
        return float(place is not None and place <= int(metric[3:]))
    raise ValueError(f'metric "{metric}": expected top1, top5, ..., mrr or grade')


def row_values(
    metric: str | MetricFunction, task: Task, rows: list[dict], samples: Groups, over: Any = np.mean
) -> np.ndarray:
    """(rows,): the mean over each row's samples; metric is a name or a function of your own."""
    value = metric if callable(metric) else partial(sample_metric, metric, task)
    return np.array([over([value(row, s) for s in group]) for row, group in zip(rows, samples)])


def by_length(rows: list[dict[str, Any]], values: np.ndarray) -> dict[str, dict]:
    """{field: {length: {"n": rows, "mean": of values (rows,)}}} for the row fields that are lists,
    not all as long: are cases with more findings easier?"""
    table = {}
    for key in sorted(rows[0].keys() - {"messages"}):
        if all(isinstance(row.get(key), list) for row in rows):
            lengths = np.array([len(row[key]) for row in rows])
            parts = [(str(n), values[lengths == n]) for n in np.unique(lengths)]
            if len(parts) > 1:
                table[key] = {n: {"n": len(v), "mean": float(v.mean())} for n, v in parts}
    return table


@dataclass(repr=False)
class SystemResult:
    """One system on the test rows: the samples drawn and one number a row for each metric."""

    name: str
    n: int
    values: dict[str, np.ndarray]  # metric -> (rows,), at the config's temperature
    greedy: dict[str, np.ndarray] = field(default_factory=dict)
    samples: Groups = field(default_factory=list)
    greedy_samples: Groups = field(default_factory=list)
    patterns: dict[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        means = {metric: values.mean() for metric, values in self.values.items()}
        means |= {f"greedy {metric}": values.mean() for metric, values in self.greedy.items()}
        shown = ", ".join(f"{metric} {mean:.3f}" for metric, mean in means.items())
        return f"{self.name} on {plural(self.n, 'row')}: {shown}"

    def to_json(self, clusters: Sequence[Any]) -> dict[str, Any]:
        """The entry of report.json's `systems`."""
        record: dict[str, Any] = {"name": self.name, "n": self.n}
        record["greedy"] = rounded({k: float(v.mean()) for k, v in self.greedy.items()})
        for metric, values in self.values.items():
            record[metric] = bootstrap(values, clusters).to_json()
        return record | ({"patterns": rounded(self.patterns)} if self.patterns else {})


def paired_record(
    a: SystemResult, b: SystemResult, metric: str, clusters: Sequence[Any], greedy: bool = False
) -> dict[str, Any]:
    """The entry of report.json's `paired`: a - b on the same rows, sampled or greedy."""
    left, right = (system.greedy if greedy else system.values for system in (a, b))
    interval = paired_difference(left[metric], right[metric], clusters).to_json()
    names = {"a": a.name, "b": b.name, "metric": f"greedy {metric}" if greedy else metric}
    p = round(permutation_p(left[metric], right[metric], clusters), 4)
    return names | {"difference": interval.pop("mean")} | interval | {"p": p}


def gain_parts(task: Task, rows: list, before: SystemResult, after: SystemResult) -> dict:
    """What a gain in top1 at T = 1 is made of, over all samples; the parts add up to `gain`.

    `truncation`: fewer completions were cut before an answer. `form`: of the others, more can be
    read. The rest is content: `beyond` stands in rows that no sample of `before` solved, so more
    samples would make it smaller; `selection` in rows where the right answer was there before.
    """
    (whole, readable, right), (whole_now, readable_now, right_now) = (
        _shares(task, rows, system.samples) for system in (before, after)
    )
    now = row_values("top1", task, rows, after.samples)
    solved = row_values("top1", task, rows, before.samples, np.max) > 0
    beyond = float(np.where(solved, 0, now).mean())
    parts = {
        "gain": whole_now * readable_now * right_now - whole * readable * right,
        "truncation": (whole_now - whole) * readable * right,
        "form": whole_now * (readable_now - readable) * right,
        "selection": whole_now * readable_now * (right_now - right) - beyond,
        "beyond": beyond,
    }
    return rounded(parts)


def _shares(task: Task, rows: list[dict], samples: Groups) -> tuple[float, float, float]:
    """Completions that were not cut before an answer; of these, readable; of these, right."""
    pairs = [(row, sample) for row, group in zip(rows, samples) for sample in group]
    readable = [pair for pair in pairs if task.answers(pair[1])]
    cut = sum(s.finish_reason == "length" and not task.answers(s) for _, s in pairs)
    right = sum(task.place(*pair) == 1 for pair in readable)
    whole = len(pairs) - cut
    return whole / len(pairs), len(readable) / max(1, whole), right / max(1, len(readable))


def evaluate(
    policy: Policy,
    task: Task,
    rows: Source,
    config: SamplingConfig | None = None,
    samples: int = 2,
    name: str | None = None,
    extra_samples: int = 0,
    greedy: bool = True,
    progress: Callable[[int], None] | None = None,
    functions: Mapping[str, MetricFunction] | None = None,
) -> SystemResult:
    """Sample every row, grade, and measure the task's metrics. samples: answers a row for the
    headline; extra_samples: the k of pass@k, the headline's first among them."""
    rows, config = read_rows(rows), config or SamplingConfig()
    prompts = list(map(Prompt, rows))
    drawn = policy.sample(prompts, max(samples, extra_samples), config, progress)
    cold = replace(config, temperature=0.0)
    likeliest = policy.sample(prompts, 1, cold, progress) if greedy else []
    return measure(name or policy.name, task, rows, drawn, likeliest, samples, functions)


def measure(
    name: str,
    task: Task,
    rows: list[dict[str, Any]],
    drawn: Groups,
    greedy: Groups = (),
    samples: int | None = None,
    functions: Mapping[str, MetricFunction] | None = None,
) -> SystemResult:
    """Measure the task's metrics of answers that were already drawn, and grade those without a
    grade. samples: how many of each row's answers make the headline; None: all, no pass@k."""
    for group in (*drawn, *greedy):
        for sample in group:
            sample.model = name
    for groups in filter(None, (drawn, greedy)):
        task.grade(rows, [[s for s in group if s.grade is None] for group in groups])
    headline = [group[:samples] for group in drawn]
    metrics = {metric: metric for metric in (*task.metrics, "grade")} | dict(functions or {})
    result = SystemResult(
        name=name,
        n=len(rows),
        values={key: row_values(m, task, rows, headline) for key, m in metrics.items()},
        samples=drawn,
        patterns=pattern_shares(task, headline),
    )
    k = max(len(group) for group in drawn)
    if samples is not None and k > samples:
        result.values[f"pass@{k}"] = row_values("top1", task, rows, drawn, np.max)
    if greedy:
        result.greedy_samples = greedy
        result.greedy = {key: row_values(m, task, rows, greedy) for key, m in metrics.items()}
    return result


def pattern_shares(task: Task, samples: Groups) -> dict[str, float]:
    """The share of samples whose reasoning shows each of the task's thinking patterns."""
    texts = [sample.reasoning for group in samples for sample in group]
    patterns = task.compiled_patterns.items()
    return {name: sum(map(bool, map(p.search, texts))) / len(texts) for name, p in patterns}


def count_answers(result: SystemResult, task: Task) -> dict[str, Any]:
    """What became of a system's answers, for report.json."""
    drawn, greedy = sum(result.samples, []), sum(result.greedy_samples, [])
    samples = drawn + greedy
    ended = Counter(sample.finish_reason for sample in samples)
    groups = map(list.__add__, result.samples, result.greedy_samples)
    same = all(len({(s.reasoning, s.answer) for s in group}) == 1 for group in groups)
    return {
        "answers": len(samples),
        "tokens": round(sum(s.completion_tokens for s in samples) / len(samples), 1),  # an answer
        "seconds": round(sum(s.seconds for s in samples) / len(samples), 5),  # an answer
        **({"distinct": distinct(task, drawn)} if task.answer_template else {}),
        "truncated": round(ended["length"] / len(samples), 4),
        "failed": ended["error"],  # the request failed
        "ignores_temperature": same and result.name.startswith("endpoint:"),
        "ungraded": sum(sample.grade is None for sample in samples) - ended["error"],
        "grader_errors": sum(PROGRAM_FAILED in sample.errors for sample in samples),
    }


def distinct(task: Task, samples: list[Sample]) -> float:
    """Mean share of a list's usual places that hold an answer of their own; 5 genes fill 5."""
    answers = [list(map(str, task.answers(sample))) for sample in samples]
    usual = mode(map(len, answers))
    filled = sum(min(len({*own}), usual) for own in answers)
    return round(filled / usual / len(answers), 4) if usual > 1 else 1.0
