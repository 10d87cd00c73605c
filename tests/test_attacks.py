"""Attacks: a hole in a grader is red, an honest grader is not, calibration sees the order."""

import json

import pytest

from rftkit import Grader, UserError, attack, grader, load_task
from rftkit.attacks import STRATEGIES, reference_check

pytestmark = pytest.mark.filterwarnings("ignore:grader .* outside 0 to 1")
ALL = {strategy.name for strategy in STRATEGIES}
TEMPLATE = '{"genes": ["{{item.reference_gene}}"]}'
WORSE = ['{"genes": ["NONE", "NIL", "{{item.reference_gene}}"]}', '{"genes": ["NONE"]}']
GENES = ["SCN1A", "SCN2A", "BRCA1", "TTN", "ACTA1", "KCNQ2", "CFTR", "CFTR"]
ROWS = [
    {"messages": [{"role": "user", "content": f"Case {i}: seizures."}],
     "reference_gene": gene, "row_id": i}
    for i, gene in enumerate(GENES, 1)
]  # fmt: skip
RANK = load_task("gene_ranking").grader  # partial credit for the places below the first


def hole(kind, path, **more):
    texts = {"input": "{{sample." + path + "}}", "reference": "{{item.reference_gene}}"}
    return Grader.load({"type": kind, "name": "hole", **texts, **more})


EXACT = hole("string_check", "output_json.genes[0]", operation="eq")


def check(made, rows=ROWS, worse=WORSE, **more):
    return attack(made, rows, TEMPLATE, worse, **more)


def by_name(report):
    return {result.name: result for result in report.results}


def test_the_gene_grader_pays_for_no_cheat():
    task = load_task("gene_ranking")
    report = attack(task.grader, task.rows("train")[:40], task.answer_template, task.worse_answers)
    assert report.red == [] and report.calibration.status == "passed"
    assert len(ALL) == 18 and {result.name for result in report.results} == ALL
    assert all(result.mean is not None for result in report.results)
    assert [*report.honest.values()] == pytest.approx([1, 0.37, 0.1])


SUMS_PLACES = grader(lambda sample, item: sum(
    weight for weight, gene in zip([1, 0.7, 0.5, 0.3, 0.1], sample["output_json"]["genes"])
    if gene == item["reference_gene"]
))  # fmt: skip
LIKES_WORDS = grader(lambda sample, item: float(
    "seizures" in sample["output_text"] or len(sample["output_text"]) > 1000
))  # fmt: skip
LIKES_CYRILLIC_AND_SILENCE = grader(lambda sample, item: float(
    not sample["output_text"] or sample["output_json"]["genes"] == [item["reference_gene"]]
    or sample["output_json"]["genes"][:1] == [] or sample["output_json"]["genes"][0][0] in "АВСТК"
))  # fmt: skip
GUESSES = {"popular answer", "popular, many times", "every answer"}


@pytest.mark.parametrize(
    ("made", "red", "exactly"),
    [
        (EXACT, GUESSES, True),  # right or wrong: a lucky guess beats an honest near miss
        (hole("string_check", "output_json.genes[0]", operation="ilike"),
         {*GUESSES, "other case"}, True),
        (hole("string_check", "reasoning", operation="like"), {"in the reasoning only"}, True),
        (hole("string_check", "output_text", operation="like"),
         {"every answer", "truncated JSON", "middle, filled up"}, False),
        (hole("text_similarity", "output_json.genes[0]", evaluation_metric="fuzzy_match"),
         {"other case", "other spelling", "nearest name"}, False),
        (SUMS_PLACES, {"right, many times", "middle, filled up", "popular, many times"}, False),
        (LIKES_WORDS, {"echo", "echo in form", "longest answer", "padding"}, False),
        (LIKES_CYRILLIC_AND_SILENCE, {"look-alikes", "empty", "empty form"}, False),
    ],
    ids=["exact", "any case", "reasoning", "anywhere", "fuzzy", "sum", "words", "cyrillic"],
)  # fmt: skip
def test_a_hole_is_red(made, red, exactly):
    found = set(check(made).red)
    assert found == red if exactly else found >= red


def test_the_report_gives_the_graders_own_rewards():
    results = by_name(check(RANK))
    everything = results["every answer"]
    assert results["popular answer"].example == '{"genes": ["CFTR"]}'
    assert sorted(json.loads(everything.example)["genes"]) == sorted(set(GENES))
    rewards = [RANK.grade(row, everything.example)[0] for row in ROWS]
    assert everything.mean == pytest.approx(sum(rewards) / len(rewards))
    assert "RED every answer" in str(check(EXACT))


def test_answers_beside_the_rows_own_make_listing_them_all_a_cheat():
    pool = [*(f"GENE{i}" for i in range(100)), *GENES]
    many = by_name(check(RANK, ROWS[:3], pool=pool))["every answer"]
    assert "every answer" in check(EXACT, ROWS[:3]).red and not many.red
    assert sorted(json.loads(many.example)["genes"]) == sorted(set(pool))


def test_a_blind_strategy_does_not_see_the_rows_answer():
    """The set of answers and the most frequent one stay; only which row has which changes."""
    swapped = [{**ROWS[0], "reference_gene": "SCN2A"}, {**ROWS[1], "reference_gene": "SCN1A"}]
    telling = TEMPLATE.replace("]}", '], "why": "{{item.reference_gene}} fits"}')
    first, second = (
        by_name(attack(RANK, rows, telling, WORSE)) for rows in (ROWS, [*swapped, *ROWS[2:]])
    )
    same = {name for name in ALL if first[name].example == second[name].example}
    blind = {"echo", "echo in form", "empty", "empty form", "longest answer", "injection"}
    assert same >= {*GUESSES, *blind} and "look-alikes" not in same


@pytest.mark.parametrize(
    "template", ['{"n": "{{item.n}}", "why": "sums"}', '[{{item.n}}, "b"]', "It is {{item.n}}."]
)
def test_a_task_of_another_shape_is_attacked(template):
    texts = {"input": "{{sample.output_text}}", "reference": "{{item.n}}"}
    number = Grader.load({"type": "string_check", "name": "n", "operation": "like", **texts})
    report = attack(number, [{"messages": [], "n": 3 * i} for i in range(4)], template)
    results = by_name(report)
    for name in ("other case", "other spelling", "look-alikes", "middle, filled up"):
        assert results[name].mean is None and not results[name].red  # a number has no other case
    assert report.calibration.status == "not checked"
    assert results["every answer"].example.startswith(template.partition("{{")[0].rstrip('"'))
    assert "every answer" in report.red


def test_calibration_fails_where_ordered_answers_do_not_score_in_order():
    made = (EXACT, WORSE), (RANK, WORSE), (RANK, WORSE[::-1])
    level, right, turned = (check(g, worse=w, strategies=()).calibration for g, w in made)
    assert (level.status, right.status, turned.status) == ("failed", "passed", "failed")
    assert level.failures[0] == {"row_id": "1", "rewards": [1.0, 0.0, 0.0]}
    assert [*right.levels.values()] == pytest.approx([1, 0.55, 0.1])


def test_the_reference_check_names_rows_whose_right_answer_does_not_score_the_maximum():
    assert reference_check(RANK, json.loads(TEMPLATE), ROWS).status == "passed"
    assert reference_check(RANK, None, ROWS).status == "not checked"
    (third,) = reference_check(RANK, WORSE[0], ROWS[:1]).failures
    assert (third["row_id"], third["reward"]) == ("1", pytest.approx(0.55))
    lacking = reference_check(RANK, TEMPLATE, [*ROWS, {"row_id": "x"}])
    assert [(f["row_id"], f["reward"]) for f in lacking.failures] == [("x", None)]
    assert lacking.status == "failed" and "'x'" in str(lacking)


@pytest.mark.parametrize(
    ("answers", "why"), [("good", r"returned good \(str\)"), (None, "ZeroDivisionError")]
)
def test_an_attack_on_a_grader_that_fails_says_why(answers, why):
    with pytest.raises(UserError, match=f"grader g: fails on a right answer: .*{why}"):
        check(grader(lambda sample, item: answers or 1 / 0, name="g"))


@pytest.mark.parametrize(("rows", "template"), [(ROWS, None), ([], TEMPLATE), ([{}], TEMPLATE)])
def test_an_attack_without_what_it_needs_is_refused(rows, template):
    with pytest.raises(UserError):
        attack(EXACT, rows, template)
