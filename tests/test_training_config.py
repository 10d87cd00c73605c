"""A RunConfig names all its faults at once; the plan is what follows from a sound one."""

import json
import shutil
from types import SimpleNamespace

import pytest
from project_files import ROOT
from test_training import CONSTANT
from typer.testing import CliRunner

from rftkit import RunConfig, UserError, load_policy, load_task
from rftkit import plan as plan_of
from rftkit.cli import app
from rftkit.files import embedded_model
from rftkit.rows import write_rows
from rftkit.training.config import OURS, config_rows, config_task, read_run_config
from rftkit.training.plan import MOST, Measured, make_plan, run_order

TASK = {"task": "gene_ranking"}


def write(place, **record):
    place.write_text(json.dumps(record))
    return place


def test_all_faults_of_a_config_are_named_at_once(tmp_path):
    wrong = {
        "method": "ppo", "answers_per_prompt": 1, "learning_rate": 10**400, "seed": 2**32,
        "task": "no such task", "lerning_rate": 3, "grader": "nofile.json", "steps": "5",
        "prompts_per_step": 2.5, "beta": float("nan"), "keep_start": 1, "load_in_4bit": 1,
        "model": "", "train_file": "nowhere.jsonl", "engine": "vllm", "temperature": 0,
    }  # fmt: skip
    with pytest.raises(UserError) as refused:
        read_run_config(write(tmp_path / "c.json", **wrong))
    faults = [line.removeprefix("RunConfig: ") for line in str(refused.value).splitlines()]
    assert sorted(fault.split(": ")[0] for fault in faults) == sorted(wrong)
    assert "lerning_rate: unknown field, expected learning_rate" in faults
    with pytest.raises(UserError, match="lr: .* learning_rate\n.*generations: .* answers_per_pro"):
        RunConfig(lr=1e-3, num_generations=4)
    assert {*OURS.values()} <= RunConfig.model_fields.keys() - OURS.keys()
    with pytest.raises(UserError, match="RunConfig: micro_batch: 7"):
        RunConfig(**TASK).replace(micro_batch=7)


def test_a_path_is_looked_for_beside_the_config_first(tmp_path, monkeypatch):
    for folder, count in (("d", 9), ("here", 3)):
        rows = load_task("gene_ranking").rows("train")[:count]
        write_rows(tmp_path / folder / "rows.jsonl", rows)
    shutil.copytree(embedded_model("mini"), tmp_path / "d" / "base")
    write(tmp_path / "d" / "grader.json", **CONSTANT)
    write(tmp_path / "d" / "c.json", train_file="rows.jsonl", grader="grader.json", model="base")
    monkeypatch.chdir(tmp_path / "here")
    config = read_run_config("../d/c.json")
    assert plan_of(config).rows == 9 and config.grader == CONSTANT
    assert (tmp_path / "here" / config.model / "config.json").exists()
    assert read_run_config("../d/c.json", model="embedded:large").model == "embedded:large"


def test_fields_of_the_config_stand_in_for_the_tasks(tmp_path):
    task = load_task("gene_ranking")
    few = tmp_path / "few.jsonl"
    write_rows(few, task.rows("validation")[:3])
    config = RunConfig(**TASK, grader=CONSTANT, patterns={"why": "because"}, validation_file=few)
    assert RunConfig(**json.loads(json.dumps(config.to_json()))) == config
    own = config_task(config)
    assert own.grader.name == "constant" and own.patterns == {"why": "because"}
    assert own.answer_template == task.answer_template and own.group_by == task.group_by
    rows, held_out = config_rows(config, own)
    assert rows == task.rows("train") and held_out == task.rows("validation")[:3]
    alone = config_task(RunConfig(train_file=few, grader=CONSTANT))
    assert (alone.name, alone.headline) == ("few", "grade")
    with pytest.raises(UserError, match="no grader"):
        config_task(RunConfig(train_file=few))


def plan(rows=10, held_out=0, width=64, usable=1e12, **changes):
    """Of a model with that width, one answer of which takes 4 MB."""
    model = Measured(SimpleNamespace(hidden_size=width), prompt_tokens=100)
    model.memory = lambda tokens: (4e6, usable)
    return make_plan(RunConfig(**TASK | changes), [{}] * rows, [{}] * held_out, model)


def test_the_micro_batch_is_the_largest_divisor_that_fits(monkeypatch):
    whole, tight, none = (plan(usable=usable) for usable in (1e12, 4e7, 1.0))
    assert (whole.micro_batch, whole.accumulation, whole.validations) == (64, 1, 0)
    assert 1 < tight.micro_batch < 64 and tight.micro_batch * tight.accumulation == 64
    assert tight.passes == 56.0 and "8 passes" in tight.reasons[0]
    assert none.micro_batch == 1 and "may not fit" in none.reasons[0]
    assert plan(micro_batch=16).micro_batch == 16
    model = load_policy("embedded:mini").model.config
    short, long = (Measured(model, n).memory(64)[0] for n in (35, 935))
    assert 0 < 5 * short < long  # by the tokens: SDPA keeps no scores
    machine = SimpleNamespace(available=1e9)
    monkeypatch.setattr("psutil.virtual_memory", lambda: machine)
    free, less = (Measured(model, 35, loaded=loaded).memory(64)[1] for loaded in (True, False))
    assert less < free  # the weights still have to come
    machine.available = 1e12
    assert Measured(model, 35).memory(64)[1] == MOST["cpu"]


@pytest.mark.parametrize("prompt", [256, 300])
def test_a_prompt_that_fills_the_context_is_refused_and_one_token_less_is_not(prompt):
    model = Measured(SimpleNamespace(hidden_size=64), prompt_tokens=prompt, context=256)
    model.memory = lambda tokens: (4e6, 1e12)
    config = RunConfig(**TASK, model="someone/model", max_completion_tokens=8)
    with pytest.raises(UserError, match=f"{prompt} tokens, the model was made for 256"):
        make_plan(config, [{}], [], model)
    assert make_plan(config.replace(model="embedded:mini"), [{}], [], model).steps
    model.prompt_tokens = 255
    assert "to 1 or less" in make_plan(config, [{}], [], model).reasons[-1]


def test_the_learning_rate_follows_the_width():
    wide, wide_sft = plan(width=1024), plan(width=1024, method="sft")
    rates = [wide, wide_sft, plan(method="sft"), plan()]
    assert [p.learning_rate for p in rates] == sorted({p.learning_rate for p in rates})
    unknown = make_plan(RunConfig(**TASK, model="someone/model"), [{}], [])
    assert unknown.learning_rate == rates[0].learning_rate
    assert plan(learning_rate=0.5).learning_rate == 0.5


def test_epochs_end_an_sft_run_and_validations_are_counted():
    sft = dict(method="sft", prompts_per_step=16, epochs=3, steps=1000, rows=40)
    whole = plan(held_out=9, **sft)
    assert (whole.steps, whole.batch, whole.completions) == (8, 16, 0)  # 3 * 40 / 16 = 7.5
    assert (whole.validations, whole.held_out_rows, whole.validation_answers) == (1 + 2, 9, 18)
    assert plan(**sft).validations == 0 and plan(held_out=9, eval_rows=5, **sft).held_out_rows == 5


def test_every_row_is_seen_equally_often_in_an_order_fixed_by_the_seed():
    order = run_order(rows=10, steps=15, prompts_per_step=4, seed=3)
    assert sorted(order) == sorted(list(range(10)) * 6)
    assert sorted(order[:10]) == list(range(10)) and order[:10] != order[10:20]
    assert order == run_order(10, 15, 4, 3) != run_order(10, 15, 4, 4)
    assert order[:20] == run_order(10, 5, 4, 3)  # a shorter run meets the same rows
    assert len(run_order(3, 2, 8, 0)) == 16  # fewer rows than prompts a step


def test_a_dry_run_prints_the_plan_and_trains_nothing(tmp_path):
    file = write(tmp_path / "c.json", **TASK, prompts_per_step=6, answers_per_prompt=5, steps=2)
    command = ["train", str(file), "--out", str(tmp_path / "run"), "--dry-run"]
    plan = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert plan["batch"] == plan["generation_batch"] == 30 and plan["completions"] == 60
    assert plan["rows"] == len(load_task("gene_ranking").rows("train")) and plan["validations"] == 2
    assert "30 completions" in CliRunner().invoke(app, command).stdout
    assert not (tmp_path / "run").exists()
    reasons = plan_of(RunConfig(**TASK, max_completion_tokens=3000)).reasons
    assert "set max_completion_tokens to" in reasons[-1]  # 3000 is more than it was made for


def test_a_dry_run_finds_what_would_stop_the_run(tmp_path):
    wrong = [("init_adapter", str(tmp_path)), ("answer_template", "{{item."), ("grader", {})]
    for name, value in [*wrong, ("answer_template", '["{{item.nothing}}"]')]:
        with pytest.raises(UserError):
            plan_of(RunConfig(**TASK | {name: value}))


@pytest.mark.parametrize("task", ["gene_candidates", "extraction"])
@pytest.mark.parametrize("card", ["t4_colab", "l4_24gb", "h100_80gb"])
def test_the_configs_for_gpus_fit_their_cards(task, card):
    config = read_run_config(f"{task}/{card}")
    assert config.task and config.engine == "unsloth" and config.gate == "on"
    chosen = plan_of(config, gpu=card.partition("_")[0])
    assert chosen.fits and chosen.prompts == "estimated"  # by letters: no tokenizer here


def test_the_config_for_smollm2_is_that_of_the_recorded_run():
    recorded = json.loads((ROOT / "datasets/recorded_runs/extraction.json").read_text("utf-8"))
    assert read_run_config("extraction/smollm2") == RunConfig(**recorded["settings"]["RFT"])
