"""From graded answers to the gate's numbers: pass@k, dead groups, what the limit cuts.

Of a row n answers are at hand; the question is what a group of k of them would have looked like.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from rftkit.evaluation import Groups, Interval, bootstrap, clusters_of
from rftkit.graders.grader import is_best
from rftkit.records import Sample
from rftkit.signal.checks import Reference
from rftkit.signal.record import Signal
from rftkit.task import Task

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "most": 1.0}


def pass_at_k(n: int, right: int, k: int) -> float:
    """The chance that k of n answers, `right` of them right, hold at least one right one.

    1 - C(n - right, k) / C(n, k): unbiased for n >= k (Chen et al. 2021, arXiv 2107.03374, 2.1).
    """
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def dead_chance(rewards: Sequence[float], k: int, unread: int = 0) -> float:
    """The chance that k of a row's answers have one reward; `unread` answers have none at all.

    C(count + unread, k) ways for each reward count the unread alone once for every reward.
    """
    n = len(rewards) + unread
    k = min(k, n)
    counts = Counter(round(float(reward), 9) for reward in rewards).values()
    ways = sum(math.comb(count + unread, k) for count in counts)
    ways -= (len(counts) - 1) * math.comb(unread, k)
    return ways / math.comb(n, k)


def share_interval(
    values: Sequence[float], clusters: Sequence[Any], trials: int | None = None
) -> Interval:
    """The mean of values in [0, 1], one a row, with its 95 % interval over clusters.

    The bootstrap cannot see what no row showed. Where all values are 0 (or 1) the exact bound is
    taken: after n trials (by default the clusters) without the event its share may still be up to
    1 - 0.025^(1/n) (Clopper & Pearson, Biometrika 26:404, 1934).
    """
    slack = 1 - 0.025 ** (1 / (trials or len(set(clusters))))
    if np.allclose(values, 0):
        return Interval(0.0, 0.0, slack)
    if np.allclose(values, 1):
        return Interval(1.0, 1.0 - slack, 1.0)
    return bootstrap(values, clusters)


def more_rows(interval: Interval, threshold: float, rows: int, most: int = 100_000) -> int:
    """About how many more rows would put the threshold outside the interval: it shrinks with the
    square root of their number."""
    distance = max(abs(interval.mean - threshold), 1e-9)
    is_below = interval.mean < threshold
    half = interval.high - interval.mean if is_below else interval.mean - interval.low
    return min(most, max(1, math.ceil(rows * (half / distance) ** 2) - rows))


def spread_parts(rewards: Sequence[float], readable: Sequence[bool]) -> tuple[float, float]:
    """One row's variance of reward as (between, within) readable and unreadable answers.

    What lies between them is form, what lies within is ability; their sum is the variance.
    """
    rewards, readable = np.asarray(rewards, float), np.asarray(readable, bool)
    between = within = 0.0
    for part in (rewards[readable], rewards[~readable]):
        if len(part):
            weight = len(part) / len(rewards)
            between += weight * (part.mean() - rewards.mean()) ** 2
            within += weight * part.var()
    return float(between), float(within)


def repeat_chance(group: list[Sample]) -> float:
    """The chance that two answers of a row are the same text, thinking included."""
    counts = Counter((sample.reasoning, sample.output_text) for sample in group).values()
    return sum(count * (count - 1) for count in counts) / (len(group) * (len(group) - 1))


def take_numbers(
    signal: Signal, task: Task, rows: list[dict[str, Any]], groups: Groups, reference: Reference
) -> None:
    """Fill the signal's numbers from graded answers, groups[row][index]."""
    flat = [sample for group in groups for sample in group]
    clusters = clusters_of(rows, task)
    stages = [[stage_of(task, sample) for sample in group] for group in groups]
    counts = Counter(stage for row in stages for stage in row)
    signal.rows, signal.answers, signal.drawn = len(rows), len(groups[0]), groups
    signal.shown = shown_samples(flat)
    signal.stages = {name: count / len(flat) for name, count in counts.most_common()}
    signal.lengths |= length_quantiles(flat)
    signal.cut = stage_share(stages, {"cut"}, clusters)
    unread = counts.keys() - {"readable", "cut", "no answer"}
    signal.unreadable = stage_share(stages, unread, clusters)
    came = [sample for sample in flat if sample.finish_reason != "error"]
    signal.lost_grades = float(np.mean([sample.grade is None for sample in came]))
    ended = [s.grade for s in came if s.finish_reason == "stop" and s.grade is not None]
    signal.distinct_rewards = len({round(grade, 9) for grade in ended})
    # Answers that never came, or whose grade was lost, are nobody's signal.
    graded = [[s for s in group if s.grade is not None] for group in groups]
    kept = [i for i, group in enumerate(graded) if len(group) > 1]
    if kept:
        rows, graded = [rows[i] for i in kept], [graded[i] for i in kept]
        take_reward_numbers(signal, task, rows, graded, reference)


def take_reward_numbers(
    signal: Signal, task: Task, rows: list[dict[str, Any]], groups: Groups, reference: Reference
) -> None:
    """pass@k, rewards, their std and dead groups, of rows whose answers have grades."""
    k, least, clusters = signal.group, min(map(len, groups)), clusters_of(rows, task)
    right = [[is_best(s.grade, task.grader.maximum) for s in group] for group in groups]
    signal.never = [group[0].row_id for group, hits in zip(groups, right) if not any(hits)]
    signal.always = [group[0].row_id for group, hits in zip(groups, right) if all(hits)]
    for size in sorted(size for size in {1, 2, 4, k, least} if size <= least):
        values = [pass_at_k(len(hits), sum(hits), size) for hits in right]
        signal.pass_at[size] = share_interval(values, clusters)

    rewards = [[sample.grade for sample in group] for group in groups]
    readable = [[stage_of(task, sample) == "readable" for sample in group] for group in groups]
    signal.reward = bootstrap([float(np.mean(values)) for values in rewards], clusters)
    signal.spread = float(np.mean([np.std(values) for values in rewards]))
    form, ability = np.array(list(map(spread_parts, rewards, readable))).sum(0)
    signal.format_share = float(form / (form + ability)) if form + ability > 1e-12 else None
    signal.dead_groups = share_interval([dead_chance(values, k) for values in rewards], clusters)
    # Below what a well-formed wrong answer earns rewards differ by form alone.
    floor = reference.swapped if reference.sound and reference.swapped is not None else -math.inf
    able = [
        dead_chance([max(v, floor) for v, ok in zip(values, flags) if ok], k, flags.count(False))
        for values, flags in zip(rewards, readable)
    ]
    signal.dead_ability = share_interval(able, clusters)
    signal.repeated = float(np.mean([repeat_chance(group) for group in groups]))
    signal.sub_graders = sub_grader_numbers(groups)
    signal.patterns = pattern_numbers(task, sum(groups, []))


def stage_share(stages: list[list[str]], wanted: Collection[str], clusters: list[str]) -> Interval:
    """The share of answers at these stages, mean over rows."""
    values = [float(np.mean([stage in wanted for stage in row])) for row in stages]
    return share_interval(values, clusters, trials=sum(map(len, stages)))


def stage_of(task: Task, sample: Sample) -> str:
    """How far an answer could be read: "readable", "cut" (at the limit), "no answer" (the endpoint
    failed), "unclosed thinking", "empty", "not JSON", or "answer missing" (JSON without it)."""
    if sample.finish_reason in ("error", "length"):
        return {"error": "no answer", "length": "cut"}[sample.finish_reason]
    stage = sample.parse_stage or sample.find_parse_stage()
    if stage in ("unclosed thinking", "empty"):
        return stage
    has_template = task.answer_template is not None
    wants_json = task.answer_path[0] if has_template else "output_json" in str(task.grader_spec)
    if wants_json and stage != "json":
        return "not JSON"
    return "readable" if not has_template or task.answers(sample) else "answer missing"


def length_quantiles(samples: list[Sample]) -> dict[str, float]:
    """Quantiles of the answers' lengths in tokens."""
    lengths = [sample.completion_tokens for sample in samples]
    return {name: float(np.quantile(lengths, q)) for name, q in QUANTILES.items()}


def shown_samples(flat: list[Sample], count: int = 6) -> list[dict[str, Any]]:
    """Some samples as objects: the worst and best rewards, and some between."""
    ranked = sorted(flat, key=lambda s: (s.grade is not None, s.grade or 0.0))
    picks = np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int)
    return [ranked[i].to_json() for i in picks]


def sub_grader_numbers(groups: Groups) -> dict[str, dict[str, float]]:
    """{sub-grader: {mean, spread (std within a row)}}."""
    numbers = {}
    for name in groups[0][0].sub_grades:
        graded = [[s.sub_grades.get(name) for s in group] for group in groups]
        rows = [known for row in graded if (known := [v for v in row if v is not None])]
        if rows:
            mean, spread = np.mean([(np.mean(row), np.std(row)) for row in rows], axis=0)
            numbers[name] = {"mean": float(mean), "spread": float(spread)}
    return numbers


def pattern_numbers(task: Task, flat: list[Sample]) -> dict[str, dict[str, float | None]]:
    """{thinking pattern: {share of answers, their mean reward}}: what there is to reinforce."""
    numbers = {}
    for name, pattern in task.compiled_patterns.items():
        rewards = [sample.grade for sample in flat if pattern.search(sample.reasoning)]
        reward = float(np.mean(rewards)) if rewards else None
        numbers[name] = {"share": len(rewards) / len(flat), "reward": reward}
    return numbers
