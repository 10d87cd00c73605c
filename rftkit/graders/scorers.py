"""The scorers that need no other model: string_check, text_similarity, python, and multi's formula.

OpenAI names the metrics of text_similarity and no settings; these are ours: fuzzy_match is
rapidfuzz's WRatio after utils.default_process; bleu (smoothing method4), gleu and meteor are nltk's
on tokens split at blanks; rouge is rouge-score's F-measure without a stemmer. BLEU compares runs of
one to four words: on two or three words it stays far below 1 even where both texts are the same.

python is a text that defines `grade(sample, item)`. It is parsed here and never run in this
process, only through a runner, by default `rftkit.sandbox.runner.python_runner()`.

calculate_output of a multi grader is a formula over the sub-grades, `0.5*a + 0.5*b`. Python reads
it, with `^` as its `**` (2^3^2 is 2^9, -2^2 is -4); only the nodes of arithmetic are let through to
`eval`. Precedence and the base of log (e) are our stated choice.
"""

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

from rftkit.files import UserError, shorten
from rftkit.graders import answer
from rftkit.graders.answer import Context, Scorer, Template, grader_fault, sample_fault
from rftkit.sandbox.runner import default_workers, python_runner

Embedder = Callable[[list[str]], Sequence[Sequence[float]]]

OPERATIONS: dict[str, Callable[[str, str], bool]] = {
    "eq": lambda text, reference: text == reference,
    "ne": lambda text, reference: text != reference,
    "like": lambda text, reference: reference in text,
    "ilike": lambda text, reference: reference.casefold() in text.casefold(),
}


def compile_string_check(spec: dict[str, Any]) -> Scorer:
    """A path that is not there is a fault, so an answer without the field fails `ne` too."""
    text, reference = Template(spec["input"]), Template(spec["reference"])
    compare = OPERATIONS[spec["operation"]]
    return Scorer(lambda context: float(compare(text.render(context), reference.render(context))))


def compile_text_similarity(spec: dict[str, Any], embedder: Embedder | None) -> Scorer:
    text, reference = Template(spec["input"]), Template(spec["reference"])
    name = spec["evaluation_metric"]

    def score(context: Context) -> float:
        filled = text.render(context), reference.render(context)
        return cosine(*embedder(list(filled))) if name == "cosine" else get_metric(name)(*filled)

    return Scorer(score, lambda: name == "cosine" or get_metric(name))


@cache
def get_metric(name: str) -> Callable[[str, str], float]:
    """The function (text, reference) -> 0 to 1 for a metric's name, its library loaded. UserError
    where the metric needs a download first."""
    if name == "fuzzy_match":
        from rapidfuzz import fuzz, utils

        ratio, clean = fuzz.WRatio, utils.default_process
        return lambda text, reference: ratio(text, reference, processor=clean) / 100
    if name.startswith("rouge_"):
        from rouge_score.rouge_scorer import RougeScorer

        kind = name.replace("_", "").replace("l", "L")
        rouge = RougeScorer([kind], use_stemmer=False)
        return lambda text, reference: float(rouge.score(reference, text)[kind].fmeasure)
    from nltk.corpus import wordnet
    from nltk.translate import bleu_score, gleu_score, meteor_score

    smooth = bleu_score.SmoothingFunction().method4
    function = {
        "bleu": partial(bleu_score.sentence_bleu, smoothing_function=smooth),
        "gleu": gleu_score.sentence_gleu,
        "meteor": meteor_score.meteor_score,
    }[name]
    try:
        if name == "meteor":
            wordnet.ensure_loaded()
    except LookupError:
        raise UserError("meteor needs wordnet: run `python -m nltk.downloader wordnet`") from None
    return lambda text, reference: float(function([reference.split()], text.split()))


def cosine(first: Sequence[float], second: Sequence[float]) -> float:
    norms = math.hypot(*first) * math.hypot(*second)
    return float(sum(a * b for a, b in zip(first, second, strict=True)) / norms) if norms else 0.0


MAX_SOURCE_BYTES = 256_000  # OpenAI's limit
Runner = Callable[[str, dict[str, Any], dict[str, Any]], Any]  # source, sample, item -> Outcome


def source_problem(source: str) -> str:
    """What keeps a grader's text from running, or ""."""
    cure = "write def grade(sample, item):"
    if len(source.encode("utf-8", "replace")) >= MAX_SOURCE_BYTES:
        return f"expected fewer than {MAX_SOURCE_BYTES:,} bytes: move data into the rows"
    try:
        functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    except (SyntaxError, ValueError) as error:
        return f"not Python ({error}): correct it"
    for function in functions:
        if function.name == "grade":
            a = function.args
            if len(a.posonlyargs + a.args) == 2 and not (a.vararg or a.kwarg or a.kwonlyargs):
                return ""
            return f"grade({ast.unparse(a)}), expected exactly two arguments: {cure}"
    return f"no function grade at the top level: {cure}"


def compile_python(
    spec: dict[str, Any], runner: Runner | None, allow_weak_isolation: bool
) -> Scorer:
    def isolated() -> Runner:
        return runner or python_runner(allow_weak_isolation=allow_weak_isolation)

    def check_ready() -> None:
        check = getattr(isolated(), "check", None)
        if check and (error := check(spec["source"])):
            raise UserError(f"python grader {spec['name']!r} cannot be loaded:\n{error}")

    def score(context: Context) -> float:
        outcome = isolated()(spec["source"], context.as_dict(), context.item)
        if outcome.server_error:  # the machinery failed, not the program
            raise grader_fault("python_grader_server_error", outcome.server_error)
        if outcome.runtime_error:
            # A text that fails before it saw the sample says nothing about the sample.
            blame = grader_fault if outcome.failed_to_load else sample_fault
            raise blame(answer.PROGRAM_FAILED, outcome.runtime_error)
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
    raise sample_fault(answer.PROGRAM_FAILED, f"grade returned {what}, expected a finite number")


MAX_LENGTH = 4_000  # characters; keeps Python's own parser and compiler within their depth

# All give floats, since a power of whole numbers could fill the memory. math.fabs refuses complex
# numbers, which a negative number to a fraction becomes: abs() alone would let them through.
FUNCTIONS: dict[str, Callable[..., float]] = {
    **{"min": lambda *numbers: min(numbers), "max": lambda *numbers: max(numbers)},
    **{"abs": math.fabs, "exp": math.exp, "sqrt": math.sqrt, "log": math.log},
    "floor": lambda number: float(math.floor(number)),
    "ceil": lambda number: float(math.ceil(number)),
}
# A call is renamed to "max()", so that a variable may be called max.
_SCOPE = {"__builtins__": {}} | {f"{name}()": function for name, function in FUNCTIONS.items()}
_NODES = (
    *(ast.Expression, ast.Name, ast.Load, ast.Call, ast.BinOp, ast.UnaryOp),
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.UAdd, ast.USub),
)


class FormulaError(ValueError):
    """A formula that cannot be read, or that has no finite value."""


class Formula:
    """A formula, read and compiled once; FormulaError where it is none."""

    def __init__(self, text: str):
        if len(text) > MAX_LENGTH or "**" in text:
            raise FormulaError(f"expected at most {MAX_LENGTH} characters, and a power written a^2")
        self.variables: set[str] = set()
        try:
            tree = ast.parse(" ".join(text.split()).replace("^", "**"), mode="eval")
            for node in ast.walk(tree):  # a call comes before its function's name
                self._allow(node)
            self.code = compile(tree, "<formula>", "eval")
        except SyntaxError as error:
            raise FormulaError(error.msg) from None
        except (OverflowError, MemoryError, RecursionError):
            raise FormulaError("nested too deep, or a number too long") from None

    def _allow(self, node: ast.AST) -> None:
        if isinstance(node, ast.Call):
            name, count = getattr(node.func, "id", ""), len(node.args)
            if name not in FUNCTIONS or not count or (count > 1 and name not in ("min", "max")):
                raise FormulaError(f"{ast.unparse(node)!r}, expected {', '.join(FUNCTIONS)}")
            node.func.id += "()"
        elif isinstance(node, ast.Name) and not node.id.endswith("()"):
            self.variables.add(node.id)
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            node.value = float(node.value)
        elif not isinstance(node, _NODES):
            raise FormulaError(f"{ast.unparse(node)!r}, expected arithmetic alone")

    def evaluate(self, values: Mapping[str, float]) -> float:
        """The formula's value; raises FormulaError where it is not a finite number.

        >>> Formula("0.5*a + 0.5*b").evaluate({"a": 1, "b": 0})
        0.5
        """
        try:
            result = float(eval(self.code, _SCOPE, {n: float(values[n]) for n in self.variables}))
        except (ArithmeticError, ValueError, TypeError) as error:  # TypeError: a complex number
            raise FormulaError(f"no value: {error}") from None
        if not math.isfinite(result):
            raise FormulaError(f"its value is {result}, not a finite number")
        return result
