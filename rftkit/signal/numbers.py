"""From graded answers to the gate's numbers; what they mean is in judges.py."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rftkit.data.records import Sample
from rftkit.evaluation import Groups, Interval, bootstrap, clusters_of
from rftkit.graders.core import is_best
from rftkit.signal.estimators import dead_chance, pass_at_k, share_interval, spread_parts
from rftkit.signal.record import Signal, shown_samples
from rftkit.signal.task_checks import Reference
from rftkit.task import Task

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "most": 1.0}


@dataclass
class Drawn:
    """Rows, their ids and their answers: groups[row][index].

    probe   a few answers drawn with `probe_room` tokens, where many were cut at the limit
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    groups: Groups = field(default_factory=list)
    probe: list[Sample] = field(default_factory=list)
    probe_room: int = 0


def take_numbers(
    signal: Signal, task: Task, drawn: Drawn, reference: Reference, limit: int
) -> None:
    """Grade what was drawn, and fill every number of the signal.

    limit   the tokens that the answers were given
    """
    task.grade(drawn.rows, drawn.groups)
    for group, row_id in zip(drawn.groups, drawn.ids):
        for sample in group:
            sample.row_id = row_id  # its place among all rows, not among those drawn
    clusters = clusters_of(drawn.rows, task)
    flat = [sample for group in drawn.groups for sample in group]
    signal.rows, signal.answers = len(drawn.rows), len(drawn.groups[0])
    signal.samples = len(flat) + len(drawn.probe)
    signal.reference, signal.drawn = reference.to_json(), drawn.groups
    signal.shown = shown_samples(drawn.groups)
    stages = Counter(stage_of(task, sample) for sample in flat)
    signal.stages = {name: count / len(flat) for name, count in stages.most_common()}
    signal.lengths = length_quantiles(flat) | {"limit": limit}
    if drawn.probe:
        ends = [sample.finish_reason == "stop" for sample in drawn.probe]
        about = {"room": drawn.probe_room, "answers": len(ends), "ended": sum(ends)}
        signal.lengths["probe"] = length_quantiles(drawn.probe) | about
    signal.cut = row_shares(drawn.groups, lambda s: s.finish_reason == "length", clusters)
    signal.unreadable = row_shares(
        drawn.groups, lambda s: stage_of(task, s) not in ("readable", "cut", "no answer"), clusters
    )
    came = [sample.grade for sample in flat if sample.finish_reason != "error"]
    signal.lost_grades = float(np.mean([grade is None for grade in came]))
    ended = [sample.grade for sample in flat if sample.finish_reason == "stop"]
    signal.distinct_rewards = len({round(grade, 9) for grade in ended if grade is not None})
    # Answers that never came, or whose grade was lost, are nobody's signal.
    groups = [[s for s in group if s.grade is not None] for group in drawn.groups]
    kept = [i for i, group in enumerate(groups) if len(group) > 1]
    if kept:
        rows, ids = [drawn.rows[i] for i in kept], [drawn.ids[i] for i in kept]
        groups, clusters = [groups[i] for i in kept], [clusters[i] for i in kept]
        reward_numbers(signal, task, rows, ids, groups, clusters, reference)


def reward_numbers(
    signal: Signal,
    task: Task,
    rows: list[dict[str, Any]],
    ids: list[str],
    groups: Groups,
    clusters: list[str],
    reference: Reference,
) -> None:
    """pass@k, rewards, their spread and dead groups, of rows whose answers have grades."""
    k = signal.group
    right = [
        [is_right(task, row, sample, reference) for sample in group]
        for row, group in zip(rows, groups)
    ]
    signal.never = [row_id for row_id, hits in zip(ids, right) if not any(hits)]
    signal.always = [row_id for row_id, hits in zip(ids, right) if all(hits)]
    least = min(map(len, groups))
    for size in sorted({1, 2, 4, k, least}):
        if size <= least:
            values = [pass_at_k(len(hits), sum(hits), size) for hits in right]
            signal.pass_at[size] = share_interval(values, clusters)

    rewards = [[sample.grade for sample in group] for group in groups]
    readable = [[stage_of(task, sample) == "readable" for sample in group] for group in groups]
    signal.reward = bootstrap([float(np.mean(values)) for values in rewards], clusters)
    signal.spread = float(np.mean([np.std(values) for values in rewards]))
    parts = np.array([spread_parts(v, flags) for v, flags in zip(rewards, readable)]).sum(0)
    signal.format_share = float(parts[0] / parts.sum()) if parts.sum() > 1e-12 else None
    signal.dead_groups = share_interval([dead_chance(values, k) for values in rewards], clusters)
    floor = wrong_reward(reference)
    able = [
        dead_chance([max(v, floor) for v, ok in zip(values, flags) if ok], k, flags.count(False))
        for values, flags in zip(rewards, readable)
    ]
    signal.dead_ability = share_interval(able, clusters)
    signal.repeated = float(np.mean([repeat_chance(group) for group in groups]))
    kinds: Counter = Counter()
    for group, hits, chance in zip(groups, right, able):
        kinds[dead_kind(group, hits)] += chance / len(groups)
    signal.dead_kinds = dict(kinds.most_common())
    signal.sub_graders = sub_grader_numbers(groups)
    signal.patterns = pattern_numbers(task, groups)


def wrong_reward(reference: Reference) -> float:
    """What a well-formed wrong answer earns. A spread below it is form, as between a list that
    names a gene twice and one that does not: it would be learned, and nothing about the task."""
    if reference.swapped is None or not reference.sound:
        return -math.inf
    return reference.swapped


def row_shares(groups: Groups, wanted: Callable[[Sample], bool], clusters: list[str]) -> Interval:
    """The share of samples that `wanted` says yes to, mean over rows, with its interval."""
    values = [float(np.mean([wanted(sample) for sample in group])) for group in groups]
    return share_interval(values, clusters, trials=sum(map(len, groups)))


def is_right(task: Task, row: dict[str, Any], sample: Sample, reference: Reference) -> bool:
    """Is this answer right? By the best grade, where the grader has been seen to be sound (or
    nothing else is known); else by the answer in first place, whatever it was graded."""
    if reference.sound or task.answer_template is None:
        return is_best(sample.grade, task.grader.maximum)
    if sample.finish_reason == "length" or task.answer_path[1] not in row:
        return False
    return task.place(row, sample) == 1


def stage_of(task: Task, sample: Sample) -> str:
    """How far an answer could be read: "readable", or where reading it failed.

    "no answer" (the endpoint failed), "cut" at the limit, "unclosed thinking", "empty", "not JSON"
    (where the task wants JSON), "answer missing" (JSON, but nothing where the answer belongs)
    """
    if sample.finish_reason == "error":
        return "no answer"
    if sample.finish_reason == "length":
        return "cut"
    stage = sample.parse_stage or sample.find_parse_stage()
    if stage in ("unclosed thinking", "empty"):
        return stage
    if task.answer_template is None:
        wants_json = "output_json" in str(task.grader_spec)
        return "not JSON" if wants_json and stage != "json" else "readable"
    if task.answer_path[0] and stage != "json":
        return "not JSON"
    return "readable" if task.answers(sample) else "answer missing"


def length_quantiles(samples: list[Sample]) -> dict[str, float]:
    """Quantiles of the answers' lengths in tokens."""
    lengths = [sample.completion_tokens for sample in samples]
    return {name: float(np.quantile(lengths, q)) for name, q in QUANTILES.items()}


def dead_kind(group: list[Sample], right: list[bool]) -> str:
    """Why a group without spread has none: "always right", "repeated" (two
    answers are more often the same text than not), "never right", "alike"."""
    if all(right):
        return "always right"
    if repeat_chance(group) >= 0.5:
        return "repeated"
    return "alike" if any(right) else "never right"


def repeat_chance(group: list[Sample]) -> float:
    """The chance that two answers of a row are the same text, thinking included."""
    counts = Counter((sample.reasoning, sample.output_text) for sample in group).values()
    pairs = len(group) * (len(group) - 1)
    return sum(count * (count - 1) for count in counts) / pairs


def sub_grader_numbers(groups: Groups) -> dict[str, dict[str, float | None]]:
    """{sub-grader: {mean, spread within a row, share of rows in which it moves}}."""
    names = dict.fromkeys(name for group in groups for s in group for name in s.sub_grades)
    found = {}
    for name in names:
        values = [[s.sub_grades.get(name) for s in group] for group in groups]
        values = [[v for v in row if v is not None] for row in values]
        values = [row for row in values if row]
        if values:
            found[name] = {
                "mean": float(np.mean([np.mean(row) for row in values])),
                "spread": float(np.mean([np.std(row) for row in values])),
                "moving": float(np.mean([np.ptp(row) > 1e-9 for row in values])),
            }
    return found


def pattern_numbers(task: Task, groups: Groups) -> dict[str, dict[str, float | None]]:
    """{thinking pattern: {share of answers, their mean reward}}: what there is to reinforce."""
    flat = [sample for group in groups for sample in group]
    found = {}
    for name, pattern in task.compiled_patterns.items():
        rewards = [sample.grade for sample in flat if pattern.search(sample.reasoning)]
        found[name] = {
            "share": len(rewards) / len(flat),
            "reward": float(np.mean(rewards)) if rewards else None,
        }
    return found
