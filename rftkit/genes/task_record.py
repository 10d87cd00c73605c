"""task.json of a gene-ranking task: what every task of this form has in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rftkit.graders.shelf import gene_rank


def ranking_task(
    name: str,
    question: str,
    patterns: Mapping[str, str] | None = None,
    more_worse_answers: Sequence[str] = (),
) -> dict[str, Any]:
    """task.json's object: rank five genes, graded by the place of the row's `reference_gene`.

    patterns            name: regular expression over the reasoning, each a way of thinking
    more_worse_answers  beside a right gene in second place, in fourth, and not at all
    """
    return {
        "name": name,
        "question": question,
        "grader": gene_rank().to_json(),
        "answer_template": '{"genes": ["{{item.reference_gene}}"]}',
        "worse_answers": [
            '{"genes": ["NOTAGENE", "{{item.reference_gene}}"]}',
            '{"genes": ["NOTAGENE", "NEITHER", "NORTHIS", "{{item.reference_gene}}"]}',
            '{"genes": ["NOTAGENE"]}',
            *more_worse_answers,
        ],
        "group_by": "reference_gene",
        "patterns": dict(patterns or {}),
        "metrics": ["top1", "top5", "mrr"],
        "headline": "top1",
    }
