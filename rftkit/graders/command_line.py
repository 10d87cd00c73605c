"""What stands behind `rftkit grade`, `rftkit validate-grader` and `rftkit graders`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from rftkit.data.errors import UserError
from rftkit.graders.context import shorten
from rftkit.graders.core import Grader
from rftkit.graders.report import GraderReport
from rftkit.graders.shelf import SHELF
from rftkit.graders.spec import GraderSpecError, read_spec, validate_spec


def grade_one(
    grader: str, sample: str, item: str | None, allow_weak_isolation: bool = False
) -> GraderReport:
    """Grade one text.

    grader  a file with grader JSON
    sample  what the model said, or @FILE
    item    a file with one JSON object (the row), or such an object itself, or None
    """
    loaded = Grader.load(Path(grader), allow_weak_isolation=allow_weak_isolation)
    row = {} if item is None else read_item(item)
    return loaded.report(row, read_text(sample[1:]) if sample.startswith("@") else sample)


def validate_file(file: str) -> dict[str, Any]:
    """{"valid", "type", "problems", "notes"}; a file that is no JSON is a problem as well."""
    try:
        spec, notes = validate_spec(*read_spec(Path(file)))
    except GraderSpecError as error:
        return {"valid": False, "type": None, "problems": error.problems, "notes": []}
    except UserError as error:
        problem = without_place(str(error), shorten(str(Path(file)), 200))
        return {"valid": False, "type": None, "problems": [problem], "notes": []}
    return {"valid": True, "type": spec["type"], "problems": [], "notes": notes}


def without_place(text: str, place: str) -> str:
    """An error's text without the file at its head, which the caller prints; its line stays.

    >>> without_place("d.json:2: not JSON", "d.json"), without_place("d.json: empty", "d.json")
    ('line 2: not JSON', 'empty')
    """
    found = re.match(rf"{re.escape(place)}:(?:(\d+):)? ", text)
    if found is None:
        return text
    return (f"line {found[1]}: " if found[1] else "") + text[found.end() :]


def list_shelf() -> dict[str, Any]:
    """The pre-built graders: {"graders": [{"name", "type", "about"}, …]}."""
    return {
        "graders": [
            {"name": name, "type": entry.make().to_json()["type"], "about": entry.about}
            for name, entry in SHELF.items()
        ]
    }


def shelf_json(name: str) -> dict[str, Any]:
    """The grader JSON of one pre-built grader."""
    if name not in SHELF:
        raise UserError(
            f"graders: there is no {shorten(name, 40)!r}, expected one of {', '.join(SHELF)}: "
            f"`rftkit graders` lists them"
        )
    return SHELF[name].make().to_json()


def read_item(item: str) -> dict[str, Any]:
    """A row from a file that holds one JSON object, or from such an object's text."""
    place = "item" if item.lstrip().startswith("{") else item
    text = item if place == "item" else read_text(item)
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{shorten(place)}: not one JSON object ({shorten(str(error))}), expected a row: take "
            f"one line of the JSONL"
        ) from None
    if not isinstance(row, dict):
        raise UserError(f"{shorten(place)}: a {type(row).__name__}, expected one JSON object")
    return row


def read_text(file: str) -> str:
    """A file's text."""
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{shorten(file, 200)}: cannot be read ({reason}): name a text file in UTF-8"
        ) from None
