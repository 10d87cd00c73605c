"""The contract of one row of RFT JSONL, and the way from a file's bytes to its rows.

Source: OpenAI's reinforcement fine-tuning guide and API specification (2026). `messages`
(required, ending with the user's turn) and `tools` (optional) are reserved; every other key is an
answer field. Where the documents are silent the choice is ours, and it is the stricter one.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from rftkit.files import printable, shorten

Row = dict[str, Any]

MAX_LINE_BYTES = 10_000_000  # ours: about ten times the longest context window, as text
WRITE_IT = "write each row with rftkit.write_rows, or json.dumps(row) and a line feed"
OBJECT = "one JSON object a line, in UTF-8"
# kind -> (what was expected, the next step); those of check.py stand there.
KINDS = {
    "unreadable file": ("a JSONL file", "check the path and its permissions"),
    "not JSONL": (OBJECT, WRITE_IT),
    "blank line": (OBJECT, "remove it"),
    "line too long": ("at most 10 MB", "is a line break missing?"),
    "byte order mark": ("plain UTF-8", 'save it with encoding="utf-8", not "utf-8-sig"'),
    "line ending": (r"lines that end in \n alone", 'write with newline="\\n", or: dos2unix'),
    "wrong encoding": (OBJECT, "save it as UTF-8"),
    "broken JSON": (OBJECT, WRITE_IT),
    "not an object": (OBJECT, "write each row as an object of its own"),
    "duplicate key": ("each key once", "remove one: readers drop the first without a word"),
    "messages": ("a list of messages", 'write [{"role": "user", "content": "..."}]'),
    "role": ("system, developer, user, assistant or tool", 'write "user" for the question'),
    "content": ("a string", "write the text that the model shall read (no list, no image)"),
    "tools": ("a list of function tools", "rename an answer field of this reserved name"),
    "last message": ('"user"', "end with the question; move an answer into a key of its own"),
    "not a number": ("a finite number", "write null, or leave the key out"),
    "empty content": ("a question", "fill it, or remove the row"),
    "template in a prompt": ("the row's own text", "move the template into the grader"),
    "lone surrogate": ("whole characters", "write the text anew"),
    "damaged text": ("whole characters", 'read the source anew: open(path, encoding="utf-8")'),
}
# What a text must not hold. The first two are looked for in prompts alone.
TEXTS = {
    "empty content": r"\A\s*\Z",
    "template in a prompt": r"\{\{\s{0,9}(?:item|sample)\.[^}]{0,80}\}\}",
    "lone surrogate": "[\ud800-\udfff]",
    "damaged text": "\ufffd|â€|Ã[\u0080-\u00bf\u0152-\u0178\u2018-\u2122]",
}
# How a file starts that was not written row by row.
STARTS = {
    rb"\Z": "empty",
    rb"\x1f\x8b": "gzip: unpack it (gunzip -k FILE)",
    rb"PAR1": "parquet: datasets.Dataset.from_parquet(FILE).to_json(OUT) writes JSONL",
    rb"[^\0]*\0": "UTF-16, or no text: save it as UTF-8",
    rb"\s*(\[|\{\s*\n)": "one JSON document: read it with json.load",
    rb"[^{\n]*,": "a table (CSV): read it with csv.DictReader",
}


@dataclass
class Fault:
    """A fault, or (severity "note") something worth knowing that needs no change.

    `line` counts from 1, and is None where the whole file is meant. `key` is a path such as
    `messages[1].role`; `value` is what stands there, shortened.
    """

    kind: str
    found: str
    key: str = ""
    value: str = ""
    file: str = ""
    line: int | None = None
    severity: str = "fault"
    expectation: str = field(init=False)
    next_step: str = field(init=False)

    def __post_init__(self) -> None:
        self.expectation, self.next_step = KINDS[self.kind]

    @property
    def place(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"

    def __str__(self) -> str:
        text = f"{self.place}: {self.found}, expected {self.expectation}: {self.next_step}"
        return printable(text)  # it may quote the file

    def to_json(self) -> dict[str, Any]:
        record = asdict(self) | {"message": str(self)}
        return {k: printable(v) if isinstance(v, str) else v for k, v in record.items()}


def value_text(value: Any) -> str:
    """A value as short printable JSON, for a message: `"a\\tb"`, `[1, null]`."""
    return shorten(json.dumps(value, ensure_ascii=False), 60)


# One row.


@cache
def row_model() -> Any:
    """The shape of a row as a pydantic model; other keys may hold anything."""
    from pydantic import BaseModel, Field

    class Message(BaseModel):
        role: Literal["system", "developer", "user", "assistant", "tool"]
        content: str

    class Tool(BaseModel):
        function: dict[str, Any]

    class RowModel(BaseModel):
        messages: list[Message] = Field(min_length=1)
        tools: list[Tool] = []

    return RowModel


def readable_messages(row: Row) -> list[dict[str, Any]]:
    """The messages, where they are a list of objects; else none."""
    messages = row.get("messages")
    readable = isinstance(messages, list) and all(isinstance(m, dict) for m in messages)
    return messages if readable else []


def row_faults(row: Row) -> Iterator[Fault]:
    """Every fault of a row that shows without looking at other rows."""
    yield from shape_faults(row)
    messages = readable_messages(row)
    role = messages[-1].get("role") if messages else None
    if role in ("system", "developer", "assistant", "tool"):
        yield Fault("last message", f'last message has role "{role}"', "messages", role)
    for path, value in walk(row):
        if isinstance(value, float) and not math.isfinite(value):
            shown = json.dumps(value)
            yield Fault("not a number", f'"{path}" is {shown}, which JSON lacks', path, shown)
        for kind, pattern in TEXTS.items() if isinstance(value, str) else ():
            in_prompt = path.startswith("messages[") and path.endswith(".content")
            match = re.search(pattern, value)
            if match and (in_prompt or kind in ("lone surrogate", "damaged text")):
                around = value_text(value[max(0, match.start() - 15) : match.start() + 30])
                yield Fault(kind, f'"{path}" holds {around} ({kind})', path, around)


def shape_faults(row: Row) -> Iterator[Fault]:
    from pydantic import ValidationError

    try:
        row_model().model_validate(row)
        return
    except ValidationError as caught:
        errors = caught.errors(include_url=False)
    for error in errors:
        *above, last = error["loc"]
        if last == "content" and row["messages"][above[1]].get("tool_calls"):
            continue  # an assistant that calls a tool may say nothing
        kind = "tools" if "tools" in error["loc"] else last if last in KINDS else "messages"
        key = re.sub(r"\.(\d+)", r"[\1]", ".".join(map(str, error["loc"])))
        value = "" if error["type"] == "missing" else value_text(error["input"])
        yield Fault(kind, f'"{key}" is {value or "missing"}', key, value)


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf inside a row as (path, value), empty containers too."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from walk(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value:
        for place, inner in enumerate(value):
            yield from walk(inner, f"{path}[{place}]")
    else:
        yield path, value


# From bytes to rows.


def read_lines(path: str | Path) -> Iterator[tuple[int | None, Row | None, list[Fault]]]:
    """(number, row or None where it could not be read, its faults) of every line of a JSONL file.

    Holds one line in memory. What is wrong with the whole file has no number.
    """
    try:
        with open(path, "rb") as file:
            head = file.peek(1024)[:1024].removeprefix(codecs.BOM_UTF8)
            starts = [what for pattern, what in STARTS.items() if re.match(pattern, head)]
            for number, raw in enumerate([] if starts else file, 1):
                row, faults = read_line(raw, first=number == 1)
                for fault in faults:
                    fault.file, fault.line = str(path), number
                yield number, row, faults
        for what in starts[:1]:
            yield None, None, [Fault("not JSONL", f"the file is {what}", file=str(path))]
    except OSError as error:
        found = f"cannot be read: {error.strerror}"
        yield None, None, [Fault("unreadable file", found, file=str(path))]


def read_line(raw: bytes, first: bool) -> tuple[Row | None, list[Fault]]:
    """(row, its faults); no row where the line is not one JSON object."""
    faults, repeated = [], []
    if first and raw.startswith(codecs.BOM_UTF8):
        faults += [Fault("byte order mark", "the file starts with a byte order mark")]
    if first and raw.endswith(b"\r\n"):
        faults += [Fault("line ending", "the line ends in CR LF (Windows)")]

    def record(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Python keeps the last of two equal keys in silence (RFC 8259, section 4)."""
        counts = Counter(key for key, _ in pairs)
        repeated.extend(key for key, count in counts.items() if count > 1)
        return dict(pairs)

    kind, found, around = "blank line", "the line is blank", ""
    if len(raw) > MAX_LINE_BYTES:
        kind, found = "line too long", f"the line is {len(raw) / 1e6:.0f} MB long"
    elif raw.strip():
        try:
            row = json.loads(raw.rstrip().decode("utf-8-sig"), object_pairs_hook=record)
            if isinstance(row, dict):
                keys = [Fault("duplicate key", f'"{key}" stands twice', key) for key in repeated]
                return row, [*faults, *keys, *row_faults(row)]
            kind, found, around = "not an object", "the line is", value_text(row)
        except UnicodeDecodeError as error:
            around = value_text(raw[max(0, error.start - 15) : error.start + 15].decode("latin-1"))
            kind, found = "wrong encoding", f"byte {error.start + 1} is not UTF-8, near"
        except json.JSONDecodeError as error:
            around = value_text(error.doc[max(0, error.pos - 20) : error.pos + 20].strip())
            kind, found = "broken JSON", f"not JSON at column {error.colno}: {error.msg}, near"
    return None, [*faults, Fault(kind, f"{found} {around}".strip(), value=around)]
