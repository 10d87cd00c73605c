"""The contract of one row of RFT JSONL, and the way from a file's bytes to its rows: OpenAI's RFT
guide and API specification (2026), and where they are silent, the stricter choice."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from rftkit.files import printable, shorten

Row = dict[str, Any]

WRITE_IT = "write each row with rftkit.write_rows, or json.dumps(row) and a line feed"
OBJECT = "one JSON object a line, in UTF-8"
# kind -> (what was expected, the next step)
KINDS = {
    "unreadable file": ("a JSONL file", "check the path and its permissions"),
    "not JSONL": (OBJECT, WRITE_IT),
    "byte order mark": ("plain UTF-8", 'save it with encoding="utf-8", not "utf-8-sig"'),
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
    "too many rows": ("50,000 for training, 1,000 for validation", "remove the others"),
    "answer missing": ("it as in the other rows", "add it: a grader's template fails on the row"),
    "answer empty": ("an answer", "fill it in, or remove the row: no output could be right"),
    "answer with blanks": ("the bare answer", "strip it: no output would equal it"),
    "answer type": ("the other rows' type", "write it as they do: one grader reads them all"),
    "answer in the prompt": ("a prompt without it", "take it out, or: --answer-in-prompt-ok"),
    "duplicate id": ("it once", "give each row an id of its own: results are joined by it"),
    "duplicate": ("each prompt once", "remove one of the two: a copy counts double"),
    "contradiction": ("one answer to one prompt", "keep one, or tell the prompts apart"),
    "duplicate across the split": ("prompts not trained on", "remove the row from one side"),
    "near-duplicate across the split": ("less than 80% alike", "keep them on one side"),
    "group missing": ("a group for each row", "fill it in, or group by another key"),
    "group on both sides": ("each group on one side", "split with rftkit.split_by_group"),
}
# What a text must not hold, and what a prompt must not.
TEXTS = {
    "lone surrogate": "[\ud800-\udfff]",
    "damaged text": "\ufffd|â€|Ã[\u0080-\u00bf\u0152-\u0178\u2018-\u2122]",
}
PROMPTS = {
    "empty content": r"\A\s*\Z",
    "template in a prompt": r"\{\{\s{0,9}(?:item|sample)\.[^}]{0,80}\}\}",
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
    kind: str
    found: str
    key: str = ""  # a path such as messages[1].role
    value: str = ""  # what stands there, shortened
    file: str = ""
    line: int | None = None  # from 1; None: the whole file

    def __post_init__(self) -> None:
        self.expectation, self.next_step = KINDS[self.kind]

    @property
    def place(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"

    def __str__(self) -> str:
        text = f"{self.place}: {self.found}, expected {self.expectation}: {self.next_step}"
        return printable(text)  # it may quote the file

    def to_json(self) -> dict[str, Any]:
        record = vars(self) | {"message": str(self)}
        return {k: printable(v) if isinstance(v, str) else v for k, v in record.items()}


def value_text(value: Any) -> str:
    """A value as short printable JSON, for a message: `"a\\tb"`, `[1, null]`."""
    return shorten(json.dumps(value, ensure_ascii=False), 60)


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str


class Tool(BaseModel):
    function: dict[str, Any]


class RowShape(BaseModel):  # other keys may hold anything
    messages: list[Message] = Field(min_length=1)
    tools: list[Tool] = []


def readable_messages(row: Row) -> list[dict[str, Any]]:
    """The messages, where they are a list of objects; else none."""
    messages = row.get("messages")
    readable = isinstance(messages, list) and all(isinstance(m, dict) for m in messages)
    return messages if readable else []


def row_faults(row: Row) -> Iterator[Fault]:
    """Every fault of a row that shows without looking at other rows."""
    errors = []
    try:
        RowShape.model_validate(row)
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
    messages = readable_messages(row)
    role = messages[-1].get("role") if messages else None
    if role in ("system", "developer", "assistant", "tool"):
        yield Fault("last message", f'last message has role "{role}"', "messages", role)
    for path, value in walk(row):
        if isinstance(value, float) and not math.isfinite(value):
            shown = json.dumps(value)
            yield Fault("not a number", f'"{path}" is {shown}, which JSON lacks', path, shown)
        in_prompt = path.startswith("messages[") and path.endswith(".content")
        for kind, pattern in (TEXTS | PROMPTS if in_prompt else TEXTS).items():
            if isinstance(value, str) and (match := re.search(pattern, value)):
                around = value_text(value[max(0, match.start() - 15) : match.start() + 30])
                yield Fault(kind, f'"{path}" holds {around} ({kind})', path, around)


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


def read_lines(path: str | Path) -> Iterator[tuple[int | None, Row | None, list[Fault]]]:
    """(number, row or None where it could not be read, its faults) of every line of a JSONL file.
    What is wrong with the whole file has no number."""
    try:
        with open(path, "rb") as file:
            head = file.peek(1024)[:1024].removeprefix(codecs.BOM_UTF8)
            for pattern, what in STARTS.items():
                if re.match(pattern, head):
                    yield None, None, [Fault("not JSONL", f"the file is {what}", file=str(path))]
                    return
            for number, raw in enumerate(file, 1):
                row, faults = read_line(raw)
                for fault in faults:
                    fault.file, fault.line = str(path), number
                yield number, row, faults
    except OSError as error:
        found = f"cannot be read: {error.strerror}"
        yield None, None, [Fault("unreadable file", found, file=str(path))]


def read_line(raw: bytes) -> tuple[Row | None, list[Fault]]:
    """(row, its faults); no row where the line is not one JSON object."""
    faults, repeated = [], []
    if raw.startswith(codecs.BOM_UTF8):
        faults = [Fault("byte order mark", "the file starts with a byte order mark")]

    def record(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Python keeps the last of two equal keys in silence (RFC 8259, section 4)."""
        counts = Counter(key for key, _ in pairs)
        repeated.extend(key for key, count in counts.items() if count > 1)
        return dict(pairs)

    try:
        row = json.loads(raw.rstrip().decode("utf-8-sig"), object_pairs_hook=record)
    except UnicodeDecodeError as error:
        around = value_text(raw[max(0, error.start - 15) : error.start + 15].decode("latin-1"))
        kind, found = "wrong encoding", f"byte {error.start + 1} is not UTF-8, near {around}"
    except json.JSONDecodeError as error:
        around = value_text(error.doc[max(0, error.pos - 20) : error.pos + 20].strip())
        kind, found = "broken JSON", f"not JSON at column {error.colno}: {error.msg}, near {around}"
    else:
        if isinstance(row, dict):
            faults += [Fault("duplicate key", f'"{key}" stands twice', key) for key in repeated]
            return row, [*faults, *row_faults(row)]
        around = value_text(row)
        kind, found = "not an object", f"the line is {around}"
    return None, [*faults, Fault(kind, found, value=around)]
