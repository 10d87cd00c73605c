"""A fine-tuning job as a run: every field mapped with its reason, or refused by name."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rftkit.attacks import reference_check
from rftkit.check import check_file
from rftkit.files import FETCHED, UserError, fetched_folder, read_json, shorten, write_json
from rftkit.graders.functions import is_function
from rftkit.job_file import OF_THE_SERVICE, Record, part, read_job
from rftkit.policy import load_policy
from rftkit.rows import read_rows
from rftkit.training.config import RunConfig, config_rows, config_task
from rftkit.training.plan import plan_run
from rftkit.training.run import plan, run_signal
from rftkit.training.store import append_lines

Auto = Literal["auto"]
COMPLETION_TOKENS = {"low": 256, "medium": 1024, "high": 4096}  # rftkit's choice
FILES = "files.json"  # in --files: {id in the job: file}
FILE_FIELDS = {"training_file": "train", "validation_file": "validation"}


class Hyperparameters(BaseModel):
    """OpenAI's, with its ranges; the last four are Bedrock's."""

    model_config = ConfigDict(extra="forbid")

    batch_size: Auto | Annotated[int, Field(ge=1, le=512)] = "auto"
    n_epochs: Auto | Annotated[int, Field(ge=1, le=50)] = "auto"
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0)] = "auto"
    compute_multiplier: Auto | Annotated[float, Field(gt=0.00001, le=10)] = "auto"
    eval_interval: Auto | Annotated[int, Field(ge=1)] = "auto"
    eval_samples: Auto | Annotated[int, Field(ge=1)] = "auto"
    reasoning_effort: Literal["default", "low", "medium", "high"] = "default"
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    answers_per_prompt: Annotated[int, Field(ge=2)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_prompt_tokens: Annotated[int, Field(ge=1)] | None = None


class Mapped(NamedTuple):
    """One field of a job, and what became of it."""

    field: str
    value: Any
    setting: str  # of the RunConfig, with its value
    why: str = ""

    def __str__(self) -> str:
        reason = f" ({self.why})" if self.why else ""
        value = shorten(json.dumps(self.value, ensure_ascii=False), 40)
        return f"{self.field} {value} -> {self.setting}{reason}"


def job_config(
    file: str | Path,
    folder: str | Path | None = None,
    model: str | None = None,
    judges: Mapping[str, str] | None = None,
) -> tuple[RunConfig, list[Mapped]]:
    """(the run that a job comes to, how each field was read). `folder` holds the job's files, by
    default those beside it; `judges` says which model stands for a judge that is served nowhere.
    UserError has a line for each field that cannot be honoured."""
    job, folder = read_job(file), Path(folder or Path(file).parent)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder: name the one with the job's files")
    inner = part(job, "method", "reinforcement")
    known = {"model", "method", "seed", "suffix", *FILE_FIELDS, *OF_THE_SERVICE}
    parts = {"grader", "hyperparameters", "response_format"}
    unknown = sorted({*job} - known) + sorted({*inner} - parts)
    if unknown:
        raise UserError(f"{file}: unknown {', '.join(unknown)}: remove what you do not need")
    unused = sorted(name for name in OF_THE_SERVICE & job.keys() if job[name])
    lines = [Mapped(name, job[name], "not used", "of the service") for name in unused]
    values: Record = {"model": usable_model(file, job.get("model"), model)}
    lines.append(Mapped("model", job.get("model"), f"model {values['model']}"))
    for name, split in FILE_FIELDS.items():
        found = find_file(f"{file}: {name}", job.get(name), folder, split)
        values[name.replace("training", "train")] = found
        lines.append(Mapped(name, job.get(name), found))
    values["seed"] = job.get("seed") or 0
    lines.append(Mapped("seed", job.get("seed"), f"seed {values['seed']}"))
    if job.get("suffix"):
        lines.append(Mapped("suffix", job["suffix"], "kept in job.json"))
    values["grader"], used = usable_grader(file, inner.get("grader"), folder, judges or {})
    lines += used
    if form := part(inner, "response_format"):
        if "schema" in form:  # Azure's has name and schema beside the type
            parts = {key: value for key, value in form.items() if key != "type"}
            form = {"type": "json_schema", "json_schema": parts}
        values["response_format"] = form
        lines.append(Mapped("response_format", "…", "response_format", "checked by the grader"))
    config, mapped = with_hyperparameters(file, values, part(inner, "hyperparameters"))
    task = config_task(config)
    task.grader.check_rows(sum(config_rows(config, task), []))
    return config, lines + mapped


def usable_model(file: Any, named: str | None, model: str | None) -> str:
    """The model to train: the one given, or the job's own where anybody could load it."""
    here = named and (
        named.startswith("embedded:")
        or named in FETCHED
        or Path(named).is_dir()
        or ("/" in named and not named.startswith(("arn:", "s3:")))
    )
    if model or here:
        return model or named
    raise UserError(f"{file}: model {named!r} cannot be loaded here: give --model, such as smollm2")


def named_files(folder: Path) -> Record:
    """{id in the job: file in the folder}, as FILES says."""
    return read_json(folder / FILES) if (folder / FILES).exists() else {}


def find_file(place: str, name: str | None, folder: Path, split: str) -> str:
    """Where a job's file lies in `folder`: by FILES, by its name or id, or as train.jsonl."""
    known = named_files(folder)
    base = str(name).rpartition("/")[2] if name else f"{split}.jsonl"
    if name in known:
        found = [folder / known[name]]
    else:
        found = [f for f in sorted(folder.iterdir()) if base in (f.name, f.stem) and f.is_file()]
    if len(found) == 1 and found[0].exists():
        return str(found[0])
    number = ", ".join(f.name for f in found if f.exists()) or "no such file"
    named = f" ({FILES} says {known[name]})" if name in known else ""
    fix = f'write {{"{name or base}": "FILE"}} into {folder / FILES}'
    raise UserError(f"{place} {name or 'missing'}: {number}{named} in {folder}: {fix}")


def usable_grader(
    file: Any, spec: Any, folder: Path, judges: Mapping[str, str]
) -> tuple[Any, list[Mapped]]:
    """The grader, with judges replaced; a lambda by the function that FILES names for it."""
    if isinstance(spec, dict) and spec.get("type") == "lambda":
        arn = str(next(iter(part(spec, "lambda").values()), None))
        known = named_files(folder)
        if arn not in known:
            fix = f'write {{"{arn}": "file.py:lambda_handler"}} into {folder / FILES}'
            raise UserError(f"{file}: grader: a lambda runs at AWS alone: {fix}")
        function = str(folder / known[arn])
        if not is_function(function):
            raise UserError(f"{folder / FILES}: {known[arn]!r}, expected file.py:lambda_handler")
        return function, [Mapped("grader", arn, function)]
    if isinstance(spec, dict) and spec.get("type") == "label_model":
        raise UserError(f"{file}: grader: label_model, no job's own: put it into a multi")
    used: list[Mapped] = []

    def replaced(value: Any) -> Any:
        if isinstance(value, list):
            return [replaced(entry) for entry in value]
        if not isinstance(value, dict):
            return value
        value = {key: replaced(entry) for key, entry in value.items()}
        if value.get("type") in ("score_model", "label_model") and value.get("model") in judges:
            used.append(
                Mapped("judge", value["model"], judges[value["model"]],
                       "its scores are not comparable: does it rank best > middle > worst? "
                       "rftkit.attack(grader, rows, best, [middle, worst]).calibration")
            )  # fmt: skip
            value["model"] = judges[value["model"]]
        return value

    return replaced(spec), used


def with_hyperparameters(
    file: Any, values: Record, given: Record
) -> tuple[RunConfig, list[Mapped]]:
    """The RunConfig of `values` with a job's hyperparameters, and how each was read."""
    given = {name: value for name, value in given.items() if value is not None}
    try:
        known = Hyperparameters(**given)
    except ValidationError as error:
        faults = {fault["loc"][0]: fault["msg"] for fault in error.errors()}
        lines = [f"{file}: {k}: {given[k]!r}: {text}: correct it" for k, text in faults.items()]
        raise UserError("\n".join(lines)) from None
    changes: Record = {}
    lines: list[Mapped] = []

    def use(name: str, setting: str, value: Any, why: str = "") -> None:
        given_value = getattr(known, name)
        if given_value in ("auto", None):
            value, why = getattr(RunConfig(), setting), "auto: rftkit's default"
        elif value is not None:
            changes[setting] = value
        lines.append(Mapped(name, given_value, f"{setting} {value or 'as the plan says'}", why))

    use("batch_size", "prompts_per_step", known.batch_size)
    epochs, size = known.n_epochs, changes.get("prompts_per_step", RunConfig().prompts_per_step)
    rows = len(read_rows(values["train_file"]))
    steps = epochs != "auto" and max(1, -(-epochs * rows // size))
    use("n_epochs", "steps", steps, f"{epochs} times {rows} rows, {size} a step")
    if known.answers_per_prompt:
        use("answers_per_prompt", "answers_per_prompt", known.answers_per_prompt)
    else:
        factor = known.compute_multiplier
        answers = factor != "auto" and max(2, round(RunConfig().answers_per_prompt * factor))
        use("compute_multiplier", "answers_per_prompt", answers, "times 8")
    use("eval_interval", "eval_every", known.eval_interval)
    use("eval_samples", "eval_samples", known.eval_samples)
    effort, limit = known.reasoning_effort, known.max_completion_tokens
    if limit:
        use("max_completion_tokens", "max_completion_tokens", limit)
    else:
        limit = COMPLETION_TOKENS.get(effort)
        reason = "rftkit's budget" if limit else "measured on the model before the first step"
        use("reasoning_effort", "max_completion_tokens", limit, reason)
    if known.max_prompt_tokens:
        longer = "no prompt is cut: the plan warns where the longest leaves no room for an answer"
        lines.append(Mapped("max_prompt_tokens", known.max_prompt_tokens, "not used", longer))
    config = RunConfig(**values | changes)
    if known.learning_rate:
        use("learning_rate", "learning_rate", known.learning_rate)
    elif known.learning_rate_multiplier == "auto":
        use("learning_rate_multiplier", "learning_rate", None)
    else:
        rate = usual_rate(config)
        times = f"times {rate:g}, rftkit's for this model"
        value = rate * known.learning_rate_multiplier
        use("learning_rate_multiplier", "learning_rate", value, times)
    return config.replace(**changes), lines


def usual_rate(config: RunConfig) -> float:
    """The learning rate of a run that names none: what a job's multiplier multiplies."""
    return plan_run(config.replace(learning_rate=None), [], [])[0].learning_rate


def job_page(config: RunConfig, say: Callable[[str], Any]) -> Record:
    """What is wrong with a job before a machine is rented, said line by line and returned with an
    exit code: the data contract, the reference check, what would stop the training (no judge, a
    chat template that refuses a row), the plan, and the signal gate where the model is here."""
    report = check_file(config.train_file, config.validation_file)
    for fault in report.faults[:5]:
        say(str(fault))
    say(f"check: {report}")
    task = config_task(config)
    rows, _ = config_rows(config, task)
    reference = reference_check(task.grader, task.answer_template, rows)
    say(f"grader: a valid {task.grader.type} grader; {reference}")
    page = {
        "check": report.to_json(),
        "reference": str(reference),
        "exit_code": 0 if report.ok else 1,
    }
    absent = config.model in FETCHED and not fetched_folder(config.model).exists()
    try:
        task.grader.check_ready()
        chosen = None if absent else plan(config)
    except UserError as error:  # it would stop the training, too
        say(f"error {error}")
        return page | {"error": str(error), "exit_code": 1}
    try:
        if chosen:
            page["plan"] = vars(chosen)
            say("\n".join(chosen.lines()))
        policy = load_policy(config.model, config.engine, config.init_adapter, config.to_json())
    except UserError as error:
        say(f"gate: not run: {error}")
        return page
    signal = run_signal(config, policy, task, rows)
    say(f"gate: {signal.verdict}: {signal.reason}")
    page["gate"] = signal.to_json()
    if signal.verdict == "fix" and report.ok:
        page["exit_code"] = 3
    return page


class Events:
    """A job's events in OpenAI's shape, events.jsonl in the run's folder: an observer of train().
    They follow from the log alone: a resumed run writes those before it again."""

    def __init__(self, out: str | Path, job: Record):
        self.file, self.job, self.steps = Path(out) / "events.jsonl", job, 0

    def begin(self, chosen: Any, log: list[Record], start: Record) -> None:
        write_json(self.file.with_name("job.json"), self.job)
        self.steps = chosen.steps
        self.file.unlink(missing_ok=True)
        for record in log:
            self(record)

    def __call__(self, record: Record) -> None:
        append_lines(self.file, [event_of(record, self.steps)])


def event_of(record: Record, steps: int) -> Record:
    """A step's log object as a fine_tuning.job.event of type "metrics"."""
    step, validation = record["step"], record.get("validation") or {}
    errors = record.get("errors") or {}
    data = {"step": step, "total_steps": steps, "train_reward_mean": record["reward_mean"]}
    data |= {f"train_{name}_reward_mean": v for name, v in record["sub_rewards"].items()}
    data["train_parse_error_mean"] = errors.get("sample_parse_error", 0.0)
    data["train_completion_tokens_mean"] = record["completion_tokens"]
    message = f"Step {step}/{steps}, train mean reward={record['reward_mean']:.2f}"
    if validation:
        grade, unread = validation["grade"], validation["parse_error"]
        data |= {"valid_reward_mean": grade, "valid_parse_error_mean": unread}
        message += f", full validation mean reward={grade:.2f}, "
        message += f"full validation mean parse error={unread:.2f}"
    timings = {f"{name}_seconds": v for name, v in record.get("timings", {}).items()}
    return {
        "object": "fine_tuning.job.event",
        "id": f"ftevent-{step:06d}",
        "created_at": int(time.time()),
        "level": "info",
        "type": "metrics",
        "message": message,
        "data": data | timings,
    }
