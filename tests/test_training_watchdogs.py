"""Planted faults in real runs: each stops or skips as it is written, and says why."""

import errno
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from rftkit.files import UserError, embedded_model
from rftkit.graders.answer import Grade, grader_fault
from rftkit.policy import load_policy
from rftkit.task import load_task, task_from_json
from rftkit.training import run
from rftkit.training.config import RunConfig
from rftkit.training.heldout import HeldOut, rises
from rftkit.training.run import train
from rftkit.training.watchdogs import (
    TrainingStopped,
    Watchdogs,
    garbage_in_first_batch,
    is_full_disk,
)

TINY = dict(
    task="gene_ranking", steps=4, prompts_per_step=2, answers_per_prompt=4, eval_every=0,
    max_completion_tokens=40, gate="off", save_every=1,
)  # fmt: skip


def events(out):
    return [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]


# --- NaN ---------------------------------------------------------------------------------------


def spoil_gradients(monkeypatch, spoiled_steps):
    """The gradient of one LoRA matrix is NaN in these steps (from 1)."""
    made, count = run.with_lora, [0]

    def spoiled(gradient):
        count[0] += 1
        return gradient * float("nan") if count[0] in spoiled_steps else gradient

    def with_hook(*arguments):
        model = made(*arguments)
        first = next(p for n, p in model.named_parameters() if "lora_B" in n)
        first.register_hook(spoiled)
        return model

    monkeypatch.setattr(run, "with_lora", with_hook)


def test_a_nan_gradient_spoils_the_weights(monkeypatch, tmp_path):
    spoil_gradients(monkeypatch, {2})
    done = train(RunConfig(**TINY), tmp_path)
    assert [r["step"] for r in done.log] == [1, 2, 3, 4]
    assert [a["name"] for a in done.alarms] == ["not finite"] and done.alarms[0]["step"] == 2
    assert done.log[1]["grad_norm"] is None and done.log[2]["grad_norm"] is not None
    assert all(p.isfinite().all() for p in done.policy.model.parameters())
    batch = (tmp_path / "alarms" / "step-000002-not-finite.jsonl").read_text().splitlines()
    assert len(batch) == 8
    assert [e["level"] for e in events(tmp_path)].count("warn") == 1
    json.loads((tmp_path / "log.jsonl").read_text().splitlines()[1], parse_constant=pytest.fail)


def test_nan_for_ever_trains_on(monkeypatch, tmp_path):
    spoil_gradients(monkeypatch, {2, 3, 4})
    with pytest.raises(TrainingStopped, match="3 times in a row") as stop:
        train(RunConfig(**TINY), tmp_path)
    assert stop.value.cause == "not finite" and not (tmp_path / "training.json").exists()


def test_a_run_that_goes_on_after_a_stop_is_stopped_by_the_next_nan(monkeypatch, tmp_path):
    spoil_gradients(monkeypatch, {2, 3, 4, 5})
    config = RunConfig(**TINY | {"steps": 6})
    with pytest.raises(TrainingStopped):
        train(config, tmp_path)
    done = train(config, tmp_path)  # the fifth gradient is the first of this session
    assert [r["step"] for r in done.log] == [1, 2, 3, 4, 5, 6]
    assert [alarm["step"] for alarm in done.alarms] == [2, 3, 4, 5]


def test_an_infinite_gradient_is_taken_for_a_number():
    dogs = Watchdogs(watchdog_steps=3, entropy_floor=0.01)
    good, bad = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    good.grad, bad.grad = torch.ones(2), torch.tensor([1.0, float("inf")])
    assert dogs.not_finite([good, bad]) and good.grad is None and bad.grad is None
    good.grad = torch.ones(2)
    assert not dogs.not_finite([good, bad]) and good.grad is not None and dogs.skipped == 0


# --- nothing to learn --------------------------------------------------------------------------


def constant_task():
    """Every answer gets full marks."""
    record = load_task("gene_ranking").to_json()
    record["grader"] = {
        "type": "string_check", "name": "constant", "operation": "ne",
        "input": "{{sample.output_text}}", "reference": "never said",
    }  # fmt: skip
    return task_from_json(record)


def test_a_constant_reward_is_trained_on_for_ever(tmp_path):
    rows = load_task("gene_ranking").rows("train")[:8]
    config = RunConfig(**TINY | {"steps": 9, "watchdog_steps": 2})
    done = train(config, tmp_path, task=constant_task(), rows=rows)
    assert len(done.log) == 2 and done.training["stopped"] == "all groups dead"
    assert "same grade" in done.alarms[-1]["cause"]
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def test_collapse_is_called_too_early_or_never():
    dogs = Watchdogs(watchdog_steps=3, entropy_floor=0.01)
    names = []
    for entropy in (0.005, 0.005, 0.3, 0.005, 0.005, 0.005):
        found = dogs.read({"dead_groups": 0.5, "entropy": entropy})
        names.append([a["name"] for a in found])
    assert names == [[], [], [], [], [], ["entropy collapse"]]
    dogs = Watchdogs(watchdog_steps=0, entropy_floor=0.01)
    assert [dogs.read({"dead_groups": 1.0, "entropy": 0.0}) for _ in range(20)] == [[]] * 20
    dogs = Watchdogs(watchdog_steps=1, entropy_floor=0.01)
    assert dogs.read({"dead_groups": None, "entropy": None}) == []  # SFT has neither


# --- the first batch ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda template: template + "<|end|>", "prompts end with <|end|>"),
        (lambda template: template.replace("message.content", "'Hello.'"), "does not hold"),
    ],
)
def test_a_broken_chat_template_is_trained_on(tmp_path, change, expected):
    """One ends the assistant's turn itself, one loses the question. The tiny model answers all the
    same, and its answers can be read: it would train on."""
    model = tmp_path / "model"
    shutil.copytree(embedded_model("mini"), model)
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text(change(template))
    expected = f"step 1: .*{re.escape(expected)}.*No weight has changed"
    with pytest.raises(TrainingStopped, match=expected) as stop:
        train(RunConfig(**TINY | {"model": str(model)}), tmp_path / "run")
    assert stop.value.cause == "garbage in the first batch"
    assert (tmp_path / "run" / "log.jsonl").read_text() == ""
    assert (tmp_path / "run" / "alarms" / "step-000001-garbage.jsonl").exists()


def test_garbage_is_not_told_apart():
    tokenizer = load_policy("embedded:mini").tokenizer
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    word = tokenizer("Seizure", add_special_tokens=False).input_ids
    prompts, ends = ["a question"] * 4, {end}

    def found(completions, prompts=prompts):
        return " ".join(garbage_in_first_batch(tokenizer, prompts, completions, ends))

    assert found([word + [end]] * 4) == ""
    assert found([word + [end]] * 2 + [[end], word]) == ""  # half of it may be odd
    assert "ended at once" in found([[end]] * 4)
    assert "never ended by themselves" in found([word] * 4)
    assert "is empty after the chat template" in found([word + [end]] * 4, [" "] * 4)
    assert "2 prompts end with" in found([word + [end]] * 4, ["a", "a<|end|>\n", "a<|end|>", "a"])
    if pad is not None and pad != end:
        assert tokenizer.pad_token in found([word + [pad] + word + [end]] * 4)


@pytest.mark.parametrize("role", ["pad_token", "bos_token"])
def test_an_end_that_is_also_another_control_token_is_garbage(role):
    """Many models pad with their end token, and some begin with it."""
    tokenizer = load_policy("embedded:mini").tokenizer
    setattr(tokenizer, role, tokenizer.eos_token)
    word = tokenizer("Seizure", add_special_tokens=False).input_ids
    answers = [word + [tokenizer.eos_token_id]] * 4
    ends = {tokenizer.eos_token_id}
    assert garbage_in_first_batch(tokenizer, ["a question"] * 4, answers, ends) == []


def test_a_doubled_begin_token_is_not_seen():
    tokenizer = load_policy("embedded:mini").tokenizer
    tokenizer.bos_token = "<|start|>"
    word = tokenizer("Seizure", add_special_tokens=False).input_ids
    answers = [word + [tokenizer.eos_token_id]] * 2
    prompts = ["<|start|><|start|>a question", "<|start|>a question"]
    ends = {tokenizer.eos_token_id}
    (found,) = garbage_in_first_batch(tokenizer, prompts, answers, ends)
    assert found.startswith("1 prompts begin with <|start|> twice")


def test_dead_or_flat_steps_that_are_not_in_a_row_are_added_up():
    dogs = Watchdogs(watchdog_steps=3, entropy_floor=0.1)
    dead, alive = {"dead_groups": 1, "entropy": 0.05}, {"dead_groups": 0.5, "entropy": 0.3}
    assert [dogs.read(record) for record in (dead, dead, alive, dead, dead)] == [[]] * 5
    names = [alarm["name"] for alarm in dogs.read(dead)]
    assert names == ["all groups dead", "entropy collapse"]


# --- graders and disks that fail ---------------------------------------------------------------


def test_a_failing_grader_costs_more_than_its_batch(tmp_path):
    """From step 3 on it fails; mended, the run goes on from step 2 and grades step 3 again."""
    task, calls, broken = load_task("gene_ranking"), [], [True]
    sound = task.grader.evaluate

    def flaky(item, sample):
        calls.append(1)
        if broken[0] and len(calls) > 16:
            fault = grader_fault("model_grader_server_error", "the judge is down")
            return Grade(None, dict.fromkeys(task.grader.variables), (("", fault),))
        return sound(item, sample)

    task.grader.evaluate = flaky
    with pytest.raises(TrainingStopped, match="step 3: .*judge is down.*start the run again"):
        train(RunConfig(**TINY), tmp_path, task=task, rows=task.rows("train"))
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "alarms" / "step-000003-grader-failed.jsonl").exists()
    broken[0] = False
    done = train(RunConfig(**TINY), tmp_path, task=task, rows=task.rows("train"))
    assert [r["step"] for r in done.log] == [1, 2, 3, 4]


def program(source):
    return {"type": "python", "name": "own", "source": f"def grade(sample, item):\n    {source}"}


def test_a_grader_whose_program_always_fails_is_trained_on(tmp_path):
    config = RunConfig(**TINY | {"grader": program("raise ValueError('boo')")})
    with pytest.raises(TrainingStopped, match="8 of 8 answers of one step(.|\\n)*ValueError: boo"):
        train(config, tmp_path)
    assert (tmp_path / "alarms" / "step-000001-grader-failed.jsonl").exists()


def test_a_grader_whose_program_often_fails_goes_unsaid(tmp_path):
    source = "return 1.0 / (len(sample['output_text']) % 3 > 1)"
    done = train(RunConfig(**TINY | {"grader": program(source)}), tmp_path)
    shares = [record["errors"].get("python_grader_runtime_error", 0) for record in done.log]
    assert 0.5 <= shares[0] < 1, shares
    first = done.log[0]["alarms"][0]
    assert (
        first["name"] == "grader errors" and f"on {shares[0]:.0%} of the answers" in first["cause"]
    )
    assert sum(alarm["name"] == "grader errors" for alarm in done.alarms) < len(shares)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_ends_in_a_traceback(tmp_path):
    """A real ENOSPC: from step 4 on, log.jsonl is a device that is always full."""
    log, config = tmp_path / "log.jsonl", RunConfig(**TINY | {"save_every": 2})

    def fill(record):
        if record["step"] == 3:
            log.rename(tmp_path / "log.before")
            log.symlink_to("/dev/full")

    with pytest.raises(TrainingStopped, match="no space left.*step-000002 stands"):
        train(config, tmp_path, [fill])
    assert not (tmp_path / "checkpoints" / ".writing").exists()
    (tmp_path / "log.before").replace(log)
    done = train(config, tmp_path)
    assert [r["step"] for r in done.log] == [1, 2, 3, 4]


def test_other_errors_are_called_a_full_disk(tmp_path):
    assert is_full_disk(OSError(28, "No space left on device"), tmp_path)
    assert is_full_disk(RuntimeError("I/O error: No space left on device (os error 28)"), tmp_path)
    assert is_full_disk(OSError(errno.EDQUOT, "Disk quota exceeded"), tmp_path)
    assert not is_full_disk(OSError(13, "Permission denied"), tmp_path)
    assert not is_full_disk(RuntimeError("PytorchStreamWriter failed"), tmp_path)


# --- reward and task ---------------------------------------------------------------------------


def test_a_hacked_grader_raises_no_alarm(tmp_path):
    """The grader pays for a phrase. The phrase is learned, the answers get worse, and the adapter
    that is kept is the one before."""
    record = load_task("gene_ranking").to_json()
    record["grader"] = {
        "type": "string_check", "name": "phrase", "operation": "like",
        "input": "{{sample.reasoning}}", "reference": "Common first",
    }  # fmt: skip
    task, rows = task_from_json(record), load_task("gene_ranking")
    config = RunConfig(
        task="gene_ranking", steps=16, learning_rate=5e-3, beta=0.0, eval_every=8, eval_samples=4,
        patience=0, gate="off", watchdog_steps=0,
    )  # fmt: skip
    done = train(config, tmp_path, [], task, rows.rows("train"), rows.rows("validation"))
    assert done.log[-1]["validation"]["grade"] > done.start["grade"] + 0.3
    alarms = [a for a in done.alarms if a["name"] == "reward and task part"]
    assert alarms and alarms[-1]["metric"]["high"] < 0 < alarms[-1]["grade"]["low"]
    assert any("the task gets worse" in e["message"] for e in events(tmp_path))
    assert done.best["mean"] >= done.start["mean"]


def part_of(before, now, grades, log=()):
    task = load_task("gene_ranking")
    rows = [{"reference_gene": str(i)} for i in range(60)]
    watch = HeldOut(task, rows, RunConfig(eval_every=5, eval_rows=60), Path("nowhere"))
    watch.best, watch.best_values = {"step": 5}, {"metric": before, "grade": [0.3] * 60}
    return [a["name"] for a in watch.part({"metric": now, "grade": grades}, 20, log)]


def test_the_alarm_is_a_matter_of_taste():
    good, bad = [0.5] * 60, [0.0] * 40 + [0.5] * 20
    up, level = [0.6] * 60, [0.3] * 60
    steps = [{"step": s, "reward_mean": 0.2 + 0.001 * (s % 3)} for s in range(1, 16)]
    rising = steps + [{"step": s, "reward_mean": 0.5 + 0.001 * (s % 3)} for s in range(16, 21)]
    assert part_of(good, bad, up) == ["reward and task part"]
    assert part_of(good, good, up) == []  # the task did not get worse
    assert part_of(good, bad, level) == []  # nothing rises
    assert part_of(good, bad, level, rising) == ["training and held-out part"]
    one_row_worse = [0.0] + [0.5] * 59
    assert part_of(good, one_row_worse, up) == []  # one row of sixty is luck
    assert rises(rising, 5, 5) and not rises(steps, 5, 5) and not rises(rising, 18, 5)


def test_only_the_last_adapter_is_kept(tmp_path):
    """Three of the looks, by the task metric, and the best of them in adapter/."""
    config = RunConfig(
        **TINY | {"steps": 5, "eval_every": 1, "eval_rows": 8, "patience": 0, "save_every": 2}
    )
    done = train(config, tmp_path)
    looks = [(0, done.start["mean"])]
    looks += [(r["step"], r["validation"]["mean"]) for r in done.log]
    expected = sorted(looks, key=lambda look: (-look[1], look[0]))[:3]
    record = json.loads((tmp_path / "training.json").read_text())
    assert [(k["step"], k["mean"]) for k in record["best_checkpoints"]] == expected
    best = tmp_path / "checkpoints" / "best"
    assert {p.name for p in best.iterdir()} == {f"step-{step:06d}" for step, _ in expected}
    kept = best / f"step-{expected[0][0]:06d}" / "adapter_model.safetensors"
    assert kept.read_bytes() == (tmp_path / "adapter" / kept.name).read_bytes()
    assert not (tmp_path / "adapter" / "ref").exists()


def test_a_run_that_no_longer_improves_goes_on(tmp_path):
    """A learning rate that teaches nothing: no look is better than the one before step 1."""
    few = {"eval_every": 1, "eval_rows": 8, "learning_rate": 1e-12}
    config = RunConfig(**TINY | few | {"steps": 5, "patience": 2})
    done = train(config, tmp_path / "stops")
    assert [r["step"] for r in done.log] == [1, 2] and done.best["step"] == 0
    assert done.training["stopped"] == "patience"
    again = train(config, tmp_path / "stops")  # it has ended: nothing is left to do
    assert [r["step"] for r in again.log] == [1, 2]
    done = train(RunConfig(**TINY | few | {"steps": 3, "patience": 0}), tmp_path / "goes on")
    assert [r["step"] for r in done.log] == [1, 2, 3] and done.training["stopped"] == "steps"


def test_two_processes_train_in_one_folder(tmp_path):
    pytest.importorskip("fcntl")
    from rftkit.training.store import sole_user

    with sole_user(tmp_path), pytest.raises(UserError, match="another process trains here"):
        train(RunConfig(**TINY), tmp_path)
