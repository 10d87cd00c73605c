"""`string_check`: two texts compared, 1 or 0.

eq and ne: the same, not the same. like: the input CONTAINS the reference, upper and lower case
kept apart. ilike: the same without case (both folded by str.casefold).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rftkit.graders.context import Context
from rftkit.graders.templates import compile_template

OPERATIONS: dict[str, Callable[[str, str], bool]] = {
    "eq": lambda text, reference: text == reference,
    "ne": lambda text, reference: text != reference,
    "like": lambda text, reference: reference in text,
    "ilike": lambda text, reference: reference.casefold() in text.casefold(),
}


def compile_string_check(spec: dict[str, Any]) -> Callable[[Context], float]:
    """A scorer for a `string_check` spec. A path that is not there is a fault, so that an answer
    without the field fails `ne` too."""
    text = compile_template(spec["input"]).renderer()
    reference = compile_template(spec["reference"]).renderer()
    compare = OPERATIONS[spec["operation"]]
    return lambda context: 1.0 if compare(text(context), reference(context)) else 0.0
