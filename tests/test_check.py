"""The data contract: each fault is found at its place, clean data is left alone, exit codes."""

from __future__ import annotations

import hashlib
import json
import os
import random

import pytest
from data_samples import (
    GENES,
    GOOD,
    ROOT,
    check_bytes,
    check_split,
    lines_of,
    make_row,
    places,
    with_text,
)
from typer.testing import CliRunner

from rftkit.check import MAX_ALIKE, MAX_ROWS, check_file, looks_like_answer, stands_in
from rftkit.cli import app
from rftkit.files import UserError
from rftkit.overlap import similar_prompts
from rftkit.rows import read_rows

BROKEN = ROOT / "datasets" / "broken" / "rows.jsonl"
KINDS = """
    last message, answer in the prompt, broken JSON, broken JSON, messages, duplicate key,
    not a number, damaged text, messages, role, content, empty content, answer with blanks,
    answer empty, answer type, answer missing, answer missing, duplicate, contradiction,
    duplicate id, not an object, broken JSON, broken JSON, template in a prompt, broken JSON,
    lone surrogate, tools, messages
"""
EXPECTED = list(enumerate((kind.strip() for kind in KINDS.split(",")), 1))
BETWEEN_ROWS = {2, 13, 14, 15, 16, 17, 18, 19, 20}


def test_each_line_of_the_broken_dataset_has_its_one_fault(tmp_path):
    card = (BROKEN.parent / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(BROKEN.read_bytes()).hexdigest() in card  # no editor repaired it
    report = check_file(BROKEN)
    assert places(report) == EXPECTED and report.answer_keys == ["reference_gene"]
    for fault in report.faults:
        assert str(fault).startswith(f"{BROKEN}:{fault.line}: {fault.found}, expected ")
        assert fault.expectation in str(fault) and str(fault).endswith(fault.next_step)
        assert len(str(fault)) < 420 and str(fault).isprintable() and fault.next_step
        assert fault.key or fault.kind in ("broken JSON", "not an object")
    for number, line in enumerate(BROKEN.read_bytes().splitlines(keepends=True), 1):
        (tmp_path / "row.jsonl").write_bytes(line)
        if number in BETWEEN_ROWS:
            assert len(read_rows(tmp_path / "row.jsonl")) == 1
        else:
            with pytest.raises(UserError, match="row.jsonl"):
                read_rows(tmp_path / "row.jsonl")


def test_clean_data_is_clean(tmp_path):
    rows = [make_row(n, reference_gene=f"A{n}BC") for n in range(60)]
    report = check_split(tmp_path, rows[:40], rows[40:], group_by="reference_gene")
    assert report.ok and report.notes == []
    assert report.rows == {"train": 40, "validation": 20}
    for name in ("gene_ranking", "gene_ranking_realistic"):
        folder = ROOT / "datasets" / name
        shipped = check_file(folder / "train.jsonl", folder / "validation.jsonl", "reference_gene")
        assert shipped.ok, shipped.faults[:3]


def test_tool_calls_and_a_developer_message_are_allowed(tmp_path):
    row = make_row(1, tools=[{"type": "function", "function": {"name": "search"}}])
    row["messages"] = [
        {"role": "developer", "content": "Search first."},
        {"role": "user", "content": "Which gene?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "nothing", "tool_call_id": "1"},
        *row["messages"],
    ]
    assert check_bytes(tmp_path, lines_of([row])).ok


USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("change", "kind", "key"),
    [
        ({"messages": USER}, "messages", "messages"),
        ({"messages": ["Which gene?"]}, "messages", "messages[0]"),
        ({"messages": [{"from": "human", "value": "x"}]}, "role", "messages[0].role"),
        ({"messages": [USER, USER | {"role": "User"}]}, "role", "messages[1].role"),
        ({"messages": [{"role": "user"}]}, "content", "messages[0].content"),
        ({"messages": [USER | {"content": None}]}, "content", "messages[0].content"),
        ({"messages": [USER | {"role": "system"}]}, "last message", "messages"),
        ({"messages": [USER | {"content": "a \ufffd"}]}, "damaged text", "messages[0].content"),
        ({"tools": [{"name": "search"}]}, "tools", "tools[0].function"),
        ({"reference_gene": ""}, "answer empty", "reference_gene"),
        ({"reference_gene": []}, "answer empty", "reference_gene"),
        ({"reference_gene": "\u200bGLA"}, "answer with blanks", "reference_gene"),
        ({"reference_gene": "SjÃ¶gren"}, "damaged text", "reference_gene"),
        ({"reference_gene": 5}, "answer type", "reference_gene"),
    ],
)
def test_a_fault_of_a_row_is_found_at_its_key(tmp_path, change, kind, key):
    report = check_bytes(tmp_path, lines_of([*GOOD[:7], GOOD[7] | change, *GOOD[8:]]))
    assert (8, kind, key) in [(fault.line, fault.kind, fault.key) for fault in report.faults]
    assert {fault.line for fault in report.faults} == {8}


def test_one_fault_does_not_hide_the_others(tmp_path):
    rows = [json.dumps(row).encode() for row in GOOD[:4]]
    rows[1] = rows[1].replace(b'"user"', b'"human"')
    rows[2] = rows[2].replace(b'"user"', b'"assistant"').replace(b"{", b'{"x": NaN, "x": NaN, ', 1)
    rows[3] = rows[3].replace(b"Which", b"Wh\xfcch")
    report = check_bytes(tmp_path, b"\xef\xbb\xbf" + b"\r\n".join(rows) + b"\n\n")
    assert [line for line, _ in places(report)] == [1, 1, 2, 3, 3, 3, 4, 5]


def test_a_fault_of_very_many_rows_is_listed_up_to_a_bound_and_counted(tmp_path):
    report = check_bytes(tmp_path, b'{"messages": 1}\n' * (MAX_ALIKE + 50) + b"x\n")
    assert report.counts["messages"] == MAX_ALIKE + 50 and report.counts["broken JSON"] == 1
    assert sum(fault.kind == "messages" for fault in report.faults) == MAX_ALIKE
    assert "messages" in {note.kind for note in report.notes}
    one_row = b'{"messages": [' + b"NaN," * 100_000 + b'NaN], "answer": 1}'
    assert len(check_bytes(tmp_path, one_row).faults) == 2 * MAX_ALIKE


# The answer.


def test_what_counts_as_the_answer():
    answers = ["reference_gene", "answer", "final_answer", "label", "trueLabel", "target", "gold"]
    answers += ["correct_option", "expected_output", "solution", "ground_truth", "Answers"]
    others = ["sex", "age", "onset", "present", "absent", "case_id", "answer_type", "label_options"]
    others += ["target_length", "reference_url", "origin", "candidates", "marigold"]
    assert [key for key in answers + others if looks_like_answer(key)] == answers


def test_an_answer_is_found_as_a_word_of_its_own():
    found = [
        ("SCN1A", "SCN1A-related"),
        ("melancholy", "Melancholy"),
        ("a+b(c)", "is a+b(c) right"),
    ]
    found += [("Marfan syndrome", "marfan syndrome?"), ("1,234.5", "about 1,234.5 m")]
    assert all(stands_in(value, text) for value, text in found)
    assert not stands_in("SCN1A", "SCN1AB") and not stands_in("REST", "at rest")


@pytest.mark.parametrize("answer", ["GLA", ["GLA", "GAL"], {"gene": "GLA"}])
def test_an_answer_told_in_the_prompt_is_a_fault(tmp_path, answer):
    rows = [make_row(n, reference_gene=f"X{n}YZ") for n in range(6)]
    rows[4] = with_text(rows[4] | {"reference_gene": answer}, "The lab says GLA.")
    assert (5, "answer in the prompt") in places(check_bytes(tmp_path, lines_of(rows)))


@pytest.mark.parametrize("answer", ["A", "42", 42, True, "yes", "3.14"])
def test_an_answer_that_chance_finds_is_no_leak(tmp_path, answer):
    rows = [
        with_text(make_row(n, reference_gene=answer), "A yes 42 3.14 True None") for n in range(5)
    ]
    assert check_bytes(tmp_path, lines_of(rows)).ok


def test_other_fields_may_stand_in_the_prompt_unless_they_are_named(tmp_path):
    rows = [
        with_text(make_row(n, sex="female", onset="infancy"), "infancy, female") for n in range(5)
    ]
    report = check_bytes(tmp_path, lines_of(rows))
    assert report.ok and report.answer_keys == ["reference_gene"]
    for options in ({"answer_keys": ["onset"]}, {"group_by": "onset"}):
        report = check_bytes(tmp_path, lines_of(rows), **options)
        assert report.counts == {"answer in the prompt": 5}
        assert report.answer_keys == ["onset", "reference_gene"]


def test_a_choice_among_answers_is_no_leak_and_one_other_answer_does_not_make_a_choice(tmp_path):
    rows = [with_text(make_row(n), "Candidates: " + ", ".join(GENES[:8])) for n in range(8)]
    report = check_bytes(tmp_path, lines_of(rows))
    assert report.ok and "answer in the prompt" in {note.kind for note in report.notes}
    labels = [
        with_text(make_row(n, reference_gene=["joy", "anger"][n % 2]), "joy or anger?")
        for n in (1, 2)
    ]
    assert check_bytes(tmp_path, lines_of(labels)).ok
    rows = [*GOOD[:8], with_text(make_row(8), f"Not {GENES[1]} but {GENES[8]}.")]
    assert places(check_bytes(tmp_path, lines_of(rows))) == [(9, "answer in the prompt")]
    assert check_bytes(tmp_path, lines_of(rows), answer_in_prompt_ok=True).ok


def test_a_missing_answer_is_a_fault_and_optional_fields_or_types_are_not(tmp_path):
    rows = [make_row(n, pmid=n, label_2=f"{n}" if n % 2 else n) for n in range(8)]
    rows[1]["target"] = "seldom"
    del rows[2]["reference_gene"], rows[5]["pmid"]
    rows[6]["refrence_gene"] = rows[6].pop("reference_gene")
    report = check_bytes(tmp_path, lines_of(rows))
    assert places(report) == [(3, "answer missing"), (7, "answer missing")]
    assert "refrence_gene" in report.faults[1].found
    assert check_bytes(tmp_path, lines_of([{"messages": row["messages"]} for row in rows])).ok


# Between rows.


def test_copies_and_contradictions_are_found_on_one_side_and_across_the_split(tmp_path):
    other_answer = GOOD[4] | {"case_id": "x", "reference_gene": "X1X"}
    train = [*GOOD, GOOD[3] | {"case_id": "copy"}, other_answer]
    validation = [make_row(50, case_id="case-2"), GOOD[7] | {"case_id": "y"}, make_row(50)]
    report = check_split(tmp_path, train, validation)
    assert places(report) == [
        (31, "duplicate"),
        (32, "contradiction"),
        (1, "duplicate id"),
        (2, "duplicate across the split"),
        (3, "duplicate"),
    ]
    assert "train.jsonl:3" in str(report.faults[2]) and "train.jsonl:8" in str(report.faults[3])


def test_groups_on_both_sides_and_rows_without_a_group_are_found(tmp_path):
    train = [make_row(n, family=f"F{n // 2}") for n in range(10)]
    del train[1]["family"]
    families = {50: "F9", 51: "F4", 52: "F4", 53: None}
    validation = [make_row(n, family=family) for n, family in families.items()]
    report = check_split(tmp_path, train, validation, group_by="family")
    found = [(line, kind) for line, kind in places(report) if kind.startswith("group")]
    assert found == [
        (2, "group missing"),
        (2, "group on both sides"),
        (3, "group on both sides"),
        (4, "group missing"),
    ]
    misspelt = check_split(tmp_path, GOOD, [make_row(50)], group_by="refrence_gene")
    assert places(misspelt) == [(1, "group missing")]
    assert "reference_gene" in misspelt.faults[0].found


def test_too_many_rows_and_a_file_that_validates_itself_are_found(tmp_path, monkeypatch):
    assert MAX_ROWS == {"train": 50_000, "validation": 1_000}
    monkeypatch.setattr("rftkit.check.MAX_ROWS", {"train": 29, "validation": 2})
    report = check_split(tmp_path, GOOD, [make_row(n) for n in (50, 51, 52, 53)])
    assert places(report) == [(30, "too many rows"), (3, "too many rows")]
    os.symlink(tmp_path / "validation.jsonl", tmp_path / "link.jsonl")
    report = check_file(tmp_path / "validation.jsonl", tmp_path / "link.jsonl")
    assert places(report) == [(None, "same file twice")]


# Near-duplicates.


def sentence(signs: list[str], onset: str) -> str:
    """A long instruction around a short case: what real prompts look like."""
    return (
        "You are a clinical geneticist. Read the case with care, think of the diseases that fit, "
        "then rank five genes, the most likely first, as JSON and nothing else. Symptoms present: "
        f"{', '.join(signs)}. History: {onset} onset. Which genes?"
    )


def test_a_shuffled_case_is_found_and_a_shared_instruction_makes_no_copy(tmp_path):
    rng = random.Random(0)
    signs = [f"{a} {b}" for a in "renal cardiac ocular dermal axial".split() for b in range(40)]
    cases = [rng.sample(signs, 25) for _ in range(1500)]
    texts, planted = [], {}
    for line in range(200):
        present = rng.sample(signs, 25)
        if line % 20 == 0:  # the same case: shuffled, another onset, in capitals, a blank more
            planted[line] = line * 5
            present = [*rng.sample(cases[line * 5], 25), f"rare {line}"]
        texts.append(sentence(present, "adult").upper().replace(",", " , "))
    pairs = similar_prompts([sentence(present, "infancy") for present in cases], texts)
    assert {line: train_line for line, train_line, _ in pairs} == planted
    assert all(0.8 <= similarity <= 1 for *_, similarity in pairs)
    copy = with_text(make_row(60), "")
    copy["messages"][0]["content"] = GOOD[11]["messages"][0]["content"].replace("Which", "which")
    report = check_split(tmp_path, GOOD, [make_row(59), copy])
    assert places(report) == [(2, "near-duplicate across the split")]
    assert "train.jsonl:12" in str(report.faults[0])


@pytest.mark.parametrize(
    ("rows", "variants", "words", "common"),
    [(200, 3, 20, 7), (200, 1.7, 1000, 0), (200, 10, 400, 0), (12, 1.5, 1000, 0)],
)
def test_an_instruction_that_many_rows_share_makes_no_near_duplicates(
    rows, variants, words, common
):
    """One of three instructions; a very long one that most rows have; a mixture of ten tasks."""
    rng = random.Random(0)
    signs = [f"s{i}" for i in range(200 if common else 2000)]
    instructions = [" ".join(f"w{v}x{i}" for i in range(words)) for v in range(10)]
    base = rng.sample(signs, 10)
    cases = [base, *(rng.sample(signs, 10) for _ in range(2, rows))]
    train = [
        instructions[int(line % variants)] + ": " + ", ".join(present)
        for line, present in enumerate(cases, 1)
    ]
    other = base[:common] + rng.sample([s for s in signs if s not in base], 10 - common)
    same = instructions[1 if variants == 3 else 0]
    held_out = [same + ": " + ", ".join(other), instructions[1] + ": " + ", ".join(base[::-1])]
    assert [pair[:2] for pair in similar_prompts(train, held_out)] == [(1, 0)]


def test_small_files_and_other_numbers_are_compared_rightly():
    train = ["Symptoms present: Seizure, Ataxia, Chorea, Anemia. Which genes?"]
    held_out = ["symptoms present: Ataxia, Seizure, Anemia, Chorea. Which genes"]
    assert [pair[:2] for pair in similar_prompts(train, held_out)] == [(0, 0)]
    exercise = (
        "A train leaves the central station of the old town at {} o'clock and then travels {} km "
        "along its river with a constant speed of {} km per hour so when will passengers arrive"
    )
    numbers = [exercise.format(7, 450, 90), exercise.format(3, 120, 60) + "?"]
    pairs = similar_prompts([exercise.format(3, 120, 60)], numbers)
    assert [pair[:2] for pair in pairs] == [(1, 0)]


# The command.


def run(*arguments: object):
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


def test_the_exit_code_is_0_where_clean_1_at_faults_2_at_wrong_usage(tmp_path):
    check_split(tmp_path, GOOD, [make_row(50)])
    both = (tmp_path / "train.jsonl", "--validation", tmp_path / "validation.jsonl")
    assert run(*both).exit_code == 0
    leak = run(*both, "--group-by", "reference_gene")
    assert leak.exit_code == 1 and "validation.jsonl:1: " in leak.output
    assert run(tmp_path / "nowhere.jsonl").exit_code == run(tmp_path).exit_code == 1
    assert run().exit_code == run(tmp_path / "train.jsonl", "--no-such-option").exit_code == 2


def test_the_command_prints_every_fault_and_json_one_object():
    text = run(BROKEN)
    assert text.exit_code == 1
    assert all(f"rows.jsonl:{line}: " in text.output for line, _ in EXPECTED)
    result = run(BROKEN, "--json")
    record = json.loads(result.stdout)
    assert result.exit_code == 1 and record["ok"] is False and len(record["faults"]) == 28
    assert record["counts"]["broken JSON"] == 5 and record["rows"] == {"train": 22}
    assert {"files", "answer_keys", "notes"} <= record.keys()
    wanted = {"file", "line", "key", "value", "expectation", "next_step", "kind", "message"}
    assert all(wanted <= fault.keys() for fault in record["faults"])
