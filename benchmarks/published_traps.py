"""Four ways to overrate a method on published cases, each beside the careful number.

    python benchmarks/published_traps.py phenopackets.jsonl.gz

Any source that `rftkit cases` reads. No language model: the nearest training case, and the overlap
of HPO's annotation. Numbers alone go into datasets/recorded_runs/published_traps.json. A minute.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from real_model import RECORDS

from rftkit.environment import machine
from rftkit.evaluation import bootstrap
from rftkit.files import write_json
from rftkit.genes.baselines import OverlapRanker, tie_credits
from rftkit.genes.hpo import Hpo, load_hpo
from rftkit.genes.phenopackets import Case, read_cases


def nearest(cases: Sequence[Case], groups: Sequence[str], hpo: Hpo, seed: int = 0) -> float:
    """Share of test cases whose most similar training case has their gene. A fifth of the `groups`
    is the test side. Similar: shared present terms, of those that either has; ties share."""
    names = np.unique(groups)
    chosen = np.random.default_rng(seed).choice(names, len(names) // 5, replace=False)
    in_test = np.isin(groups, chosen)
    terms = np.zeros((len(cases), len(hpo.number)), dtype=np.float32)
    for row, case in zip(terms, cases):
        row[[hpo.number[term] for term in case.present]] = 1
    train, test, genes = terms[~in_test], terms[in_test], np.array([case.gene for case in cases])
    shared = test @ train.T
    similar = shared / (test.sum(1)[:, None] + train.sum(1) - shared)
    best = similar == similar.max(1, keepdims=True)
    right = genes[in_test][:, None] == genes[~in_test]
    return round(float(((best & right).sum(1) / best.sum(1)).mean()), 4)


def absent_matrix(ranker: OverlapRanker, cases: Sequence[Case]) -> np.ndarray:
    """(C, G): how many of a case's absent terms are annotated to a gene, word for word."""
    annotated = [ranker.hpo.annotated(gene) for gene in ranker.genes]
    column = {term: [g for g, own in enumerate(annotated) if term in own]
              for term in {term for case in cases for term in case.absent}}  # fmt: skip
    counts = np.zeros((len(cases), len(ranker.genes)), dtype=np.float32)
    for row, case in zip(counts, cases):
        for term in case.absent:
            row[column[term]] += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    hpo = load_hpo()
    cases, _ = read_cases(parser.parse_args().source, hpo)
    genes, papers = [case.gene for case in cases], [case.pmid for case in cases]

    ranker = OverlapRanker(hpo)
    column = {gene: number for number, gene in enumerate(ranker.genes)}
    known = [case for case in cases if case.gene in column]
    own = np.array([column[case.gene] for case in known])
    scores = ranker.scores([case.present for case in known])

    def top1(scores: np.ndarray) -> np.ndarray:
        return np.array([tie_credits(row[None], c)[0, 0] for row, c in zip(scores, own)])

    as_is, without = top1(scores), scores.copy()
    for row, case, c in zip(without, known, own):
        [row[c]] = ranker.score_without(case.gene, case.pmid, [case.present])
    cited = np.array([
        any(case.pmid in row.references for d in hpo.gene_diseases[case.gene] for row in d.rows)
        for case in known
    ])  # fmt: skip
    without, absent = top1(without), absent_matrix(ranker, known)

    def annotated(without_own_paper: bool) -> float:
        """Of all absent signs, the share that is annotated to the true gene."""
        hits = [
            term in hpo.annotated(case.gene, case.pmid if without_own_paper else "")
            for case in known
            for term in case.absent
        ]
        return round(float(np.mean(hits)), 4)

    clusters = np.array([case.gene for case in known])

    def record(values: np.ndarray, which: np.ndarray | slice = slice(None)) -> dict:
        return bootstrap(values[which], clusters[which]).to_json() | {"n": len(values[which])}

    lines = (hpo.folder / "phenotype.hpoa").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line.startswith("OMIM")]
    positive = [row for row in rows if row[2] != "NOT" and row[10] == "P"]
    write_json(
        RECORDS / "published_traps.json",
        {
            "command": "python benchmarks/published_traps.py FILE",
            "cases": len(cases),
            "nearest training case, top1": {
                "random split": nearest(cases, [case.case_id for case in cases], hpo),
                "split by paper": nearest(cases, papers, hpo),
                "split by gene": nearest(cases, genes, hpo),
            },
            "overlap, top1": {
                "all": record(as_is),
                "cited papers": record(as_is, cited),
                "cited papers, without own paper": record(without, cited),
                "other papers": record(as_is, ~cited),
            },
            "absent signs": {
                "annotated to the true gene": annotated(False),
                "the same without own paper": annotated(True),
                "overlap": record(as_is),
                "overlap, plus absent": record(top1(scores + 3 * absent)),
                "overlap, minus absent": record(top1(scores - 3 * absent)),
            },
            "rows with frequency 0/n": {
                "n": sum(row[7].startswith("0/") for row in positive),
                "of": len(positive),
            },
            "machine": machine(),
            "date": time.strftime("%Y-%m-%d"),
        },
    )


if __name__ == "__main__":
    main()
