"""From bytes to rows, a line at a time: what can go wrong before a row is a row.

`read_lines` streams: it holds one line in memory, whatever the file's size, and never stops
at a fault. Strict reading (`rows.read_rows`) raises the first fault it hands out, the check
(`check.check_file`) collects them all.

The limits below are our own choice; OpenAI documents a number of rows, not of bytes.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from rftkit.data.faults import Fault, Place, bounded, place_of, printable, type_name, value_text
from rftkit.data.json_errors import explain_json_error

MAX_LINE_BYTES = 10_000_000  # about ten times the longest context window, as text
MAX_LINES = 1_000_000  # twenty times the rows that a job may have; bounds the report's memory
MAX_DEPTH = 64  # containers inside containers

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
FILE_SIGNATURES = {
    b"\x1f\x8b": ("gzip", "unpack it first (gunzip -k FILE)"),
    b"PK\x03\x04": ("zip or Excel", "unpack it, or save the sheet's rows as JSONL"),
    b"BZh": ("bzip2", "unpack it first (bunzip2 -k FILE)"),
    b"\xfd7zXZ": ("xz", "unpack it first (unxz -k FILE)"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unpack it first (unzstd FILE)"),
    b"PAR1": ("parquet", "write it as JSONL: datasets.Dataset.from_parquet(FILE).to_json(OUT)"),
    b"ARROW1": ("arrow", "write it as JSONL with datasets' to_json"),
    b"SQLite format 3": ("SQLite", "write the table's rows as JSONL"),
    b"\x80\x04\x95": ("pickle", "write the rows with rftkit.data.write_rows"),
}
SAVE_AS_UTF8 = 'save it as UTF-8 (Python: open(path, "w", encoding="utf-8"))'


@dataclass
class Line:
    """A line as read: its row (None where it could not be read), and the faults on the way.

    number is None for faults of the file as a whole, which carries no row.
    """

    number: int | None
    row: dict[str, Any] | None = None
    faults: list[Fault] = field(default_factory=list)


def read_lines(path: str | Path) -> Iterator[Line]:
    """Yield every line of a JSONL file, with its row or its faults; never raises for content."""
    place = place_of(path)
    try:
        if Path(path).is_dir():
            yield Line(None, faults=[folder_fault(path, place)])
            return
        with open(path, "rb", buffering=1 << 20) as file:
            unreadable = signature_fault(file.peek(4096)[:4096], place)
            if unreadable:
                yield Line(None, faults=[unreadable])
            else:
                yield from _lines_of(file, place)
    except FileNotFoundError:
        yield Line(None, faults=[missing_fault(path, place)])
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        found = f"cannot be read ({reason})"
        fault = place.fault("unreadable file", found, "a readable file", "check its permissions")
        yield Line(None, faults=[fault])


def _lines_of(file: BinaryIO, place: Place) -> Iterator[Line]:
    parser = RowParser()
    blank: list[int] = []  # the run of blank lines before this one: first and last number
    content_seen = carriage_return_seen = False
    for number, raw, size in _raw_lines(file):
        here = Place(place.file, number)
        if raw is not None and not raw.strip(b" \t\r\n\xef\xbb\xbf"):
            blank = [blank[0] if blank else number, number]
            continue
        if blank and content_seen:
            yield blank_lines(place, *blank)
        blank = []
        if number > MAX_LINES:
            found = f"the file goes on after line {MAX_LINES:,}"
            expected = "at most 50,000 training rows"
            step = "the check stops here: hand over the rows of one job"
            yield Line(number, faults=[here.fault("too many lines", found, expected, step)])
            return
        if raw is None:
            found = f"the line is {size / 1e6:.0f} MB long"
            step = "a line break is missing, or a document slipped in: shorten it"
            expected = f"at most {MAX_LINE_BYTES / 1e6:.0f} MB a row"
            yield Line(number, faults=[here.fault("line too long", found, expected, step)])
            content_seen = True
            continue
        if not content_seen and spread_over_lines(raw):
            yield Line(number, faults=[spread_fault(here, raw)])
            return
        content_seen = True
        line = parser.parse(raw, here)
        if raw.endswith(b"\r\n") and not carriage_return_seen:
            carriage_return_seen = True
            found = "the line ends in CR LF (Windows), and others after it may"
            expected, step = r"lines that end in \n alone", 'write with newline="\\n", or: dos2unix'
            line.faults.insert(0, here.fault("line ending", found, expected, step))
        yield line
    if not content_seen:
        found = "the file is empty" if not blank else "the file holds blank lines alone"
        step = "check the program that wrote it, and the path"
        yield Line(None, faults=[place.fault("empty file", found, "one JSON object a line", step)])
    elif blank:
        yield blank_lines(place, *blank)


def _raw_lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None, int]]:
    """(number, bytes or None where the line is too long, its length in bytes)."""
    number = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) <= MAX_LINE_BYTES or raw.endswith(b"\n"):
            yield number, raw, len(raw)
            continue
        size = len(raw)
        while not raw.endswith(b"\n") and (raw := file.readline(1 << 20)):
            size += len(raw)  # read past it, a megabyte at a time, and forget it
        yield number, None, size


class RowParser:
    """Strict JSON: what Python's own reader lets pass (NaN, repeated keys) is a fault here.

    JSON: RFC 8259, section 4 (names should be unique), 6 (no NaN, no Infinity), 8.2 (lone
    surrogates are "unpredictable").
    """

    def __init__(self) -> None:
        self.repeated_keys: dict[str, None] = {}  # in the order of their finding
        self.not_finite = False
        self.decoder = json.JSONDecoder(
            object_pairs_hook=self._object,
            parse_constant=self._constant,
            parse_float=self._float,
        )

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) < len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    self.repeated_keys[key] = None
                seen.add(key)
        return record

    def _constant(self, name: str) -> float:
        self.not_finite = True
        return float(name)

    def _float(self, digits: str) -> float:
        number = float(digits)
        self.not_finite |= math.isinf(number)  # 1e999
        return number

    def parse(self, raw: bytes, here: Place) -> Line:
        line = Line(here.line)
        text = self._decode(raw, here, line.faults).rstrip("\r\n")
        self.repeated_keys, self.not_finite = {}, False
        try:
            row = self.decoder.decode(text)
            if text.count("[") + text.count("{") > MAX_DEPTH and too_deep(row):
                raise RecursionError
        except json.JSONDecodeError as error:
            line.faults.append(explain_json_error(here, text, error, raw.endswith(b"\n")))
            return line
        except RecursionError:
            found = f"lists or objects stand more than {MAX_DEPTH} deep inside each other"
            step = "flatten the row"
            line.faults.append(here.fault("nested too deeply", found, f"{MAX_DEPTH} levels", step))
            return line
        except ValueError:  # Python refuses integers of more than 4,300 digits
            found, expected = "a number has thousands of digits", "a number a computer can hold"
            line.faults.append(here.fault("broken JSON", found, expected, "write it as a string"))
            return line
        line.faults += bounded(self._odd_values(row, text, here))
        if isinstance(row, dict):
            line.row = row
        else:
            line.faults.append(not_an_object(here, row))
        return line

    def _decode(self, raw: bytes, here: Place, faults: list[Fault]) -> str:
        if raw.startswith(BYTE_ORDER_MARK):
            raw = raw[len(BYTE_ORDER_MARK) :]
            found = "the line starts with a byte order mark (BOM, EF BB BF)"
            step = 'save as UTF-8 without BOM; in Python read with "utf-8-sig", write with "utf-8"'
            faults.append(here.fault("byte order mark", found, "UTF-8 without BOM", step))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            around = raw[max(0, error.start - 15) : error.start + 15].decode("latin-1")
            found = f"byte {error.start + 1} (0x{raw[error.start]:02x}) is not UTF-8, in"
            step = f"{SAVE_AS_UTF8}; the file may be latin-1: iconv -f latin1 -t utf-8"
            found = f"{found} {value_text(around)}"
            faults.append(here.fault("wrong encoding", found, "UTF-8", step, value=around))
            # Go on with a reading that loses no byte, so that the line's other faults show too.
            return raw.decode("latin-1")

    def _odd_values(self, row: Any, text: str, here: Place) -> Iterator[Fault]:
        for key in self.repeated_keys:
            found = f"the key {value_text(key)} stands twice in one object"
            step = "remove one: readers keep the last and drop the first without a word"
            yield here.fault("duplicate key", found, "each key once", step, key=key)
        surrogates = re.search(r"\\u[dD][89a-fA-F]", text) is not None
        if not (self.not_finite or surrogates):
            return  # the usual case: no walk through the row
        for path, value in walk(row):
            if isinstance(value, float) and not math.isfinite(value):
                shown = json.dumps(value)
                found = f'"{path}" is {shown}, which JSON does not know'
                step = "write null, or leave the key out"
                expected = "a finite number"
                yield here.fault("not a number", found, expected, step, key=path, value=value)
            elif has_lone_surrogate(path) or (isinstance(value, str) and has_lone_surrogate(value)):
                half = re.search("[\ud800-\udfff]", value if isinstance(value, str) else "")
                value = value[max(0, half.start() - 20) : half.end() + 20] if half else value
                shown = value_text(value)
                found = f'"{path}" holds half of a character (a lone surrogate): {shown}'
                step = "a text was cut in the middle of a character: write the row anew"
                expected = "whole characters"
                yield here.fault("lone surrogate", found, expected, step, key=path, value=value)


def walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Every leaf inside a row as (path, value), empty containers too; no recursion."""
    stack: list[tuple[str, Any]] = [("", value)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, dict) and value:
            inner = [(f"{path}.{key}" if path else key, v) for key, v in value.items()]
            stack += reversed(inner)
        elif isinstance(value, list) and value:
            stack += [(f"{path}[{i}]", value[i]) for i in reversed(range(len(value)))]
        else:
            yield path, value


def too_deep(value: Any) -> bool:
    """True where containers stand more than MAX_DEPTH deep inside each other."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return any(isinstance(value, (dict, list)) for value in level)


def has_lone_surrogate(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text)


# What can be wrong with a whole file.


def folder_fault(path: str | Path, place: Place) -> Fault:
    inside = sorted(str(p) for p in Path(path).glob("*.jsonl"))[:3]
    step = f"name one file, such as {', '.join(inside)}" if inside else "name the file inside"
    return place.fault("unreadable file", "is a folder", "a JSONL file", step)


def missing_fault(path: str | Path, place: Place) -> Fault:
    step = "check the path (it is read from the current folder)"
    try:
        names = [p.name for p in Path(path).parent.iterdir()]
    except OSError:
        names = []
    close = difflib.get_close_matches(Path(path).name, names, n=1, cutoff=0.6)
    if close:
        step += f"; did you mean {printable(str(Path(path).parent / close[0]))}?"
    return place.fault("unreadable file", "no such file", "a JSONL file", step)


def signature_fault(head: bytes, place: Place) -> Fault | None:
    """UTF-16, archives and other binary files, known from their first bytes."""
    expected = "a text file, one JSON object a line"
    for signature, (name, step) in FILE_SIGNATURES.items():
        if head.startswith(signature):
            found = f"is a {name} file"
            return place.fault("compressed or binary file", found, expected, step)
    wide = head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"{\x00" in head or b"\x00{" in head
    if wide:
        found = "is UTF-16 or UTF-32 (Windows calls it Unicode)"
        return place.fault("wrong encoding", found, "UTF-8", f"{SAVE_AS_UTF8}; no line was read")
    if b"\x00" in head:
        step = "hand over the JSONL file itself; no line was read"
        return place.fault("compressed or binary file", "holds NUL bytes", expected, step)
    return None


def spread_over_lines(raw: bytes) -> bool:
    """A first line that opens a document and leaves it open: pretty-printed JSON."""
    text = raw.removeprefix(BYTE_ORDER_MARK).strip()
    return bool(re.fullmatch(rb'[\[{]|\[\s*\{|\{\s*"[^"]*"\s*:\s*[\[{]|\[\s*\{.*,', text))


def spread_fault(here: Place, raw: bytes) -> Fault:
    found = "one JSON document is spread over the lines of the file"
    step = "write each row on one line: rftkit.data.write_rows(path, json.load(open(FILE)))"
    value = raw.decode("utf-8", "replace").strip()
    expected = "JSONL, one whole object a line"
    return here.fault("not JSONL", found, expected, f"{step}; no more was read", value=value)


def not_an_object(here: Place, row: Any) -> Fault:
    kind, steps = type_name(row), {"array": "write each element on a line of its own"}
    steps["string"] = "the row was encoded twice: call json.dumps once"
    step = steps.get(kind, 'write {"messages": [...], ...}')
    article = "an" if kind == "array" else "a"
    found = f"the line is {article} {kind}: {value_text(row)}"
    if row is None:
        found = "the line is null"
    return here.fault("not an object", found, "a JSON object", step, value=row)


def blank_lines(place: Place, first: int, last: int) -> Line:
    found = "the line is blank" if first == last else f"lines {first:,} to {last:,} are blank"
    step = "remove it: rows without an id of their own are known by their line number"
    here = Place(place.file, first)
    return Line(first, faults=[here.fault("blank line", found, "one JSON object a line", step)])
