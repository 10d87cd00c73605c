"""Formulas and templates: what they mean, and where they stop."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rftkit.files import UserError
from rftkit.graders.answer import Context, Fault, Template, answer_place, fill_template
from rftkit.graders.scorers import Formula, FormulaError

NAMES = {"a": 0.25, "b": 1, "max": 7, "größe_1": 3}
VALUES = {
    "2 ^ 3 ^ 2": 512, "-2 ^ 2": -4, "(-2) ^ 2": 4, "2 ^ -1": 0.5, "2 * -3": -6, "- -1": 1, "+1": 1,
    "8 / 4 / 2": 1, "1 - 2 - 3": -4, "1 - (2 - 3)": 2, "2 + 3 * 4": 14, "2 * 3 ^ 2": 18,
    "min(3, 1, 2)": 1, "max(0.5)": 0.5, "max(min(1, 2), 0)": 1, "abs(-2.5)": 2.5,
    "floor(-1.1)": -2, "ceil(1.1)": 2, "exp(0)": 1, "sqrt(16)": 4, "log(100)": 4.605170185988092,
    "1e-3 * 1E3": 1, "0.5*a + 0.5*b": 0.625, "max (max, b)": 7, "größe_1": 3, "\n a\n+ b ": 1.25,
}  # fmt: skip


@pytest.mark.parametrize("text", VALUES)
def test_a_formula_has_the_value_of_its_arithmetic(text):
    assert Formula(text).evaluate(NAMES) == pytest.approx(VALUES[text], abs=1e-12)


@pytest.mark.parametrize(
    "text",
    ["", "a b", "1 +", "a ** 2", "a > 1", "a[0]", "'x'", "1j", "pow(1, 2)", "min()", "abs(1, 2)",
     "a.b", "max(*a)", "max(a=1)", "__import__('os')", "lambda: 1", "-" * 3000 + "1", "1+" * 9000],
)  # fmt: skip
def test_what_is_no_formula_is_refused(text):
    with pytest.raises(FormulaError):
        Formula(text)


@pytest.mark.parametrize(
    "text",
    ["1/0", "log(0)", "sqrt(-1)", "(-8)^(1/3)", "abs((-8)^(1/3))", "exp(1e9)", "1e308*10",
     "10^400", "floor(9)^floor(9)^floor(9)^9"],
)  # fmt: skip
def test_a_formula_without_a_finite_value_is_an_error(text):
    with pytest.raises(FormulaError):
        Formula(text).evaluate({})


ROW = {
    "text": "x", "true": True, "none": None, "float": 1.0, "small": 1e-07, "0": "zero",
    "list": [1, "ü", None], "a-b": "dash", "object": {"a": {"b": [0, {"c": "deep"}]}, "k.ey": 1},
}  # fmt: skip
ANSWER = '{"k": [true, 1.50]}'
RENDERED = {
    "{{\titem.text\n}}": "x", "{{item.true}}": "True", "{{item.none}}": "None",
    "{{item.float}}": "1.0", "{{item.small}}": "1e-07", "{{item.list}}": '[1, "ü", null]',
    "{{item.object.a.b[1].c}}": "deep", '{{item["object"]["a"]["b"][1]["c"]}}': "deep",
    '{{item.object["k.ey"]}}': "1", "{{item.0}}": "zero", "{{item.a-b}}": "dash",
    "a{{item.text}}b{{item.0}}c": "axbzeroc", '{"a": {{item.float}}}': '{"a": 1.0}', "": "",
    "{{{item.text}}}": "{x}", "{ { no template } }": "{ { no template } }", "}} {": "}} {",
    "{{sample.output_text}}": ANSWER, "{{sample.output_json}}": '{"k": [true, 1.5]}',
    "{{sample.output_json.k[0]}}": "True", "{{sample.output_tools}}": "[]",
    "{{sample.choices[0].message.role}}": "assistant",
}  # fmt: skip


@pytest.mark.parametrize("text", RENDERED)
def test_a_template_renders_as_documented(text):
    assert Template(text).render(Context(ROW, ANSWER)) == RENDERED[text]


@pytest.mark.parametrize(
    "path",
    ["sample.output_json.no", "sample.output_json.k[2]", "sample.output_json[0]",
     "sample.output_tools[0].function.name", "item.no", "item.list[3]", "item.text[0]"],
)  # fmt: skip
def test_a_path_that_leads_nowhere_blames_its_own_side(path):
    with pytest.raises(Fault) as fault:
        Template("{{" + path + "}}").render(Context(ROW, ANSWER))
    expected = ("sample_parse_error", 0.0) if "sample" in path else ("invalid_variable_error", None)
    assert (fault.value.field, fault.value.score) == expected


@given(st.text())
def test_a_filled_in_answer_stays_json_whatever_the_row_holds(value):
    row = {"x": value, "n": 2.5, "list": ["y", value], "none": None}
    assert json.loads(fill_template({"a": ["{{item.x}}"]}, row)) == {"a": [value]}
    text = '{"b\\"": "x {{item.x}} y", "n": {{item.n}}, "l": {{ item.list }}, "o": {{item.none}}}'
    expected = {'b"': f"x {value} y", "n": 2.5, "l": ["y", value], "o": None}
    assert json.loads(fill_template(text, row)) == expected
    assert fill_template("It is {{item.x}}.", row) == f"It is {value}."  # no JSON: as it is


@pytest.mark.parametrize("template", ["{{item.no}}", "{{sample.output_text}}", "{{x}}", "{{item.a"])
def test_an_answer_template_that_cannot_be_filled_is_refused(template):
    with pytest.raises(UserError, match="answer template"):
        fill_template({"a": [template]}, {"a": 1})


@pytest.mark.parametrize(
    ("template", "place"),
    [
        ('{"genes": ["{{item.gene}}", "x"]}', (["genes", 0], "gene")),
        ('{"a": {"n": {{item.n}}}, "m": {{item.m}}}', (["a", "n"], "n")),
        ("It is {{ item.a }}, not {{item.b}}.", ([], "a")),
        ('{"a": "so {{item.b}}"}', None), ("no field", None),
    ],
)  # fmt: skip
def test_the_answers_place_is_read_off_the_template(template, place):
    assert answer_place(template) == place
