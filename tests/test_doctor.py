"""The run doctor: sound logs stay without a finding, each planted fault gets its own."""

import itertools
import json
import math
import random
import re

import pandas
import pytest
from typer.testing import CliRunner

from rftkit import UserError, examine
from rftkit.cli import app
from rftkit.doctor import RULES
from rftkit.logs import Log, held, read_log

STEPS = 60


def sound(seed=0, steps=STEPS):
    """A run that learns: reward .2 -> .6 with the noise of 64 answers, validation each 10 steps."""
    rng, records = random.Random(seed), []
    for step in range(1, steps + 1):
        done = step / steps
        record = {
            "step": step,
            "reward_mean": 0.2 + 0.4 * done + rng.gauss(0, 0.06),
            "reward_std": 0.3 + rng.gauss(0, 0.04),
            "sub_rewards": {"first": 0.05 + 0.4 * done + rng.gauss(0, 0.05), "format": 0.99},
            "dead_groups": rng.choice([0.5, 0.375, 0.25, 0.125, 0.0]) * (1 - 0.7 * done),
            "completion_tokens": 21 + 8 * done + rng.gauss(0, 1),
            "truncated": rng.choice([0, 0, 0, 1 / 64]),
            "entropy": 1.3 - 0.8 * done + rng.gauss(0, 0.05),
            "kl": 0.08 * done * abs(rng.gauss(1, 0.3)),
            "grad_norm": 0.03 * math.exp(rng.gauss(0, 0.5)),
            "loss": rng.gauss(-0.02, 0.03),
        }
        if step % 10 == 0:
            record["validation"] = validation(0.1 + 0.4 * done + rng.gauss(0, 0.01), 0.06)
        records.append(record)
    return records


def validation(mean, half):
    return {"metric": "top1", "mean": mean, "low": mean - half, "high": mean + half, "n": 240}


def planted(*at, **values):
    """The sound run with these values, at these steps or everywhere; a callable gets (record,
    share of the run done)."""
    records = sound()
    for record in records:
        for name, value in values.items():
            if not at or record["step"] in at:
                done = record["step"] / STEPS
                record[name] = value(record, done) if callable(value) else value
    return records


def by_heart(held_out):
    """An SFT run: its loss falls, and the validation loss goes as given."""
    rng = random.Random(0)
    records = [{"step": s, "loss": 2 - 0.02 * s + rng.gauss(0, 0.02)} for s in range(1, STEPS + 1)]
    for record in records[9::10]:
        record["eval_loss"] = held_out(record["step"])
    return records


def rise(reward):
    """A longer run without validations, whose reward goes as given."""
    records = [r | {"validation": validation(0.5, 0.1)} for r in sound(steps=4 * STEPS)]
    for record in records:
        noise = random.Random(record["step"]).gauss(0, 0.03)
        record["reward_mean"] = reward(record["step"] / 4 / STEPS) + noise
    return records


NAN, LATER, VALIDATED = math.nan, range(31, 61), range(10, 61, 10)
# (the finding, a log that must get it)
FAULTS = [
    ("not_finite", planted(31, grad_norm=NAN, loss=NAN)),
    ("not_finite", planted(31, grad_norm=None, loss=None)),  # as our log writes a NaN
    ("not_finite", planted(31, alarms=[{"name": "not finite", "stops": False}])),
    ("grader_failures", planted(31, reward_mean=NAN)),
    ("grader_failures", planted(31, reward_mean=None)),
    ("grader_failures", planted(31, lost=0.06)),
    ("grader_failures", planted(sub_rewards={"judge": None, "format": 0.9})),
    ("grader_errors", planted(  # of 64 answers 26 to 38: half of the batch, as chance has it
        errors=lambda r, done: {"python_grader_runtime_error": (26 + r["step"] * 5 % 13) / 64})),
    ("dead_groups", planted(reward_mean=0.1, reward_std=0.0, dead_groups=1.0)),
    ("dead_groups", planted(dead_groups=lambda record, done: float(record["step"] % 2))),
    # Unsloth's notebook "Qwen3 (4B) GRPO": 1 prompt a step, 47 % of the steps without any spread.
    ("dead_groups", [{"step": s, "reward_mean": 0.4, "reward_std": 1.5 * (s * 47 % 100 >= 47)}
                     for s in range(1, 101)]),
    ("gradient_vanishes", planted(loss=0.0, grad_norm=0.0, kl=0.0)),
    ("reward_up_task_down", planted(  # past a peak at step 20
        *VALIDATED, validation=lambda r, done: validation(0.35 - 0.3 * abs(done - 1 / 3), 0.04))),
    ("reward_falls", planted(reward_mean=lambda record, done: 0.6 - 0.3 * done)),
    ("reward_stays_low", planted(reward_mean=lambda r, done: 0.04 + 0.02 * (r["step"] % 3))),
    ("format_alone", planted(sub_rewards=lambda r, done: {"exact": 0.0, "format": done})),
    # A 1.5B model on GSM8K: strict match 1.7 -> 48.7 %, lenient match 38.3 -> 55.0 %.
    ("format_alone", planted(sub_rewards=lambda r, done: {"strict": 0.02 + 0.47 * done,
                                                          "lenient": 0.38 + 0.17 * done})),
    ("truncation", planted(truncated=lambda r, done: 0.9 if r["step"] % 5 else 0.1)),
    ("entropy_collapse", planted(entropy=0.005)),
    ("kl_blow_up", planted(31, kl=50.0)),
    ("kl_blow_up", planted(*LATER, kl=0.8)),
    ("kl_blow_up", planted(STEPS, kl=9.0)),
    ("gradient_spike", planted(31, grad_norm=40.0)),
    ("gradient_vanishes", planted(grad_norm=2e-5)),
    ("length_explosion", planted(completion_tokens=lambda record, done: 20 + 200 * done)),
    ("length_collapse", planted(completion_tokens=lambda record, done: 200 - 185 * done)),
    ("length_explosion", planted(  # 2.5 times as long for a tenth more of the task
        completion_tokens=lambda record, done: 100 + 160 * done,
        **{"validation": lambda r, done: validation(0.3 + 0.03 * done, 0.01)})),
    ("plateau", rise(lambda done: min(0.2 + 2 * done, 0.6))),
    # The task's part pays a twentieth, and the form rises alone.
    ("format_alone", planted(sub_rewards=lambda r, done: {"correct": 0.01 + 0.03 * done,
                                                          "xml_count": 0.3 + 0.6 * done})),
    ("nothing_held_out", [r | {"validation": None} for r in sound(steps=120)]),
    ("past_the_peak", planted(STEPS, validation=validation(0.2, 0.05))),
    ("overfitting", by_heart(lambda step: 1.2 if step in (20, 30) else 1.4)),
    ("steps_out_of_order", [*sound()[:9], *sound()[4:]]),
]  # fmt: skip


def findings(records):
    return {finding.name for finding in examine(Log("", records)).findings}


def write_log(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


TRL = {name: name for name in ("reward_std", "entropy", "kl", "grad_norm", "loss", "eval_loss")} | {
    "reward_mean": "reward", "dead_groups": "frac_reward_zero_std", "lost": "grader/lost",
    "completion_tokens": "completions/mean_length", "truncated": "completions/clipped_ratio",
}  # fmt: skip
VERL = {name: f"actor/{name}" for name in ("entropy", "grad_norm")} | {
    "reward_mean": "critic/score/mean", "kl": "actor/kl_loss", "loss": "actor/pg_loss",
    "completion_tokens": "response_length/mean", "truncated": "response_length/clip_ratio",
}  # fmt: skip


def trl_history(records):
    """The same run as TRL logs it: other names, validations as entries of their own."""
    history = []
    for record in records:
        rewards, errors = record.get("sub_rewards", {}), record.get("errors", {})
        entry = {"step": record["step"], "epoch": 0.1, "learning_rate": 1e-6}
        entry |= {TRL[ours]: value for ours, value in record.items() if ours in TRL}
        entry |= {f"rewards/{name}/mean": value for name, value in rewards.items()}
        entry |= {f"grader_errors/{name}": share for name, share in errors.items()}
        history.append(entry)
        if record.get("validation"):
            held_out = {"eval_loss": 0.1, "eval_runtime": 3.0, "eval_reward": 0.9}
            held_out["eval_accuracy"] = record["validation"]["mean"]
            history.append({"step": record["step"]} | held_out)
    history.append({"step": records[-1]["step"], "train_runtime": 60.0, "train_loss": 0.0})
    return history


def test_a_sound_log_gets_no_finding(tmp_path):
    for seed, steps in itertools.product(range(20), (1, 2, 6, 20, STEPS)):
        examination = examine(write_log(tmp_path / "log.jsonl", sound(seed, steps)))
        assert (seed, steps, examination.findings) == (seed, steps, [])
    assert examination.notes == []


@pytest.mark.parametrize(("expected", "records"), FAULTS)
def test_a_planted_fault_is_found_at_its_steps(tmp_path, expected, records):
    findings = examine(write_log(tmp_path / "log.jsonl", records)).findings
    (finding,) = (finding for finding in findings if finding.name == expected)
    assert finding.steps == sorted(finding.steps) and finding.evidence and finding.setting
    if expected in ("truncation", "kl_blow_up", "gradient_spike", "not_finite"):
        assert {records[step - 1] != sound()[step - 1] for step in finding.steps} == {True}


STEP = "train/global_step"


def wandb_table(records):
    """A row a call of the logger, with a column for each name."""
    rows = []
    for number, entry in enumerate(trl_history(records)[:-1]):
        row = {"_step": number, STEP: entry.pop("step")}
        for name, value in entry.items():
            row[f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}"] = value
        rows.append(row)
    return pandas.DataFrame(rows)


def write_verl(path, records):
    lines = []
    for record in records:
        entry = {VERL[k]: v for k, v in record.items() if k in VERL}
        if record.get("validation"):
            mean = record["validation"]["mean"]
            entry |= {"val-core/gsm8k/acc/best@8/mean": 0.9, "val-core/gsm8k/acc/mean@8": mean}
        lines.append({"step": record["step"], "data": entry})
    write_log(path, lines)


EXPORTS = {  # name of the file or folder -> its writer
    "log_history.json": lambda path, log: path.write_text(json.dumps(trl_history(log))),
    "metrics.jsonl": lambda path, log: write_log(path, trl_history(log)),
    "verl.jsonl": write_verl,
    "history.csv": lambda path, log: wandb_table(log).to_csv(path),
    "history.json": lambda path, log: wandb_table(log).to_json(path, orient="records"),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_a_log_reads_the_same_whoever_wrote_it(tmp_path, name):
    records, place = planted(truncated=0.9, lost=0.02), tmp_path / name
    EXPORTS[name](place, records)
    log, expected = read_log(place), Log("", records)
    for field in VERL if name == "verl.jsonl" else TRL.keys() - {"eval_loss"}:
        assert log.points(field) == [(s, pytest.approx(v)) for s, v in expected.points(field)]
        assert len(log.points(field)) == STEPS
    if name != "verl.jsonl":
        assert log.series("sub_rewards").keys() == {"first", "format"}
    means = [(v["step"], v["mean"]) for v in log.validations()]
    assert means == [(v["step"], pytest.approx(v["mean"])) for v in expected.validations()]
    assert log.validations()[0]["metric"] in ("accuracy", "gsm8k acc mean@8")
    assert [f.name for f in examine(log).findings] == ["truncation"]


def lines_of(**entry):
    return "".join(json.dumps({"step": step} | entry) + "\n" for step in range(9))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("log.jsonl", lines_of(data={"env/return": 1}), "not read: names seen .*env/return"),
        ("log.jsonl", lines_of(**{"return": 1, "lr": 0.1}), "not read: names seen lr, return"),
        ("log.jsonl", lines_of(), "not read: names seen none"),
        ("log.jsonl", '{"step": 1}\n{"step": 2, "lo\n{"step": 3}\n', "log.jsonl:2: "),
        ("trainer_state.json", '{"log_history": []}', "trainer_state.json: not read"),
        ("two.csv", "Step,a - train/loss\n1,0.5\n", "two.csv: not read: names seen a - train/loss"),
        ("no.csv", "Relative Time,train/loss\n1,0.5\n", "no.csv: None is no step"),
        ("empty.csv", "", "empty.csv: not read: names seen none"),
        ("notes.txt", "", "no log"),
    ],
)
def test_what_is_no_log_is_refused_with_its_place(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    place = tmp_path / name if name.endswith(".csv") else tmp_path
    with pytest.raises(UserError, match=words):
        examine(place)
    error = CliRunner().invoke(app, ["doctor", str(place)]).exception
    assert isinstance(error, UserError) and error.exit_code == 1


def test_each_limit_names_its_source():
    for name, (check, _) in RULES.items():
        limit = check.__doc__.partition("Limit: ")[2]
        source = re.search("Axolotl|ours|rldoctor", limit)
        assert source or name in ("not_finite", "steps_out_of_order")


def test_five_of_eight_bad_steps_make_a_state_and_scattered_ones_do_not():
    points = [(step, float(step in (11, 13, 14, 16, 18, 40, 42, 44, 46))) for step in range(1, 61)]
    assert held(points, lambda value: value > 0) == [11, 13, 14, 16, 18]
    assert held(points[12:14], lambda value: value > 0) == [13, 14]  # a short log: all of them
    rng, records = random.Random(0), sound()
    for record in rng.sample(records, STEPS // 8):
        record |= {"truncated": 0.5, "dead_groups": 0.875, "entropy": 0.04, "kl": 0.8}
    assert not findings(records)


SOUND = {
    "one bad step": planted(31, truncated=1.0, dead_groups=1.0, entropy=0.0, kl=3.0, loss=0.0),
    "thirty times a small gradient": planted(31, grad_norm=0.9),
    "longer with a gain": planted(completion_tokens=lambda record, done: 100 + 200 * done),
    "GRPO with one update a batch": planted(loss=0.0, kl=None),
    "a small loss, rounded to four digits": planted(loss=0.0, kl=0.03),
    "a learning curve that flattens": rise(lambda done: 0.6 - 0.4 * (1 - done) ** 2),
    "both parts rise": planted(sub_rewards=lambda r, d: {"correct": d / 2, "format": 0.2 + d / 2}),
    "from 80 % to 92 %, twice as long": planted(
        completion_tokens=lambda record, done: 100 + 90 * done,
        **{"validation": lambda r, done: validation(0.8 + 0.12 * done, 0.01)},
    ),
    "the answers' own errors": planted(errors={"sample_parse_error": 0.9}),
    "some errors": planted(errors={"python_grader_runtime_error": 0.3}, lost=0.05),
    "lenient rises along": planted(sub_rewards=lambda r, d: {"strict": d, "lenient": 0.2 + d}),
    "GRPO's loss says little": planted(loss=lambda r, d: -d, eval_loss=lambda r, d: 1 + d),
    "a validation loss that stands still": by_heart(lambda step: 1.2 + 0.01 * (step == 60)),
}


@pytest.mark.parametrize("name", SOUND)
def test_what_is_sound_gets_no_finding(name):
    assert not findings(SOUND[name])


def test_noise_is_no_trend():
    for seed in range(20):
        rng, records = random.Random(seed), sound(seed)
        for record in records:
            record["reward_mean"] = 0.4 + rng.gauss(0, 0.12)
        for record in records[9::10]:  # the last validations of a run that stops by patience
            record["validation"] = validation(0.4 - 0.0004 * record["step"], 0.05)
        assert (seed, findings(records)) == (seed, set())


@pytest.mark.parametrize(
    ("name", "records"),
    [  # and not gradient_vanishes, grader_failures, or what a crashing grader explains
        ("dead_groups", planted(*range(1, 21), dead_groups=1.0, grad_norm=0.0)),
        ("grader_failures", planted(*range(31, 61), reward_mean=NAN)),
        ("grader_errors", planted(reward_std=0.0, dead_groups=1.0, errors={"timeout": 0.9})),
    ],
)
def test_one_cause_is_named_once(name, records):
    assert findings(records) == {name}


@pytest.mark.parametrize("name", ["past_the_peak", "overfitting"])
def test_a_late_decline_does_no_harm_where_the_best_is_kept(name):
    kept = examine(Log("", dict(FAULTS)[name], best_is_kept=True)).findings
    assert name not in {finding.name for finding in kept}


def test_the_log_of_a_folder_is_its_own_or_its_newest_checkpoints(tmp_path):
    for step in (9, 100, 20):  # the newest checkpoint, not the last by name
        (tmp_path / f"checkpoint-{step}").mkdir()
        state = {"global_step": step, "log_history": trl_history(sound(steps=step))}
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    log = read_log(tmp_path)
    assert len(log.records) == 100 and not log.best_is_kept
    # the task's metric, not the reward and not a time
    mean = sound(steps=100)[9]["validation"]["mean"]
    assert log.validations()[0] == {"step": 10, "metric": "accuracy", "mean": mean}
    write_log(tmp_path / "log.jsonl", sound(steps=5))
    (tmp_path / "training.json").write_text("{}")
    assert len(read_log(tmp_path).records) == 5 and read_log(tmp_path).best_is_kept


def test_the_command_prints_findings_and_exits_with_1(tmp_path):
    run = CliRunner().invoke
    path = write_log(tmp_path / "log.jsonl", sound())
    with open(path, "a") as file:
        file.write('{"step": 61, "sub')
    sound_run = run(app, ["doctor", str(tmp_path)])
    assert sound_run.exit_code == 0 and "(61) is truncated" in sound_run.stdout
    write_log(path, planted(31, grad_norm=NAN))
    answer = run(app, ["doctor", str(path), "--json"])
    (finding,) = json.loads(answer.stdout)["findings"]
    assert (answer.exit_code, finding["name"], finding["steps"]) == (1, "not_finite", [31])
    assert finding["evidence"] and finding["knob"] and finding["why"]
    write_log(path, planted(truncated=0.9))
    assert "limit  0.3 of the completions" in run(app, ["doctor", str(path)]).stdout
