"""Read a grader's JSON and check it: every fault is named at once, with its place and the cure.

The shapes are those of the `openai` package (`openai.types.graders`), which validates first; what
its types cannot see (templates, the formula, ranges, labels, unknown keys) is checked here.
Tolerated, with a note, as OpenAI's guide itself writes them: `name` missing in python and multi,
`"operation": "neq"`, a list in multi, `pass_threshold` (it belongs to evals and changes no grade).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from rftkit.data.errors import UserError
from rftkit.graders.context import shorten
from rftkit.graders.spec_checker import SpecChecker

MAX_FILE_BYTES = 10_000_000


class GraderSpecError(UserError):
    """A grader's JSON that cannot be used; `problems` holds one sentence a fault."""

    def __init__(self, place: str, problems: list[str]):
        self.place, self.problems = place, problems
        lines = [f"{place}: {problem}" for problem in problems]
        super().__init__("\n".join(lines))


class ValidSpec(NamedTuple):
    """A checked grader in its plain form (what `to_json` returns), and what was tolerated."""

    spec: dict[str, Any]
    notes: list[str]


def read_spec(source: dict[str, Any] | str | Path) -> tuple[Any, str]:
    """The JSON value of a grader and the place it came from.

    source  a dict, a path, or a text: JSON if it begins with a brace or bracket, else a path
    """
    if isinstance(source, dict):
        return source, "grader"
    if isinstance(source, str) and source.lstrip()[:1] in ("{", "["):
        return _parse_json(source, "grader"), "grader"
    if not isinstance(source, (str, Path)):
        raise UserError(
            f"grader: a {type(source).__name__}, expected a dict, a path or JSON text: "
            f"hand over the grader's JSON"
        )
    place = shorten(str(source), 200)
    try:
        path = Path(source)
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{place}: {path.stat().st_size} bytes, expected a grader's JSON")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: byte {error.start} is not UTF-8: save it as UTF-8") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{place}: cannot be read ({reason}): name a file that holds a grader's JSON"
        ) from None
    return _parse_json(text, place), place


def validate_spec(
    spec: Any, place: str = "grader", *, job: bool = False, has_embedder: bool = False
) -> ValidSpec:
    """Check a grader's JSON and bring it to its plain form; raises GraderSpecError with all faults.

    job           the grader is the top one of a training job: label_model is not allowed there
    has_embedder  an embedder was handed over, so "cosine" can be computed
    """
    checker = SpecChecker(has_embedder)
    plain = checker.check(spec, "")
    if job and isinstance(spec, dict) and spec.get("type") == "label_model":
        checker.problem(
            "type",
            'is "label_model"',
            "another type at the top of a job",
            "put it in the graders of a multi grader",
        )
    if checker.problems:
        raise GraderSpecError(place, checker.problems)
    return ValidSpec(plain, checker.notes)


def _parse_json(text: str, place: str) -> Any:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise UserError(
                    f"{place}: the key {shorten(key, 40)!r} stands twice in one object, expected "
                    f"once: rename or remove one"
                )
            result[key] = value
        return result

    def refuse(constant: str) -> Any:
        raise UserError(f"{place}: {constant} is not JSON, expected a number: write a finite one")

    try:
        return json.loads(text, object_pairs_hook=no_duplicates, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{place}:{error.lineno}: not JSON at column {error.colno} ({error.msg}): mend it there"
        ) from None
    except UserError:
        raise
    except (RecursionError, ValueError) as error:  # nested too deep; a number of 5,000 digits
        raise UserError(
            f"{place}: not a grader's JSON ({type(error).__name__}): "
            f"see `rftkit graders` for examples"
        ) from None
