"""Intervals and metrics: they count what they say, and cluster what belongs together."""

import numpy as np
import pandas
import pytest
from scipy import stats

from rftkit import evaluate, measure_signal
from rftkit.evaluation import (
    bootstrap,
    by_length,
    gain_parts,
    measure,
    paired_difference,
    permutation_p,
    row_values,
)
from rftkit.records import Sample
from rftkit.task import task_from_json

GRADER = {"type": "string_check", "name": "first", "input": "{{sample.output_json.genes[0]}}"}
GRADER |= {"reference": "{{item.gene}}", "operation": "eq"}
RECORD = {"name": "t", "question": "?", "grader": GRADER, "metrics": ["top1", "top5", "mrr"]}
RECORD |= {"answer_template": '{"genes": ["{{item.gene}}"]}', "patterns": {"a": "^A"}}
TASK = task_from_json(RECORD | {"group_by": "gene"})
ROWS = [{"messages": [], "gene": "X"}, {"messages": [], "gene": "Y"}]


def answer(*genes, think=""):
    names = ", ".join(f'"{gene}"' for gene in genes)
    return Sample.from_text(f'<think>{think}</think>{{"genes": [{names}]}}')


def test_metrics_are_those_counted_by_hand():
    samples = [[answer("X", "Y"), answer("Z", "X", think="A")], [answer("Q"), answer("Y")]]
    assert row_values("top1", TASK, ROWS, samples).tolist() == [0.5, 0.5]
    assert row_values("top5", TASK, ROWS, samples).tolist() == [1.0, 0.5]
    assert row_values("mrr", TASK, ROWS, samples).tolist() == [0.75, 0.5]
    result = measure("s", TASK, ROWS, samples)
    assert result.patterns == {"a": 0.25}
    assert result.values["grade"].tolist() == [0.5, 0.5]
    assert {sample.model for group in samples for sample in group} == {"s"}


def test_scikit_learn_counts_the_same_ranks_alike():
    from sklearn.metrics import label_ranking_average_precision_score, top_k_accuracy_score

    rng, genes = np.random.default_rng(0), np.array([*"ABCDEFGH"])
    truth, lists = rng.integers(8, size=40), rng.permuted(np.tile(range(8), (40, 1)), axis=1)
    rows = [{"messages": [], "gene": genes[t]} for t in truth]
    samples = [[answer(*genes[order])] for order in lists]
    scores = np.empty((40, 8))
    np.put_along_axis(scores, lists, -np.arange(8.0)[None], axis=1)  # the first one scores most
    for metric, k in (("top1", 1), ("top5", 5)):
        theirs = top_k_accuracy_score(truth, scores, k=k, labels=range(8))
        assert row_values(metric, TASK, rows, samples).mean() == theirs
    each = zip(np.eye(8)[truth], scores)
    theirs = [label_ranking_average_precision_score([own], [score]) for own, score in each]
    assert row_values("mrr", TASK, rows, samples).tolist() == theirs


def test_unreadable_answers_score_zero():
    broken = Sample.from_text("no json")
    samples = [[broken, answer("X"), broken], [answer("X"), answer("Y"), broken]]
    assert row_values("top1", TASK, ROWS, samples).tolist() == [pytest.approx(1 / 3)] * 2


def test_extra_samples_do_not_enter_the_headline():
    samples = [[answer("Z"), answer("X"), answer("X")], [answer("Y"), answer("Z"), answer("Z")]]
    result = measure("s", TASK, ROWS, samples, samples=1)
    assert f"{bootstrap(result.values['top1'], [0, 1]):+}" == "+0.500 [+0.000, +1.000]"
    assert result.values["top1"].tolist() == [0.0, 1.0]
    assert result.values["pass@3"].tolist() == [1.0, 1.0]


def test_bootstrap_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(1_000):
        groups = np.repeat(np.arange(40), 5)
        effect = rng.normal(0, 1, 40)[groups]
        interval = bootstrap(0.3 + effect + rng.normal(0, 1, 200), groups, seed=trial)
        hits += interval.low <= 0.3 <= interval.high
    assert 920 <= hits <= 960  # 94.0 % in 2,000 trials with 40 clusters


def test_clustering_widens_the_interval_and_pairing_narrows_it():
    groups = np.repeat(np.arange(20), 10)
    values = np.random.default_rng(1).normal(0, 1, 20)[groups]
    together, alone = bootstrap(values, groups), bootstrap(values, np.arange(200))
    assert together.high - together.low > 2 * (alone.high - alone.low)
    difference = paired_difference(values + 0.05, values, groups)
    assert difference.mean == pytest.approx(0.05) and difference.low > 0.04
    assert bootstrap(values + 0.05, groups).low < together.high


class Says:
    """A policy that answers with the prompt's own text."""

    name = "says"

    def sample(self, prompts, n, config, progress=None):
        return [[answer(prompt[0]["content"]) for _ in range(n)] for prompt in prompts]


def test_rows_in_a_frame_are_evaluated_and_measured():
    frame = pandas.DataFrame({"prompt": ["X", "Z"], "gene": ["X", "Y"]})
    result = evaluate(Says(), TASK, frame, samples=1)
    assert result.values["top1"].tolist() == result.greedy["top1"].tolist() == [1.0, 0.0]
    assert repr(result).startswith("says on 2 rows: top1 0.500, top5 0.500,")
    signal = measure_signal(Says(), TASK, frame, max_completion_tokens=8)
    assert signal.rows == 2 and repr(signal) == signal.text()


def test_permutation_p_is_the_share_of_sign_changes_as_far_from_zero():
    # Of the 16 signs of four clusters only ++++ and ---- reach the sum of 4.
    assert permutation_p([1, 1, 1, 1], [0, 0, 0, 0], [*"abcd"]) == pytest.approx(2 / 16)
    # In two clusters the rows keep one sign together: half of the 4 draws are as far.
    assert permutation_p([1, 1, 1, 1], [0, 0, 0, 0], [*"aabb"]) == pytest.approx(2 / 4)
    assert permutation_p([0.2, 0.4], [0.2, 0.4], [*"ab"]) == 1.0
    assert permutation_p([1, 1], [0, 0], [*"aa"]) == 1.0  # one cluster says nothing
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (2, 200))
    clusters = np.repeat(np.arange(100), 2)
    assert 0.05 < permutation_p(a, b, clusters) < 1
    assert permutation_p(a + 0.5, b, clusters) < 0.01


def test_values_are_parted_by_the_length_of_each_list_in_all_rows():
    rows = [{"messages": [1] * i, "signs": [0] * i, "two": [1, 2], "x": i} for i in (1, 2, 2)]
    parts = by_length(rows, np.array([0.0, 1.0, 0.5]))
    assert parts == {"signs": {"1": {"n": 1, "mean": 0.0}, "2": {"n": 2, "mean": 0.75}}}
    assert by_length([*rows, {}], np.ones(4)) == {}


def test_scipy_gives_the_same_interval_and_p_to_the_last_digits():
    rng = np.random.default_rng(3)
    values, clusters = rng.normal(size=60), np.sort(rng.integers(0, 12, 60))
    total, size = np.bincount(clusters, values), np.bincount(clusters)
    ours, options = bootstrap(values, clusters), {"method": "percentile", "paired": True}
    mean = lambda total, size, axis: total.sum(axis) / size.sum(axis)  # noqa: E731
    theirs = stats.bootstrap(
        (total, size), mean, n_resamples=2_000, rng=np.random.default_rng(0), **options
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    for wins in range(13):  # each cluster's sum is 1 or -1: the sign test
        a = np.where(np.arange(12) < wins, 1, 0)
        expected = stats.binomtest(wins, 12).pvalue
        assert permutation_p(a, 1 - a, np.arange(12)) == pytest.approx(expected, abs=1e-12)


def test_the_parts_of_a_gain_are_those_counted_by_hand_and_add_up():
    broken, cut = Sample.from_text("no json"), Sample.from_text("<think>A", finish_reason="length")
    before = [[answer("X"), answer("Z"), cut, broken], [answer("Z"), answer("Z"), cut, broken]]
    after = [[answer("X"), answer("X"), answer("Z"), cut], [answer("Y"), *[answer("Z")] * 3]]
    systems = [
        measure(name, TASK, ROWS, samples) for name, samples in (("b", before), ("a", after))
    ]
    parts = gain_parts(TASK, ROWS, *systems)
    # Not cut 6/8 and 7/8; of these readable 4/6 and 7/7; of these right 1/4 and 3/7.
    assert parts["gain"] == pytest.approx(3 / 8 - 1 / 8)
    assert parts["truncation"] == pytest.approx(1 / 8 * 4 / 6 * 1 / 4, abs=1e-4)
    assert parts["form"] == pytest.approx(7 / 8 * 2 / 6 * 1 / 4, abs=1e-4)
    assert parts["beyond"] == pytest.approx(1 / 8)  # the second row, which `before` never solved
    assert sum(parts.values()) == pytest.approx(2 * parts["gain"], abs=1e-3)
