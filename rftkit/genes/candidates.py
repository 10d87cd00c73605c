"""Candidates with signs: what a small model does not know about genes stands in the prompt.

N cases of N different genes share one list, the genes with M signs annotated to each, and each case
is the patient of one row, with M of its signs. So every gene, place and sign of the list is right
in one of N rows, and a rule that does not read the patient is right in exactly 1/N. For the same
reason each gene's signs, not only the true one's, are drawn without the paper of its own case.

Left out: absent signs (authors list what a disease is known for: naming a gene BECAUSE its signs
are absent would pay); distractors of the same organ system (they make the steps of `ladder`
smaller: .38, .50, .74 in place of .40, .66, .81 on published cases at N 3, M 4, five seeds).
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rftkit.evaluation import bootstrap
from rftkit.files import UserError
from rftkit.genes.baselines import SAME_SCORE, LikelihoodRanker
from rftkit.genes.hpo import Hpo
from rftkit.genes.phenopackets import Case, case_row
from rftkit.rows import Row

RUNGS = {"chance": "nothing", "exact overlap": "shown signs", "overlap": "shown signs"}
RUNGS |= {"likelihood": "without own paper"}  # method: what it reads


def sign_rows(cases: Sequence[Case], hpo: Hpo, size: int, n_signs: int, seed: int = 0) -> list[Row]:
    """Rows for the cases of ONE side, group after group. Left out are cases of genes with too few
    signs, and a rest without `size` different genes."""
    rows: list[Row] = []
    waiting: list[dict[str, Case]] = []  # groups that lack a gene
    for case in cases:
        if len(hpo.annotated(case.gene, case.pmid)) >= n_signs:
            group = next((group for group in waiting if case.gene not in group), {})
            waiting += [] if group else [group]
            group[case.gene] = case
            if len(group) == size:
                waiting.remove(group)
                rows += group_rows(list(group.values()), hpo, n_signs, seed)
    if not rows:
        raise UserError(f"--candidates {size} --signs {n_signs}: too few genes: ask for fewer")
    return rows


def group_rows(group: list[Case], hpo: Hpo, n_signs: int, seed: int) -> Iterator[Row]:
    """A row for each case, in random order, under the list that they share."""
    rng = random.Random(f"signs-{seed}-{group[0].case_id}")
    rng.shuffle(group)
    shared = {"candidates": [case.gene for case in group], "papers": [case.pmid for case in group]}
    shared["signs"] = signs = []
    for case in group:  # drawn by frequency: a sign waits a time that is exponential with that rate
        rates = hpo.annotated(case.gene, case.pmid)
        signs.append(sorted(rates, key=lambda term: rng.expovariate(rates[term]))[:n_signs])
    for case in rng.sample(group, len(group)):
        present = rng.sample(case.present, min(n_signs, len(case.present)))
        row = case_row(replace(case, present=present, absent=[]), hpo) | shared
        row["messages"] = [{"role": "user", "content": prompt_text(row, hpo)}]
        yield row


def prompt_text(row: Row, hpo: Hpo) -> str:
    lists = zip(row["candidates"], row["signs"])
    lists = [*lists, ("Patient", [term["id"] for term in row["present"]])]
    lines = "\n".join(f"{name}: {'; '.join(map(hpo.terms.get, own))}" for name, own in lists)
    places = ", ".join([f'"GENE{i + 1}"' for i in range(len(lists) - 1)][:5])  # the grader reads 5
    form = f'Answer with JSON alone: {{"genes": [{places}]}}'
    return f"Candidates and their signs:\n{lines}\nRank the genes, most likely first. {form}"


def ladder(rows: Sequence[Row], hpo: Hpo) -> list[dict[str, Any]]:
    """Each method's top1 in percent on rows of `sign_rows` (ties: expected credit), intervals by
    gene. Only "likelihood" knows the whole annotation, without the paper of each gene's case."""
    likelihood, asked = LikelihoodRanker(hpo), defaultdict(list)
    scores = {method: np.zeros((len(rows), len(rows[0]["candidates"]))) for method in RUNGS}
    for r, row in enumerate(rows):
        patient = [term["id"] for term in row["present"]]
        for c, signs in enumerate(row["signs"]):
            scores["exact overlap"][r, c] = len({*patient} & {*signs})
            scores["overlap"][r, c] = len(hpo.closure_of(patient) & hpo.closure_of(signs))
            asked[row["candidates"][c], row["papers"][c]].append((r, c, patient))
    for (gene, paper), cells in asked.items():
        r, c, patients = zip(*cells)
        scores["likelihood"][r, c] = likelihood.score_without(gene, paper, patients)
    genes, records = [row["reference_gene"] for row in rows], []
    right = np.array([[gene == own for gene in row["candidates"]] for row, own in zip(rows, genes)])
    for method, how in RUNGS.items():
        first = scores[method] >= scores[method].max(axis=1, keepdims=True) - SAME_SCORE
        interval = bootstrap(100 * (first & right).sum(axis=1) / first.sum(axis=1), genes)
        top1, low, high = (round(share, 2) for share in vars(interval).values())
        numbers = {"n": len(rows), "top1": top1, "low": low, "high": high}
        records.append({"method": method, "how": how} | numbers)
    return records
