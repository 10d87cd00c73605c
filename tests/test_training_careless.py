"""Careless use of `rftkit train`: nothing is lost, and what is wrong is said in a sentence."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from project_files import ROOT
from typer.testing import CliRunner

from rftkit import cli
from rftkit.cli import app
from rftkit.files import UserError, embedded_model
from rftkit.task import load_task
from rftkit.training.config import RunConfig
from rftkit.training.run import plan_of, read_run_config, train
from rftkit.training.store import open_folder, read_lines

TINY = dict(
    task="gene_ranking", steps=2, prompts_per_step=2, answers_per_prompt=4, eval_every=0,
    max_completion_tokens=40, gate="off", save_every=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("careless") / "run"
    train(RunConfig(**TINY), out)
    return out


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


# --- what stands in the folder -------------------------------------------------------------------


@pytest.mark.parametrize(
    "files",
    [
        {"adapter/mine.txt": "mine", "report.md": "mine"},
        {"report.json": "{}", "samples.jsonl": "{}\n"},  # of `rftkit evaluate`
        {"config.json": '{"model_type": "llama"}', "adapter/mine.txt": "mine"},  # a model's
        {"log.jsonl": '{"step": 1}\n', "config.json": "torn"},
    ],
)
@pytest.mark.parametrize("existing", ["resume", "replace"])
def test_files_that_no_run_wrote_are_removed(tmp_path, files, existing):
    for name, text in files.items():
        place = tmp_path / name
        place.parent.mkdir(exist_ok=True)
        place.write_text(text)
    with pytest.raises(UserError, match="which a run would overwrite") as refused:
        open_folder(tmp_path, RunConfig(**TINY), {}, existing)
    assert str(tmp_path) in str(refused.value)
    assert {n: (tmp_path / n).read_text() for n in files} == files


def test_other_files_in_the_folder_forbid_a_run(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert open_folder(tmp_path, RunConfig(**TINY), {}, "resume") == "new"
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_torn_summary_is_a_dead_end(run):
    for torn in ("", "[]", "{}", '{"config": {'):
        (run / "training.json").write_text(torn)
        again = train(RunConfig(**TINY), run)
        assert [r["step"] for r in again.log] == [1, 2] and again.training["steps"] == 2
        assert json.loads((run / "training.json").read_text())["training"] == again.training


def test_torn_files_end_in_a_traceback(run):
    def refused(said):
        with pytest.raises(UserError, match=said):
            train(RunConfig(**TINY), run)

    log = (run / "log.jsonl").read_bytes()
    for line in (b"torn\n", b"\xff\xfe\n", b"[1]\n"):
        (run / "log.jsonl").write_bytes(log + line)
        refused(r"log\.jsonl:3: not a JSON object")
    (run / "log.jsonl").write_bytes(log + b'{"step": ')  # the last line alone may be torn
    assert len(read_lines(run / "log.jsonl")) == 2
    weights = run / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    refused("adapter_model.safetensors: no whole safetensors file")
    with pytest.raises(UserError, match="no whole safetensors file"):
        train(RunConfig(**TINY | {"init_adapter": str(run)}), run.parent / "second")
    (run / "data.json").write_text("[]")
    refused("data.json: missing or torn")


# --- the same run under other names --------------------------------------------------------------


def test_the_same_rows_by_another_path_are_refused(tmp_path, monkeypatch):
    task = load_task("gene_ranking")
    folder = tmp_path / "d"
    folder.mkdir()
    shutil.copy(task.folder / "train.jsonl", folder / "tr.jsonl")
    record = TINY | {"task": None, "train_file": "tr.jsonl", "grader": task.grader.to_json()}
    (folder / "run.json").write_text(json.dumps(record))
    monkeypatch.chdir(tmp_path)
    train(read_run_config("d/run.json"), tmp_path / "out")
    monkeypatch.chdir(folder)
    again = train(read_run_config("run.json"), "../out")
    assert len(again.log) == 2
    copy = folder / "copy.jsonl"
    copy.write_text("".join((folder / "tr.jsonl").read_text().splitlines(True)[:64]))
    with pytest.raises(UserError, match="train_file.*training rows: 128 there, 64 here"):
        train(RunConfig(**record | {"train_file": str(copy)}), "../out")


def test_another_template_or_grader_goes_on(run):
    for field, value in {
        "answer_template": '{"genes": ["NOT", "{{item.reference_gene}}"]}',
        "grader": {"type": "string_check", "name": "x", "input": "{{sample.output_text}}",
                   "reference": "{{item.reference_gene}}", "operation": "like"},
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=f"another run stands here.*{field}"):
            train(RunConfig(**TINY | {field: value}), run)


def test_a_path_is_taken_from_here_and_not_from_beside_the_config(tmp_path, monkeypatch):
    task = load_task("gene_ranking")
    (tmp_path / "d").mkdir()
    (tmp_path / "here").mkdir()
    lines = (task.folder / "train.jsonl").read_text().splitlines(True)
    (tmp_path / "d" / "tr.jsonl").write_text("".join(lines))
    (tmp_path / "here" / "tr.jsonl").write_text("".join(lines[:3]))
    shutil.copytree(embedded_model("mini"), tmp_path / "d" / "base")
    record = {"train_file": "tr.jsonl", "grader": task.grader.to_json(), "model": "base"}
    (tmp_path / "d" / "run.json").write_text(json.dumps(record))
    monkeypatch.chdir(tmp_path / "here")
    config = read_run_config("../d/run.json")
    assert plan_of(config).rows == 128
    assert (tmp_path / "here" / config.model / "config.json").exists()


# --- configs -------------------------------------------------------------------------------------


def test_an_adapter_as_the_model_is_dropped_in_silence(run, tmp_path):
    config = RunConfig(**TINY | {"model": str(run)})
    said = f'"init_adapter" names {run}'
    with pytest.raises(UserError, match=said):
        train(config, tmp_path / "new")
    with pytest.raises(UserError, match=said):
        plan_of(config)
    (tmp_path / "run.json").write_text(json.dumps(TINY | {"model": str(run)}))
    result = CliRunner().invoke(app, ["signal", str(tmp_path / "run.json")])
    assert isinstance(result.exception, UserError) and said in str(result.exception)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"report_to": ["tensorboard"]}, "report_to: "),
        ({"learning_rate": 10**400}, "learning_rate: "),
        ({"lora_rank": 10**9}, "lora_rank: 1000000000, expected at most 4,096"),
        ({"steps": 10**12}, "steps: .* at most"),
        ({"max_completion_tokens": 10**9}, "max_completion_tokens: .* at most"),
        ({"prompts_per_step": 10**9}, "prompts_per_step: .* at most"),
        ({"answers_per_prompt": 10**9}, "answers_per_prompt: .* at most"),
        ({"steps": 0, "beta": -1, "task": "no_such_task"}, "steps.*beta.*no_such_task"),
        ({"steps": 0, "grader": "nofile.json"}, "nofile.json.*steps"),
    ],
)
def test_an_impossible_value_gets_through(tmp_path, change, said):
    place = tmp_path / "run.json"
    place.write_text(json.dumps(TINY | change))
    with pytest.raises(UserError, match=said):
        read_run_config(place)


def test_a_config_that_is_nested_without_end_is_a_traceback(tmp_path):
    (tmp_path / "run.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="not JSON"):
        read_run_config(tmp_path / "run.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"init_adapter": "."}, "no adapter_config.json there"),
        ({"answer_template": "{{item."}, "item"),
        ({"answer_template": '["{{item.nothing}}"]'}, "nothing"),
    ],
)
def test_a_dry_run_says_yes_to_what_cannot_run(tmp_path, monkeypatch, change, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        plan_of(RunConfig(**TINY | change))


def test_a_limit_beyond_the_models_context_goes_unsaid():
    def warned(limit):
        return [r for r in plan_of(RunConfig(**TINY | {"max_completion_tokens": limit})).reasons
                if "WARNING" in r]  # fmt: skip

    assert warned(64) == []
    (said,) = warned(3_000)
    assert "max_completion_tokens 3000 exceed" in said and "set max_completion_tokens to" in said


def test_an_answer_template_that_is_json_is_refused():
    config = RunConfig(**TINY | {"answer_template": {"genes": ["{{item.reference_gene}}"]}})
    assert config.problems() == []
    assert config.answer_template == '{"genes": ["{{item.reference_gene}}"]}'


def test_a_row_without_its_answer_is_a_traceback(tmp_path):
    task = load_task("gene_ranking")
    held_out = [dict(row) for row in task.rows("validation")[:4]]
    for row in held_out:
        row["gene"] = row.pop("reference_gene")
    task.group_by = None
    config = RunConfig(**TINY | {"eval_every": 1, "eval_rows": 4})
    with pytest.raises(UserError, match='has no field "reference_gene"'):
        train(config, tmp_path, task=task, rows=task.rows("train"), held_out=held_out)


# --- what is said --------------------------------------------------------------------------------


def test_samples_do_not_say_where_they_come_from(finished):
    samples = read_lines(finished / "samples.jsonl")
    assert len(samples) == 16 and all(s["seconds"] > 0 for s in samples)
    assert {s["step"]: s["seed"] for s in samples} == {1: 1, 2: 2}
    tokens = {s["row_id"]: s["prompt_tokens"] for s in samples}
    assert all(s["prompt_tokens"] == tokens[s["row_id"]] > 20 for s in samples)
    assert len(set(tokens.values())) > 1


def test_a_refusal_of_the_gate_prints_no_object(tmp_path):
    task = load_task("gene_ranking")
    spec = {"type": "string_check", "name": "x", "input": "{{sample.output_text}}",
            "reference": "{{item.reference_gene}} never", "operation": "eq"}  # fmt: skip
    record = TINY | {"gate": "on", "grader": spec, "answer_template": task.answer_template}
    (tmp_path / "run.json").write_text(json.dumps(record))
    arguments = ["train", str(tmp_path / "run.json"), "--out", str(tmp_path / "r"), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert getattr(result.exception, "exit_code", None) == 3
    said = json.loads(result.stdout)
    assert said["gate"]["verdict"] == "fix" and said["gate"]["findings"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_without_a_word(tmp_path, number):
    (tmp_path / "run.json").write_text(json.dumps(TINY | {"steps": 400}))
    command = [sys.executable, "-m", "rftkit.cli", "train", "run.json", "--out", "r", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    child = subprocess.Popen(
        command, cwd=tmp_path, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    log = tmp_path / "r" / "log.jsonl"
    while child.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.05)
    child.send_signal(number)
    out, errors = child.communicate(timeout=120)
    assert child.returncode == 130, errors[-2000:]
    assert "a checkpoint is saved in r: the same command goes on" in errors
    assert "interrupted after step" in json.loads(out)["interrupted"]
    assert "Traceback" not in errors


def test_a_place_that_cannot_be_written_is_a_traceback(monkeypatch, capsys):
    def refused():
        raise PermissionError(13, "Permission denied", "runs/first/log.jsonl")

    monkeypatch.setattr(cli, "app", refused)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "runs/first/log.jsonl: Permission denied, expected a place that may be written" in said


def test_a_finished_run_is_written_when_it_is_only_loaded(run):
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in run.rglob("*") if p.is_file()}
    assert len(train(RunConfig(**TINY), run).log) == 2
    after = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in run.rglob("*") if p.is_file()}
    del before[run / ".lock"], after[run / ".lock"]
    assert before == after
