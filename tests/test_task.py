"""A task folder: what task.json may say, and how a model's answer is found and graded."""

import json
import threading

import pytest

from rftkit import Sample, Task, UserError, load_task
from rftkit.graders.grader import GraderSettings
from rftkit.sandbox.runner import Outcome
from rftkit.task import task_from_json

GRADER = {
    "type": "string_check", "name": "first", "operation": "eq",
    "input": "{{sample.output_json.genes[0]}}", "reference": "{{item.gene}}",
}  # fmt: skip
RECORD = {"name": "genes", "question": "Which?", "grader": GRADER}
RANKED, ONE, TEXT = '{"genes": ["{{item.gene}}"]}', '{"gene": "{{item.gene}}"}', "{{item.gene}}"


def test_a_task_is_its_task_json():
    task = load_task("gene_ranking")
    assert task.to_json() == json.loads((task.folder / "task.json").read_text())


def test_a_grader_may_be_a_file_beside_task_json_and_templates_may_be_json(tmp_path):
    (tmp_path / "grader.json").write_text(json.dumps(GRADER))
    own = {"grader": "grader.json", "answer_template": json.loads(RANKED)}
    own["worse_answers"] = [{"genes": []}]
    (tmp_path / "task.json").write_text(json.dumps(RECORD | own))
    task = load_task(tmp_path)
    assert task.grader_spec == GRADER and task.answer_path == (["genes", 0], "gene")
    assert task.worse_answers == ['{"genes": []}']


@pytest.mark.parametrize(
    "use",
    [
        lambda: task_from_json({"grader": GRADER}),
        lambda: task_from_json(RECORD | {"settings": {}}),
        lambda: task_from_json(RECORD | {"grader": "nowhere.json"}),
        lambda: task_from_json(RECORD).rows("train"),
        lambda: load_task("gene_ranking").rows("tests"),
        lambda: task_from_json(RECORD).answer_path,
        lambda: Task("n", GRADER, answer_template=RANKED).reference({"row_id": "r7"}),
    ],
)
def test_what_a_task_lacks_or_does_not_know_is_refused(use):
    with pytest.raises(UserError):
        use()


@pytest.mark.parametrize(
    ("template", "output", "answers", "place"),
    [
        (RANKED, '{"genes": ["B", "A"]}', ["B", "A"], 2),
        (RANKED, '{"genes": "A"}', [], None),
        (ONE, '{"gene": "A"}', ["A"], 1),
        (ONE, '{"gene": null}', [], None),
        (TEXT, " A \n", ["A"], 1),
        (TEXT, " ", [], None),
    ],
)
def test_the_right_answer_is_found_where_the_template_has_it(template, output, answers, place):
    task, sample = Task("n", GRADER, answer_template=template), Sample(output_text=output)
    assert task.answers(sample) == answers and task.place({"gene": "A"}, sample) == place


def test_grading_fills_each_sample_but_not_those_that_never_came():
    rows, answer = [{"gene": "A", "row_id": "a"}, {"gene": "B"}], '{"genes": ["A"]}'
    lost = Sample(finish_reason="error", errors=["refused"])
    samples = [[Sample(output_text=answer), lost], [Sample(output_text=answer), Sample()]]
    Task("n", GRADER).grade(rows, samples)
    assert [[s.grade for s in group] for group in samples] == [[1.0, None], [0.0, 0.0]]
    assert [group[0].row_id for group in samples] == ["a", "2"]
    assert lost.errors == ["refused"] and samples[1][1].errors == ["sample_parse_error"]


def test_sandboxed_answers_are_graded_side_by_side():
    both = threading.Barrier(2, timeout=10)

    def runner(*call):
        both.wait()
        return Outcome(1.0)

    runner.workers = 2
    source = {"type": "python", "source": "def grade(sample, item): return 1"}
    samples = [[Sample()], [Sample()]]
    Task("n", source, settings=GraderSettings(python_runner=runner)).grade([{}, {}], samples)
    assert [group[0].grade for group in samples] == [1.0, 1.0]
