"""A reward model: fitted to graded answers, it ranks new ones, and trains a policy."""

import math
from types import SimpleNamespace

import pytest
import torch
from test_training import TINY

from rftkit import RunConfig, Sample, UserError, load_task, reward_model, train
from rftkit.reward_model import agreement, fit_reward_model

GOOD, BAD = '{"genes": ["A"]}', "I do not know."


def graded(rows):
    """A readable answer is worth 1, a sentence nothing."""
    return [[Sample(output_text=GOOD, grade=1.0), Sample(output_text=BAD, grade=0.0)] for _ in rows]


@pytest.fixture(scope="module")
def fitted(mini):
    rows = load_task("gene_ranking").rows("train")[:64]
    return fit_reward_model(mini, rows, graded(rows))


def test_the_head_ranks_new_answers(fitted):
    rows = load_task("gene_ranking").rows("validation")[:8]
    assert agreement(fitted, rows, graded(rows)) == 1.0
    good, bad = fitted.score(rows, [GOOD] * 8), fitted.score(rows, [BAD] * 8)
    assert sum(good) / 8 > 0.8 and sum(bad) / 8 < 0.2
    assert all(0 <= guess <= 1 for guess in good + bad) and fitted.score([], []) == []


def test_agreement_counts_pairs_of_different_grades():
    def group(*pairs):
        return [Sample(output_text=str(guess), grade=grade) for guess, grade in pairs]

    guesses = SimpleNamespace(score=lambda rows, outputs: [float(text) for text in outputs])
    right = group((0.9, 1.0), (0.2, 0.0), (0.5, 0.0))  # two pairs; the two zeros are a tie
    wrong = group((0.1, 1.0), (0.4, 0.5), (0.7, None))  # one pair; one answer has no grade
    assert agreement(guesses, [{}, {}], [right, wrong]) == pytest.approx(2 / 3)
    assert math.isnan(agreement(guesses, [{}], [group((0.1, 1.0), (0.2, 1.0))]))


def test_an_answers_score_does_not_depend_on_its_batch(fitted):
    rows = load_task("gene_ranking").rows("validation")[:3]
    outputs = [GOOD, BAD, '{"genes": []}']
    alone = [fitted.score([row], [text])[0] for row, text in zip(rows, outputs)]
    assert alone == pytest.approx(fitted.score(rows, outputs), abs=1e-4)


@pytest.mark.parametrize(
    "samples", [graded([{}] * 3), [[Sample(output_text=GOOD, grade=1.0)]] * 30]
)
def test_too_few_or_equal_grades_are_refused(mini, samples):
    with pytest.raises(UserError, match="expected 20 or more answers of different grades"):
        fit_reward_model(mini, [{}] * len(samples), samples)


def test_a_policy_is_trained_against_it(fitted, tmp_path):
    task = load_task("gene_ranking")
    task.grader = fitted.as_grader()
    config = RunConfig(**TINY | {"steps": 1, "eval_every": 1})
    (record,) = train(config, tmp_path, task=task).log
    assert 0 < record["reward_mean"] < 1 and record["group_spread"] > 0
    assert record["errors"] == {} and record["validation"]["metric"] == "top1"


def test_the_features_are_of_the_answers_own_tokens(mini):
    """By hand, each text alone: no padding, the states from the end of the question on."""
    rows = load_task("gene_ranking").rows("validation")[:3]
    outputs = [GOOD, BAD * 5, '{"genes": ["SCN1A", "INSR", "PTEN", "TBP", "FXN"]}']
    features = reward_model.read_answers(mini, rows, outputs)
    for row, text, feature in zip(rows, outputs, features):
        question = mini.render(row["messages"])
        asked, whole = mini.encode([question, question + text + mini.tokenizer.eos_token])
        with torch.inference_mode():
            out = mini.model(torch.tensor([whole]), output_hidden_states=True)
        expected = out.hidden_states[-1][0, len(asked) :].mean(0)
        torch.testing.assert_close(feature, expected, atol=1e-4, rtol=1e-3)
