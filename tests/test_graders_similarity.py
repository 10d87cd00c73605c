"""Text metrics against the libraries called bare, with the settings that we state."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from nltk.translate.gleu_score import sentence_gleu
from rapidfuzz import fuzz, utils
from rouge_score.rouge_scorer import RougeScorer

from rftkit.files import UserError
from rftkit.graders import similarity
from rftkit.graders.grader import Grader
from rftkit.graders.spec import GraderSpecError

PAIRS = [
    ("fuzzy wuzzy was a bear", "fuzzy wuzzy had no hair"),
    ("The cat sat on the mat.", "the cat is sitting on the mat"),
    ("BRCA1", "BRCA2"),
    ("a b c d e f", "a b c d e f"),
    ("a b c d e f", "f e d c b a"),
    ("one", "one two three four five six seven eight"),
    ("", "something"),
    ("something", ""),
    ("", ""),
    ("größer als 3,5 mm", "größer als 3.5 mm"),
    ("中文 字 字", "中文 字"),
    ("x " * 200, "x " * 150 + "y " * 50),
]
BARE = {
    "fuzzy_match": lambda a, b: fuzz.WRatio(a, b, processor=utils.default_process) / 100,
    "bleu": lambda a, b: sentence_bleu(
        [b.split()], a.split(), smoothing_function=SmoothingFunction().method4
    ),
    "gleu": lambda a, b: sentence_gleu([b.split()], a.split()),
}
for kind in ("1", "2", "3", "4", "5", "l"):
    name = f"rouge{kind.upper()}"
    BARE[f"rouge_{kind}"] = lambda a, b, name=name: (
        RougeScorer([name], use_stemmer=False).score(target=b, prediction=a)[name].fmeasure
    )


def metric_grader(metric, **tools):
    spec = {
        "type": "text_similarity",
        "name": "t",
        "input": "{{sample.output_text}}",
        "reference": "{{item.reference}}",
        "evaluation_metric": metric,
    }
    return Grader.load(spec, **tools)


GRADERS = {metric: metric_grader(metric) for metric in BARE}


@pytest.mark.parametrize("metric", BARE)
def test_metric_is_the_library_called_bare(metric):
    for text, reference in PAIRS:
        reward, _ = GRADERS[metric].grade({"reference": reference}, text)
        assert reward == pytest.approx(BARE[metric](text, reference), abs=1e-12), (text, reference)
        assert 0 <= reward <= 1


@settings(max_examples=60, deadline=None)
@given(st.text("ab c.", max_size=20), st.text("ab c.", max_size=20))
def test_metrics_agree_with_the_libraries_on_random_texts(text, reference):
    for metric, bare in BARE.items():
        reward, _ = GRADERS[metric].grade({"reference": reference}, text)
        assert reward == pytest.approx(bare(text, reference), abs=1e-12), metric


def test_direction_is_input_graded_against_reference():
    """BLEU punishes a short answer, not a short reference: exchanged texts would show here."""
    short, long = "a b c d", "a b c d e f g h"
    assert GRADERS["bleu"].grade({"reference": long}, short)[0] == pytest.approx(math.exp(-1))
    assert GRADERS["bleu"].grade({"reference": short}, long)[0] != pytest.approx(math.exp(-1))


def test_meteor_without_its_corpus_names_the_download(monkeypatch):
    class Missing:
        def ensure_loaded(self):
            raise LookupError("no wordnet")

    similarity.get_metric.cache_clear()
    monkeypatch.setattr("nltk.corpus.wordnet", Missing())
    for use in (lambda g: g.check_ready(), lambda g: g.run({"reference": "a"}, "b")):
        with pytest.raises(UserError, match="python -m nltk.downloader wordnet"):
            use(metric_grader("meteor"))


def test_meteor_is_nltks_where_words_match_exactly(monkeypatch):
    """Equal words need no wordnet: 1 - 0.5 * (1 chunk / 4 words) ^ 3."""
    monkeypatch.setattr(similarity, "require_metric", lambda name: None)
    similarity.get_metric.cache_clear()
    try:
        reward, _ = metric_grader("meteor").grade({"reference": "a b c d"}, "a b c d")
    finally:
        similarity.get_metric.cache_clear()
    assert reward == pytest.approx(1 - 0.5 * (1 / 4) ** 3)


def test_cosine_needs_an_embedder():
    with pytest.raises(GraderSpecError, match="embedder"):
        metric_grader("cosine")
    vectors = {"same": [3, 4], "other": [4, -3], "half": [1, 0], "zero": [0, 0]}

    def embed(texts):
        return [vectors[text] for text in texts]

    grader = metric_grader("cosine", embedder=embed)
    for text, expected in [("same", 1), ("other", 0), ("half", 0.6), ("zero", 0)]:
        assert grader.grade({"reference": "same"}, text)[0] == pytest.approx(expected)
    assert grader.run({"reference": "same"}, "unknown")["reward"] is None
