"""What the gate hands back: a verdict, the findings behind it, and all numbers they rest on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rftkit.data.records import Sample
from rftkit.data.writing import write_json, write_text
from rftkit.evaluation import Groups, Interval

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
