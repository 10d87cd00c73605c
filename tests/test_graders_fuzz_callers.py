"""Fuzz of what stands around a grade: judges' replies, python results, TRL's completions, answer
templates, attacks, the lab, the command line. Always a result or a clear refusal."""

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_graders_fuzz import check_report, graders, json_values, run_fixed, templates, texts

from rftkit.attacks import attack, reference_check
from rftkit.cli import grade_one, validate_file
from rftkit.files import UserError
from rftkit.graders.answer import GraderFailure, answer_place, fill_template
from rftkit.graders.grader import Grader, GraderSettings
from rftkit.graders.judge import JudgeSettings
from rftkit.graders.presets import gene_rank
from rftkit.graders.python import PythonResult
from rftkit.graders.rewards import reward_function
from rftkit.widgets import look_at, view_html

pytestmark = pytest.mark.filterwarnings("ignore:grader .* outside 0 to 1")
quick = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))

ITEM_TEMPLATES = st.one_of(
    texts,
    templates,
    st.sampled_from(
        ['{"genes": ["{{item.a}}"]}', "{{item.a}}", "It is {{ item.b }}.", '{"n": {{item.a}}}',
         '["{{item.a}}", {{item.b}}]', '{"a": {"b": ["{{item.b}}"]}}', "{{item.a", '"{{item.a}}"',
         {"genes": ["{{item.a}}"]}, ["{{item.b}}"], {"{{item.a}}": 1}, 5, None]
    ),
)  # fmt: skip
ROWS = st.lists(
    st.fixed_dictionaries(
        {"a": json_values, "b": texts},
        optional={"messages": json_values, "case_id": json_values, "row_id": texts},
    ),
    min_size=1,
    max_size=3,
)
CHOICES = st.fixed_dictionaries(
    {},
    optional={
        "message": json_values
        | st.fixed_dictionaries({}, optional={"content": json_values, "refusal": json_values}),
        "finish_reason": json_values,
    },
)
VERDICTS = st.builds(
    lambda value: {"choices": [{"message": {"content": json.dumps({"result": value})}}]},
    json_values,
)
REPLIES = st.one_of(
    VERDICTS,
    st.dictionaries(st.sampled_from(["choices", "usage"]), json_values | st.lists(CHOICES)),
)
JUDGE = {"name": "j", "model": "m", "input": [{"role": "user", "content": "{{item.b}}"}]}
SCORE = {**JUDGE, "type": "score_model", "range": [0, 1]}
LABEL = {**JUDGE, "type": "label_model", "labels": ["x", "y"], "passing_labels": ["x"]}


@quick
@given(REPLIES, st.sampled_from([SCORE, LABEL]))
def test_a_judges_reply_is_a_traceback(reply, spec):
    class Reached(JudgeSettings):
        def check_ready(self):
            pass

        def ask(self, request, read):
            return read(reply)

    report = Grader.load(spec, GraderSettings(judge=Reached())).run({"b": "x"}, "y")
    check_report(report)
    assert report["reward"] is None or 0 <= report["reward"] <= 1


@quick
@given(json_values | st.sampled_from([10**400, 2j, b"x", {1}, ..., float, math.nan, -math.inf]))
def test_what_a_python_grader_returns_is_a_traceback(value):
    spec = {"type": "python", "source": "def grade(sample, item):\n    return 1"}
    made = Grader.load(spec, GraderSettings(python_runner=lambda *_: PythonResult(value=value)))
    check_report(made.run({}, "x"))


MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["assistant", "tool", "user"])},
        optional={
            "content": st.none() | texts | st.lists(st.builds(lambda t: {"text": t}, texts)),
            "tool_calls": st.none() | st.lists(json_values, max_size=2),
        },
    ),
    max_size=3,
)


@quick
@given(graders(), st.lists(texts | MESSAGES, min_size=1, max_size=4), json_values)
def test_a_completion_from_trl_is_a_traceback(spec, completions, value):
    try:
        reward = reward_function(Grader.load(spec, GraderSettings(python_runner=run_fixed)))
    except UserError:
        return
    logged = {}
    try:
        rewards = reward(
            completions=completions,
            a=[value] * len(completions),
            b=["x"] * len(completions),
            log_metric=logged.__setitem__,
            log_extra=lambda name, column: None,
        )
    except GraderFailure as failure:  # more than 5 % of so few is any one
        assert failure.lost >= 1
        return
    assert len(rewards) == len(completions)
    assert all(r is None or math.isfinite(r) for r in rewards)
    assert all(math.isfinite(number) for number in logged.values())


@quick
@given(ITEM_TEMPLATES, ROWS)
def test_an_answer_template_is_a_traceback(template, rows):
    if isinstance(template, str):
        place = answer_place(template)
        assert place is None or place[1] in template
    try:
        filled = fill_template(template, rows[0])
        assert isinstance(filled, str)
    except UserError as error:
        assert str(error)
    result = reference_check(gene_rank(), template, rows)
    assert result.status in ("failed", "not checked") and str(result)


def same_answer(sample, item):
    return float(item["b"] in sample["output_text"])


@quick
@given(ITEM_TEMPLATES, st.lists(ITEM_TEMPLATES, max_size=3), ROWS)
def test_an_attack_is_a_traceback(template, worse, rows):
    from rftkit.graders.presets import grader

    try:
        report = attack(grader(same_answer), rows, template, worse)
    except UserError as error:
        assert str(error)
        return
    json.dumps(report.to_json())
    assert len(report.results) == 18 and str(report)


@quick
@given(json_values | texts | graders(), ROWS, texts, st.dictionaries(texts, texts, max_size=2))
def test_the_lab_is_a_traceback(edited, rows, answer, others):
    text = edited if isinstance(edited, str) else json.dumps(edited)
    view = look_at(text, rows[0], answer, others)
    assert str(view) and view_html(view)
    assert view.problem or view.reward is None or view.place in range(1, len(others) + 2)


@quick
@given(st.binary(max_size=60) | json_values.map(lambda v: json.dumps(v).encode()), st.text())
def test_a_file_is_a_traceback_on_the_command_line(tmp_path_factory, content, sample):
    folder = tmp_path_factory.getbasetemp()
    file, good = folder / "any.json", folder / "good.json"
    file.write_bytes(content)
    good.write_text(json.dumps(gene_rank().to_json()))
    found = validate_file(str(file))
    assert found["valid"] or found["problems"]
    for grader_file, item in ((file, None), (good, str(file))):
        try:
            check_report(grade_one(str(grader_file), sample, item).to_json())
        except UserError as error:
            assert str(error)
