"""Baselines: the definitions by hand, ties, and the case's own paper left out."""

from __future__ import annotations

import math
import random

import pytest
from genes_samples import write_tiny_hpo

from rftkit.genes.baselines import (
    AS_IS,
    WITHOUT_OWN_PAPER,
    LikelihoodRanker,
    OverlapRanker,
    expected_credit,
    measure,
    overlap_ranking,
)
from rftkit.genes.case import Case
from rftkit.genes.hpo import Hpo, load_hpo
from tools.make_realistic import simulate

LIMB, ARM, LEG, LEFT_ARM = "HP:0000010", "HP:0000011", "HP:0000012", "HP:0000013"
EYE = "HP:0000020"


@pytest.fixture
def tiny(tmp_path):
    return Hpo(write_tiny_hpo(tmp_path))


@pytest.fixture(scope="module")
def hpo():
    return load_hpo()


def case(gene, present, pmid="PMID:77", number=0):
    return Case(f"case-{number}", gene, "OMIM:1", pmid, list(present), [])


def test_overlap_counts_the_shared_closure_by_hand(tiny):
    ranker = OverlapRanker(tiny)
    assert ranker.genes == ["AAA", "BBB", "CCC"]
    # LEFT_ARM's closure: itself, arm, limb, phenotypic abnormality, all.
    # AAA shows arm and eye: 4 shared. BBB shows leg: 3. CCC shows leg, and eye-and-arm: 4.
    assert ranker.scores([[LEFT_ARM], [LEG, EYE]]).tolist() == [[4, 3, 4], [4, 4, 5]]


def test_rank_is_by_score_and_ties_stand_in_alphabetical_order(tiny):
    ranker = OverlapRanker(tiny)
    assert ranker.rank([LEFT_ARM]) == ["AAA", "CCC", "BBB"]
    assert ranker.rank([LEG, EYE], k=1) == ["CCC"]
    assert overlap_ranking(tiny, [LEG, EYE], k=2) == ["CCC", "AAA"]


def test_a_restricted_list_of_genes_may_name_genes_that_hpo_does_not_know(tiny):
    assert overlap_ranking(tiny, [LEG], genes=["ZZZ", "BBB"]) == ["BBB", "ZZZ"]


def test_annotations_outside_a_restricted_vocabulary_do_not_count(tiny):
    ranker = OverlapRanker(tiny, vocabulary=[LEG])
    assert ranker.scores([[LEFT_ARM]]).tolist() == [[0, 3, 3]]


def test_rank_many_is_rank_of_each(hpo):
    ranker = OverlapRanker(hpo)
    cases = [c.present for c in simulate(hpo, {"test": 6})["test"]]
    assert ranker.rank_many(cases, 5) == [ranker.rank(present, 5) for present in cases]


def likelihood_by_hand(tiny, present):
    """The definition, term by term, over the two diseases that have a gene and rows ... and CCC."""
    diseases = [d for d in tiny.diseases.values() if d.rows and d.genes]

    def f(disease, term):
        return max((r.frequency for r in disease.rows if term in tiny.closure(r.term)), default=0)

    def background(term):
        return max(sum(f(d, term) for d in diseases) / len(diseases), 1e-4)

    scores = {}
    for disease in diseases:
        total = sum(
            math.log(0.95 * max(f(disease, a) / background(a) for a in tiny.closure(t)) + 0.05)
            for t in present
        )
        for gene in disease.genes:
            scores[gene] = max(scores.get(gene, -math.inf), total)
    return [scores[gene] for gene in sorted(scores)]


@pytest.mark.parametrize("present", [[LEFT_ARM], [LEG, EYE], [ARM, LEG, EYE]])
def test_likelihood_follows_its_definition_by_hand(tiny, present):
    found = LikelihoodRanker(tiny).scores([present])[0].tolist()
    assert found == pytest.approx(likelihood_by_hand(tiny, present), abs=1e-4)


def test_leaving_out_a_paper_that_nobody_cites_changes_no_score(hpo):
    cases = simulate(hpo, {"test": 12})["test"]
    for ranker in (OverlapRanker(hpo), LikelihoodRanker(hpo)):
        scores = ranker.scores([c.present for c in cases])
        for number, one in enumerate(cases):
            (alone,) = ranker.score_without(one.gene, "PMID:0", [one.present])
            assert alone == pytest.approx(scores[number][ranker.column[one.gene]], abs=1e-3)


def test_without_the_own_paper_every_row_that_cites_it_is_gone(tiny):
    overlap, likelihood = OverlapRanker(tiny), LikelihoodRanker(tiny)
    # PMID:2 is cited by AAA's eye row alone, PMID:1 by both rows of AAA (one cites others, too).
    assert overlap.score_without("AAA", "PMID:2", [[EYE]]) == [2]
    assert overlap.score_without("AAA", "PMID:1", [[EYE]]) == [0]
    assert likelihood.score_without("AAA", "PMID:1", [[EYE]]) == [pytest.approx(math.log(0.05))]


def test_the_paper_is_taken_from_the_true_gene_alone(tiny):
    # CCC ties with AAA as is; without PMID:1 AAA knows nothing and falls behind both.
    (as_is, without) = measure(OverlapRanker(tiny), [case("AAA", [LEFT_ARM], "PMID:1")])
    assert (as_is["how"], as_is["top1"]) == (AS_IS, 50.0)
    assert (without["how"], without["top1"], without["top5"]) == (WITHOUT_OWN_PAPER, 0.0, 100.0)


def test_a_gene_that_hpo_does_not_know_is_a_miss_as_is_and_left_out_otherwise(tiny):
    cases = [case("CCC", [LEG, EYE], number=1), case("ZZZ", [LEG], number=2)]
    as_is, without = measure(OverlapRanker(tiny), cases)
    assert (as_is["n"], as_is["top1"], as_is["top10"]) == (2, 50.0, 50.0)
    assert (without["n"], without["top1"]) == (1, 100.0)


@pytest.mark.parametrize(
    ("better", "tied", "k", "credit"),
    [(0, 1, 1, 1), (0, 4, 1, 0.25), (3, 4, 5, 0.5), (4, 1, 5, 1), (5, 1, 5, 0), (9, 7, 5, 0)],
)
def test_ties_share_their_credit(better, tied, k, credit):
    assert expected_credit(better, tied, k) == credit


def test_expected_credit_is_the_mean_over_random_tie_breaks():
    rng, better, tied, k = random.Random(0), 2, 5, 5
    hits = sum(better + rng.randrange(tied) < k for _ in range(20_000))
    assert hits / 20_000 == pytest.approx(expected_credit(better, tied, k), abs=0.02)
