"""Gene ranking without a language model: what reading the annotation alone is worth.

overlap     how many terms the closure of the case's present terms (they and all their ancestors)
            shares with the closure of the gene's annotation
likelihood  naive Bayes over the gene's diseases. f(t) is the highest frequency that a disease
            gives to t or a descendant of t, bg(t) its mean over all diseases with a gene. A present
            term adds log(.95 max f/bg + .05), the maximum over the term and its ancestors; a gene
            takes its best disease.

Both are measured as is and without the case's own paper (every row that cites it is taken from the
true gene): half of the published cases are what the annotation was made from.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from rftkit.genes.hpo import Disease, Hpo
from rftkit.genes.phenopackets import Case

HIT, FLOOR, RAREST_BACKGROUND = 0.95, 0.05, 1e-4
CUTOFFS = (1, 5, 10)
SAME_SCORE = 1e-4  # scores closer than this are a tie; float32 sums differ by about 1e-6


class OverlapRanker:
    """Genes (default: all that HPO annotates) by the closure terms that they share with a case."""

    method = "overlap"

    def __init__(self, hpo: Hpo, genes: Iterable[str] | None = None):
        self.hpo = hpo
        self.genes = sorted(hpo.gene_diseases if genes is None else set(genes))
        annotated = map(hpo.annotated, self.genes)
        self.members = self._closures(annotated).T.tocsr()  # (terms, G)

    def scores(self, present: Sequence[Sequence[str]]):
        """(C, G) float32: the score of each of G genes for each of C lists of present term ids."""
        return (self._closures(present) @ self.members).toarray()

    def score_without(self, gene: str, paper: str, present: Sequence[Sequence[str]]) -> list[float]:
        """C scores of one gene without the rows that cite the paper."""
        left = self.hpo.closure_of(self.hpo.annotated(gene, paper))
        return [len(left & self.hpo.closure_of(terms)) for terms in present]

    def rank_many(self, present: Sequence[Sequence[str]], k: int = 5) -> list[list[str]]:
        """The k best genes for each case, most likely first; ties in alphabetical order."""
        best = np.argsort(-self.scores(present), axis=1, kind="stable")[:, :k]
        return [[self.genes[column] for column in row] for row in best]

    def _closures(self, term_lists: Iterable[Iterable[str]]):
        closures = (self.hpo.closure_of(terms) for terms in term_lists)
        return sparse_rows((dict.fromkeys(closure, 1.0) for closure in closures), self.hpo)


class LikelihoodRanker:
    """Genes by their best disease's naive-Bayes log likelihood ratio of the present terms."""

    method = "likelihood"

    def __init__(self, hpo: Hpo):
        self.hpo = hpo
        self.genes = list(hpo.gene_diseases)
        annotated = [d for d in hpo.diseases.values() if d.rows and d.genes]
        frequency = sparse_rows((self._frequencies(d) for d in annotated), hpo)
        mean = np.asarray(frequency.mean(axis=0)).ravel()
        self.background = np.maximum(mean, RAREST_BACKGROUND)
        # One row per gene and disease; the rows of a gene stand side by side.
        row_of = {disease.id: row for row, disease in enumerate(annotated)}
        rows = [[row_of[d.id] for d in diseases] for diseases in hpo.gene_diseases.values()]
        self.first_row = np.cumsum([0, *map(len, rows[:-1])])
        self.ratio = frequency[sum(rows, [])].multiply(1 / self.background).tocsc()
        self._evidence: dict[str, Any] = {}  # term -> what it adds to each disease row

    def scores(self, present: Sequence[Sequence[str]]):
        """(C, G) float32: the log likelihood ratio of each of G genes for each of C cases."""
        for term in {term for terms in present for term in terms} - self._evidence.keys():
            best = self.ratio[:, self._above(term)].max(axis=1).toarray().ravel()
            self._evidence[term] = np.log(HIT * best + FLOOR).astype(np.float32)
        by_disease = [sum(self._evidence[term] for term in terms) for terms in present]
        return np.maximum.reduceat(np.stack(by_disease), self.first_row, axis=1)

    def score_without(self, gene: str, paper: str, present: Sequence[Sequence[str]]) -> list[float]:
        """C scores of one gene without the rows that cite the paper."""
        tables = [self._frequencies(d, without=paper) for d in self.hpo.gene_diseases[gene]]
        ratio = sparse_rows(tables, self.hpo).toarray() / self.background
        return [
            max(sum(np.log(HIT * ratio[:, self._above(t)].max(axis=1) + FLOOR) for t in terms))
            for terms in present
        ]

    def _above(self, term: str) -> list[int]:
        return [self.hpo.number[ancestor] for ancestor in self.hpo.closure(term)]

    def _frequencies(self, disease: Disease, without: str = "") -> dict[str, float]:
        """{term: the disease's highest frequency over the term and its descendants}."""
        highest: dict[str, float] = {}
        for row in disease.rows:
            if without not in row.references:
                for term in self.hpo.closure(row.term):
                    highest[term] = max(highest.get(term, 0.0), row.frequency)
        return highest


def sparse_rows(tables: Iterable[Mapping[str, float]], hpo: Hpo):
    """One sparse row per {term: value}, one column per term of the ontology."""
    ends, columns, values = [0], [], []
    for table in tables:
        columns += [hpo.number[term] for term in table]
        values += table.values()
        ends.append(len(columns))
    shape = (len(ends) - 1, len(hpo.number))
    return csr_matrix((np.array(values, dtype=np.float32), columns, ends), shape=shape)


def measure(ranker: OverlapRanker | LikelihoodRanker, cases: Sequence[Case]) -> list[dict]:
    """Two records of report.json: how the genes rank for every case, as is and without its paper.
    A gene that HPO does not know is a miss as is, and left out without the own paper."""
    column = {gene: number for number, gene in enumerate(ranker.genes)}
    known = sorted((c for c in cases if c.gene in column), key=lambda c: (c.gene, c.pmid))
    as_is, without = [], []
    for (gene, paper), same in groupby(known, key=lambda case: (case.gene, case.pmid)):
        present = [case.present for case in same]
        scores = ranker.scores(present)
        as_is.append(tie_credits(scores, column[gene]))
        scores[:, column[gene]] = ranker.score_without(gene, paper, present)
        without.append(tie_credits(scores, column[gene]))
    records = []
    ways = ("as is", len(cases), as_is), ("without own paper", len(known), without)
    for how, n, credit in ways:
        shares = 100 * np.concatenate(credit).sum(axis=0) / n
        records.append({"method": ranker.method, "how": how, "n": n})
        records[-1] |= {f"top{k}": round(float(share), 2) for k, share in zip(CUTOFFS, shares)}
    return records


def tie_credits(scores, column: int) -> np.ndarray:
    """(C, 3): per case the chance of the first 1, 5 and 10 places, for the gene of one column."""
    own = scores[:, [column]]
    better = (scores > own + SAME_SCORE).sum(axis=1, keepdims=True)
    tied = (scores >= own - SAME_SCORE).sum(axis=1, keepdims=True) - better  # itself too
    return np.clip((np.array(CUTOFFS) - better) / tied, 0.0, 1.0)
