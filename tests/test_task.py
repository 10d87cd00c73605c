"""A task folder: what task.json may say, and how a model's answer is found and graded."""

import json

import pytest

from rftkit import Sample, Task, UserError, load_task
from rftkit.task import task_from_json

GRADER = {
    "type": "string_check", "name": "first", "operation": "eq",
    "input": "{{sample.output_json.genes[0]}}", "reference": "{{item.gene}}",
}  # fmt: skip
RECORD = {"name": "genes", "question": "Which?", "grader": GRADER}
RANKED = '{"genes": ["{{item.gene}}"]}'


def test_a_task_comes_back_from_its_own_json():
    task = load_task("gene_ranking")
    assert task_from_json(json.loads(json.dumps(task.to_json())), task.folder) == task
    assert task.to_json() == json.loads((task.folder / "task.json").read_text())


def test_a_grader_may_be_a_file_beside_task_json_and_templates_may_be_json(tmp_path):
    (tmp_path / "grader.json").write_text(json.dumps(GRADER))
    own = {"grader": "grader.json", "answer_template": json.loads(RANKED)}
    (tmp_path / "task.json").write_text(
        json.dumps(RECORD | own | {"worse_answers": [{"genes": []}]})
    )
    task = load_task(tmp_path)
    assert task.grader_spec == GRADER and task.answer_path == (["genes", 0], "gene")
    assert task.worse_answers == ['{"genes": []}']


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"name": "n"}, "no question, grader"),
        (RECORD | {"settings": {}}, "unknown settings"),
        (RECORD | {"grader": "nowhere.json"}, "nowhere.json: cannot be read"),
    ],
)
def test_a_faulty_task_is_refused(record, expected, tmp_path):
    (tmp_path / "task.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=expected):
        load_task(tmp_path)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: load_task("gene_ranking").rows("tests"), "expected train"),
        (lambda: task_from_json(RECORD).rows("train"), "pass the rows"),
        (lambda: task_from_json(RECORD).answer_path, "answer_template None"),
        (lambda: Task("n", "", GRADER, RANKED).reference({"row_id": "r7"}), 'row r7.*"gene"'),
    ],
)
def test_rows_and_answers_that_are_not_there_are_refused(call, expected):
    with pytest.raises(UserError, match=expected):
        call()


@pytest.mark.parametrize(
    ("template", "output", "answers", "place"),
    [
        (RANKED, '{"genes": ["B", "A"]}', ["B", "A"], 2),
        (RANKED, '{"genes": "A"}', [], None),
        (RANKED, "A", [], None),
        ('{"gene": "{{item.gene}}"}', '{"gene": "A"}', ["A"], 1),
        ('{"gene": "{{item.gene}}"}', '{"gene": null}', [], None),
        ("{{item.gene}}", " A \n", ["A"], 1),
        ("{{item.gene}}", " ", [], None),
    ],
)
def test_the_right_answer_is_found_where_the_template_has_it(template, output, answers, place):
    task, sample = Task("n", "", GRADER, template), Sample(output_text=output)
    assert task.answers(sample) == answers
    assert task.place({"gene": "A"}, sample) == place


def test_grading_fills_each_sample_but_not_those_that_never_came():
    rows = [{"gene": "A", "row_id": "a"}, {"gene": "B"}]
    answer = '{"genes": ["A"]}'
    lost = Sample(finish_reason="error", errors=["refused"])
    samples = [[Sample(output_text=answer), lost], [Sample(output_text=answer), Sample()]]
    Task("n", "", GRADER).grade(rows, samples)
    assert [[s.grade for s in group] for group in samples] == [[1.0, None], [0.0, 0.0]]
    assert [group[0].row_id for group in samples] == ["a", "2"]
    assert lost.errors == ["refused"] and samples[1][1].errors == ["sample_parse_error"]
