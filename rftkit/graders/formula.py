"""`calculate_output` of a multi grader: a formula over the sub-grades, e.g. `0.5*a + 0.5*b`.

Python reads it, with `^` as its `**`: so 2^3^2 is 2^9 and -2^2 is -4. Only the nodes of arithmetic
are let through to `eval`. OpenAI's guide names the operators and functions; precedence and the base
of log (e) are our stated choice.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import CodeType

from rftkit.files import shorten

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
_NODES = (
    *(ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Call, ast.BinOp, ast.UnaryOp),
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.UAdd, ast.USub),
)
_NAME = re.compile(r"(?<![\w.])[^\W\d]\w*")
# A character that no formula has, Python's own power, or a number that runs into a letter (0x1F).
_FOREIGN = re.compile(r"[^\w\s+*/^(),.-]|\*\*|(?<![\w.])(?>\d[\d.]*(?:[eE][+-]?\d+)?)[^\W\d]")


class FormulaError(ValueError):
    """A formula that cannot be read, or that has no finite value."""


@dataclass(frozen=True)
class Formula:
    """A compiled formula. Made by `parse_formula`."""

    text: str
    code: CodeType
    variables: frozenset[str]

    def evaluate(self, values: Mapping[str, float]) -> float:
        """The formula's value; raises FormulaError where it is not a finite number.

        >>> parse_formula("0.5*a + 0.5*b").evaluate({"a": 1, "b": 0})
        0.5
        """
        names = {f"_{name}": float(values[name]) for name in self.variables}
        try:
            result = float(eval(self.code, {"__builtins__": {}, **FUNCTIONS}, names))
        except (ArithmeticError, ValueError, TypeError) as error:  # TypeError: a complex number
            raise FormulaError(f"no value: {error}") from None
        if not math.isfinite(result):
            raise FormulaError(f"its value is {result}, not a finite number")
        return result


def parse_formula(text: str) -> Formula:
    """Compile a formula; raises FormulaError with the position (from 1) and what stands there."""
    if len(text) > MAX_LENGTH:
        raise FormulaError(f"{len(text)} characters, expected at most {MAX_LENGTH}: shorten it")
    if foreign := _FOREIGN.search(text):
        place = f"position {foreign.start() + 1}: {foreign[0]!r}"
        raise FormulaError(f"{place}, expected names, numbers and + - * / ^ ( ) ,")
    # Variables get an underscore: so `class` is none of Python's words, and `max` no function.
    line = re.sub(r"\s", " ", text)
    indent = len(line) - len(line.lstrip())
    python = _NAME.sub(r"_\g<0>", line.strip()).replace("^", "**")
    try:
        tree = ast.parse(python, mode="eval")
        variables = _check(tree)
        return Formula(text, compile(tree, "<formula>", "eval"), frozenset(variables))
    except FormulaError:
        raise
    except SyntaxError as error:
        before = python[: error.offset - 1 if error.offset else len(python)]
        position = indent + len(before) - before.count("**") - len(_NAME.findall(before)) + 1
        raise FormulaError(f"position {position}: {error.msg}") from None
    except (ValueError, OverflowError, MemoryError, RecursionError):
        raise FormulaError("nested too deep, or a number too long: simplify it") from None


def _check(tree: ast.Expression) -> set[str]:
    """The variables of a formula in which all is allowed. Numbers become floats, and functions
    lose the underscore that every name got."""
    variables = set()
    for node in ast.walk(tree):  # a call comes before its function's name
        if isinstance(node, ast.Call):
            name = node.func.id[1:] if isinstance(node.func, ast.Name) else ""
            if name not in FUNCTIONS or node.keywords or not node.args:
                names = ", ".join(FUNCTIONS)
                raise FormulaError(f"{_shown(node)}, expected one of {names} of a value")
            if len(node.args) > 1 and name not in ("min", "max"):
                raise FormulaError(f"{_shown(node)}: {len(node.args)} arguments, expected 1")
            node.func.id = name
        elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
            node.value = float(node.value)
        elif isinstance(node, ast.Name) and node.id.startswith("_"):
            variables.add(node.id[1:])
        elif not isinstance(node, _NODES) or isinstance(node, ast.Constant):
            raise FormulaError(f"{_shown(node)}, expected arithmetic alone")
    return variables


def _shown(node: ast.AST) -> str:
    """What the author wrote, near enough."""
    return repr(shorten(re.sub(r"\b_", "", ast.unparse(node)).replace("**", "^")))
