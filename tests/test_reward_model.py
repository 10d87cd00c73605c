"""The reward model of notebook 12: fitted to graded answers, it ranks new ones."""

import math
from types import SimpleNamespace

import pytest
from test_notebook_exercises import cells

from rftkit import Sample, load_task

CELLS = "setup config people features by-hand fit-by-hand reward-model agreement"
GOOD, BAD = '{"genes": ["A"]}', "I do not know."


@pytest.fixture(scope="module")
def notebook():
    """The names that these cells define."""
    names = {"__name__": "__main__"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RFTKIT_PROFILE", "smoke")
        for cell in CELLS.split():
            exec(cells("12_reward_model")[cell], names)
            names["labelled"] = 4  # rows: the classes are the point, not what is printed
    return SimpleNamespace(**names)


def test_the_head_ranks_new_answers(notebook):
    def graded(rows):
        good, bad = Sample(output_text=GOOD, grade=1.0), Sample(output_text=BAD, grade=0.0)
        return [[good, bad] for _ in rows]

    task = load_task("gene_ranking")
    rows, others = task.rows("train")[:64], task.rows("validation")[:8]
    fitted = notebook.RewardModel(rows, graded(rows))
    assert notebook.agreement(fitted, others, graded(others)) == 1.0
    good, bad = fitted.score(others, [GOOD] * 8), fitted.score(others, [BAD] * 8)
    assert sum(good) / 8 > 0.8 and sum(bad) / 8 < 0.2
    assert all(0 <= guess <= 1 for guess in good + bad)


def test_agreement_counts_pairs_of_different_grades(notebook):
    def group(*pairs):
        return [Sample(output_text=str(guess), grade=grade) for guess, grade in pairs]

    guesses = SimpleNamespace(score=lambda rows, outputs: [float(text) for text in outputs])
    right = group((0.9, 1.0), (0.2, 0.0), (0.5, 0.0))  # two pairs; the two zeros are a tie
    wrong = group((0.1, 1.0), (0.4, 0.5))
    agreement = notebook.agreement(guesses, [{}, {}], [right, wrong])
    assert agreement == pytest.approx(2 / 3)
    for nothing in (group((0.1, 1.0), (0.2, 1.0)), []):
        assert math.isnan(notebook.agreement(guesses, [{}], [nothing]))
