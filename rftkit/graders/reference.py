"""Reference check: the reference answer itself must score the maximum, on every row.

A grader that does not give its best to the right answer teaches something else. Without an
`answer_template` (how a row's answer fields become a model output) nothing can be checked, and
the result says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rftkit.data.errors import UserError
from rftkit.data.records import Sample
from rftkit.graders.core import Grader, is_best, row_id
from rftkit.graders.templates import fill_template


@dataclass
class ReferenceResult:
    """status    "passed", "failed" or "not checked"
    failures  for each failing row {"row_id", "reward", "answer", "reason"}
    rows      how many rows were checked
    maximum   what a reference answer has to score
    """

    status: str
    failures: list[dict[str, Any]] = field(default_factory=list)
    rows: int = 0
    maximum: float = 1.0

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    def __str__(self) -> str:
        if self.status == "not checked":
            return "reference check: not checked (the task has no answer_template, or no rows)"
        if self.status == "passed":
            return f"reference check: passed ({self.rows} rows score {self.maximum:g})"
        shown = "\n".join(
            f"  row {f['row_id']}: {f['answer']!r} scored {f['reward']}"
            + (f" ({f['reason']})" if f["reason"] else "")
            for f in self.failures[:5]
        )
        return (
            f"reference check: failed on {len(self.failures)} of {self.rows} rows, whose reference "
            f"answer does not score {self.maximum:g}: mend the grader or the rows\n{shown}"
        )

    def require(self) -> None:
        """Raise UserError with the failing rows: what a training run does before step 1. "Not
        checked" passes; whoever needs more looks at `passed`."""
        if self.status == "failed":
            raise UserError(str(self))

    def to_json(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "rows": self.rows,
            "maximum": self.maximum,
            "failures": self.failures,
        }


def reference_check(
    grader: Grader, answer_template: Any, rows: Sequence[dict[str, Any]]
) -> ReferenceResult:
    """Grade every row's own reference answer.

    answer_template  a text or a JSON value with {{item.*}}, or None
    rows             the items of the task
    A row that the template cannot be filled from fails, with the reason.
    """
    if answer_template is None or answer_template == "" or not rows:
        return ReferenceResult("not checked", maximum=grader.maximum)
    failures = []
    answers: list[str | None] = []
    reasons: list[str] = []
    for row in rows:
        try:
            answers.append(fill_template(answer_template, row))
            reasons.append("")
        except UserError as error:
            answers.append(None)
            reasons.append(str(error))
    samples = [Sample(output_text=answer or "") for answer in answers]
    grades = grader.evaluate_many(list(rows), samples)
    for number, (row, answer, reason, grade) in enumerate(
        zip(rows, answers, reasons, grades), start=1
    ):
        if answer is None or not is_best(grade.reward, grader.maximum):
            failures.append(
                {
                    "row_id": row_id(row, number),
                    "reward": None if answer is None else grade.reward,
                    "answer": answer,
                    "reason": reason or "; ".join(fault.detail for _, fault in grade.faults),
                }
            )
    status = "failed" if failures else "passed"
    return ReferenceResult(status, failures, len(rows), grader.maximum)
