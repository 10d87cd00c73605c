"""From graded answers to the gate's numbers; what they mean is in judges.py."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from rftkit.evaluation import Groups, Interval, bootstrap, clusters_of
from rftkit.files import write_json, write_text
from rftkit.graders.grader import is_best
from rftkit.records import Sample
from rftkit.signal.checks import (
    Reference,
)
from rftkit.task import Task

RECORD_FILE, SAMPLES_FILE = "signal.json", "signal_samples.jsonl"


NOT_SHOWN = ("drawn", "missing_rows")


INTERVALS = ("reward", "dead_groups", "dead_ability", "cut", "unreadable")


@dataclass
class Finding:
    """One thing that stands in the way.

    name      stable, for programs: see findings.FINDINGS
    evidence  what was measured, with its numbers
    knob      what to turn
    level     "fix" (do not train) or "open" (too few samples to tell)
    """

    name: str
    evidence: str
    knob: str
    level: str = "fix"

    def to_json(self) -> dict[str, str]:
        return asdict(self)


@dataclass
class Question:
    """One of the three questions to ask before RFT. answer: "yes", "no" or "not measured"."""

    question: str
    answer: str
    evidence: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)


@dataclass
class Signal:
    """The gate's result. Shares and rewards are means over rows with 95 % intervals over groups.

    verdict       "go", "fix" or "undecided"; reason: one sentence
    findings      what stands in the way, causes first; notes: what was not or could not be checked
    questions     hard? verifiable? labels scarce?
    policy, seed  what was measured
    rows, answers, samples, budget   rows drawn, answers a row, answers in all, and their limit
    temperature   of the drawn answers
    group         k: the answers that training compares with one another
    more_samples  about how many more answers, to rows that are there, would settle an "undecided";
                  None otherwise, and where no number of them would (the reason says what else)
    pass_at       {k: chance that one of k answers is right}
    reward        of an answer; spread: standard deviation within a row, mean over rows
    sub_graders   {name: {mean, spread, moving}}; moving: share of rows in which it differs
    dead_groups   share of groups of k without spread; dead_ability: looking at readable answers
                  alone, and not at what is worth less than a well-formed wrong one
    format_share  share of the spread that readable against unreadable explains; None: no spread
    stages        {how far an answer could be read: share}
    lengths       tokens {p50, p90, p95, p99, most} of the drawn answers, the limit they had, and
                  `probe`: the same for a few answers with more room, where many were cut
    cut           share of answers that the limit cuts
    unreadable    share of answers that ended, but could not be read
    lost_grades   share of answers that the grader itself failed on
    distinct_rewards   how many different rewards the answers earned that were not cut
    dead_kinds    {why a dead group is dead: share of all groups}: "always right", "never right",
                  "repeated" (the answers are mostly one text), "alike"
    repeated      chance that two answers of a row are the same text, thinking included
    never, always row ids without one right answer, and with all right
    patterns      {thinking pattern: {share, reward}}
    reference     the reference check's status, and mean rewards of right and of swapped answers
    shown         some of the samples, worst, median and best
    drawn         all samples, drawn[row][index]; not in to_json (see save)
    missing_rows  about how many more rows an "undecided" lacks, whether there are any or not; for
                  the gate itself, not in to_json
    """

    verdict: str
    reason: str
    findings: list[Finding] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    policy: str = ""
    seed: int = 0
    rows: int = 0
    answers: int = 0
    samples: int = 0
    budget: int = 0
    group: int = 0
    temperature: float = 1.0
    more_samples: int | None = None
    pass_at: dict[int, Interval] = field(default_factory=dict)
    reward: Interval | None = None
    spread: float | None = None
    sub_graders: dict[str, dict[str, float | None]] = field(default_factory=dict)
    dead_groups: Interval | None = None
    dead_ability: Interval | None = None
    format_share: float | None = None
    stages: dict[str, float] = field(default_factory=dict)
    lengths: dict[str, Any] = field(default_factory=dict)
    cut: Interval | None = None
    unreadable: Interval | None = None
    lost_grades: float = 0.0
    distinct_rewards: int = 0
    dead_kinds: dict[str, float] = field(default_factory=dict)
    repeated: float = 0.0
    never: list[str] = field(default_factory=list)
    always: list[str] = field(default_factory=list)
    patterns: dict[str, dict[str, float | None]] = field(default_factory=dict)
    reference: dict[str, Any] = field(default_factory=dict)
    shown: list[dict[str, Any]] = field(default_factory=list)
    drawn: Groups = field(default_factory=list, repr=False, compare=False)
    missing_rows: int = field(default=0, repr=False, compare=False)

    def names(self) -> list[str]:
        """The names of the findings, causes first."""
        return [finding.name for finding in self.findings]

    def to_json(self) -> dict[str, Any]:
        """One JSON object: every field but `drawn` and `missing_rows`."""
        shown = [f.name for f in fields(self) if f.name not in NOT_SHOWN]
        return {name: _plain(getattr(self, name)) for name in shown}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Signal:
        """Read what to_json wrote; fields that later versions add are ignored."""
        known = {f.name for f in fields(cls)} - set(NOT_SHOWN)
        values = {name: value for name, value in record.items() if name in known}
        values["findings"] = [Finding(**f) for f in values.get("findings", [])]
        values["questions"] = [Question(**q) for q in values.get("questions", [])]
        for name in INTERVALS:
            if values.get(name) is not None:
                values[name] = Interval(**values[name])
        passed = values.get("pass_at", {})
        values["pass_at"] = {int(k): Interval(**value) for k, value in passed.items()}
        return cls(**values)

    def save(self, folder: str | Path) -> None:
        """Write signal.json and signal_samples.jsonl (one Sample a line) into a folder."""
        folder = Path(folder)
        write_json(folder / RECORD_FILE, self.to_json())
        lines = [
            json.dumps(sample.to_json(), ensure_ascii=False)
            for group in self.drawn
            for sample in group
        ]
        write_text(folder / SAMPLES_FILE, "".join(line + "\n" for line in lines))


def shown_samples(drawn: Groups, count: int = 6) -> list[dict[str, Any]]:
    """Some samples as objects: the worst and best rewards, and some between, ordered by reward."""
    flat: list[Sample] = [sample for group in drawn for sample in group]
    ranked = sorted(flat, key=lambda s: (s.grade is not None, s.grade or 0.0))
    if len(ranked) > count:
        last = len(ranked) - 1
        ranked = [ranked[round(i * last / (count - 1))] for i in range(count)]
    return [sample.to_json() for sample in ranked]


def _plain(value: Any) -> Any:
    """Intervals, findings and questions as objects, keys as text, numbers to four places."""
    if hasattr(value, "to_json"):
        return value.to_json()
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return round(value, 4) if isinstance(value, float) else value


# ------------------------------------------------------------------------------------------
# from rftkit.signal.numbers:
# The gate's statistics: pass@k, dead groups, shares with intervals, how many samples are missing.
#
# Each takes one row's counts, because a row may be drawn more often than training will draw it:
# n answers are at hand, and the question is what a group of k of them would have looked like.

MISS = 0.025  # one side of a 95 % interval


def pass_at_k(n: int, right: int, k: int) -> float:
    """The chance that k answers, drawn without putting back from n, hold at least one right one.

    1 - C(n - right, k) / C(n, k): unbiased for any n >= k (Chen et al. 2021, "Evaluating Large
    Language Models Trained on Code", section 2.1). The naive 1 - (1 - right/n)^k is too low.

    >>> pass_at_k(n=8, right=1, k=1), pass_at_k(n=8, right=1, k=8)
    (0.125, 1.0)
    """
    if not 0 <= right <= n or not 1 <= k <= n:
        raise ValueError(f"n={n}, right={right}, k={k}: expected 0 <= right <= n and 1 <= k <= n")
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def dead_chance(rewards: Sequence[float], k: int, unread: int = 0) -> float:
    """The chance that k answers of one row, drawn without putting back, show no spread.

    rewards  one number an answer; equal ones (to 9 places) count as the same
    unread   answers beside them that are left out of the comparison (they could not be read): a
             group is dead as well if all that is left of it has one reward, or if nothing is left

    A group of k lies within one value and the unread: C(count + unread, k) ways for each value;
    the groups of unread answers alone would be counted once for every value.

    >>> dead_chance([0, 0, 1, 1], k=2) == 2 / 6
    True
    """
    n = len(rewards) + unread
    k = min(k, n)
    if k == 0:
        return 1.0
    counts = Counter(round(float(reward), 9) for reward in rewards).values()
    ways = sum(math.comb(count + unread, k) for count in counts)
    ways -= (len(counts) - 1) * math.comb(unread, k)
    return ways / math.comb(n, k)


def share_interval(
    values: Sequence[float], clusters: Sequence[Any], trials: int | None = None
) -> Interval:
    """The mean of values in [0, 1], one a row, with its 95 % interval over clusters.

    trials  what counts as independent where nothing varies: the clusters by default (rows differ
            in difficulty), or the number of answers (for what differs from answer to answer)

    The bootstrap cannot see what no row showed: where all values are 0 (or 1) its interval has no
    width, after three rows as after three hundred. Then the exact bound is taken: after n trials
    without the event its share may still be up to 1 - 0.025^(1/n) (Clopper & Pearson, Biometrika
    26:404, 1934).
    """
    interval = bootstrap(values, clusters)
    slack = 1 - MISS ** (1 / (trials or len(set(clusters))))
    if np.allclose(values, 0):
        return Interval(0.0, 0.0, slack)
    if np.allclose(values, 1):
        return Interval(1.0, 1.0 - slack, 1.0)
    return interval


def more_rows(interval: Interval, threshold: float, rows: int, most: int = 100_000) -> int:
    """About how many more rows would put the threshold outside the interval; 0 if it is outside.

    An interval shrinks with the square root of the number of rows (computed: the half-width
    towards the threshold over the distance to it, squared, times the rows).
    """
    if not interval.low <= threshold <= interval.high:
        return 0
    distance = abs(interval.mean - threshold)
    towards = interval.mean - interval.low
    if interval.mean < threshold:
        towards = interval.high - interval.mean
    if distance * distance * (rows + most) <= towards * towards * rows:
        return most
    return max(1, math.ceil(rows * (towards / distance) ** 2) - rows)


def spread_parts(rewards: Sequence[float], readable: Sequence[bool]) -> tuple[float, float]:
    """One group's variance of reward, taken apart: (between, within).

    between  readable answers earn more than unreadable ones: what format alone would teach
    within   readable answers differ among themselves: what ability would teach
    Their sum is the group's variance (law of total variance).
    """
    rewards, readable = np.asarray(rewards, float), np.asarray(readable, bool)
    between = within = 0.0
    for part in (rewards[readable], rewards[~readable]):
        if len(part):
            weight = len(part) / len(rewards)
            between += weight * (part.mean() - rewards.mean()) ** 2
            within += weight * part.var()
    return float(between), float(within)


# ------------------------------------------------------------------------------------------
# from rftkit.signal.numbers:
# From graded answers to the gate's numbers; what they mean is in judges.py.

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
