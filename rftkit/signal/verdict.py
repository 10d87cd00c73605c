"""From findings to a verdict.

One bad share means fix; none bad and one open means undecided (findings.py says what that is).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rftkit.signal.findings import FEW_ROWS, FINDINGS, HOPELESS, MOST_LOST, SOME_CUT, Judge
from rftkit.signal.judges import (
    cut_evidence,
    judge_answers,
    judge_grader,
    judge_rows,
    judge_spread,
)
from rftkit.signal.questions import ask_questions
from rftkit.signal.record import Finding, Signal
from rftkit.signal.task_checks import Reference
from rftkit.signal.template import TemplateLook
from rftkit.task import Task


def decide(
    signal: Signal,
    reference: Reference,
    look: TemplateLook,
    task: Task | None = None,
    rows: Sequence[dict[str, Any]] = (),
) -> Signal:
    """Fill verdict, reason, findings, questions and notes of a signal with its numbers."""
    judge = Judge(signal)
    signal.reference = signal.reference or reference.to_json()
    if signal.samples:
        garbage = judge_answers(judge, reference, look)
        judge_grader(judge, reference)
        if not garbage and signal.dead_ability is not None:
            judge_spread(judge)
            judge_rows(judge, len(rows))
    else:
        if look.faults:
            judge.add("chat template broken", "; ".join(look.faults))
        judge_grader(judge, reference)
    order = list(FINDINGS)
    signal.findings = sorted(judge.findings, key=lambda f: (f.level != "fix", order.index(f.name)))
    signal.notes = take_notes(signal, reference, look)
    if task is not None:
        signal.questions = ask_questions(signal, reference, task, rows)
    few = 1 < len(rows) < FEW_ROWS
    if few and signal.samples:
        signal.notes.append(
            f"{len(rows)} rows: fewer than the {FEW_ROWS} that RFT is usually started with; they "
            "will soon be learned by heart, so look at held-out rows often (eval_every)"
        )
    conclude(signal, judge.missing_rows, len(rows))
    return signal


def refuse(
    why: str, policy: str, seed: int, budget: int, rows: int, constant: str | None = None
) -> Signal:
    """The result for a task whose answers nothing can verify; nothing was drawn.

    constant   what was seen of a grader that gives every answer the same, where it does
    """
    signal = Signal("", "", policy=policy, seed=seed, budget=budget)
    name = "no verifiable answer"
    signal.findings = [Finding(name, why, FINDINGS[name])]
    if constant:
        alike = "constant reward"
        signal.findings.append(Finding(alike, constant, FINDINGS[alike]))
    signal.questions = ask_questions(signal, None, None, [{}] * rows, why)
    conclude(signal, 0, rows)
    return signal


def conclude(signal: Signal, missing_rows: int, rows: int) -> None:
    """The verdict and its sentence."""
    fixes = [f.name for f in signal.findings if f.level == "fix"]
    signal.more_samples, signal.missing_rows = None, missing_rows
    if fixes:
        signal.verdict = "fix"
        signal.reason = f"mend first: {fixes[0]}"
        if len(fixes) > 1:
            signal.reason += f" (and see whether {', '.join(fixes[1:])} went with it)"
    elif signal.findings:
        signal.verdict = "undecided"
        signal.reason = why_undecided(signal, missing_rows, rows - signal.rows)
    else:
        signal.verdict = "go"
        signal.reason = (
            f"{1 - signal.dead_groups.mean:.0%} of the groups have a spread to learn from"
        )


def why_undecided(signal: Signal, missing_rows: int, left: int) -> str:
    """What would settle it; fills more_samples where that is more answers to rows that are there.

    missing_rows  about how many more rows are needed; 0 where the finding is not about numbers
    left          rows of the file that were not drawn
    """
    about_rows = [f.evidence for f in signal.findings if f.name == "too few rows"]
    if about_rows or not missing_rows:
        return (about_rows or [signal.findings[0].evidence])[0]
    too_few = f"{signal.samples} samples are too few"
    most = HOPELESS * signal.budget
    if missing_rows * (signal.group or signal.answers) > most:
        return (
            f"{too_few}: to settle it would take more than {most:,} more ({HOPELESS} times what "
            "the gate may draw), so near to the limit does it lie. Treat it as a fix: give partial "
            "credit, or take easier rows or more answers_per_prompt, so that more groups have a "
            "spread"
        )
    if missing_rows > left:
        return (
            f"{too_few}: it would take about {missing_rows * signal.answers:,} more, to about "
            f"{missing_rows:,} more rows, and the file has {left} left. Add rows; or raise "
            "answers_per_prompt, so that fewer groups are dead; or train and watch the share of "
            "dead groups"
        )
    signal.more_samples = missing_rows * signal.answers
    return f"{too_few}: about {signal.more_samples:,} more would settle it"


def take_notes(signal: Signal, reference: Reference, look: TemplateLook) -> list[str]:
    """What could not be checked, and what is odd without being a fault."""
    notes = []
    if reference.check.status == "not checked":
        notes.append("no answer_template: whether a right answer scores the maximum is not checked")
    elif reference.swapped is None and reference.right is not None:
        notes.append("all drawn rows have the same right answer: a model need not read the prompt")
    if not look.checked:
        notes.append("the chat template is applied elsewhere (endpoint): not checked")
    if "chat template broken" not in signal.names():
        notes += look.odd
    if look.no_end and "end token missing" not in signal.names():
        notes.append(look.no_end)
    if signal.samples and signal.cut.mean > SOME_CUT and "limit too short" not in signal.names():
        notes.append(f"{cut_evidence(signal)}: a longer limit may be all that some of them lack")
    if signal.samples and 0 < signal.lost_grades <= MOST_LOST:
        notes.append(f"{signal.lost_grades:.1%} of the grades were lost to the grader's own faults")
    return notes
