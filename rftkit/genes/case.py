"""Real cases told in a smaller vocabulary: each term becomes its nearest ancestor in it.

A model that knows 200 HPO terms can be asked about a published case only in these terms. What is
lost on the way is counted, because a case that can be told at all is an easier one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rftkit.genes.hpo import Hpo

# ------------------------------------------------------------------------------------------
# from rftkit.genes.case:
# A case of the gene-ranking task: what is known of one patient, and the row it becomes.
#
# A row holds the prompt (`messages`) and, beside it, fields for the grader and the report. The
# prompt is written from five things alone: terms present, terms absent, sex, age and onset. Gene,
# disease, paper and case id stay in fields of their own, which no model sees.

ANSWER_LENGTH = 5
NOT_RECORDED = "not recorded"
QUESTION = "Which gene is responsible?"
CONTRACT = (
    'Answer with JSON alone: {"genes": ["GENE1", "GENE2", "GENE3", "GENE4", "GENE5"]}, five '
    "different gene symbols, most likely first."
)


@dataclass
class Case:
    """One patient. Terms are HPO ids of the one release that hpo.py reads, each at most once.

    gene, disease, pmid  the answer: HGNC symbol, OMIM id, and the paper ("PMID:123") or ""
    present, absent      features that were found, and features that were looked for in vain
    sex, age, onset      text for the reader, such as "female", "1 year 3 months", "Infantile
                         onset"; None where it is not recorded
    """

    case_id: str
    gene: str
    disease: str
    pmid: str
    present: list[str]
    absent: list[str]
    sex: str | None = None
    age: str | None = None
    onset: str | None = None


def prompt_text(case: Case, hpo: Hpo, candidates: Sequence[str] = ()) -> str:
    """The prompt as the model reads it; `candidates` makes it the candidate-list form."""
    present = "; ".join(hpo.label(term) for term in case.present)
    absent = "; ".join(hpo.label(term) for term in case.absent)
    question = QUESTION
    if candidates:
        question += f" It is one of these candidates: {', '.join(candidates)}."
    return (
        f"Symptoms present: {present}.\n"
        f"Symptoms absent: {absent or NOT_RECORDED}.\n"
        f"History: sex {case.sex or NOT_RECORDED}; "
        f"age at last encounter {case.age or NOT_RECORDED}; "
        f"onset {case.onset or NOT_RECORDED}.\n\n"
        f"{question} {CONTRACT}"
    )


def case_row(case: Case, hpo: Hpo, candidates: Sequence[str] = ()) -> dict[str, Any]:
    """The case as a row of the RFT contract: `messages`, and answer fields beside it."""

    def named(terms: Sequence[str]) -> list[dict[str, str]]:
        return [{"id": term, "label": hpo.label(term)} for term in terms]

    row: dict[str, Any] = {
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
    if candidates:
        row["candidates"] = list(candidates)
    return row


# ------------------------------------------------------------------------------------------
# from rftkit.genes.case:
# Real cases told in a smaller vocabulary: each term becomes its nearest ancestor in it.
#
# A model that knows 200 HPO terms can be asked about a published case only in these terms. What is
# lost on the way is counted, because a case that can be told at all is an easier one.

GENE_NOT_ASKED = "gene not among the genes asked about"
TOO_FEW_TERMS = "fewer than {minimum} present terms in the vocabulary"


def map_term(hpo: Hpo, term_id: str, vocabulary: Collection[str]) -> str | None:
    """The nearest ancestor of a term in the vocabulary (itself, if it is in it); else None.

    Nearest by is_a steps; of several at the same distance the smallest id, so that the same input
    gives the same output everywhere. A term that HPO does not know maps to None.
    """
    term = hpo.resolve(term_id)
    level = {term} if term else set()
    seen = set(level)
    while level:
        found = sorted(level & set(vocabulary))
        if found:
            return found[0]
        level = {parent for known in level for parent in hpo.terms[known].parents} - seen
        seen |= level
    return None


def map_case(hpo: Hpo, present_ids: Sequence[str], vocabulary: Iterable[str]) -> list[str | None]:
    """`map_term` for each term, in order: one entry a term, None where nothing stands for it."""
    inside = frozenset(vocabulary)
    return [map_term(hpo, term, inside) for term in present_ids]


def map_cases(
    hpo: Hpo,
    cases: Iterable[Case],
    vocabulary: Iterable[str],
    genes: Collection[str],
    minimum: int = 3,
) -> tuple[list[Case], dict[str, int]]:
    """Cases of the given genes, told in the vocabulary: (kept, {reason: lost}).

    A case is kept with at least `minimum` different mapped present terms. Its terms are replaced
    by the mapped ones, each once, in order; an absent term goes unless it is in the vocabulary
    itself, because "no focal seizure" does not say "no seizure".
    """
    inside, wanted = frozenset(vocabulary), frozenset(genes)
    nearest: dict[str, str | None] = {}
    kept: list[Case] = []
    lost: Counter[str] = Counter()
    for case in cases:
        if case.gene not in wanted:
            lost[GENE_NOT_ASKED] += 1
            continue
        for term in case.present:
            if term not in nearest:
                nearest[term] = map_term(hpo, term, inside)
        present = list(dict.fromkeys(nearest[term] for term in case.present if nearest[term]))
        if len(present) < minimum:
            lost[TOO_FEW_TERMS.format(minimum=minimum)] += 1
            continue
        shown = hpo.closure_of(present)
        absent = [term for term in case.absent if term in inside and term not in shown]
        kept.append(replace(case, present=present, absent=absent))
    return kept, dict(lost)
