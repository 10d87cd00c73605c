"""The checks behind `validate_spec`: one walk over a grader's JSON that collects every fault.

A problem reads: "path" is what it is, expected what: how to mend it. A note tells what was
tolerated, or what is allowed and most likely not meant.
"""

from __future__ import annotations

import difflib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from rftkit.files import UserError, shorten
from rftkit.graders.answer import TemplateError, compile_template
from rftkit.graders.formula import FUNCTIONS, FormulaError, parse_formula
from rftkit.graders.python import check_source, install_advice, missing_imports

# ------------------------------------------------------------------------------------------
# from rftkit.graders.spec:
# The checks behind `validate_spec`: one walk over a grader's JSON that collects every fault.
#
# A problem reads: "path" is what it is, expected what: how to mend it. A note tells what was
# tolerated, or what is allowed and most likely not meant.

# type -> (class in openai.types.graders, keys that hold one templated text)
TYPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "string_check": ("StringCheckGrader", ("input", "reference")),
    "text_similarity": ("TextSimilarityGrader", ("input", "reference")),
    "score_model": ("ScoreModelGrader", ()),
    "label_model": ("LabelModelGrader", ()),
    "python": ("PythonGrader", ()),
    "multi": ("MultiGrader", ()),
}
_TOKEN_LIMIT_ALIASES = ("max_tokens", "max_completion_tokens")


class SpecChecker:
    """Collects problems and notes while it walks one spec."""

    def __init__(self, has_embedder: bool):
        self.has_embedder = has_embedder
        self.problems: list[str] = []
        self.notes: list[str] = []

    def problem(self, path: str, what: str, expected: str, cure: str) -> None:
        subject = f'"{path}"' if path else "the grader"
        self.problems.append(f"{subject} {what}, expected {expected}: {cure}")

    def note(self, path: str, text: str) -> None:
        self.notes.append(f'"{path}" {text}' if path else text)

    def check(self, spec: Any, path: str, within: str = "") -> dict[str, Any]:
        """One grader at `path`; `within` is its variable in a multi grader. Returns plain form."""
        if not isinstance(spec, dict):
            self.problem(path, f"is {describe(spec)}", "an object", 'begin with {"type": …}')
            return {}
        if not all(isinstance(key, str) for key in spec):
            self.problem(path, "has a key that is not a text", "texts", "put keys in quotes")
            return {}
        kind = spec.get("type")
        if not isinstance(kind, str) or kind not in TYPES:
            self._unknown_type(spec, path)
            return {}
        if kind == "multi" and within:
            self.problem(
                join(path, "type"),
                'is "multi" inside a multi grader',
                "any other type",
                "bring its graders up to the outer one and write one formula",
            )
            return {}
        plain = {key: value for key, value in spec.items() if value is not None}
        self._tolerate(plain, path, within)
        before = len(self.problems)
        self._unknown_keys(plain, path)
        if kind == "multi":
            return self._multi(plain, path)
        self._openai_type(plain, path)
        if len(self.problems) == before:  # the rest relies on the types being right
            getattr(self, f"_{kind}")(plain, path)
        return plain

    def _unknown_type(self, spec: dict[str, Any], path: str) -> None:
        allowed, kind = ", ".join(TYPES), spec.get("type")
        if "type" not in spec:
            inner = next((key for key in ("grader", "method") if key in spec), None)
            cure = f'hand over what stands under "{inner}"' if inner else 'add "type"'
            self.problem(join(path, "type"), "is missing", f"one of {allowed}", cure)
            return
        close = difflib.get_close_matches(str(kind), TYPES, 1)
        cure = f'write "{close[0]}"' if close else "choose one that is in OpenAI's graders guide"
        self.problem(join(path, "type"), f"is {describe(kind)}", f"one of {allowed}", cure)

    def _tolerate(self, plain: dict[str, Any], path: str, within: str) -> None:
        kind = plain["type"]
        if "name" not in plain and kind in ("python", "multi"):
            plain["name"] = within or kind
            self.note(join(path, "name"), f'is missing and read as "{plain["name"]}"')
        if kind == "string_check" and plain.get("operation") == "neq":
            plain["operation"] = "ne"
            self.note(join(path, "operation"), 'is "neq" and read as "ne"')
        if "pass_threshold" in plain:
            del plain["pass_threshold"]
            self.note(join(path, "pass_threshold"), "belongs to evals and changes no grade")
        if kind == "score_model" and isinstance(plain.get("sampling_params"), dict):
            params = {k: v for k, v in plain["sampling_params"].items() if v is not None}
            for alias in _TOKEN_LIMIT_ALIASES:
                if alias in params and "max_completions_tokens" not in params:
                    params["max_completions_tokens"] = params.pop(alias)
                    self.note(
                        join(path, "sampling_params", alias), 'is read as "max_completions_tokens"'
                    )
            plain["sampling_params"] = params

    def _unknown_keys(self, plain: dict[str, Any], path: str) -> None:
        known = _fields(plain["type"])
        for key in plain:
            if key not in known:
                close = difflib.get_close_matches(key, known, 1)
                cure = f'write "{close[0]}"' if close else "take it out"
                self.problem(
                    join(path, key),
                    f"is not a key of {plain['type']}",
                    "only " + ", ".join(sorted(known)),
                    cure,
                )

    def _openai_type(self, plain: dict[str, Any], path: str) -> None:
        """Let the `openai` package's own type judge, and put its findings into our words."""
        from pydantic import ValidationError

        try:
            _openai_class(plain["type"]).model_validate(plain)
        except ValidationError as error:
            seen = set()
            for finding in error.errors(include_url=False):
                place = _place_of(finding["loc"])
                if place not in seen:
                    seen.add(place)
                    self.problem(join(path, *place), *_in_words(finding, place, plain))
        except RecursionError:
            self.problem(path, "is nested too deep", "the documented shape", "flatten it")
        if not plain.get("name") and "name" in plain and isinstance(plain["name"], str):
            self.problem(join(path, "name"), "is empty", "a name", "it labels the reports")

    def _text(self, text: str, path: str) -> list[Any]:
        """A templated text: returns its paths, or reports why it cannot be read."""
        try:
            text.encode("utf-8")
            return compile_template(text).paths
        except UnicodeEncodeError:
            self.problem(path, "holds half a surrogate pair", "Unicode text", "escape it whole")
        except TemplateError as error:
            self.problems.append(f'"{path}": {error}')
        return []

    def _texts(self, plain: dict[str, Any], path: str) -> None:
        before = len(self.problems)
        paths = []
        for key in TYPES[plain["type"]][1]:
            paths += self._text(plain[key], join(path, key))
        if len(self.problems) == before and not any(p.namespace == "sample" for p in paths):
            self.note(path, "asks for no {{sample.…}}: every answer to a row gets the same grade")

    _string_check = _texts

    def _text_similarity(self, plain: dict[str, Any], path: str) -> None:
        self._texts(plain, path)
        if plain["evaluation_metric"] == "cosine" and not self.has_embedder:
            self.problem(
                join(path, "evaluation_metric"),
                'is "cosine"',
                "another metric (OpenAI has cosine in evals only, with its own embedding model)",
                "use fuzzy_match, or load with embedder=a function from texts to vectors",
            )

    def _python(self, plain: dict[str, Any], path: str) -> None:
        for what, expected, cure in check_source(plain["source"]):
            self.problem(join(path, "source"), what, expected, cure)
        missing = missing_imports(plain["source"])
        if missing:
            self.note(
                join(path, "source"),
                f"imports {', '.join(missing)}, not installed here: before a run, "
                f"{install_advice(missing)}",
            )

    def _score_model(self, plain: dict[str, Any], path: str) -> None:
        self._model_and_messages(plain, path)
        limits = plain.get("range")
        if limits is not None:
            numbers = all(is_number(value) and math.isfinite(value) for value in limits)
            if len(limits) != 2 or not numbers or not limits[0] < limits[1]:
                self.problem(
                    join(path, "range"),
                    f"is {describe(limits)}",
                    "two numbers, the lower one first",
                    "write [0, 1]",
                )
        known = _fields("sampling_params")
        checks = {
            "temperature": lambda v: is_number(v) and 0 <= v <= 2,
            "top_p": lambda v: is_number(v) and 0 <= v <= 1,
            "max_completions_tokens": lambda v: type(v) is int and v >= 1,
            "seed": lambda v: type(v) is int,
            "reasoning_effort": lambda v: True,  # its values are the openai type's
        }
        ranges = {
            "temperature": "a number from 0 to 2",
            "top_p": "a number from 0 to 1",
            "max_completions_tokens": "a whole number from 1",
            "seed": "a whole number",
        }
        for key, value in (plain.get("sampling_params") or {}).items():
            here = join(path, "sampling_params", key)
            if key not in known:
                close = difflib.get_close_matches(key, known, 1)
                cure = f'write "{close[0]}"' if close else "take it out"
                self.problem(here, "is not known", f"one of {', '.join(sorted(known))}", cure)
            elif not checks[key](value):
                self.problem(here, f"is {describe(value)}", ranges[key], "change it")

    def _label_model(self, plain: dict[str, Any], path: str) -> None:
        self._model_and_messages(plain, path)
        labels, passing = plain["labels"], plain["passing_labels"]
        for key, values in (("labels", labels), ("passing_labels", passing)):
            if not values or len(set(values)) != len(values) or not all(values):
                self.problem(
                    join(path, key),
                    f"is {describe(values)}",
                    "a list of different, non-empty texts",
                    "name each label once",
                )
        strangers = [label for label in passing if label not in labels]
        if strangers:
            self.problem(
                join(path, "passing_labels"),
                f"names {describe(strangers[0])}",
                f"labels out of {describe(labels)}",
                "add it to labels or take it out",
            )
        elif set(passing) == set(labels):
            self.note(join(path, "passing_labels"), "holds every label: each answer scores 1")

    def _model_and_messages(self, plain: dict[str, Any], path: str) -> None:
        if not plain["model"].strip():
            self.problem(join(path, "model"), "is empty", "a model's name", "name the judge")
        if not plain["input"]:
            self.problem(join(path, "input"), "is empty", "messages", "write the judge's prompt")
        before, paths = len(self.problems), []
        for index, message in enumerate(plain["input"]):
            here = join(path, f"input[{index}]")
            for key in message:
                if key not in ("role", "content", "type"):
                    self.problem(join(here, key), "is not known", "role, content", "take it out")
            content = message["content"]
            parts = content if isinstance(content, list) else [content]
            for number, part in enumerate(parts):
                place = join(here, f"content[{number}]" if parts is content else "content")
                if isinstance(part, str):
                    paths += self._text(part, place)
                elif isinstance(part, dict) and isinstance(part.get("text"), str):
                    paths += self._text(part["text"], join(place, "text"))
                elif isinstance(part, dict) and isinstance(part.get("image_url"), str):
                    paths += self._text(part["image_url"], join(place, "image_url"))
        if len(self.problems) == before and not any(p.namespace == "sample" for p in paths):
            self.note(path, "asks for no {{sample.…}}: the judge never sees the answer")

    def _multi(self, plain: dict[str, Any], path: str) -> dict[str, Any]:
        name, graders = plain.get("name"), plain.get("graders")
        if not isinstance(name, str) or not name:
            self.problem(join(path, "name"), f"is {describe(name)}", "a text", "name the grader")
        formula_text = plain.get("calculate_output")
        places = {}
        if isinstance(graders, list):
            listed = self._name_list(graders, formula_text, path)
            places = {name: f"graders[{index}]" for name, (index, _) in listed.items()}
            graders = {name: part for name, (_, part) in listed.items()}
        if not isinstance(graders, dict) or not graders:
            what = "is missing" if graders is None else f"is {describe(graders)}"
            cure = 'write {"variable": {"type": …}, …}'
            self.problem(join(path, "graders"), what, "an object of graders", cure)
            graders = {}
        parts = {}
        for variable, spec in graders.items():
            here = join(path, places.get(variable) or f"graders.{variable}")
            if not variable.isidentifier():
                self.problem(
                    here,
                    "has a name that a formula cannot use",
                    "letters, digits and _, not beginning with a digit",
                    "rename it, also in calculate_output",
                )
            parts[variable] = self.check(spec, here, within=variable)
        self._formula(formula_text, parts, join(path, "calculate_output"))
        plain["graders"] = parts
        if not self.problems:  # the openai type knows one grader there, not an object of them
            self._openai_type({**plain, "graders": next(iter(parts.values()))}, path)
        return plain

    def _name_list(self, graders: list[Any], formula: Any, path: str) -> dict[str, tuple[int, Any]]:
        """variable -> (index, grader) for a list of graders.

        The API reference shows a list whose formula says `string_check_score`: so a variable is
        TYPE_score where the formula uses that and one grader has the type, otherwise the
        grader's name with _ for all that is not a letter, digit or _.
        """
        kinds = [spec.get("type") if isinstance(spec, dict) else None for spec in graders]
        named: dict[str, tuple[int, Any]] = {}
        for index, (spec, kind) in enumerate(zip(graders, kinds)):
            variable = f"{kind}_score"
            if kinds.count(kind) != 1 or variable not in str(formula):
                name = str(spec.get("name") or "") if isinstance(spec, dict) else ""
                variable = "".join(c if c.isalnum() or c == "_" else "_" for c in name)
                variable = variable if variable.isidentifier() else f"grader_{index}"
            if variable in named:
                self.problem(
                    join(path, f"graders[{index}]", "name"),
                    f"leads to the variable {variable} a second time",
                    "different names",
                    'rename one, or write {"variable": grader, …}',
                )
            named[variable] = (index, spec)
        shown = ", ".join(named)
        self.note(join(path, "graders"), f"is a list; its graders are the variables {shown}")
        return named

    def _formula(self, text: Any, parts: dict[str, Any], path: str) -> None:
        if not isinstance(text, str):
            what = "is missing" if text is None else f"is {describe(text)}"
            self.problem(path, what, "a formula", 'write e.g. "0.5*first + 0.5*second"')
            return
        try:
            formula = parse_formula(text)
        except FormulaError as error:
            self.problems.append(f'"{path}": {error}: the formula is {text[:80]!r}')
            return
        for variable in sorted(formula.variables - set(parts)):
            close = difflib.get_close_matches(variable, [*parts, *FUNCTIONS], 1)
            self.problem(
                path,
                f"uses {variable!r}",
                f"only the graders' variables ({', '.join(parts) or 'there are none'})",
                f"write {close[0]}" if close else "rename it or add a grader of that name",
            )
        for variable in parts:
            if variable not in formula.variables:
                self.note(path, f"does not use {variable!r}: it is graded and reported only")


def _openai_class(kind: str) -> Any:
    import openai.types.graders as types
    from openai.types.graders.score_model_grader import SamplingParams

    return SamplingParams if kind == "sampling_params" else getattr(types, TYPES[kind][0])


def _fields(kind: str) -> set[str]:
    return set(_openai_class(kind).model_fields)


def _place_of(loc: tuple[str | int, ...]) -> tuple[str, ...]:
    """A pydantic location as path steps; what it adds below a union is cut off."""
    steps: list[str] = []
    for part in loc:
        if isinstance(part, int):
            steps[-1] += f"[{part}]"
        else:
            steps.append(part)
        if part == "content":
            break
    return tuple(steps)


def _in_words(finding: dict[str, Any], place: tuple[str, ...], plain: Any) -> tuple[str, str, str]:
    if finding["type"] == "missing":
        return "is missing", f"in every {plain['type']}", "add it"
    if place[-1] == "content":
        return (
            "cannot be read",
            'a text, {"type": "input_text", "text": …}, or a list of these',
            "write the message as a text",
        )
    what = f"is {describe(finding['input'])}"
    if finding["type"] == "literal_error":
        return what, finding["ctx"]["expected"], "choose one of these"
    return what, finding["msg"].removeprefix("Input should be "), "change it"


def join(path: str, *steps: str) -> str:
    return ".".join(step for step in (path, *steps) if step)


def describe(value: Any) -> str:
    """A value as its author wrote it, short."""
    try:
        return shorten(json.dumps(value, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError):
        return f"a {type(value).__name__}"


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# ------------------------------------------------------------------------------------------
# from rftkit.graders.spec:
# Read a grader's JSON and check it: every fault is named at once, with its place and the cure.
#
# The shapes are those of the `openai` package (`openai.types.graders`), which validates first; what
# its types cannot see (templates, the formula, ranges, labels, unknown keys) is checked here.
# Tolerated, with a note, as OpenAI's guide itself writes them: `name` missing in python and multi,
# `"operation": "neq"`, a list in multi, `pass_threshold` (it belongs to evals and changes no
# grade).

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
