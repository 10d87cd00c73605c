"""A grader as TRL's reward function: its signature, its faults, its series."""

import json
from collections import defaultdict
from types import SimpleNamespace

import pytest

from rftkit.graders.answer import GraderFailure
from rftkit.graders.grader import Grader
from rftkit.graders.presets import exact_match, gene_rank, grader, rank_grader
from rftkit.graders.rewards import reward_function
from rftkit.records import Sample


def genes(*names):
    return json.dumps({"genes": names})


class Log:
    """Stands where TRL's log_metric and log_extra stand."""

    def __init__(self):
        self.metrics, self.extra = {}, {}

    def arguments(self):
        return {"log_metric": self.metrics.__setitem__, "log_extra": self.extra.__setitem__}


def test_one_function_grades_texts_and_messages_alike():
    reward = reward_function(gene_rank())
    text = genes("A", "B")
    completions = [
        text,
        f"<think>A or B?</think>{text}",
        [{"role": "assistant", "content": text}],
        [{"role": "assistant", "content": [{"type": "text", "text": text}]}],
        [{"role": "assistant", "content": "", "tool_calls": []}, {"role": "tool", "content": "x"},
         {"role": "assistant", "content": f"<think></think>{text}"}],
        [],
        "<think>cut off " + text,
    ]  # fmt: skip
    rewards = reward(completions=completions, reference_gene=["B"] * 7, prompts=["p"] * 7)
    assert rewards == [pytest.approx(0.73)] * 5 + [0.0, 0.0]


def test_thinking_that_the_prompt_opened_is_not_output():
    reward = reward_function(exact_match())
    completions = ["4", "2+2</think>4", "2+2=4"]
    prompts = ["Q", "Q\n<think>\n", "Q\n<think>\n"]
    assert reward(prompts=prompts, completions=completions, answer=["4", "4", "2+2=4"]) == [1, 1, 0]


@pytest.mark.parametrize("opened", ["text", "messages", "tools", "prompt"])
def test_a_thought_that_never_closes_is_paid_for_its_empty_output(opened):
    """An empty output is "not equal" to anything: without the cut it would earn the maximum."""
    spec = {
        "type": "string_check", "name": "n", "input": "{{sample.output_text}}",
        "reference": "{{item.answer}}", "operation": "ne",
    }  # fmt: skip
    log, heard, prompts = Log(), [], ["Q", "Q"]
    reward = reward_function(Grader.load(spec), observer=lambda s, g: heard.extend(g))
    thought, whole = "<think>foo", "<think>foo</think>5"
    if opened == "prompt":
        prompts, thought, whole = ["Q<think>"] * 2, "foo", "foo</think>5"
    elif opened != "text":
        calls = {"tool_calls": [{"type": "function"}]} if opened == "tools" else {}
        thought, whole = ([{"role": "assistant", "content": c} | calls] for c in (thought, whole))
    columns = {"completions": [thought, whole], "prompts": prompts, "answer": ["4", "4"]}
    assert reward(**columns, **log.arguments()) == [0.0, 1.0]
    assert log.metrics["grader_errors/truncated_observation_error"] == 0.5
    assert log.metrics["grader/sample_faults"] == 0.5 and log.metrics["grader/lost"] == 0
    assert "never closed" in heard[0].faults[0][1].detail


def test_tool_calls_of_a_conversation_reach_the_grader():
    spec = {
        "type": "string_check",
        "name": "tool",
        "input": "{{sample.output_tools[1].function.arguments}}",
        "reference": "{{item.arguments}}",
        "operation": "eq",
    }

    def call(x):
        return {"type": "function", "function": {"name": "f", "arguments": {"x": x}}}

    conversation = [
        {"role": "assistant", "content": "", "tool_calls": [call(1)]},
        {"role": "tool", "content": "no"},
        {"role": "assistant", "content": "", "tool_calls": [call(2)]},
        {"role": "assistant", "content": "done"},
    ]
    reward = reward_function(Grader.load(spec))
    assert reward(completions=[conversation, "x"], arguments=['{"x": 2}'] * 2) == [1.0, 0.0]


def test_a_report_does_not_say_that_the_thought_never_closed():
    spec = {
        "type": "string_check", "name": "n", "input": "{{sample.output_text}}",
        "reference": "4", "operation": "ne",
    }  # fmt: skip
    loaded = Grader.load(spec)
    for sample in ("<think>foo", Sample.from_text("<think>foo")):
        report = loaded.report({}, sample)
        [said] = report.explanations
        assert "never closed" in said and "output is empty" in said
        assert report.to_json().keys() == loaded.run({}, "5").keys()
    for sample in ("5", "", "<think>foo</think>5", Sample.from_text("<think></think>")):
        assert loaded.report({}, sample).explanations == []
    cut = loaded.report({}, Sample.from_text("<think>foo", finish_reason="length"))
    assert len(cut.explanations) == 1 and "never closed" in cut.explanations[0]


def test_every_sub_grade_and_fault_is_logged_as_its_own_series():
    log = Log()
    reward = reward_function(gene_rank())
    reward(
        completions=[genes("A", "B", "C", "D", "E"), "no JSON"],
        reference_gene=["A", "A"],
        completion_ids=[[1], [2]],
        trainer_state=object(),
        **log.arguments(),
    )
    assert log.metrics == {
        "sub_rewards/first": 0.5,
        "sub_rewards/second": 0.0,
        "sub_rewards/third": 0.0,
        "sub_rewards/fourth": 0.0,
        "sub_rewards/fifth": 0.0,
        "sub_rewards/format": 0.5,
        **{f"sub_rewards/{place}_again": 0.0 for place in ("second", "third", "fourth", "fifth")},
        "grader/sample_faults": 0.5,
        "grader/lost": 0.0,
        "grader_errors/sample_parse_error": 0.5,
    }
    assert log.extra == {"grader_errors": ["", "sample_parse_error"]}


def test_each_completion_is_graded_once():
    calls = []

    @grader
    def counted(sample, item):
        calls.append((sample["output_text"], item))
        return 1

    reward = reward_function(counted)
    reward(completions=["a", "b"], x=[1, 2], trainer_state=object(), constant="c", short=[1])
    assert calls == [
        ("a", {"x": 1, "constant": "c", "short": [1]}),
        ("b", {"x": 2, "constant": "c", "short": [1]}),
    ]


def test_lost_grades_are_none_until_they_are_too_many():
    spec = exact_match().to_json()
    items = [{"deep": "x"}] * 19 + [{}]
    spec["reference"] = "{{item.row.deep}}"
    reward = reward_function(Grader.load(spec))
    log = Log()
    assert reward(completions=["x"] * 20, row=items, **log.arguments()) == [1.0] * 19 + [None]
    assert log.metrics["grader/lost"] == 0.05
    assert log.extra["grader_errors"][-1] == "invalid_variable_error"
    log = Log()
    with pytest.raises(GraderFailure, match=r"2 of 20.*item.row.deep") as failure:
        reward(completions=["x"] * 20, row=items[:18] + [{}, {}], **log.arguments())
    assert (failure.value.lost, failure.value.total) == (2, 20)
    assert log.metrics["grader/lost"] == 0.1  # what happened is logged before the stop
    patient = reward_function(Grader.load(spec), max_lost_share=0.5)
    assert patient(completions=["x"] * 2, row=[{}, {"deep": "x"}]) == [None, 1.0]


def test_cut_answers_score_zero_where_the_end_token_is_known():
    reward = reward_function(exact_match(), end_token_ids={0, 9})
    ids = [[5, 0], [5, 6], [], [9]]
    assert reward(completions=["4"] * 4, answer=["4"] * 4, completion_ids=ids) == [1, 0, 0, 1]
    assert reward(completions=["4"], answer=["4"]) == [1]


def test_function_names_differ_between_graders_and_stay_for_one():
    def name(g):
        return reward_function(g).__name__

    one, other = rank_grader(name="my rank!"), rank_grader((1,), name="my rank!")
    assert name(one) == "my_rank"
    assert name(other) == "my_rank_2"
    assert name(rank_grader(name="my rank!")) == "my_rank"  # made again, e.g. by a notebook cell
    assert name(rank_grader(name="---")) == "grader"


def test_trl_takes_the_rewards_and_series_as_its_own(monkeypatch):
    """TRL's method itself, on a trainer that holds just what the method reads."""
    import torch
    from trl.trainer import grpo_trainer as grpo

    reward = reward_function(gene_rank(), max_lost_share=1)
    metrics, extra = defaultdict(list), defaultdict(list)
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu", is_main_process=True),
        reward_funcs=[reward],
        reward_processing_classes=[None],
        reward_func_names=[reward.__name__],
        state=SimpleNamespace(global_step=1),
        environments=None,
        args=SimpleNamespace(report_to=[]),
        _pending_metrics=metrics,
        _pending_extra_logs=extra,
    )
    for method in ("_log_metric", "_log_completion_extra"):
        setattr(trainer, method, getattr(grpo.GRPOTrainer, method).__get__(trainer))
    monkeypatch.setattr(grpo, "gather", lambda tensor: tensor)
    inputs = [{"prompt": "p", "reference_gene": "A"}] * 4
    completions = [genes("A"), genes("B", "A"), "x", genes()]
    rewards = grpo.GRPOTrainer._calculate_rewards(
        trainer, inputs, ["p"] * 4, completions, [[1]] * 4
    )
    assert torch.allclose(rewards, torch.tensor([[1.0], [0.73], [0.0], [0.0]]))
    assert metrics["sub_rewards/first"] == [0.25] and metrics["grader/lost"] == [0.0]
    assert len(extra["grader_errors"]) == 4
