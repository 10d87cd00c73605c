"""Whose fault a lost grade is: the sample's costs the grade (0), the grader's own gives none."""

import json

import pytest

from rftkit.files import UserError
from rftkit.graders.answer import ERROR_FIELDS
from rftkit.graders.grader import Grader, GraderSettings
from rftkit.graders.presets import gene_rank
from rftkit.graders.python import PythonResult
from rftkit.graders.rewards import reward_function
from rftkit.records import Sample

ITEM = {"reference_gene": "BRCA1"}


def check(input, reference="x", operation="eq"):
    return {
        "type": "string_check",
        "name": "check",
        "input": input,
        "reference": reference,
        "operation": operation,
    }


def raised(report):
    return [name for name in ERROR_FIELDS if report["metadata"]["errors"][name]]


@pytest.mark.parametrize(
    ("genes", "reward"),
    [
        (["BRCA1", "B", "C", "D", "E"], 1.0),
        (["A", "BRCA1", "C", "D", "E"], 0.73),
        (["A", "B", "BRCA1", "D", "E"], 0.55),
        (["A", "B", "C", "BRCA1", "E"], 0.37),
        (["A", "B", "C", "D", "BRCA1"], 0.19),
        (["A", "B", "C", "D", "E"], 0.1),
        (["A", "B", "C", "D", "E", "BRCA1"], 0.1),
        (["BRCA1"], 1.0),
        (["A", "BRCA1"], 0.73),
        ([], 0.0),
        ([""], 0.0),
        (["brca1"], 0.1),
        ("BRCA1", 0.0),  # a text is not a list: its letters are no genes
        ({"0": "BRCA1"}, 0.0),
        # Each repeat costs a quarter of the tenth, wherever it stands.
        (["BRCA1", "A", "A", "B", "C"], 0.975),
        (["A", "BRCA1", "BRCA1"], 0.705),
        (["A", "B", "C", "B", "A"], 0.05),
        (["BRCA1"] * 5, 0.9),
        (["A"] * 5, 0.0),
        (["A", "B", "C", "D", "E", "A"], 0.1),  # a sixth place is worth nothing, and costs none
        (["AB", "A", "B", "BA"], 0.1),  # a name within another is not a repeat
        ([1, "1", 1.0], 0.075),  # as texts: "1", "1", "1.0"
    ],
)
def test_gene_grader_scores_a_list_by_what_is_there(genes, reward):
    got, parts = gene_rank().grade(ITEM, json.dumps({"genes": genes}))
    assert got == pytest.approx(reward, abs=1e-12)
    places = {"first", "second", "third", "fourth", "fifth"}
    assert set(parts) == places | {"format"} | {f"{place}_again" for place in places - {"first"}}


def test_short_list_is_a_fault_of_the_missing_places_only():
    report = gene_rank().report(ITEM, '{"genes": ["A", "BRCA1"]}')
    assert raised(report.to_json()) == ["sample_parse_error"]
    missing = ["third", "fourth", "fifth"]
    missing += [f"{place}_again" for place in missing]
    assert [line.split(":")[0] for line in report.explanations] == missing


@pytest.mark.parametrize("text", ["", "no JSON", '{"genes": ["BRCA1"]', "NaN", "[" * 100_000])
def test_unparsable_answer_scores_zero_and_says_so(text):
    report = gene_rank().run(ITEM, text)
    assert report["reward"] == 0.0 and raised(report) == ["sample_parse_error"]


def test_missing_field_fails_ne_as_well():
    spec = check("{{sample.output_json.a}}", "", "ne")
    assert Grader.load(spec).grade({}, "{}")[0] == 0.0
    assert Grader.load(spec).grade({}, '{"a": "x"}')[0] == 1.0


def test_missing_row_field_is_no_grade_and_not_the_answers_fault():
    report = gene_rank().run({"gene": "BRCA1"}, '{"genes": ["BRCA1"]}')
    assert report["reward"] is None
    assert "invalid_variable_error" in raised(report)


def test_missing_row_fields_are_named_before_training():
    rows = [ITEM, {"case_id": "case-7"}, {}]
    with pytest.raises(UserError, match=r"row case-7: \{\{item.reference_gene\}\}") as error:
        gene_rank().check_rows(rows)
    assert "row 3" in str(error.value) and "row 1" not in str(error.value)
    gene_rank().check_rows([ITEM])


def test_truncated_answer_scores_zero_even_if_it_parses():
    sample = Sample(output_text='{"genes": ["BRCA1"]}', finish_reason="length")
    report = gene_rank().run(ITEM, sample)
    assert report["reward"] == 0.0 and raised(report) == ["truncated_observation_error"]
    assert set(report["sub_rewards"].values()) == {0.0}


def test_answer_that_never_came_is_not_graded():
    sample = Sample(output_text="", finish_reason="error")
    assert gene_rank().run(ITEM, sample)["reward"] is None


def test_reasoning_is_hidden_unless_asked_for():
    text = "<think>BRCA1</think>nothing"
    seen = Grader.load(check("{{sample.output_text}}", "BRCA1", "like"))
    asked = Grader.load(check("{{sample.reasoning}}", "BRCA1", "like"))
    assert seen.grade({}, text)[0] == 0.0 and asked.grade({}, text)[0] == 1.0


def test_model_cannot_smuggle_a_template_in():
    spec = check("{{sample.output_text}}", "{{item.secret}}")
    assert Grader.load(spec).grade({"secret": "s"}, "{{item.secret}}")[0] == 0.0


def multi(formula):
    graders = {"a": check("{{sample.output_text}}", "A"), "b": check("{{sample.output_text}}", "B")}
    return {"type": "multi", "name": "m", "graders": graders, "calculate_output": formula}


@pytest.mark.parametrize(
    "formula", ["1 / a", "log(a)", "sqrt(a - 1)", "exp(1000 * b)", "(a-1)^0.5"]
)
def test_formula_without_a_value_is_the_graders_fault(formula):
    report = Grader.load(multi(formula)).run({}, "B")
    assert report["reward"] is None and raised(report) == ["formula_parse_error"]
    assert report["sub_rewards"] == {"a": 0.0, "b": 1.0}


def test_lost_sub_grade_loses_the_whole_only_if_the_formula_uses_it():
    spec = multi("a")
    spec["graders"]["b"]["reference"] = "{{item.missing}}"
    assert Grader.load(spec).grade({}, "A") == (1.0, {"a": 1.0, "b": None})
    spec["calculate_output"] = "a + b"
    assert Grader.load(spec).grade({}, "A") == (None, {"a": 1.0, "b": None})


def test_reward_outside_the_unit_interval_is_kept_and_said_once():
    loaded = Grader.load(multi("3 * a - b"))
    with pytest.warns(UserWarning, match="outside 0 to 1") as warned:
        assert loaded.grade({}, "A")[0] == 3.0
        assert loaded.grade({}, "B")[0] == -1.0
    assert len(warned) == 1


PYTHON = {"type": "python", "source": "def grade(sample, item):\n    return 1.0"}


def test_python_grader_is_refused_without_isolation(monkeypatch):
    from rftkit.sandbox import runner

    weak = runner.Report({"files": [], "network": ["seccomp"]}, "a fork", "no Landlock")
    monkeypatch.setattr(runner, "report", lambda: weak)
    loaded = Grader.load(PYTHON)  # loading and checking works
    for use in (
        lambda: loaded.run({}, "x"),
        lambda: loaded.check_ready(),
        lambda: reward_function(loaded),
        lambda: loaded.evaluate_many([{}, {}], ["x", "y"]),
    ):
        with pytest.raises(UserError, match="refused here: .* a program from files .*no Landlock"):
            use()


def test_weak_isolation_is_taken_silently(monkeypatch, capsys):
    from rftkit.sandbox import runner

    weak = runner.Report({"files": [], "network": ["seccomp"]}, "a fork", "no Landlock")
    monkeypatch.setattr(runner, "report", lambda: weak)
    runner._say_weak.cache_clear()
    loaded = Grader.load(PYTHON, GraderSettings(allow_weak_isolation=True))
    assert [loaded.run({}, "x")["reward"] for _ in range(2)] == [1.0, 1.0]
    said = "sandbox: weak isolation, no protection of files\n"
    assert capsys.readouterr() == ("", said)  # once, and not where --json prints


def test_a_run_cannot_waive_isolation_or_a_task_waives_it_by_itself(monkeypatch, tmp_path):
    from rftkit.sandbox import runner
    from rftkit.task import load_task
    from rftkit.training.config import RunConfig, config_task

    weak = runner.Report({"files": [], "network": ["seccomp"]}, "a fork", "no Landlock")
    monkeypatch.setattr(runner, "report", lambda: weak)
    task = {"name": "t", "question": "", "grader": PYTHON}
    (tmp_path / "task.json").write_text(json.dumps(task))
    config = {"task": str(tmp_path)}
    with pytest.raises(UserError, match="refused here"):
        config_task(RunConfig(**config)).grader.check_ready()
    waived = RunConfig(**config, allow_weak_isolation=True)
    assert config_task(waived).grader.grade({}, "x")[0] == 1.0
    assert waived.differences(RunConfig(**config)) == [], "a run goes on with it or without"
    (tmp_path / "task.json").write_text(json.dumps(task | {"allow_weak_isolation": True}))
    with pytest.raises(UserError, match="unknown allow_weak_isolation"):
        load_task(tmp_path)


def test_python_grader_that_cannot_load_blames_the_samples():
    source = "import not_installed_here\ndef grade(sample, item):\n    return 1.0"
    loaded = Grader.load(
        {"type": "python", "source": source}, GraderSettings(allow_weak_isolation=True)
    )
    report = loaded.run({}, "x")
    assert report["reward"] is None and raised(report) == ["python_grader_runtime_error"]
    with pytest.raises(UserError, match="cannot be loaded.*\n(.*\n)*ModuleNotFoundError"):
        reward_function(loaded)


@pytest.mark.parametrize(
    ("result", "reward", "field", "detail"),
    [
        (PythonResult(value=0.25), 0.25, None, None),
        (PythonResult(value=10**400), 0.0, "python_grader_runtime_error", "expected a finite"),
        (PythonResult(value=float("inf")), 0.0, "python_grader_runtime_error", "expected a finite"),
        (PythonResult(runtime_error="KeyError: 'x'"), 0.0, "python_grader_runtime_error", "'x'"),
        (PythonResult(server_error="gone", server_error_type="lost"), None,
         "python_grader_server_error", "lost"),
    ],
)  # fmt: skip
def test_python_result_becomes_the_right_kind_of_fault(result, reward, field, detail):
    seen = []

    def runner(source, sample, item):
        seen.append((source, sample, item))
        return result

    report = Grader.load(PYTHON, GraderSettings(python_runner=runner)).run({"k": 1}, '{"a": 1}')
    assert report["reward"] == reward
    assert raised(report) == ([field] if field else [])
    if field:
        assert detail in report["metadata"]["errors"][ERROR_FIELDS[field]]
    source, sample, item = seen[0]
    assert source == PYTHON["source"] and item == {"k": 1}
    assert sample["output_text"] == '{"a": 1}' and sample["output_json"] == {"a": 1}
    assert set(sample) == {"output_text", "output_json", "output_tools", "choices"}


def test_library_that_breaks_on_a_text_costs_one_grade_not_the_run(monkeypatch):
    def broken(a, b):
        raise RuntimeError("cannot take this")

    monkeypatch.setattr("rftkit.graders.similarity.get_metric", lambda name: broken)
    spec = {
        "type": "text_similarity",
        "name": "t",
        "input": "{{sample.output_text}}",
        "reference": "x",
        "evaluation_metric": "bleu",
    }
    report = Grader.load(spec).run({}, "x")
    assert report["reward"] is None and raised(report) == ["other_error"]
