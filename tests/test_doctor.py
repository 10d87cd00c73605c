"""The run doctor: healthy logs stay without a finding, each planted fault gets its own.

Logs are made here, in both formats. The public runs at the end are rebuilt from the figures that
their authors published, not from their files.
"""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from rftkit import doctor as rules
from rftkit.cli import app, as_text, step_ranges
from rftkit.doctor import KNOBS, NAMES, RULES, Log, examine, examine_log, held, in_a_row, read_log
from rftkit.files import UserError, dataset

STEPS = 60


def healthy(seed=0, steps=STEPS, looks=True):
    """A run that learns: reward .2 -> .6 with the noise of 64 answers, a held-out look each 10."""
    luck, records = random.Random(seed), []
    for step in range(1, steps + 1):
        done = step / steps
        record = {
            "step": step,
            "seconds": 1.5 * step,
            "reward_mean": 0.2 + 0.4 * done + luck.gauss(0, 0.06),
            "reward_std": 0.3 + luck.gauss(0, 0.04),
            "sub_rewards": {"first": 0.05 + 0.4 * done + luck.gauss(0, 0.05), "format": 0.99},
            "dead_groups": luck.choice([0.5, 0.375, 0.25, 0.125, 0.0]) * (1 - 0.7 * done),
            "completion_tokens": 21 + 8 * done + luck.gauss(0, 1),
            "truncated": luck.choice([0, 0, 0, 1 / 64]),
            "entropy": 1.3 - 0.8 * done + luck.gauss(0, 0.05),
            "kl": 0.08 * done * abs(luck.gauss(1, 0.3)),
            "grad_norm": 0.03 * math.exp(luck.gauss(0, 0.5)),
            "loss": luck.gauss(-0.02, 0.03),
            "patterns": {"diagnose first": done},
        }
        if looks and step % 10 == 0:
            value = 0.1 + 0.4 * done + luck.gauss(0, 0.01)
            record["validation"] = look(value, 0.06)
        records.append(record)
    return records


def look(mean, half):
    return {"metric": "top1", "mean": mean, "low": mean - half, "high": mean + half, "n": 240}


def change_all(**values):
    """A fault as a change of every record; a callable gets (record, share of the run done)."""

    def plant(records):
        for record in records:
            done = record["step"] / records[-1]["step"]
            for name, value in values.items():
                record[name] = value(record, done) if callable(value) else value

    return plant


def change_at(step, **values):
    def plant(records):
        next(r for r in records if r["step"] == step).update(values)

    return plant


def hack(records):
    """The reward goes on rising; held out, the peak was at step 20."""
    for record in records:
        if record["step"] % 10 == 0:
            record["validation"] = look(0.35 - 0.005 * abs(record["step"] - 20), 0.04)


def later(value, start=0.5):
    """The healthy value first, the planted one after `start` of the run."""
    return lambda name: {name: lambda record, done: value if done > start else record[name]}


# what is planted -> (the plant, the finding that it must get)
FAULTS = {
    "a NaN gradient": (change_at(31, grad_norm=math.nan, loss=math.nan), "not_finite"),
    "a NaN as our log writes it": (change_at(31, grad_norm=None, loss=None), "not_finite"),
    "an infinite KL": (change_at(31, kl=math.inf), "not_finite"),
    "a NaN KL written as text": (change_at(31, kl="NaN"), "not_finite"),
    "a NaN reward": (change_at(31, reward_mean=math.nan), "reward_not_a_number"),
    "a NaN reward written as text": (
        change_at(31, reward_mean="-Infinity"),
        "reward_not_a_number",
    ),
    "no grade in one step": (change_at(31, reward_mean=None), "grader_failures"),
    "a sub-grader that is down": (
        change_all(sub_rewards={"judge": None, "format": 0.9}),
        "grader_failures",
    ),
    "a grader whose program fails": (
        change_all(errors={"python_grader_runtime_error": 0.9}),
        "grader_errors",
    ),
    "a constant reward": (
        change_all(reward_mean=0.1, reward_std=0.0, dead_groups=1.0),
        "no_reward_spread",
    ),
    "no spread in the second half": (
        change_all(**later(0.0)("reward_std")),
        "no_reward_spread",
    ),
    "nine groups in ten dead": (change_all(dead_groups=0.9), "dead_groups"),
    "dead from the middle on": (change_all(**later(0.875)("dead_groups")), "dead_groups"),
    "every second step wholly dead": (
        change_all(dead_groups=lambda record, done: float(record["step"] % 2)),
        "dead_groups",
    ),
    "a loss of zero, no gradient": (change_all(loss=0.0, grad_norm=0.0, kl=0.0), "loss_zero"),
    "a loss of zero, a KL": (change_all(loss=0.0, kl=0.05), "loss_zero"),
    "a hacked grader": (hack, "reward_up_task_down"),
    "a reward that falls": (
        change_all(reward_mean=lambda record, done: 0.6 - 0.3 * done),
        "reward_falls",
    ),
    "a reward that stays low": (
        change_all(reward_mean=lambda record, done: 0.04 + 0.02 * (record["step"] % 3)),
        "reward_stays_low",
    ),
    "a gain in format alone": (
        change_all(sub_rewards=lambda record, done: {"exact": 0.0, "format": done}),
        "format_alone",
    ),
    "every second answer cut": (change_all(truncated=0.5), "truncation"),
    "all answers cut at the end": (change_all(**later(1.0, 0.8)("truncated")), "truncation"),
    "nine in ten cut, but for each fifth step": (
        change_all(truncated=lambda record, done: 0.9 if record["step"] % 5 else 0.1),
        "truncation",
    ),
    "an entropy of nothing, but for each fifth step": (
        change_all(entropy=lambda record, done: 0.005 if record["step"] % 5 else 0.06),
        "entropy_collapse",
    ),
    "a KL that is far, but for each fifth step": (
        change_all(kl=lambda record, done: 3.0 if record["step"] % 5 and done < 0.9 else 0.4),
        "kl_blow_up",
    ),
    "a KL of 1000 for four steps": (
        change_all(kl=lambda record, done: 1000.0 if 30 <= record["step"] < 34 else 0.1),
        "kl_blow_up",
    ),
    "one KL of 50": (change_at(31, kl=50.0), "kl_blow_up"),
    "an entropy of nothing": (change_all(**later(0.004)("entropy")), "entropy_collapse"),
    "an entropy that is low": (change_all(**later(0.03)("entropy")), "entropy_collapse"),
    "a KL that runs away": (change_all(kl=lambda record, done: 6 * done**3), "kl_blow_up"),
    "a KL that stays far": (change_all(**later(0.8)("kl")), "kl_blow_up"),
    "a KL that ends far away": (change_at(STEPS, kl=9.0), "kl_blow_up"),
    "a gradient spike": (change_at(31, grad_norm=40.0), "gradient_spike"),
    "a gradient that is always large": (change_all(grad_norm=15.0), "gradient_spike"),
    "a gradient of nearly nothing": (change_all(grad_norm=2e-5), "gradient_vanishes"),
    "answers that explode": (
        change_all(completion_tokens=lambda record, done: 20 + 200 * done),
        "length_explosion",
    ),
    "answers that collapse": (
        change_all(completion_tokens=lambda record, done: 200 - 185 * done),
        "length_collapse",
    ),
    "a clip that binds": (change_all(clip_ratio=0.25), "clip_binds"),
    "a step twice": (lambda records: records.insert(9, dict(records[4])), "steps_out_of_order"),
}


def names(found):
    return {finding.name for finding in found.findings}


def write_log(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_state(path, records):
    """The same run as TRL logs it: other names, held-out looks as entries of their own."""
    history = []
    for record in records:
        entry = {"step": record["step"], "epoch": 0.1, "learning_rate": 1e-6}
        for ours, theirs in NAMES.items():
            if ours in record:
                entry[theirs[0]] = record[ours]
        for name, value in record["sub_rewards"].items():
            entry |= {f"rewards/{name}/mean": value, f"rewards/{name}/std": 0.1}
        history.append(entry)
        for name, share in record.get("errors", {}).items():
            entry[f"grader_errors/{name}"] = share
        if "validation" in record:
            history.append(
                {
                    "step": record["step"],
                    "eval_loss": 0.1,
                    "eval_runtime": 3.0,
                    "eval_reward": 0.9,
                    "eval_accuracy": record["validation"]["mean"],
                }
            )
    history.append({"step": records[-1]["step"], "train_runtime": 60.0, "train_loss": 0.0})
    path.write_text(json.dumps({"global_step": STEPS, "log_history": history}))
    return path


WRITERS = {"log.jsonl": write_log, "trainer_state.json": write_state}


@pytest.mark.parametrize("name", WRITERS)
def test_a_healthy_log_gets_a_finding(tmp_path, name):
    for seed in range(30):
        found = examine(WRITERS[name](tmp_path / name, healthy(seed)))
        assert (seed, names(found), found.notes) == (seed, set(), [])
    assert found.steps == STEPS


@pytest.mark.parametrize("steps", [1, 2, 3, 6, 20, 100])
def test_a_short_healthy_log_gets_a_finding(steps):
    for seed in range(20):
        assert names(examine_log(Log("", healthy(seed, steps)))) == set()


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        (fault, name)
        for fault, (_, expected) in FAULTS.items()
        for name in WRITERS
        # TRL writes a step's held-out look as a second entry of the step: none comes "again".
        if (expected, name) != ("steps_out_of_order", "trainer_state.json")
    ],
)
def test_a_planted_fault_is_not_found(tmp_path, fault, name):
    plant, expected = FAULTS[fault]
    records = healthy()
    plant(records)
    found = examine(WRITERS[name](tmp_path / name, records))
    assert expected in names(found)
    finding = next(f for f in found.findings if f.name == expected)
    assert finding.steps == sorted(finding.steps) and finding.evidence and finding.knob
    assert set(finding.steps) <= set(range(1, STEPS + 1))


def test_a_fault_is_not_tried_or_has_no_words():
    tried = {expected for _, expected in FAULTS.values()}
    assert (
        set(RULES)
        == set(KNOBS)
        == tried
        | {
            "past_the_peak",
            "nothing_held_out",
            "overfitting",
        }
    )


def test_a_finding_names_other_steps_than_the_faults():
    records = healthy()
    for record in records[19:27]:
        record["truncated"] = 0.6
    records[4]["grad_norm"] = 30.0
    found = {f.name: f.steps for f in examine_log(Log("", records)).findings}
    assert found == {"truncation": list(range(20, 28)), "gradient_spike": [5]}


def test_a_good_step_now_and_then_hides_a_bad_level():
    """Five of eight steps are a state, and its good steps are not named; four of eight are not."""
    points = [(step, float(step in (11, 13, 14, 16, 18, 40, 42, 44, 46))) for step in range(1, 61)]
    assert held(points, lambda value: value > 0) == [11, 13, 14, 16, 18]
    assert in_a_row(points, lambda value: value > 0) == []
    assert held(points[10:14], lambda value: value > 0) == []  # shorter: all of them, or none
    assert held(points[12:14], lambda value: value > 0) == [13, 14]


@pytest.mark.parametrize("seed", range(30))
def test_scattered_bad_steps_are_a_finding(seed):
    """Every eighth step at random is odd in all that a state is made of."""
    luck, records = random.Random(seed), healthy(seed)
    change_all(clip_ratio=0.0)(records)
    for record in luck.sample(records, STEPS // 8):
        record |= {"truncated": 0.5, "dead_groups": 0.875, "entropy": 0.04, "kl": 0.8}
        record |= {"clip_ratio": 0.2, "grad_norm": 5e-4}
    assert names(examine_log(Log("", records))) == set()


def test_a_recorded_sound_run_gets_a_finding_about_a_level():
    levels = {"truncation", "entropy_collapse", "kl_blow_up", "clip_binds", "gradient_vanishes",
              "grader_errors", "not_finite", "reward_not_a_number", "overfitting"}  # fmt: skip
    runs = json.loads((dataset("recorded_runs") / "demo.json").read_text())["runs"]
    assert runs and not [run for run in runs if names(examine_log(Log("", run["log"]))) & levels]


def test_a_reward_that_is_no_number_is_called_a_failed_grader():
    records = healthy()
    for record in records[30:]:
        record["reward_mean"] = math.nan
    found = {f.name: f for f in examine_log(Log("", records)).findings}
    assert found.keys() == {"reward_not_a_number"}
    assert found["reward_not_a_number"].steps == list(range(31, 61))
    records[3]["reward_mean"] = None
    found = {f.name: f for f in examine_log(Log("", records)).findings}
    assert found["grader_failures"].steps == [4] and "reward_not_a_number" in found


def sft(held_out, start=2.0):
    """An SFT run as TRL logs it: the training loss falls, the held-out loss is `held_out(step)`."""
    luck = random.Random(0)
    history = [
        {"step": s, "loss": start - 0.02 * s + luck.gauss(0, 0.02), "grad_norm": 0.5}
        for s in range(1, 61)
    ]
    return history + [{"step": s, "eval_loss": held_out(s)} for s in range(10, 61, 10)]


@pytest.mark.parametrize(
    ("held_out", "steps"),
    [
        (lambda step: 1 + 0.01 * step, [20, 30, 40, 50, 60]),
        (lambda step: 1.2 if step in (20, 30) else 1.4, [30, 40, 50, 60]),
        (lambda step: 2 - 0.01 * step, []),
        (lambda step: 1.2 + 0.01 * (step % 20), []),  # stands still, but for noise
    ],
)
def test_an_sft_run_that_learns_by_heart_is_not_named(tmp_path, held_out, steps):
    path = tmp_path / "trainer_state.json"
    state = {"log_history": sft(held_out)}
    path.write_text(json.dumps(state))
    assert {f.name: f.steps for f in examine(path).findings} == (
        {"overfitting": steps} if steps else {}
    )
    path.write_text(json.dumps(state | {"best_model_checkpoint": "checkpoint-10"}))
    assert names(examine(path)) == set()  # the lowest is the one that is handed back


def test_one_bad_step_is_a_finding():
    records = healthy()
    records[30] |= {"truncated": 1.0, "dead_groups": 1.0, "entropy": 0.0, "kl": 3.0, "loss": 0.0}
    assert names(examine_log(Log("", records))) == set()


def test_answers_that_grow_with_a_gain_are_called_an_explosion():
    records = healthy()
    change_all(completion_tokens=lambda record, done: 100 + 200 * done)(records)
    assert names(examine_log(Log("", records))) == set()
    change_all(validation=None, reward_mean=0.3)(records)
    assert names(examine_log(Log("", records))) == {"length_explosion"}


def test_a_loss_of_zero_beside_a_gradient_is_a_finding():
    """GRPO with one update a batch: the value is zero, the gradient is not."""
    records = healthy()
    change_all(loss=0.0, kl=None)(records)
    found = examine_log(Log("", records))
    assert names(found) == set() and "normal for GRPO" in found.notes[0]


def test_a_run_that_kept_its_best_is_called_past_its_peak(tmp_path):
    records = healthy()
    records[-1]["validation"] = look(0.2, 0.05)
    change_all(reward_mean=0.4)(records)
    assert names(examine(write_log(tmp_path / "log.jsonl", records))) == {"past_the_peak"}
    (tmp_path / "training.json").write_text("{}")
    assert names(examine(tmp_path)) == set()
    # A fall within the interval of the best look is noise.
    records[-1]["validation"] = look(records[-11]["validation"]["mean"] - 0.03, 0.05)
    assert names(examine_log(Log("", records))) == set()


def test_noise_is_called_a_trend():
    for seed in range(30):
        luck, records = random.Random(seed), healthy(seed)
        for record in records:
            record["reward_mean"] = 0.4 + luck.gauss(0, 0.12)
            if "validation" in record:  # the last looks of a run that stops by patience
                record["validation"] = look(0.4 - 0.0004 * record["step"], 0.05)
        assert (seed, names(examine_log(Log("", records)))) == (seed, set())
    # Nor is a rising reward an alarm, where the held-out looks stand still.
    for record in records:
        record["reward_mean"] = 0.3 + 0.005 * record["step"]
    assert names(examine_log(Log("", records))) == set()


def test_a_gradient_within_the_healthy_range_is_a_spike():
    records = healthy()
    records[30]["grad_norm"] = 0.9  # thirty times the usual, and still small
    assert names(examine_log(Log("", records))) == set()


def test_dead_groups_are_also_called_a_gradient_that_vanishes():
    records = healthy()
    for record in records[:20]:
        record |= {"dead_groups": 1.0, "grad_norm": 0.0}
    assert names(examine_log(Log("", records))) == {"dead_groups"}


def test_a_loss_that_does_not_arrive_is_also_called_normal():
    records = healthy()
    change_all(loss=0.0, kl=0.05)(records)
    found = examine_log(Log("", records))
    assert names(found) == {"loss_zero"} and found.notes == []


@pytest.mark.parametrize("gradient", ["missing", None, math.nan, "0"])
def test_a_gradient_that_was_not_logged_is_called_none(gradient):
    records = healthy()
    change_all(loss=0.0, kl=None, grad_norm=gradient)(records)
    for record in records if gradient == "missing" else []:
        del record["grad_norm"]
    assert "loss_zero" not in names(examine_log(Log("", records)))
    records[40]["grad_norm"] = 0.0  # one that was logged counts
    assert "loss_zero" in names(examine_log(Log("", records)))


def test_a_grader_that_crashes_is_called_a_constant_reward(tmp_path):
    records = healthy()
    change_all(
        reward_mean=0.0, reward_std=0.0, dead_groups=1.0, grad_norm=0.0, loss=0.0, kl=0.0,
        errors={"python_grader_runtime_error": 0.9, "sample_parse_error": 0.1},
    )(records)  # fmt: skip
    for name in WRITERS:
        [finding] = [
            f for f in examine(WRITERS[name](tmp_path / name, records)).findings
            if f.name not in ("gradient_vanishes", "reward_up_task_down")
        ]  # fmt: skip
        assert finding.name == "grader_errors" and finding.steps == list(range(1, STEPS + 1))
        assert "python_grader_runtime_error on 90% of the answers" in finding.evidence
        assert "explains" in finding.evidence and "no reward spread" in finding.evidence
        assert "rftkit grade" in finding.knob and "traceback" in finding.knob


def test_grading_errors_hide_a_constant_reward_of_other_steps():
    records = healthy()
    for record in records[:20]:
        record["errors"] = {"python_grader_runtime_error": 0.9}
    for record in records[30:]:
        record |= {"reward_std": 0.0, "dead_groups": 1.0}
    found = {f.name: f for f in examine_log(Log("", records)).findings}
    assert {"grader_errors", "no_reward_spread", "dead_groups"} <= found.keys()
    assert found["grader_errors"].steps == list(range(1, 21))
    assert "explains" not in found["grader_errors"].evidence


@pytest.mark.parametrize(
    "errors",
    [
        {"sample_parse_error": 0.9},  # the answers' own fault
        {"truncated_observation_error": 1.0},
        {"python_grader_runtime_error": 0.3},
        {},
        {"python_grader_runtime_error": "0.9"},
        ["python_grader_runtime_error"],
    ],
)
def test_an_answers_own_fault_is_called_the_graders(errors):
    records = healthy()
    change_all(errors=errors)(records)
    assert names(examine_log(Log("", records))) == set()


def test_the_demos_own_runs_get_a_finding_about_entropy():
    """Why entropy has no upper limit: these runs start above the guide's red flag of 1.0."""
    runs = json.loads((dataset("recorded_runs") / "demo.json").read_text())["runs"]
    assert max(record["entropy"] for run in runs for record in run["log"]) > 1.0
    for run in runs:
        first, last = run["log"][0]["entropy"], run["log"][-1]["entropy"]
        found = examine_log(Log("", run["log"]))
        assert first > 0.5 and last < first
        assert not [name for name in names(found) if "entropy" in name]


def test_the_help_hides_the_limits():
    text = " ".join(CliRunner().invoke(app, ["doctor", "--help"]).stdout.replace("│", " ").split())
    for part in ("entropy", f"{rules.ENTROPY_LOW}", f"{rules.GRADIENT_LARGE:g}", "no upper limit"):
        assert part in text


# --- what no trainer should write, and files hold all the same ---------------------------------

NUMBERS = sorted(set(NAMES) - {"lost"})
STRANGE = [None, True, "0.5", "", [], [1], {}, {"mean": 1}, 10**400, -(10**400), 1e308, math.nan,
           math.inf, ["not finite"], {"low": None}]  # fmt: skip


@pytest.mark.parametrize(
    "values",
    [
        {"validation": {"mean": 0.3, "low": None, "high": None}},
        {"validation": {"mean": 0.3, "low": "0.2", "high": 0.4}},
        {"validation": {"mean": 0.3, "low": 0.2}},
        {"validation": {"mean": 10**400, "metric": ["top1"]}},
        {"validation": ["top1", 0.3]},
        {"sub_rewards": [0.5, 0.5]},
        {"sub_rewards": "0.5"},
        {"alarms": ["not finite"]},
        {"alarms": "not finite"},
        {"alarms": [{"name": ["not finite"]}]},
        {"loss": 10**400},
        {"reward_mean": 10**400},
        {"completion_tokens": 1e308},
        {"reward_mean": 1e308},
        {"errors": "python_grader_runtime_error"},
    ],
)
def test_a_strange_field_is_a_traceback(tmp_path, values):
    for odd in (0, 1):  # in every step, and in every second one
        records = healthy()
        for record in records[:: 1 + odd]:
            record |= values
        found = examine(write_log(tmp_path / "log.jsonl", records))
        as_text(found)
        json.dumps(found.to_json(), allow_nan=False)


def test_half_an_interval_is_taken_for_one():
    records = healthy()
    records[-1]["validation"] = {"metric": "top1", "mean": 0.3, "low": None, "high": 0.9}
    assert "past_the_peak" in names(examine_log(Log("", records)))
    assert examine_log(Log("", records)).findings[0].evidence.endswith("top1 0.300 at step 60")


texts = st.sampled_from(["", "not finite", "python_grader_runtime_error", "strict", "lenient"])
texts |= st.text(st.characters(), max_size=3)  # halves of surrogate pairs among them
numbers = st.floats() | st.integers() | st.integers(-3, 3) | st.sampled_from(STRANGE)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
a_look = st.fixed_dictionaries(
    {"mean": numbers}, optional={"low": values, "high": values, "metric": values}
)
alarms = st.lists(st.fixed_dictionaries({"name": values}) | values, max_size=2)
a_record = st.fixed_dictionaries(
    {"step": st.integers(-2, 400) | st.integers()},
    optional={
        **{name: numbers | values for name in NUMBERS},
        "validation": a_look | values,
        "sub_rewards": st.dictionaries(texts, numbers, max_size=3) | values,
        "errors": st.dictionaries(texts, numbers, max_size=3) | values,
        "alarms": alarms | values,
        "lost": values,
    },
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(a_record, min_size=1, max_size=8), st.integers(1, 8), st.booleans())
def test_a_random_log_is_a_traceback(tmp_path_factory, records, times, ours):
    """Each record several times over, so that stretches and trends come about."""
    folder = tmp_path_factory.getbasetemp()
    many = [dict(record) for record in records for _ in range(times)]
    if len(many) % 2:  # steps in order, in every second log
        for number, record in enumerate(many, 1):
            record["step"] = number
    path = folder / ("log.jsonl" if ours else "trainer_state.json")
    if ours:
        write_log(path, many)
    else:
        history = [
            {"step": record["step"]}
            | {NAMES[name][0]: value for name, value in record.items() if name in NAMES}
            | {f"eval_{key}": record[key] for key in ("validation", "alarms") if key in record}
            | {"rewards/a/mean": record.get("lost"), "grader_errors/b": record.get("errors")}
            for record in many
        ]
        path.write_text(json.dumps({"log_history": history}))
    try:
        found = examine(path)
    except UserError:
        return
    as_text(found).encode()
    json.dumps(found.to_json(), ensure_ascii=False, allow_nan=False).encode()


def test_an_sft_log_is_judged_by_rewards_that_it_has_not():
    records = healthy(looks=False)
    for record in records:
        record |= dict.fromkeys(("reward_mean", "reward_std", "dead_groups", "kl", "sub_rewards"))
        record["grad_norm"] *= 100  # usual for SFT
    found = examine_log(Log("", records))
    assert names(found) == set() and found.notes == []


def test_a_step_that_the_watchdog_skipped_is_passed_over():
    records = healthy()
    records[8]["alarms"] = [{"name": "not finite", "cause": "a gradient", "stops": False}]
    records[9]["alarms"] = [{"name": "all groups dead", "cause": "…", "stops": True}]
    [finding] = examine_log(Log("", records)).findings
    assert (finding.name, finding.steps) == ("not_finite", [9])


def test_answers_without_a_grade_in_a_run_folder_are_not_counted(tmp_path):
    write_log(tmp_path / "log.jsonl", healthy())
    graded = [{"step": s, "grade": 0.5} for s in range(1, 61) for _ in range(20)]
    write_log(tmp_path / "samples.jsonl", graded)
    assert names(examine(tmp_path)) == set()
    graded[7 * 20]["grade"] = None  # one of twenty: 5 %, the limit
    write_log(tmp_path / "samples.jsonl", graded)
    assert names(examine(tmp_path)) == set()
    graded[7 * 20 + 1]["grade"] = None
    write_log(tmp_path / "samples.jsonl", graded)
    [finding] = examine(tmp_path).findings
    assert (finding.name, finding.steps) == ("grader_failures", [8])
    assert "10%" in finding.evidence


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("log.jsonl", None, "cannot be read"),
        ("log.jsonl", "", "empty, expected one object a step"),
        ("log.jsonl", "\n \n", "empty"),
        ("log.jsonl", '{"step": 1}\n{"step": 2, "lo\n{"step": 3}\n', "jsonl:2: not whole JSON"),
        ("log.jsonl", '{"step": 1, "lo', "log.jsonl:1: not whole JSON"),
        ("log.jsonl", b'{"step": 1}\n\xff\n{"step": 3}\n', "cannot be read"),
        ("log.jsonl", '{"step": 1}\n[1, 2]\n', 'log.jsonl:2: without a whole number "step"'),
        ("log.jsonl", '{"loss": 1}\n', 'log.jsonl:1: without a whole number "step"'),
        ("log.jsonl", '{"step": true}\n', 'log.jsonl:1: without a whole number "step"'),
        ("log.jsonl", b"\xff\xfe\x00", "cannot be read"),
        ("trainer_state.json", '{"log_history": [{"st', "not whole JSON"),
        ("trainer_state.json", '{"epoch": 1}', "without a list log_history"),
        ("trainer_state.json", '{"log_history": [1]}', "without a list log_history"),
        ("trainer_state.json", '{"log_history": []}', "holds no step"),
        ("trainer_state.json", "[]", "without a list log_history"),
    ],
)
def test_a_missing_or_torn_file_is_a_traceback_or_a_clean_bill(tmp_path, name, text, expected):
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=expected):
        examine(path)


@pytest.mark.parametrize("torn", [b'{"step": 21, "lo', b'{"step": 21, "sub": {"\xc3', b"\0\0"])
def test_a_torn_last_line_hides_what_is_wrong_before_it(tmp_path, torn):
    """A run died while it wrote step 21, once in the middle of a letter."""
    records = healthy(steps=20)
    change_all(truncated=0.5)(records)
    path = write_log(tmp_path / "log.jsonl", records)
    path.write_bytes(path.read_bytes() + torn)
    found = examine(path)
    assert (found.steps, names(found)) == (20, {"truncation"})
    assert "last line (line 21) is torn" in found.notes[0]
    answer = CliRunner().invoke(app, ["doctor", str(tmp_path)])
    assert answer.exit_code == 1 and "1. truncation" in answer.stdout
    assert "note: the last line (line 21) is torn" in answer.stdout


def test_a_whole_last_line_without_its_end_is_called_torn(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\r\n\n{"step": 2, "patterns": {"a\u2028b": 1}}')
    found = examine(path)
    assert (found.steps, found.notes) == (2, [])


def test_a_folder_is_not_searched_for_its_log(tmp_path):
    with pytest.raises(UserError, match="no log in this folder"):
        read_log(tmp_path)
    for step in (9, 100, 20):  # the newest checkpoint, not the last by name
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        write_state(folder / "trainer_state.json", healthy(steps=step))
    assert len(read_log(tmp_path).records) == 100
    write_log(tmp_path / "log.jsonl", healthy(steps=5))
    assert len(read_log(tmp_path).records) == 5


def test_trainers_names_are_read_wrongly(tmp_path):
    records = healthy()
    read = read_log(write_state(tmp_path / "trainer_state.json", records))
    for name in set(NAMES) - {"clip_ratio", "lost", "eval_loss"}:
        assert read.points(name) == [(r["step"], r[name]) for r in records]
    assert [s for s, _ in read.looks()] == [10, 20, 30, 40, 50, 60]
    # the task's metric, not the reward and not a time
    assert read.looks()[0][1] == {"metric": "accuracy", "mean": records[9]["validation"]["mean"]}
    assert read.records[0]["sub_rewards"].keys() == {"first", "format"}


# --- the command -------------------------------------------------------------------------------


def test_the_command_prints_other_things_than_its_help_says(tmp_path):
    run = CliRunner().invoke
    path = write_log(tmp_path / "log.jsonl", healthy())
    assert run(app, ["doctor", str(path)]).exit_code == 0
    records = healthy()
    change_all(truncated=0.5)(records)
    change_at(31, grad_norm=math.nan)(records)
    write_log(path, records)
    answer = run(app, ["doctor", str(path), "--json"])
    assert answer.exit_code == 1
    found = json.loads(answer.stdout)
    assert [f["name"] for f in found["findings"]] == ["not_finite", "truncation"]
    assert found["findings"][0]["steps"] == [31]
    assert {"name", "steps", "evidence", "knob"} <= found["findings"][0].keys()
    text = run(app, ["doctor", str(path)]).stdout
    for part in ("2 findings", "1. not finite (step 31)", "2. truncation (steps 1-60)", "turn  "):
        assert part in text
    assert max(map(len, text.replace(str(path), "").splitlines())) <= 96


def test_a_long_list_of_steps_is_printed_in_full():
    assert step_ranges([1, 2, 3, 7]) == "steps 1-3, 7"
    assert step_ranges(list(range(1, 40, 2))) == "steps 1, 3, 5, 7, 9, 11 and 14 more stretches"


# --- public runs, rebuilt from the figures that were published ---------------------------------


def unsloth_qwen3():
    """Unsloth's notebook "Qwen3 (4B) GRPO", its stored outputs: T4, 100 steps of 1 prompt with 4
    answers; 47 % of the steps without any spread; mean reward -1.31 at the start, -3.17 at the end.
    """
    luck, history = random.Random(0), []
    dead = set(luck.sample(range(1, 101), 47))
    for step in range(1, 101):
        level = -1.31 if step <= 50 else -3.17
        history.append(
            {
                "step": step,
                "loss": 0.001,
                "reward": level + luck.gauss(0, 0.6),
                "reward_std": 0.0 if step in dead else 1.5,
                "kl": 0.01,
                "grad_norm": 0.0 if step in dead else 0.3,
            }
        )
    return history


def unsloth_llama():
    """Unsloth's notebook "Advanced Llama 3.2 (3B) GRPO": T4, 500 steps of 4 prompts, no dead
    step, mean reward 0.39 -> 7.39; like all twelve of its kind without any evaluation."""
    luck = random.Random(0)
    return [
        {
            "step": step,
            "loss": 0.01,
            "reward": 0.39 + 7.0 * step / 500 + luck.gauss(0, 1),
            "reward_std": 2.0,
            "kl": 0.02,
            "grad_norm": 0.3,
        }
        for step in range(1, 501)
    ]


def rasbt_reasoning():
    """S. Raschka, reasoning-from-scratch, chapter 6: Qwen3-0.6B on MATH-500, right 15.2 % before,
    47.4 % at step 50, 44.0 % at step 100."""
    history = [{"step": s, "loss": 0.01, "reward": 0.15 + 0.003 * s} for s in range(1, 101)]
    looks = [{"step": s, "eval_accuracy": v} for s, v in ((1, 0.152), (50, 0.474), (100, 0.44))]
    return history + looks


def small_gsm8k():
    """A 1.5B model on GSM8K: strict match 1.7 -> 48.7 %, lenient match 38.3 -> 55.0 %."""
    return [
        {
            "step": step,
            "loss": 0.01,
            "reward": 0.017 + 0.47 * step / 100,
            "rewards/strict_match/mean": 0.017 + 0.47 * step / 100,
            "rewards/lenient_match/mean": 0.383 + 0.167 * step / 100,
        }
        for step in range(1, 101)
    ]


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (unsloth_qwen3, {"dead_groups", "reward_falls", "reward_stays_low"}),
        (unsloth_llama, {"nothing_held_out"}),
        (rasbt_reasoning, {"past_the_peak", "reward_up_task_down"}),
        (small_gsm8k, {"format_alone"}),
    ],
)
def test_what_is_wrong_with_a_public_run_is_not_said(tmp_path, run, expected):
    path = tmp_path / "trainer_state.json"
    path.write_text(json.dumps({"log_history": run()}))
    assert names(examine(path)) == expected


def test_the_evidence_is_other_than_the_published_figures(tmp_path):
    path = tmp_path / "trainer_state.json"
    path.write_text(json.dumps({"log_history": unsloth_qwen3()}))
    found = {finding.name: finding for finding in examine(path).findings}
    assert "47 of 100 steps (47%)" in found["dead_groups"].evidence
    assert len(found["dead_groups"].steps) >= 47
    path.write_text(json.dumps({"log_history": rasbt_reasoning()}))
    found = {finding.name: finding for finding in examine(path).findings}
    assert "0.474 at step 50" in found["past_the_peak"].evidence
    assert "0.440 at step 100" in found["past_the_peak"].evidence
