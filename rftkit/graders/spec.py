"""Check a grader's JSON: all faults at once, each with its place.

The `openai` package's types judge the shape, and their findings are shown in pydantic's words. What
they cannot see is checked here: templates, the formula, ranges, labels, a python grader's text.
Tolerated, with a note, as OpenAI's guide itself writes them: `name` missing in python and multi,
`"operation": "neq"`, a list in multi, `pass_threshold` (it belongs to evals and changes no grade).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from rftkit.files import UserError, shorten
from rftkit.graders.answer import Template, TemplateError
from rftkit.graders.scorers import FormulaError, parse_formula, source_problem

# type -> the class in openai.types.graders
TYPES = {
    "string_check": "StringCheckGrader",
    "text_similarity": "TextSimilarityGrader",
    "score_model": "ScoreModelGrader",
    "label_model": "LabelModelGrader",
    "python": "PythonGrader",
    "multi": "MultiGrader",
}
# OpenAI's type knows one grader in `graders`, not an object of them: this one stands in.
_ANY_GRADER = {"type": "python", "name": "any", "source": ""}


class GraderSpecError(UserError):
    """A grader's JSON that cannot be used; `problems` holds one sentence a fault."""

    def __init__(self, place: str, problems: list[str]):
        self.problems = problems
        super().__init__("\n".join(f"{place}: {problem}" for problem in problems))


def validate_spec(
    spec: Any, place: str = "grader", job: bool = False, has_embedder: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """(the grader in its plain form, notes on what was tolerated); GraderSpecError has every fault.

    In a `job` the top grader may not be a label_model. With an embedder "cosine" can be computed.
    """
    checker = _Checker(has_embedder)
    plain = checker.check(spec, "")
    if job and plain.get("type") == "label_model":
        checker.problem("label_model cannot stand at the top of a job: put it in a multi", "type")
    if checker.problems:
        raise GraderSpecError(place, checker.problems)
    return plain, checker.notes


def texts_of(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """(place, text) for each text of one grader that may hold templates."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from texts_of(entry, f"{place}[{index}]")
    elif isinstance(value, dict):
        for key in ("input", "reference", "content", "text", "image_url"):
            yield from texts_of(value.get(key), f"{place}.{key}" if place else key)


class _Checker:
    """Collects problems and notes while it walks one spec. A path is given in steps."""

    def __init__(self, has_embedder: bool):
        self.has_embedder = has_embedder
        self.problems: list[str] = []
        self.notes: list[str] = []

    def problem(self, text: str, *path: str) -> None:
        self.problems.append(_at(text, *path))

    def note(self, text: str, *path: str) -> None:
        self.notes.append(_at(text, *path))

    def check(self, spec: Any, path: str, variable: str = "") -> dict[str, Any]:
        """The plain form of the grader at `path`; `variable` is its name in a multi grader."""
        allowed = [name for name in TYPES if name != "multi" or not variable]
        kind = spec.get("type", "missing") if isinstance(spec, dict) else spec
        if kind not in allowed:
            place = "type" if isinstance(spec, dict) else ""
            self.problem(f"{shorten(kind)}, expected one of {', '.join(allowed)}", path, place)
            return {}
        before = len(self.problems)
        plain = {key: value for key, value in spec.items() if value is not None}
        if "name" not in plain and kind in ("python", "multi"):
            plain["name"] = variable or kind
            self.note(f'missing, read as "{plain["name"]}"', path, "name")
        if kind == "string_check" and plain.get("operation") == "neq":
            plain["operation"] = "ne"
            self.note('"neq", read as "ne"', path, "operation")
        if plain.pop("pass_threshold", None) is not None:
            self.note("belongs to evals and changes no grade", path, "pass_threshold")
        if kind == "multi":
            self._shape({**plain, "graders": _ANY_GRADER}, path)
            self._multi(plain, path)
            return plain
        self._shape(plain, path)
        if len(self.problems) == before:  # the rest relies on the types being right
            self._templates(plain, path)
            self._values(plain, path)
        return plain

    def _shape(self, plain: dict[str, Any], path: str) -> None:
        """Let the `openai` package's own type judge; a key that it does not know is a fault."""
        import openai.types.graders as types
        from pydantic import ValidationError

        empty = {"name": "", "model": "", "input": []}
        findings = {key: "empty" for key, value in empty.items() if plain.get(key) == value}
        try:
            getattr(types, TYPES[plain["type"]]).model_validate(plain, extra="forbid", strict=True)
        except ValidationError as error:
            for finding in error.errors(include_url=False):
                message = finding["msg"]
                if finding["type"] not in ("missing", "extra_forbidden"):
                    message += f", not {shorten(finding['input'])}"
                findings.setdefault(_place(finding["loc"]), message)
        for place, message in findings.items():
            self.problem(message, path, place)

    def _templates(self, plain: dict[str, Any], path: str) -> None:
        namespaces = {"sample"} if plain["type"] == "python" else set()
        for place, text in texts_of(plain):
            try:
                namespaces |= {part.namespace for part in Template(text).paths}
            except TemplateError as error:
                self.problem(str(error), path, place)
        if "sample" not in namespaces:
            self.note("no {{sample.…}} in it: every answer to a row gets the same grade", path)

    def _values(self, plain: dict[str, Any], path: str) -> None:
        """What the types leave open in one grader that is no multi."""
        if plain.get("evaluation_metric") == "cosine" and not self.has_embedder:
            text = "cosine, expected another metric, or GraderSettings(embedder=…)"
            self.problem(text, path, "evaluation_metric")
        if plain["type"] == "python":
            if wrong := source_problem(plain["source"]):
                self.problem(wrong, path, "source")
        limits = plain.get("range", [0, 1])
        if len(limits) != 2 or not -math.inf < limits[0] < limits[1] < math.inf:
            self.problem(f"{limits}, expected two numbers, the lower one first", path, "range")
        if plain["type"] == "label_model":
            labels, passing = set(plain["labels"]), set(plain["passing_labels"])
            if not passing or not passing <= labels:
                text = f"{sorted(passing)}, expected some of {sorted(labels)}"
                self.problem(text, path, "passing_labels")
            elif passing == labels:
                self.note("every label: each answer scores 1", path, "passing_labels")

    def _multi(self, plain: dict[str, Any], path: str) -> None:
        graders, formula = plain.get("graders"), plain.get("calculate_output")
        here, named = (path, "calculate_output"), []
        if isinstance(graders, dict):
            named = [(name, f"graders.{name}", grader) for name, grader in graders.items()]
        elif isinstance(graders, list):
            for index, grader in enumerate(graders):
                name = _variable(grader, str(formula), [name for name, _, _ in named])
                named.append((name, f"graders[{index}]", grader))
            text = (
                f"a list; its graders are the variables {', '.join(name for name, _, _ in named)}"
            )
            self.note(text, path, "graders")
        if not named:
            self.problem(f"{shorten(graders)}, expected an object of graders", path, "graders")
        parts = plain["graders"] = {}
        for variable, place, grader in named:
            if variable in parts or not variable.isidentifier():
                text = f"its variable is {variable!r}, expected letters, digits and _, once: rename"
                self.problem(text, path, place)
            parts[variable] = self.check(grader, f"{path}.{place}" if path else place, variable)
        if not isinstance(formula, str):
            return
        try:
            used = parse_formula(formula).variables
        except FormulaError as error:
            self.problem(f"{error}: the formula is {shorten(formula)!r}", *here)
            return
        for variable in sorted(used - set(parts)) if parts else ():
            self.problem(f"{variable!r} is no grader, expected {', '.join(parts)}", *here)
        for variable in parts:
            if variable not in used:
                self.note(f"does not use {variable!r}: it is graded and reported only", *here)


def _variable(grader: Any, formula: str, taken: list[str]) -> str:
    """The variable of a grader in a list. The API reference shows a list whose formula says
    `string_check_score`: so it is TYPE_score where the formula uses that, otherwise the grader's
    name with _ for all that is not a letter or digit."""
    record = grader if isinstance(grader, dict) else {}
    name = f"{record.get('type')}_score"
    if name in formula and name not in taken:
        return name
    return re.sub(r"\W", "_", str(record.get("name")))


def _place(loc: tuple[str | int, ...]) -> str:
    """A pydantic location as a path; what it adds below a message's content is cut off."""
    if "content" in loc:
        loc = loc[: loc.index("content") + 1]
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc)[1:]


def _at(text: str, *path: str) -> str:
    place = ".".join(filter(None, path))
    return f"{place}: {text}" if place else text
