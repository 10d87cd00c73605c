"""Planted faults in real runs: each stops or skips as it is written, and says why."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_training import CONSTANT, TINY

from rftkit import Doctor, RunConfig, Sample, UserError, examine, load_task, plan, train
from rftkit.files import embedded_model
from rftkit.graders.answer import Grade, grader_fault
from rftkit.logs import KEPT_START, read_lines
from rftkit.rows import write_rows
from rftkit.training import session
from rftkit.training.watchdogs import HeldOut, Progress, TrainingStopped, Watchdogs, find_garbage

FOUR = TINY | {"steps": 4}


def test_not_finite_gradients_skip_their_step_and_three_in_a_row_stop(monkeypatch, tmp_path):
    """Stopped, the run is resumed from its last checkpoint."""
    made, count, spoiled_steps = session.with_lora, [0], {2, 4, 5, 6}

    def spoiled(gradient):
        count[0] += 1
        return gradient * float("nan") if count[0] in spoiled_steps else gradient

    def with_hook(*arguments):
        model = made(*arguments)
        next(p for n, p in model.named_parameters() if "lora_B" in n).register_hook(spoiled)
        return model

    monkeypatch.setattr(session, "with_lora", with_hook)
    config = RunConfig(**FOUR | {"steps": 7})
    with pytest.raises(TrainingStopped) as stop:
        train(config, tmp_path)
    assert "not finite" in str(stop.value) and not (tmp_path / "training.json").exists()
    done = train(config, tmp_path)
    assert [record["step"] for record in done.log] == [1, 2, 3, 4, 5, 6, 7]
    alarms = [("not finite", step) for step in (2, 4, 5, 6)]
    assert [(a["name"], a["step"]) for a in done.alarms] == alarms
    assert done.log[1]["grad_norm"] is None and done.log[2]["grad_norm"] is not None
    assert all(p.isfinite().all() for p in done.policy.model.parameters())
    assert len(read_lines(tmp_path / "alarms" / "step-000002-not-finite.jsonl")) == 8
    json.loads((tmp_path / "log.jsonl").read_text().splitlines()[1], parse_constant=pytest.fail)


def test_a_constant_reward_ends_the_run(tmp_path):
    changes = {"steps": 9, "watchdog_steps": 2, "grader": CONSTANT}
    done = train(RunConfig(**TINY | changes), tmp_path)
    assert len(done.log) == 2 and done.training["stopped"] == "all groups dead"
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    assert (tmp_path / "alarms" / "step-000002-all-groups-dead.jsonl").exists()


def test_only_steps_in_a_row_are_an_alarm():
    def alarms(watchdog_steps, *values):
        dogs = Watchdogs(watchdog_steps, entropy_floor=0.01)
        return [[a["name"] for a in dogs.read({"entropy": value})] for value in values]

    assert alarms(3, 0, 0, 0.3, 0, 0, 0) == [[], [], [], [], [], ["entropy collapse"]]
    assert alarms(0, *[0] * 20) == [[]] * 20  # 0: never
    assert alarms(1, None) == [[]]  # SFT has none


def changed_template(folder, change):
    """A config whose model is the mini with another chat template."""
    shutil.copytree(embedded_model("mini"), folder)
    template = folder / "chat_template.jinja"
    template.write_text(change(template.read_text()))
    return RunConfig(**TINY | {"model": str(folder)})


def test_a_template_that_loses_a_message_is_named_before_anything_is_sampled(tmp_path):
    """In the last of the held-out rows alone."""
    rows, place = load_task("gene_ranking").rows("validation"), tmp_path / "held_out.jsonl"
    rows[-1]["messages"].insert(0, {"role": "assistant", "content": "Ataxia."})
    write_rows(place, rows)
    config = changed_template(
        tmp_path / "model", lambda own: own.replace("'<|assistant|>' + message.content", "''")
    ).replace(validation_file=place)
    for start in (plan, lambda config: train(config, tmp_path / "run")):
        with pytest.raises(UserError, match=r"does not hold 'Ataxia\.' \(assistant"):
            start(config)
    assert read_lines(tmp_path / "run" / "samples.jsonl") == []


def test_a_broken_chat_template_stops_before_a_weight_changes(tmp_path):
    """The tiny model answers all the same, and its answers can be read: it would train on."""
    config = changed_template(tmp_path / "model", lambda own: own + "<|end|>")
    with pytest.raises(TrainingStopped, match="step 1: .*an answer begins") as stop:
        train(config, tmp_path / "run")
    assert "no weight has changed" in str(stop.value)
    assert read_lines(tmp_path / "run" / "log.jsonl") == []
    assert (tmp_path / "run" / "alarms" / "step-000001-garbage.jsonl").exists()


def test_garbage_is_told_from_odd_answers(mini):
    tokenizer = mini.tokenizer
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    word = tokenizer("Seizure", add_special_tokens=False).input_ids

    def faults(completions, prompts=("a question",) * 4):
        return find_garbage(tokenizer, prompts, completions, {end})

    sound = [word + [end]] * 4
    assert faults(sound) == [] == faults([word + [end]] * 2 + [[end], word])  # half may be odd
    for completion, named in [
        ([end], "empty"), (word, "never ended"), (word + [pad] + word + [end], tokenizer.pad_token)
    ]:  # fmt: skip
        (fault,) = faults([completion] * 4)
        assert named in fault
    tokenizer.bos_token = "<|start|>"
    (fault,) = faults(sound, ["<|start|><|start|>a question", "<|start|>a question"])
    assert fault.startswith("1 prompts begin with <|start|> twice")


def test_a_failing_grader_costs_its_batch_alone(tmp_path):
    """From step 3 on it fails; fixed, the run resumes from step 2 and grades step 3 again."""
    task, calls = load_task("gene_ranking"), []
    sound = task.grader.evaluate

    def flaky(item, sample):
        calls.append(1)
        if 16 < len(calls) <= 24:
            fault = grader_fault("model_grader_server_error", "the judge is down")
            return Grade(None, dict.fromkeys(task.grader.parts), [fault])
        return sound(item, sample)

    task.grader.evaluate = flaky
    with pytest.raises(TrainingStopped, match="step 3: .*judge is down"):
        train(RunConfig(**FOUR), tmp_path, task=task)
    assert len(read_lines(tmp_path / "log.jsonl")) == 2
    assert len(read_lines(tmp_path / "alarms" / "step-000003-grader-failed.jsonl")) == 8
    done = train(RunConfig(**FOUR), tmp_path, task=task)
    assert [record["step"] for record in done.log] == [1, 2, 3, 4]


def test_a_grader_whose_program_always_fails_stops_the_run(tmp_path):
    source = "def grade(sample, item):\n    raise ValueError('boo')"
    config = RunConfig(**FOUR, grader={"type": "python", "name": "own", "source": source})
    with pytest.raises(TrainingStopped, match="8 of 8(.|\\n)*ValueError: boo"):
        train(config, tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_stops_at_the_last_checkpoint(tmp_path):
    """A real ENOSPC: from step 4 on, log.jsonl is a device that is always full."""
    log, config = tmp_path / "log.jsonl", RunConfig(**FOUR | {"save_every": 2})

    def fill(record):
        if record["step"] == 3:
            log.rename(tmp_path / "log.before")
            log.symlink_to("/dev/full")

    with pytest.raises(TrainingStopped, match="no space left.*step-000002") as stop:
        train(config, tmp_path, [fill])
    assert "no space left" in str(stop.value)
    assert not (tmp_path / "checkpoints" / ".writing").exists()
    (tmp_path / "log.before").replace(log)
    assert [record["step"] for record in train(config, tmp_path).log] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("metric", "grade", "alarms"),
    [(-1.0, 1.0, 1), (-1.0, 0.0, 0), (0.0, 1.0, 0), (1.0, 1.0, 0), (-1.0, -1.0, 0)],
)
def test_the_alarm_wants_both_intervals_beyond_zero(tmp_path, metric, grade, alarms):
    """60 rows of several genes; most of them changed by so much since the best validation."""
    task = load_task("gene_ranking")
    config = RunConfig(**FOUR | {"eval_every": 1, "eval_rows": 60})

    def values(changed):
        return {
            name: [0.5 + by] * changed + [0.5] * (60 - changed)
            for name, by in (("top1", metric), ("grade", grade))
        }

    progress = Progress(best={"step": 3}, best_values=values(0))
    held_out = HeldOut(task, task.rows("validation"), config, tmp_path, progress)
    found = held_out.drift(values(59), 6)
    assert len(found) == alarms
    for alarm in found:
        assert alarm["since"] == 3 and alarm["metric"]["high"] < 0 < alarm["grade"]["low"]
    assert held_out.drift(values(1), 6) == []  # one row of 60 may be chance


def test_a_validation_does_not_change_what_is_drawn_next(tmp_path):
    """The policy draws from torch's own random numbers, as Hugging Face's generate does."""

    def sample(prompts, n, settings, progress=None):
        return [[Sample(output_text=str(torch.rand(1)))] * n for _ in prompts]

    dice = SimpleNamespace(model=torch.nn.Linear(1, 1), name="dice", sample=sample)
    task = load_task("gene_ranking")
    config = RunConfig(**FOUR | {"eval_every": 1, "eval_rows": 60, "keep_start": False})
    held_out = HeldOut(task, task.rows("validation"), config, tmp_path, Progress())
    before = torch.random.get_rng_state()
    assert held_out.validate(dice, 0)[0]["n"] == 60
    assert torch.equal(torch.random.get_rng_state(), before)
    assert dice.model.training, "the model is left in evaluation"


@pytest.mark.prove
def test_a_hacked_grader_raises_the_alarm(tmp_path):
    """The grader pays for a phrase. The phrase is learned, the answers get worse, and the adapter
    that is kept is the one before."""
    phrase = {"type": "string_check", "name": "phrase", "operation": "like",
              "input": "{{sample.reasoning}}", "reference": "Common first"}  # fmt: skip
    config = RunConfig(
        task="gene_ranking", grader=phrase, steps=16, learning_rate=5e-3, beta=0.0, eval_every=8,
        eval_samples=4, patience=0, gate="off", watchdog_steps=0,
    )  # fmt: skip
    done = train(config, tmp_path)
    assert done.log[-1]["validation"]["grade"] > done.start["grade"] + 0.3
    alarms = [a for a in done.alarms if a["name"] == "reward and task part"]
    assert alarms and alarms[-1]["metric"]["high"] < 0 < alarms[-1]["grade"]["low"]
    assert done.best["mean"] >= done.start["mean"]


def test_the_best_three_adapters_are_kept_and_alarms_of_a_validation_logged(tmp_path, monkeypatch):
    monkeypatch.setattr(
        HeldOut, "drift", lambda self, values, step: [{"name": "drift", "cause": "x"}]
    )
    changes = {"eval_every": 2, "eval_rows": 8, "patience": 0, "steps": 6}
    done = train(RunConfig(**TINY | changes), tmp_path)
    assert [(alarm["step"], alarm["name"]) for alarm in done.alarms] == [
        (step, "drift") for step in (2, 4, 6)
    ]
    means = [(r["step"], r["validation"]["mean"]) for r in done.log if "validation" in r]
    means.append((0, done.start["mean"]))
    expected = sorted(means, key=lambda found: (-found[1], found[0]))[:3]
    best = tmp_path / "checkpoints" / "best"
    assert {p.name for p in best.iterdir()} == {f"step-{step:06d}" for step, _ in expected}
    kept = best / f"step-{expected[0][0]:06d}" / "adapter_model.safetensors"
    assert kept.read_bytes() == (tmp_path / "adapter" / kept.name).read_bytes()


def test_patience_ends_a_run_that_no_longer_improves(tmp_path):
    """A learning rate that teaches nothing: no validation is better than the one before step 1."""
    changes = {"eval_every": 1, "eval_rows": 8, "learning_rate": 1e-12, "patience": 2}
    config = RunConfig(**FOUR | changes)
    done = train(config, tmp_path)
    assert len(done.log) == 2 and done.best["step"] == 0
    assert done.training["stopped"] == "patience"
    assert KEPT_START in examine(tmp_path).notes
    assert KEPT_START in (tmp_path / "adapter" / "README.md").read_text()
    assert len(train(config, tmp_path).log) == 2  # it has ended: nothing is left to do


# The same in a script of the user's own.


def watched(doctor, out, entries, start=0):
    """What a trainer tells its callbacks; True: the callback ended the training."""
    args = SimpleNamespace(output_dir=out, load_best_model_at_end=False, fp16=False)
    state = SimpleNamespace(global_step=start, is_world_process_zero=True)
    control = SimpleNamespace(should_training_stop=False)
    doctor.on_train_begin(args, state, control)
    for entry in entries:
        state.global_step = entry["step"]
        if gradient := entry.get("gradient"):
            parameter = torch.nn.Parameter(torch.zeros(1))
            parameter.grad = torch.tensor([gradient])
            model = SimpleNamespace(parameters=lambda parameter=parameter: [parameter])
            doctor.on_pre_optimizer_step(args, state, control, model=model)
            assert (parameter.grad is None) == (gradient != gradient)
        doctor.on_log(args, state, control, logs=entry)
    doctor.on_train_end(args, state, control)
    return control.should_training_stop


def entry(step, **more):
    return {"step": step, "loss": 0.1, "reward": 0.5, "rewards/f/mean": float("nan"), **more}


def test_the_callbacks_log_has_an_object_a_step_and_is_cut_back_by_a_resumed_run(tmp_path):
    held_out = {"step": 2, "eval_loss": 0.3, "eval_accuracy": 0.4, "eval_runtime": 1.0}
    entries = [entry(1), entry(2), held_out, entry(3), {"step": 3, "train_loss": 0.1}]
    assert not watched(Doctor(), tmp_path, entries)
    first, second, third = read_lines(tmp_path / "log.jsonl")
    assert (first["reward_mean"], first["kl"], first["sub_rewards"]) == (0.5, None, {"f": None})
    assert second["validation"] == {"metric": "accuracy", "mean": 0.4} and second["loss"] == 0.1
    watched(Doctor(), tmp_path, [entry(3, kl=0.2), entry(4)], start=2)
    log = read_lines(tmp_path / "log.jsonl")
    assert log[:2] == [first, second] and [r["step"] for r in log] == [1, 2, 3, 4]
    assert log[2]["kl"] == 0.2 and examine(tmp_path).steps == 4
    watched(Doctor(), tmp_path, [entry(1)])  # another run in that folder
    assert len(read_lines(tmp_path / "log.jsonl")) == 1


def test_the_callback_skips_gradients_that_are_not_finite_and_ends_after_three(tmp_path):
    nan = float("nan")
    gradients = [1.0, nan, nan, 1.0, nan, nan]
    entries = [entry(step, gradient=g) for step, g in enumerate(gradients, 1)]
    assert not watched(Doctor(), tmp_path, entries)
    assert watched(Doctor(), tmp_path, [*entries, entry(7, gradient=nan)])
    alarms = [[a["stops"] for a in r.get("alarms", [])] for r in read_lines(tmp_path / "log.jsonl")]
    assert alarms == [[], [False], [False], [], [False], [False], [True]]


def test_the_callback_prints_a_finding_once_and_early(tmp_path, capsys):
    doctor = Doctor()
    entries = [entry(step) | {"completions/clipped_ratio": 0.9} for step in range(1, 31)]
    watched(doctor, tmp_path, entries)
    shown = capsys.readouterr().err
    assert shown.count("truncation") == 1
    entries = [entry(step, frac_reward_zero_std=1.0) for step in range(1, 12)]
    assert watched(Doctor(watchdog_steps=3), tmp_path, entries)
    assert "watchdog: all groups dead" in capsys.readouterr().err


def test_a_stock_script_of_trl_is_watched(tmp_path, mini, genes):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    def nothing(completions, **columns):
        return [0.0] * len(completions)

    args = GRPOConfig(
        output_dir=str(tmp_path), max_steps=4, logging_steps=1, per_device_train_batch_size=4,
        num_generations=4, max_completion_length=8, save_strategy="no", report_to=[],
        use_cpu=True, bf16=False, gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    doctor = Doctor(watchdog_steps=2)
    rows = Dataset.from_list([{"prompt": row["messages"]} for row in genes[1][:4]])
    GRPOTrainer(
        model=mini.model, processing_class=mini.tokenizer, reward_funcs=nothing, args=args,
        train_dataset=rows, callbacks=[doctor],
    ).train()  # fmt: skip
    log = read_lines(tmp_path / "log.jsonl")
    assert [record["step"] for record in log] == [1, 2]
    assert [a["name"] for a in log[1]["alarms"]] == ["all groups dead"]
    assert log[1]["sub_rewards"] == {"nothing": 0.0} and log[1]["completion_tokens"] > 0
    assert "dead_groups" in {finding.name for finding in doctor.examination.findings}
