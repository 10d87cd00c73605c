"""Pre-built graders, each with the same interface as one loaded from JSON.

    rank_grader()                            what the right answer's place in a list is worth
    ndcg()                                   a ranking with several right answers
    exact_match(), numeric_match(), math_match()   one right answer
    json_schema_match(), format_match()      the shape of the answer

`to_json()` writes each as OpenAI grader JSON that scores the same: rankings by place and exact
matches as string_check and multi; the others need a python grader there (functions.py).
"""

from __future__ import annotations

import importlib.util
import math
import threading
from collections.abc import Sequence
from typing import Any

from rftkit.data.errors import UserError
from rftkit.graders.context import Context
from rftkit.graders.core import Grader, build
from rftkit.graders.functions import (
    from_function,
    score_format,
    score_math,
    score_ndcg,
    score_number,
    score_schema,
)
from rftkit.graders.multi import compile_single
from rftkit.graders.report import sample_fault
from rftkit.graders.templates import compile_template, render_value

_PLACES = "first second third fourth fifth sixth seventh eighth ninth tenth".split()

# Scales with a name: what first, second, … place is worth.
DECAYS: dict[str, tuple[float, ...]] = {
    "binary": (1.0,),
    "demo": (1.0, 0.7, 0.5, 0.3, 0.1),
    "two_guesses": (1.0, 0.5),
    "reciprocal": tuple(1 / place for place in range(1, 11)),
    "ndcg": tuple(1 / math.log2(place + 1) for place in range(1, 11)),
}


def rank_grader(
    decay: str | Sequence[float] = "demo",
    output_key: str = "genes",
    reference: str = "reference_gene",
    name: str = "rank",
) -> Grader:
    """The worth of the place at which the right answer stands in a ranked list; 0 if it does not.

    decay       worth of first, second, … place: falling (or level) numbers, or the name of a scale
    output_key  path of the list in the JSON answer ("" if the answer is the list itself)
    reference   path of the right answer in the row

    "demo" (default)  1, 0.7, 0.5, 0.3, 0.1: OpenAI's demo of 6 December 2024 ("first place 1.0,
                      second about 0.7", falling to 0; the numbers between are ours)
    "two_guesses"     1, 0.5: the emotion example of OpenPipe's article on RFT (30 December 2024)
    "reciprocal"      1 / place, ten places (Voorhees, TREC-8 question answering track, 1999)
    "ndcg"            1 / log2(place + 1), ten places: nDCG with one right answer (Järvelin and
                      Kekäläinen, 2002); several right answers: `ndcg`
    "binary"          1 for the first place alone

    >>> rank_grader().grade({"reference_gene": "B"}, '{"genes": ["A", "B"]}')[0]
    0.7
    """
    if isinstance(decay, str):
        if decay not in DECAYS:
            raise UserError(
                f"rank grader: decay is {decay!r}, expected numbers or one of {', '.join(DECAYS)}"
            )
        decay = DECAYS[decay]
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
        worths = [w if worth == 1 else f"{worth!r} * {w}" for w, worth in zip(places, decay)]
        formula = f"max({', '.join(worths)})" if len(worths) > 1 else worths[0]
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
    """`rank_grader("reciprocal")` to a depth of your own: 1 / place, 0 beyond `cutoff` places.

    >>> reciprocal_rank().grade({"reference_gene": "B"}, '{"genes": ["A", "B"]}')[0]
    0.5
    """
    return rank_grader([1 / place for place in range(1, cutoff + 1)], output_key, reference, name)


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
    return from_function(score_ndcg, settings, name)


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
    return from_function(score_number, settings, name)


def math_match(
    output_key: str | None = None, reference: str = "answer", name: str = "math"
) -> Grader:
    """1 where answer and reference are equal as mathematics (1/2 and 0.5, sqrt(18) and 3 sqrt(2)),
    read and compared by Hugging Face's math-verify; else 0. In a text the answer stands between
    dollar signs or in \\boxed{}; a bare number is found as well.

    Needs the extra "math". Runs in the main thread only: math-verify stops an endless comparison
    (9^9^9) after five seconds by a signal. Exported as a python grader; math-verify is not among
    the libraries of OpenAI's grader image, so that JSON runs here and not there.

    >>> math_match().grade({"answer": "1/2"}, "It is $0.5$.")[0]  # doctest: +SKIP
    1.0
    """
    if importlib.util.find_spec("math_verify") is None:
        raise UserError(
            "math_match: math-verify is not installed, expected with the extra math: "
            "pip install 'rftkit[math]'; numeric_match compares numbers without it"
        )
    settings = {"output_key": output_key, "reference": reference}
    return from_function(score_math, settings, name, before=_require_main_thread)


def _require_main_thread() -> None:
    if threading.current_thread() is not threading.main_thread():
        raise UserError(
            "math_match: called in a thread, expected the main thread: math-verify's time limit "
            "is a signal, and without it one answer could hold up a run for ever"
        )


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
    return from_function(score_schema, {"schema": schema}, name)


def format_match(output_key: str = "genes", length: int | None = 5, name: str = "format") -> Grader:
    """1 where the output is a JSON object whose `output_key` holds a list of exactly `length`
    (None: one or more) different, non-empty texts; else 0. Exported as a python grader.

    >>> format_match(length=2).grade({}, '{"genes": ["A", "A"]}')[0]
    0.0
    """
    return from_function(score_format, {"output_key": output_key, "length": length}, name)


def _equality(name: str, left: str, right: str) -> dict[str, Any]:
    """A string_check of two paths, as grader JSON."""
    return {
        "type": "string_check",
        "name": name,
        "input": "{{" + left + "}}",
        "reference": "{{" + right + "}}",
        "operation": "eq",
    }
