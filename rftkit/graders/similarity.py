"""`string_check` (two texts compared, 1 or 0) and `text_similarity` (how alike they are, 0 to 1).

OpenAI names the metrics and no settings; these are ours:

    fuzzy_match  rapidfuzz.fuzz.WRatio after utils.default_process, divided by 100
    bleu, gleu   nltk sentence_bleu with smoothing method4, sentence_gleu; tokens split at blanks
    meteor       nltk meteor_score; tokens split at blanks; needs nltk's wordnet corpus
    rouge_N, _l  rouge-score, F-measure, no stemmer (its tokens are lower-case a-z and 0-9 only)
    cosine       of the vectors of an embedder that the caller hands over; refused without one

BLEU compares runs of one to four words. On two or three words it stays far below 1 even where both
texts are the same ("a b" against itself: 0.22 with this smoothing); prefer another metric there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from rftkit.files import UserError
from rftkit.graders.answer import Context, Scorer, compile_template

WORDNET_COMMAND = "python -m nltk.downloader wordnet"
Embedder = Callable[[list[str]], Sequence[Sequence[float]]]

OPERATIONS: dict[str, Callable[[str, str], bool]] = {
    "eq": lambda text, reference: text == reference,
    "ne": lambda text, reference: text != reference,
    "like": lambda text, reference: reference in text,
    "ilike": lambda text, reference: reference.casefold() in text.casefold(),
}


def compile_string_check(spec: dict[str, Any]) -> Scorer:
    """A path that is not there is a fault, so an answer without the field fails `ne` too."""
    text, reference = compile_template(spec["input"]), compile_template(spec["reference"])
    compare = OPERATIONS[spec["operation"]]
    return Scorer(lambda context: float(compare(text.render(context), reference.render(context))))


def compile_text_similarity(spec: dict[str, Any], embedder: Embedder | None) -> Scorer:
    text, reference = compile_template(spec["input"]), compile_template(spec["reference"])
    name = spec["evaluation_metric"]

    def score(context: Context) -> float:
        metric = get_metric(name) if name != "cosine" else cosine(embedder)
        return metric(text.render(context), reference.render(context))

    return Scorer(score, lambda: require_corpus(name))


@cache
def get_metric(name: str) -> Callable[[str, str], float]:
    """The function (text, reference) -> 0 to 1 for a metric's name, its library loaded."""
    if name == "fuzzy_match":
        from rapidfuzz import fuzz, utils

        return lambda text, reference: (
            fuzz.WRatio(text, reference, processor=utils.default_process) / 100
        )
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
        require_corpus(name)
        from nltk.translate.meteor_score import meteor_score

        return lambda text, reference: float(meteor_score([reference.split()], text.split()))
    from rouge_score.rouge_scorer import RougeScorer

    kind = name.replace("_", "").replace("l", "L")
    rouge = RougeScorer([kind], use_stemmer=False)
    return lambda text, reference: float(rouge.score(reference, text)[kind].fmeasure)


def require_corpus(metric: str) -> None:
    """Raise UserError if the metric lacks something that must be downloaded first."""
    if metric != "meteor":
        return
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:
        raise UserError(
            "metric meteor: nltk's wordnet corpus is missing: download it once with "
            f"`{WORDNET_COMMAND}`, or use rouge_l"
        ) from None


def cosine(embedder: Embedder) -> Callable[[str, str], float]:
    """The cosine between the vectors of two texts; 0 where one of them is the zero vector."""

    def metric(text: str, reference: str) -> float:
        first, second = (list(map(float, vector)) for vector in embedder([text, reference]))
        norms = math.hypot(*first) * math.hypot(*second)
        return sum(a * b for a, b in zip(first, second, strict=True)) / norms if norms else 0.0

    return metric
