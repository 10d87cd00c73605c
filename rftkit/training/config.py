"""RunConfig: everything that fixes a run; and the base, the task and the rows that it names."""

import json
import os
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rftkit.files import UserError, dataset, read_json, shorten
from rftkit.graders.answer import schema_of
from rftkit.graders.functions import beside, is_function
from rftkit.graders.grader import Grader, GraderSettings, read_grader
from rftkit.loading import model_folder
from rftkit.rows import read_rows
from rftkit.task import Task, load_task

# Names of TRL and OpenAI that are not spelled like ours.
OURS = {"lr": "learning_rate", "batch_size": "prompts_per_step", "reward_funcs": "grader",
        "per_device_train_batch_size": "prompts_per_step", "num_generations": "answers_per_prompt",
        "num_train_epochs": "epochs", "eval_steps": "eval_every", "save_steps": "save_every",
        "r": "lora_rank"}  # fmt: skip
# In a config file these may be paths relative to that file.
PATHS = ("model", "task", "train_file", "validation_file", "init_adapter", "grader")


class RunConfig(BaseModel):
    """UserError with a line for each impossible value or unknown field, all at once."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, str_min_length=1, validate_assignment=True
    )

    model: str = "embedded:mini"  # or a folder, or a hub name
    engine: Literal["auto", "transformers", "unsloth"] = "auto"
    vllm_server: str | None = None  # of `trl vllm-serve` that draws: tried with a stand-in alone
    load_in_4bit: bool = False  # QLoRA: the base in 4 bits, by bitsandbytes
    chat_template_kwargs: dict[str, Any] | None = None  # such as {"enable_thinking": false}
    task: str | None = None  # a task folder, or a name under datasets/
    train_file: str | None = None  # instead of the task's rows
    validation_file: str | None = None  # the held-out rows
    grader: Any = None  # what Grader.load reads, instead of the task's; so are the next three
    answer_template: str | None = None
    group_by: str | None = None
    patterns: dict[str, str] | None = None  # thinking patterns: {"name": "regular expression"}
    grader_maximum: float | None = None  # its best grade; None: 1, or what right answers earn
    response_format: dict[str, Any] | None = None  # OpenAI's: a JSON schema that answers must fit
    method: Literal["grpo", "sft"] = "grpo"  # sft: learn the rows' completions, draw none
    prompts_per_step: int = Field(8, ge=1, le=100_000)  # rows
    answers_per_prompt: int = Field(8, ge=2, le=10_000)  # the group whose grades are compared
    steps: int = Field(70, ge=1, le=10_000_000)  # optimiser steps at most; sft: see `epochs`
    learning_rate: float | None = Field(None, gt=0)  # of the LoRA; None: by the model's width
    beta: float = Field(0.04, ge=0)  # weight of the KL term that ties the policy to its start
    temperature: float = Field(1.0, gt=0)  # of the completions that are learned from
    # None: see plan_run. A completion that is cut there scores 0.
    max_completion_tokens: int | None = Field(None, ge=1, le=1_000_000)
    lora_rank: int = Field(4, ge=1, le=4_096)  # alpha is the same, so the adapter's scale is 1
    init_adapter: str | None = None  # an adapter or run folder to start from
    micro_batch: int | None = Field(None, ge=1)  # completions a pass; None: what the memory holds
    eval_every: int = Field(5, ge=0)  # steps between two validations; 0: never
    patience: int = Field(4, ge=0)  # validations without a better one; then it stops; 0: never
    eval_rows: int = Field(240, ge=1)  # held-out rows a validation (the first of the file)
    eval_samples: int = Field(2, ge=1)  # completions a held-out row
    keep_start: bool = True  # may the adapter before step 1 be the best?
    save_every: int = Field(5, ge=1)  # steps between two checkpoints: what a kill can cost
    watchdog_steps: int = Field(10, ge=0)  # dead or flat steps in a row that end it; 0: never
    entropy_floor: float = Field(0.01, ge=0)  # nats a token; below it a step is flat
    completion_template: str | None = None  # sft: what to say; None: answer_template
    epochs: int = Field(0, ge=0)  # sft: passes over the rows at most; 0: only `steps` counts
    gate: Literal["on", "off"] = "on"  # the signal gate before step 1 (grpo)
    allow_weak_isolation: bool = False  # run python graders that this machine cannot confine
    sandbox: bool = False  # run a Python function as grader there, not in this process
    seed: int = Field(0, ge=0, lt=2**32)  # of everything that is drawn

    def __init__(self, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            lines = [f"RunConfig: {fault_line(fault)}" for fault in error.errors()]
            raise UserError("\n".join(lines)) from None

    @field_validator("*", mode="before")
    def _as_text(cls, value: Any, info: Any) -> Any:
        """A path, and an answer_template that is given as JSON, as in a task.json."""
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        is_json = info.field_name == "answer_template" and isinstance(value, dict | list)
        return json.dumps(value, ensure_ascii=False) if is_json else value

    @field_validator("train_file", "validation_file", "init_adapter")
    def _place_exists(cls, place: str | None) -> str | None:
        if place is not None and not os.path.exists(place):
            raise ValueError(f"{place!r}, expected a file or folder that exists")
        return place

    @field_validator("task", "grader", "response_format")
    def _can_be_read(cls, value: Any, info: Any) -> Any:
        """A grader's file or preset becomes its JSON."""
        readers = {"task": load_task, "grader": read_grader, "response_format": schema_of}
        read = None if value is None else readers[info.field_name](value)
        as_it_is = info.field_name != "grader" or isinstance(value, Grader) or is_function(value)
        return value if as_it_is else read and read[0]

    @model_validator(mode="after")
    def _micro_batch_divides(self) -> Self:
        if self.micro_batch and self.batch % self.micro_batch:
            raise ValueError(f"micro_batch: {self.micro_batch}, expected to divide {self.batch}")
        return self

    @property
    def batch(self) -> int:
        """Completions that one optimiser step learns from (sft: one a row)."""
        return self.prompts_per_step * (self.answers_per_prompt if self.method == "grpo" else 1)

    def replace(self, **changes: Any) -> Self:
        """A copy with other values, checked like a new one."""
        return RunConfig(**dict(self) | changes)

    def to_json(self) -> dict[str, Any]:
        """A function as what a run keeps of it: its source and hash."""
        return dict(self) | {"grader": self.grader and read_grader(self.grader)[0]}


def fault_line(fault: Any) -> str:
    """One of pydantic's errors in our form: "steps: -1, expected to be …"."""
    name = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        near = [OURS[name]] if name in OURS else get_close_matches(name, RunConfig.model_fields, 1)
        return f"{name}: unknown field, expected {near[0] if near else 'one of RunConfig'}"
    if fault["type"] == "value_error":  # raised by a validator above, or a UserError from below
        return f"{name}: {fault['ctx']['error']}".removeprefix(": ")
    expected = fault["msg"].partition(" should ")[2]  # "Input should be greater than 0"
    return f"{name}: {shorten(repr(fault['input']))}, expected to {expected}"


def config_file(name: str | Path) -> Path | None:
    """Where a RunConfig is: in a .json, or one of datasets/presets, such as extraction/t4_colab."""
    shipped = dataset("presets") / f"{name}.json"
    return Path(name) if str(name).endswith(".json") else shipped if shipped.exists() else None


def read_run_config(file: str | Path, model: str | None = None, sandbox: bool = False) -> RunConfig:
    """The RunConfig in a file. A relative path in it is looked for beside the file first."""
    file = config_file(file) or file
    record, folder = read_json(file), Path(file).parent
    if not isinstance(record, dict):
        raise UserError(f"{file}: {type(record).__name__}, expected one JSON object (a RunConfig)")
    for name, value in record.items():
        if name in PATHS and isinstance(value, str) and value:
            record[name] = beside(folder, value)
    record |= {"model": model} if model else {}
    return RunConfig(**record | ({"sandbox": True} if sandbox else {}))


def config_base(config: RunConfig) -> str:
    """Its folder or hub name. UserError where `model` is an adapter: training would drop it."""
    base, adapter = model_folder(config.model)
    if adapter is not None:
        change = f'set "model" to {base} and "init_adapter" to {config.model}'
        raise UserError(f"model: {config.model} is an adapter, expected a base: {change}")
    return base


def config_task(config: RunConfig) -> Task:
    """The task that it names, with the config's own fields in place of its; or these alone."""
    names = ("grader", "answer_template", "group_by", "patterns", "response_format")
    own = {name: value for name in names if (value := getattr(config, name)) is not None}
    weak, sandbox = config.allow_weak_isolation, config.sandbox
    own["settings"] = GraderSettings(allow_weak_isolation=weak, sandbox=sandbox)
    if "grader" in own or config.grader_maximum is not None:
        own["maximum"] = config.grader_maximum
    if config.task:
        return replace(load_task(config.task), **own)
    if not config.grader:
        raise UserError("RunConfig: no grader: set grader (a function, preset or JSON), or task")
    task = Task(Path(config.train_file or "run").stem, **own)
    # A function judges text by itself: a right answer need not be equal to the template's.
    by_itself = task.grader.function and not (config.answer_template or "").startswith(("[", '{"'))
    if config.answer_template and not by_itself:
        task.metrics, task.headline = ["top1", "mrr"], "top1"
    return task


def config_rows(config: RunConfig, task: Task) -> tuple[list[dict], list[dict]]:
    """(training rows, held-out rows): from the config's files, else from the task's folder."""

    def rows(split: str, file: str | None) -> list[dict]:
        return read_rows(file) if file else task.rows(split) if config.task else []

    return rows("train", config.train_file), rows("validation", config.validation_file)
