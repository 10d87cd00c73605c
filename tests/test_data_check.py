"""The data contract: each fault found, with its line; clean data left alone; never a traceback."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from rftkit.cli import app
from rftkit.data import check_file, read_rows, write_rows
from rftkit.data.answers import looks_like_answer, stands_in
from rftkit.data.errors import UserError
from rftkit.data.lines import MAX_LINE_BYTES
from rftkit.data.overlap import NearDuplicates

ROOT = Path(__file__).resolve().parents[1]
BROKEN = ROOT / "datasets" / "broken"
GENES = ["SCN1A", "FBN1", "NF1", "PAH", "HTT", "CFTR", "DMD", "RET", "OTC", "GLA", "TTN", "HBB"]
SIGNS = ["Seizure", "Ataxia", "Chorea", "Anemia", "Macrocephaly", "Cataract", "Global delay"]


def make_row(number: int, **more) -> dict:
    rng = random.Random(number)
    present, absent = rng.sample(SIGNS, 3), f"sign {number}, trait {number}"
    text = f"Symptoms present: {', '.join(present)}. Symptoms absent: {absent}. Which genes?"
    return {
        "messages": [{"role": "user", "content": text}],
        "reference_gene": GENES[number % len(GENES)],
        "case_id": f"case-{number}",
    } | more


def lines_of(rows: list[dict]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def check_bytes(tmp_path: Path, content: bytes, **options):
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    return check_file(path, **options)


def places(report) -> list[tuple[int | None, str]]:
    return [(fault.line, fault.kind) for fault in report.faults]


GOOD = [make_row(n) for n in range(30)]


# The dataset of broken rows.

EXPECTED = {
    1: ("last message", "assistant"),
    2: ("answer in the prompt", "SCN1A"),
    3: ("broken JSON", "single quotes"),
    4: ("broken JSON", "a comma before the closing bracket"),
    5: ("messages missing", "prompt/completion"),
    6: ("duplicate key", "onset"),
    7: ("not a number", "age_years"),
    8: ("damaged text", "latin-1"),
    9: ("messages not a list", "encoded twice"),
    10: ("role", 'write "user"'),
    11: ("content", "join the text parts"),
    12: ("empty content", "fill it"),
    13: ("answer with blanks", "FGFR3 "),
    14: ("answer empty", "null"),
    15: ("answer type", "array"),
    16: ("answer missing", "refrence_gene"),
    17: ("no answer field", "reference_gene"),
    18: ("duplicate", "line 6"),
    19: ("contradiction", "line 7"),
    20: ("duplicate id", "line 5"),
    21: ("not an object", "array"),
    22: ("broken JSON", "the line ends inside the object"),
    23: ("broken JSON", "a comment"),
    24: ("template in a prompt", "{{item.present}}"),
    25: ("broken JSON", "two objects on one line"),
    26: ("lone surrogate", "half of a character"),
    27: ("tools", "reserved key"),
    28: ("messages empty", "user's message"),
}


def test_a_broken_row_has_no_fault_or_two():
    report = check_file(BROKEN / "rows.jsonl")
    assert places(report) == [(line, kind) for line, (kind, _) in EXPECTED.items()]
    for fault in report.faults:
        assert EXPECTED[fault.line][1] in str(fault)
    assert report.answer_keys == ["reference_gene"] and not report.ok


def test_every_fault_names_place_value_expectation_and_next_step():
    for fault in check_file(BROKEN / "rows.jsonl").faults:
        assert str(fault).startswith(f"{BROKEN / 'rows.jsonl'}:{fault.line}: ")
        assert fault.expectation and fault.next_step and fault.found
        assert fault.expectation in str(fault) and str(fault).endswith(fault.next_step)
        assert len(str(fault)) < 420 and str(fault).isprintable()
        if fault.kind not in ("broken JSON", "not an object"):
            assert fault.key, fault
        if fault.kind not in ("messages missing", "answer missing", "no answer field"):
            assert fault.value or fault.kind in ("answer empty", "duplicate key"), fault


def test_an_editor_repaired_the_broken_rows():
    card = (BROKEN / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256((BROKEN / "rows.jsonl").read_bytes()).hexdigest() in card


def test_strict_reading_lets_a_fault_of_one_row_through(tmp_path):
    seen_beside_others = {2, 13, 14, 15, 16, 17, 18, 19, 20}
    lines = (BROKEN / "rows.jsonl").read_bytes().splitlines(keepends=True)
    for number in EXPECTED:
        path = tmp_path / "row.jsonl"
        path.write_bytes(lines[number - 1])
        if number in seen_beside_others:
            assert len(read_rows(path)) == 1
        else:
            with pytest.raises(UserError, match="row.jsonl:1: "):
                read_rows(path)


# Clean data.


def test_clean_data_is_accused(tmp_path):
    write_rows(tmp_path / "train.jsonl", [make_row(n, reference_gene=f"A{n}BC") for n in range(40)])
    held_out = [make_row(n, reference_gene=f"A{n}BC") for n in range(40, 60)]
    write_rows(tmp_path / "validation.jsonl", held_out)
    report = check_file(
        tmp_path / "train.jsonl", tmp_path / "validation.jsonl", group_by="reference_gene"
    )
    assert report.ok and report.faults == [] and report.notes == []
    assert report.rows == {"train": 40, "validation": 20}
    json.dumps(report.to_json(), allow_nan=False)


def test_a_note_is_repeated_for_every_row(tmp_path):
    rows = [make_row(n, **{"Reference Gene": n, "a-b": n}) for n in range(30)]
    for row in rows:
        row["messages"][0]["id"] = 1
    report = check_bytes(tmp_path, lines_of(rows))
    notes = [note for note in report.notes if note.kind in ("key name", "message key")]
    assert report.ok and len(notes) == 3 and "29 more" in str(notes)


@pytest.mark.parametrize("name", ["gene_ranking", "gene_ranking_realistic"])
def test_a_shipped_dataset_is_not_clean(name):
    folder = ROOT / "datasets" / name
    if not (folder / "train.jsonl").exists():
        pytest.skip(f"{name} is not there")
    report = check_file(folder / "train.jsonl", folder / "validation.jsonl", "reference_gene")
    assert report.ok, report.faults[:3]


def test_tool_calls_and_a_developer_message_are_accused(tmp_path):
    row = make_row(1, tools=[{"type": "function", "function": {"name": "search"}}])
    row["messages"] = [
        {"role": "developer", "content": "Search first."},
        {"role": "user", "content": "Which gene?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "nothing", "tool_call_id": "1"},
        *row["messages"],
    ]
    assert check_bytes(tmp_path, lines_of([row])).ok


def test_notes_turn_into_faults(tmp_path):
    row = make_row(1, **{"Reference Gene": "x"})
    row["messages"].insert(0, {"role": "system", "content": "You are a geneticist.", "id": 3})
    report = check_bytes(tmp_path, lines_of([row]))
    kinds = {note.kind for note in report.notes}
    assert report.ok
    assert {"system role", "message key", "key name", "few rows", "no validation file"} <= kinds


# Bytes and lines.

ROW = json.dumps(GOOD[0]).encode()
ACCENT = json.dumps(make_row(1) | {"answer_note": "Sjögren"}, ensure_ascii=False)
FILES = {
    "empty": (b"", None, "empty file", "the file is empty"),
    "blank lines alone": (b"\n \n\t\n", None, "empty file", "blank lines alone"),
    "byte order mark": (b"\xef\xbb\xbf" + ROW + b"\n", 1, "byte order mark", "utf-8-sig"),
    "CRLF": (ROW + b"\r\n", 1, "line ending", "CR LF"),
    "CR alone": (ROW + b"\r" + ROW + b"\r", 1, "broken JSON", "CR alone"),
    "latin-1": (ACCENT.encode("latin-1"), 1, "wrong encoding", "0xf6"),
    "both in one line": (ACCENT.encode()[:-1] + b', "b": "\xe9"}', 1, "wrong encoding", "0xe9"),
    "UTF-16": (ACCENT.encode("utf-16"), None, "wrong encoding", "UTF-16"),
    "UTF-16 without mark": (ROW.decode().encode("utf-16-le"), None, "wrong encoding", "UTF-16"),
    "UTF-16 table": ("a,b".encode("utf-16"), None, "wrong encoding", "UTF-16"),
    "gzip": (gzip.compress(ROW), None, "compressed or binary file", "gunzip"),
    "parquet": (b"PAR1\x15\x04", None, "compressed or binary file", "parquet"),
    "NUL bytes": (b"abc\x00\x00\n", None, "compressed or binary file", "NUL"),
    "pretty-printed rows": (json.dumps(GOOD[:2], indent=2).encode(), 1, "not JSONL", "one line"),
    "pretty-printed object": (json.dumps(GOOD[0], indent=1).encode(), 1, "not JSONL", "one line"),
    "a list with line breaks": (b"[" + ROW + b",\n" + ROW + b"]\n", 1, "not JSONL", "one line"),
    "a list on one line": (b"[" + ROW + b"]\n", 1, "not an object", "line of its own"),
    "blank line inside": (ROW + b"\n\n", 2, "blank line", "remove it"),
    "comma after the row": (ROW + b",\n", 1, "broken JSON", "comma after the object"),
    "Python words": (b'{"messages": None}\n', 1, "broken JSON", "null, true, false"),
    "typographic quotes": ('{“messages”: []}\n'.encode(), 1, "broken JSON", "typographic"),
    "key without quotes": (b'{messages: []}\n', 1, "broken JSON", "without double quotes"),
    "missing comma": (b'{"a": 1 "b": 2}\n', 1, "broken JSON", "a comma is missing"),
    "missing colon": (b'{"a" 1}\n', 1, "broken JSON", "colon"),
    "raw tab": (b'{"a": "x\ty"}\n', 1, "broken JSON", "control character"),
    "single backslash": (rb'{"a": "\frac{1}{\d}"}' + b"\n", 1, "broken JSON", "backslash"),
    "line break in a text": (b'{"a": "x\n', 1, "broken JSON", "ends inside"),
    "torn at the end": (b'{"a": [1, 2', 1, "broken JSON", "cut off"),
    "CSV": (b"prompt,answer\n", 1, "broken JSON", "CSV"),
    "Markdown fence": (b"```json\n", 1, "broken JSON", "```"),
    "HTML": (b"<html>\n", 1, "broken JSON", "error page"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", 1, "broken JSON", "git lfs"),
    "merge conflict": (b"=======\n", 1, "broken JSON", "conflict"),
    "string": (json.dumps(ROW.decode()).encode(), 1, "not an object", "encoded twice"),
    "null": (b"null\n", 1, "not an object", "null"),
    "nested": (b"[" * 70 + b"]" * 70, 1, "nested too deeply", "64"),
    "nested beyond recursion": (b'{"a":' * 200_000, 1, "nested too deeply", "64"),
    "endless number": (b'{"a": ' + b"1" * 5000 + b"}", 1, "broken JSON", "digits"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_fault_is_missed_or_said_without_a_cure(tmp_path, name):
    content, line, kind, words = FILES[name]
    report = check_bytes(tmp_path, content)
    assert places(report) == [(line, kind)]
    assert words in str(report.faults[0])
    with pytest.raises(UserError):
        read_rows(tmp_path / "train.jsonl")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_json_does_not_know_passes(tmp_path, number):
    line = json.dumps(GOOD[0])[:-1] + f', "deep": [{{"age": {number}}}]}}'
    (fault,) = check_bytes(tmp_path, line.encode()).faults
    assert (fault.kind, fault.key) == ("not a number", "deep[0].age")


def test_a_missing_file_or_a_folder_shows_a_traceback(tmp_path):
    write_rows(tmp_path / "train.jsonl", GOOD)
    (fault,) = check_file(tmp_path / "trian.jsonl").faults
    assert "no such file" in str(fault) and "did you mean" in str(fault)
    (fault,) = check_file(tmp_path).faults
    assert "is a folder" in str(fault) and "train.jsonl" in fault.next_step
    (fault,) = check_file("a\0b").faults
    assert fault.kind == "unreadable file"


def test_one_fault_hides_the_others(tmp_path):
    rows = [json.dumps(row).encode() for row in GOOD[:6]]
    rows[1] = rows[1][:-1] + b",}"
    rows[3] = rows[3].replace(b'"user"', b'"human"')
    rows[4] = rows[4].replace(b'"user"', b'"assistant"').replace(b"{", b'{"x": NaN, "x": NaN, ', 1)
    rows[5] = rows[5].replace(b"Which", b"Wh\xfcch")
    report = check_bytes(tmp_path, b"\xef\xbb\xbf" + b"\r\n".join(rows) + b"\n\n\n")
    assert places(report) == [
        (1, "line ending"),
        (1, "byte order mark"),
        (2, "broken JSON"),
        (4, "role"),
        (5, "duplicate key"),
        (5, "not a number"),
        (5, "last message"),
        (6, "wrong encoding"),
        (7, "blank line"),
    ]


def test_a_line_of_50_mb_fills_the_memory(tmp_path):
    path = tmp_path / "train.jsonl"
    with open(path, "wb") as file:
        file.write(ROW + b"\n")
        for _ in range(50):
            file.write(b"x" * 1_000_000)
        file.write(b"\n" + lines_of([make_row(1)]))
    tracemalloc.start()
    report = check_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert places(report) == [(2, "line too long")] and report.rows == {"train": 2}
    assert "50 MB" in str(report.faults[0]) and len(str(report.faults[0])) < 300
    assert peak < 4 * MAX_LINE_BYTES
    with pytest.raises(UserError, match=":2: the line is 50 MB long"):
        read_rows(path)


@pytest.mark.parametrize(
    "line",
    [
        b'{"a": "' + rb"\"" * 2_000_000,
        b"[" * 4_000_000,
        b'{"a": ' + b"[{" * 1_000_000,
        json.dumps(make_row(1, reference_gene="a" * 4_000_000)).encode(),
        json.dumps(make_row(1, answer="ab")).replace("Which", "ab" * 2_000_000).encode(),
        json.dumps(make_row(1)).replace("Which", "{{ " * 1_000_000).encode(),
        json.dumps(make_row(1)).replace("Which", ", " * 1_000_000).encode(),
        json.dumps(make_row(1, **{f"k{i}": i for i in range(100_000)})).encode(),
        b"{" + b'"a": 1, ' * 400_000 + b'"a": 1}',
    ],
    ids=range(9),
)
def test_a_nasty_line_takes_quadratic_time(tmp_path, line):
    start = time.process_time()
    report = check_bytes(tmp_path, line + b"\n" + line, validation=None)
    assert time.process_time() - start < 20  # seconds of this process; quadratic: hours
    assert report.faults


def test_a_million_faults_in_one_row_fill_the_report(tmp_path):
    line = b'{"messages": [' + b"NaN," * 200_000 + b'NaN], "answer": [' + b"1e999," * 9 + b"1]}"
    report = check_bytes(tmp_path, line)
    assert report.counts == {"not a number": 51, "message not an object": 51}
    assert "more than 50 faults" in str(report.faults[50])


# The contract of one row.


@pytest.mark.parametrize(
    "change, kind, words",
    [
        ({"messages": {"role": "user", "content": "x"}}, "messages not a list", "into a list"),
        ({"messages": None}, "messages not a list", "null"),
        ({"messages": ["Which gene?"]}, "message not an object", "messages[0]"),
        ({"messages": [{"from": "human", "value": "x"}]}, "role", "ShareGPT"),
        ({"messages": [{"role": "User", "content": "x"}]}, "role", 'write "user"'),
        ({"messages": [{"role": 3, "content": "x"}]}, "role", "3"),
        ({"messages": [{"content": "x"}]}, "role", "missing"),
        ({"messages": [{"role": "user"}]}, "content", "missing"),
        ({"messages": [{"role": "user", "content": 7}]}, "content", "number"),
        ({"messages": [{"role": "user", "content": None}]}, "content", "null"),
        ({"messages": [{"role": "system", "content": "x"}]}, "last message", "question"),
        ({"messages": [{"role": "user", "content": "a \ufffd b"}]}, "damaged text", "U+FFFD"),
        ({"tools": {}}, "tools", "object"),
        ({"tools": [{"name": "search"}]}, "tools", "names no function"),
        ({"reference_gene": ""}, "answer empty", "no answer"),
        ({"reference_gene": []}, "answer empty", "[]"),
        ({"reference_gene": "\u200bGLA"}, "answer with blanks", "u200b"),
        ({"reference_gene": "SjÃ¶gren"}, "damaged text", "reference_gene"),
        ({"reference_gene": 5}, "answer type", "number"),
    ],
)
def test_a_fault_of_a_row_is_missed(tmp_path, change, kind, words):
    report = check_bytes(tmp_path, lines_of([*GOOD[:7], GOOD[7] | change, *GOOD[8:]]))
    assert places(report) == [(8, kind)]
    assert words in str(report.faults[0])


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"Messages": []}, 'rename "Messages"'),
        ({"instruction": "x", "output": "y"}, "Alpaca"),
        ({"conversations": []}, "ShareGPT"),
        ({"prompt": "x", "chosen": "y", "rejected": "z"}, "preference"),
        ({"text": "x"}, "write"),
    ],
)
def test_a_row_of_another_format_is_not_recognised(tmp_path, fields, words):
    (fault,) = check_bytes(tmp_path, lines_of([fields | {"answer": "x"}])).faults
    assert fault.kind == "messages missing" and words in str(fault)


# The answer.


def test_what_counts_as_the_answer():
    answers = ["reference_gene", "answer", "final_answer", "label", "trueLabel", "target", "gold"]
    answers += ["correct_option", "expected_output", "solution", "ground_truth", "Answers"]
    others = ["sex", "age", "onset", "present", "absent", "case_id", "answer_type", "label_options"]
    others += ["target_length", "reference_url", "origin", "candidates", "marigold"]
    assert [key for key in answers + others if looks_like_answer(key)] == answers


@pytest.mark.parametrize(
    "value, text, found",
    [
        ("SCN1A", "a variant in SCN1A.", True),
        ("SCN1A", "SCN1A-related", True),
        ("SCN1A", "SCN1AB", False),
        ("REST", "at rest", False),
        ("Marfan syndrome", "marfan syndrome?", True),
        ("melancholy", "Melancholy", True),
        ("a+b(c)", "is a+b(c) right", True),
        ("1,234.5", "about 1,234.5 m", True),
    ],
)
def test_an_answer_is_found_inside_another_word_or_not_at_all(value, text, found):
    assert stands_in(value, text) is found


def told(row: dict, words: str) -> dict:
    content = row["messages"][0]["content"] + " " + words
    return row | {"messages": [{"role": "user", "content": content}]}


@pytest.mark.parametrize("answer", ["GLA", ["GLA", "GAL"], {"gene": "GLA"}])
def test_an_answer_told_in_the_prompt_passes(tmp_path, answer):
    rows = [make_row(n, reference_gene=f"X{n}YZ") for n in range(6)]
    rows[4] = told(rows[4] | {"reference_gene": answer}, "The lab says GLA.")
    report = check_bytes(tmp_path, lines_of(rows))
    assert (5, "answer in the prompt") in places(report)


@pytest.mark.parametrize("answer", ["A", "42", 42, True, "yes", "3.14", None])
def test_a_short_answer_found_by_chance_is_called_a_leak(tmp_path, answer):
    rows = [told(make_row(n, reference_gene=answer), "A yes 42 3.14 True None") for n in range(5)]
    assert "answer in the prompt" not in check_bytes(tmp_path, lines_of(rows)).counts


def test_fields_that_belong_into_the_prompt_are_called_a_leak(tmp_path):
    rows = [
        told(
            make_row(n, sex="female", onset="infancy", present=[{"label": "Seizure"}]), f"girl {n}"
        )
        for n in range(5)
    ]
    rows = [told(row, "History: infancy onset, female, Seizure.") for row in rows]
    report = check_bytes(tmp_path, lines_of(rows))
    assert report.ok and report.answer_keys == ["reference_gene"]
    as_answer = check_bytes(tmp_path, lines_of(rows), answer_keys=["onset"])
    assert as_answer.counts == {"answer in the prompt": 5}
    assert as_answer.answer_keys == ["onset", "reference_gene"]
    grouped = check_bytes(tmp_path, lines_of(rows), group_by="onset")
    assert grouped.counts == {"answer in the prompt": 5}


def test_a_list_of_candidates_is_called_a_leak(tmp_path):
    """Several rows' answers in one prompt are a choice; one, in the row of its own, is a leak."""
    rows = [told(make_row(n), "Candidates: " + ", ".join(GENES[:8])) for n in range(8)]
    report = check_bytes(tmp_path, lines_of(rows))
    assert report.ok and "answer in the prompt" in {note.kind for note in report.notes}
    rows = [*GOOD[:8], told(make_row(8), f"Not {GENES[1]} but {GENES[8]}.")]
    assert check_bytes(tmp_path, lines_of(rows)).counts == {"answer in the prompt": 1}
    labels = [
        told(make_row(n, reference_gene=["joy", "anger"][n % 2]), "joy or anger?") for n in range(6)
    ]
    assert check_bytes(tmp_path, lines_of(labels)).ok
    alone = told(make_row(1, candidates=["FBN1", "FBN2"]), "One of FBN1, FBN2")
    assert check_bytes(tmp_path, lines_of([alone])).ok
    not_told = told(make_row(1, candidates=["FBN1", "FBN2"]), "It is FBN1")
    assert check_bytes(tmp_path, lines_of([not_told])).counts == {"answer in the prompt": 1}


def test_a_task_that_extracts_the_answer_cannot_pass(tmp_path):
    rows = [
        told(make_row(n, answer=f"Name {n} of Town"), f"Signed: Name {n} of Town") for n in range(4)
    ]
    assert check_bytes(tmp_path, lines_of(rows)).counts == {"answer in the prompt": 4}
    report = check_bytes(tmp_path, lines_of(rows), answer_in_prompt_ok=True)
    assert report.ok and "answer in the prompt" in {note.kind for note in report.notes}


def test_a_missing_answer_is_missed_or_an_optional_field_accused(tmp_path):
    rows = [make_row(n, pmid=n) for n in range(8)]
    del rows[2]["reference_gene"], rows[5]["pmid"]
    rows[6] = {key: rows[6][key] for key in ("messages", "case_id")}
    report = check_bytes(tmp_path, lines_of(rows))
    assert places(report) == [(3, "answer missing"), (7, "no answer field")]
    assert [n.line for n in report.notes if n.kind == "field missing"] == [6]
    no_answers = [{"messages": row["messages"]} for row in rows]
    report = check_bytes(tmp_path, lines_of(no_answers))
    assert report.ok and "no answer field" in {note.kind for note in report.notes}


def test_answers_of_several_types_on_purpose_are_accused(tmp_path):
    rows = [make_row(n, reference_gene=f"G{n}" if n % 2 else n) for n in range(10)]
    report = check_bytes(tmp_path, lines_of(rows))
    assert report.ok and "answer type" in {note.kind for note in report.notes}


# Between rows, and across the split.


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
    monkeypatch.setattr("rftkit.data.overlap.MAX_SHINGLES", 4000)
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
    monkeypatch.setattr("rftkit.data.check.MAX_ROWS", {"train": 30, "validation": 2})
    report = check_split(tmp_path, GOOD, [make_row(n) for n in (50, 51, 52, 53)])
    assert places(report) == [(3, "too many rows")]
    report = check_split(tmp_path, [*GOOD, make_row(40), make_row(41)], [make_row(50)])
    assert places(report) == [(31, "too many rows")] and "at most 30" in str(report.faults[0])


def test_the_limits_are_others_than_the_contracts():
    from rftkit.data.check import MAX_ROWS

    assert MAX_ROWS == {"train": 50_000, "validation": 1_000}


def test_the_training_file_validates_itself(tmp_path):
    write_rows(tmp_path / "train.jsonl", GOOD)
    os.symlink(tmp_path / "train.jsonl", tmp_path / "link.jsonl")
    report = check_file(tmp_path / "train.jsonl", tmp_path / "link.jsonl")
    assert places(report) == [(None, "same file twice")]


def test_a_million_bad_lines_fill_the_report(tmp_path, monkeypatch):
    monkeypatch.setattr("rftkit.data.lines.MAX_LINES", 50)
    report = check_bytes(tmp_path, b"x\n" * 500)
    assert len(report.faults) == 51 and places(report)[-1] == (51, "too many lines")
    report = check_bytes(tmp_path, ROW + b"\n" * 500)
    assert places(report) == [(2, "blank line")] and "lines 2 to 500" in str(report.faults[0])


# Fuzz: whatever the bytes, a report.

pieces = st.sampled_from(
    [b"{", b"}", b"[", b"]", b'"', b",", b":", b"\n", b"\r\n", b"\\u", b"\\ud83d", b"NaN", b"1e999",
     b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"\xc3\xa9", b"\xe9", b'"messages"', b'"role"',
     b'"user"', b'"content"', b'"answer"', b"null", b"'", b" ", ROW, ROW[:-1],
     b"\xed\xa0\xbd", b"{{item.x}}"]
)  # fmt: skip
odd_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("user"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                "messages role content tools answer case_id from value function".split()
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
odd_rows = st.lists(
    st.fixed_dictionaries(
        {"messages": st.lists(odd_json, max_size=2) | odd_json, "answer": odd_json}
    )
    | odd_json,
    max_size=4,
).map(lambda rows: b"\n".join(json.dumps(row).encode() for row in rows))


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=300) | st.lists(pieces, max_size=40).map(b"".join) | odd_rows)
@example(content=b'{"\\ud83d": [], "messages": [{"role": "user", "content": "\\ud83d"}]}')
@example(content=b'{"messages": [{"role": "user", "content": "a"}], "answer": "\\ud83d"}\n' * 2)
def test_some_bytes_give_a_traceback(tmp_path, content):
    path = tmp_path / "fuzz.jsonl"
    path.write_bytes(content)
    other = tmp_path / "other.jsonl"
    other.write_bytes(lines_of(GOOD[:2]))
    for report in (check_file(path, other, "answer"), check_file(other, path, "answer")):
        text = json.dumps(report.to_json(), ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
        assert all(str(fault).isprintable() for fault in report.faults + report.notes)
    try:
        rows = read_rows(path)
    except UserError as error:
        assert "fuzz.jsonl" in str(error)
        alone = check_file(path)
        assert not alone.ok  # what strict reading refuses the check reports
    else:
        assert rows


# The command.


def run(*arguments: object):
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


def test_the_exit_code_says_clean_where_it_is_not(tmp_path):
    write_rows(tmp_path / "train.jsonl", GOOD)
    write_rows(tmp_path / "validation.jsonl", [make_row(50)])
    clean = run(tmp_path / "train.jsonl", "--validation", tmp_path / "validation.jsonl")
    assert clean.exit_code == 0 and "clean" in clean.output, clean.output
    leak = run(
        tmp_path / "train.jsonl", "--validation", tmp_path / "validation.jsonl",
        "--group-by", "reference_gene",
    )  # fmt: skip
    assert leak.exit_code == 1 and "validation.jsonl:1: reference_gene" in leak.output
    assert run(tmp_path / "nowhere.jsonl").exit_code == 1
    assert run(tmp_path).exit_code == 1
    assert run().exit_code == 2
    assert run(tmp_path / "train.jsonl", "--no-such-option").exit_code == 2


def test_the_command_hides_a_fault_or_prints_more_than_one_json_object():
    text = run(BROKEN / "rows.jsonl")
    assert text.exit_code == 1
    for line in EXPECTED:
        assert f"rows.jsonl:{line}: " in text.output
    assert "28 faults" in text.output and "sought in the prompts: reference_gene" in text.output
    result = run(BROKEN / "rows.jsonl", "--json")
    record = json.loads(result.stdout)
    assert result.exit_code == 1 and record["ok"] is False and len(record["faults"]) == 28
    assert record["counts"]["broken JSON"] == 5 and record["rows"] == {"train": 22}
    wanted = {"file", "line", "key", "value", "expectation", "next_step", "kind", "message"}
    assert all(wanted <= fault.keys() for fault in record["faults"])


def test_the_help_teaches_nothing():
    text = run("--help").output
    for words in ("Example", "rftkit check train.jsonl", "messages", "Exit code"):
        assert words in text


def test_a_terminal_without_the_right_letters_gets_a_traceback(tmp_path):
    path = tmp_path / "[red]é.jsonl"
    path.write_bytes(json.dumps(make_row(1, reference_gene="é\x1b[31m ")).encode())
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "rftkit.cli", "check", str(path)],
        capture_output=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 1 and b"Traceback" not in done.stderr
    assert b"[red]" in done.stdout and b"\x1b" not in done.stdout
