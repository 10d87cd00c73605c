"""`python` graders: text that defines `grade(sample, item)`, run in isolation or not at all.

The text is checked here (syntax, the function, size, imports) and is never run in this process. It
runs through ONE runner, a function handed over with the grader or `rftkit.sandbox.python_runner()`:

    runner(source: str, sample: dict, item: dict) -> PythonResult

A runner may have `check(source) -> str` too: why the text cannot even be loaded, or "".

Limits of the API, which the runner keeps: source below 256 kB, no network, 2 minutes, 2 GB memory,
1 GB disk (OpenAI's graders guide, "Technical constraints").
"""

from __future__ import annotations

import ast
import importlib.util
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rftkit.files import UserError, shorten
from rftkit.graders.answer import Context, grader_fault, sample_fault

MAX_SOURCE_BYTES = 256_000
# Import name -> distribution. First the libraries that OpenAI's guide lists for the machines that
# run python graders; pip gets those missing here from the extra grader-image.
IMAGE_LIBRARIES = {
    **{name: name for name in ("deepdiff", "jsonschema", "nltk", "numpy", "pandas", "pydantic")},
    **{name: name for name in ("rapidfuzz", "scipy", "sqlparse", "sympy")},
    "rouge_score": "rouge-score",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
# Others that are imported under another name than pip knows.
DISTRIBUTIONS = {
    "Bio": "biopython",
    "Levenshtein": "levenshtein",
    "PIL": "pillow",
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "docx": "python-docx",
    "fitz": "pymupdf",
    "skimage": "scikit-image",
}


@dataclass
class PythonResult:
    """What became of one call of grade(). Any object with these attributes will do.

    value          what grade() returned
    runtime_error  why the PROGRAM failed (its traceback, a limit it ran into): the grade is 0
    server_error   why the MACHINERY failed (no isolation, the child process lost): no grade
    server_error_type  a short name for server_error, e.g. "lost"
    failed_to_load the runtime error came from the text itself, before any sample was seen: there
                   is no grade, for a 0 would blame the sample
    """

    value: Any = None
    runtime_error: str | None = None
    server_error: str | None = None
    server_error_type: str | None = None
    failed_to_load: bool = False


Runner = Callable[[str, dict[str, Any], dict[str, Any]], PythonResult]


def check_source(source: str) -> list[tuple[str, str, str]]:
    """The faults of a grader's text as (what, expected, cure); an empty list if it can run.

    >>> check_source("def grade(sample, item):\\n    return 1.0")
    []
    """
    size = len(source.encode("utf-8", "replace"))
    if size >= MAX_SOURCE_BYTES:
        what = f"has {size:,} bytes"
        return [(what, f"fewer than {MAX_SOURCE_BYTES:,}", "move data into the rows of the JSONL")]
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        what = f"is not Python (line {error.lineno}: {error.msg})"
        return [(what, "Python source", "mend that line")]
    except (ValueError, RecursionError, MemoryError) as error:
        return [(f"cannot be read ({type(error).__name__})", "Python source", "simplify it")]
    grades = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == "grade"
    ]
    top = [node for node in grades if node in tree.body]
    cure = "write def grade(sample, item):"
    if not top and not _binds_grade(tree):
        where = "only inside another block" if grades else "nowhere"
        return [(f"defines grade {where}", "a function grade(sample, item)", cure)]
    if not top:
        return []
    function, arguments = top[-1], top[-1].args
    if isinstance(function, ast.AsyncFunctionDef):
        return [("defines grade as async", "an ordinary function", cure)]
    positional = [*arguments.posonlyargs, *arguments.args]
    extra = arguments.vararg or arguments.kwarg or arguments.kwonlyargs
    if len(positional) != 2 or extra:
        return [(f"defines grade({ast.unparse(arguments)})", "exactly two arguments", cure)]
    return []


def missing_imports(source: str) -> list[str]:
    """Top-level packages that the text imports and this Python cannot find."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return sorted(name for name in names if not _is_installed(name))


def install_advice(names: list[str]) -> str:
    """What to install for imports that are missing here, by the names that pip knows.

    >>> install_advice(["yaml", "cv2"])
    "pip install 'rftkit[grader-image]' (pyyaml); pip install opencv-python-headless (cv2)"
    """
    image = [IMAGE_LIBRARIES[name] for name in names if name in IMAGE_LIBRARIES]
    others = [name for name in names if name not in IMAGE_LIBRARIES]
    advice = []
    if image:
        advice.append(f"pip install 'rftkit[grader-image]' ({', '.join(image)})")
    if others:
        wanted = sorted(DISTRIBUTIONS.get(name, name) for name in others)
        known = f" ({', '.join(others)})" if wanted != others else ""
        advice.append(f"pip install {' '.join(wanted)}{known}")
    return "; ".join(advice)


def find_runner(allow_weak_isolation: bool = False) -> Runner:
    """The isolated runner of this installation; UserError where this machine cannot isolate."""
    from rftkit.sandbox.runner import python_runner

    return python_runner(allow_weak_isolation=allow_weak_isolation)


def require_runner(runner: Runner | None, name: str, allow_weak_isolation: bool = False) -> Runner:
    """The runner, or a UserError that says why python graders are refused."""
    try:
        return runner or find_runner(allow_weak_isolation)
    except UserError as error:
        raise UserError(
            f"python grader {name!r} is refused here: {error}; or write the grader with "
            f"string_check, text_similarity and a multi formula"
        ) from None


def require_loading(spec: dict[str, Any], runner: Runner) -> None:
    """UserError if the text of a `python` spec fails before any grade."""
    check = getattr(runner, "check", None)
    error = check(spec["source"]) if check else ""
    if error:
        raise UserError(
            f"python grader {spec['name']!r} cannot be loaded, expected a text that runs: mend it, "
            f"or install what it imports (`rftkit validate-grader` lists that)\n{error}"
        )


def compile_python(
    spec: dict[str, Any], runner: Runner | None = None, allow_weak_isolation: bool = False
) -> Callable[[Context], float]:
    """A scorer for a `python` spec; raises Faults for what went wrong in one grade."""
    source, name = spec["source"], spec["name"]

    def score(context: Context) -> float:
        nonlocal runner
        # Looked for with the first grade, then kept.
        runner = require_runner(runner, name, allow_weak_isolation)
        result = runner(source, context.as_dict(), context.item)
        if result.server_error:
            kind = result.server_error_type or "server_error"
            raise grader_fault("python_grader_server_error", f"{kind}: {result.server_error}")
        if result.runtime_error and getattr(result, "failed_to_load", False):
            raise grader_fault("python_grader_runtime_error", result.runtime_error)
        if result.runtime_error:
            raise sample_fault("python_grader_runtime_error", result.runtime_error)
        return check_value(result.value)

    return score


def check_value(value: Any) -> float:
    """What grade() returned as a float. Whole numbers and bools count; anything else, NaN and the
    infinite are invalid and score 0 ("Any other result … will be marked as invalid")."""
    if isinstance(value, (bool, int, float)):
        try:
            number = float(value)
            if math.isfinite(number):
                return number
        except OverflowError:
            pass
    raise sample_fault(
        "python_grader_runtime_error",
        f"grade returned {shorten(value, 60)} ({type(value).__name__}), expected a finite number",
    )


def _binds_grade(tree: ast.Module) -> bool:
    """Does a top-level statement bind the name in another way: grade = …, from x import grade?"""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(t, ast.Name) and t.id == "grade" for t in targets):
                return True
        if isinstance(node, ast.ImportFrom) and any(
            (alias.asname or alias.name) == "grade" for alias in node.names
        ):
            return True
        if isinstance(node, ast.If | ast.Try | ast.With) and any(
            getattr(child, "name", None) == "grade" for child in ast.walk(node)
        ):
            return True
    return False


def _is_installed(name: str) -> bool:
    if name in sys.stdlib_module_names:
        return True
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
