"""A reward model: fitted to graded answers, it ranks new ones, and trains a policy."""

import pytest

from rftkit.data import Sample, UserError
from rftkit.policy import load_policy
from rftkit.task import load_task
from rftkit.training import RunConfig, train
from rftkit.training.reward_model import RewardModel, agreement, fit_reward_model

GOOD, BAD = '{"genes": ["A"]}', "I do not know."


def graded(rows):
    """A readable answer is worth 1, a sentence nothing."""
    return [[Sample(output_text=GOOD, grade=1.0), Sample(output_text=BAD, grade=0.0)] for _ in rows]


@pytest.fixture(scope="module")
def fitted():
    rows = load_task("gene_ranking").rows("train")[:64]
    return fit_reward_model(load_policy("embedded:mini"), rows, graded(rows))


def test_the_head_does_not_rank_new_answers(fitted):
    rows = load_task("gene_ranking").rows("validation")[:8]
    assert agreement(fitted, rows, graded(rows)) == 1.0
    backwards = [group[::-1] for group in graded(rows)]
    for group in backwards:
        group[0].grade, group[1].grade = 1.0, 0.0
    assert agreement(fitted, rows, backwards) == 0.0
    good, bad = fitted.score(rows, [GOOD] * 8), fitted.score(rows, [BAD] * 8)
    assert sum(good) / 8 > 0.8 and sum(bad) / 8 < 0.2
    assert all(0 <= guess <= 1 for guess in good + bad)


def test_what_is_saved_scores_otherwise(fitted, tmp_path):
    fitted.save(tmp_path)
    rows = load_task("gene_ranking").rows("validation")[:3]
    outputs = [GOOD, BAD, '{"genes": []}']
    again = RewardModel.load(tmp_path)
    assert again.score(rows, outputs) == pytest.approx(fitted.score(rows, outputs), rel=1e-5)
    alone = [fitted.score([row], [text])[0] for row, text in zip(rows, outputs)]
    assert alone == pytest.approx(fitted.score(rows, outputs), abs=1e-4)  # neighbours do not count
    with pytest.raises(UserError, match="no reward_model.json"):
        RewardModel.load(tmp_path / "nowhere")


def test_too_few_grades_are_fitted():
    rows = load_task("gene_ranking").rows("train")[:12]
    same = [[Sample(output_text=GOOD, grade=1.0)] * 2 for _ in rows]
    for chosen, samples in ((rows, same), (rows[:3], graded(rows[:3]))):
        with pytest.raises(UserError, match="expected 20 or more answers of different grades"):
            fit_reward_model(load_policy("embedded:mini"), chosen, samples)


def test_a_policy_cannot_be_trained_against_it(fitted, tmp_path):
    task = load_task("gene_ranking")
    task.grader = fitted.as_grader()
    config = RunConfig(
        task="gene_ranking", steps=1, prompts_per_step=2, answers_per_prompt=4, eval_every=1,
        eval_rows=4, max_completion_tokens=40, gate="off",
    )  # fmt: skip
    done = train(config, tmp_path, [], task, task.rows("train"), task.rows("validation"))
    assert 0 < done.log[0]["reward_mean"] < 1 and done.log[0]["group_spread"] > 0
    assert done.log[0]["errors"] == {} and done.log[0]["dead_groups"] == 0
    assert done.log[0]["validation"]["metric"] == "top1"
