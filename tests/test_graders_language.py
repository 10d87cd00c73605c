"""Templates and formulas: what they mean, and where they stop."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rftkit.files import UserError
from rftkit.graders.answer import Context, Fault, compile_template, fill_template
from rftkit.graders.formula import FormulaError, parse_formula

VALUES = {
    "2 ^ 3 ^ 2": 512,
    "-2 ^ 2": -4,
    "(-2) ^ 2": 4,
    "2 ^ -1": 0.5,
    "2 * -3": -6,
    "- -1": 1,
    "+1": 1,
    "8 / 4 / 2": 1,
    "1 - 2 - 3": -4,
    "1 - (2 - 3)": 2,
    "2 + 3 * 4": 14,
    "2 * 3 ^ 2": 18,
    "min(3, 1, 2)": 1,
    "max(0.5)": 0.5,
    "max(min(1, 2), 0)": 1,
    "abs(-2.5)": 2.5,
    "floor(1.9) + ceil(1.1)": 3,
    "floor(-1.1)": -2,
    "exp(0)": 1,
    "sqrt(16)": 4,
    "log(exp(1))": 1,
    "log(100)": 4.605170185988092,
    "1e-3 * 1E3": 1,
    ".5 + 5.": 5.5,
    "a": 0.25,
    "0.5*a + 0.5*b": 0.625,
    "max": 7,
    "max(max, b)": 7,
    "größe_1": 3,
    "0 ^ 0": 1,
}
NAMES = {"a": 0.25, "b": 1, "max": 7, "größe_1": 3}


@pytest.mark.parametrize("text", VALUES)
def test_formula_has_the_value_of_its_arithmetic(text):
    assert parse_formula(text).evaluate(NAMES) == pytest.approx(VALUES[text], abs=1e-12)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "position 1: the end"),
        ("a b", "position 3: 'b'"),
        ("1 +", "position 4: the end"),
        ("(1", "position 3: the end"),
        ("1)", "position 2: ')'"),
        ("a ** 2", "^, not **"),
        ("a = 1", "position 3: '='"),
        ("a > 1", "position 3: '>'"),
        ("pow(1, 2)", "function 'pow'"),
        ("min()", "position 5"),
        ("abs(1, 2)", "abs with 2 arguments"),
        ("a.b", "position 2: '.'"),
        ("1e", "position 2: 'e'"),
        ("a[0]", "position 2"),
        ("'x'", "position 1"),
        ("1,2", "position 2"),
        ("(" * 100 + "1" + ")" * 100, "at most 50"),
        ("-" * 100 + "1", "at most 50"),
        ("^".join("1" * 100), "at most 50"),
        ("1" + "+1" * 6000, "at most 10000"),
    ],
)
def test_formula_error_names_the_position(text, words):
    with pytest.raises(FormulaError) as error:
        parse_formula(text)
    assert words in str(error.value)


def test_long_flat_formula_does_not_recurse():
    assert parse_formula("+".join(["a"] * 4000)).evaluate({"a": 1}) == 4000


@pytest.mark.parametrize(
    "text",
    ["1/0", "0^-1", "log(0)", "log(-1)", "sqrt(-1)", "(-8)^(1/3)", "exp(1e9)", "1e308*10", "1e999",
     "10^400", "floor(1e308*10)", "1e308*10 - 1e308*10"],
)  # fmt: skip
def test_formula_without_a_finite_value_is_an_error(text):
    with pytest.raises(FormulaError, match="zero|large|domain|finite"):
        parse_formula(text).evaluate({})


@given(st.recursive(
    st.one_of(st.integers(0, 9).map(str), st.sampled_from(["a", "b"])),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        inner.map(lambda t: f"-{t}"),
        st.tuples(inner, inner).map(lambda t: f"max({t[0]}, {t[1]})"),
    ),
    max_leaves=12,
))  # fmt: skip
def test_formula_agrees_with_python_where_both_have_a_value(text):
    values = {"a": 0.3, "b": 2.0}
    try:
        expected = eval(text, {"max": max, **values})  # our own generated text
    except ZeroDivisionError:
        with pytest.raises(FormulaError, match="zero"):
            parse_formula(text).evaluate(values)
        return
    assert parse_formula(text).evaluate(values) == pytest.approx(expected, rel=1e-12, abs=1e-12)


ROW = {
    "text": "x",
    "true": True,
    "none": None,
    "float": 1.0,
    "small": 1e-07,
    "int": 5,
    "list": [1, "ü", None],
    "object": {"a": {"b": [0, {"c": "deep"}]}, "k.ey": 1, "a key": 2, "it's": 3},
    "0": "zero",
    "a-b": "dash",
    "für": "umlaut",
}
RENDERED = {
    "{{item.text}}": "x",
    "{{ item.text }}": "x",
    "{{\titem.text\n}}": "x",
    "{{item.true}}": "True",
    "{{item.none}}": "None",
    "{{item.float}}": "1.0",
    "{{item.small}}": "1e-07",
    "{{item.int}}": "5",
    "{{item.list}}": '[1, "ü", null]',
    "{{item.object.a}}": '{"b": [0, {"c": "deep"}]}',
    "{{item.object.a.b[1].c}}": "deep",
    '{{item["object"]["a"]["b"][1]["c"]}}': "deep",
    '{{item.object["k.ey"]}}': "1",
    "{{item.object['a key']}}": "2",
    '{{item.object["it\'s"]}}': "3",
    "{{item.0}}": "zero",
    "{{item.a-b}}": "dash",
    "{{item.für}}": "umlaut",
    "a{{item.text}}b{{item.int}}c": "axb5c",
    '{"a": {{item.int}}}': '{"a": 5}',
    "{{{item.text}}}": "{x}",
    "{ { not a template } }": "{ { not a template } }",
    "}} {": "}} {",
    "": "",
    "{{sample.output_text}}": '{"k": [true, 1.50]}',
    "{{sample.output_json}}": '{"k": [true, 1.5]}',
    "{{sample.output_json.k[0]}}": "True",
    "{{sample.output_tools}}": "[]",
    "{{sample.choices[0].message.role}}": "assistant",
}


@pytest.mark.parametrize("text", RENDERED)
def test_template_renders_as_documented(text):
    context = Context(ROW, '{"k": [true, 1.50]}')
    template = compile_template(text)
    assert template.render(context) == RENDERED[text]
    assert template.renderer()(context) == RENDERED[text]


@pytest.mark.parametrize(
    ("text", "field", "score"),
    [
        ("{{sample.output_json.no}}", "sample_parse_error", 0.0),
        ("{{sample.output_json.k[2]}}", "sample_parse_error", 0.0),
        ("{{sample.output_json.k.a}}", "sample_parse_error", 0.0),
        ("{{sample.output_json[0]}}", "sample_parse_error", 0.0),
        ("{{sample.output_tools[0].function.name}}", "sample_parse_error", 0.0),
        ("{{sample.output_audio.transcript}}", "sample_parse_error", 0.0),
        ("{{item.no}}", "invalid_variable_error", None),
        ("{{item.list[3]}}", "invalid_variable_error", None),
        ("{{item.text[0]}}", "invalid_variable_error", None),
        ("{{item.none.a}}", "invalid_variable_error", None),
        ("{{item.list.0}}", "invalid_variable_error", None),
        ("{{item.huge}}", "invalid_variable_error", None),
    ],
)
def test_path_that_leads_nowhere_is_the_right_ones_fault(text, field, score):
    context = Context({**ROW, "huge": 10**5000}, '{"k": [1]}')
    with pytest.raises(Fault) as fault:
        compile_template(text).render(context)
    assert (fault.value.field, fault.value.score) == (field, score)


def test_answer_template_stays_json_whatever_the_row_holds():
    nasty = 'a "b" \\ \n {{item.n}} ü \ud83d\ude00'
    row = {"gene": nasty, "n": 2.5, "list": ["x", nasty], "none": None}
    for template in ('{"genes": ["{{item.gene}}"]}', {"genes": ["{{item.gene}}"]}):
        assert json.loads(fill_template(template, row)) == {"genes": [nasty]}
    text = '{"a": "x {{item.gene}} y", "n": {{item.n}}, "l": {{ item.list }}, "o": {{item.none}}}'
    assert json.loads(fill_template(text, row)) == {
        "a": f"x {nasty} y", "n": 2.5, "l": ["x", nasty], "o": None,
    }  # fmt: skip
    assert fill_template('["\\"", "{{item.n}}"]', row) == '["\\"", "2.5"]'
    assert fill_template("{{item.gene}}", row) == nasty  # no JSON: as it is
    assert fill_template("The answer is {{item.n}}.", row) == "The answer is 2.5."
    assert fill_template({"k {{item.n}}": [1, None]}, row) == '{"k 2.5": [1, null]}'


@given(st.text(), st.text())
def test_answer_template_survives_every_text(before, value):
    row = {"x": value}
    assert json.loads(fill_template({"a": ["{{item.x}}"]}, row)) == {"a": [value]}
    template = json.dumps({"b": before.replace("{{", "")}, ensure_ascii=False)[:-1]
    filled = fill_template(template + ', "c": "{{item.x}}"}', row)
    assert json.loads(filled)["c"] == value


@pytest.mark.parametrize(
    ("template", "word"),
    [
        ("{{item.no}}", "not there"),
        ("{{sample.output_text}}", "asks for the sample"),
        ("{{x}}", "item or sample"),
        ({"a": ["{{item.a"]}, "do not close"),
    ],
)
def test_answer_template_that_cannot_be_filled_says_why(template, word):
    with pytest.raises(UserError, match=word):
        fill_template(template, {"a": 1})
