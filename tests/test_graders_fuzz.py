"""Fuzz: whatever the JSON, the row and the answer, there is a report or a clear refusal."""

import json
import math
import warnings

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rftkit.files import UserError
from rftkit.graders.answer import ERROR_FIELDS, TemplateError, compile_template
from rftkit.graders.formula import FormulaError, parse_formula
from rftkit.graders.grader import Grader, GraderSettings
from rftkit.graders.presets import gene_rank
from rftkit.graders.python import PythonResult
from rftkit.records import Sample

pytestmark = pytest.mark.filterwarnings("ignore:grader .* outside 0 to 1")
quick = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))

# Surrogates and other unprintable things are what a model or a broken export may hold.
texts = st.text(st.characters(), max_size=30)
paths = st.sampled_from(
    ["item.a", "item.b[0]", "sample.output_text", "sample.output_json.genes[1]", "sample.choices",
     "sample.output_json", "sample.reasoning", "sample.output_tools[0].function", "item['a']"]
)  # fmt: skip
templates = st.lists(
    st.one_of(texts.map(lambda t: t.replace("{", "")), paths.map(lambda p: "{{" + p + "}}")),
    max_size=3,
).map("".join)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)
keys = st.sampled_from(
    ["type", "name", "input", "reference", "operation", "evaluation_metric", "graders", "model",
     "calculate_output", "source", "labels", "passing_labels", "range", "sampling_params", "x"]
)  # fmt: skip
kinds = st.sampled_from(
    ["string_check", "text_similarity", "score_model", "label_model", "python", "multi", "other"]
)
anything = st.one_of(
    json_values,
    st.dictionaries(keys, json_values | kinds | templates, max_size=8),
    st.builds(lambda kind, rest: {**rest, "type": kind}, kinds, st.dictionaries(keys, json_values)),
)


@quick
@given(anything)
@example({"type": "multi", "graders": [None, 5, []], "calculate_output": "a"})
@example({"type": "multi", "name": "m", "graders": {"": {}}, "calculate_output": ""})
@example({"type": "score_model", "name": "s", "model": "m", "input": [[]]})
@example({"type": "score_model", "name": "s", "model": "m", "input": [{"role": "user"}]})
@example({"type": "label_model", "name": "s", "model": "m", "input": [], "labels": [[]]})
@example({1: 2})
def test_any_json_is_a_grader_or_a_refusal(spec):
    try:
        grader = Grader.load(spec if isinstance(spec, dict) else json.dumps([spec]))
    except UserError as error:
        assert str(error).strip()
    else:
        assert grader.to_json()["type"] in ERROR_FREE_TYPES


ERROR_FREE_TYPES = (
    "string_check", "text_similarity", "score_model", "label_model", "python", "multi",
)  # fmt: skip


@quick
@given(templates)
def test_any_text_is_a_template_or_an_error(text):
    try:
        template = compile_template(text)
    except TemplateError as error:
        assert str(error)
    else:
        assert template.text == text


@quick
@given(st.text("ab1.+-*/^(), minax0e", max_size=25) | texts)
def test_any_text_is_a_formula_or_an_error(text):
    try:
        formula = parse_formula(text)
    except FormulaError as error:
        assert str(error)
        return
    try:
        value = formula.evaluate(dict.fromkeys(formula.variables, 0.5))
    except FormulaError as error:
        assert str(error)
    else:
        assert type(value) is float and math.isfinite(value)


def run_fixed(source, sample, item):
    return PythonResult(value=len(sample["output_text"]))


@st.composite
def graders(draw):
    """A valid spec over random templates, or a multi of such."""

    def leaf():
        base = {"name": "g", "input": draw(templates), "reference": draw(templates)}
        if draw(st.booleans()):
            operation = draw(st.sampled_from(["eq", "ne", "neq", "like", "ilike"]))
            return {**base, "type": "string_check", "operation": operation}
        metric = draw(st.sampled_from(["fuzzy_match", "bleu", "gleu", "rouge_1", "rouge_l"]))
        return {**base, "type": "text_similarity", "evaluation_metric": metric}

    if draw(st.booleans()):
        return leaf()
    source = "def grade(sample, item):\n    return 1"
    parts = {"a": leaf(), "b": leaf(), "p": {"type": "python", "source": source}}
    formula = draw(st.sampled_from(["a", "a + b", "a / b", "log(a) * p", "max(a, b, p) ^ 2"]))
    return {"type": "multi", "graders": parts, "calculate_output": formula}


FINISHED = ["stop", "length", "error"]
samples = st.one_of(
    texts,
    json_values.map(lambda value: json.dumps(value)),
    st.builds(lambda genes: json.dumps({"genes": genes}), json_values),
    st.builds(Sample, output_text=texts, finish_reason=st.sampled_from(FINISHED)),
    st.builds(lambda t, tools: {"output_text": t, "output_tools": tools}, texts,
              st.lists(json_values, max_size=2)),
)  # fmt: skip


def check_report(report):
    reward = report["reward"]
    assert reward is None or (isinstance(reward, float) and math.isfinite(reward))
    errors = report["metadata"]["errors"]
    assert all(isinstance(errors[name], bool) for name in ERROR_FIELDS)
    if reward is None:
        assert any(errors[name] for name in ERROR_FIELDS)
    json.dumps(report, allow_nan=False).encode()


@quick
@given(graders(), st.dictionaries(st.sampled_from(["a", "b", "c"]), json_values), samples)
def test_any_row_and_answer_give_a_report(spec, item, sample):
    try:
        grader = Grader.load(spec, GraderSettings(python_runner=run_fixed))
    except UserError:
        return  # a random text may hold half a character
    report = grader.run(item, sample)
    check_report(report)
    assert grader.grade(item, sample) == (report["reward"], report["sub_rewards"])


@quick
@given(json_values)
def test_any_list_of_genes_scores_between_0_and_1(genes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the gene grader never leaves 0 to 1
        report = gene_rank().run({"reference_gene": "A"}, json.dumps({"genes": genes}))
    check_report(report)
    assert 0 <= report["reward"] <= 1


@pytest.mark.parametrize("item", [[], "x", 5])
def test_row_that_is_no_object_is_refused(item):
    with pytest.raises(UserError, match="item"):
        gene_rank().run(item, "x")


@pytest.mark.parametrize("sample", [None, 5, [], b"x"])
def test_sample_that_is_no_sample_is_refused(sample):
    with pytest.raises(UserError, match="sample"):
        gene_rank().run({}, sample)
