"""`calculate_output` of a multi grader: a formula over the sub-grades, e.g. `0.5*a + 0.5*b`.

    sum      = product (("+" | "-") product)*
    product  = signed (("*" | "/") signed)*
    signed   = ("+" | "-") signed | power
    power    = atom ("^" signed)?              right-associative: 2^3^2 is 2^9
    atom     = number | variable | function "(" sum ("," sum)* ")" | "(" sum ")"

`^` binds tighter than a minus before it (-2^2 is -4). Functions: min and max (one or more
arguments), abs, floor, ceil, exp, sqrt, log (natural). Source: OpenAI's graders guide,
"Multigraders"; precedence and the base of log are our stated choice.

The text is compiled to a flat list of steps for a stack of numbers and run in a loop: nothing is
handed to Python's eval, and no formula can make it recurse.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MAX_LENGTH = 10_000  # characters
MAX_DEPTH = 50  # brackets, functions, signs and powers within one another

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[^\W\d]\w*)|(?P<symbol>\S))"
)
_OPERATORS: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "^": math.pow,  # not **: a negative number to a fraction must fail, not become complex
}
FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
_MANY_ARGUMENTS = ("min", "max")


class FormulaError(ValueError):
    """A formula that cannot be read (with the position, counted from 1) or has no finite value."""


@dataclass(frozen=True)
class Formula:
    """A compiled formula. Made by `parse_formula`.

    steps  (number of arguments, what): (0, 0.5) puts a number, (0, "first") a variable,
           (2, operator.add) takes two numbers and puts their sum
    """

    text: str
    steps: tuple[tuple[int, Any], ...]
    variables: frozenset[str]

    def evaluate(self, values: Mapping[str, float]) -> float:
        """The formula's value; raises FormulaError where it is not a finite number.

        >>> parse_formula("0.5*a + 0.5*b").evaluate({"a": 1, "b": 0})
        0.5
        """
        stack: list[float] = []
        try:
            for count, what in self.steps:
                if count == 0:
                    stack.append(float(values[what]) if type(what) is str else what)
                elif count == 2:
                    right = stack.pop()
                    stack[-1] = what(stack[-1], right)
                elif count == 1:
                    stack[-1] = what(stack[-1])
                else:
                    arguments = stack[-count:]
                    del stack[-count:]
                    stack.append(what(*arguments))
            result = float(stack[0])
        except ZeroDivisionError:
            raise FormulaError(f"{self.text!r} divides by zero") from None
        except OverflowError:
            raise FormulaError(f"{self.text!r} is too large a number") from None
        except ValueError:
            raise FormulaError(
                f"{self.text!r} takes a root, a logarithm or a power outside its domain"
            ) from None
        if not math.isfinite(result):
            raise FormulaError(f"{self.text!r} is {result}, not a finite number")
        return result


def parse_formula(text: str) -> Formula:
    """Compile a formula; raises FormulaError naming position, what stands there, what may."""
    if len(text) > MAX_LENGTH:
        raise FormulaError(f"{len(text)} characters, expected at most {MAX_LENGTH}: shorten it")
    tokens = _split(text)
    steps: list[tuple[int, Any]] = []
    variables: set[str] = set()
    position = 0  # into tokens

    def fail(expected: str) -> FormulaError:
        kind, value, start = tokens[position]
        there = "the end" if kind == "end" else repr(value)
        return FormulaError(f"position {start + 1}: {there}, expected {expected}")

    def take(symbol: str) -> bool:
        nonlocal position
        if tokens[position][:2] == ("symbol", symbol):
            position += 1
            return True
        return False

    def read_sum(depth: int) -> None:
        read_product(depth)
        while tokens[position][1] in ("+", "-"):
            symbol = tokens[position][1]
            take(symbol)
            read_product(depth)
            steps.append((2, _OPERATORS[symbol]))

    def read_product(depth: int) -> None:
        read_signed(depth)
        while tokens[position][1] in ("*", "/"):
            symbol = tokens[position][1]
            take(symbol)
            if tokens[position][1] == "*" and symbol == "*":
                raise fail("a number or a variable (a power is written ^, not **)")
            read_signed(depth)
            steps.append((2, _OPERATORS[symbol]))

    def read_signed(depth: int) -> None:
        if depth > MAX_DEPTH:
            raise fail(f"at most {MAX_DEPTH} brackets, signs and powers within one another")
        if take("-"):
            read_signed(depth + 1)
            steps.append((1, operator.neg))
        elif take("+"):
            read_signed(depth + 1)
        else:
            read_atom(depth)
            if take("^"):
                read_signed(depth + 1)
                steps.append((2, _OPERATORS["^"]))

    def read_atom(depth: int) -> None:
        nonlocal position
        kind, value, start = tokens[position]
        if kind == "number":
            position += 1
            steps.append((0, float(value)))
        elif kind == "name" and tokens[position + 1][1] == "(":
            if value not in FUNCTIONS:
                raise FormulaError(
                    f"position {start + 1}: function {value!r}, expected one of "
                    f"{', '.join(FUNCTIONS)}"
                )
            position += 2
            read_arguments(value, start, depth + 1)
        elif kind == "name":
            position += 1
            variables.add(value)
            steps.append((0, value))
        elif take("("):
            read_sum(depth + 1)
            if not take(")"):
                raise fail('an operator or ")"')
        else:
            raise fail('a number, a variable, a function or "("')

    def read_arguments(name: str, start: int, depth: int) -> None:
        count = 1
        read_sum(depth)
        while take(","):
            count += 1
            read_sum(depth)
        if not take(")"):
            raise fail('an operator, "," or ")"')
        if name in _MANY_ARGUMENTS:
            if count > 1:  # the smallest of one number is that number
                steps.append((count, FUNCTIONS[name]))
        elif count != 1:
            raise FormulaError(f"position {start + 1}: {name} with {count} arguments, expected 1")
        else:
            steps.append((1, FUNCTIONS[name]))

    read_sum(0)
    if tokens[position][0] != "end":
        raise fail("an operator or the end")
    return Formula(text, tuple(steps), frozenset(variables))


def _split(text: str) -> list[tuple[str, str, int]]:
    """Tokens as (kind, text, start), closed by two of kind "end" so that one may look ahead."""
    tokens = []
    position, stop = 0, len(text.rstrip())
    while position < stop:
        match = _TOKEN.match(text, position)
        kind = match.lastgroup
        value, start = match.group(kind), match.start(kind)
        if kind == "symbol" and value not in "+-*/^(),":
            raise FormulaError(
                f"position {start + 1}: {value!r}, expected a number, a variable, one of + - * / ^ "
                f"( ) , or a function"
            )
        tokens.append((kind, value, start))
        position = match.end()
    return tokens + [("end", "", stop)] * 2
