"""What the gate hands back: a verdict, the findings behind it, and the numbers they rest on."""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from rftkit.evaluation import Groups, Interval
from rftkit.files import shorten, write_json, write_text

# What text() lists.
NUMBERS = (
    "samples", "rows", "pass_at", "reward", "spread", "dead_groups", "dead_ability",
    "format_share", "stages", "cut", "lengths", "sub_graders", "patterns",
)  # fmt: skip


@dataclass
class Finding:
    """One thing that stands in the way of training."""

    name: str  # stable, for programs
    evidence: str  # what was measured
    setting: str  # what to change; `knob` in JSON
    level: str = "fix"  # or "open": too few samples to tell
    missing_rows: int = 0  # about how many more rows would tell

    def to_json(self) -> dict[str, str]:
        known = {"name": self.name, "evidence": self.evidence}
        return known | {"knob": self.setting, "level": self.level}


@dataclass
class Question:
    """One of the three questions to ask before RFT."""

    question: str
    answer: str  # "yes", "no" or "not measured"
    evidence: str


@dataclass
class Signal:
    """The gate's result. Shares and rewards are means over rows, with 95 % intervals."""

    verdict: str = ""  # "go", "fix" or "undecided"
    reason: str = ""
    findings: list[Finding] = field(default_factory=list)  # causes first
    questions: list[Question] = field(default_factory=list)  # hard? verifiable? labels scarce?
    notes: list[str] = field(default_factory=list)  # what is odd, or could not be checked
    policy: str = ""
    seed: int = 0
    rows: int = 0  # drawn
    answers: int = 0  # to each row
    samples: int = 0  # in all, at most `budget`
    budget: int = 0
    group: int = 0  # k: the answers that training compares with one another
    temperature: float = 1.0
    more_samples: int | None = None  # about how many more would settle an "undecided"
    pass_at: dict[int, Interval] = field(default_factory=dict)  # k -> P(one of k answers is right)
    reward: Interval | None = None
    spread: float | None = None  # mean over rows of a row's standard deviation of reward
    sub_graders: dict[str, dict[str, float]] = field(default_factory=dict)
    dead_groups: Interval | None = None  # share of groups of k with one reward
    dead_ability: Interval | None = None  # the same among readable answers
    format_share: float | None = None  # of the variance of reward: readable against unreadable
    stages: dict[str, float] = field(default_factory=dict)  # how far answers could be read
    lengths: dict[str, Any] = field(default_factory=dict)  # quantiles in tokens, limit, probe
    cut: Interval | None = None  # share of answers that the limit cuts
    unreadable: Interval | None = None  # share that ended, but could not be read
    lost_grades: float = 0.0  # share that the grader itself failed on
    distinct_rewards: int = 0  # among answers that ended
    repeated: float = 0.0  # P(two answers of a row are the same text)
    never: list[str] = field(default_factory=list)  # ids of rows without a right answer
    always: list[str] = field(default_factory=list)  # ids of rows with right answers alone
    patterns: dict[str, dict[str, float | None]] = field(default_factory=dict)
    reference: dict[str, Any] = field(default_factory=dict)
    shown: list[dict[str, Any]] = field(default_factory=list)  # some samples, worst to best
    drawn: Groups = field(default_factory=list, repr=False)  # all samples, [row][index]

    def names(self) -> list[str]:
        """The names of the findings, causes first."""
        return [finding.name for finding in self.findings]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON, numbers to four places."""
        record = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "drawn"}
        text = json.dumps(record, default=_plain)
        return json.loads(text, parse_float=lambda number: round(float(number), 4))

    def cut_text(self) -> str:
        """How many answers the limit cuts, and how long they would have been."""
        text = f"{self.cut} of the answers are cut at {self.lengths['limit']} tokens"
        if probe := self.lengths.get("probe"):
            text += "; of {answers} drawn with {room} tokens {ended} ended ".format(**probe)
            text += f"by themselves (p95: {probe['p95']:.0f} tokens)"
        return text

    def save(self, folder: str | Path) -> None:
        """Write signal.json and signal_samples.jsonl (one Sample a line) into a folder."""
        write_json(Path(folder) / "signal.json", self.to_json())
        samples = [sample.to_json() for group in self.drawn for sample in group]
        lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples]
        write_text(Path(folder) / "signal_samples.jsonl", "".join(lines))

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
            lines += ["", *(fill(f"{k}: {shown(v)}") for k, v in numbers.items() if v is not None)]
            lines += ["", "answers, from worst to best"]
        for sample in self.shown:
            answer = f"{sample['row_id']}: {sample['reasoning']} => {sample['output_text']}"
            lines.append("  " + shorten(f"{shown(sample['grade'])} {answer}", width - 2))
        return "\n".join(lines)


def _plain(part: Any) -> Any:
    return part.to_json() if hasattr(part, "to_json") else vars(part)


def shown(value: Any) -> str:
    """A number, interval or dict of them, as text."""
    if isinstance(value, dict):
        return "; ".join(f"{key} {shown(entry)}" for key, entry in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)
