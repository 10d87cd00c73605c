"""Native graders: what they score, and that their exported JSON scores the same."""

import importlib.util
import json
import math
import threading
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rftkit.files import UserError
from rftkit.graders.grader import Grader, GraderSettings
from rftkit.graders.presets import (
    DECAYS,
    SHELF,
    exact_match,
    format_match,
    grader,
    json_schema_match,
    math_match,
    ndcg,
    numeric_match,
    rank_grader,
    reciprocal_rank,
)
from rftkit.graders.python import PythonResult


@cache
def defined(source):
    space: dict = {}
    exec(compile(source, "grader", "exec"), space)
    return space["grade"]


def run_unprotected(source, sample, item):
    """Without isolation, for a thousand answers to the kit's own exported texts."""
    try:
        return PythonResult(value=defined(source)(sample, item))
    except Exception as error:
        return PythonResult(runtime_error=f"{type(error).__name__}: {error}")


NAMES = ["A", "B", "C", "", 'q"', "ü", "1", "1.0", "True", "None", "[1]"]
odd = st.sampled_from([1, 1.0, True, None, [1], {"a": 1}, ["A"]])
answers = st.one_of(
    st.lists(st.sampled_from(NAMES), max_size=12),
    st.lists(st.one_of(st.sampled_from(NAMES), odd), max_size=12),
    st.sampled_from(["A", {"0": "A"}, None, 5]),
)
outputs = st.one_of(
    answers.map(lambda genes: json.dumps({"genes": genes})),
    answers.map(json.dumps),
    st.sampled_from(
        ["", "A", "1,234.5", "x = -3.5e2 km", "42", "{}", "[]", "[1,]", "nan", "1e999"]
    ),
    st.text(max_size=8),
    st.builds(lambda n: f"about {n}.", st.floats(-1e6, 1e6)),
)
items = st.fixed_dictionaries(
    {
        "reference_gene": st.sampled_from([*NAMES, 1, 1.0, True, None]),
        "answer": st.sampled_from(["A", "42", 42, -350, 1234.5, "1,234.5"]),
        "relevance": st.one_of(
            st.dictionaries(st.sampled_from(NAMES), st.integers(1, 3), min_size=1),
            st.lists(st.sampled_from(NAMES), min_size=1, unique=True),
        ),
    }
)
SCHEMA = {
    "type": "object",
    "properties": {"genes": {"type": "array", "items": {"type": "string"}, "maxItems": 5}},
    "required": ["genes"],
}
NATIVE = {
    **{f"rank, {scale}": rank_grader(scale) for scale in DECAYS},
    "gene_rank": SHELF["gene_rank"].make(),
    "level": rank_grader((1, 0.5, 0.5, 0)),
    "long": rank_grader([1 / (place + 1) for place in range(12)]),
    "bare list": rank_grader(output_key=""),
    "other keys": rank_grader(output_key="genes[0]", reference="answer"),
    "reciprocal rank": reciprocal_rank(),
    "ndcg": ndcg(),
    "ndcg at 2": ndcg(cutoff=2),
    "exact": exact_match(),
    "exact field": exact_match("genes", "reference_gene"),
    "number": numeric_match(),
    "number, rough": numeric_match(tolerance=0.1),
    "number field": numeric_match("genes"),
    "schema": json_schema_match(SCHEMA),
    "format": format_match(),
    "format of any length": format_match(length=None),
}
LOADED = {
    n: Grader.load(g.to_json(), GraderSettings(python_runner=run_unprotected))
    for n, g in NATIVE.items()
}
PYTHON_ONLY = {"ndcg", "ndcg at 2", "number", "number, rough", "number field", "schema", "format",
               "format of any length"}  # fmt: skip


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(items, outputs)
def test_exported_json_scores_the_same(item, output):
    for name, native in NATIVE.items():
        if name not in PYTHON_ONLY:
            assert LOADED[name].grade(item, output)[0] == native.grade(item, output)[0], name


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(items, outputs)
def test_exported_python_scores_the_same(item, output):
    for name in PYTHON_ONLY:
        assert LOADED[name].grade(item, output)[0] == NATIVE[name].grade(item, output)[0], name


@pytest.mark.parametrize("name", sorted(PYTHON_ONLY))
def test_exported_python_runs_in_the_sandbox(name):
    exported = Grader.load(NATIVE[name].to_json(), GraderSettings(allow_weak_isolation=True))
    item = {"reference_gene": "A", "answer": 42, "relevance": ["A", "B"]}
    for output in ('{"genes": ["B", "A"]}', '{"genes": [42]}', "about 42.", "[]"):
        assert exported.grade(item, output)[0] == NATIVE[name].grade(item, output)[0], output


def test_only_what_needs_python_is_exported_as_python():
    for name, native in NATIVE.items():
        assert (native.to_json()["type"] == "python") == (name in PYTHON_ONLY), name


def grade(native, output, **item):
    text = output if isinstance(output, str) else json.dumps(output)
    return native.grade(item, text)[0]


def test_rank_is_worth_what_decay_says():
    for place, worth in enumerate([1, 0.7, 0.5, 0.3, 0.1, 0]):
        genes = ["-"] * place + ["X"]
        assert grade(rank_grader(), {"genes": genes}, reference_gene="X") == worth
    assert grade(rank_grader(), {"genes": ["Y", "X", "X"]}, reference_gene="X") == 0.7
    assert grade(reciprocal_rank(), {"genes": ["Y", "Y", "X"]}, reference_gene="X") == 1 / 3
    assert grade(reciprocal_rank(cutoff=2), {"genes": ["Y", "Y", "X"]}, reference_gene="X") == 0


def test_a_scale_is_another_than_its_name_says():
    lists = [{"genes": ["-"] * place + ["X"]} for place in range(11)]

    def worths(decay):
        return [grade(rank_grader(decay), genes, reference_gene="X") for genes in lists]

    assert worths("binary") == [1] + [0] * 10
    assert worths("two_guesses") == [1, 0.5] + [0] * 9
    assert worths("demo") == worths((1, 0.7, 0.5, 0.3, 0.1)) == [1, 0.7, 0.5, 0.3, 0.1] + [0] * 6
    assert worths("reciprocal") == pytest.approx([1 / place for place in range(1, 11)] + [0])
    one_right = [grade(ndcg(), genes, relevance=["X"]) for genes in lists]
    assert worths("ndcg") == pytest.approx(one_right)
    with pytest.raises(UserError, match="'steep', expected numbers or one of .*reciprocal"):
        rank_grader("steep")


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from("ABCDEF"), min_size=1, max_size=8))
def test_the_gene_graders_form_is_another_than_the_share_of_new_names(genes):
    """A second way to say it: of the places two to five, how many repeat an earlier one."""
    shown = genes[:5]
    place = genes.index("A") if "A" in genes else 9
    form = 1 - (len(shown) - len(set(shown))) / 4
    expected = 0.9 * [1, 0.7, 0.5, 0.3, 0.1, 0, 0, 0, 0, 0][place] + 0.1 * form
    got = grade(NATIVE["gene_rank"], {"genes": genes}, reference_gene="A")
    assert got == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("decay", [(), (0.5, 1), (1, -1), (float("nan"),), (float("inf"), 1)])
def test_rank_refuses_a_scale_that_does_not_fall(decay):
    with pytest.raises(UserError, match="falling"):
        rank_grader(decay)


def test_ndcg_is_the_textbooks():
    assert grade(ndcg(), {"genes": ["A", "B"]}, relevance=["B"]) == pytest.approx(1 / math.log2(3))
    gains = {"A": 3, "B": 2, "C": 1}
    found = 2 / math.log2(2) + 3 / math.log2(3)
    ideal = 3 / math.log2(2) + 2 / math.log2(3) + 1 / math.log2(4)
    assert grade(ndcg(), {"genes": ["B", "A", "x"]}, relevance=gains) == pytest.approx(
        found / ideal
    )
    assert grade(ndcg(), {"genes": ["A", "B", "C"]}, relevance=gains) == pytest.approx(1)
    assert grade(ndcg(), {"genes": ["A"] * 9}, relevance=["A", "B"]) < 1  # a repeat counts once


@pytest.mark.parametrize(
    ("output", "answer", "hit"),
    [
        ("42", 42, 1), ("The answer is 42.", 42, 1), ("42.0000001", 42, 1), ("43", 42, 0),
        ("6*7=42", "42", 1), ("1,234,567", 1234567, 1), ("\N{MINUS SIGN}3", -3, 1),
        ("30-40", 40, 1), ("x=-5", -5, 1), ("1e3", 1000, 1), ("41 42 43", 42, 0),
        ("none", 42, 0), ("", 0, 0),
        ("$3.50", 3.5, 1), ("0", 1e-9, 1), (".5", 0.5, 1), ("7.", 7, 1),
    ],
)  # fmt: skip
def test_number_is_read_from_the_end_of_the_text(output, answer, hit):
    assert grade(numeric_match(), output, answer=answer) == hit


def test_numeric_match_reads_a_field():
    assert grade(numeric_match("n"), {"n": 4, "m": 5}, answer=4) == 1
    assert grade(numeric_match("n"), {"n": True}, answer=1) == 0


def test_schema_and_format_see_the_shape():
    assert grade(json_schema_match(SCHEMA), {"genes": ["A"]}) == 1
    assert grade(json_schema_match(SCHEMA), {"genes": [1]}) == 0
    assert grade(json_schema_match(SCHEMA), "no JSON") == 0
    with pytest.raises(UserError, match="json_schema_match: type"):
        json_schema_match({"type": "objekt"})
    five = ["A", "B", "C", "D", "E"]
    assert grade(format_match(), {"genes": five}) == 1
    for bad in (five[:4], [*five, "F"], ["A"] * 5, ["A", "B", "C", "D", " "], "ABCDE", [1, 2, 3]):
        assert grade(format_match(), {"genes": bad}) == 0
    assert grade(format_match(length=None), {"genes": ["A"]}) == 1


MATH_VERIFY = importlib.util.find_spec("math_verify") is not None


def test_math_match_without_math_verify_is_a_traceback(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"rftkit\[math\]"):
        math_match()


@pytest.mark.skipif(not MATH_VERIFY, reason="math-verify is not installed (extra math)")
@pytest.mark.parametrize(
    ("output", "answer", "hit"),
    [
        ("It is $0.5$.", "1/2", 1), ("\\boxed{3\\sqrt{2}}", "\\sqrt{18}", 1), ("42", 42, 1),
        ("so 43", 42, 0), ("$x^2+2x+1$", "(x+1)^2", 1), ("$\\frac{2}{4}$", "$\\frac{1}{2}$", 1),
        ("no idea", 1, 0), ("", 1, 0),
    ],
)  # fmt: skip
def test_math_match_compares_letters_and_not_values(output, answer, hit):
    native = math_match()
    assert grade(native, output, answer=answer) == hit
    loaded = Grader.load(native.to_json(), GraderSettings(python_runner=run_unprotected))
    assert loaded.grade({"answer": answer}, output)[0] == hit
    if hit:
        assert grade(math_match("x"), {"x": output}, answer=answer) == 1


@pytest.mark.skipif(not MATH_VERIFY, reason="math-verify is not installed (extra math)")
def test_math_match_in_a_thread_scores_zero_without_a_word():
    raised = []

    def in_thread():
        with pytest.raises(UserError, match="main thread"):
            math_match().grade({"answer": 1}, "1")
        raised.append(True)

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    assert raised == [True]


def test_a_decorated_function_does_not_say_that_it_runs_in_this_process():
    made = grader(lambda sample, item: 1.0, name="mine")
    assert any("'mine' runs in this process" in note for note in made.notes)
    assert rank_grader().notes == []


def test_decorated_function_is_a_grader():
    @grader(name="long enough")
    def longer(sample, item):
        return len(sample["output_text"]) / item["limit"]

    assert longer.name == "long enough"
    assert longer.grade({"limit": 4}, "abc")[0] == 0.75
    report = longer.run({}, "abc")
    assert report["reward"] == 0.0
    assert "KeyError" in report["metadata"]["errors"]["python_grader_runtime_error_details"]
    exported = Grader.load(longer.to_json(), GraderSettings(python_runner=run_unprotected))
    assert exported.grade({"limit": 4}, "abc")[0] == 0.75

    @grader
    def forgets(sample, item):
        len(sample)

    assert forgets.run({}, "x")["metadata"]["errors"]["python_grader_runtime_error"]


FACTOR = 2


def test_function_that_borrows_from_outside_is_not_exported():
    local = 3

    @grader
    def borrows(sample, item):
        return FACTOR * local / 6

    assert borrows.grade({}, "x")[0] == 1.0
    with pytest.raises(UserError, match="uses FACTOR, local from outside"):
        borrows.to_json()
    with pytest.raises(UserError, match="exactly these two"):
        grader(lambda sample: 1)
    with pytest.raises(UserError, match="not a def"):
        grader(lambda sample, item: 1).to_json()


@pytest.mark.parametrize("name", SHELF)
def test_shelf_grader_loads_from_its_own_json(name):
    made = SHELF[name].make()
    loaded = Grader.load(made.to_json(), job=True)
    assert loaded.to_json() == made.to_json()
    assert [n for n in loaded.notes if "python graders run" not in n] == []
    assert SHELF[name].about
