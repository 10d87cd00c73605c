"""A case of the gene-ranking task: what is known of one patient, and the row it becomes.

The prompt is written from five things alone: terms present, terms absent, sex, age and onset. Gene,
disease, paper and case id stay in fields of their own, which no model sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rftkit.genes.hpo import Hpo

NOT_RECORDED = "not recorded"
QUESTION = "Which gene is responsible?"
CONTRACT = (
    'Answer with JSON alone: {"genes": ["GENE1", "GENE2", "GENE3", "GENE4", "GENE5"]}, five '
    "different gene symbols, most likely first."
)


@dataclass
class Case:
    """One patient. Terms are HPO ids of the one release that hpo.py reads, each at most once."""

    case_id: str
    gene: str
    disease: str  # OMIM id
    pmid: str  # the paper, "PMID:123" or ""
    present: list[str]
    absent: list[str]  # features that were looked for in vain
    sex: str | None = None  # None: not recorded
    age: str | None = None  # "1 year 3 months"
    onset: str | None = None  # "Infantile onset"

    @property
    def features(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Present and absent ids, each sorted: equal for cases that differ in their order alone."""
        return tuple(sorted(self.present)), tuple(sorted(self.absent))


def prompt_text(case: Case, hpo: Hpo, candidates: Sequence[str] = ()) -> str:
    """The prompt as the model reads it; `candidates` makes it the candidate-list form."""
    present = "; ".join(hpo.label(term) for term in case.present)
    absent = "; ".join(hpo.label(term) for term in case.absent) or NOT_RECORDED
    sex, age, onset = (value or NOT_RECORDED for value in (case.sex, case.age, case.onset))
    among = f" It is one of these candidates: {', '.join(candidates)}." if candidates else ""
    return (
        f"Symptoms present: {present}.\nSymptoms absent: {absent}.\n"
        f"History: sex {sex}; age at last encounter {age}; onset {onset}.\n\n"
        f"{QUESTION}{among} {CONTRACT}"
    )


def case_row(case: Case, hpo: Hpo, candidates: Sequence[str] = ()) -> dict[str, Any]:
    """The case as a row of the RFT contract: `messages`, and answer fields beside it."""

    def named(terms: Sequence[str]) -> list[dict[str, str]]:
        return [{"id": term, "label": hpo.label(term)} for term in terms]

    row = {
        "messages": [{"role": "user", "content": prompt_text(case, hpo, candidates)}],
        "reference_gene": case.gene,
        "case_id": case.case_id,
        "pmid": case.pmid,
        "disease": case.disease,
        "present": named(case.present),
        "absent": named(case.absent),
        "sex": case.sex,
        "age": case.age,
        "onset": case.onset,
    }
    return row | ({"candidates": list(candidates)} if candidates else {})
