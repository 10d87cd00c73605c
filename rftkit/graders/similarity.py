"""`string_check` (two texts compared, 1 or 0) and `text_similarity` (how alike they are, 0 to 1).

OpenAI names the metrics and no settings; these are ours: fuzzy_match is rapidfuzz's WRatio after
utils.default_process; bleu (smoothing method4), gleu and meteor are nltk's on tokens split at
blanks; rouge is rouge-score's F-measure without a stemmer; cosine is that of the vectors of an
embedder, and refused without one. BLEU compares runs of one to four words: on two or three words it
stays far below 1 even where both texts are the same; prefer another metric there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from rftkit.files import UserError
from rftkit.graders.answer import Context, Scorer, compile_template

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
        filled = text.render(context), reference.render(context)
        return cosine(*embedder(list(filled))) if name == "cosine" else get_metric(name)(*filled)

    return Scorer(score, lambda: name == "cosine" or get_metric(name))


@cache
def get_metric(name: str) -> Callable[[str, str], float]:
    """The function (text, reference) -> 0 to 1 for a metric's name, its library loaded.

    Raises UserError where the metric needs a download first.
    """
    if name == "fuzzy_match":
        from rapidfuzz import fuzz, utils

        return lambda text, reference: (
            fuzz.WRatio(text, reference, processor=utils.default_process) / 100
        )
    if name.startswith("rouge_"):
        from rouge_score.rouge_scorer import RougeScorer

        kind = name.replace("_", "").replace("l", "L")
        rouge = RougeScorer([kind], use_stemmer=False)
        return lambda text, reference: float(rouge.score(reference, text)[kind].fmeasure)
    from nltk.corpus import wordnet
    from nltk.translate import bleu_score, gleu_score, meteor_score

    try:
        if name == "meteor":
            wordnet.ensure_loaded()
    except LookupError:
        command = "python -m nltk.downloader wordnet"
        raise UserError(f"metric meteor: needs wordnet: run `{command}` once") from None
    smooth = bleu_score.SmoothingFunction().method4
    function = {
        "bleu": lambda a, b: bleu_score.sentence_bleu(a, b, smoothing_function=smooth),
        "gleu": gleu_score.sentence_gleu,
        "meteor": meteor_score.meteor_score,
    }[name]
    return lambda text, reference: float(function([reference.split()], text.split()))


def cosine(first: Sequence[float], second: Sequence[float]) -> float:
    norms = math.hypot(*first) * math.hypot(*second)
    return float(sum(a * b for a, b in zip(first, second, strict=True)) / norms) if norms else 0.0
