"""Gene ranking without a language model: what reading the annotation alone is worth.

Two methods, both over every gene that HPO annotates:

overlap     how many terms the closure of the case's present terms (the terms and all their
            ancestors) shares with the closure of the gene's annotation
likelihood  naive Bayes over the gene's diseases. f(t) is the highest frequency that a disease
            gives to t or a descendant of t, bg(t) its mean over all diseases with a gene (at least
            1e-4). A present term adds log(.95 max f/bg + .05), the maximum over the term and its
            ancestors; a gene takes its best disease.

Each is measured twice, because half of the published cases are themselves what the annotation
was made from: "as is", and "without own paper" (leave one publication out), where every row that
cites the case's paper is taken away from the true gene before it is scored.

Absent terms are used by neither. Ties share their credit: a true gene that ties with nine others
for first place scores a tenth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from rftkit.genes.case import Case
from rftkit.genes.hpo import Hpo

HIT, FLOOR, RAREST_BACKGROUND = 0.95, 0.05, 1e-4
CUTOFFS = (1, 5, 10)
AS_IS, WITHOUT_OWN_PAPER = "as is", "without own paper"
BATCH = 512  # cases scored at once: 512 x 5,124 numbers of 4 bytes are 10 MB
SAME_SCORE = 1e-4  # likelihoods closer than this are a tie; float32 sums differ by about 1e-6


class OverlapRanker:
    """Genes by shared closure terms, scored for many cases at once with one sparse product.

    genes       rank these alone (default: every gene with a phenotype row); a gene that HPO does
                not know scores 0
    vocabulary  count only annotations on these terms (default: all), for a world that holds a
                part of HPO; closures still run over the whole ontology

    >>> OverlapRanker(hpo).rank(["HP:0001519", "HP:0001083"])  # doctest: +SKIP
    ['FBN1', ...]
    """

    method = "overlap"

    def __init__(
        self,
        hpo: Hpo,
        genes: Iterable[str] | None = None,
        vocabulary: Iterable[str] | None = None,
    ):
        self.hpo = hpo
        self.genes = sorted(set(hpo.gene_diseases if genes is None else genes))
        self.column = {gene: number for number, gene in enumerate(self.genes)}
        self.vocabulary = None if vocabulary is None else frozenset(vocabulary)
        self.term_number = {term: number for number, term in enumerate(sorted(hpo.terms))}
        self.members = self._rows(hpo.closure_of(self._annotated(gene)) for gene in self.genes).T

    def scores(self, present: Sequence[Sequence[str]]):
        """(C, G) float32: score of each of G genes for each of C lists of present term ids."""
        return (self._rows(self.hpo.closure_of(ids) for ids in present) @ self.members).toarray()

    def score_without(self, gene: str, reference: str, present: Sequence[Sequence[str]]):
        """Scores of one gene for C cases, its rows that cite `reference` taken away."""
        left = self.hpo.closure_of(self._annotated(gene, without=reference))
        return [len(left & self.hpo.closure_of(ids)) for ids in present]

    def rank(self, present: Sequence[str], k: int = 5) -> list[str]:
        """The k best genes for one case, most likely first; ties stand in alphabetical order."""
        return self.rank_many([present], k)[0]

    def rank_many(self, present: Sequence[Sequence[str]], k: int = 5) -> list[list[str]]:
        """`rank` for many cases at once: half a second for 1,000 over all genes, one thread."""
        import numpy as np

        ranked = []
        for start in range(0, len(present), BATCH):
            best = np.argsort(-self.scores(present[start : start + BATCH]), axis=1, kind="stable")
            ranked += [[self.genes[column] for column in row[:k]] for row in best]
        return ranked

    def _annotated(self, gene: str, without: str = "") -> set[str]:
        return {
            row.term
            for row in self.hpo.gene_annotations(gene)
            if without not in row.references
            and (self.vocabulary is None or row.term in self.vocabulary)
        }

    def _rows(self, closures: Iterable[set[str]]):
        return _indicator_rows(closures, self.term_number)


class LikelihoodRanker:
    """Genes by their best disease's naive-Bayes log likelihood ratio of the present terms."""

    method = "likelihood"

    def __init__(self, hpo: Hpo):
        import numpy as np

        self.hpo = hpo
        self.genes = list(hpo.gene_diseases)
        self.column = {gene: number for number, gene in enumerate(self.genes)}
        self.term_number = {term: number for number, term in enumerate(sorted(hpo.terms))}
        annotated = [d for d in hpo.diseases.values() if d.rows and d.genes]
        frequency = self._frequencies(annotated)  # (diseases, terms), sparse
        mean = np.asarray(frequency.sum(axis=0)).ravel() / len(annotated)
        self.background = np.maximum(mean, RAREST_BACKGROUND)
        # One row a gene and disease, rows of a gene side by side: a gene's best is one slice.
        number = {disease.id: row for row, disease in enumerate(annotated)}
        rows = [number[d.id] for gene in self.genes for d in hpo.gene_diseases[gene]]
        counts = [len(hpo.gene_diseases[gene]) for gene in self.genes]
        self.first_row = np.cumsum([0] + counts[:-1])
        self.ratio = frequency[rows].multiply(1 / self.background).tocsc().astype(np.float32)
        self._columns: dict[str, object] = {}

    def scores(self, present: Sequence[Sequence[str]]):
        """(C, G) float32: log likelihood ratio of each of G genes for each of C cases."""
        import numpy as np

        terms = sorted({term for ids in present for term in ids})
        table = np.stack([self._term_column(term) for term in terms])
        which = {term: number for number, term in enumerate(terms)}
        by_disease = _indicator_rows(present, which) @ table
        return np.maximum.reduceat(by_disease, self.first_row, axis=1)

    def score_without(self, gene: str, reference: str, present: Sequence[Sequence[str]]):
        """Scores of one gene for C cases, its rows that cite `reference` taken away."""
        ratios = [self._ratios(d, reference) for d in self.hpo.gene_diseases[gene]]
        return [max(self._score(ids, ratio) for ratio in ratios) for ids in present]

    def _score(self, present: Sequence[str], ratio: dict[str, float]) -> float:
        best = (max(ratio.get(t, 0.0) for t in self.hpo.closure(term)) for term in present)
        return sum(math.log(HIT * value + FLOOR) for value in best)

    def _ratios(self, disease, without: str) -> dict[str, float]:
        """{term: f / bg} of one disease, rows that cite the paper `without` left out."""
        highest: dict[str, float] = {}
        for row in disease.rows:
            if without not in row.references:
                for term in self.hpo.closure(row.term):
                    highest[term] = max(highest.get(term, 0.0), row.frequency)
        return {t: f / self.background[self.term_number[t]] for t, f in highest.items()}

    def _term_column(self, term: str):
        """What a present term adds to each disease row; computed once a term and kept."""
        import numpy as np

        if term not in self._columns:
            best = np.zeros(self.ratio.shape[0], dtype=np.float32)
            for ancestor in self.hpo.closure(term):
                column = self.term_number[ancestor]
                part = slice(self.ratio.indptr[column], self.ratio.indptr[column + 1])
                rows = self.ratio.indices[part]
                best[rows] = np.maximum(best[rows], self.ratio.data[part])
            self._columns[term] = np.log(HIT * best + FLOOR)
        return self._columns[term]

    def _frequencies(self, diseases):
        """Sparse (diseases, terms): highest frequency over annotated terms and descendants."""
        import numpy as np
        from scipy.sparse import csr_matrix

        above: dict[str, object] = {}  # term -> numbers of its closure
        rows, columns, values = [], [], []
        for row, disease in enumerate(diseases):
            for annotation in disease.rows:
                term = annotation.term
                if term not in above:
                    above[term] = np.array([self.term_number[t] for t in self.hpo.closure(term)])
                columns.append(above[term])
                rows.append(row)
                values.append(annotation.frequency)
        lengths = [len(part) for part in columns]
        cell = np.repeat(np.array(rows), lengths) * len(self.term_number) + np.concatenate(columns)
        value = np.repeat(np.array(values), lengths)
        order = np.lexsort((value, cell))  # by cell, the highest value of a cell last
        cell, value = cell[order], value[order]
        last = np.append(cell[1:] != cell[:-1], True)
        place = np.divmod(cell[last], len(self.term_number))
        return csr_matrix((value[last], place), shape=(len(diseases), len(self.term_number)))


def overlap_ranking(
    hpo: Hpo, present: Sequence[str], genes: Iterable[str] | None = None, k: int = 5
) -> list[str]:
    """The k genes that share most closure terms with one case. For many cases: OverlapRanker."""
    return OverlapRanker(hpo, genes).rank(present, k)


def measure(ranker, cases: Sequence[Case], watch: Callable[[int], None] = lambda done: None):
    """Rank the genes for every case, both ways: two records as they stand in report.json.

    As is, a gene that HPO does not know is a miss; without the own paper such cases are left out,
    because nothing is known of the gene either way. `watch` is told how many cases are done.
    """
    import numpy as np

    known = np.array([case.gene in ranker.column for case in cases], dtype=bool)
    credit = {how: np.zeros((len(cases), len(CUTOFFS))) for how in (AS_IS, WITHOUT_OWN_PAPER)}
    without = _scores_without_own_paper(ranker, cases)
    for start in range(0, len(cases), BATCH):
        batch = [i for i in range(start, min(start + BATCH, len(cases))) if known[i]]
        if not batch:
            continue
        scores = ranker.scores([cases[i].present for i in batch])
        own = (np.arange(len(batch)), [ranker.column[cases[i].gene] for i in batch])
        credit[AS_IS][batch] = _credit(scores, scores[own])
        scores[own] = without[batch]
        credit[WITHOUT_OWN_PAPER][batch] = _credit(scores, scores[own])
        watch(batch[-1] + 1)
    counted = {AS_IS: np.ones(len(cases), dtype=bool), WITHOUT_OWN_PAPER: known}
    return [
        {"method": ranker.method, "how": how, "n": int(counted[how].sum())}
        | {
            f"top{k}": round(100 * float(credit[how][counted[how], column].mean()), 2)
            for column, k in enumerate(CUTOFFS)
        }
        for how in (AS_IS, WITHOUT_OWN_PAPER)
        if counted[how].any()
    ]


def expected_credit(better: int, tied: int, k: int) -> float:
    """Chance to stand in the first k places with `better` genes ahead and `tied` in one tie.

    `tied` counts the true gene itself; the order within a tie is drawn by lot.

    >>> expected_credit(better=0, tied=1, k=1), expected_credit(0, 4, 1), expected_credit(3, 4, 5)
    (1.0, 0.25, 0.5)
    """
    return min(max((k - better) / tied, 0.0), 1.0)


def _credit(scores, true_score):
    """(C, 3): each case's expected top-1, top-5 and top-10, the true gene among the scores."""
    import numpy as np

    level = np.asarray(true_score)[:, None]
    better = (scores > level + SAME_SCORE).sum(axis=1)
    tied = (scores >= level - SAME_SCORE).sum(axis=1) - better
    return [[expected_credit(b, t, k) for k in CUTOFFS] for b, t in zip(better, tied)]


def _scores_without_own_paper(ranker, cases: Sequence[Case]):
    """(C,) each true gene's score without the case's paper; 0 where HPO does not know the gene."""
    import numpy as np

    same_paper: dict[tuple[str, str], list[int]] = {}
    for number, case in enumerate(cases):
        if case.gene in ranker.column:
            same_paper.setdefault((case.gene, case.pmid), []).append(number)
    scores = np.zeros(len(cases))
    for (gene, paper), numbers in same_paper.items():
        present = [cases[number].present for number in numbers]
        scores[numbers] = ranker.score_without(gene, paper, present)
    return scores


def _indicator_rows(sets: Iterable[Iterable[str]], number: dict[str, int]):
    """Sparse (sets, items) matrix of ones: row i holds the numbers of the i-th set's members."""
    import numpy as np
    from scipy.sparse import csr_matrix

    ends, members = [0], []
    for items in sets:
        members += [number[item] for item in items]
        ends.append(len(members))
    ones = np.ones(len(members), dtype=np.float32)
    return csr_matrix((ones, members, ends), shape=(len(ends) - 1, len(number)))
