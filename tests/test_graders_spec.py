"""Grader JSON is read from where it stands, and checked: every fault at once, with its place."""

import json
import re

import pytest

from rftkit.contract import walk
from rftkit.files import UserError
from rftkit.graders.grader import Grader
from rftkit.graders.presets import preset
from rftkit.graders.spec import SHAPES, GraderSpecError

OUTPUT = {"input": "{{sample.output_text}}"}
CHECK = {"type": "string_check", "name": "c", **OUTPUT, "reference": "{{item.a}}",
         "operation": "eq"}  # fmt: skip
SIMILAR = {"type": "text_similarity", "name": "t", **OUTPUT, "reference": "x",
           "evaluation_metric": "bleu"}  # fmt: skip
SCORE = {"type": "score_model", "name": "s", "model": "m",
         "input": [{"role": "user", "content": "Grade {{sample.output_text}}"}]}  # fmt: skip
LABEL = {**SCORE, "type": "label_model", "labels": ["good", "bad"], "passing_labels": ["good"]}
PYTHON = {"type": "python", "name": "p", "source": "def grade(sample, item):\n    return 1.0"}
MULTI = {"type": "multi", "name": "m", "graders": {"a": CHECK}, "calculate_output": "a"}


METHOD = {"type": "reinforcement", "reinforcement": {"grader": CHECK, "hyperparameters": {}}}
JOB = {"model": "m", "training_file": "t", "method": METHOD}


def without(spec, key):
    return {k: v for k, v in spec.items() if k != key}


def said_by(content):
    return {**SCORE, "input": [{"role": "user", "content": content}]}


def of(**graders):
    return {**MULTI, "graders": graders}


SOURCES = [
    "def grade(sample, item:", "def score(sample, item): return 1", "def grade(*all): return 1",
    "def grade(sample, item, x): return 1", "class A:\n    def grade(sample, item): return 1",
    PYTHON["source"] + "\n#" + "x" * 256_000,
]  # fmt: skip
REFUSED = [
    # (spec, the place of each fault)
    ([], [""]), (without(CHECK, "type"), ["type"]), ({**CHECK, "type": "sting_check"}, ["type"]),
    (without({**CHECK, "refrence": "x"}, "reference"), ["reference", "refrence"]),
    ({**CHECK, "input": "{{row.a}}", "reference": "{{answer}}"}, ["input", "reference"]),
    *(({**CHECK, "input": text}, ["input"])
      for text in ("{{ item }}", "{{sample.answer}}", "{{sample.output_text.a}}", "{{item.a",
                   "{{ sample.output_json.a.strip().lower() }}", "{{item.a|lower}}",
                   "{{ item.a | lower }}", "{{item.a+item.b}}")),
    ({"type": "endpoint", "name": "e", "url": "https://example.invalid"}, ["type"]),
    ({**CHECK, "maximum": "five"}, ["maximum"]),
    ({"testing_criteria": [{**CHECK, "input": 5}]}, ["testing_criteria.input"]),
    ({"testing_criteria": [CHECK, CHECK]}, ["testing_criteria"]),
    ({**SIMILAR, "evaluation_metric": "cosine"}, ["evaluation_metric"]),
    *(({**SCORE, "range": wrong}, ["range"]) for wrong in ([1, 0], [1], [0, 1e999])),
    ({**SCORE, "input": [{"role": "judge", "content": "x", "nmae": "y"}]},
     ["input[0].role", "input[0].nmae"]),
    (said_by([{"type": "text", "text": "x"}]), ["input[0].content"]),
    (said_by([{"type": "input_text", "text": "{{x}}"}]), ["input[0].content[0].text"]),
    *(({**LABEL, "passing_labels": wrong}, ["passing_labels"]) for wrong in (["fine"], [])),
    *(({**PYTHON, "source": source}, ["source"]) for source in SOURCES),
    (of(a=MULTI), ["graders.a.type"]), (without(MULTI, "graders"), ["graders"]),
    (of(), ["graders"]), (of(**{"a b": CHECK}, a=CHECK), ["graders.a b"]),
    ({**MULTI, "graders": [{**CHECK, "name": "a"}] * 2}, ["graders[1]"]),
    (without(MULTI, "calculate_output"), ["calculate_output"]),
    ({**MULTI, "calculate_output": "a +"}, ["calculate_output"]),
    ({**of(a={**CHECK, "operation": "is", "reference": 5}, b={**SIMILAR, "input": None}),
      "calculate_output": "a + c"},
     ["graders.a.reference", "graders.a.operation", "graders.b.input", "calculate_output"]),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "places"), REFUSED, ids=lambda value: str(value)[:60])
def test_every_fault_is_named_with_its_place(spec, places):
    with pytest.raises(GraderSpecError) as error:
        Grader.load(spec if isinstance(spec, dict) else json.dumps([spec]))
    found = [
        re.match(r"(?:([\w.\[\] ]+): )?", problem)[1] or "" for problem in error.value.problems
    ]
    assert sorted(found) == sorted(places)
    assert all(line.startswith("grader: ") for line in str(error.value).splitlines())


@pytest.mark.parametrize(
    ("spec", "place"),
    [
        ({**CHECK, "operation": "neq"}, "operation"), (without(PYTHON, "name"), "name"),
        (without(MULTI, "name"), "name"), ({**SIMILAR, "pass_threshold": 0.5}, "pass_threshold"),
        ({**MULTI, "graders": [{**CHECK, "name": "a"}]}, "graders"), ({**CHECK, "input": "x"}, ""),
        (said_by("x"), ""), (of(a=CHECK, b=CHECK), "calculate_output"),
        (without(CHECK, "name"), "name"), (of(a=without(CHECK, "name")), "graders.a.name"),
        ({**MULTI, "invalid_grade": 0.0}, "invalid_grade"),
        ({**PYTHON, "source": "\n    " + PYTHON["source"].replace("\n", "\n    ")}, "source"),
        (JOB, "method.reinforcement.grader"), (METHOD, "reinforcement.grader"),
        ({"name": "e", "testing_criteria": [CHECK]}, "testing_criteria"),
        ({"grader": CHECK, "model_sample": "x"}, "grader"),
    ],
)  # fmt: skip
def test_what_the_guide_tolerates_loads_with_a_note(spec, place):
    before = json.dumps(spec)
    grader = Grader.load(spec)
    (note,) = grader.notes
    assert not place or note.startswith(f"{place}: ")
    assert Grader.load(grader.to_json()).to_json() == grader.to_json()
    grader.to_json()["name"] = "changed"
    assert json.dumps(spec) == before and grader.to_json()["name"] != "changed"


@pytest.mark.parametrize("spec", [CHECK, SIMILAR, SCORE, LABEL, MULTI], ids=lambda s: s["type"])
def test_a_plain_grader_loads_without_a_note_and_unchanged(spec):
    assert Grader.load(spec).notes == [] and Grader.load(spec).to_json() == spec


def test_the_shapes_are_those_of_the_openai_package():
    from openai.types import graders as types

    def choices(model):
        leaves = walk(model.model_json_schema())
        return {word for place, word in leaves if re.search(r"\.(enum\[\d+\]|const)$", place)}

    for kind, ours in SHAPES.items():
        theirs = getattr(types, kind.title().replace("_", "") + "Grader")
        assert {**ours.model_fields}.keys() - {"maximum"} == theirs.model_fields.keys()
        needed = [
            {name for name, field in model.model_fields.items() if field.is_required()}
            for model in (ours, theirs)
        ]
        assert needed[0] == needed[1]
        assert choices(ours) <= choices(theirs)


def test_the_best_grade_may_stand_in_the_json():
    assert Grader.load(CHECK).maximum == 1 and Grader.load({**SCORE, "range": [0, 7]}).maximum == 7
    stated = Grader.load({**CHECK, "maximum": 5})
    assert stated.maximum == 5 and stated.to_json() == CHECK


def test_a_grader_loads_from_a_dict_a_text_a_path_or_a_presets_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grader.json").write_text("\ufeff" + json.dumps(CHECK), encoding="utf-8")
    for source in (CHECK, json.dumps(CHECK), "grader.json", tmp_path / "grader.json"):
        assert Grader.load(source).to_json() == CHECK
    assert Grader.load("rank").to_json() == preset("rank")
    (tmp_path / "rank").write_text(json.dumps(CHECK))
    assert Grader.load("rank").to_json() == CHECK  # a file of that name comes first
    with pytest.raises(UserError, match="none.json"):
        Grader.load("none.json")
