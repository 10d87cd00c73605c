"""The three questions to ask of a task before RFT: is it hard, verifiable, are labels scarce?

As far as they can be measured they are answered; the rest is said to be the reader's to know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rftkit.evaluation import clusters_of
from rftkit.signal.record import Question, Signal
from rftkit.signal.task_checks import Reference
from rftkit.task import Task

HARD = "Is it hard for this model, and worth thinking about?"
VERIFIABLE = "Is a right answer recognised as right, by a rule?"
SCARCE = "Are labels scarce?"
MANY_LABELS = 1_000  # ours: with more rows than this, SFT on the answers is the first thing to try
MOST_RIGHT = 0.9  # ours: above it little is left to gain


def ask_questions(
    signal: Signal,
    reference: Reference | None,
    task: Task | None,
    rows: Sequence[dict[str, Any]],
    why_not: str | None = None,
) -> list[Question]:
    """why_not   why no program can tell a right answer, where that is so"""
    return [hard(signal), verifiable(reference, why_not), scarce(task, rows)]


def hard(signal: Signal) -> Question:
    """Only from below: a model that is nearly always right has nothing to learn here."""
    if not signal.pass_at:
        return Question(HARD, "not measured", "nothing was drawn, or nothing could be graded")
    solved = signal.pass_at[1]
    answer = (
        "no" if solved.low > MOST_RIGHT else "yes" if solved.high < MOST_RIGHT else "not measured"
    )
    ever = 1 - len(signal.never) / max(signal.rows, 1)
    evidence = f"one answer is right in {solved}; {ever:.0%} of the rows were solved at least once"
    return Question(HARD, answer, evidence)


def verifiable(reference: Reference | None, why_not: str | None) -> Question:
    if why_not:
        return Question(VERIFIABLE, "no", why_not)
    if reference is None or reference.check.status == "not checked":
        return Question(VERIFIABLE, "not measured", "no answer_template: no answer is known right")
    right = f"{reference.check.rows - len(reference.check.failures)} of {reference.check.rows}"
    evidence = f"{right} right answers score {reference.maximum:g}"
    if reference.swapped is not None:
        evidence += f"; other rows' answers score {reference.swapped:.2f} on average"
    return Question(VERIFIABLE, "yes" if reference.sound else "no", evidence)


def scarce(task: Task | None, rows: Sequence[dict[str, Any]]) -> Question:
    """Counts what is here; whether more could be had is the reader's to know."""
    few = len(rows) <= MANY_LABELS
    evidence = f"{len(rows):,} rows"
    if task is not None and task.group_by is not None:
        evidence += f", {len(set(clusters_of(list(rows), task))):,} different {task.group_by}"
    if not few:
        evidence += ": so many labels are worth an SFT on the answers first, as a rival"
    return Question(SCARCE, "yes" if few else "no", evidence)
