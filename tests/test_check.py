"""The data contract: each fault is found at its place, clean data is left alone, exit codes."""

import gzip
import hashlib
import json
import random

import pytest
from typer.testing import CliRunner

from rftkit.check import check_file, check_rows, looks_like_answer, occurs_in, similar_prompts
from rftkit.cli import app
from rftkit.files import UserError, dataset
from rftkit.rows import read_rows, write_rows

GENES = ["SCN1A", "FBN1", "NF1", "PAH", "HTT", "CFTR", "DMD", "RET", "OTC", "GLA", "TTN", "HBB"]
SIGNS = ["Seizure", "Ataxia", "Chorea", "Anemia", "Macrocephaly", "Cataract", "Global delay"]


def make_row(number: int, words: str = "", **more) -> dict:
    rng = random.Random(number)
    present, absent = rng.sample(SIGNS, 3), f"sign {number}, trait {number}"
    text = f"Symptoms present: {', '.join(present)}. Symptoms absent: {absent}. Which genes?{words}"
    return {
        "messages": [{"role": "user", "content": text}],
        "reference_gene": GENES[number % len(GENES)],
        "case_id": f"case-{number}",
    } | more


def places(report) -> list[tuple[int | None, str]]:
    return [(fault.line, fault.kind) for fault in report.faults]


GOOD = [make_row(n) for n in range(30)]
ROW = json.dumps(GOOD[0]).encode()
BROKEN = dataset("broken") / "rows.jsonl"
KINDS = """
    last message, answer in the prompt, broken JSON, broken JSON, messages, duplicate key,
    not a number, damaged text, messages, role, content, empty content, answer with blanks,
    answer empty, answer type, answer missing, answer missing, duplicate, contradiction,
    duplicate id, not an object, broken JSON, broken JSON, template in a prompt, broken JSON,
    lone surrogate, tools, messages
"""
EXPECTED = list(enumerate((kind.strip() for kind in KINDS.split(",")), 1))


def test_each_line_of_the_broken_dataset_has_its_one_fault():
    card = (BROKEN.parent / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(BROKEN.read_bytes()).hexdigest() in card  # no editor repaired it
    report = check_file(BROKEN)
    assert places(report) == EXPECTED and report.answer_keys == ["reference_gene"]
    for fault in report.faults:
        assert str(fault).startswith(f"{BROKEN}:{fault.line}: ") and fault.next_step
        assert len(str(fault)) < 420 and str(fault).isprintable()
        assert fault.key or fault.kind in ("broken JSON", "not an object")


def test_a_chat_with_tools_is_clean():
    row = make_row(1, tools=[{"type": "function", "function": {"name": "search"}}])
    row["messages"] = [
        {"role": "developer", "content": "Search first."},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "nothing", "tool_call_id": "1"},
        *row["messages"],
    ]
    assert check_rows([row]).ok


LATIN_1 = json.dumps(make_row(1, note="Sjögren"), ensure_ascii=False).encode("latin-1")
FILES = {
    "empty": (b"", (None, "not JSONL")),
    "byte order mark": (b"\xef\xbb\xbf" + ROW + b"\n", (1, "byte order mark")),
    "latin-1": (ROW + b"\n" + LATIN_1, (2, "wrong encoding")),
    "gzip": (gzip.compress(ROW), (None, "not JSONL")),
    "a pretty-printed row": (json.dumps(GOOD[0], indent=1).encode(), (None, "not JSONL")),
    "blank line inside": (ROW + b"\n\n", (2, "broken JSON")),
    "Windows": (ROW + b"\r\n", (1, "line ending")),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_jsonl_is_named_with_its_line(tmp_path, name):
    content, expected = FILES[name]
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    assert places(check_file(path)) == [expected]
    with pytest.raises(UserError, match=str(path)):
        read_rows(path)


USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("change", "kind", "key"),
    [
        ({"messages": ["Which gene?"]}, "messages", "messages[0]"),
        ({"messages": [USER, USER | {"role": "User"}]}, "role", "messages[1].role"),
        ({"tools": [{"name": "search"}]}, "tools", "tools[0].function"),
        ({"reference_gene": []}, "answer empty", "reference_gene"),
        ({"reference_gene": "\u200bGLA"}, "answer with blanks", "reference_gene"),
    ],
)
def test_a_fault_of_a_row_is_found_at_its_key(change, kind, key):
    report = check_rows([*GOOD[:7], GOOD[7] | change, *GOOD[8:]])
    assert (8, kind, key) in [(fault.line, fault.kind, fault.key) for fault in report.faults]
    assert {fault.line for fault in report.faults} == {8}


def test_what_counts_as_the_answer_and_where_it_is_found():
    answers = "reference_gene answer trueLabel gold correct_option expected_output ground_truth"
    others = "sex onset case_id answer_type label_options target_length reference_url marigold"
    assert all(map(looks_like_answer, answers.split()))
    assert not any(map(looks_like_answer, others.split()))
    assert occurs_in("SCN1A", "SCN1A-related") and occurs_in("melancholy", "Melancholy")
    assert not occurs_in("SCN1A", "SCN1AB") and not occurs_in("REST", "at rest")


LEAK = "answer in the prompt"
LEAKING = make_row(11, f"The lab says {GENES[11]}.")
ONE_OTHER = [*GOOD[:8], make_row(8, f"Not {GENES[1]} but {GENES[8]}.")]
JOY = [make_row(len(mood), "joy or anger?", reference_gene=mood) for mood in ("joy", "anger")]
NO_ANSWER = [{"messages": row["messages"]} for row in GOOD]
# what is looked at -> (training rows, options, its faults)
ANSWERS = {
    "in a sentence": ([*GOOD[:4], LEAKING], {}, [(5, LEAK)]),
    "one of a list": ([LEAKING | {"reference_gene": ["GAL", {"a": "HBB"}]}], {}, [(1, LEAK)]),
    "a short number": ([make_row(1, "aged 42", reference_gene=42)], {}, []),
    "yes": ([make_row(1, "yes or no?", reference_gene="yes")], {}, []),
    "other field": ([make_row(1, "old", onset="old")], {}, []),
    "named field": ([make_row(1, "old", onset="old")], {"answer_keys": ["onset"]}, [(1, LEAK)]),
    "candidates": ([make_row(n, f"Candidates: {GENES}") for n in range(8)], {}, []),
    "labels": (JOY, {}, []),
    "one other": (ONE_OTHER, {}, [(9, LEAK)]),
    "to be found in the text": (ONE_OTHER, {"answer_in_prompt_ok": True}, []),
    "one is missing": ([*GOOD[:5], NO_ANSWER[5]], {}, [(6, "answer missing")]),
    "one has an optional one": ([GOOD[0] | {"target": "seldom"}, *GOOD[1:]], {}, []),
    "types are mixed": ([make_row(n, label=n if n % 2 else f"{n}") for n in range(8)], {}, []),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_what_is_wrong_with_answers_is_found_and_nothing_else(name):
    rows, options, expected = ANSWERS[name]
    assert places(check_rows(rows, **options)) == expected


@pytest.mark.parametrize("option", ["answer_keys", "not_answer"])
def test_an_answer_key_that_no_row_has_is_refused_with_those_they_have(option):
    with pytest.raises(UserError, match="mood: no such column, expected .* reference_gene"):
        check_rows(GOOD, **{option: ["mood"]})


def test_a_report_shows_its_counts():
    assert repr(check_rows(GOOD, GOOD[:1])).startswith("train: 30 rows, validation: 1 row: 2 fau")
    assert repr(check_rows(GOOD)) == "train: 30 rows: clean"


def asked(text: str, answer: str = "A", **more) -> dict:
    return {"messages": [{"role": "user", "content": text}], "answer": answer} | more


def test_a_field_that_repeats_the_prompt_is_no_answer_and_a_named_one_is_none():
    def row(n: int) -> dict:
        rules = {"role": "developer", "content": "Answer with one code.\n"}
        question = {"role": "user", "content": f"Which shelf holds crate {n}?"}
        messages = {"messages": [rules, question], "reference_answer": f"S{n}"}
        copies = {"reference_developer": rules["content"], "reference_user": question["content"]}
        return messages | copies | {"reference_both": f"{rules['content']}{question['content']}"}

    rows = [row(n) for n in range(30)]
    report = check_rows(rows)
    assert report.ok and report.answer_keys == ["reference_answer"] and len(report.notes) == 4
    part = [row | {"reference_part": f"crate {n}"} for n, row in enumerate(rows)]
    assert check_rows(part).counts == {LEAK: 30}
    assert check_rows(part, group_by="reference_part", not_answer=["reference_part"]).ok
    assert check_rows(rows, answer_keys=["reference_user"]).counts == {LEAK: 30}


OPTIONS = {  # a prompt, its answer, is that a leak?
    "lines with letters": ("Which?\nA. tin#\nB. ore#\nC. zinc#\nD. lead#", "C. zinc#", False),
    "the text alone": ("Which?\nA) tin#\nB) ore#\nC) zinc#", "zinc#", False),
    "in a line": ("(1) tin# (2) zinc#\nWrite the name.", "zinc#", False),
    "in a line with letters": ("Which metal? A: tin# B: zinc# C: lead#", "zinc#", False),
    "lines after a word": ("Categories:\ntin#\nzinc#\n\nWhich is it?", "zinc#", False),
    "bullets": ("Which metal?\n- red tin#\n- raw zinc#\n- lead", "raw zinc#", False),
    "after a word": ("Choose one of: tin#, zinc# or lead#.", "zinc#", False),
    "quoted": ("Options: 'tin#', 'zinc#'", "zinc#", False),
    "in a sentence": ("Choose a metal. The label says zinc#.", "zinc#", True),
    "in an item": ("Known:\n1. It is grey.\n2. A zinc# plate.\n3. Heavy.", "zinc#", True),
    "alone on a line": ("Metal:\nzinc#\nWhich is it?", "zinc#", True),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_in_a_list_of_options_is_no_leak(name):
    text, answer, is_leak = OPTIONS[name]
    rows = [asked(text.replace("#", f"{n}"), answer.replace("#", f"{n}")) for n in range(100, 130)]
    assert check_rows(rows).counts == ({LEAK: 30} if is_leak else {})


WRAPPED = {
    "one level down": lambda row: {"item": row},
    "a prompt of messages": lambda row: {"prompt": row["messages"], "answer": "A"},
    "a prompt of text": lambda row: {"prompt": row["messages"][0]["content"], "answer": "A"},
    "a prompt one level down": lambda row: {"data": {"prompt": row["messages"], "answer": "A"}},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_messages_are_found_elsewhere_and_the_conversion_is_offered(tmp_path, name):
    rows = [WRAPPED[name](asked(f"Which crate? {n}")) for n in range(30)]
    report = check_rows(rows)
    assert report.ok and report.answer_keys == ["answer"]
    [note] = [note for note in report.notes if "write_rows" in note]
    assert "30 rows" in note
    write_rows(tmp_path / "new.jsonl", read_rows(rows))
    again = check_file(tmp_path / "new.jsonl")
    assert again.ok and len(again.notes) == 1
    mixed = check_rows([*GOOD, rows[0]])
    assert (31, "messages") in places(mixed)  # the one that differs from all others


def test_parts_of_text_are_joined_and_an_image_is_refused():
    parts = [{"type": "text", "text": "Which shelf?"}, {"type": "text", "text": "Crate 7."}]
    rows = [asked(parts), asked("Which shelf?")]
    assert check_rows(rows).ok and rows[0]["messages"][0]["content"] is parts
    assert read_rows(rows)[0]["messages"][0]["content"] == "Which shelf?\nCrate 7."
    image = {"type": "image_url", "image_url": {"url": "shelf.png"}}
    for wrong in ([*parts, image], [image], ["Which?"], []):
        assert places(check_rows([asked(wrong)])) == [(1, "content")], wrong


def test_copies_and_contradictions_are_found_on_one_side_and_across_the_split():
    other_answer = GOOD[4] | {"case_id": "x", "reference_gene": "X1X"}
    train = [*GOOD, GOOD[3] | {"case_id": "copy"}, other_answer]
    near = make_row(60)
    near["messages"][0]["content"] = GOOD[11]["messages"][0]["content"].replace("Which", "which")
    validation = [make_row(50, case_id="case-2"), GOOD[7] | {"case_id": "y"}, make_row(50), near]
    report = check_rows(train, validation)
    across = [(2, "duplicate across the split"), (3, "duplicate")]
    across = [(1, "duplicate id"), *across, (4, "near-duplicate across the split")]
    assert places(report) == [(31, "duplicate"), (32, "contradiction"), *across]
    seen = ("line 4", "line 5", "rows:3", "rows:8", "line 1", "rows:12")
    assert all(place in fault.found for fault, place in zip(report.faults, seen))


def test_groups_on_both_sides_and_rows_too_many_or_without_a_group_are_found(monkeypatch):
    monkeypatch.setattr("rftkit.check.MAX_ROWS", {"train": 9, "validation": 4})
    train = [make_row(n, family=f"F{n // 2}") for n in range(10)]
    del train[1]["family"]
    validation = [make_row(50 + n, family=f) for n, f in enumerate(("F9", "F4", "F4", None))]
    report = check_rows(train, validation, group_by="family")
    missing, both = "group missing", "group on both sides"
    faults = [place for place in places(report) if place[1] in (missing, both, "too many rows")]
    assert faults == [(2, missing), (10, "too many rows"), (2, both), (3, both), (4, missing)]


def labelled(count: int, values: int) -> list[dict]:
    words = random.Random(0).sample(range(100_000), 3 * count)
    texts = [" ".join(f"w{w}" for w in words[3 * n : 3 * n + 3]) for n in range(count)]
    return [asked(text, mood=f"v{n % values}") for n, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("count", "values", "new", "faults"),
    [(60, 6, 0, 0), (5000, 28, 0, 0), (240, 30, 0, 48), (2000, 500, 0, 400), (60, 3, 2, 4)],
)
def test_a_closed_set_of_answers_is_no_group_and_an_open_one_is(count, values, new, faults):
    """new: so many of the held-out values do not occur in training."""
    rows = labelled(count, values)
    train, held_out = rows[: count * 4 // 5], rows[count * 4 // 5 :]
    held_out = [row | {"mood": f"v{n % values + new}"} for n, row in enumerate(held_out)]
    report = check_rows(train, held_out, group_by="mood")
    assert report.counts == ({"group on both sides": faults} if faults else {})
    assert any("mood" in note for note in report.notes) is (not faults)


@pytest.mark.parametrize(
    ("rows", "variants", "words"), [(200, 1.7, 1000), (200, 10, 400), (12, 1.5, 1000)]
)
def test_a_shuffled_case_is_found_and_a_shared_instruction_makes_no_copy(rows, variants, words):
    """A very long one that most rows have; a mixture of ten tasks; a dozen rows."""
    rng = random.Random(0)
    instructions = [" ".join(f"w{v}x{i}" for i in range(words)) + ": " for v in range(10)]
    cases = [rng.sample([f"s{i}" for i in range(2000)], 10) for _ in range(rows)]
    train = [instructions[int(n % variants)] + ", ".join(case) for n, case in enumerate(cases, 1)]
    other, copy = rng.sample(range(2000, 3000), 10), " , ".join(cases[0][::-1]).upper()
    held_out = [instructions[0] + ", ".join(f"s{i}" for i in other), instructions[1] + copy]
    assert [pair[:2] for pair in similar_prompts(train, held_out)] == [(1, 0)]


def run(*arguments: object):
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


def test_the_command_prints_every_fault_and_its_exit_code_is_0_where_clean(tmp_path):
    write_rows(tmp_path / "train.jsonl", GOOD)
    write_rows(tmp_path / "validation.jsonl", [make_row(50)])
    both = (tmp_path / "train.jsonl", "--validation", tmp_path / "validation.jsonl")
    assert run(*both).exit_code == 0
    leak = run(*both, "--group-by", "reference_gene")
    assert leak.exit_code == 1 and "validation.jsonl:1: " in leak.output
    assert run(tmp_path / "nowhere.jsonl").exit_code == run(BROKEN).exit_code == 1
    write_rows(tmp_path / "train.jsonl", [row | {"reference_gene": " A"} for row in GOOD])
    shown = run(tmp_path / "train.jsonl").output
    assert shown.count('"reference_gene" is') == 5 and "25 more" in shown
    assert run().exit_code == run(tmp_path / "train.jsonl", "--no-such-option").exit_code == 2
    record = json.loads(run(BROKEN, "--json").stdout)
    assert record["ok"] is False and len(record["faults"]) == 28
    assert record["counts"]["broken JSON"] == 5 and record["rows"] == {"train": 22}
    assert {"files", "answer_keys", "notes"} <= record.keys()
    wanted = {"file", "line", "key", "value", "expectation", "next_step", "kind", "message"}
    assert all(wanted <= fault.keys() for fault in record["faults"])
