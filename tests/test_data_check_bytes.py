"""Files that are no JSONL: each fault said with its cure; whatever the bytes, a report."""

from __future__ import annotations

import gzip
import json
import time
import tracemalloc

import pytest
from data_samples import GOOD, ROW, check_bytes, lines_of, make_row, places
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rftkit.check import check_file
from rftkit.files import UserError
from rftkit.rows import MAX_LINE_BYTES, read_rows, write_rows

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


def test_a_million_bad_lines_fill_the_report(tmp_path, monkeypatch):
    monkeypatch.setattr("rftkit.rows.MAX_LINES", 50)
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
