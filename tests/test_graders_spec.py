"""Every refusal of a grader's JSON names place, value, what is allowed, and the cure."""

import json

import pytest

from rftkit.files import UserError
from rftkit.graders.grader import Grader
from rftkit.graders.spec import GraderSpecError, validate_spec

CHECK = {
    "type": "string_check",
    "name": "c",
    "input": "{{sample.output_text}}",
    "reference": "{{item.a}}",
    "operation": "eq",
}
SIMILAR = {
    "type": "text_similarity",
    "name": "t",
    "input": "{{sample.output_text}}",
    "reference": "x",
    "evaluation_metric": "bleu",
}
SCORE = {
    "type": "score_model",
    "name": "s",
    "model": "m",
    "input": [{"role": "user", "content": "Grade {{sample.output_text}}"}],
}
LABEL = {
    **SCORE,
    "type": "label_model",
    "labels": ["good", "bad"],
    "passing_labels": ["good"],
}
PYTHON = {"type": "python", "name": "p", "source": "def grade(sample, item):\n    return 1.0"}
MULTI = {"type": "multi", "name": "m", "graders": {"a": CHECK}, "calculate_output": "a"}


def without(spec, key):
    return {k: v for k, v in spec.items() if k != key}


def with_source(source):
    return {**PYTHON, "source": source}


# name -> (spec, words that the message must hold: the path first)
REFUSED = {
    "a list": ([], ["the grader", "an object"]),
    "a number": (5, ["the grader", "an object"]),
    "no type": (without(CHECK, "type"), ['"type" is missing', "string_check"]),
    "wrapped": ({"grader": CHECK}, ['"type" is missing', 'stands under "grader"']),
    "unknown type": ({**CHECK, "type": "sting_check"}, ['"sting_check"', 'write "string_check"']),
    "type not a text": ({"type": ["multi"]}, ['"type"', '["multi"]']),
    "no name": (without(CHECK, "name"), ['"name" is missing', "add it"]),
    "empty name": ({**CHECK, "name": ""}, ['"name" is empty']),
    "operation": ({**CHECK, "operation": "equals"}, ['"operation" is "equals"', "'ilike'"]),
    "reference a number": ({**CHECK, "reference": 5}, ['"reference" is 5', "a valid string"]),
    "unknown key": ({**CHECK, "refrence": "x"}, ['"refrence"', 'write "reference"']),
    "namespace": ({**CHECK, "input": "{{row.a}}"}, ['"input"', "'row'", "item or sample"]),
    "no namespace": ({**CHECK, "input": "{{answer}}"}, ['"input"', "item or sample"]),
    "namespace alone": ({**CHECK, "input": "{{ item }}"}, ['"input"', "item.NAME"]),
    "sample field": ({**CHECK, "input": "{{sample.answer}}"}, ['"input"', "output_json.answer"]),
    "below a text": ({**CHECK, "input": "{{sample.output_text.a}}"}, ['"input"', "output_json"]),
    "open braces": ({**CHECK, "input": "{{item.a"}, ['"input"', "do not close"]),
    "path": ({**CHECK, "input": "{{item.a[x]}}"}, ['"input"', "[0]"]),
    "star": ({**CHECK, "input": "{{item.a[*]}}"}, ['"input"', "'[*]'"]),
    "half a character": ({**CHECK, "input": "\ud800"}, ['"input"', "surrogate"]),
    "metric": ({**SIMILAR, "evaluation_metric": "rouge"}, ['"evaluation_metric"', "'rouge_l'"]),
    "cosine": ({**SIMILAR, "evaluation_metric": "cosine"}, ['"evaluation_metric"', "embedder"]),
    "range": ({**SCORE, "range": [1, 0]}, ['"range" is [1, 0]', "[0, 1]"]),
    "range of one": ({**SCORE, "range": [1]}, ['"range"', "two numbers"]),
    "range of texts": ({**SCORE, "range": ["0", "1"]}, ['"range"', "two numbers"]),
    "range of bools": ({**SCORE, "range": [False, True]}, ['"range"', "two numbers"]),
    "temperature": (
        {**SCORE, "sampling_params": {"temperature": 3}},
        ['"sampling_params.temperature" is 3', "0 to 2"],
    ),
    "sampling key": (
        {**SCORE, "sampling_params": {"temprature": 1}},
        ['"sampling_params.temprature"', 'write "temperature"'],
    ),
    "effort": (
        {**SCORE, "sampling_params": {"reasoning_effort": "huge"}},
        ['"sampling_params.reasoning_effort"', "'medium'"],
    ),
    "no messages": ({**SCORE, "input": []}, ['"input" is empty']),
    "messages a text": ({**SCORE, "input": "Grade this"}, ['"input" is "Grade this"', "list"]),
    "role": (
        {**SCORE, "input": [{"role": "judge", "content": "x"}]},
        ['"input[0].role" is "judge"', "'developer'"],
    ),
    "no content": ({**SCORE, "input": [{"role": "user"}]}, ['"input[0].content" is missing']),
    "content": (
        {**SCORE, "input": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
        ['"input[0].content"', "input_text"],
    ),
    "template in a part": (
        {
            **SCORE,
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "{{x}}"}]}],
        },
        ['"input[0].content[0].text"', "item or sample"],
    ),
    "message key": (
        {**SCORE, "input": [{"role": "user", "content": "x", "nmae": "y"}]},
        ['"input[0].nmae"'],
    ),
    "empty model": ({**SCORE, "model": " "}, ['"model" is empty']),
    "passing": ({**LABEL, "passing_labels": ["fine"]}, ['"passing_labels"', '"fine"', "good"]),
    "nothing passes": ({**LABEL, "passing_labels": []}, ['"passing_labels"', "non-empty"]),
    "labels twice": ({**LABEL, "labels": ["good", "good"]}, ['"labels"', "different"]),
    "syntax": (with_source("def grade(sample, item:"), ['"source"', "line 1"]),
    "no grade": (with_source("def score(sample, item): return 1"), ['"source"', "def grade"]),
    "three": (with_source("def grade(sample, item, x): return 1"), ['"source"', "exactly two"]),
    "star arguments": (with_source("def grade(*all): return 1"), ['"source"', "exactly two"]),
    "async": (with_source("async def grade(sample, item): return 1"), ['"source"', "async"]),
    "in a class": (
        with_source("class A:\n    def grade(sample, item): return 1"),
        ['"source"', "another block"],
    ),
    "too large": (
        with_source(PYTHON["source"] + "\n#" + "x" * 256_000),
        ['"source"', "fewer than 256,000"],
    ),
    "NUL": (with_source("\0"), ['"source"']),
    "multi in multi": ({**MULTI, "graders": {"a": MULTI}}, ['"graders.a.type"', "inside a multi"]),
    "no graders": (without(MULTI, "graders"), ['"graders" is missing']),
    "empty graders": ({**MULTI, "graders": {}}, ['"graders" is {}']),
    "variable": ({**MULTI, "graders": {"a b": CHECK}}, ['"graders.a b"', "formula cannot use"]),
    "deep": (
        {**MULTI, "graders": {"a": {**CHECK, "operation": "is"}}},
        ['"graders.a.operation" is "is"'],
    ),
    "deep in a list": (
        {**MULTI, "graders": [CHECK, {**CHECK, "name": "a", "operation": "is"}]},
        ['"graders[1].operation" is "is"'],
    ),
    "same name twice": ({**MULTI, "graders": [CHECK, CHECK]}, ['"graders[1].name"', "second time"]),
    "no formula": (without(MULTI, "calculate_output"), ['"calculate_output" is missing']),
    "formula a number": ({**MULTI, "calculate_output": 1}, ['"calculate_output" is 1']),
    "formula": ({**MULTI, "calculate_output": "a +"}, ['"calculate_output"', "position 4"]),
    "variable unknown": (
        {**MULTI, "graders": {"first": CHECK}, "calculate_output": "frist"},
        ["\"calculate_output\" uses 'frist'", "write first"],
    ),
    "python operator": ({**MULTI, "calculate_output": "a ** 2"}, ["position 4", "^, not **"]),
    "eval": ({**MULTI, "calculate_output": "__import__('os')"}, ["position"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_names_path_value_and_what_is_allowed(name):
    spec, words = REFUSED[name]
    with pytest.raises(GraderSpecError) as error:
        validate_spec(spec)
    for word in words:
        assert word in str(error.value)
    assert str(error.value).startswith("grader: ")


def test_all_faults_are_reported_together():
    spec = {
        **MULTI,
        "graders": {
            "a": {**CHECK, "operation": "is", "reference": 5},
            "b": {**SIMILAR, "evaluation_metric": "rouge"},
        },
        "calculate_output": "a + c",
    }
    with pytest.raises(GraderSpecError) as error:
        Grader.load(spec)
    assert len(error.value.problems) == 4
    assert str(error.value).count("\n") == 3


def test_label_model_is_refused_at_the_top_of_a_job_only():
    with pytest.raises(GraderSpecError, match="label_model"):
        Grader.load(LABEL, job=True)
    assert Grader.load(LABEL).type == "label_model"
    Grader.load({**MULTI, "graders": {"a": LABEL}}, job=True)


TOLERATED = {
    "neq": ({**CHECK, "operation": "neq"}, "neq"),
    "python without name": (without(PYTHON, "name"), "name"),
    "multi without name": (without(MULTI, "name"), "name"),
    "threshold": ({**SIMILAR, "pass_threshold": 0.5}, "pass_threshold"),
    "list": ({**MULTI, "graders": [{**CHECK, "name": "a"}]}, "is a list"),
    "old token limit": ({**SCORE, "sampling_params": {"max_tokens": 9}}, "max_completions_tokens"),
    "constant": ({**CHECK, "input": "x"}, "every answer"),
    "blind judge": ({**SCORE, "input": [{"role": "user", "content": "x"}]}, "never sees"),
    "unused": ({**MULTI, "graders": {"a": CHECK, "b": CHECK}}, "does not use 'b'"),
    "missing import": (
        with_source("import no_such_package_here\n" + PYTHON["source"]),
        "no_such_package_here",
    ),
    "passes all": ({**LABEL, "passing_labels": ["bad", "good"]}, "each answer scores 1"),
}


@pytest.mark.parametrize("name", TOLERATED)
def test_what_the_guide_tolerates_loads_with_a_note(name):
    spec, word = TOLERATED[name]
    grader = Grader.load(spec)
    assert any(word in note for note in grader.notes)
    assert Grader.load(grader.to_json()).to_json() == grader.to_json()


@pytest.mark.parametrize("spec", [CHECK, SIMILAR, SCORE, LABEL, MULTI])
def test_plain_grader_loads_without_a_note_and_unchanged(spec):
    assert Grader.load(spec).notes == []
    assert Grader.load(spec).to_json() == spec


@pytest.mark.parametrize(
    "source",
    [
        "grade = lambda sample, item: 1.0",
        "if True:\n    def grade(sample, item): return 1.0",
        "from math import pow as grade",
        "def grade(s, i=None): return 1.0",
    ],
)
def test_other_ways_to_define_grade_are_left_to_the_run(source):
    assert Grader.load(with_source(source)).type == "python"


def test_loading_does_not_change_the_callers_dict():
    spec = {**MULTI, "graders": [{**CHECK, "name": "a", "operation": "neq", "pass_threshold": 1}]}
    before = json.dumps(spec)
    grader = Grader.load(spec)
    grader.to_json()["graders"]["a"]["operation"] = "broken"
    assert json.dumps(spec) == before
    assert grader.to_json()["graders"]["a"]["operation"] == "ne"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"type": "string_check",\n "name" }', [":2:", "not JSON"]),
        (b"\xff\xfe", ["byte 0", "UTF-8"]),
        (b'{"a": 1, "a": 2}', ["'a'", "twice"]),
        (b'{"range": [0, Infinity]}', ["Infinity"]),
        (b"[" * 100_000, ["not a grader's JSON"]),
        (b"", ["not JSON"]),
    ],
)
def test_file_that_is_no_json_is_named_with_its_place(tmp_path, content, words):
    file = tmp_path / "grader.json"
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        Grader.load(file)
    for word in ["grader.json", *words]:
        assert word in str(error.value)


def test_files_and_texts_load(tmp_path):
    file = tmp_path / "grader.json"
    file.write_text("\ufeff" + json.dumps(CHECK), encoding="utf-8")
    assert Grader.load(file).to_json() == Grader.load(str(file)).to_json() == CHECK
    assert Grader.load(json.dumps(CHECK)).to_json() == CHECK
    for nothing in (tmp_path, tmp_path / "none.json", "a\0b"):
        with pytest.raises(UserError, match="cannot be read"):
            Grader.load(nothing)
    with pytest.raises(UserError, match="expected a dict, a path or JSON text"):
        Grader.load(5)
