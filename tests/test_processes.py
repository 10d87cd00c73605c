"""Several processes train as one does: the same completions, one log, one validation; one that is
killed ends them all. Two processes on the CPU (gloo); GPUs were not at hand."""

import re
from collections import Counter

import pytest
from test_training import TINY
from test_training_resume import driven, without_times

from rftkit import RunConfig, SamplingConfig, UserError, load_policy, load_task, plan, train
from rftkit.decoding import decode
from rftkit.loading import choose_engine
from rftkit.logs import read_lines
from rftkit.rows import write_rows

EIGHT = TINY | {"steps": 4, "eval_every": 2, "eval_rows": 9, "learning_rate": 3e-3}
TWO = {"processes": 2}


def ran(folder, *runs):
    """What the driver prints for each (name, changes of the config, sessions)."""
    rows = load_task("gene_ranking").rows("train")[:8]
    write_rows(folder / "rows.jsonl", rows)
    common = EIGHT | {"train_file": str(folder / "rows.jsonl")}
    given = [[common | changes, str(folder / name), wounds] for name, changes, wounds in runs]
    return [f"{text}ENDS {ends}" for text, ends in driven(folder, given)]


def close(one, other):
    numbers = ("reward_mean", "kl", "grad_norm", "loss")
    pairs = [(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in numbers]
    return all(a == b or a == pytest.approx(b, rel=1e-3, abs=1e-4) for a, b in pairs)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(their folder, what each printed)"""
    folder, sft = tmp_path_factory.mktemp("runs"), {"method": "sft", "steps": 2}
    killed = TWO | {"lines": 2, "victim": 1}
    names = {
        "one": ({}, []),
        "two": ({}, [TWO]),
        "sft one": (sft, []),
        "sft two": (sft, [TWO]),
        "second killed": ({}, [killed, TWO]),
        "first killed": ({}, [killed | {"victim": 0}]),
    }
    texts = ran(folder, *((name, *run) for name, run in names.items()))
    return folder, dict(zip(names, texts))


def test_two_processes_train_as_one_does(runs):
    folder, texts = runs
    one, two = (read_lines(folder / name / "log.jsonl") for name in ("one", "two"))
    assert [record["step"] for record in two] == [1, 2, 3, 4] and close(one, two)
    drawn, shared = (read_lines(folder / name / "samples.jsonl") for name in ("one", "two"))
    assert len(shared) == 32 and set(Counter(s["row_id"] for s in shared).values()) == {4}
    assert without_times(drawn[:8]) == without_times(shared[:8])  # of step 1
    pairs = [(a["validation"], b["validation"]) for a, b in zip(one, two) if "validation" in a]
    assert len(pairs) == 2 and all(a["low"] <= b["mean"] <= a["high"] for a, b in pairs)
    assert [p.name for p in (folder / "two").glob("checkpoints/step-*")] == ["step-000004"]
    assert texts["two"].count("step 4/4") == texts["one"].count("step 4/4") == 1


def test_sft_in_two_processes_learns_what_one_does(runs):
    logs = [read_lines(runs[0] / name / "log.jsonl") for name in ("sft one", "sft two")]
    assert [record["step"] for record in logs[1]] == [1, 2] and close(*logs)


@pytest.mark.parametrize(("name", "ends"), [("second killed", "[-9, 0, 0]"),
                                            ("first killed", "[-9, 0]")])  # fmt: skip
def test_a_killed_process_ends_the_run_which_resumes_with_as_many_or_one(runs, name, ends):
    folder, texts = runs
    assert texts[name].endswith(ends)
    told = re.findall("(another of its processes has ended); step-00000[123] stands", texts[name])
    assert len(told) == (name == "second killed")  # the launcher tells of the first
    assert "resumes from step" in texts[name]
    whole, resumed = (read_lines(folder / n / "log.jsonl") for n in ("two", name))
    assert close(whole, resumed)
    counts = Counter(s["row_id"] for s in read_lines(folder / name / "samples.jsonl"))
    assert len(counts) == 8 and set(counts.values()) == {4}


def launched_as(monkeypatch, number, count):
    for name, value in {"LOCAL_RANK": number, "RANK": number, "WORLD_SIZE": count}.items():
        monkeypatch.setenv(name, str(value))


def test_what_several_processes_cannot_share_is_refused(monkeypatch, tmp_path):
    launched_as(monkeypatch, 0, 3)
    with pytest.raises(UserError, match="prompts_per_step: 2, .* multiple of the 3 processes"):
        train(RunConfig(**TINY), tmp_path)
    with pytest.raises(UserError, match="unsloth trains in one process"):
        choose_engine("unsloth", "cuda")
    assert choose_engine("auto", "cuda")[0] == "transformers"
    launched_as(monkeypatch, 0, 2)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="FSDP"):
        train(RunConfig(**TINY), tmp_path)


def test_the_plan_divides_a_step(monkeypatch):
    whole = plan(RunConfig(**TINY | {"micro_batch": 8}))
    launched_as(monkeypatch, 0, 2)
    half = plan(RunConfig(**TINY | {"micro_batch": 8}))
    assert (whole.micro_batch, whole.accumulation) == (8, 1)
    assert (half.micro_batch, half.batch, half.accumulation) == (4, 8, 2)  # passes of both


def test_a_vllm_server_draws_the_completions(monkeypatch, tmp_path):
    """A stand-in for TRL's client: vLLM was not at hand."""
    sent, policy = [], load_policy("embedded:mini")

    class Client:
        def __init__(self, **settings):
            self.settings = settings

        def sync_weights(self):
            sent.append(self.settings["server_base_url"])

        def generate(self, prompts, images, num_generations):
            assert prompts[0] == prompts[num_generations - 1] != prompts[num_generations]
            config = SamplingConfig(max_new_tokens=40, seed=len(sent))
            numbers = range(len(prompts))
            drawn = decode(policy.model, policy.tokenizer, prompts, 1, config, numbers)
            ids = [tokens for tokens, _ in drawn]
            return prompts, ids, [[[-1.0] for _ in tokens] for tokens in ids], None

    config = RunConfig(**TINY | {"vllm_server": "http://localhost:8000"})
    with pytest.raises(UserError, match="vLLM is not installed"):
        train(config, tmp_path)
    monkeypatch.setattr("rftkit.training.run.find_spec", lambda name: True)
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", Client)
    done = train(config, tmp_path)
    assert sent == ["http://localhost:8000"] * 2
    assert len(done.log) == 2 and all(record["grad_norm"] for record in done.log)
    samples = read_lines(tmp_path / "samples.jsonl")
    assert len(samples) == 16 and all(s["completion_tokens"] for s in samples)
