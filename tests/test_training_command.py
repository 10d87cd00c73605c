"""`rftkit train` and `rftkit runs`, the plan, what is refused."""

import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from rftkit.cli import app
from rftkit.decoding import uniform_numbers
from rftkit.files import UserError
from rftkit.records import SamplingConfig
from rftkit.task import load_task
from rftkit.training.config import (
    ModelShape,
    RunConfig,
    config_rows,
    config_task,
    make_plan,
    run_order,
)
from rftkit.training.run import list_runs, read_run_config, runs_table, shared_groups, train
from rftkit.training.store import Recorder, read_lines
from rftkit.training.trainer import Interrupted

TINY = dict(
    task="gene_ranking", steps=2, prompts_per_step=2, answers_per_prompt=4, eval_every=1,
    eval_rows=4, eval_samples=1, max_completion_tokens=40, gate="off", save_every=1,
)  # fmt: skip
SMALL = ModelShape(2, 64, 4, 1000, 4, 1e6)


def command(*arguments):
    """(exit code, what was printed, the error that main() would print)"""
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    return done.exit_code, done.output, done.exception


def write(path, **record):
    path.write_text(json.dumps(record))
    return path


# --- the command -------------------------------------------------------------------------------


def test_a_dry_run_trains(tmp_path):
    file = write(tmp_path / "c.json", **TINY | {"prompts_per_step": 6, "answers_per_prompt": 5})
    code, said, _ = command("train", file, "--out", tmp_path / "run", "--dry-run", "--json")
    plan = json.loads(said)
    assert code == 0 and not (tmp_path / "run").exists()
    assert plan["batch"] == plan["generation_batch"] == 30 and plan["completions"] == 60
    assert plan["rows"] == len(load_task("gene_ranking").rows("train")) and plan["looks"] == 3
    assert plan["micro_batch"] * plan["accumulation"] == 30 and plan["reasons"]
    code, said, _ = command("train", file, "--out", tmp_path / "run", "--dry-run")
    assert code == 0 and "6 prompts x 5 answers = 30 completions" in said and "because" in said


def test_train_then_again_then_with_another_config(tmp_path):
    file, out = write(tmp_path / "c.json", **TINY), tmp_path / "run"
    code, said, _ = command("train", file, "--out", out)
    assert code == 0 and "kept step" in said and "held-out top1" in said
    assert (out / "curve.png").exists()
    steps = len(read_lines(out / "log.jsonl"))
    code, said, _ = command("train", file, "--out", out, "--json")
    assert code == 0 and json.loads(said[said.index("{\n") :])["training"]["steps"] == steps == 2
    other = write(tmp_path / "other.json", **TINY | {"learning_rate": 0.5, "steps": 3})
    code, _, error = command("train", other, "--out", out)
    assert code == 1 and isinstance(error, UserError)
    assert "learning_rate: None there, 0.5 here" in str(error) and "steps: 2 there" in str(error)
    assert read_lines(out / "log.jsonl")[-1]["step"] == 2


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"method": {"type": "reinforcement"}}, "arrive with `rftkit.job`"),
        ({"method": "ppo", "steps": 0, "task": "gene_ranking"}, "steps: 0"),
        ({"stepz": 3}, "unknown stepz"),
        ({"task": "gene_ranking", "micro_batch": 7}, "micro_batch: 7"),
        ({"task": "gene_ranking", "report_to": "paper"}, "report_to: 'paper'"),
        ({"task": "gene_ranking", "patterns": {"a": "("}}, "patterns"),
        ({"train_file": "nowhere.jsonl", "grader": {}}, "train_file: 'nowhere.jsonl'"),
        ({"task": "gene_ranking", "save_every": 0, "entropy_floor": -1}, "entropy_floor: -1"),
    ],
)
def test_a_wrong_config_is_trained(tmp_path, record, expected):
    code, _, error = command("train", write(tmp_path / "c.json", **record), "--out", tmp_path / "r")
    assert code == 1 and isinstance(error, UserError) and expected in str(error)
    assert not (tmp_path / "r").exists()


def test_files_beside_the_config_are_not_found(tmp_path, monkeypatch):
    task = load_task("gene_ranking")
    lines = (task.folder / "train.jsonl").read_text().splitlines()[:4]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    write(tmp_path / "grader.json", **task.grader_spec)
    file = write(tmp_path / "c.json", train_file="rows.jsonl", grader="grader.json")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = read_run_config(file, model="embedded:large")
    assert config.train_file == str(tmp_path / "rows.jsonl") and config.model == "embedded:large"
    assert config.grader == task.grader_spec


def test_other_rows_go_on_with_an_old_run(tmp_path):
    task = load_task("gene_ranking")
    rows, config = task.rows("train")[:6], RunConfig(**TINY | {"eval_every": 0})
    train(config, tmp_path, task=task, rows=rows)
    with pytest.raises(UserError, match="training rows: 6 there, 5 here"):
        train(config, tmp_path, task=task, rows=rows[:5])
    with pytest.raises(UserError, match="training rows: others of that number"):
        train(config, tmp_path, task=task, rows=rows[::-1])
    done = train(config, tmp_path, task=task, rows=rows[:5], existing="replace")
    assert done.training["examples"] == 5
    free = replace(config, save_every=9, gate="on", report_to="none")
    assert train(free, tmp_path, task=task, rows=rows[:5]).training["examples"] == 5


def test_ctrl_c_loses_the_step(tmp_path):
    """Asked after step 1 of 3: the checkpoint of step 1 is there, and the run goes on from it."""
    import os
    import signal

    config = RunConfig(**TINY | {"steps": 3, "save_every": 50})
    handler = signal.getsignal(signal.SIGINT)

    def press(record):
        if record["step"] == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="after step 1; a checkpoint is saved"):
        train(config, tmp_path, [press])
    assert signal.getsignal(signal.SIGINT) is handler
    assert (tmp_path / "checkpoints" / "step-000001" / "complete.json").exists()
    heard = []
    done = train(config, tmp_path, [heard.append])
    assert [r["step"] for r in heard] == [2, 3] and [r["step"] for r in done.log] == [1, 2, 3]


def test_a_second_round_starts_from_nothing(tmp_path):
    first = train(RunConfig(**TINY | {"learning_rate": 0.02, "keep_start": False}), tmp_path / "1")
    again = RunConfig(**TINY | {"init_adapter": str(tmp_path / "1"), "seed": 5})
    second = train(again, tmp_path / "2")
    assert second.start["mean"] == first.best["mean"]
    start = tmp_path / "2" / "checkpoints" / "best" / "step-000000" / "adapter_model.safetensors"
    assert start.read_bytes() == (first.out / "adapter" / start.name).read_bytes()
    with pytest.raises(UserError, match="has rank 4, expected lora_rank 8: set lora_rank to 4"):
        train(replace(again, lora_rank=8), tmp_path / "3")
    with pytest.raises(UserError, match="was made for embedded:mini, expected embedded:large"):
        train(replace(again, model="embedded:large"), tmp_path / "3")
    found = list_runs(tmp_path)
    assert [r["name"] for r in found["runs"]] == ["1", "2"]
    assert {"seed", "init_adapter", "learning_rate", "keep_start"} == set(found["differing"])
    assert found["runs"][0]["best"]["mean"] == first.best["mean"]
    table = runs_table(found)
    assert len(table) == 2 and f"top1 {first.best['mean']:.3f}" in table[0]["held out"]
    found["runs"][0]["alarms"] = ["reward and task part"]
    found["runs"][0]["config"]["grader"] = {"type": "multi", "name": "paid by place"}
    found["differing"].append("grader")
    found["runs"][1]["config"]["grader"] = None
    alarmed = runs_table(found)[0]
    assert (alarmed["alarms"], alarmed["grader"]) == ("reward and task part", "paid by place")
    found["differing"].remove("grader")
    code, said, _ = command("runs", tmp_path, "--json")
    assert code == 0 and json.loads(said)["differing"] == found["differing"]
    assert command("runs", tmp_path / "1" / "adapter")[1].endswith("no runs\n")


def test_accumulated_passes_are_another_step(tmp_path):
    """The same batch in one pass and in four: the same gradient, up to rounding."""
    whole = train(RunConfig(**TINY | {"steps": 1, "eval_every": 0}), tmp_path / "1").log[0]
    config = RunConfig(**TINY | {"steps": 1, "eval_every": 0, "micro_batch": 2})
    parts = train(config, tmp_path / "2").log[0]
    assert json.loads((tmp_path / "2" / "plan.json").read_text())["accumulation"] == 4
    assert parts["reward_mean"] == whole["reward_mean"]
    assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-3)


# --- mistakes ----------------------------------------------------------------------------------

ROWS = str(load_task("gene_ranking").folder / "train.jsonl")


def test_a_grader_or_rows_beside_a_task_are_ignored(tmp_path):
    task = load_task("gene_ranking")
    mine = {"type": "string_check", "name": "mine", "input": "{{sample.output_text}}",
            "operation": "ne", "reference": ""}  # fmt: skip
    few = tmp_path / "few.jsonl"
    few.write_text("".join((task.folder / "validation.jsonl").read_text().splitlines(True)[:3]))
    config = RunConfig(task="gene_ranking", grader=mine, patterns={"why": "because"})
    found = config_task(config)
    assert found.grader.name == "mine" and found.patterns == {"why": "because"}
    assert found.answer_template == task.answer_template and found.group_by == task.group_by
    rows, held_out = config_rows(replace(config, validation_file=str(few)), found)
    assert rows == task.rows("train") and held_out == task.rows("validation")[:3]
    bad = write(tmp_path / "bad.json", task="gene_ranking", grader={})
    code, _, error = command("train", bad, "--out", tmp_path / "run", "--dry-run")
    assert code == 1 and isinstance(error, UserError) and "type: missing" in str(error)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"seed": 2**32}, "seed: 4294967296, expected a number below 2.32"),
        ({"validation_file": ROWS}, "stand in both training and held-out rows"),
        ({"stepz": 3, "steps": -1}, "unknown stepz.*steps: -1, expected a whole number from 1"),
    ],
)
def test_a_mistake_ends_in_a_traceback(tmp_path, fields, said):
    code, _, error = command(
        "train", write(tmp_path / "c.json", **TINY | fields), "--out", tmp_path / "run"
    )
    assert code == 1 and isinstance(error, UserError), error
    assert re.search(said, str(error)), error


@pytest.mark.parametrize("place", ["a file", "under a file"])
def test_a_place_that_cannot_be_a_folder_ends_in_a_traceback(tmp_path, place):
    file = write(tmp_path / "c.json", **TINY)
    out = {"a file": file, "under a file": file / "run"}[place]
    code, _, error = command("train", file, "--out", out)
    assert code == 1 and isinstance(error, UserError), error
    assert str(error).startswith(f"{out}: cannot be a run's folder")


def test_the_largest_seed_overflows():
    numbers = uniform_numbers(
        [0, 1], 2, SamplingConfig(seed=(2**32 - 1) * 100_003, max_new_tokens=3)
    )
    assert numbers.shape == (4, 3) and len({float(n) for n in numbers.flatten()}) == 12


def test_a_finished_run_lacks_its_report(tmp_path):
    """report.json has the fields of every report in the kit, and says what the log says."""
    run = train(RunConfig(**TINY | {"learning_rate": 0.02, "keep_start": False}), tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    start, kept = report["systems"]
    assert start["name"] == "before training" and kept["name"] == f"kept, step {run.best['step']}"
    assert kept["top1"] == {key: run.best[key] for key in ("mean", "low", "high")}
    (pair,) = report["paired"]
    assert pair["difference"] == pytest.approx(
        kept["top1"]["mean"] - start["top1"]["mean"], abs=1e-3
    )
    assert pair["low"] <= pair["difference"] <= pair["high"] and pair["metric"] == "top1"
    assert report["training"]["steps"] == 2 and report["n_cases"] == kept["n"] == TINY["eval_rows"]
    assert report["training"]["answer_groups_shared_with_eval"] == 0 and report["seed"] == 0
    assert set(report["sha256"]) == {"adapter", "training rows", "held-out rows", "grader", "task"}
    assert all(len(digest) == 64 for digest in report["sha256"].values())
    task = load_task("gene_ranking")
    watch = SimpleNamespace(task=task, rows=task.rows("train")[:3])
    assert shared_groups(task.rows("train"), watch) > 0
    text = (tmp_path / "run" / "report.md").read_text()
    assert f"| {kept['name']} | {kept['top1']['mean']:.3f} [" in text and "flatters" in text
    shutil.rmtree(tmp_path / "run" / "adapter")
    with pytest.raises(UserError, match="no adapter_model.safetensors, expected that of a finish"):
        train(RunConfig(**TINY | {"learning_rate": 0.02, "keep_start": False}), tmp_path / "run")


def test_one_broken_run_hides_the_others(tmp_path):
    train(RunConfig(**TINY | {"steps": 1, "eval_every": 0}), tmp_path / "good")
    for name, text in (("broken", "garbage"), ("stopped", '{"task": "gene_ranking"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
        (tmp_path / name / "alarms").mkdir()
    found = list_runs(tmp_path)
    assert [run["name"] for run in found["runs"]] == ["good", "stopped"]
    assert found["runs"][1]["state"] == "unfinished" and found["runs"][1]["steps"] == 0
    assert len(found["unreadable"]) == 1 and "broken" in found["unreadable"][0]
    code, said, _ = command("runs", tmp_path)
    assert code == 0 and "left out: " in said and "good" in said


# --- report_to --------------------------------------------------------------------------------


def test_a_missing_reporting_package_is_a_traceback(monkeypatch):
    monkeypatch.setattr("rftkit.training.config.find_spec", lambda name: None)
    config = RunConfig(task="gene_ranking", report_to="tensorboard")
    assert config.problems() == [
        "report_to: 'tensorboard', expected an installed package: "
        "pip install tensorboard or tensorboardX"
    ]
    monkeypatch.setattr(
        "rftkit.training.config.find_spec", lambda name: name == "tensorboardX" or None
    )
    assert config.problems() == []


def test_held_out_looks_do_not_reach_the_reports(monkeypatch, tmp_path):
    """A stand-in for TensorBoard hears TRL's series once a step, and each look."""
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    heard = []

    class Reports(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **rest):
            heard.append((state.global_step, dict(logs)))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Reports)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")  # put back at the end
    monkeypatch.setattr("rftkit.training.config.find_spec", lambda name: True)
    run = train(RunConfig(**TINY | {"report_to": "tensorboard"}), tmp_path / "run")
    looks = [(step, logs) for step, logs in heard if "held_out/top1" in logs]
    told = {r["step"]: r["validation"]["mean"] for r in run.log if "validation" in r}
    assert {step: logs["held_out/top1"] for step, logs in looks} == told and told
    rewards = [step for step, logs in heard if "reward" in logs]
    assert rewards == [1, 2], "a step's series were sent twice"


# --- the plan ----------------------------------------------------------------------------------


def test_a_batch_that_does_not_fit_is_read_at_once():
    config, rows = RunConfig(task="x"), [{}] * 10
    room = make_plan(config, rows, [], SMALL, 100, 1e12)
    assert room.micro_batch == 64 and room.accumulation == 1 and room.looks == 0
    tight = make_plan(config, rows, [], SMALL, 100, 1.5e7)
    assert tight.micro_batch in (1, 2, 4, 8, 16) and tight.micro_batch * tight.accumulation == 64
    assert "gradients of" in tight.reasons[0] and tight.passes == 56.0
    none = make_plan(config, rows, [], SMALL, 100, 1.0)
    assert none.micro_batch == 1 and "may not fit" in none.reasons[0]
    asked = make_plan(replace(config, micro_batch=16), rows, [], SMALL, 100, 1.0)
    assert asked.micro_batch == 16 and "you asked for it" in asked.reasons[0]
    wordy = replace(SMALL, vocabulary=100_000)
    assert make_plan(config, rows, [], wordy, 100, 3e9).micro_batch < 64, "its logits fit"
    assert make_plan(config, rows, [], SMALL, 100, 3e9).micro_batch == 64
    longer = make_plan(replace(config, max_completion_tokens=640), rows, [], SMALL, 100, 1e8)
    assert longer.micro_batch < make_plan(config, rows, [], SMALL, 100, 1e8).micro_batch


def test_a_usual_model_gets_the_learning_rate_of_a_tiny_one():
    config, rows = RunConfig(task="x"), [{}] * 10
    wide = replace(SMALL, hidden=1024)
    rates = {
        (shape.hidden, method): make_plan(
            replace(config, method=method), rows, [], shape
        ).learning_rate
        for shape in (SMALL, wide)
        for method in ("grpo", "sft")
    }
    assert rates[1024, "grpo"] < rates[1024, "sft"] <= rates[SMALL.hidden, "sft"] / 5
    assert rates[1024, "grpo"] <= rates[SMALL.hidden, "grpo"] / 100
    named = make_plan(replace(config, model="someone/model"), rows, [])  # its width is not known
    assert named.learning_rate == rates[1024, "grpo"] and "quoted" in named.reasons[1]
    own = make_plan(replace(config, learning_rate=0.5), rows, [], wide)
    assert own.learning_rate == 0.5 and "you asked for it" in own.reasons[1]


def test_epochs_are_counted_in_steps_wrongly():
    config = RunConfig(task="x", method="sft", prompts_per_step=16, epochs=3, steps=1000)
    plan = make_plan(config, [{}] * 40, [{}] * 9)
    assert plan.steps == 8 and plan.batch == 16 and plan.completions == 0  # 3 * 40 / 16 = 7.5
    assert plan.looks == 1 + 2 and make_plan(config, [{}] * 40, []).looks == 0
    assert plan.held_out_rows == 9 and plan.look_answers == 18
    fewer = make_plan(replace(config, eval_rows=5), [{}] * 40, [{}] * 9)
    assert fewer.held_out_rows == 5 and fewer.look_answers == 10


def test_some_rows_are_seen_more_often_than_others():
    order = run_order(rows=10, steps=15, prompts_per_step=4, seed=3)
    assert len(order) == 60 and sorted(order) == sorted(list(range(10)) * 6)
    assert sorted(order[:10]) == list(range(10)) and order[:10] != order[10:20]
    assert order == run_order(10, 15, 4, 3) != run_order(10, 15, 4, 4)
    assert order[:20] == run_order(10, 5, 4, 3)  # a shorter run meets the same rows
    assert len(run_order(3, 2, 8, 0)) == 16  # fewer rows than prompts a step


# --- the record --------------------------------------------------------------------------------


def test_an_event_is_not_openais(tmp_path):
    recorder = Recorder(tmp_path, [], steps=20)
    look = {"metric": "top1", "mean": 0.5, "grade": 0.68, "parse_error": 0.0}
    record = {"step": 10, "reward_mean": 0.42, "validation": look}
    record["alarms"] = [{"name": "entropy collapse", "cause": "flat", "stops": True}]
    recorder.step(record)
    first, second = read_lines(tmp_path / "events.jsonl")
    assert first["object"] == "fine_tuning.job.event" and first["type"] == "metrics"
    assert first["message"] == (
        "Step 10/20, train mean reward=0.42, full validation mean reward=0.68, full validation "
        "mean parse error=0.00"
    )
    assert second["level"] == "warn" and second["message"] == "Step 10/20: flat"
    assert set(first) == {"object", "id", "created_at", "level", "type", "message", "data"}


def test_a_torn_line_is_read(tmp_path):
    recorder = Recorder(tmp_path, [], steps=3)
    recorder.step({"step": 1})
    positions = recorder.positions()
    recorder.step({"step": 2})
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 3, "sec')
    assert [r["step"] for r in read_lines(tmp_path / "log.jsonl")] == [1, 2]
    again = Recorder(tmp_path, [], 3, positions, seconds=100.0)
    assert [r["step"] for r in again.log] == [1] and again.seconds >= 100
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1
