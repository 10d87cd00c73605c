"""`string_check`: two texts compared, 1 or 0.

eq and ne: the same, not the same. like: the input CONTAINS the reference, upper and lower case
kept apart. ilike: the same without case (both folded by str.casefold).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from rftkit.files import UserError
from rftkit.graders.answer import Context, compile_template

# ------------------------------------------------------------------------------------------
# from rftkit.graders.similarity:
# `text_similarity`: how close a text is to a reference, 0 to 1, by a metric of the field.
#
# OpenAI names the metrics and no settings; these are ours (and stated in the documentation):
#
# fuzzy_match  rapidfuzz.fuzz.WRatio after utils.default_process, divided by 100
# bleu, gleu   nltk sentence_bleu with smoothing method4, sentence_gleu; tokens split at blanks
# meteor       nltk meteor_score; tokens split at blanks; needs nltk's wordnet corpus
# rouge_N, _l  rouge-score, F-measure, no stemmer (its tokens are lower-case a-z and 0-9 only)
# cosine       of the vectors of an embedder that the caller hands over; refused without one
#
# BLEU compares runs of one to four words. On two or three words it stays far below 1 even where
# both
# texts are the same ("a b" against itself: 0.22 with this smoothing); prefer another metric there.

Metric = Callable[[str, str], float]
WORDNET_COMMAND = "python -m nltk.downloader wordnet"


def compile_text_similarity(
    spec: dict[str, Any], embedder: Callable[[list[str]], Sequence[Sequence[float]]] | None = None
) -> Callable[[Context], float]:
    """A scorer for a `text_similarity` spec."""
    text = compile_template(spec["input"]).renderer()
    reference = compile_template(spec["reference"]).renderer()
    name = spec["evaluation_metric"]
    if name == "cosine":
        return lambda context: cosine(embedder, text(context), reference(context))
    metric: Metric | None = None

    def score(context: Context) -> float:
        nonlocal metric
        if metric is None:  # the library is loaded with the first grade, not with the grader
            metric = get_metric(name)
        return metric(text(context), reference(context))

    return score


@cache
def get_metric(name: str) -> Metric:
    """The function (text, reference) -> 0 to 1 for a metric's name, its library loaded."""
    if name == "fuzzy_match":
        from rapidfuzz import fuzz, utils

        clean, ratio = utils.default_process, fuzz.WRatio
        return lambda text, reference: ratio(text, reference, processor=clean) / 100
    if name == "bleu":
        from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

        smooth = SmoothingFunction().method4
        return lambda text, reference: float(
            sentence_bleu([reference.split()], text.split(), smoothing_function=smooth)
        )
    if name == "gleu":
        from nltk.translate.gleu_score import sentence_gleu

        return lambda text, reference: float(sentence_gleu([reference.split()], text.split()))
    if name == "meteor":
        require_metric("meteor")
        from nltk.translate.meteor_score import meteor_score

        return lambda text, reference: float(meteor_score([reference.split()], text.split()))
    if name.startswith("rouge_"):
        from rouge_score.rouge_scorer import RougeScorer

        kind = "rouge" + name.removeprefix("rouge_").replace("l", "L")
        rouge = RougeScorer([kind], use_stemmer=False)
        return lambda text, reference: float(rouge.score(reference, text)[kind].fmeasure)
    raise ValueError(f"unknown metric {name!r}")


def require_metric(name: str) -> None:
    """Raise UserError if the metric lacks something that must be downloaded first."""
    if name != "meteor":
        return
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:
        raise UserError(
            f"metric meteor: nltk's wordnet corpus is not there, expected it among nltk's data: "
            f"download it once with `{WORDNET_COMMAND}`, or use rouge_l"
        ) from None


def cosine(
    embedder: Callable[[list[str]], Sequence[Sequence[float]]], text: str, reference: str
) -> float:
    """The cosine between the vectors of two texts; 0 where one of them is the zero vector."""
    first, second = (list(map(float, vector)) for vector in embedder([text, reference]))
    if len(first) != len(second):
        raise ValueError(f"the embedder gave vectors of {len(first)} and {len(second)} numbers")
    norms = math.hypot(*first) * math.hypot(*second)
    return sum(a * b for a, b in zip(first, second)) / norms if norms else 0.0


# ------------------------------------------------------------------------------------------
# from rftkit.graders.similarity:
# `string_check`: two texts compared, 1 or 0.
#
# eq and ne: the same, not the same. like: the input CONTAINS the reference, upper and lower case
# kept apart. ilike: the same without case (both folded by str.casefold).

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
