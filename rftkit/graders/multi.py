"""`multi`: several graders, and a formula over their grades."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rftkit.data.errors import UserError
from rftkit.graders.context import Context
from rftkit.graders.formula import FormulaError, parse_formula
from rftkit.graders.report import Fault, Grade, grader_fault

Scorer = Callable[[Context], float]


def as_fault(error: Exception) -> Fault:
    """What an exception of a scorer means. A bug below becomes `other_error`: a library that
    cannot take one text must not end a run. A UserError passes: the set-up is wrong, not this
    grade."""
    if isinstance(error, UserError):
        raise error
    if isinstance(error, Fault):
        return error
    return grader_fault("other_error", f"{type(error).__name__}: {error}")


def compile_single(score: Scorer) -> Callable[[Context], Grade]:
    """An evaluation that consists of one score."""

    def evaluate(context: Context) -> Grade:
        try:
            return Grade(score(context), {})
        except Exception as error:
            fault = as_fault(error)
            return Grade(fault.score, {}, (("", fault),))

    return evaluate


def compile_multi(scorers: Mapping[str, Scorer], formula_text: str) -> Callable[[Context], Grade]:
    """An evaluation of several scores and the formula over them.

    A sub-grader with the sample's fault enters the formula as 0. One without any score (its own
    fault) leaves the whole without a score, unless the formula does not use it.
    """
    formula = parse_formula(formula_text)
    parts = tuple(scorers.items())

    def evaluate(context: Context) -> Grade:
        values: dict[str, float | None] = {}
        faults: list[tuple[str, Fault]] = []
        for variable, score in parts:
            try:
                values[variable] = score(context)
            except Exception as error:
                fault = as_fault(error)
                values[variable] = fault.score
                faults.append((variable, fault))
        if any(f.score is None and variable in formula.variables for variable, f in faults):
            return Grade(None, values, tuple(faults))
        try:
            return Grade(formula.evaluate(values), values, tuple(faults))
        except FormulaError as error:
            fault = grader_fault("formula_parse_error", f"calculate_output: {error}")
            return Grade(None, values, (*faults, ("", fault)))

    return evaluate
