"""Rows with `tools`: read by the model or refused, and what it calls is graded."""

import json
from types import SimpleNamespace

import httpx
import openai
import pytest
from pandas import DataFrame
from typer.testing import CliRunner

import rftkit
from rftkit import RunConfig, UserError
from rftkit.attacks import reference_check
from rftkit.cli import app
from rftkit.policy import Prompt
from rftkit.records import split_tool_calls
from rftkit.signal.numbers import repeat_chance
from rftkit.training import trainer
from rftkit.training.plan import plan_run
from rftkit.training.session import Session

FIND = {"type": "function", "function": {"name": "find_part", "parameters": {"type": "object"}}}
ASK = [{"role": "user", "content": "Look it up."}]
ROWS = [{"row_id": f"r{i}", "messages": ASK, "code": "K7"} for i in range(3)]
ROWS[1] |= {"tools": [FIND]}
GRADER = {"type": "string_check", "name": "call", "operation": "eq"}
GRADER["input"] = '{"code": "{{item.code}}"}'
GRADER["reference"] = "{{sample.output_tools[0].function.arguments}}"
TASK = rftkit.Task("call", grader=GRADER)
RIGHT = '<tool_call>\n{"name": "find_part", "arguments": {"code": "K7"}}\n</tool_call>'
CALL = {"id": "call_0", "type": "function"}
CALL["function"] = {"name": "find_part", "arguments": '{"code": "K7"}'}
KNOWS = (
    "{% if tools %}<|tools|>{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "<|{{ m.role }}|>{{ m.content }}{% for call in m.tool_calls %}"
    "{{ call.function.arguments | tojson }}{% endfor %}{% endfor %}<|assistant|>"
)


@pytest.fixture
def knowing(mini, monkeypatch):
    """The mini with a template that knows tools."""
    monkeypatch.setattr(mini.tokenizer, "chat_template", KNOWS)
    return mini


@pytest.mark.parametrize(
    ("text", "rest", "names"),
    [
        (RIGHT, "", ["find_part"]),
        (f"I look.\n{RIGHT}\n{RIGHT}", "I look.", ["find_part"] * 2),
        (RIGHT.removesuffix("</tool_call>"), "", ["find_part"]),
        (RIGHT.replace('"name"', '"nom"'), None, []),
        ("<tool_call>[1]</tool_call>" + RIGHT, "<tool_call>[1]</tool_call>", ["find_part"]),
        (" no call ", None, []),
    ],
)
def test_calls_are_split_off_and_what_is_none_stays_text(text, rest, names):
    found, calls = split_tool_calls(text)
    assert found == (text if rest is None else rest)
    assert [call["function"]["name"] for call in calls] == names
    assert calls[:1] in ([], [CALL])


def test_a_local_model_reads_tools_and_its_calls_are_graded(knowing):
    config = rftkit.SamplingConfig(max_new_tokens=1, prefill=f"<think></think>{RIGHT}")
    plain, tooled, _ = knowing.sample(list(map(Prompt, ROWS)), 1, config)
    assert knowing.render(Prompt(ROWS[1])).count("find_part") == 1
    assert plain[0].output_text.startswith(RIGHT) and plain[0].output_tools == []
    assert tooled[0].output_tools == [CALL] == tooled[0].to_json()["output_tools"]
    assert "<tool_call>" not in tooled[0].output_text
    reward = rftkit.reward_function(GRADER)
    assert reward([RIGHT, "find_part"], tools=[[FIND]] * 2, code=["K7"] * 2) == [1.0, 0.0]


def test_an_answer_template_may_be_a_call():
    template, row = RIGHT.replace("K7", "{{item.code}}"), ROWS[1]
    assert reference_check(rftkit.Grader.load(GRADER), template, [row]).status == "passed"
    assert rftkit.Grader.load(GRADER).grade(row, f"<think>{RIGHT}</think>No.")[0] == 0


def test_a_table_may_hold_tools_in_some_rows():
    assert [row.get("tools") for row in rftkit.read_rows(DataFrame(ROWS))] == [None, [FIND], None]


def test_two_calls_are_two_answers():
    others = [CALL | {"function": {"name": name, "arguments": "{}"}} for name in "ab"]
    assert repeat_chance([rftkit.Sample(output_tools=[call]) for call in others]) == 0
    assert rftkit.Sample(output_tools=[CALL]).find_parse_stage() != "empty"


def test_earlier_calls_reach_the_template_as_objects(knowing):
    past = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert '<|assistant|>{"code": "K7"}<|user|>' in knowing.render([*ASK, past, *ASK])


def test_training_gives_trl_the_text_with_the_tools(knowing, monkeypatch):
    given = []
    monkeypatch.setattr(trainer, "grpo_trainer", lambda *parts: given.append(parts[2]) or 1 / 0)
    session = SimpleNamespace(policy=knowing, rows=ROWS, task=TASK, step=0)
    session.plan = SimpleNamespace(steps=1)
    session.config = RunConfig(model="embedded:mini", grader=GRADER, prompts_per_step=3)
    with pytest.raises(ZeroDivisionError):
        trainer.run_steps(session)
    table = {row["row_id"]: row["prompt"] for row in given[0]["train_dataset"]}
    assert table == {row["row_id"]: knowing.render(Prompt(row)) for row in ROWS}


def test_unsloth_which_draws_without_tools_is_refused_them(tmp_path, monkeypatch):
    made = SimpleNamespace(engine="unsloth")
    monkeypatch.setattr("rftkit.training.session.load_trainable", lambda config: made)
    config = RunConfig(model="embedded:mini", grader=GRADER)
    with pytest.raises(UserError, match="^row 2: has tools"):
        Session(config, tmp_path, None, ROWS, [], [], None, False)


def test_a_row_whose_tools_the_template_leaves_out_is_refused_by_number(mini):
    config = RunConfig(model="embedded:mini", grader=GRADER)
    for refuse, place in {
        lambda: rftkit.measure_signal(mini, TASK, ROWS): "^row 2: ",
        lambda: plan_run(config, ROWS, []): "^row 2: ",
        lambda: plan_run(config, ROWS[:1], ROWS[1:]): "^held-out row 1: ",
        lambda: mini.sample(list(map(Prompt, ROWS))): "^row 2: ",
    }.items():
        with pytest.raises(UserError, match=place + "the chat template leaves its tools out"):
            refuse()


def test_an_endpoint_is_sent_the_tools_and_its_calls_are_graded(tmp_path, monkeypatch):
    asked = []

    def handle(request):
        asked.append(json.loads(request.content))
        message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
        choice = {"index": 0, "finish_reason": "tool_calls", "message": message}
        return httpx.Response(200, json={"model": "m", "choices": [choice]})

    client = httpx.Client(transport=httpx.MockTransport(handle))
    made = openai.OpenAI(base_url="http://x/v1", api_key="none", http_client=client)
    monkeypatch.setattr("openai.OpenAI", lambda **given: made)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://x/v1")
    (tmp_path / "grader.json").write_text(json.dumps(GRADER))
    rftkit.write_rows(tmp_path / "rows.jsonl", [row | {"tools": [FIND]} for row in ROWS])
    (tmp_path / "sample.json").write_text(json.dumps({"output_text": "", "output_tools": [CALL]}))
    monkeypatch.chdir(tmp_path)
    words = "evaluate rows.jsonl --model endpoint:m --grader grader.json --out o --json".split()
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["systems"][0]["grade"]["mean"] == 1
    assert len(asked) > 6 and all(request["tools"] == [FIND] for request in asked)
    lines = [json.loads(line) for line in (tmp_path / "o/samples.jsonl").read_text().splitlines()]
    assert lines and all(line["output_tools"] == [CALL] for line in lines)
    words = ["grade", "--grader", "grader.json", "--sample", "@sample.json", "--item"]
    result = CliRunner().invoke(app, [*words, '{"code": "K7"}'])
    assert json.loads(result.stdout)["reward"] == 1
