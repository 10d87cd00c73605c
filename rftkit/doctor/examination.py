"""examine(): a log in, its findings out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rftkit.doctor.knobs import KNOBS
from rftkit.doctor.logs import Log, read_log
from rftkit.doctor.rules import EXPLAINED, RULES, SAME_STEPS


@dataclass
class Finding:
    """One fault: the steps where it shows, the numbers, the knob to turn, and why it matters."""

    name: str
    steps: list[int]
    evidence: str
    knob: str
    why: str


@dataclass
class Examination:
    """What `rftkit doctor --json` prints. Notes say what was not judged, and what looks odd and
    is not."""

    source: str
    steps: int
    findings: list[Finding]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(path: str | Path) -> Examination:
    """Every finding over a run folder, a log.jsonl or a trainer_state.json, gravest first.

    Raises UserError for a path that is not there, or a file that is broken, empty or no log.
    """
    return examine_log(read_log(path))


def examine_log(log: Log) -> Examination:
    """The same over a log that was read before."""
    findings = []
    for name, rule in RULES.items():
        why, knob = KNOBS[name]
        findings += [Finding(name, steps, printable(t), knob, why) for steps, t in rule(log)]
    findings = without_effects(findings)
    names, notes = {finding.name for finding in findings}, list(log.notes)
    if log.graded and not log.looks() and "nothing_held_out" not in names:
        notes.append("no held-out look in this log: a rising reward alone proves no learning")
    losses = log.points("loss")
    if losses and all(abs(loss) < 1e-6 for _, loss in losses) and "loss_zero" not in names:
        notes.append(
            "the loss is zero and the gradient is not: normal for GRPO with one update a batch, "
            "where a group's advantages sum to zero"
        )
    return Examination(log.source, len(log.records), findings, notes)


def without_effects(findings: list[Finding]) -> list[Finding]:
    """Leave out what another finding explains in the same steps, and say so there."""
    kept = list(findings)
    for cause in findings:
        there = set(cause.steps)
        effects = [
            finding
            for finding in kept
            if finding.name in EXPLAINED.get(cause.name, ())
            and len(there.intersection(finding.steps)) >= SAME_STEPS * len(finding.steps)
        ]
        if effects:
            names = ", ".join(finding.name.replace("_", " ") for finding in effects)
            cause.evidence += f"; explains what shows in the same steps: {names}"
            kept = [finding for finding in kept if finding not in effects]
    return kept


def printable(text: str) -> str:
    """Without halves of surrogate pairs, which a log's names may hold and no terminal prints."""
    return text.encode("utf-8", "replace").decode("utf-8")
