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
from typing import Any, NamedTuple

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
SAMPLING_RANGES = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "max_completions_tokens": (1, math.inf),
    "seed": (-math.inf, math.inf),
}
# OpenAI's type knows one grader in `graders`, not an object of them: this one stands in.
_ANY_GRADER = {"type": "python", "name": "any", "source": ""}


class GraderSpecError(UserError):
    """A grader's JSON that cannot be used; `problems` holds one sentence a fault."""

    def __init__(self, place: str, problems: list[str]):
        self.place, self.problems = place, problems
        super().__init__("\n".join(f"{place}: {problem}" for problem in problems))


class ValidSpec(NamedTuple):
    """A checked grader in its plain form (what `to_json` returns), and what was tolerated."""

    spec: dict[str, Any]
    notes: list[str]


def validate_spec(
    spec: Any, place: str = "grader", *, job: bool = False, has_embedder: bool = False
) -> ValidSpec:
    """Check a grader's JSON and bring it to its plain form; GraderSpecError names every fault.

    In a `job` the top grader may not be a label_model. With an embedder "cosine" can be computed.
    """
    checker = _Checker(has_embedder)
    plain = checker.check(spec, "")
    if job and plain.get("type") == "label_model":
        checker.problem("type", "label_model cannot stand at the top of a job: put it in a multi")
    if checker.problems:
        raise GraderSpecError(place, checker.problems)
    return ValidSpec(plain, checker.notes)


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
    """Collects problems and notes while it walks one spec."""

    def __init__(self, has_embedder: bool):
        self.has_embedder = has_embedder
        self.problems: list[str] = []
        self.notes: list[str] = []

    def problem(self, path: str, text: str) -> None:
        self.problems.append(f"{path}: {text}" if path else text)

    def note(self, path: str, text: str) -> None:
        self.notes.append(f"{path}: {text}" if path else text)

    def check(self, spec: Any, path: str, variable: str = "") -> dict[str, Any]:
        """The plain form of the grader at `path`; `variable` is its name in a multi grader."""
        if not isinstance(spec, dict):
            self.problem(path, f'{describe(spec)}, expected an object that holds a "type"')
            return {}
        kind = spec.get("type")
        if not isinstance(kind, str) or kind not in TYPES or (kind == "multi" and variable):
            allowed = [name for name in TYPES if name != "multi" or not variable]
            inner = next((key for key in ("grader", "method") if key in spec), None)
            hint = f": hand over what stands under {inner!r}" if inner else ""
            found = describe(kind) if "type" in spec else "missing"
            text = f"{found}, expected one of {', '.join(allowed)}{hint}"
            self.problem(_join(path, "type"), text)
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
            check = {"text_similarity": self._similarity, "score_model": self._score_model}
            check |= {"label_model": self._label_model, "python": self._python}
            if kind in check:
                check[kind](plain, path)
        return plain

    def _tolerate(self, plain: dict[str, Any], path: str, variable: str) -> dict[str, Any]:
        kind = plain["type"]
        if "name" not in plain and kind in ("python", "multi"):
            plain["name"] = variable or kind
            self.note(_join(path, "name"), f'missing, read as "{plain["name"]}"')
        if kind == "string_check" and plain.get("operation") == "neq":
            plain["operation"] = "ne"
            self.note(_join(path, "operation"), '"neq", read as "ne"')
        if "pass_threshold" in plain:
            del plain["pass_threshold"]
            self.note(_join(path, "pass_threshold"), "belongs to evals and changes no grade")
        if kind == "score_model" and isinstance(plain.get("sampling_params"), dict):
            params = {k: v for k, v in plain["sampling_params"].items() if v is not None}
            for alias in ("max_tokens", "max_completion_tokens"):
                if alias in params and "max_completions_tokens" not in params:
                    params["max_completions_tokens"] = params.pop(alias)
                    text = 'read as "max_completions_tokens"'
                    self.note(_join(path, f"sampling_params.{alias}"), text)
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
                    message += f", not {describe(finding['input'])}"
                findings.setdefault(place, message)
        except RecursionError:
            findings[""] = "nested too deep"
        for key in ("name", "model", "input"):
            value = plain.get(key)
            if value == [] or (key != "input" and isinstance(value, str) and not value.strip()):
                findings[key] = "empty"
        for place, message in findings.items():
            self.problem(_join(path, place), message)

    def _templates(self, plain: dict[str, Any], path: str) -> None:
        before, namespaces = len(self.problems), set()
        for place, text in texts_of(plain):
            try:
                text.encode("utf-8")
                namespaces |= {part.namespace for part in compile_template(text).paths}
            except UnicodeEncodeError:
                self.problem(_join(path, place), "holds half a surrogate pair")
            except TemplateError as error:
                self.problem(_join(path, place), str(error))
        readable = len(self.problems) == before
        if readable and "sample" not in namespaces and plain["type"] != "python":
            self.note(path, "no {{sample.…}} in it: every answer to a row gets the same grade")

    def _similarity(self, plain: dict[str, Any], path: str) -> None:
        if plain["evaluation_metric"] == "cosine" and not self.has_embedder:
            text = "cosine needs an embedder (GraderSettings), expected another metric: fuzzy_match"
            self.problem(_join(path, "evaluation_metric"), text)

    def _python(self, plain: dict[str, Any], path: str) -> None:
        problem = source_problem(plain["source"])
        if problem:
            self.problem(_join(path, "source"), problem)
        elif missing := missing_imports(plain["source"]):
            self.note(_join(path, "source"), f"imports {missing}")

    def _score_model(self, plain: dict[str, Any], path: str) -> None:
        limits = plain.get("range", [0, 1])
        if len(limits) != 2 or not all(map(_is_number, limits)) or not limits[0] < limits[1]:
            text = f"{describe(limits)}, expected two numbers, the lower one first"
            self.problem(_join(path, "range"), text)
        for key, value in plain.get("sampling_params", {}).items():
            low, high = SAMPLING_RANGES.get(key, (None, None))
            if low is not None and not (_is_number(value) and low <= value <= high):
                text = f"{describe(value)}, expected a number from {low} to {high}"
                self.problem(_join(path, f"sampling_params.{key}"), text)

    def _label_model(self, plain: dict[str, Any], path: str) -> None:
        labels, passing = plain["labels"], plain["passing_labels"]
        for key in ("labels", "passing_labels"):
            if not plain[key] or len(set(plain[key])) != len(plain[key]) or "" in plain[key]:
                text = f"{describe(plain[key])}, expected different, non-empty texts"
                self.problem(_join(path, key), text)
        strangers = [label for label in passing if label not in labels]
        if strangers:
            text = f"{describe(strangers[0])} is not among labels: add it there or take it out"
            self.problem(_join(path, "passing_labels"), text)
        elif set(passing) == set(labels):
            self.note(_join(path, "passing_labels"), "holds every label: each answer scores 1")

    def _multi(self, plain: dict[str, Any], path: str) -> None:
        graders, places = plain.get("graders"), {}
        if isinstance(graders, list):
            named = self._name_list(graders, str(plain.get("calculate_output")), path)
            places = {variable: f"graders[{index}]" for variable, (index, _) in named.items()}
            graders = {variable: part for variable, (_, part) in named.items()}
        if not isinstance(graders, dict) or not graders:
            text = f"{describe(graders)}, expected an object of graders"
            self.problem(_join(path, "graders"), text)
            graders = {}
        parts = {}
        for variable, spec in graders.items():
            here = _join(path, places.get(variable, f"graders.{variable}"))
            if not str(variable).isidentifier():
                self.problem(here, "a formula needs a name of letters, digits and _: rename it")
            parts[variable] = self.check(spec, here, str(variable))
        plain["graders"] = parts
        if isinstance(plain.get("calculate_output"), str):
            self._formula(plain["calculate_output"], parts, _join(path, "calculate_output"))

    def _name_list(self, graders: list[Any], formula: str, path: str) -> dict[str, tuple[int, Any]]:
        """variable -> (index, grader) for a list of graders.

        The API reference shows a list whose formula says `string_check_score`: so a variable is
        TYPE_score where the formula uses that and one grader has the type, otherwise the
        grader's name with _ for all that is not a letter, digit or _.
        """
        records = [grader if isinstance(grader, dict) else {} for grader in graders]
        kinds = [record.get("type") for record in records]
        named: dict[str, tuple[int, Any]] = {}
        for index, (record, kind) in enumerate(zip(records, kinds)):
            variable = f"{kind}_score"
            if kinds.count(kind) != 1 or variable not in formula:
                name = str(record.get("name") or "")
                variable = "".join(c if c.isalnum() or c == "_" else "_" for c in name)
                variable = variable if variable.isidentifier() else f"grader_{index}"
            if variable in named:
                text = f"leads to the variable {variable} a second time: rename one"
                self.problem(_join(path, f"graders[{index}].name"), text)
            named[variable] = (index, graders[index])
        text = f"a list; its graders are the variables {', '.join(named)}"
        self.note(_join(path, "graders"), text)
        return named

    def _formula(self, text: str, parts: dict[str, Any], path: str) -> None:
        try:
            used = parse_formula(text).variables
        except FormulaError as error:
            self.problem(path, f"{error}: the formula is {shorten(text)!r}")
            return
        for variable in sorted(used - set(parts)) if parts else ():
            known = ", ".join(parts) or "none"
            self.problem(path, f"{variable!r} is no variable, expected the graders': {known}")
        for variable in parts:
            if variable not in used:
                self.note(path, f"does not use {variable!r}: it is graded and reported only")


def _place(loc: tuple[str | int, ...]) -> str:
    """A pydantic location as a path; what it adds below a message's content is cut off."""
    if "content" in loc:
        loc = loc[: loc.index("content") + 1]
    steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in loc]
    return "".join(steps).removeprefix(".")


def _join(path: str, place: str) -> str:
    return f"{path}.{place}" if path and place else path or place


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def describe(value: Any) -> str:
    """A value as its author wrote it, short."""
    try:
        return shorten(json.dumps(value, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError):
        return f"a {type(value).__name__}"
