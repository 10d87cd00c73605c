"""Candidates with signs: nothing but the patient's signs tells the right gene from the others."""

from collections import Counter

import pytest
from test_genes_cases import LENS, PUBLISHED, SEIZURE, TALL, TERMS, needs_published, some_cases

from rftkit.files import UserError
from rftkit.genes import cases
from rftkit.genes.hpo import load_hpo
from rftkit.genes.phenopackets import Case
from tools import make_candidates


def sign_rows(size=3, n_signs=4):
    return cases.sign_rows(some_cases(), load_hpo(), size, n_signs)


RULES = {  # that name a candidate without reading the patient
    "the first": lambda row, counts: row["candidates"][0],
    "the last": lambda row, counts: row["candidates"][-1],
    "alphabetical": lambda row, counts: min(row["candidates"]),
    "most frequent answer": lambda row, counts: max(row["candidates"], key=counts.__getitem__),
    "longest name": lambda row, counts: max(row["candidates"], key=len),
    "best known gene": lambda row, counts: max(
        row["candidates"], key=lambda gene: len(load_hpo().annotated(gene))
    ),
    "longest signs": lambda row, counts: max(
        zip(row["candidates"], row["messages"][0]["content"].splitlines()[1:]),
        key=lambda pair: len(pair[1]),
    )[0],
}


@pytest.mark.parametrize("size", [2, 3, 5])
def test_a_rule_that_does_not_read_the_patient_is_right_in_one_of_n_rows(size):
    rows = sign_rows(size)
    counts = Counter(row["reference_gene"] for row in rows)
    assert len(rows) > 500
    for name, rule in RULES.items():
        right = sum(rule(row, counts) == row["reference_gene"] for row in rows)
        assert right * size == len(rows), name


def test_signs_are_annotated_without_the_own_paper_and_the_patient_shows_as_many():
    hpo, made = load_hpo(), []
    for gene, diseases in list(hpo.gene_diseases.items())[::20]:
        papers = {p for d in diseases for row in d.rows for p in row.references if "PMID" in p}
        for paper in sorted(papers)[:1]:  # each gene's case comes from a paper of its annotation
            made.append(Case(gene, gene, "", paper, TERMS[len(made) :][:6], [SEIZURE]))
    rows = cases.sign_rows(made, hpo, 3, 4)
    known, own = {case.gene: case for case in made}, 0
    for row in rows:
        assert len(row["present"]) == len({term["id"] for term in row["present"]}) == 4
        assert {term["id"] for term in row["present"]} < {*known[row["case_id"]].present}
        assert row["absent"] == [] and "Seizure" not in row["messages"][0]["content"][-200:]
        for gene, paper, signs in zip(row["candidates"], row["papers"], row["signs"]):
            allowed = hpo.annotated(gene, paper)
            assert paper == known[gene].pmid and len({*signs} & allowed.keys()) == 4
            own += len(hpo.annotated(gene)) > len(allowed)
    assert own > len(rows) > 100  # papers that mattered
    assert not {case.gene for case in made if len(hpo.annotated(case.gene, case.pmid)) < 4} & {
        row["reference_gene"] for row in rows
    }


def test_a_side_with_too_few_genes_is_refused():
    for size, n_signs in ((999, 4), (3, 999)):
        with pytest.raises(UserError, match=f"--candidates {size} --signs {n_signs}"):
            sign_rows(size, n_signs)


def test_the_ladder_counts_ties_by_expected_credit():
    hpo = load_hpo()
    seizures = {"id": "HP:0007359"}  # focal-onset seizure
    row = {"reference_gene": "SCN1A", "present": [seizures], "candidates": ["FBN1", "SCN1A"]}
    row |= {"papers": ["", ""], "signs": [[TALL, LENS], [SEIZURE, "HP:0001263"]]}
    top1 = {r["method"]: r["top1"] for r in cases.ladder([row], hpo)}
    assert top1 == {"chance": 50, "exact overlap": 50, "overlap": 100, "likelihood": 100}


@needs_published
def test_published_cases_as_candidates_with_signs_give_the_documented_ladder(tmp_path):
    report = cases.make_cases(PUBLISHED, tmp_path, 3, with_baselines=True, signs=4)
    assert {name: side["rows"] for name, side in report["files"].items()} == {
        "train.jsonl": 4920,
        "validation.jsonl": 483,
        "test.jsonl": 1221,
    }
    ladder = make_candidates.LADDERS["published, 3"]
    for record, numbers in zip(report["baselines"], ladder, strict=True):
        assert [record[k] for k in ("top1", "low", "high")] == pytest.approx(numbers, abs=0.1)
