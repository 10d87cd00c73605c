"""The gate's record: verdict, findings, and the numbers that they rest on, from graded answers.

Of a row n answers are at hand; the question is what a group of k of them would have looked like.
"""

import json
import math
import textwrap
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from rftkit.evaluation import Groups, Interval, bootstrap, clusters_of, sample_metric
from rftkit.files import shorten
from rftkit.graders.grader import is_best
from rftkit.records import Sample
from rftkit.rows import Row
from rftkit.signal.checks import Reference
from rftkit.task import Task

NUMBERS = (  # that text() lists
    "samples", "rows", "metric", "pass_at", "pass_at_reward", "reward", "spread",
    "dead_groups", "dead_ability", "format_share", "stages", "cut", "lengths", "sub_graders",
    "patterns",
)  # fmt: skip
PRINTED = {"spread": "std"}  # the field's word for a number that JSON names otherwise
QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "most": 1.0}


@dataclass
class Finding:
    """One thing that stands in the way of training."""

    name: str  # stable, for programs
    evidence: str  # what was measured
    setting: str  # what to change; `knob` in JSON
    level: str = "fix"  # or "open": not certain yet
    missing_rows: int = 0  # about how many more rows would tell, where there are too few

    def to_json(self) -> dict[str, str]:
        known = {"name": self.name, "evidence": self.evidence}
        return known | {"knob": self.setting, "level": self.level}


@dataclass
class Question:
    """One of the three questions to ask before RFT."""

    question: str
    answer: str  # "yes", "no" or "not measured"
    evidence: str


@dataclass(repr=False)  # a notebook shows text()
class Signal:
    """The gate's result. Shares and rewards are means over rows, with 95 % intervals."""

    policy: str
    seed: int
    budget: int
    group: int  # k: the answers that training compares with one another
    temperature: float
    verdict: str = ""  # "go", "fix" or "undecided"
    reason: str = ""
    findings: list[Finding] = field(default_factory=list)  # causes first
    questions: list[Question] = field(default_factory=list)  # hard? verifiable? labels scarce?
    notes: list[str] = field(default_factory=list)
    prompt_notes: list[str] = field(default_factory=list)  # those of the notes that come first
    unknown_words: float = 0.0  # share of the prompts' words that the model has no tokens for
    rows: int = 0  # drawn
    answers: int = 0  # to each row
    samples: int = 0  # in all, at most `budget`
    more_samples: int | None = None  # about how many more would settle an "undecided"
    metric: str = "grade"  # which says of an answer whether it is right
    pass_at: dict[int, Interval] = field(default_factory=dict)  # k -> P(one of k answers is right)
    pass_at_reward: dict[int, Interval] = field(default_factory=dict)  # k -> P(one earns the best)
    reward: Interval | None = None
    spread: float | None = None  # mean over rows of a row's standard deviation of reward
    sub_graders: dict[str, dict[str, float]] = field(default_factory=dict)
    dead_groups: Interval | None = None  # share of groups of k with one reward
    dead_ability: Interval | None = None  # the same among readable answers
    format_share: float | None = None  # of the variance of reward: readable against unreadable
    stages: dict[str, float] = field(default_factory=dict)  # how far answers could be read
    lengths: dict[str, Any] = field(default_factory=dict)  # quantiles in tokens, limit, probe
    unended: str = ""  # what closes an answer in the chat template and is no end token
    cut: Interval | None = None  # share of answers that the limit cuts
    unreadable: Interval | None = None  # share that ended, but could not be read
    lost_grades: float = 0.0  # share that the grader itself failed on
    distinct_rewards: int = 0  # among answers that ended
    repeated: float = 0.0  # P(two answers of a row are the same text)
    never: list[str] = field(default_factory=list)  # ids of rows without a right answer
    always: list[str] = field(default_factory=list)  # ids of rows with right answers alone
    patterns: dict[str, dict[str, float | None]] = field(default_factory=dict)
    reference: Reference = field(default_factory=Reference)
    shown: list[dict[str, Any]] = field(default_factory=list)  # some samples, worst to best
    drawn: Groups = field(default_factory=list)  # all samples, [row][index]

    def names(self) -> list[str]:
        """The names of the findings, causes first."""
        return [finding.name for finding in self.findings]

    @property
    def missing_rows(self) -> int:
        """About how many more rows would settle what is open."""
        return max((finding.missing_rows for finding in self.findings), default=0)

    def of_share(self, share: Interval, most: float, finding: Finding) -> list[Finding]:
        """The finding where the share's interval lies above `most`; open where that is inside."""
        if share.high <= most:
            return []
        if share.low <= most:
            finding.level, finding.missing_rows = "open", more_rows(share, most, self.rows)
            finding.evidence += f"; {most:.0%} lies inside the interval, so it is not certain yet"
        return [finding]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON, numbers to four places."""
        record = {name: value for name, value in vars(self).items() if name != "drawn"}
        record["questions"] = list(map(vars, self.questions))
        text = json.dumps(record, default=lambda part: part.to_json())
        return json.loads(text, parse_float=lambda number: round(float(number), 4))

    @property
    def endless(self) -> bool:
        """Does hardly an answer end by itself, even with more room?"""
        probe = self.lengths.get("probe", {"ended": 1, "answers": 1})
        return probe["ended"] <= probe["answers"] / 2

    def cut_text(self) -> str:
        """How many answers the limit cuts, and how long they would have been."""
        text = f"{self.cut} of the answers are cut at {self.lengths['limit']} tokens"
        if probe := self.lengths.get("probe"):
            text += "; probe: of {answers} drawn with {room} tokens {ended} ended ".format(**probe)
            text += f"by themselves (p95: {probe['p95']:.0f} tokens)"
        return text

    def text(self, width: int = 92) -> str:
        """Verdict, findings, questions, notes, numbers and some answers, as lines."""
        fill = partial(textwrap.fill, width=width, initial_indent="  ", subsequent_indent="  ")
        lines = [f"{self.verdict}: {self.reason}"]
        for f in self.findings:
            lines += ["", f.name, fill(f.evidence), fill(f"change {f.setting}")]
        lines += ["", *(fill(f"{q.question} {q.answer}: {q.evidence}") for q in self.questions)]
        lines += [fill(f"note: {note}") for note in self.notes]
        if self.samples:
            numbers = {name: getattr(self, name) for name in NUMBERS}
            known = {PRINTED.get(k, k): v for k, v in numbers.items() if v or v == 0}
            lines += ["", *(fill(f"{name}: {shown(value)}") for name, value in known.items())]
            lines += ["", "answers, from worst to best"]
        for sample in self.shown:
            answer = f"{sample['row_id']}: {sample['reasoning']} => {sample['output_text']}"
            lines.append("  " + shorten(f"{shown(sample['grade'])} {answer}", width - 2))
        return "\n".join(lines)

    __repr__ = text


def shown(value: Any) -> str:
    """A number, interval or dict of them, as text."""
    if isinstance(value, dict):
        keys = (PRINTED.get(k, k) if isinstance(v, float) else k for k, v in value.items())
        return "; ".join(f"{key} {shown(entry)}" for key, entry in zip(keys, value.values()))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def pass_at_k(n: int, right: int, k: int) -> float:
    """The chance that k of n answers, `right` of them right, hold at least one right one: unbiased
    for n >= k (Chen et al. 2021, arXiv 2107.03374, 2.1)."""
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def dead_chance(rewards: Sequence[float], k: int, unread: int = 0) -> float:
    """The chance that k of a row's answers have one reward; `unread` answers have none at all."""
    n = len(rewards) + unread
    k = min(k, n)
    counts = Counter(round(float(reward), 9) for reward in rewards).values()
    ways = sum(math.comb(count + unread, k) for count in counts)
    ways -= (len(counts) - 1) * math.comb(unread, k)  # groups of unread alone: once a reward
    return ways / math.comb(n, k)


def share_interval(values: Sequence[float], clusters: Sequence, trials: int = 0) -> Interval:
    """The mean of values in [0, 1], one a row, with its 95 % interval over clusters."""
    # The bootstrap cannot see what no row showed. After n trials (by default the clusters) without
    # the event its share may still be 1 - 0.025^(1/n) (Clopper & Pearson, Biometrika 26:404, 1934).
    slack = 1 - 0.025 ** (1 / (trials or len(set(clusters))))
    if np.allclose(values, 0):
        return Interval(0.0, 0.0, slack)
    if np.allclose(values, 1):
        return Interval(1.0, 1.0 - slack, 1.0)
    return bootstrap(values, clusters)


def more_rows(interval: Interval, threshold: float, rows: int) -> int:
    """About how many more rows put the threshold outside the interval, as 1/sqrt(rows) shrinks."""
    distance = max(abs(interval.mean - threshold), 1e-9)
    end = interval.high if interval.mean < threshold else interval.low
    half = abs(end - interval.mean)
    return min(100_000, max(1, math.ceil(rows * (half / distance) ** 2) - rows))


def spread_parts(rewards: Sequence[float], readable: Sequence[bool]) -> tuple[float, float]:
    """One row's variance of reward as (between, within) readable and unreadable answers: what lies
    between them is form, what lies within is ability."""
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
    counts = Counter((sample.reasoning, sample.answer) for sample in group).values()
    return sum(count * (count - 1) for count in counts) / (len(group) * (len(group) - 1))


def take_numbers(signal: Signal, task: Task, rows: list[Row], groups: Groups) -> None:
    """Fill the signal's numbers from graded answers, groups[row][index]."""
    flat = sum(groups, [])
    stages = [[stage_of(task, sample) for sample in group] for group in groups]
    counts, clusters = Counter(sum(stages, [])), clusters_of(rows, task)

    def share_at(wanted: Collection[str]) -> Interval:
        values = [float(np.mean([stage in wanted for stage in row])) for row in stages]
        return share_interval(values, clusters, trials=len(flat))

    signal.rows, signal.answers, signal.drawn = len(rows), len(groups[0]), groups
    signal.stages = {name: count / len(flat) for name, count in counts.most_common()}
    signal.cut = share_at({"cut"})
    signal.unreadable = share_at(counts.keys() - {"readable", "cut", "no answer"})
    signal.lengths |= quantiles(flat)
    ranked = sorted(flat, key=lambda s: (s.grade is not None, s.grade or 0.0))
    picks = np.linspace(0, len(ranked) - 1, min(6, len(ranked))).round().astype(int)
    signal.shown = [ranked[i].to_json() for i in picks]
    # Answers that never came, or whose grade was lost, are nobody's signal.
    came = [sample for sample in flat if sample.finish_reason != "error"]
    signal.lost_grades = float(np.mean([sample.grade is None for sample in came]))
    ended = [s.grade for s in came if s.finish_reason == "stop" and s.grade is not None]
    signal.distinct_rewards = len({round(grade, 9) for grade in ended})
    graded = [[s for s in group if s.grade is not None] for group in groups]
    kept = [i for i, group in enumerate(graded) if len(group) > 1]
    if kept:
        take_reward_numbers(signal, task, [rows[i] for i in kept], [graded[i] for i in kept])


def take_reward_numbers(signal: Signal, task: Task, rows: list[Row], groups: Groups) -> None:
    """pass@k, rewards, their std and dead groups, of rows whose answers have grades."""
    k, least, clusters = signal.group, min(map(len, groups)), clusters_of(rows, task)
    right = best = [[is_best(s.grade, signal.reference.maximum) for s in g] for g in groups]
    signal.metric = metric = task.headline
    if metric != "grade":
        pairs = zip(rows, groups)
        right = [[sample_metric(metric, task, row, s) == 1 for s in group] for row, group in pairs]
    signal.never = [group[0].row_id for group, hits in zip(groups, right) if not any(hits)]
    signal.always = [group[0].row_id for group, hits in zip(groups, right) if all(hits)]
    for size in sorted(size for size in {1, 2, 4, k, least} if size <= least):
        for pass_at, hit in ((signal.pass_at, right), (signal.pass_at_reward, best)):
            values = [pass_at_k(len(hits), sum(hits), size) for hits in hit]
            pass_at[size] = share_interval(values, clusters)

    rewards = [[sample.grade for sample in group] for group in groups]
    readable = [[stage_of(task, sample) == "readable" for sample in group] for group in groups]
    signal.reward = bootstrap([float(np.mean(values)) for values in rewards], clusters)
    signal.spread = float(np.mean([np.std(values) for values in rewards]))
    form, ability = np.array(list(map(spread_parts, rewards, readable))).sum(0)
    signal.format_share = float(form / (form + ability)) if form + ability > 1e-12 else None
    signal.dead_groups = share_interval([dead_chance(values, k) for values in rewards], clusters)
    # Below what a well-formed wrong answer earns rewards differ by form alone.
    reference = signal.reference
    floor = reference.swapped if reference.sound and reference.swapped is not None else -math.inf
    able = [
        dead_chance([max(v, floor) for v, ok in zip(values, flags) if ok], k, flags.count(False))
        for values, flags in zip(rewards, readable)
    ]
    signal.dead_ability = share_interval(able, clusters)
    signal.repeated = float(np.mean([repeat_chance(group) for group in groups]))
    for name in groups[0][0].sub_grades:
        graded = [[s.sub_grades.get(name) for s in group] for group in groups]
        known = [part for row in graded if (part := [v for v in row if v is not None])]
        if known:
            mean, spread = np.mean([(np.mean(row), np.std(row)) for row in known], axis=0)
            signal.sub_graders[name] = {"mean": float(mean), "spread": float(spread)}
    flat = sum(groups, [])
    for name, pattern in task.compiled_patterns.items():
        paid = [sample.grade for sample in flat if pattern.search(sample.reasoning)]
        reward = float(np.mean(paid)) if paid else None
        signal.patterns[name] = {"share": len(paid) / len(flat), "reward": reward}


def stage_of(task: Task, sample: Sample) -> str:
    """How far an answer could be read: "readable", "cut" (at the limit), "no answer" (the endpoint
    failed), "unclosed thinking", "empty", "not JSON", or "answer missing" (JSON without it)."""
    if sample.finish_reason != "stop":
        return {"error": "no answer", "length": "cut"}[sample.finish_reason]
    stage = sample.parse_stage or sample.find_parse_stage()
    if stage in ("unclosed thinking", "empty"):
        return stage
    has_template = task.answer_template is not None
    wants_json = task.answer_path[0] if has_template else "output_json" in str(task.grader_spec)
    if wants_json and stage != "json":
        return "not JSON"
    return "readable" if not has_template or task.answers(sample) else "answer missing"


def quantiles(samples: list[Sample]) -> dict[str, float]:
    """Quantiles of the answers' lengths in tokens."""
    lengths = [sample.completion_tokens for sample in samples]
    return {name: float(np.quantile(lengths, q)) for name, q in QUANTILES.items()}
