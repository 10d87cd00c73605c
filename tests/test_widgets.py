"""The grader lab: what it shows is what the grader says, with a widget and without one."""

import json

import pytest

from rftkit import widgets
from rftkit.files import UserError
from rftkit.graders.grader import grader
from rftkit.records import Sample
from rftkit.task import load_task
from rftkit.widgets import (
    answers_for,
    grader_lab,
    look_at,
    view_html,
    view_text,
    weights_of,
    with_weight,
)


@pytest.fixture
def task():
    return load_task("gene_ranking")


@pytest.fixture
def row(task):
    return task.rows("train")[0]


def list_of(*genes):
    return json.dumps({"genes": list(genes)})


def test_the_view_says_another_grade_than_the_grader(task, row):
    right = row["reference_gene"]
    answer = f"<think>Diagnose first.</think>{list_of('A', right)}"
    others = {
        "better": list_of(right),
        "level": list_of("B", right),
        "worse": list_of("A"),
        "worst": "no JSON",
    }
    view = look_at(task.grader, row, answer, others)
    reward, parts = task.grader.grade(row, answer)
    assert (view.reward, view.sub_rewards) == (reward, parts) and view.problem == ""
    assert view.others == {k: task.grader.grade(row, text)[0] for k, text in others.items()}
    assert (view.place, view.of) == (2, 5)
    assert view.formula == task.grader_spec["calculate_output"]
    assert view.parse_stage == "json" and any("third" in line for line in view.explanations)
    for edited in (task.grader_spec, json.dumps(task.grader_spec)):
        assert look_at(edited, row, answer, others) == view
    assert look_at(task.grader, row, answer).place == 1


@pytest.mark.parametrize(
    ("answer", "stage"),
    [("<think>on and on", "unclosed thinking"), ("", "empty"), ("SCN1A", "text"), ("[]", "json")],
)
def test_the_parse_stage_is_not_said(task, row, answer, stage):
    view = look_at(task.grader, row, answer)
    assert view.parse_stage == stage and view.reward == 0.0
    assert stage in view_text(view)


@pytest.mark.parametrize(
    ("edited", "said"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "expected one JSON object"),
        ("grader.json", "not JSON"),
        ('{"type": "magic"}', "magic"),
        ('{"type": "string_check", "name": "x", "input": "{{item.x", "reference": "",'
         ' "operation": "eq"}', "item.x"),
        ('{"type": "score_model", "name": "j", "model": "m",'
         ' "input": [{"role": "user", "content": "x"}]}', "OPENAI_BASE_URL"),
    ],
)  # fmt: skip
def test_a_grader_half_edited_is_a_traceback(monkeypatch, row, edited, said):
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    view = look_at(edited, row, "x", {"other": "y"})
    assert said in view.problem and view.reward is None and view.place is None
    assert "no grade" in view_text(view) and "no grade" in view_html(view)


def test_a_lost_grade_has_a_place(row):
    spec = {"type": "string_check", "name": "x", "input": "a", "reference": "{{item.nowhere}}",
            "operation": "eq"}  # fmt: skip
    view = look_at(spec, row, "x", {"other": "y"})
    assert view.reward is None and view.place is None and view.others == {"other": None}
    assert "none" in view_text(view) and "nowhere" in view_text(view)


def test_a_python_function_cannot_be_looked_at(row):
    factor = 2
    made = grader(lambda sample, item: factor / 4, name="half")
    assert look_at(made, row, "x").reward == 0.5


def test_a_models_answer_reaches_the_page_as_html(row):
    made = grader(lambda sample, item: 1 / 0, name="x")
    view = look_at(made, row, "<b>", {"<script>alert(1)</script>": "x"})
    assert "<script>" not in view_html(view) and "&lt;script&gt;" in view_html(view)


def test_offered_answers_are_not_the_tasks(task, row):
    sample = Sample(reasoning="r", output_text="{}")
    offered = answers_for(task, row, [sample])
    assert list(offered) == ["honest best", "worse 1", "worse 2", "worse 3", "sample 1"]
    assert offered["honest best"] == list_of(row["reference_gene"])
    assert offered["sample 1"] == "<think>r</think>{}"


def test_the_lab_prints_nothing_without_a_front_end(monkeypatch, capsys, task):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    rows = task.rows("train")[:2]
    assert grader_lab(task, rows, [[Sample(output_text=list_of("A"))], []]) is None
    printed = capsys.readouterr().out
    assert "no widget front end" in printed and "sample 1" in printed
    assert "reward      0.10" in printed and "> this answer" in printed
    with pytest.raises(UserError, match="no rows"):
        grader_lab(task, [])


def test_a_front_end_is_not_seen(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert widgets.has_front_end()[0] is False
    monkeypatch.setenv("JPY_SESSION_NAME", "02.ipynb")
    assert widgets.has_front_end() == (True, "a Jupyter front end started this kernel")


def test_a_change_in_the_widget_changes_nothing(task):
    rows = task.rows("train")[:2]
    samples = [[Sample(output_text=list_of("A"))], [Sample(output_text="no JSON")]]
    lab = grader_lab(task, rows, samples, widget=True)
    choose, prompt, answer, editor, _, shown = lab.children
    row, choice = choose.children
    assert "Symptoms present" in prompt.value and answer.value == list_of(rows[0]["reference_gene"])
    assert "reward      1.00" in shown.value
    choice.value = "sample 1"
    assert answer.value == list_of("A") and "reward      0.10" in shown.value
    assert "of 5" in shown.value and "sample 1" not in shown.value
    answer.value = list_of("A", rows[0]["reference_gene"])
    assert "reward      0.73" in shown.value
    assert "of 6" in shown.value and "sample 1" in shown.value, "a typed answer hides another"
    editor.value = editor.value.replace("0.7 * second", "0.2 * second")
    assert "reward      0.28" in shown.value
    editor.value = "{"
    assert "no grade" in shown.value
    editor.value = json.dumps(task.grader_spec)
    row.value = 1
    assert answer.value == list_of(rows[1]["reference_gene"]) and "reward      1.00" in shown.value
    choice.value = "sample 1"
    assert "read as: text" in shown.value


def formula_of(text):
    return json.loads(text)["calculate_output"]


def test_a_number_of_the_formula_is_not_found_or_another_one_is_changed():
    formula = "0.9 * max(first, 0.7 * second, .5*third) + 0.1 * format - 2 * second / x2 * y"
    text = json.dumps({"type": "multi", "calculate_output": formula})
    assert list(weights_of(text).items()) == [
        ("max", 0.9), ("second", 0.7), ("third", 0.5), ("format", 0.1),
    ]  # fmt: skip
    assert formula_of(with_weight(text, "second", 0.25)) == formula.replace("0.7", "0.25")
    assert formula_of(with_weight(text, "third", 1.0)) == formula.replace(".5*", "1*")
    with pytest.raises(UserError, match="first.*expected one of: .*max"):
        with_weight(text, "first", 0.5)
    for other in ("{", "[]", "{}", '{"calculate_output": 1}'):
        assert weights_of(other) == {}


def test_the_slider_does_not_move_the_grade_or_moves_an_edited_formula_back(task):
    rows = task.rows("train")[:1]
    lab = grader_lab(task, rows, widget=True)
    choose, _, answer, editor, numbers, shown = lab.children
    weight, slider = numbers.children
    answer.value = list_of("A", rows[0]["reference_gene"])
    assert "reward      0.73" in shown.value
    before = editor.value
    weight.value = "second"
    assert slider.value == 0.7 and editor.value == before
    slider.value = 0.2
    assert editor.value == before.replace("0.7 * second", "0.2 * second")
    assert "reward      0.28" in shown.value
    with pytest.warns(UserWarning, match="outside 0 to 1"):
        editor.value = before.replace("0.7 * second", "3 * second")
    assert (weight.value, slider.value) == ("second", 3.0) and "3 * second" in editor.value
    editor.value = "{"
    assert slider.disabled and "no grade" in shown.value
    slider.value = 0.5
    assert editor.value == "{"
    editor.value = before
    assert not slider.disabled and editor.value == before
