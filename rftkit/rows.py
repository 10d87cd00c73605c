"""Rows of the RFT JSONL: read, write, name, split.

A row is a plain dict: `messages` (what the model sees), optionally `tools`, and answer fields
(what the grader sees, and the model never).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from rftkit.files import UserError, plural, printable, shorten, write_text

# ------------------------------------------------------------------------------------------
# from rftkit.data.faults:
# One fault in a file: where, what stands there, what was expected, what to do next.

SHOWN_CHARACTERS = 60
MAX_FAULTS_A_ROW = 50


@dataclass(frozen=True)
class Fault:
    """A fault, or (severity "note") something worth knowing that needs no change.

    file, line   line counts from 1; None where the file as a whole is meant
    key          the path inside the row, such as `messages[1].role`; "" for the whole line
    value        what stands there, shortened and printable
    found        the same as half a sentence: `"messages" ends with role "assistant"`
    kind         a few words that all faults of this sort share, for counting
    """

    file: str
    line: int | None
    key: str
    value: str
    expectation: str
    next_step: str
    kind: str
    found: str
    severity: str = "fault"

    @property
    def place(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"

    def __str__(self) -> str:
        return f"{self.place}: {self.found}, expected {self.expectation}: {self.next_step}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"message": str(self)}

    def as_error(self) -> UserError:
        return UserError(str(self))


@dataclass(frozen=True)
class Place:
    """A file, or a line of it; makes the faults that are found there."""

    file: str
    line: int | None = None

    def fault(
        self,
        kind: str,
        found: str,
        expected: str,
        next_step: str,
        key: str = "",
        value: Any = None,
        severity: str = "fault",
    ) -> Fault:
        shown = "" if value is None else value_text(value)
        # Words that come from the file may hold control characters: found is made printable too.
        found, next_step, key = printable(found), printable(next_step), printable(key)
        return Fault(self.file, self.line, key, shown, expected, next_step, kind, found, severity)

    def note(self, kind: str, found: str, expected: str, next_step: str, **where: Any) -> Fault:
        return self.fault(kind, found, expected, next_step, severity="note", **where)


def bounded(faults: Iterable[Fault]) -> Iterator[Fault]:
    """The faults of one row, all of them up to MAX_FAULTS_A_ROW: a row may hold a million NaN."""
    counts: Counter[str] = Counter()
    for fault in faults:
        counts[fault.severity] += 1
        if counts[fault.severity] <= MAX_FAULTS_A_ROW:
            yield fault
        elif counts[fault.severity] == MAX_FAULTS_A_ROW + 1:
            found = f"the row has more than {MAX_FAULTS_A_ROW} {fault.severity}s; the next:"
            yield replace(fault, found=f"{found} {fault.found}")


def summarized(notes: Iterable[Fault]) -> list[Fault]:
    """One note of each sort a file: the first, with the number of rows that it stands for."""
    alike: dict[tuple[str, str, str], list[Fault]] = {}
    for note in notes:
        key = re.sub(r"\[\d+\]", "[]", note.key)
        alike.setdefault((note.file, note.kind, key), []).append(note)
    summary = []
    for first, *others in alike.values():
        more = f" (and {plural(len(others), 'more such place')})" if others else ""
        summary.append(replace(first, found=first.found + more))
    return summary


def place_of(path: str | Path, line: int | None = None) -> Place:
    return Place(printable(str(path)), line)


def value_text(value: Any, limit: int = SHOWN_CHARACTERS) -> str:
    """A value as short printable JSON, for a message.

    >>> value_text("a\\tb"), value_text("x" * 100, limit=8), value_text([1, None])
    ('"a\\\\tb"', '"xxxxxxx...', '[1, null]')
    """
    if isinstance(value, str):
        # Cut first: a value of 10 MB is not escaped in full for the sake of 60 characters.
        value = value[: limit + 1]
    elif isinstance(value, list):
        value = value[: limit + 1]
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return shorten(text, limit)


def type_name(value: Any) -> str:
    """The JSON name of a value's type.

    >>> type_name({}), type_name(1.5), type_name(None)
    ('object', 'number', 'null')
    """
    if value is None:
        return "null"
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "array"}
    return names.get(type(value), "object")


# ------------------------------------------------------------------------------------------
# from rftkit.data.contract:
# The contract of one row: what `messages` and `tools` must look like.
#
# Source: OpenAI's reinforcement fine-tuning guide and API specification (2026). `messages`
# (required) and `tools` (optional) are the reserved keys; every other key is an answer field, which
# a grader reads as `{{item.KEY}}` and the model never sees. The last message has the role `user`.
# Where the documents are silent the choice is ours, and it is the stricter one.

RESERVED_KEYS = ("messages", "tools")
ID_KEYS = ("case_id", "row_id")
ROLES = ("system", "developer", "user", "assistant", "tool")
MESSAGE_KEYS = {"role", "content", "name", "tool_calls", "tool_call_id", "refusal"}

ROLE_OF = {"human": "user", "person": "user", "gpt": "assistant", "bot": "assistant"}
ROLE_OF |= {"model": "assistant", "ai": "assistant", "function": "tool"}
OTHER_FORMATS = {
    ("prompt", "completion"): "a prompt/completion row",
    ("prompt", "chosen"): "a preference (DPO) row",
    ("chosen", "rejected"): "a preference (DPO) row",
    ("conversations",): "a ShareGPT row",
    ("instruction", "output"): "an Alpaca row",
    ("custom_id", "body"): "a line of a batch request",
}
EXAMPLE = '{"messages": [{"role": "user", "content": "..."}], "reference_answer": "..."}'


def row_faults(row: dict[str, Any], here: Place) -> Iterator[Fault]:
    """Yield every fault (and note) of a row that shows without looking at other rows."""
    if "messages" in row:
        yield from messages_faults(row["messages"], here)
    else:
        yield no_messages(row, here)
    if "tools" in row:
        yield from tools_faults(row["tools"], here)


def has_readable_messages(row: dict[str, Any]) -> bool:
    """True where `messages` is a list of objects: enough to read a prompt from it."""
    messages = row.get("messages")
    return isinstance(messages, list) and all(isinstance(m, dict) for m in messages)


def no_messages(row: dict[str, Any], here: Place) -> Fault:
    found, step = 'the row has no "messages"', f"write {EXAMPLE}"
    close = [key for key in row if key.strip().lower() in ("messages", "message", "chat")]
    formats = [name for keys, name in OTHER_FORMATS.items() if all(key in row for key in keys)]
    if close:
        found += f", but {value_text(close[0])}"
        step = f'rename {value_text(close[0])} to "messages"'
    elif formats:
        found += f": it looks like {formats[0]}"
        step = f"the question becomes the user's message, the answer a key of its own: {EXAMPLE}"
    return here.fault("messages missing", found, "a list of messages", step, key="messages")


def messages_faults(messages: Any, here: Place) -> Iterator[Fault]:
    where = {"key": "messages", "value": messages}
    if not isinstance(messages, list):
        found = f'"messages" is of type {type_name(messages)}: {value_text(messages)}'
        step = 'write [{"role": "user", "content": "..."}]'
        if isinstance(messages, dict):
            step = "put the one message into a list: [ ... ]"
        elif isinstance(messages, str) and messages.lstrip().startswith("["):
            step = "the list was encoded twice: json.loads the text first"
        yield here.fault("messages not a list", found, "a list of messages", step, **where)
        return
    if not messages:
        step = 'write [{"role": "user", "content": "..."}]'
        yield here.fault("messages empty", '"messages" is empty', "a user's message", step, **where)
        return
    for index, message in enumerate(messages):
        yield from message_faults(message, f"messages[{index}]", here)
    last = messages[-1]
    role = last.get("role") if isinstance(last, dict) else None
    if role in ROLES and role != "user":
        found = f'"messages" ends with role {value_text(role)}'
        step = "end with the question that the model shall answer"
        if role == "assistant":
            step = "move the answer into a key of its own"
        yield here.fault("last message", found, '"user"', step, key="messages", value=role)


def message_faults(message: Any, path: str, here: Place) -> Iterator[Fault]:
    if not isinstance(message, dict):
        found = f'"{path}" is of type {type_name(message)}: {value_text(message)}'
        step = 'write {"role": "user", "content": "..."}'
        expected = "an object with role and content"
        yield here.fault("message not an object", found, expected, step, key=path, value=message)
        return
    if "from" in message and "value" in message and "role" not in message:
        found = f'"{path}" has "from" and "value" (ShareGPT)'
        step = 'rename "from" to "role" and "value" to "content"; "human" becomes "user"'
        yield here.fault("role", found, '"role" and "content"', step, key=path, value=message)
        return
    yield from role_faults(message, f"{path}.role", here)
    yield from content_faults(message, f"{path}.content", here)
    for key in sorted(message.keys() - MESSAGE_KEYS):
        found = f'"{path}" has a key {value_text(key)}'
        step = 'remove it; an answer field belongs beside "messages", where {{item.KEY}} finds it'
        expected = "role and content"
        yield here.note("message key", found, expected, step, key=f"{path}.{key}")


def role_faults(message: dict[str, Any], path: str, here: Place) -> Iterator[Fault]:
    role, expected = message.get("role"), "one of " + ", ".join(ROLES)
    if isinstance(role, str) and role in ROLES:
        return
    found = f'"{path}" is {value_text(role)}' if "role" in message else f'"{path}" is missing'
    step = 'write "user" for what the model is asked'
    if isinstance(role, str):
        known = ROLE_OF.get(role.strip().lower(), role.strip().lower())
        step = f'write "{known}"' if known in ROLES else step
    yield here.fault("role", found, expected, step, key=path, value=role)


def content_faults(message: dict[str, Any], path: str, here: Place) -> Iterator[Fault]:
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return  # an assistant that calls a tool may say nothing
    where = {"key": path, "value": content}
    if "content" not in message:
        step = "write the message's text as a string"
        yield here.fault("content", f'"{path}" is missing', "a string", step, **where)
    elif isinstance(content, list):
        found = f'"{path}" is a list of parts: {value_text(content)}'
        step = "join the text parts into one string; rftkit trains on text, not on images"
        yield here.fault("content", found, "a string", step, **where)
    elif not isinstance(content, str):
        found = f'"{path}" is of type {type_name(content)}: {value_text(content)}'
        step = "write the text that the model shall read"
        yield here.fault("content", found, "a string", step, **where)
    elif not content.strip():
        found = f'"{path}" is empty'
        step = "the field that fills it was probably missing: fill it, or remove the row"
        yield here.fault("empty content", found, "some text", step, **where)
    else:
        yield from text_faults(content, path, here)
        yield from template_faults(content, path, here)


def template_faults(content: str, path: str, here: Place) -> Iterator[Fault]:
    """A prompt that still holds the template's own words: a fill-in that never ran."""
    left = re.search(r"\{\{\s{0,9}(?:item|sample)\.[^}]{0,80}\}\}", content)
    if left:
        found = f'"{path}" holds {value_text(left.group())}, which nobody fills in'
        step = "templates belong into the grader: write the row's own text here"
        yield here.fault("template in a prompt", found, "plain text", step, key=path, value=content)


def text_faults(text: str, path: str, here: Place) -> Iterator[Fault]:
    """Text that lost characters on its way, read once in a wrong encoding."""
    damage = None
    if "\ufffd" in text:
        damage = text.index("\ufffd")
        found = f'"{path}" holds a replacement character (U+FFFD)'
    elif "Ã" in text or "â€" in text:
        twice = re.search("Ã[\u0080-\u00bf\u0152-\u0178\u2018-\u2122]|â€", text)
        if twice:
            damage = twice.start()
            found = f'"{path}" holds UTF-8 that was read as latin-1'
    if damage is not None:
        around = text[max(0, damage - 15) : damage + 15]
        found = f"{found}: {value_text(around)}"
        step = 'read the source anew with its own encoding: open(path, encoding="utf-8")'
        yield here.fault("damaged text", found, "whole characters", step, key=path, value=around)


def tools_faults(tools: Any, here: Place) -> Iterator[Fault]:
    step = 'write [{"type": "function", "function": {"name": ..., "parameters": {...}}}]'
    expected = "a list of function tools"
    if not isinstance(tools, list):
        found = f'"tools" is of type {type_name(tools)}: {value_text(tools)}'
        step += '; "tools" is a reserved key: rename an answer field of that name'
        yield here.fault("tools", found, expected, step, key="tools", value=tools)
        return
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            path = f"tools[{index}]"
            found = f'"{path}" names no function: {value_text(tool)}'
            yield here.fault("tools", found, expected, step, key=path, value=tool)


# ------------------------------------------------------------------------------------------
# from rftkit.data.json_errors:
# Why a line is not JSON, said in words that help: the mistakes that people make by hand.

WRITE_IT = "write rows with rftkit.data.write_rows, or json.dumps(row) and a line break"


def explain_json_error(
    here: Place, text: str, error: json.JSONDecodeError, line_is_whole: bool
) -> Fault:
    """Turn the JSON reader's complaint into cause and cure.

    text           the line
    line_is_whole  it ends in a line break; the last line of a torn file does not
    """
    found, step = _cause(text, error.pos, error.msg, line_is_whole)
    around = text[max(0, error.pos - 20) : error.pos + 20].strip()
    found = f"broken JSON at column {error.pos + 1}: {found}"
    if around:
        found += f", near {value_text(around)}"
    return here.fault("broken JSON", found, "one JSON object", step, value=around)


def _cause(text: str, at: int, message: str, line_is_whole: bool) -> tuple[str, str]:
    start = text[:200].lstrip()
    here = text[at : at + 20]
    if not start.startswith(("{", "[")):
        return _cause_of_other_text(start)
    if re.search(r",\s*[}\]]", text[max(0, at - 20) : at + 3]) and here[:1] in ("}", "]", ","):
        return "a comma before the closing bracket", "remove the last comma"
    if here.startswith("'"):
        return "single quotes", f"JSON wants double quotes; print(row) is not JSON: {WRITE_IT}"
    if here.startswith(("“", "”", "„", "‘", "’")):
        return "typographic quotes", 'a text editor replaced the straight quotes ("): restore them'
    if here.startswith(("None", "True", "False", "nan", "inf")):
        return "a Python word", f"JSON says null, true, false: {WRITE_IT}"
    if here.startswith(("//", "/*", "#")):
        return "a comment", "JSON has no comments: remove it"
    if message == "Extra data":
        return _cause_of_extra_data(text, at)
    if message.startswith("Invalid control character"):
        step = r"write line breaks in a text as \n and tabs as \t: json.dumps does"
        return "a raw tab or control character inside a string", step
    if message.startswith("Invalid \\"):
        step = r"write each backslash twice (C:\\data, \\frac): json.dumps does"
        return "a single backslash inside a string", step
    if message.startswith("Unterminated string") or not text[at:].strip():
        if line_is_whole:
            step = rf"the row goes on in the next line: a line break in a text is \n; {WRITE_IT}"
            return "the line ends inside the object", step
        step = "the file was cut off: write it again (write beside, then rename)"
        return "the file ends inside the object", step
    if message.startswith("Expecting ',' delimiter"):
        step = r"add it; a double quote inside a text is written \""
        return "a comma is missing, or a double quote stands inside a text", step
    if message.startswith("Expecting property name"):
        return "a key without double quotes", f"put it into double quotes: {WRITE_IT}"
    if message.startswith("Expecting ':'"):
        return "a colon is missing after a key", f"add it, or: {WRITE_IT}"
    return message[:1].lower() + message[1:], WRITE_IT


def _cause_of_other_text(start: str) -> tuple[str, str]:
    if start.startswith(("//", "#", "/*")):
        return "a comment", "JSON has no comments: remove the line"
    if start.startswith("```"):
        return "a Markdown fence", "remove the lines with ``` around the rows"
    if start.startswith("data:"):
        return 'the line starts with "data:"', "remove the stream's prefix from each line"
    if start.startswith("<"):
        return "the line looks like HTML or XML", "the download may be an error page: open it"
    if start.startswith("version https://git-lfs"):
        return "a Git LFS pointer, not the file itself", "fetch the file: git lfs pull"
    if start.startswith(("<<<<<<<", "=======", ">>>>>>>")):
        return "a merge conflict's marker", "resolve the conflict in the file"
    if "," in start or "\t" in start or ";" in start:
        step = (
            f"the file looks like a table (CSV): turn each record into an object, then {WRITE_IT}"
        )
        return "the line does not start with {", step
    return "the line does not start with {", WRITE_IT


def _cause_of_extra_data(text: str, at: int) -> tuple[str, str]:
    rest = text[at : at + 20]
    if "\r" in text[max(0, at - 3) : at]:
        return "lines end in CR alone (old Macintosh)", r"write with newline='\n'"
    if rest.startswith(","):
        return "a comma after the object", "remove it: rows are parted by line breaks alone"
    if rest.startswith(("{", "[")):
        return "two objects on one line", "put each on a line of its own"
    return "text after the object", "remove it"


# ------------------------------------------------------------------------------------------
# from rftkit.data.lines:
# From bytes to rows, a line at a time: what can go wrong before a row is a row.
#
# `read_lines` streams: it holds one line in memory, whatever the file's size, and never stops
# at a fault. Strict reading (`rows.read_rows`) raises the first fault it hands out, the check
# (`check.check_file`) collects them all.
#
# The limits below are our own choice; OpenAI documents a number of rows, not of bytes.

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


# ------------------------------------------------------------------------------------------
# from rftkit.data.rows:
# Rows of the RFT JSONL: read, write, name, split.
#
# A row is a plain dict: `messages` (what the model sees), optionally `tools`, and answer fields
# (what the grader sees, and the model never).

Row = dict[str, Any]


def read_rows(path: str | Path) -> list[Row]:
    """Read a JSONL file strictly: the first fault of any row raises, so what returns is sound.

    Faults that show only between rows (duplicates, leaks) are `check_file`'s business.

    Raises UserError naming `file:line`, what stands there, what was expected, what to do next.
    """
    rows = []
    name = place_of(path).file
    for line in read_lines(path):
        if line.row is not None:
            contract = bounded(row_faults(line.row, Place(name, line.number)))
            line.faults += (fault for fault in contract if fault.severity == "fault")
            rows.append(line.row)
        if line.faults:
            raise line.faults[0].as_error()
    return rows


def write_rows(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as JSONL: the same rows give the same bytes (UTF-8, keys in order, "\\n").

    The file is written beside and renamed: a reader finds the old one or the new one, whole.
    Folders are made. Raises UserError where a value is not JSON (NaN, a set, a lone surrogate).
    """
    lines = [row_line(row, place_of(path, number)) for number, row in enumerate(rows, 1)]
    try:
        write_text(path, "".join(lines))
    except OSError as error:
        reason = error.strerror or str(error)
        step = "check the path, its permissions and the space left"
        raise UserError(f"{place_of(path).file}: cannot be written ({reason}): {step}") from error


def row_line(row: Mapping[str, Any], here: Place) -> str:
    """One row as a line of JSONL, "\\n" included; keys keep their order."""
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
        return text + "\n"
    except UnicodeEncodeError as error:
        near = value_text(text[max(0, error.start - 20) : error.start + 20])
        found = f"the row holds half of a character (a lone surrogate) near {near}"
        fault = here.fault("lone surrogate", found, "whole characters", "write the text anew")
    except (TypeError, ValueError, RecursionError) as error:
        found = f"the row cannot stand as JSON ({error})"
        step = "NaN becomes null, a set a list, an array .tolist()"
        fault = here.fault("not JSON", found, "strings, numbers, lists, objects", step)
    raise fault.as_error()


def row_ids(rows: Sequence[Row]) -> list[str]:
    """Each row's `case_id` or `row_id` as text; without one its line number (from 1) serves.

    Call it on the rows as they were read: after a shuffle the line numbers are others.
    Raises UserError where two rows share an id.
    """
    ids: list[str] = []
    first: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        own = own_id(row)
        identity = str(number) if own is None else own
        if identity in first:
            raise UserError(
                f"rows {first[identity]} and {number} share the id {value_text(identity)}, "
                f"expected an id for each row: rename one, or remove the copy"
            )
        first[identity] = number
        ids.append(identity)
    return ids


def own_id(row: Row) -> str | None:
    """The id that a row carries (text or a whole number), or None."""
    for key in ID_KEYS:
        value = row.get(key)
        if isinstance(value, str) and value.strip():
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
    return None


def row_ids_note(rows: Sequence[Row]) -> str:
    """The sentence to say aloud where line numbers serve as ids; empty where all carry one."""
    without = [number for number, row in enumerate(rows, 1) if own_id(row) is None]
    if not without:
        return ""
    return (
        f"{len(without):,} of {plural(len(rows), 'row')} carry neither case_id nor row_id "
        f"(first: row {without[0]}): the line number serves as id"
    )


def answer_fields(row: Row) -> Row:
    """Every key but `messages` and `tools`: what a grader reads as `{{item.KEY}}`."""
    return {key: value for key, value in row.items() if key not in RESERVED_KEYS}


def messages_text(row: Row) -> str:
    """The text of all messages, one after the other, without their roles."""
    texts = []
    for message in row.get("messages") or []:
        content = message.get("content") if isinstance(message, dict) else None
        parts = content if isinstance(content, list) else [content]
        for part in parts:
            text = part.get("text") if isinstance(part, dict) else part
            if isinstance(text, str):
                texts.append(text)
    return "\n".join(texts)


def messages_digest(row: Row) -> bytes:
    """16 bytes that are equal where two rows have the same messages, roles included."""
    return digest_of(row.get("messages"))


def digest_of(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode("ascii"), digest_size=16).digest()


def sha256_of(path: str | Path) -> str:
    """The file's SHA-256 in hex. Raises UserError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        place = place_of(path).file
        raise UserError(f"{place}: cannot be read ({reason}): check the path") from error


def split_by_group(
    rows: Sequence[Row], group_by: str, shares: Mapping[str, float], seed: int
) -> dict[str, list[Row]]:
    """Split rows so that no group, and no copy of a prompt, stands on two sides.

    A random split of cases flatters a model: it meets the same answers again. Here all rows of a
    group (say, one gene) go to one side, and groups that share a row's messages go together.

    group_by  the answer field that names the group
    shares    side -> share of the rows, adding up to 1: {"train": 0.8, "validation": 0.2}
    seed      the same rows, whatever their order, and the same seed give the same sides

    Groups are dealt out from the largest to the smallest; each goes to a side drawn at random,
    in proportion to the room left there, among those with room for it. Rows keep their order.
    Raises UserError for a row without the key, shares that do not add up to 1, too few groups.
    """
    if not shares or any(s <= 0 for s in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        raise UserError(f"shares are {dict(shares)}, expected positive shares that add up to 1")
    bundles = _bundles(rows, group_by)
    if len(bundles) < len(shares):
        raise UserError(
            f"{plural(len(bundles), 'group')} by {value_text(group_by)}, expected at least "
            f"{len(shares)} for {', '.join(shares)}: group by another key, or ask for fewer sides"
        )
    dealt = _deal(bundles, len(rows), shares, random.Random(seed))
    sides = {side: [rows[i] for i in sorted(sum(dealt[side], []))] for side in shares}
    assert_disjoint(sides, group_by)
    return sides


def _deal(
    bundles: list[list[int]], n_rows: int, shares: Mapping[str, float], rng: random.Random
) -> dict[str, list[list[int]]]:
    room = {side: share * n_rows for side, share in shares.items()}
    dealt: dict[str, list[list[int]]] = {side: [] for side in shares}
    for bundle in bundles:
        fitting = [side for side in shares if room[side] >= len(bundle)]
        if fitting:
            side = rng.choices(fitting, weights=[room[s] for s in fitting])[0]
        else:
            side = max(shares, key=room.__getitem__)
        dealt[side].append(bundle)
        room[side] -= len(bundle)
    for side in shares:  # no side stays empty while another can spare a small group
        if not dealt[side]:
            richest = max(shares, key=lambda s: len(dealt[s]))
            dealt[side].append(dealt[richest].pop())
    return dealt


def _bundles(rows: Sequence[Row], group_by: str) -> list[list[int]]:
    """Row indices that must stay together, largest bundle first; ties by content, not by order."""
    parent: dict[Any, Any] = {}

    def root(node: Any) -> Any:
        while parent.setdefault(node, node) != node:
            parent[node] = node = parent[parent[node]]
        return node

    groups = []
    for number, row in enumerate(rows, 1):
        group = group_of(row, group_by)
        if group is None:
            raise UserError(
                f"row {number} has no {value_text(group_by)} to group by, expected a value: "
                f"fill it in, or group by another key ({', '.join(answer_fields(row)) or 'none'})"
            )
        groups.append(group)
        parent[root(messages_digest(row))] = root(group)
    members: dict[Any, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[root(group)].append(index)
    return sorted(members.values(), key=lambda m: (-len(m), min(groups[i] for i in m)))


def group_of(row: Row, group_by: str) -> str | None:
    """The row's group as text; None where the key is missing, null or empty."""
    value = row.get(group_by)
    if isinstance(value, str):
        return value if value.strip() else None
    return None if value in (None, [], {}) else json.dumps(value, sort_keys=True)


def assert_disjoint(sides: Mapping[str, Sequence[Row]], group_by: str) -> None:
    """Raise AssertionError where a group, or a prompt word for word, stands on two sides."""
    side_of: dict[Any, str] = {}
    for side, rows in sides.items():
        for row in rows:
            for what in (group_of(row, group_by), messages_digest(row)):
                if what is not None and side_of.setdefault(what, side) != side:
                    shown = value_text(row.get(group_by))
                    raise AssertionError(f"{shown} stands in {side_of[what]} and in {side}")
