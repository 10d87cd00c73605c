"""Rows, small files and the machine: what is read, written, named and split."""

from __future__ import annotations

import gzip
import json
import random

import pytest
from data_samples import GOOD, ROW, check_bytes, lines_of, make_row, places
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rftkit.check import check_file
from rftkit.environment import choose_device, profile
from rftkit.files import UserError, dataset, printable, read_json, shorten
from rftkit.rows import (
    assert_disjoint,
    messages_text,
    read_rows,
    row_ids,
    row_ids_note,
    split_by_group,
    write_rows,
)


@pytest.mark.parametrize(
    ("cuda", "bf16", "expected"),
    [
        (False, False, ("cpu", "float32")),
        (True, True, ("cuda", "bfloat16")),
        (True, False, ("cuda", "float16")),
    ],
)
def test_a_gpu_is_taken_where_there_is_one_with_the_dtype_that_it_computes_in(
    monkeypatch, cuda, bf16, expected
):
    for name, value in {"is_available": cuda, "is_bf16_supported": bf16}.items():
        monkeypatch.setattr(f"torch.cuda.{name}", lambda value=value: value)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: "a GPU")
    assert choose_device()[:2] == expected


def test_an_unknown_profile_is_refused(monkeypatch):
    monkeypatch.setenv("RFTKIT_PROFILE", "fast")
    with pytest.raises(UserError, match="fast"):
        profile()


def test_an_unknown_dataset_is_refused_with_the_names_there_are():
    with pytest.raises(UserError, match=r"'gene_rankin'.*gene_ranking"):
        dataset("gene_rankin")


@pytest.mark.parametrize(
    ("content", "place"),
    [(b'{"a": 1,\n "b" 2}', "x.json:2:6: "), (b'{"\xe4"}', "x.json: .*byte 2"), (None, "x.json: ")],
)
def test_an_unreadable_json_file_is_refused_with_its_place(tmp_path, content, place):
    if content is not None:
        (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=place):
        read_json(tmp_path / "x.json")


def test_a_shown_value_is_one_short_printable_line():
    assert printable("a\x1b[31m\ud800") == r"a\x1b[31m\ud800"
    assert len(shorten(["a\nb"] * 100, 40)) == 40 and shorten("\x1b" * 100, 40).isprintable()


# From bytes to rows.

LATIN_1 = json.dumps(make_row(1, note="Sjögren"), ensure_ascii=False).encode("latin-1")
FILES = {
    "empty": (b"", (None, "not JSONL")),
    "blank lines alone": (b"\n", (1, "blank line")),
    "byte order mark": (b"\xef\xbb\xbf" + ROW + b"\n", (1, "byte order mark")),
    "CRLF": (ROW + b"\r\n", (1, "line ending")),
    "latin-1": (ROW + b"\n" + LATIN_1, (2, "wrong encoding")),
    "UTF-16": (ROW.decode().encode("utf-16"), (None, "not JSONL")),
    "gzip": (gzip.compress(ROW), (None, "not JSONL")),
    "parquet": (b"PAR1\x15\x04", (None, "not JSONL")),
    "CSV": (b"prompt,answer\nx,y\n", (None, "not JSONL")),
    "a list of rows": (json.dumps(GOOD[:2], indent=2).encode(), (None, "not JSONL")),
    "a pretty-printed row": (json.dumps(GOOD[0], indent=1).encode(), (None, "not JSONL")),
    "blank line inside": (ROW + b"\n\n", (2, "blank line")),
    "null": (ROW + b"\nnull\n", (2, "not an object")),
    "Python's print": (ROW + b"\n{'a': None}\n", (2, "broken JSON")),
    "a line of 50 MB": (ROW + b"\n" + b"x" * 50_000_000 + b"\n", (2, "line too long")),
    "no file": (None, (None, "unreadable file")),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_jsonl_is_named_with_its_line(tmp_path, name):
    content, expected = FILES[name]
    report = check_file(tmp_path) if content is None else check_bytes(tmp_path, content)
    assert places(report) == [expected]
    with pytest.raises(UserError, match=str(tmp_path)):
        read_rows(report.files["train"])


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_a_number_that_json_does_not_know_is_found_where_it_stands(tmp_path, number):
    line = json.dumps(GOOD[0])[:-1] + f', "deep": [{{"age": {number}}}]}}'
    (fault,) = check_bytes(tmp_path, line.encode()).faults
    assert (fault.kind, fault.key) == ("not a number", "deep[0].age")


pieces = st.sampled_from(
    [b"{", b"}", b"[", b"]", b'"', b",", b":", b"\n", b"\\ud83d", b"NaN", b"1e999", b"\xef\xbb\xbf",
     b"\x00", b"\xe9", b'"messages"', b'"role"', b'"user"', b'"answer"', b"null", ROW, ROW[:-1]]
)  # fmt: skip
odd_json = st.recursive(
    st.none() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["role", "content"]), inner),
)
odd_rows = st.lists(st.fixed_dictionaries({"messages": odd_json, "answer": odd_json}), max_size=4)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=st.lists(pieces, max_size=40).map(b"".join) | odd_rows.map(lines_of))
def test_whatever_the_bytes_there_is_a_report_and_strict_reading_agrees(tmp_path, content):
    path, other = tmp_path / "fuzz.jsonl", tmp_path / "other.jsonl"
    path.write_bytes(content)
    other.write_bytes(lines_of(GOOD[:2]))
    report = check_file(path, other, "answer")
    json.dumps(report.to_json(), ensure_ascii=False, allow_nan=False).encode("utf-8")
    assert all(str(fault).isprintable() for fault in report.faults + report.notes)
    try:
        assert read_rows(path)
    except UserError as error:
        assert "fuzz.jsonl" in str(error) and not check_file(path).ok


# Written, and named.


def test_a_row_is_read_as_it_was_written_and_gives_the_same_bytes(tmp_path):
    rows = [make_row(1, note=value) for value in (None, 0.1, "Café\u2028, 症状\n", {"b": [{}]})]
    one, two = tmp_path / "one.jsonl", tmp_path / "deep" / "er" / "two.jsonl"
    write_rows(one, rows)
    write_rows(two, read_rows(one))
    assert read_rows(two) == rows and one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("value", [float("nan"), {1, 2}])
def test_a_failed_write_leaves_the_old_file_whole(tmp_path, value):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [GOOD[0]])
    with pytest.raises(UserError, match="rows.jsonl:2: "):
        write_rows(path, [GOOD[1], make_row(2, bad=value)])
    assert read_rows(path) == [GOOD[0]] and list(tmp_path.iterdir()) == [path]


def test_ids_are_unique_and_line_numbers_serve_where_a_row_has_none():
    assert row_ids([{"case_id": "a"}, {"row_id": 7}, {}]) == ["a", "7", "3"]
    for rows in ([{"case_id": "a"}, {}, {"row_id": "a"}], [{"case_id": "2"}, {}]):
        with pytest.raises(UserError, match="rows 1 and"):
            row_ids(rows)
    assert row_ids_note([{"case_id": "a"}]) == ""
    assert "1 of 2 rows" in row_ids_note([{"case_id": "a"}, {"case_id": " "}])


# Split.

SHARES = {"train": 0.7, "validation": 0.2, "test": 0.1}


def case(text: str, gene: str, **more) -> dict:
    return {"messages": [{"role": "user", "content": text}], "gene": gene} | more


def many_rows() -> list[dict]:
    """60 genes of 1 to 60 rows, and chains of genes that share a prompt, word for word."""
    rng = random.Random(0)
    genes = [f"GENE{i}" for i in range(60) for _ in range(rng.choice([1, 2, 5, 20, 60]))]
    rows = [case(f"case {i}", gene, case_id=f"c{i}") for i, gene in enumerate(genes)]
    return rows + [case(f"shared {i // 3}", f"GENE{i}", case_id=f"s{i}") for i in range(30)]


@pytest.mark.parametrize("seed", range(3))
def test_groups_and_copies_of_a_prompt_stay_on_one_side_of_the_split(seed):
    rows = many_rows()
    sides = split_by_group(rows, "gene", SHARES, seed)
    for what in (lambda row: row["gene"], messages_text):
        values = [{what(row) for row in part} for part in sides.values()]
        assert sum(map(len, values)) == len(set.union(*values))
    ids = sorted(row["case_id"] for part in sides.values() for row in part)
    assert ids == sorted(row["case_id"] for row in rows)


def test_the_split_has_its_shares_and_depends_on_the_seed_alone():
    rows = many_rows()
    split = split_by_group(rows, "gene", SHARES, 3)
    assert all(abs(len(split[s]) / len(rows) - share) < 0.03 for s, share in SHARES.items())
    assert split != split_by_group(rows, "gene", SHARES, 4)
    again = split_by_group(random.Random(1).sample(rows, len(rows)), "gene", SHARES, 3)
    for side in SHARES:
        assert [row for row in rows if row in again[side]] == split[side]  # rows keep their order


def test_large_groups_reach_the_smaller_sides_and_no_side_stays_empty():
    """A split that always gives the large groups to training tests on rare genes alone."""
    rows = [case(f"{g} {i}", f"GENE{g}") for g in range(20) for i in range(5 + 15 * (g < 4))]
    tests = [split_by_group(rows, "gene", {"a": 0.5, "b": 0.5}, seed)["b"] for seed in range(20)]
    large = {f"GENE{g}" for g in range(4)}
    assert sum(bool(large & {row["gene"] for row in test}) for test in tests) >= 10
    few = [case(f"{g} {i}", f"GENE{g}") for g in range(3) for i in range(10)]
    assert all(split_by_group(few, "gene", SHARES, seed)["test"] for seed in range(5))


@pytest.mark.parametrize(
    ("rows", "shares", "words"),
    [
        (many_rows(), {"a": 0.5, "b": 0.4}, "add up to 1"),
        (many_rows()[:1], {"a": 0.5, "b": 0.5}, "1 group"),
        ([case("a", "A"), case("b", "")], {"a": 1.0}, "row 2"),
    ],
)
def test_a_split_that_makes_no_sense_is_refused(rows, shares, words):
    with pytest.raises(UserError, match=words):
        split_by_group(rows, "gene", shares, 0)


@pytest.mark.parametrize("leak", [case("c", "A"), case("a", "C")])
def test_a_leak_between_sides_fails_the_assertion(leak):
    with pytest.raises(AssertionError, match="train and in test"):
        assert_disjoint({"train": [case("a", "A")], "test": [case("b", "B"), leak]}, "gene")
