"""Simulated cases: the shipped files come out again byte for byte, and are as hard as said."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter

import pytest

from rftkit.check import check_file
from rftkit.files import dataset
from rftkit.genes.baselines import LikelihoodRanker, OverlapRanker, measure
from rftkit.genes.case import case_row
from rftkit.genes.hpo import HPO_RELEASE, load_hpo
from rftkit.records import Sample
from rftkit.task import load_task
from tools.make_realistic import (
    MEASURED,
    MIN_TERMS,
    NAME,
    ONSET,
    ONSET_YEARS,
    PRESENT_KINDS,
    ROWS,
    TERMS_OF_SEX,
    Simulator,
    frequencies,
    simulate,
    task_record,
)


@pytest.fixture(scope="module")
def hpo():
    return load_hpo()


@pytest.fixture(scope="module")
def sides(hpo):
    return simulate(hpo)


@pytest.fixture(scope="module")
def everyone(sides):
    return [case for cases in sides.values() for case in cases]


def test_the_documented_command_gives_the_shipped_folder_byte_for_byte(tmp_path):
    command = [sys.executable, "-m", "tools.make_realistic", "--out", str(tmp_path / "again")]
    subprocess.run(command, check=True)
    shipped = {path.name: path.read_bytes() for path in dataset(NAME).iterdir()}
    again = {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    assert shipped.keys() == again.keys()
    assert [name for name in shipped if shipped[name] != again[name]] == []


def test_the_folder_is_a_task_under_3_mb_with_clean_rows():
    folder = dataset(NAME)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3_000_000
    for side in ("validation", "test"):
        report = check_file(folder / "train.jsonl", folder / f"{side}.jsonl", "reference_gene")
        assert report.ok and not report.notes, [str(fault) for fault in report.faults[:3]]
    card = (folder / "README.md").read_text()
    for said in (
        "Simulated from HPO annotations; not real patients; noise added by us.",
        f"release {HPO_RELEASE}",
        "Nucleic Acids Research 52:D1333",
        "OMIM",
        "Orphanet",
        "python -m tools.make_realistic --out",
    ):
        assert said in card


def test_the_tasks_answers_are_ordered_by_its_own_grader():
    task = load_task(NAME)
    row = task.rows("test")[0]

    def grade(template):
        text = template.replace("{{item.reference_gene}}", row["reference_gene"])
        sample = Sample.from_text(text)
        task.grade_sample(row, sample)
        return sample.grade

    grades = [grade(task.answer_template), *map(grade, task_record()["worse_answers"])]
    assert grades == pytest.approx([1.0, 0.73, 0.37, 0.1, 0.0])
    spec = json.loads((dataset(NAME) / "task.json").read_text())["grader"]
    kinds = {grader["type"] for grader in spec["graders"].values()}
    assert (spec["type"], kinds) == ("multi", {"string_check"})


def test_sizes_and_genes_are_as_said(sides):
    assert {side: len(cases) for side, cases in sides.items()} == ROWS
    genes = [case.gene for cases in sides.values() for case in cases]
    assert len(genes) == len(set(genes)), "a gene stands twice"


def test_a_case_does_not_depend_on_what_else_is_drawn(hpo, sides):
    simulator = Simulator(hpo)
    for case in random.Random(3).sample(sides["test"], 5):
        alone = simulator.case(case.gene, case.case_id, random.Random(f"{case.case_id}-0"))
        assert alone == case


def test_no_feature_is_both_present_and_absent_nor_implied_by_a_present_one(hpo, everyone):
    for case in everyone:
        assert len(set(case.present)) == len(case.present) >= 3
        assert not hpo.closure_of(case.present) & set(case.absent), case.case_id


def test_no_patient_shows_what_only_the_other_sex_can(hpo, everyone):
    other = {"male": TERMS_OF_SEX["female"], "female": TERMS_OF_SEX["male"]}
    assert {case.sex for case in everyone} == {"male", "female"}
    for case in everyone:
        shown = hpo.closure_of(case.present + case.absent)
        assert not shown & other[case.sex].keys(), case.case_id


def test_the_terms_named_in_the_recipe_are_those_terms(hpo):
    named = {term: label for terms in TERMS_OF_SEX.values() for term, label in terms.items()}
    assert named == {term: hpo.label(term) for term in named}
    onsets = {hpo.label(term) for term in hpo.terms if ONSET in hpo.ancestors(term)}
    assert set(ONSET_YEARS) <= onsets


def test_the_numbers_of_terms_follow_the_recipe(everyone):
    present = sorted(len(case.present) for case in everyone)
    absent = sorted(len(case.absent) for case in everyone)
    assert present[len(present) // 2] == 7 and present[-1] <= 22
    assert absent[len(absent) // 2] in (6, 7) and absent[-1] <= 22
    assert sum(number == 0 for number in absent) / len(absent) == pytest.approx(0.13, abs=0.03)


def test_present_terms_relate_to_the_disease_as_in_published_cases(hpo, everyone):
    kinds = Counter()
    for case in everyone:
        own = set(frequencies(hpo.diseases[case.disease]))
        for term in case.present:
            if term in own:
                kinds["annotated"] += 1
            elif term in hpo.closure_of(own):
                kinds["ancestor"] += 1
            elif hpo.ancestors(term) & own:
                kinds["more specific"] += 1
            else:
                kinds["other"] += 1
    share = {kind: number / kinds.total() for kind, number in kinds.items()}
    assert sum(PRESENT_KINDS.values()) == pytest.approx(1)
    # Published cases, measured: 46-62 % annotated, 3-4 % an ancestor, 4-7 % more specific.
    assert 0.46 <= share["annotated"] <= 0.62
    assert share["ancestor"] == pytest.approx(0.035, abs=0.025)
    assert share["more specific"] == pytest.approx(0.055, abs=0.035)


def test_every_disease_has_enough_terms_to_draw_from(hpo, everyone):
    assert min(len(frequencies(hpo.diseases[case.disease])) for case in everyone) >= MIN_TERMS


def test_the_prompt_names_no_gene_of_hpo(hpo, everyone):
    for case in everyone[::20]:
        text = json.dumps(case_row(case, hpo)["messages"])
        assert case.gene not in text and case.disease not in text


@pytest.mark.parametrize("ranker_class", [OverlapRanker, LikelihoodRanker])
def test_the_data_card_quotes_the_baselines_that_are_measured(hpo, everyone, ranker_class):
    line = measure(ranker_class(hpo), everyone)[0]
    found = (line["top1"], line["top5"], line["top10"])
    assert found == pytest.approx(MEASURED[ranker_class.method], abs=0.2)
