"""A run goes out as a job of each service, and comes back as the same run."""

import json

import pytest
from typer.testing import CliRunner

from rftkit import RunConfig, load_task, preset
from rftkit.cli import app
from rftkit.files import UserError
from rftkit.graders import functions
from rftkit.graders.grader import Grader, GraderSettings
from rftkit.job import job_config
from rftkit.job_out import ARN, export_job
from rftkit.rows import read_rows, write_rows

TASK = load_task("gene_ranking")
TEXT = {"input": "{{sample.output_text}}", "reference": "{{item.reference_gene}}"}
ALIKE = {"type": "text_similarity", "name": "alike", **TEXT, "evaluation_metric": "fuzzy_match"}
ASKED = [{"role": "user", "content": "{{sample.output_json.genes[0]}}, {{item.reference_gene}}?"}]
JUDGE = {"type": "score_model", "name": "judge", "model": "gpt-4.1", "input": ASKED}
LABELS = {"type": "label_model", "name": "l", "model": "gpt-4.1", "input": ASKED}
LABELS |= {"labels": ["good", "bad"], "passing_labels": ["good"]}
BOTH = {"type": "multi", "name": "both", "graders": {"a": ALIKE, "l": LABELS}}
BOTH |= {"calculate_output": "0.5 * a ^ 2 + 0.5 * l"}
CODE = {"type": "python", "name": "p", "source": "def grade(sample, item):\n    return 1.0\n"}
SCHEMA = {"type": "object", "properties": {"genes": {"type": "array", "items": {"type": "string"}}}}
SCHEMA |= {"required": ["genes"], "additionalProperties": False}
FORM = {"type": "json_schema", "json_schema": {"name": "g", "strict": True, "schema": SCHEMA}}
HANDLER = """
def lambda_handler(event, context):
    return [{"id": row["id"], "aggregate_reward_score": 0.5} for row in event]
"""


@pytest.fixture
def files(tmp_path):
    """16 rows to train on, 8 of other genes, as a config names them."""
    places = {"train_file": tmp_path / "train.jsonl", "validation_file": tmp_path / "val.jsonl"}
    write_rows(places["train_file"], TASK.rows("train")[:16])
    write_rows(places["validation_file"], TASK.rows("validation")[:8])
    return places


SET = dict(steps=12, prompts_per_step=4, answers_per_prompt=6, eval_every=3, eval_samples=4)


@pytest.mark.parametrize("to", ["openai", "azure"])
@pytest.mark.parametrize(
    "settings",
    [
        dict(grader=preset("rank")),
        dict(grader=ALIKE, **SET),
        dict(grader=BOTH, max_completion_tokens=1024, seed=5),
        dict(grader=CODE, learning_rate=1e-3),
        dict(grader=JUDGE, response_format=FORM, model="embedded:large"),
    ],
    ids=["rank", "text_similarity", "multi", "python", "score_model"],
)
def test_a_config_comes_back_as_it_was(files, tmp_path, to, settings):
    config = RunConfig(**files, **settings)
    lines = export_job(config, to, tmp_path / "out" / "job.json")
    assert {line.setting for line in lines} & {"not sent"} == set()
    assert f"seed {config.seed}" in [line.setting for line in lines]
    back, _ = job_config(tmp_path / "out" / "job.json")
    for name, file in files.items():
        assert read_rows(getattr(back, name)) == read_rows(file)
    assert back.replace(**files).to_json() == config.to_json()
    inner = json.loads((tmp_path / "out" / "job.json").read_text())["method"]["reinforcement"]
    assert to == "openai" or "json_schema" not in inner.get("response_format", {})


def test_a_task_goes_out_with_its_grader_and_rows(tmp_path):
    lines = export_job(RunConfig(task="gene_ranking"), "openai", tmp_path / "job.json")
    config, _ = job_config(tmp_path / "job.json")
    assert Grader.load(config.grader).to_json() == TASK.grader.to_json()
    assert read_rows(config.validation_file) == TASK.rows("validation")
    left = {line.field for line in lines if line.setting == "not sent"}
    assert left == {"answer_template", "group_by", "patterns", "worse_answers"}


def test_each_setting_that_no_job_has_is_named_with_its_value(files, tmp_path):
    odd = dict(beta=0.1, lora_rank=8, eval_every=0, max_completion_tokens=64, steps=3)
    config = RunConfig(**files, grader=ALIKE | {"pass_threshold": 0.5, "maximum": 2}, **odd)
    lines = {line.field: line for line in export_job(config, "openai", tmp_path / "job.json")}
    left = {name: line.value for name, line in lines.items() if line.setting == "not sent"}
    assert left == {name: odd[name] for name in odd if name != "steps"} | {"grader_maximum": 2}
    assert str(lines["steps"]) == "steps 3 -> n_epochs 1 (2 steps of 8 rows)"
    assert "pass_threshold: belongs to evals" in lines["grader"].why
    assert "maximum" not in job_config(tmp_path / "job.json")[0].grader


OWN = {
    "grade": "def grade(sample, item):\n    return float(item['reference_gene'] == 'A')\n",
    "trl": "def f(completions, reference_gene, **columns):\n    return [0.25]\n",
}


@pytest.mark.parametrize("kind", OWN)
def test_a_function_goes_out_as_source_and_is_not_run(files, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(functions, "load", None)
    (tmp_path / "own.py").write_text(OWN[kind])
    config = RunConfig(**files, grader=str(tmp_path / "own.py"))
    export_job(config, "azure", tmp_path / "job.json")
    back, _ = job_config(tmp_path / "job.json")
    assert back.grader["type"] == "python" and OWN[kind] in back.grader["source"]
    made = Grader.load(back.grader, GraderSettings(allow_weak_isolation=True))
    rewards = [made.grade({"reference_gene": gene}, "x")[0] for gene in "AB"]
    assert rewards == ([1.0, 0.0] if kind == "grade" else [0.25, 0.25])


def test_a_lambda_goes_to_bedrock_and_comes_back(files, tmp_path):
    (tmp_path / "own.py").write_text(HANDLER)
    config = RunConfig(**files, grader=str(tmp_path / "own.py"), **SET)
    lines = export_job(config, "bedrock", tmp_path / "out" / "job.json")
    assert "deploy job-grader.py at AWS" in {line.field: line for line in lines}["grader"].why
    job = json.loads((tmp_path / "out" / "job.json").read_text())
    grader = {"type": "lambda", "lambda": {"function": ARN}}
    assert job["method"]["reinforcement"]["grader"] == grader
    back, _ = job_config(tmp_path / "out" / "job.json")
    assert Grader.load(back.grader).run({}, "x")["reward"] == 0.5
    assert back.replace(**files, grader=CODE) == config.replace(grader=CODE)


FACTOR = 2


def outer(sample, item):
    return FACTOR


@pytest.mark.parametrize(
    ("to", "settings", "message"),
    [
        ("bedrock", dict(grader=ALIKE), "alike: Bedrock asks an AWS Lambda alone: write lambda_"),
        ("openai", dict(grader=outer), "outer: uses outer FACTOR: put that inside"),
        ("openai", dict(grader=LABELS), "l: label_model, no job's own: put it into a multi"),
        ("azure", dict(grader=ALIKE | {"input": "{{ sample.reasoning }}"}), "sample.reasoning is"),
        ("azure", dict(grader=ALIKE, method="sft"), 'method "sft", expected "grpo"'),
        ("azure", dict(grader=ALIKE, validation_file=None), "validation_file: 0 rows, expected 1"),
    ],
)
def test_what_no_job_can_say_is_refused_and_nothing_is_written(
    files, tmp_path, to, settings, message
):
    with pytest.raises(UserError, match=message):
        export_job(RunConfig(**files | settings), to, tmp_path / "out" / "job.json")
    assert not (tmp_path / "out").exists()


def test_the_command_writes_a_job_that_a_dry_run_reads_or_rows(files, tmp_path):
    config = {"grader": preset("rank"), "train_file": "train.jsonl", "validation_file": "val.jsonl"}
    (tmp_path / "run.json").write_text(json.dumps(config | SET))

    def call(*words):
        return CliRunner().invoke(app, [*map(str, words)])

    out = tmp_path / "out" / "job.json"
    result = call("export-data", tmp_path / "run.json", "--to", "openai", "--out", out)
    assert result.exit_code == 0, result.output
    assert "steps 12 -> n_epochs 3 (12 steps of 4 rows)" in result.stdout
    result = call("train", out, "--files", out.parent, "--dry-run", "--json")
    mapped = {line["field"]: line["setting"] for line in json.loads(result.stdout)["mapped"]}
    assert mapped["n_epochs"] == "steps 12" and "training_file" in mapped
    (tmp_path / "rows.csv").write_text("prompt,answer\nWhich?,A\n")
    rows = tmp_path / "rows.jsonl"
    result = call("export-data", tmp_path / "rows.csv", "--to", "bedrock", "--out", rows)
    assert result.exit_code == 0, result.output
    asked = [{"role": "user", "content": "Which?"}]
    assert read_rows(rows) == [{"messages": asked, "answer": "A"}]
    written = out.read_bytes(), rows.read_bytes()
    for source, again in (("run.json", out), ("rows.csv", rows)):  # neither is written over
        assert (
            call("export-data", tmp_path / source, "--to", "azure", "--out", again).exit_code == 1
        )
    assert (out.read_bytes(), rows.read_bytes()) == written
    for wrong in (["--to", "mistral", "--out", out], ["--to", "azure", "--out", rows]):
        assert call("export-data", tmp_path / "run.json", *wrong).exit_code == 2
