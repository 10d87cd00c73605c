"""What one row of RFT data must contain, and how to read a file or memory into rows. It follows
OpenAI's RFT guide and API specification (2026), and makes the stricter choice where they say
nothing."""

import codecs
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, Field, ValidationError

from rftkit.files import printable, shorten

Row = dict[str, Any]
# A file, a folder that `datasets` saved, or rows in memory: a DataFrame, a Dataset, any iterable.
Source = str | Path | Iterable[Mapping[str, Any]]
ROW_FILES = (".jsonl", ".json", ".csv", ".parquet")

WRITE_IT = "write rows with rftkit.write_rows, or json.dumps(row) and a newline"
OBJECT = "one JSON object per line, in UTF-8"
# kind -> (what was expected, the next step)
KINDS = {
    "unreadable file": ("rows", "check the path and the format"),
    "not JSONL": (OBJECT, WRITE_IT),
    "byte order mark": ("plain UTF-8", 'save it with encoding="utf-8", not "utf-8-sig"'),
    "line ending": (r"lines that end in \n alone", 'write with newline="\\n", or: dos2unix'),
    "wrong encoding": (OBJECT, "save it as UTF-8"),
    "broken JSON": (OBJECT, WRITE_IT),
    "not an object": (OBJECT, "write each row as one JSON object"),
    "duplicate key": ("each key once", "remove one: JSON parsers keep only the last one"),
    "messages": ("a list of messages", 'write "prompt" (text), or make a task with `rftkit new`'),
    "role": ("system, developer, user, assistant or tool", 'write "user" for the question'),
    "content": ("a string", "write plain text (no list, no image)"),
    "tools": ("a list of function tools", "if it is an answer, rename it: the key is reserved"),
    "last message": ('"user"', "end with the question; move the answer to its own key"),
    "not a number": ("a finite number", "write null or omit the key"),
    "empty content": ("text", "fill it in or remove the row"),
    "template in a prompt": ("text without placeholders", "move the template to the grader"),
    "lone surrogate": ("valid Unicode", "rewrite the text"),
    "damaged text": ("intact text", 'read the source again: open(path, encoding="utf-8")'),
    "too many rows": ("at most 50,000 (validation: 1,000)", "remove the rest"),
    "answer missing": ("this key in every row", "add it: the grader needs it on every row"),
    "answer empty": ("an answer", "fill it in or remove the row: no output can be right"),
    "answer with blanks": ("no surrounding whitespace", "strip it: no output would match"),
    "answer type": ("the type of the other rows", "use one type: one grader reads every row"),
    "answer in the prompt": ("a prompt without it", "remove it, or pass --answer-in-prompt-ok"),
    "duplicate id": ("a unique id", "give each row its own id: results are joined by it"),
    "duplicate": ("each prompt once", "remove one: a copy counts twice"),
    "contradiction": ("one answer per prompt", "keep one, or make the prompts differ"),
    "duplicate across the split": ("a new prompt", "remove the row from one file"),
    "near-duplicate across the split": ("under 80%", "keep both rows on one side"),
    "group missing": ("a group in every row", "fill it in, or group by another key"),
    "group on both sides": ("each group on one side", "split with rftkit.split_by_group"),
}
# Patterns that no string may contain, and those that no prompt may contain.
TEXTS = {
    "lone surrogate": "[\ud800-\udfff]",
    "damaged text": "\ufffd|â€|Ã[\u0080-\u00bf\u0152-\u0178\u2018-\u2122]",
}
PROMPTS = {
    "empty content": r"\A\s*\Z",
    "template in a prompt": r"\{\{\s{0,9}(?:item|sample)\.[^}]{0,80}\}\}",
}
# First bytes of a file that is not JSONL.
STARTS = {
    rb"\Z": "empty",
    rb"\x1f\x8b": "gzip: unpack it (gunzip -k FILE)",
    rb"PAR1": "parquet: rename it to FILE.parquet",
    rb"[^\0]*\0": "UTF-16 or binary: save it as UTF-8",
    rb"\s*(\[|\{\s*\n)": "one JSON document: rename an array to FILE.json",
    rb"[^{\n]*,": "a table (CSV): rename it to FILE.csv",
}


@dataclass
class RowFault:
    kind: str
    found: str
    key: str = ""  # a path such as messages[1].role
    value: str = ""  # the value at that key, shortened
    file: str = ""
    line: int | None = None  # counted from 1; None for the whole file

    def __post_init__(self) -> None:
        self.expectation, self.next_step = KINDS[self.kind]

    @property
    def place(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"

    def __str__(self) -> str:
        text = f"{self.place}: {self.found}, expected {self.expectation}: {self.next_step}"
        return printable(text)  # it may quote control characters

    def to_json(self) -> dict[str, Any]:
        record = vars(self) | {"message": str(self)}
        return {k: printable(v) if isinstance(v, str) else v for k, v in record.items()}


def value_text(value: Any) -> str:
    """A value as short printable JSON, for a message: `"a\\tb"`, `[1, null]`."""
    return shorten(json.dumps(value, ensure_ascii=False, default=str), 60)


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str


class Tool(BaseModel):
    function: dict[str, Any]


class RowShape(BaseModel):  # other keys may hold anything
    messages: list[Message] = Field(min_length=1)
    tools: list[Tool] | None = None


def readable_messages(row: Row) -> list[dict[str, Any]]:
    """The row's messages if they are a list of objects, else an empty list."""
    messages = row.get("messages")
    readable = isinstance(messages, list) and all(isinstance(m, dict) for m in messages)
    return messages if readable else []


def row_faults(row: Row) -> Iterator[RowFault]:
    """Every fault that one row shows without the other rows."""
    errors = []
    try:
        RowShape.model_validate(row)
    except ValidationError as caught:
        errors = caught.errors(include_url=False)
    for error in errors:
        *above, last = error["loc"]
        if last == "content" and row["messages"][above[1]].get("tool_calls"):
            continue  # an assistant message with tool calls needs no content
        kind = "tools" if "tools" in error["loc"] else last if last in KINDS else "messages"
        key = re.sub(r"\.(\d+)", r"[\1]", ".".join(map(str, error["loc"])))
        value = "" if error["type"] == "missing" else value_text(error["input"])
        yield RowFault(kind, f'"{key}" is {value or "missing"}', key, value)
    messages = readable_messages(row)
    role = messages[-1].get("role") if messages else None
    if role in ("system", "developer", "assistant", "tool"):
        yield RowFault("last message", f'last message has role "{role}"', "messages", role)
    for path, value in walk(row):
        if isinstance(value, float) and not math.isfinite(value):
            number = json.dumps(value)
            yield RowFault("not a number", f'"{path}" is {number}, not valid JSON', path, number)
        in_prompt = path.startswith("messages[") and path.endswith(".content")
        for kind, pattern in (TEXTS | PROMPTS if in_prompt else TEXTS).items():
            if isinstance(value, str) and (match := re.search(pattern, value)):
                quote = value_text(value[max(0, match.start() - 15) : match.start() + 30])
                yield RowFault(kind, f'"{path}" contains {quote} ({kind})', path, quote)


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, value) for every leaf of a row, empty containers included."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from walk(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from walk(inner, f"{path}[{index}]")
    else:
        yield path, value


def as_row(record: Row) -> tuple[Row, str]:
    """Return (row, where its messages were if not at the top). They may be one level down or under
    `prompt`, there also as text. Content that is a list of text parts becomes one text."""
    row, place = dict(record), ""
    inner = [k for k, v in row.items() if isinstance(v, dict) and {"messages", "prompt"} & {*v}]
    if "messages" not in row and inner:
        row |= row.pop(inner[0])
        place = f'found "messages" in "{inner[0]}"'
    if "messages" not in row and "prompt" in row:
        prompt = row.pop("prompt")
        text = "" if prompt is None else str(prompt)  # an empty cell: row_faults reports it
        messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": text}]
        row = {"messages": messages} | row
        place = f'read "prompt" as {"messages" if messages is prompt else "a user message"}'
    messages = readable_messages(row)
    if any(isinstance(message.get("content"), list) for message in messages):
        row["messages"] = [m | {"content": joined_text(m.get("content"))} for m in messages]
    return row, place


def joined_text(content: Any) -> Any:
    """Text parts as one text; what has another part (an image) stays, for row_faults to report."""
    parts = content if isinstance(content, list) else []
    texts = [p.get("text") for p in parts if isinstance(p, dict) and p.get("type") == "text"]
    pure = 0 < len(parts) == len(texts) and all(isinstance(text, str) for text in texts)
    return "\n".join(texts) if pure else content


class Line(NamedTuple):
    """A line of a file or a row in memory, or with the number None the whole of either."""

    file: str
    number: int | None  # counted from 1
    row: Row | None  # None if unreadable
    faults: list[RowFault]
    moved: str = ""  # where its messages were, if not at the top

    def fault(self, kind: str, found: str, key: str = "", value: str = "") -> RowFault:
        return RowFault(kind, found, key, value, self.file, self.number)

    def place_from(self, other: "Line") -> str:
        """`line 3`, or `train.jsonl:3` if `other` is in another file."""
        return f"line {self.number}" if other.file == self.file else f"{self.file}:{self.number}"


def source_name(source: Source, in_memory: str = "rows") -> str:
    return str(source) if isinstance(source, (str, Path)) else in_memory


def read_lines(source: Source, in_memory: str = "rows") -> Iterator[Line]:
    """in_memory: what messages call rows that are in no file."""
    file = source_name(source, in_memory)
    for number, record, faults in read_records(source):
        row, moved = (None, "") if record is None else as_row(record)
        faults += [] if row is None else row_faults(row)
        for fault in faults:
            fault.file, fault.line = file, number
        yield Line(file, number, row, faults, moved)


Record = tuple[int | None, Row | None, list[RowFault]]


def read_records(source: Source) -> Iterator[Record]:
    """Yield (line number, JSON object or None if unreadable, faults), the objects unchanged."""
    path = Path(source) if isinstance(source, (str, Path)) else None
    try:
        records = _read_table(path or source)
        if records is None:
            yield from _read_jsonl(path)
            return
    except (OSError, ValueError, TypeError) as error:
        cause = getattr(error, "strerror", None) or shorten(str(error), 120)
        if isinstance(error, UnicodeDecodeError):
            cause = f"not UTF-8 at byte {error.start}: save it as UTF-8"
        yield None, None, [RowFault("unreadable file", f"cannot be read: {cause}")]
        return
    # The first line of a CSV file is its header.
    for number, record in enumerate(records, 2 if path and path.suffix == ".csv" else 1):
        fault = RowFault("not an object", f"the row is {shorten(record, 60)}")
        yield (number, record, []) if isinstance(record, dict) else (number, None, [fault])


def _read_table(source: Any) -> list[Any] | None:
    """The records of a source, or None for JSONL. CSV values stay text, so 007 and NA survive."""
    kind = source.suffix if isinstance(source, Path) else "in memory"
    if kind == ".csv":
        import pandas  # comes with datasets

        with open(source, encoding="utf-8-sig") as file:
            separator = max(",;\t", key=file.readline().count)
        source = pandas.read_csv(source, sep=separator, dtype=str, keep_default_na=False)
    elif kind == ".parquet":
        import pandas

        with open(source, "rb") as file:
            source = pandas.read_parquet(file)
    elif kind != "in memory" and source.is_dir():
        from datasets import load_from_disk

        source = load_from_disk(str(source))
    elif kind != "in memory":
        text = source.read_text(encoding="utf-8-sig") if kind == ".json" else ""
        return json.loads(text) if text.lstrip().startswith("[") else None
    if isinstance(source, Mapping):
        raise ValueError(f"a dict with {', '.join(map(str, source))}: pass one of its values")
    if hasattr(source, "iterrows"):  # a DataFrame: NaN becomes null, a date becomes text
        return json.loads(source.to_json(orient="records", date_format="iso", double_precision=15))
    # NumPy values become numbers and lists; a date, for example, becomes text.
    form = {"default": lambda value: value.tolist() if hasattr(value, "tolist") else str(value)}
    records = (dict(record) if isinstance(record, Mapping) else record for record in source)
    return [json.loads(json.dumps(record, **form)) for record in records]


def _read_jsonl(path: Path) -> Iterator[Record]:
    with open(path, "rb") as file:
        head = file.peek(1024)[:1024].removeprefix(codecs.BOM_UTF8)
        for pattern, form in STARTS.items():
            if re.match(pattern, head):
                yield None, None, [RowFault("not JSONL", f"the file is {form}")]
                return
        for number, raw in enumerate(file, 1):
            row, faults = read_line(raw)
            if number == 1 and raw.startswith(codecs.BOM_UTF8):
                faults.append(RowFault("byte order mark", "the file starts with a byte order mark"))
            if number == 1 and raw.endswith(b"\r\n"):
                faults.append(RowFault("line ending", "the line ends in CR LF (Windows)"))
            yield number, row, faults


def read_line(raw: bytes) -> tuple[Row | None, list[RowFault]]:
    """Return (object, faults). It is None if the line is not one JSON object."""
    faults = []

    def build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Note repeated keys: Python silently keeps only the last one (RFC 8259, section 4)."""
        for key, count in Counter(key for key, _ in pairs).items():
            if count > 1:
                faults.append(RowFault("duplicate key", f'"{key}" is repeated', key))
        return dict(pairs)

    try:
        row = json.loads(raw.rstrip().decode("utf-8-sig"), object_pairs_hook=build_object)
    except UnicodeDecodeError as error:
        quote = value_text(raw[max(0, error.start - 15) : error.start + 15].decode("latin-1"))
        kind, cause = "wrong encoding", f"byte {error.start + 1} is not UTF-8, near {quote}"
    except json.JSONDecodeError as error:
        quote = value_text(error.doc[max(0, error.pos - 20) : error.pos + 20].strip())
        kind, cause = "broken JSON", f"not JSON at column {error.colno}: {error.msg}, near {quote}"
    else:
        if isinstance(row, dict):
            return row, faults
        quote = value_text(row)
        kind, cause = "not an object", f"the line is {quote}"
    return None, [RowFault(kind, cause, value=quote)]
