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
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from rftkit.files import printable, shorten

Row = dict[str, Any]


@dataclass
class Fault:
    """A fault, or (severity "note") something worth knowing that needs no change.

    `line` counts from 1, and is None where the whole file is meant. `key` is a path such as
    `messages[1].role`. `kind` is what all faults of this sort share.
    """

    kind: str
    found: str
    expectation: str
    next_step: str
    key: str = ""
    value: str = ""  # what stands there, shortened
    severity: str = "fault"
    file: str = ""
    line: int | None = None

    def __post_init__(self) -> None:
        for name in ("found", "next_step", "key", "value", "file"):  # they may quote the file
            setattr(self, name, printable(getattr(self, name)))

    @property
    def place(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"

    def __str__(self) -> str:
        return f"{self.place}: {self.found}, expected {self.expectation}: {self.next_step}"

    def at(self, file: str | Path, line: int | None) -> Fault:
        return replace(self, file=str(file), line=line)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"message": str(self)}


def value_text(value: Any, limit: int = 60) -> str:
    """A value as short printable JSON, for a message.

    >>> value_text("a\\tb"), value_text("x" * 100, limit=8), value_text([1, None])
    ('"a\\\\tb"', '"xxxxxx…', '[1, null]')
    """
    if isinstance(value, str | list):  # not 10 MB of JSON for the sake of 60 characters
        value = value[: limit + 1]
    try:
        return shorten(json.dumps(value, ensure_ascii=False), limit)
    except (TypeError, ValueError, RecursionError):
        return type(value).__name__


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


# What was expected where the shape is wrong, and the next step.
SHAPES = {
    "messages": ("a list of messages", 'write [{"role": "user", "content": "..."}]'),
    "role": ("system, developer, user, assistant or tool", 'write "user" for the question'),
    "content": ("a string", "write the text that the model shall read (no list, no image)"),
    "tools": ("a list of function tools", "rename an answer field of this reserved name"),
}
# What a text must not hold, and the next step. The first two are looked for in prompts alone.
TEXTS = {
    "empty content": (r"\A\s*\Z", "no text", "fill it, or remove the row"),
    "template in a prompt": (
        r"\{\{\s{0,9}(?:item|sample)\.[^}]{0,80}\}\}",
        "a template that nobody fills in",
        "templates belong into the grader: write the row's own text here",
    ),
    "lone surrogate": ("[\ud800-\udfff]", "half of a character", "write the text anew"),
    "damaged text": (
        "\ufffd|â€|Ã[\u0080-\u00bf\u0152-\u0178\u2018-\u2122]",
        "UTF-8 that was read in another encoding",
        'read the source anew: open(path, encoding="utf-8")',
    ),
}


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
        found, step = f'last message has role "{role}"', "end with what the model shall answer"
        if role == "assistant":
            step = "move the answer into a key of its own"
        yield Fault("last message", found, '"user"', step, "messages", role)
    for path, value in walk(row):
        if isinstance(value, float) and not math.isfinite(value):
            found = f'"{path}" is {json.dumps(value)}, which JSON does not know'
            step = "write null, or leave the key out"
            yield Fault("not a number", found, "a finite number", step, path, str(value))
        elif isinstance(value, str):
            yield from text_faults(path, value)


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
        kind = "tools" if "tools" in error["loc"] else last if last in SHAPES else "messages"
        key = re.sub(r"\.(\d+)", r"[\1]", ".".join(map(str, error["loc"])))
        value = "" if error["type"] == "missing" else value_text(error["input"])
        yield Fault(kind, f'"{key}" is {value or "missing"}', *SHAPES[kind], key, value)


def text_faults(path: str, text: str) -> Iterator[Fault]:
    in_prompt = path.startswith("messages[") and path.endswith(".content")
    for kind, (pattern, what, step) in TEXTS.items():
        match = re.search(pattern, text)
        if match and (in_prompt or kind in ("lone surrogate", "damaged text")):
            around = value_text(text[max(0, match.start() - 15) : match.start() + 30])
            yield Fault(kind, f'"{path}" holds {what}: {around}', "plain text", step, path, around)


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


# From bytes to rows.

OBJECT = "one JSON object a line, in UTF-8"
WRITE_IT = "write each row with rftkit.write_rows, or json.dumps(row) and a line feed"
MAX_LINE_BYTES = 10_000_000  # ours: about ten times the longest context window, as text
# How a file starts that was not written row by row: what it is, and the next step.
STARTS = {
    rb"\Z": ("empty", "check the program that wrote it"),
    rb"\x1f\x8b": ("gzip", "unpack it first: gunzip -k FILE"),
    rb"PAR1": ("parquet", "datasets.Dataset.from_parquet(FILE).to_json(OUT) writes JSONL"),
    rb"[^\0]*\0": ("UTF-16, or no text", "save it as UTF-8, or name the JSONL file itself"),
    rb"\s*(\[|\{\s*\n)": ("one JSON document", f"read it with json.load, then {WRITE_IT}"),
    rb"[^{\n]*,": ("a table (CSV)", f"read it with csv.DictReader, then {WRITE_IT}"),
}


def read_lines(path: str | Path) -> Iterator[tuple[int, Row | None, list[Fault]]]:
    """(number, row or None where it could not be read, its faults) of every line of a JSONL file.

    Holds one line in memory, and never raises. What is wrong with the whole file has number 0.
    """
    try:
        with open(path, "rb") as file:
            head = file.peek(1024)[:1024].removeprefix(codecs.BOM_UTF8)
            starts = [words for pattern, words in STARTS.items() if re.match(pattern, head)]
            for number, raw in enumerate([] if starts else file, 1):
                row, faults = read_line(raw, first=number == 1)
                yield number, row, [fault.at(path, number) for fault in faults]
        for what, step in starts[:1]:
            yield 0, None, [Fault("not JSONL", f"the file is {what}", OBJECT, step).at(path, None)]
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        reason = getattr(error, "strerror", None) or str(error)
        words = f"cannot be read ({reason})", "a JSONL file", "check the path and its permissions"
        yield 0, None, [Fault("unreadable file", *words).at(path, None)]


def read_line(raw: bytes, first: bool) -> tuple[Row | None, list[Fault]]:
    """(row, its faults); no row where the line is not one JSON object."""
    if not raw.strip():
        return None, [Fault("blank line", "the line is blank", OBJECT, "remove it")]
    if len(raw) > MAX_LINE_BYTES:
        found, step = f"the line is {len(raw) / 1e6:.0f} MB long", "is a line break missing?"
        return None, [Fault("line too long", found, "at most 10 MB", step)]
    faults, repeated = [], []
    if first and raw.startswith(codecs.BOM_UTF8):
        found, step = "the file starts with a byte order mark", 'encoding="utf-8", not "utf-8-sig"'
        faults += [Fault("byte order mark", found, "plain UTF-8", f"save it with {step}")]
    if first and raw.endswith(b"\r\n"):
        found, step = "the line ends in CR LF (Windows)", 'write with newline="\\n", or: dos2unix'
        faults += [Fault("line ending", found, r"lines that end in \n alone", step)]

    def record(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Python keeps the last of two equal keys in silence (RFC 8259, section 4)."""
        if len(unique := dict(pairs)) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            repeated.extend(key for key, count in counts.items() if count > 1)
        return unique

    try:
        row = json.loads(raw.rstrip().decode("utf-8-sig"), object_pairs_hook=record)
    except UnicodeDecodeError as error:
        around = value_text(raw[max(0, error.start - 15) : error.start + 15].decode("latin-1"))
        found = f"byte {error.start + 1} is not UTF-8, near {around}"
        return None, [*faults, Fault("wrong encoding", found, OBJECT, "save it as UTF-8")]
    except json.JSONDecodeError as error:
        around = value_text(error.doc[max(0, error.pos - 20) : error.pos + 20].strip())
        found = f"not JSON at column {error.colno}: {error.msg}, near {around}"
        return None, [*faults, Fault("broken JSON", found, OBJECT, WRITE_IT, value=around)]
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, endless brackets
        found, step = f"not readable JSON ({error})", "shorten the number, or flatten the row"
        return None, [*faults, Fault("broken JSON", found, OBJECT, step)]
    if not isinstance(row, dict):
        found, step = f"the line is {value_text(row)}", "write each row as an object of its own"
        return None, [*faults, Fault("not an object", found, OBJECT, step, value=value_text(row))]
    for key in repeated:
        step = "remove one: readers keep the last and drop the first without a word"
        faults += [Fault("duplicate key", f'"{key}" stands twice', "each key once", step, key)]
    return row, faults + list(row_faults(row))
