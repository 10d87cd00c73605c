"""One fault in a file: where, what stands there, what was expected, what to do next."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rftkit.data.errors import UserError

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


def shorten(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    text = text if len(text) <= limit else text[:limit] + "..."
    return printable(text)


def printable(text: str) -> str:
    """Escape what a terminal would act on or cannot print: control characters, lone surrogates.

    >>> printable("a\\x1b[31m")
    'a\\\\x1b[31m'
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def plural(count: int, one: str, many: str = "") -> str:
    """`3 rows`, `1 row`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def type_name(value: Any) -> str:
    """The JSON name of a value's type.

    >>> type_name({}), type_name(1.5), type_name(None)
    ('object', 'number', 'null')
    """
    if value is None:
        return "null"
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "array"}
    return names.get(type(value), "object")
