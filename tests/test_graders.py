"""What graders score: documented examples, presets, metrics, Python functions; and whose fault a
lost grade is."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rftkit.files import UserError
from rftkit.graders import scorers as similarity
from rftkit.graders.answer import ERROR_FIELDS
from rftkit.graders.grader import Grader, GraderSettings, grader
from rftkit.graders.presets import DECAYS, PRESETS, preset
from rftkit.graders.spec import GraderSpecError
from rftkit.records import Sample
from rftkit.sandbox.runner import Outcome
from rftkit.task import load_task

pytestmark = pytest.mark.filterwarnings("ignore:grader .* outside 0 to 1")
OUTPUT, LABEL = "{{sample.output_text}}", "{{item.label}}"


def check(input, reference, operation="eq"):
    texts = {"input": input, "reference": reference, "operation": operation}
    return {"type": "string_check", "name": "check", **texts}


def similar(input, reference, metric="fuzzy_match", **more):
    texts = {"input": input, "reference": reference, "evaluation_metric": metric}
    return {"type": "text_similarity", "name": "similar", **texts, **more}


def multi(formula, **graders):
    return {"type": "multi", "name": "all", "graders": graders, "calculate_output": formula}


SETTINGS = GraderSettings(allow_weak_isolation=True)  # for our own texts


def loaded(name, **arguments):
    return Grader.load(preset(name, **arguments), SETTINGS)


GENES = loaded("gene_rank")
ITEM = {"reference_gene": "BRCA1"}

CONTACT = multi(  # OpenAI's guide: two fields, a typo allowed in one of them
    "(name + email) / 2",
    name=similar("{{sample.output_json.name}}", "{{item.name}}", pass_threshold=0.9),
    email=check("{{sample.output_json.email}}", "{{item.email}}"),
)
JANE = {"name": "Jane Roe", "email": "jane.roe@example.org"}
TOOL_CALL = check("C={{item.c}}", "{{sample.output_tools[0].function.arguments}}")
CALL = {"type": "function", "function": {"name": "look_up", "arguments": "C=1"}}
CHECKS = [
    ("eq", "Paris", "Paris", 1), ("eq", "Paris", "paris", 0), ("ne", "no", "yes", 1),
    ("neq", "no", "no", 0), ("like", "cat", "a cat sat", 1), ("like", "Cat", "a cat", 0),
    ("ilike", "CAT", "a cat", 1), ("eq", "4", "<think>2+2</think>4", 1),
    ("eq", "x", "{{item.label}}", 0),
]  # fmt: skip
EXAMPLES = [
    *((check(OUTPUT, LABEL, how), {"label": label}, text, hit) for how, label, text, hit in CHECKS),
    (check("{{sample.choices[0].message.content}}", "hello"), {}, "hello", 1),
    (check("{{sample.reasoning}}", "2+2"), {}, "<think>2+2</think>4", 1),
    (check("{{sample.output_json.a}}", "", "ne"), {}, "{}", 0),  # an absent field is not "ne"
    (check("{{sample.output_json}}", "", "ne"), {}, "NaN", 0),  # which JSON lacks
    (similar(OUTPUT, LABEL), {"label": "fuzzy bear"}, "Fuzzy bear!", 1),
    (CONTACT, JANE, json.dumps(JANE), 1),
    (CONTACT, JANE, '{"name": "Jane Roe"}', 0.5),
    (TOOL_CALL, {"c": 1}, {"output_text": "", "output_tools": [CALL]}, 1),
]


@pytest.mark.parametrize(("spec", "item", "sample", "expected"), EXAMPLES, ids=str)
def test_a_documented_example_scores_what_its_text_implies(spec, item, sample, expected):
    made = Grader.load(spec, SETTINGS)
    assert made.grade(item, sample)[0] == pytest.approx(expected, abs=1e-12)
    if isinstance(sample, str):  # a Sample says the same as its text
        assert made.grade(item, Sample.from_text(sample)) == made.grade(item, sample)


def test_the_graders_of_a_list_are_named_by_their_type_or_their_name():
    text, first, second = similar("Some text", "Some text"), check(OUTPUT, "A"), check(OUTPUT, "B")
    spec = multi("0.5 * text_similarity_score + string_check_score")  # of the API reference
    scores = {"text_similarity_score": 1.0, "string_check_score": 0.0}
    assert Grader.load(spec | {"graders": [text, first]}).grade({}, "B") == (0.5, scores)
    named = [first | {"name": "is A"}, second | {"name": "is-B"}]
    spec = multi("is_A + 0.5*is_B") | {"graders": named}
    assert Grader.load(spec).grade({}, "B") == (0.5, {"is_A": 0.0, "is_B": 1.0})


def test_a_report_has_exactly_the_fields_of_the_openai_type():
    from openai.types.fine_tuning.alpha import GraderRunResponse

    def names(model):
        return {field.alias or name for name, field in model.model_fields.items()}

    report = Grader.load(CONTACT).run(JANE, "{}")
    read = GraderRunResponse.model_validate(report)
    assert read.sub_rewards == {"name": 0.0, "email": 0.0} and read.reward == 0.0
    assert set(report) == names(GraderRunResponse)
    assert set(report["metadata"]) == names(type(read.metadata))
    assert set(report["metadata"]["errors"]) == names(type(read.metadata.errors))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_valid_grader(name):
    assert Grader.load(preset(name)).to_json() == preset(name)
    assert name != "gene_rank" or load_task("gene_ranking").grader_spec == preset(name)


WRONG = [{"name": "steep"}, {"decay": "steep"}, {"length": 6}, {"k": 1}, {"decay": (0.5, 1)}]


@pytest.mark.parametrize("arguments", WRONG)
def test_a_preset_that_makes_no_sense_is_refused(arguments):
    with pytest.raises(UserError, match="^preset"):
        preset(**{"name": "rank"} | arguments)


NAMES = st.sampled_from(["A", "B", "C", "", 'q"', "ü", "1", "True", "None"])
WORTHS = DECAYS | {"long": [1 / n for n in range(1, 13)], "short": (1, 0.7), "bare": DECAYS["demo"]}
RANKS = {name: loaded("rank", decay=name) for name in DECAYS} | {
    "long": loaded("rank", decay=WORTHS["long"]), "bare": loaded("rank", key=""),
    "short": loaded("rank", length=2),
}  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(NAMES, st.lists(NAMES, max_size=14))
def test_a_rank_is_worth_what_its_scale_gives_to_the_first_right_place(right, genes):
    place = genes.index(right) if right in genes else 99
    item, output = {"reference_gene": right}, json.dumps({"genes": genes})
    for name, worths in WORTHS.items():
        text = json.dumps(genes) if name == "bare" else output
        expected = worths[place] if place < len(worths) else 0
        assert RANKS[name].grade(item, text)[0] == pytest.approx(expected, abs=1e-15), name
    shown = genes[:5]
    form = 1 - (len(shown) - len(set(shown))) / 4 if genes and genes[0] else 0
    expected = 0.9 * (DECAYS["demo"][place] if place < 5 else 0) + 0.1 * form
    assert GENES.grade(item, output)[0] == pytest.approx(expected, abs=1e-12)


def test_a_number_is_read_from_the_end_of_the_text():
    numeric = loaded("numeric_match")
    for output, answer in (
        ("42", 42), ("The answer is 42.", 42), ("42.0000001", 42), ("6*7=42", "42"),
        ("1,234,567", 1234567), ("30-40", 40), ("x=-5", -5), ("1e3", 1000),
    ):  # fmt: skip
        assert numeric.grade({"answer": answer}, output)[0] == 1, output
    assert [numeric.grade({"answer": 42}, output)[0] for output in ("43", "none")] == [0, 0]


def test_the_form_of_an_answer_is_a_schema():
    schema = loaded("json_schema", schema={"type": "object", "required": ["a"]})
    assert [schema.grade({}, text)[0] for text in ('{"a": 1}', "{}", "no JSON")] == [1, 0, 0]


METRICS = {
    "fuzzy_match": 0.95, "bleu": 0.43012509, "gleu": 0.45454545,
    "rouge_1": 0.92307692, "rouge_2": 0.72727273, "rouge_3": 0.66666667,
    "rouge_4": 0.57142857, "rouge_5": 0.4, "rouge_l": 0.92307692,
}  # fmt: skip


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_keeps_its_value(metric):
    made = Grader.load(similar(OUTPUT, "Fuzzy Wuzzy was a big brown bear!", metric))
    assert made.grade({}, "fuzzy was a big brown bear")[0] == pytest.approx(METRICS[metric])


def test_meteor_names_the_download_where_its_corpus_is_missing(monkeypatch):
    class Missing:
        def ensure_loaded(self):
            raise LookupError("no wordnet")

    similarity.get_metric.cache_clear()
    meteor = Grader.load(similar(OUTPUT, LABEL, "meteor"))
    monkeypatch.setattr("nltk.corpus.wordnet", Missing())
    for use in (meteor.check_ready, lambda: meteor.run({"label": "a"}, "b")):
        with pytest.raises(UserError, match="python -m nltk.downloader wordnet"):
            use()


def test_cosine_needs_an_embedder():
    spec = similar(OUTPUT, LABEL, "cosine")
    with pytest.raises(GraderSpecError, match="embedder"):
        Grader.load(spec)
    vectors = {"same": [3, 4], "other": [4, -3], "half": [1, 0], "zero": [0, 0]}
    made = Grader.load(spec, GraderSettings(embedder=lambda texts: [vectors[t] for t in texts]))
    for text, expected in [("same", 1), ("other", 0), ("half", 0.6), ("zero", 0)]:
        assert made.grade({"label": "same"}, text)[0] == pytest.approx(expected)
    assert made.evaluate({"label": "same"}, "unknown").errors == ["other_error"]


# Whose fault it is: the sample's costs the grade (0), the grader's own gives none.
TWO = {"a": check(OUTPUT, "A"), "b": check(OUTPUT, "B")}
LOST = {"a": check(OUTPUT, "A"), "b": check(OUTPUT, "{{item.missing}}")}


@pytest.mark.parametrize(
    ("spec", "item", "sample", "reward", "errors"),
    [
        (preset("rank"), ITEM, "no JSON", 0.0, ["sample_parse_error"]),
        (preset("rank"), ITEM, '{"genes": []}', 0.0, ["sample_parse_error"]),
        (preset("rank"), ITEM, '{"genes": ["A", "BRCA1"]}', 0.7, []),  # a shorter list is no fault
        (preset("rank", length=3), ITEM, '{"genes": ["A", "B", "BRCA1"]}', 0.5, []),
        (check("{{sample.output_json[1]}}", "A"), {}, '["A"]', 0.0, ["sample_parse_error"]),
        (preset("rank"), {"gene": "A"}, '{"genes": ["A"]}', None, ["invalid_variable_error"]),
        (check(OUTPUT, "x"), {}, Sample(output_text="x", finish_reason="length"), 0.0,
         ["truncated_observation_error"]),
        (check(OUTPUT, ""), {}, Sample(finish_reason="error"), None, ["other_error"]),
        (multi("1 / a", **TWO), {}, "B", None, ["formula_parse_error"]),
        (multi("a", **LOST), {}, "A", 1.0, ["invalid_variable_error"]),
        (multi("a + b", **LOST), {}, "A", None, ["invalid_variable_error"]),
    ],
    ids=str,
)  # fmt: skip
def test_a_lost_grade_is_the_samples_fault_or_the_graders(spec, item, sample, reward, errors):
    grade = Grader.load(spec).evaluate(item, sample)
    assert (grade.reward, grade.errors) == (reward, errors)
    report = grade.to_json()["metadata"]["errors"]
    assert [name for name in ERROR_FIELDS if report[name]] == errors


def test_rows_without_the_field_are_named_before_training():
    with pytest.raises(UserError, match=r"row case-7: \{\{item.reference_gene\}\}") as error:
        GENES.check_rows([ITEM, {"case_id": "case-7"}, {}])
    assert "row 3" in str(error.value) and "row 1" not in str(error.value)
    GENES.check_rows([ITEM])


def test_a_reward_outside_0_to_1_is_kept_and_warned_of_once():
    made = Grader.load(multi("3 * a - b", **TWO))
    with pytest.warns(UserWarning, match="outside 0 to 1.*grader_maximum") as warned:
        assert [made.grade({}, text)[0] for text in "AB"] == [3.0, -1.0]
    assert len(warned) == 1


@pytest.mark.parametrize(
    ("outcome", "reward", "field"),
    [
        (Outcome(0.25), 0.25, None), (Outcome(math.inf), 0.0, "python_grader_runtime_error"),
        (Outcome(runtime_error="why"), 0.0, "python_grader_runtime_error"),
        (Outcome(runtime_error="why", failed_to_load=True), None, "python_grader_runtime_error"),
        (Outcome(server_error="why"), None, "python_grader_server_error"),
    ],
)  # fmt: skip
def test_what_a_python_grader_did_becomes_the_right_kind_of_fault(outcome, reward, field):
    calls = []
    settings = GraderSettings(python_runner=lambda *call: calls.append(call) or outcome)
    spec = {"type": "python", "source": "def grade(sample, item): return 1"}
    grade = Grader.load(spec, settings).evaluate({"k": 1}, '{"a": 1}')
    assert grade.reward == reward and grade.errors == [field] * bool(field)
    if field and not outcome.value:
        assert "why" in grade.to_json()["metadata"]["errors"][ERROR_FIELDS[field]]
    ((source, sample, item),) = calls
    assert (source, item, sample["output_json"]) == (spec["source"], {"k": 1}, {"a": 1})
    assert set(sample) == {"output_text", "output_json", "output_tools", "choices"}


FACTOR = 2


def test_a_decorated_function_is_a_grader_and_exported_if_it_stands_alone():
    local = 3

    @grader(name="borrower", maximum=2)
    def borrows(sample, item):
        return FACTOR * local / 6

    assert (borrows.name, borrows.maximum, borrows.grade({}, "x")[0]) == ("borrower", 2, 1.0)
    with pytest.raises(UserError, match="FACTOR, local"):
        borrows.to_json()
    with pytest.raises(UserError, match="no def"):
        grader(lambda sample, item: 1).to_json()
