"""`python` graders: text that defines `grade(sample, item)`, run in isolation or not at all.

The text is parsed here and never run in this process. It runs through one runner, a function of the
settings or `rftkit.sandbox.python_runner()`: runner(source, sample, item) -> Outcome. It may have
`check(source)` too (why the text cannot even be loaded, or "") and `workers`.
"""

from __future__ import annotations

import ast
import importlib.util
import math
import symtable
from collections.abc import Callable
from typing import Any

from rftkit.files import UserError, shorten
from rftkit.graders.answer import PROGRAM_FAILED, Context, Scorer, grader_fault, sample_fault

MAX_SOURCE_BYTES = 256_000  # OpenAI's limit
Runner = Callable[[str, dict[str, Any], dict[str, Any]], Any]


def source_problem(source: str) -> str:
    """What keeps a grader's text from running, or ""."""
    cure = "write def grade(sample, item):"
    if len(source.encode("utf-8", "replace")) >= MAX_SOURCE_BYTES:
        return f"expected fewer than {MAX_SOURCE_BYTES:,} bytes: move data into the rows"
    try:
        tree = ast.parse(source)
        names = symtable.symtable(source, "grader", "exec").get_symbols()
    except (SyntaxError, ValueError) as error:
        return f"not Python ({error}): correct it"
    if not any(s.get_name() == "grade" and (s.is_assigned() or s.is_imported()) for s in names):
        return f"no function grade at the top level: {cure}"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "grade":
            a = node.args
            if len(a.posonlyargs + a.args) != 2 or a.vararg or a.kwarg or a.kwonlyargs:
                return f"grade({ast.unparse(a)}), expected exactly two arguments: {cure}"
    return ""


def missing_imports(source: str) -> list[str]:
    """Top-level packages that a text imports and this Python cannot find."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return sorted(name for name in names if importlib.util.find_spec(name) is None)


def compile_python(
    spec: dict[str, Any], runner: Runner | None, allow_weak_isolation: bool
) -> Scorer:
    from rftkit.sandbox.runner import default_workers, python_runner

    def isolated() -> Runner:
        try:
            return runner or python_runner(allow_weak_isolation=allow_weak_isolation)
        except UserError as error:
            raise UserError(f"python grader {spec['name']!r} is refused here: {error}") from None

    def check_ready() -> None:
        check = getattr(isolated(), "check", None)
        error = check(spec["source"]) if check else ""
        if error:
            raise UserError(f"python grader {spec['name']!r} cannot be loaded:\n{error}")

    def score(context: Context) -> float:
        outcome = isolated()(spec["source"], context.as_dict(), context.item)
        if outcome.server_error:  # the machinery failed, not the program
            kind = outcome.server_error_type or "server_error"
            raise grader_fault("python_grader_server_error", f"{kind}: {outcome.server_error}")
        if outcome.runtime_error:
            # A text that fails before it saw the sample says nothing about the sample.
            blame = grader_fault if outcome.failed_to_load else sample_fault
            raise blame(PROGRAM_FAILED, outcome.runtime_error)
        return as_score(outcome.value)

    return Scorer(score, check_ready, getattr(runner, "workers", None) or default_workers())


def as_score(value: Any) -> float:
    """What grade() returned, as a float. Whole numbers and bools count; anything else, NaN and the
    infinite score 0 ("Any other result … will be marked as invalid")."""
    try:  # a whole number of 400 digits overflows
        if isinstance(value, (int, float)) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass
    what = f"{shorten(value, 60)} ({type(value).__name__})"
    raise sample_fault(PROGRAM_FAILED, f"grade returned {what}, expected a finite number")
