"""Check a grader's JSON: all faults at once, each with its place.

The `openai` package's types judge the shape, and their findings are shown in pydantic's words. What
they cannot see is checked here: templates, the formula, ranges, labels, a python grader's text.
Tolerated, with a note, as OpenAI's guide itself writes them: `name` missing in python and multi,
`"operation": "neq"`, a list in multi, `pass_threshold` (it belongs to evals and changes no grade).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from rftkit.files import UserError, shorten
from rftkit.graders.answer import TemplateError, compile_template
from rftkit.graders.formula import FormulaError, parse_formula
from rftkit.graders.python import missing_imports, source_problem

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
_SAMPLING_RANGES = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "max_completions_tokens": (1, math.inf),
    "seed": (-math.inf, math.inf),
}


class GraderSpecError(UserError):
    """A grader's JSON that cannot be used; `problems` holds one sentence a fault."""

    def __init__(self, place: str, problems: list[str]):
        self.place, self.problems = place, problems
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


def texts_of(spec: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(place, text) for each text of one grader that may hold templates."""

    def walk(value: Any, place: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, str):
            yield place, value
        elif isinstance(value, list):
            for index, entry in enumerate(value):
                yield from walk(entry, f"{place}[{index}]")
        elif isinstance(value, dict):
            for key in ("content", "text", "image_url"):
                yield from walk(value.get(key), f"{place}.{key}")

    for key in ("input", "reference"):
        yield from walk(spec.get(key), key)


class _Checker:
    """Collects problems and notes while it walks one spec. A path is given in steps."""

    def __init__(self, has_embedder: bool):
        self.has_embedder = has_embedder
        self.problems: list[str] = []
        self.notes: list[str] = []

    def problem(self, text: str, *path: str) -> None:
        self.problems.append(": ".join(filter(None, [_join(*path), text])))

    def note(self, text: str, *path: str) -> None:
        self.notes.append(": ".join(filter(None, [_join(*path), text])))

    def check(self, spec: Any, path: str, variable: str = "") -> dict[str, Any]:
        """The plain form of the grader at `path`; `variable` is its name in a multi grader."""
        if not isinstance(spec, dict):
            self.problem(f'{_shown(spec)}, expected an object that holds a "type"', path)
            return {}
        kind = spec.get("type")
        allowed = [name for name in TYPES if name != "multi" or not variable]
        if kind not in allowed:
            inner = next((key for key in ("grader", "method") if key in spec), None)
            hint = f": hand over what stands under {inner!r}" if inner else ""
            found = _shown(kind) if "type" in spec else "missing"
            self.problem(f"{found}, expected one of {', '.join(allowed)}{hint}", path, "type")
            return {}
        before = len(self.problems)
        plain = self._tolerate({k: v for k, v in spec.items() if v is not None}, path, variable)
        if kind == "multi":
            self._shape({**plain, "graders": _ANY_GRADER}, path)
            self._multi(plain, path)
            return plain
        self._shape(plain, path)
        if len(self.problems) == before:  # the rest relies on the types being right
            self._templates(plain, path)
            self._values(plain, path)
        return plain

    def _tolerate(self, plain: dict[str, Any], path: str, variable: str) -> dict[str, Any]:
        kind = plain["type"]
        if "name" not in plain and kind in ("python", "multi"):
            plain["name"] = variable or kind
            self.note(f'missing, read as "{plain["name"]}"', path, "name")
        if kind == "string_check" and plain.get("operation") == "neq":
            plain["operation"] = "ne"
            self.note('"neq", read as "ne"', path, "operation")
        if plain.pop("pass_threshold", None) is not None:
            self.note("belongs to evals and changes no grade", path, "pass_threshold")
        if isinstance(plain.get("sampling_params"), dict):
            params = {k: v for k, v in plain["sampling_params"].items() if v is not None}
            for alias in ("max_tokens", "max_completion_tokens"):
                if alias in params and "max_completions_tokens" not in params:
                    params["max_completions_tokens"] = params.pop(alias)
                    self.note('read as "max_completions_tokens"', path, "sampling_params", alias)
            plain["sampling_params"] = params
        return plain

    def _shape(self, plain: dict[str, Any], path: str) -> None:
        """Let the `openai` package's own type judge; a key that it does not know is a fault."""
        import openai.types.graders as types
        from pydantic import ValidationError

        findings: dict[str, str] = {}
        try:
            getattr(types, TYPES[plain["type"]]).model_validate(plain, extra="forbid")
        except ValidationError as error:
            for finding in error.errors(include_url=False):
                place, message = _place(finding["loc"]), finding["msg"]
                if place.endswith("content"):  # one finding for each form that it could have
                    message = "Input should be a text, an input_text, or a list of these"
                elif finding["type"] not in ("missing", "extra_forbidden"):
                    message += f", not {_shown(finding['input'])}"
                findings.setdefault(place, message)
        except RecursionError:
            findings[""] = "nested too deep"
        for key in ("name", "model", "input"):
            value = plain.get(key)
            if value == [] or (key != "input" and isinstance(value, str) and not value.strip()):
                findings[key] = "empty"
        for place, message in findings.items():
            self.problem(message, path, place)

    def _templates(self, plain: dict[str, Any], path: str) -> None:
        before, namespaces = len(self.problems), set()
        for place, text in texts_of(plain):
            try:
                text.encode("utf-8")
                namespaces |= {part.namespace for part in compile_template(text).paths}
            except UnicodeEncodeError:
                self.problem("holds half a surrogate pair", path, place)
            except TemplateError as error:
                self.problem(str(error), path, place)
        readable = len(self.problems) == before
        if readable and "sample" not in namespaces and plain["type"] != "python":
            self.note("no {{sample.…}} in it: every answer to a row gets the same grade", path)

    def _values(self, plain: dict[str, Any], path: str) -> None:
        """What the types leave open in one grader that is no multi."""

        def problem(value: Any, expected: str, *place: str) -> None:
            self.problem(f"{_shown(value)}, expected {expected}", path, *place)

        if plain.get("evaluation_metric") == "cosine" and not self.has_embedder:
            problem("cosine", "another metric, or GraderSettings(embedder=…)", "evaluation_metric")
        if plain["type"] == "python":
            if wrong := source_problem(plain["source"]):
                self.problem(wrong, path, "source")
            elif missing := missing_imports(plain["source"]):
                self.note(f"imports {missing}", path, "source")
        limits = plain.get("range", [0, 1])
        if len(limits) != 2 or not all(map(_is_number, limits)) or not limits[0] < limits[1]:
            problem(limits, "two numbers, the lower one first", "range")
        for key, value in plain.get("sampling_params", {}).items():
            low, high = _SAMPLING_RANGES.get(key, (None, None))
            if low is not None and not (_is_number(value) and low <= value <= high):
                problem(value, f"a number from {low} to {high}", "sampling_params", key)
        if plain["type"] == "label_model":
            labels, passing = plain["labels"], plain["passing_labels"]
            for key, values in (("labels", labels), ("passing_labels", passing)):
                if not values or len(set(values)) != len(values) or "" in values:
                    problem(values, "different, non-empty texts", key)
            if not set(passing) <= set(labels):
                problem(passing, f"some of {_shown(labels)}", "passing_labels")
            elif set(passing) == set(labels):
                self.note("every label: each answer scores 1", path, "passing_labels")

    def _multi(self, plain: dict[str, Any], path: str) -> None:
        graders, places = plain.get("graders"), {}
        formula, here = plain.get("calculate_output"), (path, "calculate_output")
        if isinstance(graders, list):
            graders, places = self._name_list(graders, str(formula), path)
        if not isinstance(graders, dict) or not graders:
            self.problem(f"{_shown(graders)}, expected an object of graders", path, "graders")
            graders = {}
        parts = plain["graders"] = {}
        for variable, spec in graders.items():
            place = _join(path, places.get(variable, f"graders.{variable}"))
            if not str(variable).isidentifier():
                self.problem("a formula needs a name of letters, digits and _: rename it", place)
            parts[variable] = self.check(spec, place, str(variable))
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

    def _name_list(
        self, graders: list[Any], formula: str, path: str
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """({variable: grader}, {variable: place}) for a list of graders.

        The API reference shows a list whose formula says `string_check_score`: so a variable is
        TYPE_score where the formula uses that and one grader has the type, otherwise the
        grader's name with _ for all that is not a letter, digit or _.
        """
        records = [grader if isinstance(grader, dict) else {} for grader in graders]
        kinds = [record.get("type") for record in records]
        named, places = {}, {}
        for index, (record, kind) in enumerate(zip(records, kinds)):
            variable = f"{kind}_score"
            if kinds.count(kind) != 1 or variable not in formula:
                variable = "".join(c if c.isalnum() else "_" for c in str(record.get("name")))
                variable = variable if variable.isidentifier() else f"grader_{index}"
            if variable in named:
                place = _join(path, f"graders[{index}]", "name")
                self.problem(f"leads to the variable {variable} a second time: rename one", place)
            named[variable], places[variable] = graders[index], f"graders[{index}]"
        self.note(f"a list; its graders are the variables {', '.join(named)}", path, "graders")
        return named, places


def _place(loc: tuple[str | int, ...]) -> str:
    """A pydantic location as a path; what it adds below a message's content is cut off."""
    if "content" in loc:
        loc = loc[: loc.index("content") + 1]
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc)[1:]


def _join(*steps: str) -> str:
    return ".".join(filter(None, steps))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _shown(value: Any) -> str:
    """A value as its author wrote it, short."""
    try:
        return shorten(json.dumps(value, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError):
        return f"a {type(value).__name__}"
