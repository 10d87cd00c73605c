"""A real run, small: it learns from its reward and from nothing else, and what it saves is it."""

import json
import subprocess
import sys

import pytest

from rftkit.files import UserError
from rftkit.graders.rewards import GraderFailure
from rftkit.policy import load_policy
from rftkit.records import SamplingConfig
from rftkit.task import load_task, task_from_json
from rftkit.training.config import RunConfig
from rftkit.training.heldout import HeldOut
from rftkit.training.run import train
from rftkit.training.trainer import StepReward, rollouts, sft_example

# Quicker than the demo's settings, and rougher: enough to see the direction in half a minute.
QUICK = dict(
    model="embedded:mini",
    task="gene_ranking",
    steps=24,
    learning_rate=3e-3,
    beta=0.01,
    eval_every=6,
    patience=0,
    eval_rows=120,
    eval_samples=2,
    gate="off",
)
LOG_FIELDS = {
    "step", "seconds", "reward_mean", "reward_std", "sub_rewards", "dead_groups",
    "completion_tokens", "truncated", "entropy", "kl", "grad_norm", "loss", "patterns",
}  # fmt: skip


def shuffled(rows):
    """The same prompts with each other's answers: a reward that has nothing to do with the case."""
    answers = [row["reference_gene"] for row in rows]
    return [row | {"reference_gene": answers[(i + 7) % len(answers)]} for i, row in enumerate(rows)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    heard = []
    done = train(RunConfig(**QUICK), tmp_path_factory.mktemp("run"), [heard.append])
    assert heard == done.log
    return done


def test_rft_raises_the_held_out_score(run):
    assert run.best["mean"] >= run.start["mean"] + 0.15
    before, after = run.start["patterns"], run.best["patterns"]
    assert after["diagnose first"] > 2 * before["diagnose first"]


def test_a_shuffled_reward_teaches_nothing(tmp_path):
    task = load_task("gene_ranking")
    done = train(
        RunConfig(**QUICK), tmp_path, [], task, shuffled(task.rows("train")),
        task.rows("validation"),
    )  # fmt: skip
    assert done.best["mean"] < done.start["mean"] + 0.1


def test_two_steps_draw_the_same_answers(tmp_path):
    rows = load_task("gene_ranking").rows("train")[:1]
    config = dict(steps=2, prompts_per_step=1, learning_rate=1e-12, eval_every=0)
    done = train(RunConfig(**QUICK | config), tmp_path, rows=rows, held_out=[])
    drawn = {1: [], 2: []}
    for line in open(done.out / "samples.jsonl"):
        record = json.loads(line)
        drawn[record["step"]].append(record["reasoning"] + record["output_text"])
    assert len(drawn[1]) == len(drawn[2]) == 8 and drawn[1] != drawn[2]


def test_a_look_changes_what_is_drawn_next(tmp_path):
    import torch

    class Dice:
        """A policy that draws from torch's own random numbers, as Hugging Face's generate does."""

        model = torch.nn.Linear(1, 1)

        def sample(self, prompts, n, settings):
            return torch.rand(3).tolist()

    task = load_task("gene_ranking")
    watch = HeldOut(task, task.rows("validation"), RunConfig(**QUICK), tmp_path)
    before = torch.random.get_rng_state()
    assert len(watch.sample(Dice())) == 3
    assert torch.equal(torch.random.get_rng_state(), before)
    assert Dice.model.training, "the model is left in evaluation"


def test_a_look_that_a_kill_undid_stays_the_best(tmp_path):
    task = load_task("gene_ranking")
    watch = HeldOut(task, task.rows("validation"), RunConfig(**QUICK), tmp_path)
    remembered = watch.place(6)
    remembered.mkdir(parents=True)
    (remembered / "adapter_model.safetensors").write_text("of step 6")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_model.safetensors").write_text("of step 12")
    watch.best = {"step": 6, "mean": 0.3}
    watch.restore_best()
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_text() == "of step 6"


def test_log_has_one_whole_object_a_step(run):
    lines = [json.loads(line) for line in (run.out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 25))
    assert all(LOG_FIELDS <= line.keys() for line in lines)
    assert [line["step"] for line in lines if "validation" in line] == [6, 12, 18, 24]
    assert lines == run.log
    assert all(0 <= line["dead_groups"] <= 1 and line["truncated"] < 0.2 for line in lines)
    assert set(lines[0]["sub_rewards"]) == set(load_task("gene_ranking").grader.variables)
    events = [json.loads(line) for line in (run.out / "events.jsonl").read_text().splitlines()]
    assert "full validation mean reward=" in events[5]["message"]
    samples = (run.out / "samples.jsonl").read_text().splitlines()
    assert len(samples) == 24 * 64 and json.loads(samples[-1])["step"] == 24


def test_adapter_reloaded_in_a_fresh_process_gives_the_same_answers(run):
    prompts = [row["messages"] for row in load_task("gene_ranking").rows("validation")[:10]]
    greedy = SamplingConfig(temperature=0, max_new_tokens=48)
    here = [g[0].output_text for g in run.policy.sample(prompts, 1, greedy)]
    base = [g[0].output_text for g in load_policy("embedded:mini").sample(prompts, 1, greedy)]
    assert here != base
    code = (
        "import json, sys\n"
        "from rftkit.data import SamplingConfig\n"
        "from rftkit.policy import load_policy\n"
        "out = load_policy(sys.argv[1]).sample(json.loads(sys.argv[2]), 1,\n"
        "    SamplingConfig(temperature=0, max_new_tokens=48))\n"
        "print('RESULT', json.dumps([g[0].output_text for g in out]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run.out), json.dumps(prompts)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert "RESULT" in done.stdout, done.stderr[-1500:]
    assert json.loads(done.stdout.split("RESULT ")[1]) == here


def test_adapter_names_the_base_and_not_this_machine(run):
    config = json.loads((run.out / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "embedded:mini"


def test_the_answer_never_reaches_the_model(run):
    """What the sampler reads is the messages alone: a changed answer changes no rollout."""
    rows = load_task("gene_ranking").rows("train")[:3]
    seen = []

    class Trainer:
        class state:
            global_step = 0

    draw = rollouts(run.policy, RunConfig(**QUICK))
    for changed in (rows, shuffled(rows)):
        prompts = [row["messages"] for row in changed for _ in range(8)]
        out = draw(prompts, Trainer)
        seen.append((out["prompt_ids"], out["completion_ids"]))
    assert seen[0] == seen[1]
    text = run.policy.tokenizer.decode(seen[0][0][0])
    assert rows[0]["reference_gene"] not in text


def test_reward_is_the_graders_formula():
    task = load_task("gene_ranking")
    reward = StepReward(task)
    item = json.dumps({"reference_gene": "B"})
    texts = [
        '<think>x</think>{"genes": ["B", "A"]}',
        '<think>x</think>{"genes": ["A", "B"]}',
        '<think>x</think>{"genes": ["A", "A", "A", "A", "B"]}',
        '<think>x</think>{"genes": ["A"]}',
        '<think>x</think>{"genes": ["A"',
        '<think>{"genes": ["B"]}',
    ]
    assert reward([""] * 6, texts, [item] * 6) == pytest.approx([1.0, 0.73, 0.115, 0.1, 0.0, 0.0])


def test_training_on_a_held_out_group_is_refused(tmp_path):
    task = load_task("gene_ranking")
    rows = task.rows("train")[:4]
    with pytest.raises(ValueError, match="stand in both training and held-out rows"):
        train(RunConfig(**QUICK), tmp_path, [], task, rows, rows[:1])


def test_impossible_values_are_refused_all_at_once():
    config = RunConfig(method="ppo", answers_per_prompt=1, learning_rate=-1, seed=True, task=None)
    found = config.problems()
    named = " ".join(found)
    for name in ("method", "answers_per_prompt", "learning_rate", "seed", "train_file", "grader"):
        assert name in named
    with pytest.raises(UserError, match="one answer has nothing to be compared with"):
        config.check()
    with pytest.raises(UserError, match="unknown lerning_rate"):
        RunConfig.from_json({"lerning_rate": 1})
    assert RunConfig.from_json(RunConfig(**QUICK).to_json()) == RunConfig(**QUICK)


def test_sft_learns_completions_alone():
    task = load_task("gene_ranking")
    policy = load_policy("embedded:mini")
    row = task.rows("train")[0]
    config = RunConfig(method="sft", completion_template="<think></think>" + task.answer_template)
    example = sft_example(policy, task, row, config)
    learned = [i for i, label in zip(example["input_ids"], example["labels"]) if label != -100]
    said = policy.tokenizer.decode(learned)
    assert said == f'<think></think>{{"genes": ["{row["reference_gene"]}"]}}<|end|>'
    read = policy.tokenizer.decode(example["input_ids"][: -len(learned)])
    assert read == policy.render(row["messages"])


def test_sft_run_keeps_its_best_epoch(tmp_path):
    task = load_task("gene_ranking")
    plan = "<think>Common first.</think>"
    rows = [r | {"completion": plan + '{"genes": ["X"]}'} for r in task.rows("train")[:32]]
    config = RunConfig(
        method="sft", task="gene_ranking", prompts_per_step=16, epochs=4, steps=99, eval_every=2,
        patience=0, eval_rows=20, keep_start=False, learning_rate=2e-2,
    )  # fmt: skip
    done = train(config, tmp_path, [], task, rows, task.rows("validation"))
    assert len(done.log) == 8 and done.best["step"] in (2, 4, 6, 8)
    assert done.log[-1]["loss"] < 0.7 * done.log[0]["loss"]
    assert done.log[-1]["validation"]["patterns"]["common first"] > 0.6
    assert done.log[0]["reward_mean"] is None


def test_config_from_files_makes_its_own_task(tmp_path):
    task = load_task("gene_ranking")
    config = RunConfig(
        task=None, train_file=str(task.folder / "train.jsonl"), grader=task.grader_spec,
        answer_template=task.answer_template, steps=1, prompts_per_step=2, answers_per_prompt=2,
        eval_every=0, gate="off",
    )  # fmt: skip
    done = train(config, tmp_path)
    assert len(done.log) == 1 and done.best == {}
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def test_engine_unsloth_trains_too(tmp_path):
    code = (
        "import sys\n"
        "from rftkit.policy import choose_engine\n"
        "choose_engine('unsloth', 'cpu')\n"
        "import unsloth\n"
        "from rftkit.training import RunConfig, train\n"
        "c = RunConfig(task='gene_ranking', engine='unsloth', steps=2, prompts_per_step=2,\n"
        "    answers_per_prompt=4, eval_every=0, gate='off')\n"
        "r = train(c, sys.argv[1])\n"
        "print('RESULT', r.policy.engine, len(r.log), r.log[-1]['grad_norm'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path
    )
    assert "RESULT unsloth 2" in done.stdout, (done.stdout[-500:], done.stderr[-1500:])
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def test_task_without_groups_clusters_rows():
    record = load_task("gene_ranking").to_json()
    record.pop("group_by")
    assert task_from_json(record).group_by is None


def test_a_field_that_is_missing_stops_before_step_1(tmp_path):
    task = load_task("gene_ranking")
    rows = [dict(row) for row in task.rows("train")[:4]]
    rows[2].pop("reference_gene")
    task.group_by = None
    with pytest.raises(UserError, match="reference_gene"):
        train(RunConfig(**QUICK | {"eval_every": 0}), tmp_path, [], task, rows, [])
    assert (tmp_path / "log.jsonl").read_text() == ""


def test_a_grader_that_fails_stops_the_run_instead_of_teaching_zeros():
    record = load_task("gene_ranking").to_json()
    record["grader"] = dict(record["grader"], calculate_output="1 / (first - first)")
    reward = StepReward(task_from_json(record))
    texts = ['<think>x</think>{"genes": ["A"]}'] * 8
    with pytest.raises(GraderFailure, match="8 of 8"):
        reward([""] * 8, texts, [json.dumps({"reference_gene": "A"})] * 8)
