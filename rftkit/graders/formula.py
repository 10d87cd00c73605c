"""`calculate_output` of a multi grader: a formula over the sub-grades, e.g. `0.5*a + 0.5*b`.

Python reads it, with `^` as its `**`: so 2^3^2 is 2^9 and -2^2 is -4. Only the nodes of arithmetic
are let through to `eval`. OpenAI's guide names the operators and functions; precedence and the base
of log (e) are our stated choice.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import CodeType

MAX_LENGTH = 4_000  # characters; keeps Python's own parser and compiler within their depth

# All give floats, since a power of whole numbers could fill the memory. math.fabs refuses complex
# numbers, which a negative number to a fraction becomes: abs() alone would let them through.
FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": lambda *numbers: min(numbers),
    "max": lambda *numbers: max(numbers),
    "abs": math.fabs,
    "floor": lambda number: float(math.floor(number)),
    "ceil": lambda number: float(math.ceil(number)),
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
# A call is renamed to "max()", so that a variable may be called max.
_SCOPE = {"__builtins__": {}} | {f"{name}()": function for name, function in FUNCTIONS.items()}
_NODES = (
    *(ast.Expression, ast.Name, ast.Load, ast.Call, ast.BinOp, ast.UnaryOp),
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.UAdd, ast.USub),
)


class FormulaError(ValueError):
    """A formula that cannot be read, or that has no finite value."""


@dataclass(frozen=True)
class Formula:
    """A compiled formula. Made by `parse_formula`."""

    code: CodeType
    variables: frozenset[str]

    def evaluate(self, values: Mapping[str, float]) -> float:
        """The formula's value; raises FormulaError where it is not a finite number.

        >>> parse_formula("0.5*a + 0.5*b").evaluate({"a": 1, "b": 0})
        0.5
        """
        try:
            result = float(eval(self.code, _SCOPE, {n: float(values[n]) for n in self.variables}))
        except (ArithmeticError, ValueError, TypeError) as error:  # TypeError: a complex number
            raise FormulaError(f"no value: {error}") from None
        if not math.isfinite(result):
            raise FormulaError(f"its value is {result}, not a finite number")
        return result


def parse_formula(text: str) -> Formula:
    if len(text) > MAX_LENGTH or "**" in text:
        raise FormulaError(f"expected at most {MAX_LENGTH} characters, and a power written a^2")
    try:
        tree = ast.parse(" ".join(text.split()).replace("^", "**"), mode="eval")
        variables = set()
        for node in ast.walk(tree):  # a call comes before its function's name
            if isinstance(node, ast.Call):
                name, count = getattr(node.func, "id", ""), len(node.args)
                if name not in FUNCTIONS or not count or (count > 1 and name not in ("min", "max")):
                    raise FormulaError(f"{ast.unparse(node)!r}, expected {', '.join(FUNCTIONS)}")
                node.func.id += "()"
            elif isinstance(node, ast.Name) and not node.id.endswith("()"):
                variables.add(node.id)
            elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
                node.value = float(node.value)
            elif not isinstance(node, _NODES):
                raise FormulaError(f"{ast.unparse(node)!r}, expected arithmetic alone")
        return Formula(compile(tree, "<formula>", "eval"), frozenset(variables))
    except SyntaxError as error:
        raise FormulaError(error.msg) from None
    except (OverflowError, MemoryError, RecursionError):
        raise FormulaError("nested too deep, or a number too long") from None
