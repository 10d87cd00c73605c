"""A run's config as a fine-tuning job again, with its rows: what job.py reads, the other way round.

What a config leaves to its defaults stays out of the job: the service chooses it. Row limits are of
OpenAI's API reference and https://docs.aws.amazon.com/bedrock/latest/userguide/rft-prepare-data.html.
"""

from pathlib import Path

from pydantic import ValidationError

from rftkit import job
from rftkit.files import UserError, write_json, write_text
from rftkit.graders.answer import Template
from rftkit.graders.grader import Grader
from rftkit.graders.spec import texts_of
from rftkit.job import Mapped, Record
from rftkit.rows import write_rows
from rftkit.task import Task
from rftkit.training.config import RunConfig, config_rows, config_task

# The most rows: to train on, to validate with.
SERVICES = {"openai": (50_000, 1_000), "azure": (50_000, 1_000), "bedrock": (20_000, 20_000)}
ARN = "arn:aws:lambda:REGION:ACCOUNT:function:NAME"  # until the owner writes the real one
SENT = {"model", "seed", "task", "train_file", "validation_file", "grader", "response_format"}


def export_job(config: RunConfig, to: str, out: str | Path) -> list[Mapped]:
    """Write the arguments of a service's jobs.create to `out`, and STEM-train.jsonl and
    STEM-validation.jsonl beside it. Returns how each setting went out, or that it did not.
    UserError, with nothing written, where the service has no such job."""
    if config.method != "grpo":
        raise UserError(f'method "{config.method}", expected "grpo": export the rows file alone')
    task, out = config_task(config.replace(sandbox=True)), Path(out)  # a function is read, not run
    files = dict(zip(job.FILE_FIELDS, config_rows(config, task)))
    for field, most in zip(files, SERVICES[to]):
        if not 1 <= len(files[field]) <= most:
            raise UserError(f"{field}: {len(files[field])} rows, expected 1 to {most:,} for {to}")
    names = [out.name, *(f"{out.stem}-{split}.jsonl" for split in job.FILE_FIELDS.values())]
    if there := [name for name in names if out.with_name(name).exists()]:
        raise UserError(f"{out.with_name(there[0])}: there already: name another --out")
    lines = [Mapped("model", config.model, "model", f"{to} serves others: write one of those")]
    lines.append(Mapped("seed", config.seed, f"seed {config.seed}"))
    inner: Record = {"hyperparameters": hyperparameters(config, to, files["training_file"], lines)}
    own = config.model_dump(exclude=SENT, exclude_unset=True, exclude_defaults=True)
    for name in ("answer_template", "worse_answers", "group_by", "patterns"):
        own |= {name: value} if (value := getattr(task, name)) else {}
    if task.grader.maximum != Grader.load(task.grader.to_json()).maximum:
        own["grader_maximum"] = task.grader.maximum
    left = sorted(own.keys() - {line.field for line in lines})
    lines += [Mapped(name, own[name], "not sent", f"{to} has no such setting") for name in left]
    inner["grader"] = (lambda_grader if to == "bedrock" else plain_grader)(task, out, lines)
    if form := task.response_format:
        flat = {"type": "json_schema", **form["json_schema"]}
        inner["response_format"] = flat if to == "azure" else form
    record: Record = {"model": config.model, "seed": config.seed}
    for field, split in job.FILE_FIELDS.items():
        record[field] = f"{out.stem}-{split}.jsonl"
        write_rows(out.with_name(record[field]), files[field])
        lines.append(Mapped(field, len(files[field]), record[field]))
    write_json(out, record | {"method": {"type": "reinforcement", "reinforcement": inner}})
    return lines


def hyperparameters(config: RunConfig, to: str, rows: list, lines: list[Mapped]) -> Record:
    """What the config sets, as a job says it."""
    size, most = config.prompts_per_step, 512 if to == "bedrock" else 256
    epochs = max(1, config.steps * size // len(rows))
    efforts = {tokens: effort for effort, tokens in job.COMPLETION_TOKENS.items()}
    effort = efforts.get(config.max_completion_tokens)
    rate = job.usual_rate(config) if config.learning_rate else 1.0
    values = {
        "prompts_per_step": ("batch_size", min(size, most), f"at most {most}"),
        "steps": ("n_epochs", epochs, f"{-(-epochs * len(rows) // size)} steps of {size} rows"),
        "answers_per_prompt": ("compute_multiplier", config.answers_per_prompt / 8, "times 8"),
        "eval_every": ("eval_interval", config.eval_every, ""),
        "eval_samples": ("eval_samples", config.eval_samples, ""),
        "max_completion_tokens": ("reasoning_effort", effort, "as rftkit reads it"),
        "learning_rate": ("learning_rate_multiplier", (config.learning_rate or 0) / rate, ""),
    }
    given: Record = {}
    for setting in config.model_dump(include={*values}, exclude_unset=True, exclude_none=True):
        name, value, why = values[setting]
        try:
            given |= job.Hyperparameters(**{name: value}).model_dump(include={name})
            setting_out = f"{name} {value}"
        except ValidationError as error:
            setting_out, why = "not sent", f"{name}: {error.errors()[0]['msg']}"
        lines.append(Mapped(setting, getattr(config, setting), setting_out, why))
    return given


def plain_grader(task: Task, out: Path, lines: list[Mapped]) -> Record:
    """The grader's JSON; a Python function that stands alone becomes a python grader."""
    spec = task.grader.to_json()
    parts = [*spec.get("graders", {"": spec}).values()]
    paths = [p for part in parts for _, text in texts_of(part) for p in Template(text).paths]
    if spec["type"] == "label_model":
        raise UserError(f"grader {spec['name']}: label_model, no job's own: put it into a multi")
    if any((p.namespace, p.steps[0]) == ("sample", "reasoning") for p in paths):
        raise UserError(f"grader {spec['name']}: sample.reasoning is rftkit's alone: remove it")
    lines.append(Mapped("grader", spec["name"], spec["type"], "; ".join(task.grader.notes)))
    judges = [part["model"] for part in parts if "model" in part]
    lines += [Mapped("judge", judge, "model", "write one that the service has") for judge in judges]
    return spec


def lambda_grader(task: Task, out: Path, lines: list[Mapped]) -> Record:
    """Bedrock's: the function's file goes beside the job, for its owner to deploy."""
    record, file = task.grader.record, f"{out.stem}-grader.py"
    if record.get("signature") != "bedrock":
        write = "write lambda_handler(event, context) in a file.py"
        raise UserError(f"grader {task.grader.name}: Bedrock asks an AWS Lambda alone: {write}")
    write_text(out.with_name(file), record["source"])
    names = job.named_files(out.parent) | {ARN: f"{file}:{record['name']}"}
    write_json(out.with_name(job.FILES), names)
    deploy = f"deploy {file} at AWS, write its ARN there and into {job.FILES}"
    lines.append(Mapped("grader", record["name"], ARN, deploy))
    return {"type": "lambda", "lambda": {"function": ARN}}
