"""Python functions as graders: `@grader` for your own, and those that native.py is made of.

A function graded here runs in this process. As grader JSON it becomes a `python` grader, whose
text must stand alone: that is why the functions below import within themselves.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from typing import Any

from rftkit.data.errors import UserError
from rftkit.graders.context import Context
from rftkit.graders.core import Grader
from rftkit.graders.multi import compile_single
from rftkit.graders.python import check_value
from rftkit.graders.report import sample_fault

IN_PROCESS = "runs in this process, with all its rights and without isolation: for your own code"


def grader(
    function: Callable[[dict, dict], float] | None = None,
    *,
    name: str | None = None,
    maximum: float = 1.0,
) -> Any:
    """Turn your own function (sample, item) -> number into a Grader.

    It runs IN THIS PROCESS with all your rights, without isolation: for your own code only (the
    grader's `notes` say so too). Text that others wrote goes through `{"type": "python"}`, which
    runs isolated.

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
    made = function_grader(
        function, lambda: export_function(function), name or function.__name__, maximum
    )
    made.notes.append(f"@grader: {made.name!r} {IN_PROCESS}")
    return made


def from_function(
    score: Callable[..., float],
    settings: dict[str, Any],
    name: str,
    before: Callable[[], None] = lambda: None,
) -> Grader:
    """A grader from one of the `score_…` functions below and its settings.

    before  called before each grade; raises UserError where the function cannot run here
    """

    def export() -> dict[str, Any]:
        arguments = "".join(f", {key}={value!r}" for key, value in settings.items())
        call = f"def grade(sample, item):\n    return {score.__name__}(sample, item{arguments})\n"
        return {"type": "python", "name": name, "source": f"{inspect.getsource(score)}\n\n{call}"}

    def run(sample: dict, item: dict) -> float:
        before()
        return score(sample, item, **settings)

    return function_grader(run, export, name, 1.0)


def function_grader(
    function: Callable[[dict, dict], Any],
    export: Callable[[], dict[str, Any]],
    name: str,
    maximum: float,
) -> Grader:
    """A grader around a function (sample, item) -> number, and what exports it."""

    def score(context: Context) -> float:
        try:
            value = function(context.as_dict(), context.item)
        except UserError:  # the set-up is wrong, not this answer
            raise
        except Exception as error:  # as the contract has it for python graders
            detail = f"{type(error).__name__}: {error}"
            raise sample_fault("python_grader_runtime_error", detail) from None
        return check_value(value)

    return Grader(name, "function", compile_single(score), export, maximum=maximum)


def export_function(function: Callable[..., Any]) -> dict[str, Any]:
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


# These run here and, as text, inside an exported python grader: each stands alone.


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


def score_math(sample, item, output_key, reference):
    """See `math_match`."""
    from math_verify import parse, verify

    def read(value):  # a formula without its dollar signs gets them
        text = str(value)
        return parse(text if "$" in text or "\\boxed" in text else f"${text}$")

    answer = read(sample["output_json"][output_key]) if output_key else parse(sample["output_text"])
    return float(verify(read(item[reference]), answer))
