"""RunConfig: everything that fixes a run, each field with its meaning and its default."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any

from rftkit.data.errors import UserError
from rftkit.data.rows import read_rows
from rftkit.task import Task, load_task, task_from_json

REPORTS = {  # report_to -> packages of which one must be installed
    "none": [],
    "tensorboard": ["tensorboard", "tensorboardX"],
    "trackio": ["trackio"],
}
# What may differ when a run goes on: none of these changes what is learned.
FREE_FIELDS = ("gate", "report_to", "save_every", "allow_weak_isolation")
# Compared as what stands there (folder.py, data_identity): a file may be named in several ways.
COMPARED_BY_CONTENT = ("task", "train_file", "validation_file", "grader", "answer_template",
                       "group_by", "patterns")  # fmt: skip
MOST = {  # beyond these a number is a slip of the pen, and would fill the memory
    "prompts_per_step": 100_000,
    "answers_per_prompt": 10_000,
    "steps": 10_000_000,
    "max_completion_tokens": 1_000_000,
    "lora_rank": 4_096,
}


@dataclass
class RunConfig:
    """Everything that fixes a run. You state prompts and answers; plan.py derives batches.

    field (unit)                   default          meaning
    model                          embedded:mini    or a folder, or a hub name
    engine                         auto             auto | transformers | unsloth
    task                           none             a task folder, or a name under datasets/
    train_file … patterns          none             instead of a task, or in place of what the task
                                                    says: the fields of task.json, and
                                                    validation_file for the held-out rows
    method                         grpo             grpo: answers are sampled and graded; sft:
                                                    completions are given
    prompts_per_step (rows)        8
    answers_per_prompt (answers)   8                the group whose scores are compared (grpo)
    steps (optimiser steps)        70               at most; sft: `epochs` may end it earlier
    learning_rate                  none             of the LoRA weights, constant after 3 steps;
                                                    none: by the model's width (plan.py says why)
    beta                           0.04             weight of the KL term that ties to the start
    temperature                    1.0              of the sampled answers
    max_completion_tokens (tokens) 64               longer answers are cut and usually score 0
    lora_rank                      4                alpha is the same, so the adapter's scale is 1
    init_adapter                   none             a folder (adapter or run) to start from
    micro_batch (answers)          none             answers a forward and backward pass; none: as
                                                    many as the memory holds. Divides the batch.
    eval_every (steps)             5                between two looks at held-out rows; 0 never
    patience (looks)               4                stop after so many without a better; 0 never
    eval_rows (rows)               240              held-out rows a look (the first of the file)
    eval_samples (answers)         2                a held-out row
    keep_start                     true             may the untrained adapter be the best?
    save_every (steps)             5                between two checkpoints: what a kill can cost
    watchdog_steps (steps)         10               so many in a row without a live group, or under
                                                    entropy_floor, stop the run; 0 never
    entropy_floor (nats a token)   0.01             below it the answers no longer differ
    completion_template            none             sft: what to say; answer_template by default
    epochs (passes)                0                sft: over the rows; 0 counts steps alone
    gate                           on               on | off: the signal gate before step 1 (grpo)
    report_to                      none             none | tensorboard (RUN/tensorboard) | trackio;
                                                    the package is yours to install
    allow_weak_isolation           false            run python graders where this machine cannot
                                                    keep them from files and network: only texts
                                                    that you have read
    seed                           0                of everything that is drawn
    """

    model: str = "embedded:mini"
    engine: str = "auto"
    task: str | None = None
    train_file: str | None = None
    validation_file: str | None = None
    grader: Any = None
    answer_template: str | None = None
    group_by: str | None = None
    patterns: dict[str, str] = field(default_factory=dict)
    method: str = "grpo"
    prompts_per_step: int = 8
    answers_per_prompt: int = 8
    steps: int = 70
    learning_rate: float | None = None
    beta: float = 0.04
    temperature: float = 1.0
    max_completion_tokens: int = 64
    lora_rank: int = 4
    init_adapter: str | None = None
    micro_batch: int | None = None
    eval_every: int = 5
    patience: int = 4
    eval_rows: int = 240
    eval_samples: int = 2
    keep_start: bool = True
    save_every: int = 5
    watchdog_steps: int = 10
    entropy_floor: float = 0.01
    completion_template: str | None = None
    epochs: int = 0
    gate: str = "on"
    report_to: str = "none"
    allow_weak_isolation: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.answer_template, dict | list):  # JSON, as in a task.json
            self.answer_template = json.dumps(self.answer_template, ensure_ascii=False)

    def problems(self) -> list[str]:
        """Every impossible value, each by its name; empty where the config can run."""
        found = []

        def need(good: bool, name: str, expected: str) -> None:
            if not good:
                found.append(f"{name}: {getattr(self, name)!r}, expected {expected}")

        need(self.method in ("grpo", "sft"), "method", '"grpo" or "sft"')
        need(self.engine in ("auto", "transformers", "unsloth"), "engine", "auto, transformers, …")
        need(self.gate in ("on", "off"), "gate", '"on" or "off"')
        known = isinstance(self.report_to, str) and self.report_to in REPORTS
        need(known, "report_to", ", ".join(REPORTS))
        packages = REPORTS[self.report_to] if known else []
        there = not packages or any(find_spec(name) for name in packages)
        need(there, "report_to", f"an installed package: pip install {' or '.join(packages)}")
        for name in ("model", "task", "train_file", "validation_file", "answer_template",
                     "group_by", "init_adapter", "completion_template"):  # fmt: skip
            value, may_be_none = getattr(self, name), name != "model"
            good = (value is None and may_be_none) or (isinstance(value, str) and value != "")
            need(good, name, "a text")
        for name in ("prompts_per_step", "steps", "max_completion_tokens", "lora_rank"):
            need(is_whole(getattr(self, name), 1), name, "a whole number from 1")
        for name in ("eval_every", "patience", "epochs", "seed", "watchdog_steps"):
            need(is_whole(getattr(self, name), 0), name, "a whole number from 0")
        for name, most in MOST.items():
            value = getattr(self, name)
            need(not is_whole(value, most + 1), name, f"at most {most:,}")
        if is_whole(self.seed, 0):
            need(self.seed < 2**32, "seed", "a number below 2^32, as random generators take them")
        for name in ("eval_rows", "eval_samples", "save_every"):
            need(is_whole(getattr(self, name), 1), name, "a whole number from 1")
        need(
            is_whole(self.answers_per_prompt, 2),
            "answers_per_prompt",
            "a whole number from 2: one answer has nothing to be compared with",
        )
        automatic = self.learning_rate is None
        need(automatic or is_number(self.learning_rate, above=0), "learning_rate",
             "a number above 0, or none for an automatic one")  # fmt: skip
        need(is_number(self.temperature, above=0), "temperature", "a number above 0")
        for name in ("beta", "entropy_floor"):
            need(is_number(getattr(self, name), least=0), name, "a number from 0")
        for name in ("keep_start", "allow_weak_isolation"):
            need(isinstance(getattr(self, name), bool), name, "true or false")
        need(are_patterns(self.patterns), "patterns", '{"name": "regular expression"}')
        if self.micro_batch is not None:
            whole = is_whole(self.micro_batch, 1)
            if (
                whole
                and is_whole(self.prompts_per_step, 1)
                and is_whole(self.answers_per_prompt, 2)
            ):
                whole = self.batch % self.micro_batch == 0
            need(whole, "micro_batch", "a whole number that divides the answers of a step")
        for name in ("train_file", "validation_file", "init_adapter"):
            place = getattr(self, name)
            if isinstance(place, str) and place:
                need(Path(place).exists(), name, "a file or folder that exists")
        if isinstance(self.task, str) and self.task:
            try:
                load_task(self.task)
            except UserError as error:
                found.append(f"task: {error}")
        if self.task is None:
            for name in ("train_file", "grader"):
                need(getattr(self, name) is not None, name, "a value, or `task` instead")
        return found

    @property
    def batch(self) -> int:
        """Completions that one optimiser step learns from (sft: one a row)."""
        return self.prompts_per_step * (self.answers_per_prompt if self.method == "grpo" else 1)

    def check(self) -> None:
        found = self.problems()
        if found:
            raise UserError("RunConfig: " + "; ".join(found))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def differences(self, other: RunConfig, content: bool = False) -> list[str]:
        """The fields in which the two would train differently: "steps: 70 there, 40 here".

        content   those that name rows and grader instead: what they name may be the same all
                  the same, which folder.py knows
        """
        here, there = self.to_json(), other.to_json()
        names = COMPARED_BY_CONTENT if content else set(here) - {*FREE_FIELDS, *COMPARED_BY_CONTENT}
        return [
            f"{name}: {there[name]!r} there, {here[name]!r} here"
            for name in here
            if name in names and not same(name, here[name], there[name])
        ]

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> RunConfig:
        known = {f.name for f in fields(cls)}
        unknown = sorted(record.keys() - known)
        config = cls(**{name: value for name, value in record.items() if name in known})
        if unknown:
            others = "".join(f"; {problem}" for problem in config.problems())
            raise UserError(
                f"RunConfig: unknown {', '.join(unknown)}, expected fields among "
                f"{', '.join(sorted(known))}: check the spelling{others}"
            )
        return config


def same(name: str, a: Any, b: Any) -> bool:
    """Equal, or two names of one folder."""
    places = name in ("model", "init_adapter") and isinstance(a, str) and isinstance(b, str)
    return a == b or (places and Path(a).exists() and Path(a).resolve() == Path(b).resolve())


def is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: Any, above: float | None = None, least: float | None = None) -> bool:
    try:
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            return False
    except OverflowError:  # a whole number beyond every float
        return False
    return (above is None or value > above) and (least is None or value >= least)


def are_patterns(value: Any) -> bool:
    """{"name": "regular expression"}, and every expression compiles."""
    try:
        return isinstance(value, dict) and all(re.compile(v) for v in value.values())
    except (re.error, TypeError):
        return False


def config_base(config: RunConfig) -> str:
    """The folder, or hub name, of the base that the config names.

    Raises UserError where it names an adapter: training would begin without it, from its base.
    """
    from rftkit.policy import model_folder

    base, adapter = model_folder(config.model)
    if adapter is not None:
        raise UserError(
            f'model: {config.model} is an adapter, expected a base: to go on from it, "model" '
            f'names its base ({base}) and "init_adapter" names {config.model}'
        )
    return base


def config_task(config: RunConfig) -> Task:
    """The task that a config names, with the config's own fields in place of the task's; or, where
    it names none, the one that its own fields make up."""
    if config.task is not None:
        task = load_task(config.task)
        own = {name: getattr(config, name) for name in ("answer_template", "group_by", "patterns")}
        changes = {name: value for name, value in own.items() if value}
        if config.grader is not None:
            changes["grader_spec"] = own_task(config).grader_spec
        task = replace(task, **changes)
    else:
        task = own_task(config)
    task.allow_weak_isolation = config.allow_weak_isolation
    return task


def own_task(config: RunConfig) -> Task:
    return task_from_json(
        {
            "name": Path(config.train_file or "run").stem,
            "question": "",
            "grader": config.grader,
            "answer_template": config.answer_template,
            "group_by": config.group_by,
            "patterns": config.patterns,
            "metrics": ["top1", "mrr"] if config.answer_template else ["grade"],
            "headline": "top1" if config.answer_template else "grade",
        }
    )


def config_rows(config: RunConfig, task: Task) -> tuple[list[dict], list[dict]]:
    """(training rows, held-out rows): from the config's files, else from the task's folder."""
    named = config.task is not None
    sides = {"train": config.train_file, "validation": config.validation_file}
    rows, held_out = (
        read_rows(file) if file else task.rows(side) if named else []
        for side, file in sides.items()
    )
    return rows, held_out
