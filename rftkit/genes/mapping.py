"""Real cases told in a smaller vocabulary: each term becomes its nearest ancestor in it.

A model that knows 200 HPO terms can be asked about a published case only in these terms. What is
lost on the way is counted, because a case that can be told at all is an easier one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from rftkit.genes.case import Case
from rftkit.genes.hpo import Hpo

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
