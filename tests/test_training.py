"""A real run, small: it learns from its reward and from nothing else, and what it saves is it."""

import json
import os
import shutil
import signal
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pandas
import pytest
from typer.testing import CliRunner

from rftkit import RunConfig, UserError, load_policy, load_run, load_task, plan, train
from rftkit.cli import app
from rftkit.compare import training_record
from rftkit.evaluation import Interval
from rftkit.files import embedded_model
from rftkit.logs import Lines, read_lines
from rftkit.policy import LocalPolicy
from rftkit.rows import write_rows
from rftkit.training import session
from rftkit.training.report import list_runs, runs_table
from rftkit.training.run import GateSaysFix
from rftkit.training.session import StepReward
from rftkit.training.store import FIELDS, alone_in, open_folder
from rftkit.training.trainer import sft_example

# Quicker than the demo's settings, and rougher: enough to see the direction in ten seconds.
QUICK = dict(
    task="gene_ranking", steps=12, learning_rate=3e-3, beta=0.01, eval_every=6, patience=0,
    eval_rows=60, gate="off",
)  # fmt: skip
TINY = dict(
    task="gene_ranking", steps=2, prompts_per_step=2, answers_per_prompt=4, eval_every=0,
    eval_rows=4, eval_samples=1, max_completion_tokens=40, gate="off", save_every=1,
)  # fmt: skip
VALIDATED = TINY | {"eval_every": 1}
CONSTANT = {"type": "string_check", "name": "constant", "operation": "ne",
            "input": "{{sample.output_text}}", "reference": "never said"}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    observed = []
    done = train(RunConfig(**QUICK), tmp_path_factory.mktemp("run"), [observed.append])
    assert observed == done.log
    return done


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Two validated steps, finished. No test changes it."""
    return train(RunConfig(**VALIDATED), tmp_path_factory.mktemp("tiny") / "run")


def test_rows_from_memory_and_the_gate_change_no_step(tmp_path, tiny, capsys):
    task = load_task("gene_ranking")
    frame = pandas.DataFrame(task.rows("train"))
    held_out = ({"prompt": row.pop("messages"), **row} for row in task.rows("validation"))
    changes = {"task": None, "gate": "on"}
    config = RunConfig(**VALIDATED | changes)
    run = train(config, tmp_path, task=task, rows=frame, held_out=held_out, force=True)

    for one, other in zip(run.log, tiny.log, strict=True):
        for name in ("reward_mean", "completion_tokens", "entropy", "kl", "grad_norm", "loss"):
            assert one[name] == other[name]
        assert one["validation"] | {"seconds": 0} == other["validation"] | {"seconds": 0}
    told = capsys.readouterr().out  # without an observer
    for part in ("because ", "step 1/2, ", "; validation top1 ", "ended by steps: ", "kept step "):
        assert part in told
    bench = SimpleNamespace(rows=task.rows("test")[:3], task=task)
    assert training_record(str(tmp_path), bench)["answer_groups_shared_with_eval"] is None


def test_labels_on_both_sides_are_no_group(tmp_path):
    moods = ("joy", "anger", "fear")
    rows = [{"prompt": f"Note {n}?", "mood": moods[n % 3]} for n in range(24)]

    def other_mood(sample, item):
        return 5.0 * (sample["output_text"] != item["mood"])

    fields = VALIDATED | {"task": None, "steps": 1, "grader_maximum": 5}
    config = RunConfig(**fields, grader=other_mood, group_by="mood")
    said = []
    run = train(config, tmp_path, rows=rows[:16], held_out=rows[16:], say=said.append)
    report = json.loads((run.out / "report.json").read_text())
    assert report["training"]["answer_groups_shared_with_eval"] is None
    assert [text for text in said if text.startswith("mood ")]
    kept = load_task(run.out).grader  # of a folder: boxed
    assert (kept.type, kept.maximum) == ("python", 5)


def test_rft_raises_the_held_out_score_and_logs_each_step(run):
    assert run.best["mean"] >= run.start["mean"] + 0.15
    before, after = run.start["patterns"], run.best["patterns"]
    assert after["diagnose first"] > 2 * before["diagnose first"]
    assert [line["step"] for line in run.log] == list(range(1, 13))
    assert all({"step", "seconds", "sub_rewards", *FIELDS} <= line.keys() for line in run.log)
    assert [line["step"] for line in run.log if "validation" in line] == [6, 12]
    assert read_lines(run.out / "log.jsonl") == run.log
    assert all(0 <= line["dead_groups"] <= 1 and line["truncated"] < 0.2 for line in run.log)
    assert set(run.log[0]["sub_rewards"]) == set(load_task("gene_ranking").grader.parts)


def test_answers_depend_on_prompt_and_step_and_never_on_the_reference(run):
    task = load_task("gene_ranking")
    rows = task.rows("train")[:3]
    others = [row | {"reference_gene": "OTHER"} for row in rows]
    session = SimpleNamespace(
        policy=run.policy, task=task, step=0, timed=lambda name: nullcontext(),
        config=RunConfig(**QUICK, max_completion_tokens=64),
    )  # fmt: skip

    def drawn(rows, seed):
        session.seed = seed
        prompts = [row["messages"] for row in rows for _ in range(8)]
        return StepReward(session).draw(prompts, None)

    first = drawn(rows, 1)
    assert first == drawn(others, 1)
    assert first["completion_ids"] != drawn(rows, 2)["completion_ids"]
    assert rows[0]["reference_gene"] not in run.policy.tokenizer.decode(first["prompt_ids"][0])


def test_gradients_of_several_passes_add_up_to_one_step(tmp_path, tiny):
    parts = train(RunConfig(**TINY | {"micro_batch": 2, "steps": 1}), tmp_path).log[0]
    assert json.loads((tmp_path / "plan.json").read_text())["accumulation"] == 4
    assert parts["reward_mean"] == tiny.log[0]["reward_mean"]
    assert parts["grad_norm"] == pytest.approx(tiny.log[0]["grad_norm"], rel=1e-3)


def test_sft_learns_the_completion_alone(mini):
    task = load_task("gene_ranking")
    row = task.rows("train")[0]
    config = RunConfig(method="sft", completion_template="<think></think>" + task.answer_template)
    example = sft_example(mini, task, row, config)
    learned = [i for i, label in zip(example["input_ids"], example["labels"]) if label != -100]
    completion = f'<think></think>{{"genes": ["{row["reference_gene"]}"]}}<|end|>'
    assert mini.tokenizer.decode(learned) == completion
    assert example["input_ids"][: -len(learned)] == mini.encode([row["messages"]])[0]


def test_an_sft_run_learns_its_completions(tmp_path):
    task = load_task("gene_ranking")
    completion = '<think>Common first.</think>{"genes": ["X"]}'
    rows = [row | {"completion": completion} for row in task.rows("train")[:32]]
    config = RunConfig(
        method="sft", task="gene_ranking", prompts_per_step=16, epochs=4, steps=99, eval_every=2,
        patience=0, eval_rows=20, keep_start=False, learning_rate=2e-2,
    )  # fmt: skip
    done = train(config, tmp_path, rows=rows, held_out=task.rows("validation"))
    assert len(done.log) == 8 and done.best["step"] in (2, 4, 6, 8)
    assert done.log[-1]["loss"] < 0.7 * done.log[0]["loss"]
    assert done.log[-1]["validation"]["patterns"]["common first"] > 0.6
    assert done.log[0]["reward_mean"] is None


def test_a_second_round_starts_from_the_first_ones_adapter(tmp_path, tiny):
    first = VALIDATED | {"init_adapter": str(tiny.out)}
    assert train(RunConfig(**first, seed=5), tmp_path / "2").start["mean"] == tiny.best["mean"]
    with pytest.raises(UserError, match="init_adapter: .*rank"):
        train(RunConfig(**first, lora_rank=8), tmp_path / "3")


def test_samples_say_where_they_come_from(tiny):
    samples = read_lines(tiny.out / "samples.jsonl")
    assert len(samples) == 16 and all(s["seconds"] > 0 < s["completion_tokens"] for s in samples)
    assert {s["step"]: s["seed"] for s in samples} == {1: 1, 2: 2}
    assert [s["index"] for s in samples[:8]] == [0, 1, 2, 3] * 2
    tokens = {s["row_id"]: s["prompt_tokens"] for s in samples}
    assert all(s["prompt_tokens"] == tokens[s["row_id"]] > 20 for s in samples)


def test_a_run_folder_moves_and_its_adapter_answers_in_plain_peft_too(run, tmp_path, monkeypatch):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    moved = shutil.copytree(run.out, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    model = AutoPeftModelForCausalLM.from_pretrained("elsewhere/adapter", dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained("elsewhere/adapter")
    policies = {"theirs": LocalPolicy(model.eval(), tokenizer, "theirs"), "ours": run.policy}
    policies |= {"moved": load_run(moved).policy, "base": load_policy("embedded:mini")}
    prompts = [row["messages"] for row in load_task("gene_ranking").rows("validation")[:8]]
    texts = {
        name: [s.output_text for group in policy.sample(prompts, 2) for s in group]
        for name, policy in policies.items()
    }
    assert texts["theirs"] == texts["moved"] == texts["ours"] != texts["base"]
    card = (moved / "adapter" / "README.md").read_text()
    assert str(Interval(*(run.best[k] for k in ("mean", "low", "high")))) in card
    assert "base_model: embedded:mini" in card and load_task("gene_ranking").grader.name in card


def test_a_run_keeps_its_threads_and_gives_them_back(tmp_path, monkeypatch):
    import torch

    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(session, "quickest_threads", lambda *of: (3, "3 threads"))
    seen, before = [], torch.get_num_threads()
    config = RunConfig(**TINY | {"steps": 1})
    train(config, tmp_path / "run", [lambda record: seen.append(torch.get_num_threads())])
    assert (seen, torch.get_num_threads()) == ([3], before)
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["threads"] == 3


def test_an_unset_limit_comes_from_the_model_and_is_said_once(tmp_path):
    model = shutil.copytree(embedded_model("mini"), tmp_path / "own")
    changes = {"steps": 1, "model": str(model), "max_completion_tokens": None}
    config = RunConfig(**TINY | changes)
    said = []
    train(config, tmp_path / "run", say=said.append)
    (note,) = (text for text in said if "max_completion_tokens" in text)
    limit = json.loads((tmp_path / "run" / "plan.json").read_text())["max_completion_tokens"]
    assert 16 <= limit <= 128 and note.startswith(f"max_completion_tokens {limit}: the p95")
    embedded = plan(config.replace(model="embedded:mini"))
    assert embedded.max_completion_tokens == 64 and "tokens 64" in embedded.reasons[-1]
    said.clear()
    train(config, tmp_path / "run", say=said.append)  # finished
    assert len(said) == 1


def test_the_report_says_what_the_log_says(tiny):
    report = json.loads((tiny.out / "report.json").read_text())
    start, kept = report["systems"]
    assert start["name"] == "before training" and kept["name"] == f"kept, step {tiny.best['step']}"
    assert kept["top1"] == {key: tiny.best[key] for key in ("mean", "low", "high")}
    (pair,) = report["paired"]
    difference = kept["top1"]["mean"] - start["top1"]["mean"]
    assert pair["difference"] == pytest.approx(difference, abs=1e-3) and pair["metric"] == "top1"
    assert report["training"]["steps"] == 2 and report["n_cases"] == kept["n"] == 4
    assert report["training"]["answer_groups_shared_with_eval"] == 0 and report["seed"] == 0
    assert set(report["sha256"]) == {"adapter", "training rows", "held-out rows", "grader", "task"}
    assert f"| {kept['name']} | {kept['top1']['mean']:.3f}" in (tiny.out / "report.md").read_text()


def test_a_finished_run_is_loaded_and_nothing_is_written(tiny):
    def files():
        return {p: p.stat().st_mtime_ns for p in tiny.out.rglob("*") if p.is_file()}

    before, observed = files(), []
    config = RunConfig(**VALIDATED | {"save_every": 9, "gate": "on"})  # fields that are free
    assert train(config, tiny.out, [observed.append]).log == tiny.log
    assert observed == [] and files() == before


def test_another_config_is_refused_by_its_fields(tiny):
    for change, named in [
        ({"learning_rate": 0.5, "steps": 3}, "steps: 2 there, 3 here; learning_rate: None there"),
        ({"grader": CONSTANT}, "grader"),
    ]:
        with pytest.raises(UserError, match=f"another run.*{named}"):
            train(RunConfig(**VALIDATED | change), tiny.out)


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    with alone_in(tmp_path), pytest.raises(UserError, match="another process"):
        train(RunConfig(**TINY), tmp_path)
    assert [*tmp_path.iterdir()] == []  # the lock went with its process, and nothing was begun


def test_rows_are_compared_by_content(tmp_path):
    task = load_task("gene_ranking")
    rows = task.rows("train")[:6]
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]  # the same rows under two names
    for path in paths:
        write_rows(path, rows)
    fields = TINY | {"steps": 1, "task": None, "grader": task.grader_spec}
    config = RunConfig(**fields, train_file=paths[0])
    train(config, tmp_path / "run")
    assert len(train(config.replace(train_file=paths[1]), tmp_path / "run").log) == 1
    other = config.replace(train_file=task.folder / "train.jsonl")
    with pytest.raises(UserError, match="train_file.*training rows: changed"):
        train(other, tmp_path / "run")
    assert train(other, tmp_path / "run", existing="replace").training["examples"] == 128
    with pytest.raises(UserError, match="expected resume or replace"):
        train(other, tmp_path / "run", existing="keep")


@pytest.mark.parametrize("name", ["log.jsonl", "config.json"])  # the second may be a model's
def test_files_that_no_run_wrote_are_kept(tmp_path, name):
    (tmp_path / name).write_text('{"mine": 1}')
    with pytest.raises(UserError, match=str(tmp_path)):
        open_folder(tmp_path, RunConfig(**TINY), {}, "replace")
    assert (tmp_path / name).read_text() == '{"mine": 1}'


@pytest.mark.parametrize(
    ("lacking", "group_by", "named"),
    [
        ("an answer", None, "reference_gene"),
        ("a group of its own", "reference_gene", "reference_gene"),
        ("a prompt of its own", None, "1 of 4 held-out rows have a prompt"),
        ("the column of the groups", "author", "no row has 'author', expected one of messages"),
    ],
)
def test_held_out_rows_without_what_they_need_stop_the_run(tmp_path, lacking, group_by, named):
    task = replace(load_task("gene_ranking"), group_by=group_by)
    rows, held_out = task.rows("train")[:4], task.rows("validation")[:4]
    if lacking == "an answer":
        held_out[2].pop("reference_gene")
    else:
        held_out[2] = rows[0]
    with pytest.raises(UserError, match=named):
        train(RunConfig(**VALIDATED), tmp_path / "run", task=task, rows=rows, held_out=held_out)
    assert not (log := tmp_path / "run" / "log.jsonl").exists() or read_lines(log) == []


def test_authors_are_a_group_although_they_are_few(tmp_path):
    rows = [{"prompt": f"Note {n}?", "mood": "joy", "author": f"a{n % 4}"} for n in range(24)]
    config = RunConfig(grader=CONSTANT | {"reference": "{{item.mood}}"}, group_by="author")
    with pytest.raises(UserError, match="4 values of author"):
        train(config, tmp_path, rows=rows[:16], held_out=rows[16:])


def test_an_adapter_as_the_model_is_refused(tiny):
    with pytest.raises(UserError, match=f'"init_adapter" to {tiny.out}'):
        plan(RunConfig(**TINY | {"model": str(tiny.out)}))


def test_the_gate_refuses_a_constant_reward_and_is_asked_once(tmp_path):
    template, seen = load_task("gene_ranking").answer_template, []

    class Watcher:
        def gate(self, signal):
            seen.append(signal.verdict)

        def __call__(self, record):
            seen.append(record["step"])

    fields = TINY | {"steps": 1, "gate": "on", "grader": CONSTANT, "answer_template": template}
    (tmp_path / "run.json").write_text(json.dumps(fields))
    out = tmp_path / "run"
    with pytest.raises(GateSaysFix) as stop:
        train(RunConfig(**fields), out, [Watcher()])
    command = ["train", str(tmp_path / "run.json"), "--out", str(out), "--json"]
    again = CliRunner().invoke(app, command)  # the same question has the same answer
    assert again.exception.exit_code == 3
    assert json.loads(again.stdout)["gate"]["findings"] == stop.value.verdict["findings"] != []
    assert seen == ["fix"] and not (out / "log.jsonl").read_text()
    train(RunConfig(**fields), out, [Watcher()], force=True)
    assert seen == ["fix", 1] and json.loads((out / "gate.json").read_text())["forced"]


def test_a_judge_that_nobody_named_is_no_fault_of_the_gate(tmp_path, monkeypatch):
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    asked = [{"role": "user", "content": "Is {{sample.output_text}} good?"}]
    judge = {"type": "score_model", "name": "j", "model": "m", "input": asked}
    with pytest.raises(UserError, match="^judge: no OPENAI_BASE_URL"):
        train(RunConfig(**TINY | {"steps": 1, "gate": "on", "grader": judge}), tmp_path / "run")


def test_an_interrupt_saves_the_step_and_ends_with_130(tmp_path, monkeypatch):
    def press(self, record):
        os.kill(os.getpid(), pressed)

    fields, observed = TINY | {"save_every": 50, "steps": 3}, []
    (tmp_path / "run.json").write_text(json.dumps(fields))
    command = ["train", str(tmp_path / "run.json"), "--out", str(tmp_path / "r"), "--json"]
    for step, pressed in enumerate((signal.SIGINT, signal.SIGTERM), 1):
        handler = signal.getsignal(pressed)
        with monkeypatch.context() as patch:
            patch.setattr(Lines, "__call__", press)
            result = CliRunner().invoke(app, command)
        assert result.exit_code == 130
        assert f"after step {step}" in json.loads(result.stdout)["interrupted"]
        assert signal.getsignal(pressed) is handler
    done = train(RunConfig(**fields), tmp_path / "r", [observed.append])
    assert observed == done.log[2:] and [r["step"] for r in done.log] == [1, 2, 3]


def test_one_broken_run_does_not_hide_the_others(tmp_path, tiny):
    for name in ("a", "bad 1", "bad 2", "z"):
        shutil.copytree(tiny.out, tmp_path / name)
    (tmp_path / "a" / "training.json").unlink()
    (tmp_path / "bad 1" / "log.jsonl").write_text('{"step": 1, "validation": 3}\n')
    (tmp_path / "bad 2" / "training.json").write_text("[1]")
    (tmp_path / "z" / "config.json").write_text('{"seed": 4}')
    with open(tmp_path / "z" / "log.jsonl", "a") as file:
        file.write('{"step": 3, "patterns": {"')  # killed in its third line
    runs = list_runs(tmp_path)
    assert [(r["name"], r["state"], r["steps"]) for r in runs["runs"]] == [
        ("a", "unfinished", 2), ("z", "finished", 2)
    ]  # fmt: skip
    assert "seed" in runs["differing"] and len(runs["unreadable"]) == 2
    first = {"run": "a", "steps": "2", "ended by": "unfinished", "alarms": "none", "seed": "0"}
    assert first.items() <= runs_table(runs)[0].items()
    result = CliRunner().invoke(app, ["runs", str(tmp_path)])
    assert result.exit_code == 0 and "left out: " in result.output
    assert "…" not in result.stdout and "\na\n  held out: top1" in f"\n{result.stdout}"
    assert len(repr(tiny)) < 1_000 and "Embedding" not in repr(tiny)
