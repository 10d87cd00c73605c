"""Public examples of this grader JSON, restated, each with the score that its text implies.

Sources: OpenAI's graders guide, RFT guide, RFT use cases, API reference and cookbook; Azure's RFT
guide. Names and data are ours; the shapes are theirs.
"""

import json

import pytest

from rftkit.graders.grader import Grader, GraderSettings
from rftkit.graders.spec import GraderSpecError
from rftkit.records import Sample


def string_check(input, reference, operation="eq", **more):
    texts = {"input": input, "reference": reference, "operation": operation}
    return {"type": "string_check", "name": "check", **texts, **more}


def similarity(input, reference, metric="fuzzy_match", **more):
    texts = {"input": input, "reference": reference, "evaluation_metric": metric}
    return {"type": "text_similarity", "name": "similar", **texts, **more}


def multi(formula, **graders):
    return {"type": "multi", "name": "all", "graders": graders, "calculate_output": formula}


def python(source):
    return {"type": "python", "source": source}


OUTPUT, LABEL = "{{sample.output_text}}", "{{item.label}}"
ANSWER = "{{ item.reference_answer }}"

# The guide's two fields of a contact, a typo allowed in one of them.
CONTACT = multi(
    "(name + email) / 2",
    name=similarity("{{sample.output_json.name}}", "{{item.name}}", pass_threshold=0.9),
    email=string_check("{{sample.output_json.email}}", "{{item.email}}"),
)
JANE = {"name": "Jane Roe", "email": "jane.roe@example.org"}

# The guide's tool call: the name and the arguments, half each.
TOOL_CALL = multi(
    "0.5 * function_name + 0.5 * arguments",
    function_name=string_check("look_up", "{{sample.output_tools[0].function.name}}"),
    arguments=string_check(
        '{"smiles": "{{item.smiles}}"}', "{{sample.output_tools[0].function.arguments}}"
    ),
)


def called(name, arguments):
    call = {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"output_text": "", "output_tools": [call]}


# The use cases' wiring of a chip: F1 over pairs, with a helper and annotations.
PAIRS_F1 = python(
    "from collections import Counter\n"
    "def pairs(rows):\n"
    "    return Counter((row['name'], row['value']) for row in rows)\n"
    "def grade(sample: dict[str, str], item: dict[str, str]) -> float:\n"
    "    said, right = pairs(sample['output_json']['predicted']), pairs(item['wires'])\n"
    "    both = sum((said & right).values())\n"
    "    return 2 * both / (sum(said.values()) + sum(right.values())) if both else 0.0\n"
)
WIRES = [{"name": "SIZE", "value": "8"}, {"name": "WIDTH", "value": "4"}]

WRATIO = python(
    "from rapidfuzz import fuzz, utils\n"
    "def grade(sample, item) -> float:\n"
    "    text, right = sample['output_text'], item['reference_answer']\n"
    "    return fuzz.WRatio(text, right, processor=utils.default_process) / 100.0\n"
)
# The cookbook's and the RFT guide's ways to combine.
COMPLIANT = multi(
    "0.5 * compliant + 0.5 * explanation",
    compliant=string_check("{{sample.output_json.compliant}}", "{{item.compliant}}"),
    explanation=similarity("{{sample.output_json.explanation}}", "{{item.explanation}}", "gleu"),
)
DONORS = multi(
    "0.5 * donors + 0.5 *acceptors",
    donors=string_check("{{item.reference_answer.donors}}", "{{sample.output_json.donors}}"),
    acceptors=string_check(
        "{{item.reference_answer.acceptors}}", "{{sample.output_json.acceptors}}"
    ),
)
DISTANCE = multi(
    "(100 - abs(expected - actual)) / 100",
    expected=python("def grade(sample, item):\n    return int(item['expected'])"),
    actual=python("def grade(sample, item):\n    return int(sample['output_text'])"),
)

CASES = {
    # string_check: the reference's four operations, and the guide's word for one of them
    "eq hit": (string_check(OUTPUT, LABEL), {"label": "Paris"}, "Paris", 1),
    "eq minds case": (string_check(OUTPUT, LABEL), {"label": "Paris"}, "paris", 0),
    "eq minds blanks": (string_check(OUTPUT, LABEL), {"label": "Paris"}, "Paris ", 0),
    "ne": (string_check(OUTPUT, LABEL, "ne"), {"label": "no"}, "yes", 1),
    "neq is ne": (string_check(OUTPUT, LABEL, "neq"), {"label": "no"}, "no", 0),
    "like contains": (string_check(OUTPUT, LABEL, "like"), {"label": "cat"}, "a cat sat", 1),
    "like minds case": (string_check(OUTPUT, LABEL, "like"), {"label": "Cat"}, "a cat", 0),
    "like is not the other way": (
        string_check(OUTPUT, LABEL, "like"),
        {"label": "a cat sat"},
        "cat",
        0,
    ),
    "ilike": (string_check(OUTPUT, LABEL, "ilike"), {"label": "CAT"}, "a cat sat", 1),
    "ilike contains": (string_check(OUTPUT, LABEL, "ilike"), {"label": "dog"}, "a cat", 0),
    "like of boxed": (string_check(OUTPUT, "\\boxed{", "like"), {}, "so \\boxed{4}", 1),
    "two literals": (string_check("yes", "yes"), {}, "whatever", 1),
    "literal input": (string_check("yes", LABEL), {"label": "yes"}, "whatever", 1),
    "blanks in braces": (
        string_check("{{  sample.output_text  }}", ANSWER),
        {"reference_answer": "4"},
        "4",
        1,
    ),
    "text around a template": (
        string_check("Answer: {{sample.output_text}}.", LABEL),
        {"label": "Answer: 4."},
        "4",
        1,
    ),
    "number of the row": (string_check(OUTPUT, ANSWER), {"reference_answer": 1.0}, "1.0", 1),
    "whole number of the row": (string_check(OUTPUT, LABEL), {"label": 3}, "3", 1),
    "JSON in JSON": (
        string_check("{{sample.output_json}}", LABEL),
        {"label": '{"a": [1]}'},
        '{"a":[1]}',
        1,
    ),
    "nested row": (
        string_check(OUTPUT, "{{item.a.b[1].c}}"),
        {"a": {"b": [0, {"c": "x"}]}},
        "x",
        1,
    ),
    "choices": (string_check("{{sample.choices[0].message.content}}", "hello"), {}, "hello", 1),
    "thinking is not output": (
        string_check(OUTPUT, LABEL),
        {"label": "4"},
        "<think>2+2</think>4",
        1,
    ),
    # text_similarity
    "fuzzy of the same": (similarity(OUTPUT, LABEL), {"label": "fuzzy bear"}, "Fuzzy bear!", 1),
    "fuzzy of another": (similarity(OUTPUT, LABEL), {"label": "abc"}, "xyz", 0),
    "rouge of the same": (similarity(OUTPUT, LABEL, "rouge_l"), {"label": "a b c"}, "a b c", 1),
    "rouge_1 half": (similarity(OUTPUT, LABEL, "rouge_1"), {"label": "a b"}, "a c", 0.5),
    "bleu of the same": (similarity(OUTPUT, LABEL, "bleu"), {"label": "a b c d"}, "a b c d", 1),
    "gleu of another": (similarity(OUTPUT, LABEL, "gleu"), {"label": "a b"}, "c d", 0),
    # multi
    "contact right": (CONTACT, JANE, json.dumps(JANE), 1),
    "contact wrong mail": (CONTACT, JANE, json.dumps({**JANE, "email": "x@y.z"}), 0.5),
    "contact without mail": (CONTACT, JANE, json.dumps({"name": "Jane Roe"}), 0.5),
    "contact not JSON": (CONTACT, JANE, "Jane Roe, jane.roe@example.org", 0),
    "tool call right": (TOOL_CALL, {"smiles": "CCO"}, called("look_up", '{"smiles": "CCO"}'), 1),
    "tool call half": (TOOL_CALL, {"smiles": "CCO"}, called("look_up", '{"smiles": "C"}'), 0.5),
    "no tool call": (TOOL_CALL, {"smiles": "CCO"}, {"output_text": "CCO"}, 0),
    "compliant": (
        COMPLIANT,
        {"compliant": "yes", "explanation": "a b c"},
        '{"compliant": "yes", "explanation": "a b c"}',
        1,
    ),
    "compliant half": (
        COMPLIANT,
        {"compliant": "no", "explanation": "a b c"},
        '{"compliant": "yes", "explanation": "a b c"}',
        0.5,
    ),
    "donors": (
        DONORS,
        {"reference_answer": {"donors": 2, "acceptors": 5}},
        '{"donors": 2, "acceptors": 4}',
        0.5,
    ),
    "minimum": (
        multi("min(a, b)", a=string_check(OUTPUT, "x"), b=string_check(OUTPUT, "y")),
        {},
        "x",
        0,
    ),
    "gate": (
        multi("a * b", a=string_check(OUTPUT, "x", "like"), b=string_check(OUTPUT, "y", "like")),
        {},
        "xy",
        1,
    ),
    # python
    "always 1": (python("def grade(sample, item):\n    return 1.0"), {}, "x", 1),
    "an int counts": (python("def grade(sample, item):\n    return 1"), {}, "x", 1),
    "a bool counts": (python("def grade(sample, item):\n    return True"), {}, "x", 1),
    "an exception": (python("def grade(sample, item):\n    return item['no']"), {}, "x", 0),
    "NaN": (python("def grade(sample, item):\n    return float('nan')"), {}, "x", 0),
    "None": (python("def grade(sample, item):\n    pass"), {}, "x", 0),
    "a text": (python("def grade(sample, item):\n    return '1'"), {}, "x", 0),
    "pairs F1": (PAIRS_F1, {"wires": WIRES}, json.dumps({"predicted": WIRES[:1]}), 2 / 3),
    "pairs not JSON": (PAIRS_F1, {"wires": WIRES}, "SIZE=8", 0),
    "WRatio": (
        WRATIO,
        {"reference_answer": "fuzzy wuzzy had no hair"},
        "fuzzy wuzzy was a bear",
        0.7555555555555555,
    ),
    "distance of judges": (DISTANCE, {"expected": 80}, "70", 0.9),
}


@pytest.mark.parametrize("name", CASES)
def test_documented_example_scores_what_its_text_implies(name):
    spec, item, sample, expected = CASES[name]
    grader = Grader.load(spec, GraderSettings(allow_weak_isolation=True))
    assert grader.grade(item, sample)[0] == pytest.approx(expected, abs=1e-12)
    report = grader.run(item, sample)
    assert report["reward"] == pytest.approx(expected, abs=1e-12)
    if isinstance(sample, str):  # a Sample says the same as its text
        assert grader.grade(item, Sample.from_text(sample))[0] == report["reward"]


def test_list_of_the_api_reference_works_once_its_bracket_is_closed():
    spec = {
        "type": "multi",
        "name": "example",
        "graders": [similarity("Some text", "Some text"), string_check(OUTPUT, LABEL)],
        "calculate_output": "0.5 * text_similarity_score +  0.5 * string_check_score)",
    }
    with pytest.raises(GraderSpecError, match="position 56"):
        Grader.load(spec)
    spec["calculate_output"] = spec["calculate_output"].rstrip(")")
    grader = Grader.load(spec)
    assert grader.grade({"label": "A"}, "B")[0] == 0.5
    assert set(grader.to_json()["graders"]) == {"text_similarity_score", "string_check_score"}


def test_list_graders_go_by_their_names_otherwise():
    first, second = string_check(OUTPUT, "A"), string_check(OUTPUT, "B")
    graders = [{**first, "name": "is A"}, {**second, "name": "is-B"}]
    spec = {"type": "multi", "graders": graders, "calculate_output": "is_A + 0.5*is_B"}
    assert Grader.load(spec).grade({}, "B") == (0.5, {"is_A": 0.0, "is_B": 1.0})


def test_report_has_exactly_the_fields_of_the_openai_type():
    from openai.types.fine_tuning.alpha import GraderRunResponse

    report = Grader.load(CONTACT).run(JANE, "{}")
    read = GraderRunResponse.model_validate(report)
    assert read.reward == 0.0 and read.metadata.errors.sample_parse_error
    assert read.sub_rewards == {"name": 0.0, "email": 0.0}
    expected = {field.alias or name for name, field in GraderRunResponse.model_fields.items()}
    assert set(report) == expected
    metadata = type(read.metadata).model_fields
    assert set(report["metadata"]) == set(metadata)
    errors = type(read.metadata.errors).model_fields
    assert set(report["metadata"]["errors"]) == {f.alias or n for n, f in errors.items()}


def test_plain_form_is_valid_for_the_openai_types_and_loads_again():
    import openai.types.graders as types

    spec = string_check(OUTPUT, LABEL, "neq", pass_threshold=0.5)
    plain = Grader.load(spec).to_json()
    assert types.StringCheckGrader.model_validate(plain).operation == "ne"
    for name, (spec, *_rest) in CASES.items():
        plain = Grader.load(spec).to_json()
        assert Grader.load(plain).to_json() == plain, name
