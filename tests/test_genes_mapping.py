"""A case told in a smaller vocabulary: nearest, repeatable, and the losses counted."""

from __future__ import annotations

import pytest
from genes_samples import write_tiny_hpo

from rftkit.genes.case import Case, map_case, map_cases, map_term
from rftkit.genes.hpo import Hpo

LIMB, ARM, LEG, LEFT_ARM = "HP:0000010", "HP:0000011", "HP:0000012", "HP:0000013"
EYE, EYE_AND_ARM = "HP:0000020", "HP:0000021"


@pytest.fixture
def tiny(tmp_path):
    return Hpo(write_tiny_hpo(tmp_path))


def test_a_term_of_the_vocabulary_stays_itself(tiny):
    assert map_term(tiny, ARM, {ARM, LIMB}) == ARM


def test_the_nearest_ancestor_wins_over_a_farther_one(tiny):
    assert map_term(tiny, LEFT_ARM, {LIMB, ARM}) == ARM
    assert map_term(tiny, LEFT_ARM, {LIMB}) == LIMB
    # Eye is one step up, limb two: the smaller id does not win over the shorter way.
    assert map_term(tiny, EYE_AND_ARM, {LIMB, EYE}) == EYE


def test_a_tie_goes_to_the_smaller_id_whatever_the_order(tiny):
    assert map_term(tiny, EYE_AND_ARM, [EYE, ARM]) == ARM
    assert map_term(tiny, EYE_AND_ARM, [ARM, EYE]) == ARM


def test_what_has_no_ancestor_there_and_what_is_unknown_map_to_none(tiny):
    assert map_case(tiny, [LEG, EYE, "HP:7654321"], [LEG]) == [LEG, None, None]
    assert map_case(tiny, ["HP:0000999"], [EYE]) == [EYE]  # an alternative id of EYE_AND_ARM


def case(gene="AAA", present=(LEFT_ARM, LEG, EYE), absent=()):
    return Case("c", gene, "OMIM:1", "PMID:1", list(present), list(absent))


def test_cases_are_kept_with_enough_different_terms_and_losses_counted(tiny):
    cases = [
        case(),
        case(present=(LEFT_ARM, ARM, LEG)),  # two of them map to one term
        case(present=(LEFT_ARM, LEG)),
        case(gene="ZZZ"),
    ]
    kept, lost = map_cases(tiny, cases, [ARM, LEG, EYE], {"AAA"})
    assert [c.present for c in kept] == [[ARM, LEG, EYE]]
    assert lost == {
        "gene not among the genes asked about": 1,
        "fewer than 3 present terms in the vocabulary": 2,
    }
    assert len(map_cases(tiny, cases, [ARM, LEG, EYE], {"AAA"}, minimum=2)[0]) == 3
    assert cases[0].present == [LEFT_ARM, LEG, EYE], "the case handed in was changed"


def test_the_absence_of_a_special_sign_does_not_become_the_absence_of_a_general_one(tiny):
    cases = [case(present=(LEG, EYE), absent=(LEFT_ARM,))]
    assert map_cases(tiny, cases, [ARM, LEG, EYE], {"AAA"}, 2)[0][0].absent == []
    cases = [case(present=(LEG, EYE), absent=(ARM,))]
    assert map_cases(tiny, cases, [ARM, LEG, EYE], {"AAA"}, 2)[0][0].absent == [ARM]


def test_no_term_is_both_present_and_absent_after_mapping(tiny):
    cases = [case(present=(LEFT_ARM, LEG), absent=(ARM, LIMB))]
    (kept,), _ = map_cases(tiny, cases, [LIMB, ARM, LEG], {"AAA"}, 2)
    assert kept.present == [ARM, LEG] and kept.absent == []
