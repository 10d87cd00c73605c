"""A fine-tuning job: read in every shape, mapped field by field, trained, or refused."""

import json

import pytest
from typer.testing import CliRunner

from rftkit import RunConfig, load_task
from rftkit.cli import app
from rftkit.files import UserError
from rftkit.graders.grader import Grader
from rftkit.job import Events, job_config
from rftkit.job_file import is_job
from rftkit.logs import read_lines
from rftkit.rows import write_rows
from rftkit.task import Task

TASK = load_task("gene_ranking")
GRADER = TASK.grader.to_json()
SCHEMA = {"type": "object", "properties": {"genes": {"type": "array", "items": {"type": "string"}}}}
SCHEMA |= {"required": ["genes"], "additionalProperties": False}
FORM = {"type": "json_schema", "json_schema": {"name": "g", "strict": True, "schema": SCHEMA}}
ARN = "arn:aws:lambda:us-east-1:123456789012:function:grade"
HANDLER = """
def lambda_handler(event, context):
    return [{"id": row["id"], "aggregate_reward_score": 0.5} for row in event]
"""


@pytest.fixture
def folder(tmp_path):
    """A job's files: 16 rows to train on, 8 of other genes."""
    write_rows(tmp_path / "file-tr.jsonl", TASK.rows("train")[:16])
    write_rows(tmp_path / "file-va.jsonl", TASK.rows("validation")[:8])
    return tmp_path


def job(grader=GRADER, form=None, model="embedded:mini", **hyperparameters):
    inner = {"grader": grader, "hyperparameters": hyperparameters}
    inner |= {"response_format": form} if form else {}
    files = {"training_file": "file-tr", "validation_file": "file-va"}
    return files | {"model": model, "method": {"type": "reinforcement", "reinforcement": inner}}


def write(folder, record, name="job.json"):
    (folder / name).write_text(record if isinstance(record, str) else json.dumps(record))
    return folder / name


def read(folder, record, **options):
    return job_config(write(folder, record), **options)


def test_a_job_is_told_from_a_run_config(folder):
    assert is_job(write(folder, job())) and is_job("create.py")
    assert not is_job(write(folder, {"method": "grpo", "task": "gene_ranking"}))


def test_every_hyperparameter_becomes_a_setting(folder):
    given = dict(n_epochs=3, batch_size=4, compute_multiplier=0.5, learning_rate_multiplier=2)
    given |= dict(eval_interval=2, eval_samples=3, reasoning_effort="low")
    config, mapped = read(folder, job(**given) | {"seed": 7, "suffix": "mine"})
    assert (config.steps, config.prompts_per_step, config.answers_per_prompt) == (12, 4, 4)
    assert config.learning_rate == pytest.approx(4e-3)  # twice the mini's
    assert (config.eval_every, config.eval_samples, config.seed) == (2, 3, 7)
    assert config.max_completion_tokens == 256
    assert {"model", "suffix", "seed", *given} <= {line.field for line in mapped}


def test_auto_takes_the_defaults_and_says_so(folder):
    config, mapped = read(folder, job(n_epochs="auto", batch_size="auto"))
    default = RunConfig()
    assert (config.steps, config.prompts_per_step) == (default.steps, default.prompts_per_step)
    assert {line.why for line in mapped if line.value == "auto"} == {"auto: rftkit's default"}
    assert not [line for line in mapped if line.setting.endswith(("None", "auto"))]
    assert "learning_rate as the plan says" in [line.setting for line in mapped]


def test_a_job_object_and_azures_flat_format_are_read(folder):
    flat = {"type": "json_schema", **FORM["json_schema"]}
    service = {"object": "fine_tuning.job", "id": "ftjob-1", "status": "succeeded"}
    config, mapped = read(folder, job(form=flat) | service)
    assert config.response_format == FORM
    assert [line.field for line in mapped if line.setting == "not used"] == sorted(service)


@pytest.mark.filterwarnings("ignore:Pydantic serializer")
def test_the_clients_own_record_of_a_job_reads_as_that_job(folder):
    from openai.types.fine_tuning import FineTuningJob

    record = job(form=FORM, n_epochs=2, batch_size=4) | {"id": "ftjob-1", "seed": 3}
    config, _ = read(folder, FineTuningJob.construct(**record).to_dict(exclude_unset=False))
    assert config.replace(grader=GRADER) == read(folder, record)[0] and config.steps == 8
    assert Grader.load(config.grader).to_json() == GRADER


def test_the_method_alone_takes_train_and_validation_files(folder):
    for name, now in (("file-tr", "train"), ("file-va", "validation")):
        (folder / f"{name}.jsonl").rename(folder / f"{now}.jsonl")
    config, _ = read(folder, {"method": job()["method"]}, model="embedded:mini")
    assert config.train_file == str(folder / "train.jsonl")


def test_a_script_is_parsed_and_never_run(folder):
    script = f"""
raise SystemExit("never run")
train = client.files.create(file=open("file-tr.jsonl", "rb"), purpose="fine-tune")
GRADER = {GRADER!r}
options = {{"seed": 3}}
client.fine_tuning.jobs.create(
    model="embedded:mini", training_file=train.id, validation_file="file-va", **options,
    method={{"type": "reinforcement", "reinforcement": {{"grader": GRADER}}}},
)
"""
    config, _ = job_config(write(folder, script, "create.py"))
    assert config.train_file == str(folder / "file-tr.jsonl") and config.seed == 3
    assert Grader.load(config.grader).to_json() == GRADER
    computed = script.replace('model="embedded:mini"', "model=pick()")
    with pytest.raises(UserError, match=r"create.py:7: pick\(\) is computed"):
        job_config(write(folder, computed, "create.py"))


def test_a_script_may_open_its_files_and_join_its_arguments_as_people_do(folder):
    script = f"""
with open("file-tr.jsonl", "rb") as f:
    train = client.files.create(file=f, purpose="fine-tune")
with open("file-va.jsonl", "rb") as f: held_out = client.files.create(file=f)
GRADER: dict = {GRADER!r}
method = {{"type": "reinforcement"}}
method = {{**method, "reinforcement": dict(grader=GRADER, hyperparameters=dict(n_epochs=2))}}
client.fine_tuning.jobs.create(
    model="embedded:mini", training_file=train.id, validation_file=held_out.id, method=method)
"""
    config, _ = job_config(write(folder, script, "create.py"))
    assert config.train_file == str(folder / "file-tr.jsonl")
    assert config.validation_file == str(folder / "file-va.jsonl") and config.steps == 4
    for line in ("method = method", "a = b; b = a; method = a"):
        endless = f"{line}\nclient.fine_tuning.jobs.create(method=method)"
        with pytest.raises(UserError, match="create.py:1: [mb].* is computed"):
            job_config(write(folder, endless, "create.py"))


def test_bedrocks_lambda_is_a_function_of_yours(folder):
    lambda_job = job({"type": "lambda", "lambda": {"function": ARN}})
    with pytest.raises(UserError, match="a lambda runs at AWS alone"):
        read(folder, lambda_job)
    write(folder, HANDLER, "handler.py")
    write(folder, {ARN: "handler.py:lambda_handler"}, "files.json")
    config, _ = read(folder, lambda_job)
    assert Grader.load(config.grader).run({}, "x")["reward"] == 0.5
    limits = {"epochCount": 2, "batchSize": 16, "learningRate": 1e-4, "inferenceMaxTokens": 64}
    limits |= {"trainingSamplePerPrompt": 4, "evalInterval": 3, "maxPromptLength": 2048}
    grader = {"lambdaGrader": {"lambdaArn": ARN}}
    nova = {
        "customizationConfig": {"rftConfig": {"graderConfig": grader, "hyperParameters": limits}}
    }
    nova |= {"trainingDataConfig": {"s3Uri": "s3://mine/rft/file-tr.jsonl"}}
    nova |= {"validationDataConfig": {"validators": [{"s3Uri": "s3://mine/file-va.jsonl"}]}}
    nova |= {"baseModelIdentifier": "arn:aws:bedrock:us-east-1::foundation-model/amazon.nova"}
    config, mapped = read(folder, nova, model="embedded:mini")
    assert {"max_prompt_tokens 2048 -> not used": "no prompt is cut"} == {
        str(line).partition(" (")[0]: line.why.partition(":")[0]
        for line in mapped
        if line.setting == "not used"
    }
    assert (config.steps, config.prompts_per_step, config.answers_per_prompt) == (2, 16, 4)
    assert (config.learning_rate, config.max_completion_tokens) == (1e-4, 64)


ASKED = [{"role": "user", "content": "{{sample.output_text}}"}]
JUDGE = {"type": "score_model", "name": "j", "model": "gpt-4o", "input": ASKED}


def test_judges_are_replaced_by_name(folder):
    grader = {"type": "multi", "name": "m", "graders": {"a": JUDGE}, "calculate_output": "a"}
    config, mapped = read(folder, job(grader), judges={"gpt-4o": "local"})
    assert config.grader["graders"]["a"]["model"] == "local"
    [line] = [line for line in mapped if line.field == "judge"]
    assert "not comparable" in line.why and ".calibration" in line.why


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(model="o4-mini-2025-04-16"), "o4-mini-2025-04-16' cannot be loaded here: .* --model"),
        (dict(training_file="file-no"), "training_file file-no: no such file in .*files.json"),
        (dict(color=1), "unknown color"),
        (dict(method=job({"type": "label_model"})["method"]), "label_model, no job's own"),
        (dict(method={"type": "supervised", "supervised": {}}), "method 'supervised', expected"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(folder, change, message):
    with pytest.raises(UserError, match=message):
        read(folder, job() | change)


NOVA = {"customizationConfig": {"rftConfig": {"hyperParameters": ["epochCount"]}}}


@pytest.mark.parametrize(
    "record, place",
    [
        ([], "method 'missing', expected"),
        ([1], r"job.json: \[1\], expected an object"),
        (job() | {"training_file": ["file-tr"]}, r"training_file: \['file-tr'\], expected text"),
        (job() | {"suffix": 5}, "suffix: 5, expected text"),
        (job() | {"method": "reinforcement"}, "method: reinforcement, expected an object"),
        (job() | {"method": {"reinforcement": [1]}}, "reinforcement: .*, expected an object"),
        (job(form="json"), "response_format: json, expected an object"),
        (
            job() | {"method": {"reinforcement": {"hyperparameters": [1]}}},
            "hyperparameters: .*an object",
        ),
        (job({"type": "lambda", "lambda": "arn:x"}), "lambda: arn:x, expected an object"),
        ({"customizationConfig": {"rftConfig": None}}, "cannot be loaded here"),
        (NOVA, "hyperParameters: .*, expected an object"),
    ],
)
def test_a_wrong_type_is_one_line_with_its_place(folder, record, place):
    with pytest.raises(UserError, match=place) as error:
        read(folder, record)
    assert "\n" not in str(error.value)


def test_an_id_that_fits_two_files_and_values_out_of_range_are_refused(folder):
    with pytest.raises(UserError) as error:
        read(folder, job(n_epochs=51, batch_size="all", colour=2))
    assert [line.split(": ")[1] for line in str(error.value).splitlines()] == [
        *("batch_size", "n_epochs", "colour")
    ]
    write(folder, "{}", "file-tr.json")
    with pytest.raises(UserError, match="file-tr: file-tr.json, file-tr.jsonl in"):
        read(folder, job())
    write(folder, {"file-tr": "gone.jsonl"}, "files.json")
    with pytest.raises(UserError, match="file-tr: no such file .files.json says gone.jsonl"):
        read(folder, job())


def test_a_folder_that_is_not_there_is_named(folder):
    with pytest.raises(UserError, match="dta: no such folder"):
        job_config(write(folder, job()), folder / "dta")


def test_an_answer_that_does_not_fit_the_schema_earns_0_and_names_the_field():
    equal = {"type": "string_check", "name": "a", "operation": "eq", "reference": "A"}
    equal |= {"input": "{{sample.output_json.genes[0]}}"}
    grader = Task("t", equal, response_format=FORM).grader
    assert grader.run({}, '{"genes": ["A"]}')["reward"] == 1
    for text, place in (('{"genes": ["A", 5]}', "genes[1]: 5"), ('{"gene": 1}', "the output")):
        grade = grader.evaluate({}, text)
        assert (grade.reward, grade.errors) == (0, ["sample_parse_error"])
        assert grade.explanations[0].startswith(place)


def test_a_schema_that_is_not_strict_or_no_schema_is_refused():
    for schema, place in (
        (SCHEMA | {"required": []}, "schema is not strict"),
        (SCHEMA | {"properties": {"genes": {"type": "object"}}}, "schema.properties.genes is not"),
        ({"type": "gene"}, "schema.type"),
    ):
        form = {"type": "json_schema", "json_schema": {"strict": True, "schema": schema}}
        with pytest.raises(UserError, match=f"response_format: {place}"):
            RunConfig(response_format=form)


def test_a_job_is_trained_with_openais_events(folder):
    small = job(form=FORM, n_epochs=1, batch_size=8, compute_multiplier=0.25, eval_interval=1)
    run = folder / "run"
    command = ["train", str(write(folder, small)), "--out", str(run), "--force", "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    events = read_lines(run / "events.jsonl")
    assert [event["data"]["step"] for event in events] == [1, 2]
    assert events[0]["object"] == "fine_tuning.job.event"
    log = read_lines(run / "log.jsonl")
    assert events[1]["data"]["valid_reward_mean"] == log[1]["validation"]["grade"]
    assert events[1]["message"].startswith("Step 2/2, train mean reward=")
    assert json.loads((run / "task.json").read_text())["response_format"] == FORM


def test_events_after_a_resume_hold_every_step_once(tmp_path):
    log = [
        {"step": s, "reward_mean": 0.5, "sub_rewards": {}, "completion_tokens": 9} for s in (1, 2)
    ]
    events = Events(tmp_path, {"model": "m"})
    for known in ([], log[:1]):  # stopped after step 2, resumed from step 1
        events.begin(RunConfig(steps=2), known, {})
        for record in log[len(known) :]:
            events(record)
    assert [event["data"]["step"] for event in read_lines(tmp_path / "events.jsonl")] == [1, 2]
    assert json.loads((tmp_path / "job.json").read_text()) == {"model": "m"}


def test_a_dry_run_shows_the_page_and_trains_nothing(folder):
    file = write(folder, job())
    result = CliRunner().invoke(app, ["train", str(file), "--dry-run", "--json"])
    page = json.loads(result.stdout)
    assert result.exit_code == page["exit_code"] == 0
    assert page["gate"]["verdict"] == "go" and page["plan"]["rows"] == 16
    assert not (folder / "run").exists()
    broken = TASK.rows("train")[:1]
    write_rows(folder / "file-va.jsonl", broken)  # a prompt that is trained on
    result = CliRunner().invoke(app, ["train", str(file), "--dry-run", "--json"])
    assert result.exit_code == 1


def test_a_dry_run_without_the_judge_that_training_needs_is_a_finding(folder, monkeypatch):
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    file = write(folder, job(JUDGE, learning_rate_multiplier=2))
    result = CliRunner().invoke(app, ["train", str(file), "--dry-run", "--json"])
    page = json.loads(result.stdout)
    assert result.exit_code == page["exit_code"] == 1 and "gate" not in page
    assert page["error"].startswith("judge: no OPENAI_BASE_URL") and page["error"] in result.stderr


def test_a_model_that_is_not_at_hand_is_a_note_and_a_wrong_one_a_finding(folder, monkeypatch):
    monkeypatch.setenv("RFTKIT_CACHE", str(folder / "cache"))
    for model, code, said in (
        ("smollm2", 0, 'gate: not run: model "smollm2": not in'),
        ("nobody/has-this", 0, 'gate: not run: model: "nobody/has-this" could not be loaded'),
        ("embedded:giant", 1, "error 'embedded:giant' is not in"),
    ):
        file = write(folder, job(model=model))
        result = CliRunner().invoke(app, ["train", str(file), "--dry-run", "--json"])
        assert result.exit_code == json.loads(result.stdout)["exit_code"] == code
        assert said in result.stderr


def test_a_grader_over_a_field_that_no_row_has_is_found_before_training(folder):
    grader = GRADER | {"graders": GRADER["graders"] | {"extra": {
        "type": "string_check", "name": "x", "operation": "eq",
        "input": "{{sample.output_text}}", "reference": "{{item.gone}}"}}}  # fmt: skip
    with pytest.raises(UserError, match="item.gone"):
        read(folder, job(grader))


def test_training_needs_a_folder():
    assert CliRunner().invoke(app, ["train", "run.json"]).exit_code == 2
