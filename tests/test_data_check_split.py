"""What only shows between rows and across the split: copies, ids, groups, limits."""

from __future__ import annotations

import os
import random

import pytest
from data_samples import GOOD, lines_of, make_row, places

from rftkit.check import NearDuplicates, check_file
from rftkit.rows import write_rows


def check_split(tmp_path, train: list[dict], validation: list[dict], **options):
    (tmp_path / "train.jsonl").write_bytes(lines_of(train))
    (tmp_path / "validation.jsonl").write_bytes(lines_of(validation))
    return check_file(tmp_path / "train.jsonl", tmp_path / "validation.jsonl", **options)


def test_a_copy_is_missed_on_one_side_or_across_the_split(tmp_path):
    train = [
        *GOOD,
        GOOD[3] | {"case_id": "copy"},
        GOOD[4] | {"case_id": "x", "reference_gene": "X1X"},
    ]
    validation = [make_row(50), GOOD[7] | {"case_id": "y"}, make_row(51), make_row(50, case_id="z")]
    report = check_split(tmp_path, train, validation)
    assert places(report) == [
        (31, "duplicate"),
        (32, "contradiction"),
        (2, "duplicate across the split"),
        (4, "duplicate"),
    ]
    assert "train.jsonl:8" in str(report.faults[2]) and "line 1," in str(report.faults[3])


def test_the_same_id_on_both_sides_passes(tmp_path):
    report = check_split(tmp_path, GOOD, [make_row(50, case_id="case-2")])
    assert places(report) == [(1, "duplicate id")] and "train.jsonl:3" in str(report.faults[0])


def test_a_group_on_both_sides_passes(tmp_path):
    train = [make_row(n, family=f"F{n // 2}") for n in range(10)]
    validation = [
        make_row(n, family=f) for n, f in ((50, "F9"), (51, "F4"), (52, "F4"), (53, None))
    ]
    del train[1]["family"]
    report = check_split(tmp_path, train, validation, group_by="family")
    assert places(report) == [
        (2, "group missing"),
        (2, "group on both sides"),
        (3, "group on both sides"),
        (4, "group missing"),
    ]
    assert '"F4"' in str(report.faults[1]) and "2 training rows" in str(report.faults[1])
    assert report.faults[1].value == '"F4"'


def test_a_misspelt_group_key_gives_a_fault_a_row(tmp_path):
    report = check_split(tmp_path, GOOD, [make_row(50)], group_by="refrence_gene")
    assert places(report) == [(1, "group missing")]
    assert "group by reference_gene" in str(report.faults[0])


def case(rng: random.Random, signs: list[str]) -> list[str]:
    return rng.sample(signs, 25)


def sentence(signs: list[str], onset: str) -> str:
    """A long instruction around a short case: what real prompts look like."""
    instruction = (
        "You are a clinical geneticist. Read the case with care, think of the diseases that "
    )
    instruction += "fit, then rank five genes, the most likely first, as JSON and nothing else. "
    return (
        f"{instruction}Symptoms present: {', '.join(signs)}. History: {onset} onset. Which genes?"
    )


def test_a_near_duplicate_across_the_split_is_missed_or_a_shared_instruction_taken_for_one():
    rng = random.Random(0)
    signs = [f"{a} {b}" for a in "renal cardiac ocular dermal axial".split() for b in range(40)]
    cases = [case(rng, signs) for _ in range(1500)]
    near, planted = NearDuplicates(), {}
    for line, signs_of_case in enumerate(cases, 1):
        near.add("train", line, sentence(signs_of_case, "infancy"))
    for line in range(1, 201):
        signs_of_case = case(rng, signs)
        if line % 20 == 0:  # the same case: shuffled, another onset, in capitals, a blank more
            planted[line] = line * 5
            signs_of_case = [*rng.sample(cases[line * 5 - 1], 25), f"rare {line}"]
        near.add("validation", line, sentence(signs_of_case, "adult").upper().replace(",", " , "))
    found = near.pairs()
    assert {line: train_line for line, train_line, _ in found} == planted
    assert all(0.8 <= similarity <= 1 for *_, similarity in found)


@pytest.mark.parametrize(
    "rows, variants, words, common",
    [(200, 3, 20, 7), (200, 1.7, 1000, 0), (200, 10, 400, 0), (12, 1.5, 1000, 0)],
)
def test_an_instruction_that_many_rows_share_makes_two_cases_near_duplicates(
    rows, variants, words, common
):
    """One of three instructions; a very long one that most rows have; a mixture of ten tasks."""
    rng = random.Random(0)
    signs = [f"s{i}" for i in range(200 if common else 2000)]
    instructions = [" ".join(f"w{v}x{i}" for i in range(words)) for v in range(10)]
    near = NearDuplicates()
    base = rng.sample(signs, 10)
    for line in range(1, rows):
        case = base if line == 1 else rng.sample(signs, 10)
        near.add("train", line, instructions[int(line % variants)] + ": " + ", ".join(case))
    other = base[:common] + rng.sample([s for s in signs if s not in base], 10 - common)
    same = instructions[1 if variants == 3 else 0]
    near.add("validation", 1, same + ": " + ", ".join(other))
    near.add("validation", 2, instructions[1] + ": " + ", ".join(base[::-1]))
    assert [(line, train) for line, train, _ in near.pairs()] == [(2, 1)]


def test_a_copy_in_two_files_of_one_row_each_is_missed():
    near = NearDuplicates()
    near.add("train", 1, "Symptoms present: Seizure, Ataxia, Chorea, Anemia. Which genes?")
    near.add("validation", 1, "symptoms present: Ataxia, Seizure, Anemia, Chorea. Which genes")
    assert [(line, train) for line, train, _ in near.pairs()] == [(1, 1)]


def test_other_numbers_in_the_same_exercise_are_taken_for_a_copy():
    near = NearDuplicates()
    exercise = (
        "A train leaves the central station of the old town at {} o'clock and then travels {} km "
        "along its river with a constant speed of {} km per hour so when will passengers arrive"
    )
    near.add("train", 1, exercise.format(3, 120, 60))
    near.add("validation", 1, exercise.format(7, 450, 90))
    near.add("validation", 2, exercise.format(3, 120, 60) + "?")
    assert [(line, train) for line, train, _ in near.pairs()] == [(2, 1)]


def test_long_prompts_fill_the_memory(monkeypatch):
    """Past the limit a share of the shingles is kept; a copy is still found, by that share."""
    monkeypatch.setattr("rftkit.check.MAX_SHINGLES", 4000)
    rng = random.Random(0)
    texts = [" ".join(str(rng.randrange(10**6)) for _ in range(500)) for _ in range(60)]
    near = NearDuplicates()
    for line, text in enumerate(texts, 1):
        near.add("train", line, text)
    near.add("validation", 1, texts[41] + " and a little more")
    near.add("validation", 2, "something else entirely " + texts[0][:300])
    assert near.held <= 4000 and near.step > 1
    assert [(line, train) for line, train, _ in near.pairs()] == [(1, 42)]


def test_near_duplicates_are_not_part_of_the_check(tmp_path):
    copy = make_row(60)
    content = GOOD[11]["messages"][0]["content"].replace("Which", "which")
    copy["messages"] = [{"role": "user", "content": content}]
    report = check_split(tmp_path, GOOD, [make_row(59), copy])
    assert places(report) == [(2, "near-duplicate across the split")]
    assert "train.jsonl:12" in str(report.faults[0]) and "%" in str(report.faults[0])


def test_too_many_rows_pass(tmp_path, monkeypatch):
    monkeypatch.setattr("rftkit.check.MAX_ROWS", {"train": 30, "validation": 2})
    report = check_split(tmp_path, GOOD, [make_row(n) for n in (50, 51, 52, 53)])
    assert places(report) == [(3, "too many rows")]
    report = check_split(tmp_path, [*GOOD, make_row(40), make_row(41)], [make_row(50)])
    assert places(report) == [(31, "too many rows")] and "at most 30" in str(report.faults[0])


def test_the_limits_are_others_than_the_contracts():
    from rftkit.check import MAX_ROWS

    assert MAX_ROWS == {"train": 50_000, "validation": 1_000}


def test_the_training_file_validates_itself(tmp_path):
    write_rows(tmp_path / "train.jsonl", GOOD)
    os.symlink(tmp_path / "train.jsonl", tmp_path / "link.jsonl")
    report = check_file(tmp_path / "train.jsonl", tmp_path / "link.jsonl")
    assert places(report) == [(None, "same file twice")]
