"""The grader lab: what it shows is what the grader says, with a widget and without one."""

import json
import re

import pytest

from rftkit.records import Sample
from rftkit.task import load_task
from rftkit.widgets import answers_for, grader_lab, has_front_end, look_at, weights_of, with_weight

TASK = load_task("gene_ranking")
ROWS = TASK.rows("train")[:2]
RIGHT = ROWS[0]["reference_gene"]


def list_of(*genes):
    return json.dumps({"genes": list(genes)})


def test_what_is_shown_is_what_the_grader_says():
    answer = f"<think>Diagnose first.</think>{list_of('A', RIGHT)}"
    others = {"better": list_of(RIGHT), "level": list_of("B", RIGHT), "worst": "no JSON"}
    shown = look_at(TASK.grader_spec, ROWS[0], answer, others)
    reward, parts = TASK.grader.grade(ROWS[0], answer)
    rewards = {name: TASK.grader.grade(ROWS[0], text)[0] for name, text in others.items()}
    values = parts | rewards | {"this answer": reward}
    assert all(re.search(rf"{name} +{value:.2f}", shown) for name, value in values.items())
    assert f"reward      {reward:.2f}   read as: json" in shown and "standing    2 of 4" in shown
    assert TASK.grader_spec["calculate_output"] in shown and "! " not in shown
    assert look_at(json.dumps(TASK.grader_spec), ROWS[0], answer, others) == shown


CHECK = {"type": "string_check", "name": "x", "input": "a", "operation": "eq"}
JUDGE = {"type": "score_model", "name": "j", "model": "m"}


@pytest.mark.parametrize(
    ("edited", "cause"),
    [
        ("gene rank", "gene rank"),
        ("[]", "grader"),
        ('{"type": "magic"}', "magic"),
        (CHECK | {"reference": "{{item.x"}, "item.x"),
        (JUDGE | {"input": [{"role": "user", "content": "x"}]}, "OPENAI_BASE_URL"),
    ],
)
def test_a_half_edited_grader_is_a_problem_and_no_traceback(monkeypatch, edited, cause):
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    shown = look_at(edited, ROWS[0], "x", {"other": "y"})
    assert shown.startswith("no grade") and cause in shown


def test_a_lost_grade_has_no_place():
    shown = look_at(CHECK | {"reference": "{{item.nowhere}}"}, ROWS[0], "x", {"other": "y"})
    assert "reward      none" in shown and "! " in shown and "standing" not in shown


def test_the_offered_answers_are_the_tasks_then_the_models():
    offered = answers_for(TASK, ROWS[0], [Sample(reasoning="r", output_text="{}")])
    assert list(offered) == ["honest best", "worse 1", "worse 2", "worse 3", "sample 1"]
    assert offered["honest best"] == list_of(RIGHT)
    assert offered["sample 1"] == "<think>r</think>{}"


def test_the_lab_prints_its_view_without_a_front_end(monkeypatch, capsys):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert not has_front_end()
    assert grader_lab(TASK, ROWS, [[Sample(output_text=list_of("A"))]]) is None
    printed = capsys.readouterr().out
    assert "sample 1" in printed and "reward      0.10" in printed and "> this answer" in printed
    monkeypatch.setenv("JPY_SESSION_NAME", "02.ipynb")
    assert has_front_end()


def test_each_control_of_the_widget_changes_the_view():
    samples = [[Sample(output_text=list_of("<A>"))], [Sample(output_text="no JSON")]]
    lab = grader_lab(TASK, ROWS, samples, widget=True)
    choose, prompt, answer, editor, numbers, shown = lab.children
    (row, choice), (weight, slider) = choose.children, numbers.children
    assert "Symptoms present" in prompt.value and answer.value == list_of(RIGHT)
    assert "reward      1.00" in shown.value
    choice.value = "sample 1"
    assert answer.value == list_of("<A>") and "reward      0.10" in shown.value
    assert "of 5" in shown.value and "sample 1" not in shown.value
    answer.value = list_of("A", RIGHT)
    assert "reward      0.73" in shown.value
    assert "of 6" in shown.value and "sample 1" in shown.value, "a typed answer hides another"
    before = editor.value
    weight.value = "second"
    assert slider.value == 0.7 and editor.value == before
    slider.value = 0.2
    assert editor.value == before.replace("0.7 * second", "0.2 * second")
    assert "reward      0.28" in shown.value
    with pytest.warns(UserWarning, match="outside 0 to 1"):
        editor.value = before.replace("0.7 * second", "3 * second")
    assert (weight.value, slider.value) == ("second", 3.0) and "3 * second" in editor.value
    editor.value = '{"type": "<b>"}'
    assert slider.disabled and "no grade" in shown.value and "&lt;b&gt;" in shown.value
    editor.value = before
    assert not slider.disabled and editor.value == before
    row.value = 1
    assert answer.value == list_of(ROWS[1]["reference_gene"]) and "reward      1.00" in shown.value


def test_one_number_of_the_formula_is_found_and_changed():
    formula = "0.9 * max(first, 0.7 * second, .5*third) + 0.1 * format - 2 / x2 * y"
    text = json.dumps({"type": "multi", "calculate_output": formula})
    assert weights_of(text) == {"max": 0.9, "second": 0.7, "third": 0.5, "format": 0.1}
    for name, value, old, new in (("second", 0.25, "0.7", "0.25"), ("third", 1.0, ".5*", "1*")):
        changed = json.loads(with_weight(text, name, value))["calculate_output"]
        assert changed == formula.replace(old, new)
    assert weights_of("{") == weights_of("[]") == weights_of("{}") == {}
