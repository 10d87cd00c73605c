"""The attack suite: does it see a hole, and does it leave an honest grader alone?"""

import html.parser
import json
import warnings

import pytest

from rftkit.attacks import STRATEGIES, attack, calibrate
from rftkit.files import UserError
from rftkit.graders.answer import answer_place
from rftkit.graders.grader import Grader, GraderSettings
from rftkit.graders.judge import JudgeSettings
from rftkit.graders.presets import SHELF, exact_match, grader, numeric_match, rank_grader
from rftkit.task import load_task

pytestmark = pytest.mark.filterwarnings("ignore:grader .* outside 0 to 1")
ALL = {strategy.name for strategy in STRATEGIES}
TEMPLATE = '{"genes": ["{{item.gene}}"]}'
WORSE = ['{"genes": ["NONE", "NIL", "{{item.gene}}"]}', '{"genes": ["NONE"]}']
GENES = ["SCN1A", "SCN2A", "BRCA1", "TTN", "ACTA1", "KCNQ2", "CFTR", "CFTR"]
ROWS = [
    {"messages": [{"role": "user", "content": f"Case {i}: seizures."}], "gene": gene, "row_id": i}
    for i, gene in enumerate(GENES, 1)
]


def json_grader(kind, text, **more):
    texts = {"input": "{{sample." + text + "}}", "reference": "{{item.gene}}"}
    return Grader.load({"type": kind, "name": "hole", **texts, **more})


def red(made, template=TEMPLATE, worse=WORSE, rows=ROWS):
    return set(attack(made, rows, template, worse).red)


def test_the_gene_grader_pays_for_a_cheat():
    task = load_task("gene_ranking")
    report = attack(task.grader, task.rows("train")[:40], task.answer_template, task.worse_answers)
    assert report.red == []
    assert report.calibration.passed
    assert {result.name for result in report.results} == ALL
    assert all(result.mean is not None and result.lost == 0 for result in report.results)


def test_a_hole_is_not_seen():
    # The right gene anywhere in the text, whatever else is there.
    assert red(json_grader("string_check", "output_text", operation="like")) >= {
        "every answer", "torn JSON", "middle, filled up",
    }  # fmt: skip
    # How alike names look says nothing about how alike genes are.
    fuzzy = json_grader("text_similarity", "output_json.genes[0]", evaluation_metric="fuzzy_match")
    assert red(fuzzy) >= {"other case", "other spelling", "nearest name"}
    # Right or wrong, no middle: a lucky guess beats an honest answer that nearly had it.
    guesses = {"popular answer", "popular, many times", "every answer"}
    assert red(exact_match("genes[0]", "gene")) == guesses
    no_case = json_grader("string_check", "output_json.genes[0]", operation="ilike")
    assert red(no_case) == {*guesses, "other case"}

    @grader
    def adds_up(sample, item):
        worths = [1, 0.7, 0.5, 0.3, 0.1]
        genes = sample["output_json"]["genes"]
        return sum(w for w, gene in zip(worths, genes) if gene == item["gene"])

    assert red(adds_up) >= {"right, many times", "middle, filled up", "popular, many times"}

    @grader
    def thinks_aloud(sample, item):
        return float("seizures" in sample["output_text"] or len(sample["output_text"]) > 1000)

    assert red(thinks_aloud) >= {"echo", "echo in form", "longest answer", "padding"}

    @grader
    def sees_latin(sample, item):
        import unicodedata

        names = " ".join(unicodedata.name(c, "") for c in sample["output_json"]["genes"][0])
        return 1.0 if "CYRILLIC" in names or sample["output_json"]["genes"] == [item["gene"]] else 0

    assert "look-alikes" in red(sees_latin)

    @grader
    def kind_to_silence(sample, item):
        genes = (sample["output_json"] or {"genes": []})["genes"]
        return 0.9 if not genes else float(genes[0] == item["gene"])

    assert red(kind_to_silence) >= {"empty", "empty form", "torn JSON", "echo"}


def test_an_answer_in_the_reasoning_alone_is_paid_or_a_grader_that_pays_for_it_passes():
    seen = json_grader("string_check", "reasoning", operation="like")
    report = attack(seen, ROWS, TEMPLATE, WORSE)
    assert report.red == ["in the reasoning only"] and report.honest["best"] == 0.0
    assert "in the reasoning only" not in red(rank_grader(reference="gene"))


def test_a_table_says_other_numbers_than_the_grader():
    made = rank_grader(reference="gene")
    report = attack(made, ROWS, TEMPLATE, WORSE)
    assert report.honest == {"best": 1.0, "middle": 0.5, "worst": 0.0}
    by_name = {result.name: result for result in report.results}
    popular = by_name["popular answer"]
    assert popular.example == '{"genes": ["CFTR"]}'
    assert (popular.mean, popular.share) == (0.25, 0.25) and not popular.red
    everything = json.loads(by_name["every answer"].example)["genes"]
    assert sorted(everything) == sorted(set(GENES))
    assert by_name["every answer"].mean == pytest.approx(
        sum(made.grade(row, by_name["every answer"].example)[0] for row in ROWS) / len(ROWS)
    )
    means = [result.mean for result in report.results]
    assert means == sorted(means, reverse=True)


def test_a_few_rows_answers_are_all_that_can_be_guessed():
    made = rank_grader(reference="gene")
    assert red(made, rows=ROWS[:3]) == {"every answer"}  # three genes, listed: one of them is right
    pool = [*(f"GENE{i}" for i in range(100)), *GENES]
    few, many = (attack(made, ROWS[:3], TEMPLATE, WORSE, pool=p) for p in (None, pool))
    by_name = {result.name: json.loads(result.example)["genes"] for result in many.results
               if result.name in ("every answer", "popular answer")}  # fmt: skip
    assert many.red == [] and few.red
    assert sorted(by_name["every answer"]) == sorted(set(pool))
    assert by_name["popular answer"][0] in GENES[:3]


def test_a_blind_strategy_is_told_the_answer():
    """What blind strategies say must not change with the row's own answer."""
    blind = {"popular answer", "popular, many times", "every answer", "echo", "echo in form",
             "empty", "empty form", "longest answer", "injection"}  # fmt: skip
    assert blind <= ALL
    made = rank_grader(reference="gene")
    # CFTR stays the commonest and the set stays: only which row has which answer changes.
    other = [dict(ROWS[0], gene="SCN2A"), dict(ROWS[1], gene="SCN1A"), *ROWS[2:]]
    first, second = (
        {r.name: r.example for r in attack(made, rows, TEMPLATE, WORSE).results}
        for rows in (ROWS, other)
    )
    assert {name for name in ALL if first[name] == second[name]} >= blind
    assert first["look-alikes"] != second["look-alikes"]


@pytest.mark.parametrize(
    ("template", "place"),
    [
        ('{"n": {{item.answer}}}', (["n"], "answer")),
        ('{"n": "{{item.answer}}", "why": "sums"}', (["n"], "answer")),
        ('[{{item.answer}}, "b"]', ([0], "answer")),
        ("The answer is {{item.answer}}.", ([], "answer")),
        ('{"unit": 1, "n": {{item.answer}}}', (["n"], "answer")),
        ('{"text": "It is {{item.answer}}"}', None),
        ("no field", None),
    ],
)
def test_a_task_of_another_shape_is_not_attacked(template, place):
    assert answer_place(template) == place
    rows = [{"messages": [], "answer": 3 * i} for i in range(4)]
    report = attack(numeric_match(), rows, template)
    assert "no worse_answers" in report.note
    assert report.calibration.status == "not checked"
    by_name = {result.name: result for result in report.results}
    for name in ("other case", "other spelling", "look-alikes", "middle, filled up"):
        assert by_name[name].mean is None and not by_name[name].red  # a number has no other case
    if place and not isinstance(place[0][-1:], int):
        assert "9" in by_name["every answer"].example


def test_calibration_passes_answers_out_of_order():
    level = exact_match("genes[0]", "gene")
    found = calibrate(level, ROWS, TEMPLATE, WORSE)
    assert found.status == "failed" and len(found.failures) == len(ROWS)
    assert found.failures[0] == {"row_id": "1", "rewards": [1.0, 0.0, 0.0]}
    assert "row 1: 1.00, 0.00, 0.00" in str(found)
    right = calibrate(rank_grader(reference="gene"), ROWS, TEMPLATE, WORSE)
    assert right.passed and right.levels == {"best": 1.0, "worse 1": 0.5, "worse 2": 0.0}
    turned = calibrate(rank_grader(reference="gene"), ROWS, TEMPLATE, WORSE[::-1])
    assert turned.status == "failed"
    assert calibrate(level, ROWS, TEMPLATE, []).status == "not checked"
    assert calibrate(level, ROWS, None, WORSE).status == "not checked"


def test_an_attack_without_what_it_needs_is_a_traceback():
    with pytest.raises(UserError, match="attack: no answer_template"):
        attack(exact_match(), ROWS, None)
    with pytest.raises(UserError, match="attack: no rows"):
        attack(exact_match(), [], TEMPLATE)
    with pytest.raises(UserError, match="item.gene"):
        attack(exact_match(), [{"answer": "A"}], TEMPLATE)
    with pytest.raises(UserError, match="no grade for honest answers"):
        attack(exact_match(reference="nowhere"), ROWS, TEMPLATE)


def test_a_judge_that_is_down_is_a_grade_of_zero(monkeypatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    judge = SHELF["judge"].make().to_json()
    settings = JudgeSettings("http://127.0.0.1:9/v1", retries=0, timeout=1, cache=None)
    rows = [{**row, "answer": row["gene"]} for row in ROWS[:2]]
    with pytest.raises(UserError, match="no grade for honest answers"):
        attack(Grader.load(judge, GraderSettings(judge=settings)), rows, TEMPLATE)


def test_a_report_cannot_be_shown():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = attack(rank_grader(reference="gene"), ROWS, TEMPLATE, WORSE)
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["honest"]["middle"] == 0.5
    assert str(report).count("honest") == 3 and "RED" not in str(report)
    shown = attack(json_grader("string_check", "output_text", operation="like"), ROWS, TEMPLATE)
    assert "RED every answer" in str(shown)
    text = shown._repr_html_()
    assert text.count("background:#f6c9c4") == len(shown.red) > 0
    parser = html.parser.HTMLParser()
    parser.feed(text)
    assert "<script" not in attack(
        exact_match("genes[0]", "gene"),
        [{**row, "gene": "<script>x"} for row in ROWS], TEMPLATE, WORSE,
    )._repr_html_()  # fmt: skip
