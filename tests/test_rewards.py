"""A grader as TRL's reward function: its signature, its faults, its series."""

import json
from types import SimpleNamespace

import pytest

from rftkit.graders.grader import Grader, grader
from rftkit.graders.presets import preset
from rftkit.graders.rewards import GraderFailure, reward_function

EXACT = Grader.load(preset("exact_match"))
GENES = Grader.load(preset("gene_rank"))


def genes(*names):
    return json.dumps({"genes": names})


def said(content, **more):
    return {"role": "assistant", "content": content, **more}


@pytest.fixture
def log():
    """Stands where TRL's log_metric and log_extra stand; `log()` hands both over."""
    log = SimpleNamespace(metrics={}, extra={})
    log.arguments = {"log_metric": log.metrics.__setitem__, "log_extra": log.extra.__setitem__}
    return log


def test_texts_and_messages_are_graded_alike():
    text = genes("A", "B")
    completions = [
        text, f"<think>A or B?</think>{text}", [said(text)],
        [said("", tool_calls=[]), {"role": "tool", "content": "x"}, said(f"<think></think>{text}")],
        [], "<think>cut off " + text,
    ]  # fmt: skip
    reward = reward_function(GENES)
    assert reward(completions=completions, reference_gene=["B"] * 6) == [0.73] * 4 + [0.0, 0.0]
    assert reward.__name__ == "gene_rank"  # TRL's name of its series


THOUGHTS = [  # (prompt, a thought that never closes, one that does); an output of tool calls too
    ("Q", "<think>foo", "<think>foo</think>5"),
    ("Q", [said("<think>foo")], [said("<think>foo</think>5")]),
    ("Q", [said("<think>foo", tool_calls=[{}])], [said("<think>foo</think>5", tool_calls=[{}])]),
    ("Q\n<think>\n", "foo", "foo</think>5"),
]


@pytest.mark.parametrize(("prompt", "open", "closed"), THOUGHTS)
def test_a_thought_that_never_closes_earns_nothing(prompt, open, closed, log):
    """An empty output is "not equal" to anything: without the cut it would earn the maximum."""
    grades = []
    made = Grader.load(preset("exact_match") | {"operation": "ne"})
    reward = reward_function(made, observer=lambda samples, found: grades.extend(found))
    columns = {"completions": [open, closed], "prompts": [prompt] * 2, "answer": ["4", "4"]}
    assert reward(**columns, **log.arguments) == [0.0, 1.0]
    assert log.metrics["grader_errors/truncated_observation_error"] == 0.5
    assert "never closed" in grades[0].explanations[1]


def test_every_sub_grade_and_fault_is_logged_as_its_own_series(log):
    completions = [genes("A", "B", "C", "D", "E"), "no JSON"]
    reward_function(GENES)(
        completions=completions, reference_gene=["A", "A"], completion_ids=[[1], [2]],
        trainer_state=object(), **log.arguments,
    )  # fmt: skip
    assert log.metrics == {f"sub_rewards/{name}": 0.0 for name in GENES.parts} | {
        "sub_rewards/first": 0.5, "sub_rewards/format": 0.5, "grader/sample_faults": 0.5,
        "grader/lost": 0.0, "grader_errors/sample_parse_error": 0.5,
    }  # fmt: skip
    assert log.extra == {"grader_errors": ["", "sample_parse_error"]}


def test_each_completion_is_graded_once_with_its_own_item():
    calls = []

    @grader
    def counted(sample, item):
        calls.append((sample["output_text"], item))
        return 1

    reward = reward_function(counted)
    reward(completions=["a", "b"], x=[1, 2], trainer_state=object())
    assert calls == [("a", {"x": 1}), ("b", {"x": 2})]
    calls.clear()
    whole = reward_function(counted, item_column="item")
    whole(completions=["a", "b"], item=['{"x": 1}', '{"y": 2}'], other=[3, 4])
    assert calls == [("a", {"x": 1}), ("b", {"y": 2})]


def test_lost_grades_are_none_until_they_are_too_many(log):
    made = Grader.load(preset("exact_match", reference="row.deep"))
    items = [{"deep": "x"}] * 19 + [{}]
    reward = reward_function(made)
    assert reward(completions=["x"] * 20, row=items, **log.arguments) == [1.0] * 19 + [None]
    assert log.metrics["grader/lost"] == 0.05
    with pytest.raises(GraderFailure, match=r"item.row.deep") as failure:
        reward(completions=["x"] * 20, row=items[:18] + [{}, {}], **log.arguments)
    assert "2 of 20" in str(failure.value)
    assert log.metrics["grader/lost"] == 0.1  # what happened is logged before the stop
    patient = reward_function(made, max_lost_share=0.5)
    assert patient(completions=["x"] * 2, row=[{}, {"deep": "x"}]) == [None, 1.0]


def test_an_answer_that_was_cut_scores_zero_where_the_end_token_is_known():
    reward = reward_function(EXACT, end_token_ids={0, 9})
    ids = [[5, 0], [5, 6], [], [9]]
    assert reward(completions=["4"] * 4, answer=["4"] * 4, completion_ids=ids) == [1, 0, 0, 1]
    assert reward(completions=["4"], answer=["4"]) == [1]
