"""Graders in plain Python, each with the same interface as a loaded one, and `@grader`.

    rank_grader()                       1, 0.7, 0.5, 0.3, 0.1 for the right answer's place in a list
    reciprocal_rank(), ndcg()           the standard measures of a ranking
    exact_match(), numeric_match()      one right answer
    json_schema_match(), format_match() the shape of the answer

`to_json()` writes each as OpenAI grader JSON that scores the same: rankings by place and exact
matches as string_check and multi; ndcg, numbers, schemas and format need a python grader there.
"""

from __future__ import annotations

import inspect
import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from rftkit.data.errors import UserError
from rftkit.graders.context import Context
from rftkit.graders.core import Grader, build
from rftkit.graders.multi import compile_single
from rftkit.graders.python import check_value
from rftkit.graders.report import sample_fault
from rftkit.graders.templates import compile_template, render_value

_PLACES = "first second third fourth fifth sixth seventh eighth ninth tenth".split()


def rank_grader(
    decay: Sequence[float] = (1, 0.7, 0.5, 0.3, 0.1),
    output_key: str = "genes",
    reference: str = "reference_gene",
    name: str = "rank",
) -> Grader:
    """The worth of the place at which the right answer stands in a ranked list; 0 if it does not.

    decay       worth of first, second, … place: falling (or level) numbers
    output_key  path of the list in the JSON answer ("" if the answer is the list itself)
    reference   path of the right answer in the row

    The default is the demo's scale of 6 December 2024: first place 1.0, second about 0.7, falling
    to 0. Binary: decay=(1,). OpenPipe's emotions: decay=(1, 0.5).

    >>> rank_grader().grade({"reference_gene": "B"}, '{"genes": ["A", "B"]}')[0]
    0.7
    """
    decay = tuple(float(worth) for worth in decay)
    falling = all(earlier >= later for earlier, later in zip(decay, decay[1:]))
    if not decay or not falling or not all(math.isfinite(w) and w >= 0 for w in decay):
        raise UserError(
            f"rank grader: decay is {decay}, expected falling numbers from 0 up: a lower place is "
            f"never worth more"
        )
    list_path = "sample.output_json" + (f".{output_key}" if output_key else "")
    answers_template = compile_template("{{" + list_path + "}}")
    right_template = compile_template("{{item." + reference + "}}")
    answers_path, right_path = answers_template.paths[0], right_template.paths[0]

    def score(context: Context) -> float:
        answers = answers_path.resolve(context)
        if not isinstance(answers, list):
            raise sample_fault("sample_parse_error", f"{list_path} is not a list")
        if not answers:
            return 0.0
        right = render_value(right_path.resolve(context))
        for worth, answer in zip(decay, answers):
            if render_value(answer) == right:
                return worth
        return 0.0

    def export() -> dict[str, Any]:
        places = [*_PLACES, *(f"place_{i + 1}" for i in range(len(_PLACES), len(decay)))]
        graders = {
            place: _equality(place, f"{list_path}[{index}]", f"item.{reference}")
            for index, (place, _) in enumerate(zip(places, decay))
        }
        worths = ", ".join(f"{worth!r} * {place}" for place, worth in zip(places, decay))
        formula = f"max({worths})"
        return {"type": "multi", "name": name, "graders": graders, "calculate_output": formula}

    return Grader(
        name,
        "rank",
        compile_single(score),
        export,
        item_templates=[right_template],
        maximum=decay[0],
    )


def reciprocal_rank(
    output_key: str = "genes",
    reference: str = "reference_gene",
    cutoff: int = 10,
    name: str = "reciprocal_rank",
) -> Grader:
    """1 / place of the right answer, 0 beyond `cutoff` places (Voorhees, TREC-8 QA, 1999).

    >>> reciprocal_rank().grade({"reference_gene": "B"}, '{"genes": ["A", "B"]}')[0]
    0.5
    """
    places = [1 / place for place in range(1, cutoff + 1)]
    return rank_grader(places, output_key, reference, name)


def exact_match(
    output_key: str | None = None, reference: str = "answer", name: str = "exact_match"
) -> Grader:
    """1 where the whole output (or one field of a JSON output) is the right answer, letter by
    letter; else 0.

    >>> exact_match().grade({"answer": "4"}, "4")[0]
    1.0
    """
    output = f"sample.output_json.{output_key}" if output_key else "sample.output_text"
    return build(_equality(name, output, f"item.{reference}"))


def ndcg(
    output_key: str = "genes",
    relevance: str = "relevance",
    cutoff: int = 10,
    name: str = "ndcg",
) -> Grader:
    """Normalised discounted cumulative gain at `cutoff` (Järvelin and Kekäläinen, 2002).

    relevance  the row's field: {answer: gain} or a list of right answers (gain 1 each)
    With one right answer it is 1 / log2(place + 1). Exported as a python grader.

    >>> round(ndcg().grade({"relevance": ["A", "B"]}, '{"genes": ["A", "X", "B"]}')[0], 3)
    0.92
    """
    settings = {"output_key": output_key, "relevance": relevance, "cutoff": cutoff}
    return _from_function(score_ndcg, settings, name)


def numeric_match(
    output_key: str | None = None,
    reference: str = "answer",
    tolerance: float = 1e-6,
    name: str = "numeric_match",
) -> Grader:
    """1 where the answer's number is the right one, within `tolerance` (relative, and absolute
    near 0). A text is read by its LAST number; "1,234" is 1234; units, % and fractions are not
    understood. Exported as a python grader.

    >>> numeric_match().grade({"answer": 42}, "6 times 7 is 42.0.")[0]
    1.0
    """
    settings = {"output_key": output_key, "reference": reference, "tolerance": tolerance}
    return _from_function(score_number, settings, name)


def json_schema_match(schema: dict[str, Any], name: str = "json_schema") -> Grader:
    """1 where the output is JSON that the schema (draft 2020-12) accepts; else 0. Exported as a
    python grader (jsonschema is among the libraries of OpenAI's grader image).

    >>> json_schema_match({"type": "array"}).grade({}, "[1]")[0]
    1.0
    """
    import jsonschema

    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        path = ".".join(map(str, error.absolute_path)) or "the schema"
        raise UserError(
            f"json_schema_match: {path}: {error.message}, expected a JSON schema of draft "
            f"2020-12: mend it there"
        ) from None
    return _from_function(score_schema, {"schema": schema}, name)


def format_match(output_key: str = "genes", length: int | None = 5, name: str = "format") -> Grader:
    """1 where the output is a JSON object whose `output_key` holds a list of exactly `length`
    (None: one or more) different, non-empty texts; else 0. Exported as a python grader.

    >>> format_match(length=2).grade({}, '{"genes": ["A", "A"]}')[0]
    0.0
    """
    return _from_function(score_format, {"output_key": output_key, "length": length}, name)


def grader(
    function: Callable[[dict, dict], float] | None = None,
    *,
    name: str | None = None,
    maximum: float = 1.0,
) -> Any:
    """Turn your own function (sample, item) -> number into a Grader.

    It runs IN THIS PROCESS with all your rights, without isolation: for your own code only. Text
    that others wrote goes through `{"type": "python"}`, which runs isolated.

    sample  {"output_text", "output_json" (None where it is not JSON), "output_tools", "choices"}
    As for python graders, an exception or anything but a finite number scores 0, and the report
    says what happened. `to_json()` exports it if it uses nothing from outside itself.

    >>> @grader
    ... def short(sample, item):
    ...     return 1.0 if len(sample["output_text"]) < 10 else 0.0
    >>> short.grade({}, "yes")
    (1.0, {})
    """
    if function is None:
        return lambda later: grader(later, name=name, maximum=maximum)
    try:
        inspect.signature(function).bind("sample", "item")
    except TypeError as error:
        raise UserError(
            f"@grader: {getattr(function, '__name__', function)!r} cannot be called with "
            f"(sample, item) ({error}): give it exactly these two arguments"
        ) from None
    return _function_grader(
        function, lambda: _export_function(function), name or function.__name__, maximum
    )


# The functions below run here and, as text, inside an exported python grader: each stands alone.


def score_ndcg(sample, item, output_key, relevance, cutoff):
    """See `ndcg`. An answer that is repeated counts once."""
    import math

    gains = item[relevance]
    if not isinstance(gains, dict):
        gains = {answer: 1 for answer in gains}
    best = sorted(gains.values(), reverse=True)[:cutoff]
    ideal = sum(gain / math.log2(place + 2) for place, gain in enumerate(best))
    answers = sample["output_json"][output_key]
    if not isinstance(answers, list):
        raise TypeError(f"{output_key} is not a list")
    seen, found = set(), 0.0
    for place, answer in enumerate(answers[:cutoff]):
        if isinstance(answer, str) and answer not in seen:
            seen.add(answer)
            found += gains.get(answer, 0) / math.log2(place + 2)
    return found / ideal


def score_number(sample, item, output_key, reference, tolerance):
    """See `numeric_match`."""
    import math
    import re

    def read(value):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        text = str(value).replace("\N{MINUS SIGN}", "-")
        numbers = re.findall(r"(?:(?<![\d.])[-+])?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", text)
        return float(numbers[-1].replace(",", ""))

    right = read(item[reference])
    answer = read(sample["output_json"][output_key] if output_key else sample["output_text"])
    return float(math.isclose(answer, right, rel_tol=tolerance, abs_tol=tolerance))


def score_schema(sample, item, schema):
    """See `json_schema_match`."""
    import json

    import jsonschema

    try:
        answer = json.loads(sample["output_text"])
    except ValueError:
        return 0.0
    return float(jsonschema.Draft202012Validator(schema).is_valid(answer))


def score_format(sample, item, output_key, length):
    """See `format_match`."""
    output = sample["output_json"]
    answers = output.get(output_key) if isinstance(output, dict) else None
    if not isinstance(answers, list) or not answers:
        return 0.0
    if not all(isinstance(answer, str) and answer.strip() for answer in answers):
        return 0.0
    different = len(set(answers)) == len(answers)
    return float(different and (length is None or len(answers) == length))


def _equality(name: str, left: str, right: str) -> dict[str, Any]:
    """A string_check of two paths, as grader JSON."""
    return {
        "type": "string_check",
        "name": name,
        "input": "{{" + left + "}}",
        "reference": "{{" + right + "}}",
        "operation": "eq",
    }


def _from_function(score: Callable[..., float], settings: dict[str, Any], name: str) -> Grader:
    """A grader from one of the functions above and its settings."""

    def export() -> dict[str, Any]:
        arguments = "".join(f", {key}={value!r}" for key, value in settings.items())
        call = f"def grade(sample, item):\n    return {score.__name__}(sample, item{arguments})\n"
        return {"type": "python", "name": name, "source": f"{inspect.getsource(score)}\n\n{call}"}

    return _function_grader(lambda sample, item: score(sample, item, **settings), export, name, 1.0)


def _function_grader(
    function: Callable[[dict, dict], Any],
    export: Callable[[], dict[str, Any]],
    name: str,
    maximum: float,
) -> Grader:
    def score(context: Context) -> float:
        try:
            value = function(context.as_dict(), context.item)
        except Exception as error:  # as the contract has it for python graders
            detail = f"{type(error).__name__}: {error}"
            raise sample_fault("python_grader_runtime_error", detail) from None
        return check_value(value)

    return Grader(name, "function", compile_single(score), export, maximum=maximum)


def _export_function(function: Callable[..., Any]) -> dict[str, Any]:
    """A user's function as a python grader; UserError if its text alone would not run."""
    name = getattr(function, "__name__", "grade")
    try:
        outside = inspect.getclosurevars(function)
        source = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError) as error:
        raise UserError(
            f"@grader: the source of {name!r} cannot be found ({error}): define it with def in a "
            f"file or a notebook cell"
        ) from None
    borrowed = sorted({*outside.globals, *outside.nonlocals, *outside.unbound})
    if borrowed or not source.lstrip().startswith(("def ", "@")):
        needs = f"uses {', '.join(borrowed)} from outside" if borrowed else "is not a def"
        raise UserError(
            f"@grader: {name!r} {needs}, expected a function that stands alone: import and define "
            f"within it what it needs, then export"
        )
    source = source[source.index("def ") :]
    call = (
        ""
        if name == "grade"
        else f"\n\ndef grade(sample, item):\n    return {name}(sample, item)\n"
    )
    return {"type": "python", "name": name, "source": source + call}
