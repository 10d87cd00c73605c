"""Intervals and metrics: they count what they say, and cluster what belongs together."""

import numpy as np
import pytest

from rftkit.evaluation import (
    bootstrap,
    clusters_of,
    majority_values,
    measure,
    paired_difference,
    pass_values,
    row_values,
)
from rftkit.files import UserError
from rftkit.records import Sample
from rftkit.task import load_task, task_from_json

GRADER = {
    "type": "string_check",
    "name": "first",
    "input": "{{sample.output_json.genes[0]}}",
    "reference": "{{item.gene}}",
    "operation": "eq",
}
RECORD = {
    "name": "t",
    "question": "?",
    "grader": GRADER,
    "answer_template": '{"genes": ["{{item.gene}}"]}',
    "metrics": ["top1", "top5", "mrr"],
    "patterns": {"a": "^A"},
    "group_by": "gene",
}
ROWS = [{"messages": [], "gene": "X"}, {"messages": [], "gene": "Y"}]


def says(*genes, think=""):
    inside = ", ".join(f'"{g}"' for g in genes)
    return Sample.from_text(f'<think>{think}</think>{{"genes": [{inside}]}}')


@pytest.fixture
def task():
    return task_from_json(RECORD)


def test_place_and_metrics_by_hand(task):
    samples = [[says("X", "Y"), says("Z", "X", think="A")], [says("Q"), says("Y")]]
    assert row_values("top1", task, ROWS, samples).tolist() == [0.5, 0.5]
    assert row_values("top5", task, ROWS, samples).tolist() == [1.0, 0.5]
    assert row_values("mrr", task, ROWS, samples).tolist() == [0.75, 0.5]
    result = measure("s", task, ROWS, samples)
    assert result.patterns == {"a": 0.25}
    assert result.places == {"1": 0.5, "2": 0.25, "not listed": 0.25}
    assert result.values["grade"].tolist() == [0.5, 0.5]
    assert {s.model for g in samples for s in g} == {"s"}


def test_unreadable_answers_score_zero_and_do_not_vote(task):
    broken = Sample.from_text("no json")
    samples = [[broken, says("X"), broken], [broken, broken, broken]]
    assert row_values("top1", task, ROWS, samples).tolist() == [pytest.approx(1 / 3), 0.0]
    assert majority_values(task, ROWS, samples).tolist() == [1.0, 0.0]
    assert pass_values(task, ROWS, samples).tolist() == [1.0, 0.0]


def test_majority_ties_count_by_their_share(task):
    samples = [[says("X"), says("Z")], [says("Z"), says("Z")]]
    assert majority_values(task, ROWS, samples).tolist() == [0.5, 0.0]


def test_bootstrap_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(1_000):
        groups = np.repeat(np.arange(40), 5)
        effect = rng.normal(0, 1, 40)[groups]
        found = bootstrap(0.3 + effect + rng.normal(0, 1, 200), groups, seed=trial)
        hits += found.low <= 0.3 <= found.high
    assert 920 <= hits <= 960  # 94.0 % in 2,000 trials with 40 clusters


def test_clustering_widens_the_interval():
    groups = np.repeat(np.arange(20), 10)
    values = np.random.default_rng(1).normal(0, 1, 20)[groups]
    together = bootstrap(values, groups)
    alone = bootstrap(values, np.arange(200))
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_paired_difference_is_tighter_than_two_intervals():
    rng = np.random.default_rng(2)
    easy = rng.random(300)
    a, b = easy + 0.05, easy
    found = paired_difference(a, b, np.arange(300))
    assert found.mean == pytest.approx(0.05) and found.low > 0.04
    assert bootstrap(a, np.arange(300)).low < bootstrap(b, np.arange(300)).high


def test_bootstrap_refuses_mismatched_input():
    with pytest.raises(ValueError, match="expected one each"):
        bootstrap([1.0], ["a", "b"])


def test_seed_repeats_an_interval():
    values, groups = np.random.default_rng(3).random(50), np.arange(50)
    assert bootstrap(values, groups, 1).to_json() == bootstrap(values, groups, 1).to_json()


def test_extra_samples_do_not_enter_the_headline(task):
    samples = [[says("Z"), says("X"), says("X")], [says("Y"), says("Z"), says("Z")]]
    result = measure("s", task, ROWS, samples, samples=1)
    assert result.values["top1"].tolist() == [0.0, 1.0]
    assert result.values["maj@3"].tolist() == [1.0, 0.0]
    assert result.values["pass@3"].tolist() == [1.0, 1.0]


def test_clusters_follow_the_tasks_group(task):
    assert clusters_of([{"gene": "A"}, {"gene": "A"}, {"gene": "B"}], task)[0] == '"A"'
    task.group_by = None
    assert clusters_of([{}, {}], task) == ["0", "1"]


def test_answer_path_is_read_off_the_template():
    task = load_task("gene_ranking")
    assert task.answer_path == (["genes", 0], "reference_gene")
    flat = task_from_json(RECORD | {"answer_template": "{{item.gene}}"})
    assert flat.answers(Sample.from_text("<think>x</think> X ")) == ["X"]
    assert flat.place(ROWS[0], Sample.from_text("X")) == 1
    key = task_from_json(RECORD | {"answer_template": '{"label": "{{item.gene}}"}'})
    assert key.place(ROWS[0], Sample.from_text('{"label": "X"}')) == 1
    assert key.place(ROWS[0], Sample.from_text('{"label": "Q"}')) is None
    with pytest.raises(UserError, match="names no"):
        task_from_json(RECORD | {"answer_template": '{"genes": []}'}).answer_path  # noqa: B018


def test_task_faults_are_named():
    with pytest.raises(UserError, match="without question"):
        task_from_json({"name": "x", "grader": GRADER})
    with pytest.raises(UserError, match="unknown hedline"):
        task_from_json(RECORD | {"hedline": "top1"})
    with pytest.raises(UserError, match="no dataset"):
        load_task("nothing_here")
    with pytest.raises(UserError, match="split"):
        load_task("gene_ranking").rows("dev")
