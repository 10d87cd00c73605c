"""RunConfig: everything that fixes a run, each field with its meaning and its default."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rftkit.data.errors import UserError
from rftkit.data.rows import read_rows
from rftkit.task import Task, load_task, task_from_json


@dataclass
class RunConfig:
    """Everything that fixes a run. You state prompts and answers; batch sizes are derived.

    model                  "embedded:mini", a folder, or a hub name
    engine                 auto | transformers | unsloth
    task                   a task folder, or a name under datasets/; or else the next six:
    train_file, validation_file, grader, answer_template, group_by, patterns
    method                 "grpo" (answers are sampled and graded) or "sft" (completions are given)
    prompts_per_step       rows a step
    answers_per_prompt     completions a row: the group whose scores are compared (GRPO)
    steps                  at most; sft: at most, as epochs may end it earlier
    learning_rate          of the LoRA weights, constant after three steps of warm-up
    beta                   weight of the KL term that ties the model to its base
    temperature            of the sampled answers
    max_completion_tokens  longer answers are cut and usually score 0
    lora_rank              r; alpha is the same, so the adapter's scale is 1
    init_adapter           a folder with an adapter to start from
    eval_every             steps between two looks at the held-out rows; 0 never looks
    patience               stop after so many looks without a better one; 0 never stops early
    eval_rows              held-out rows a look (the first of the file)
    eval_samples           answers a held-out row
    keep_start             may the untrained adapter be the best? (True: never hand back worse)
    completion_template    sft: what the model should say, answer_template by default
    epochs                 sft: passes over the rows; 0 counts steps alone
    gate                   "on" or "off": the signal gate before step 1
    seed                   of everything that is drawn
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
    learning_rate: float = 1e-3
    beta: float = 0.04
    temperature: float = 1.0
    max_completion_tokens: int = 64
    lora_rank: int = 4
    init_adapter: str | None = None
    eval_every: int = 5
    patience: int = 4
    eval_rows: int = 240
    eval_samples: int = 2
    keep_start: bool = True
    completion_template: str | None = None
    epochs: int = 0
    gate: str = "on"
    seed: int = 0

    def problems(self) -> list[str]:
        """Every impossible value, each by its name; empty where the config can run."""
        found = []

        def need(good: bool, name: str, expected: str) -> None:
            if not good:
                found.append(f"{name}: {getattr(self, name)!r}, expected {expected}")

        need(self.method in ("grpo", "sft"), "method", '"grpo" or "sft"')
        need(self.engine in ("auto", "transformers", "unsloth"), "engine", "auto, transformers, …")
        need(self.gate in ("on", "off"), "gate", '"on" or "off"')
        for name in ("prompts_per_step", "steps", "max_completion_tokens", "lora_rank"):
            need(is_whole(getattr(self, name), 1), name, "a whole number from 1")
        for name in ("eval_every", "patience", "epochs", "seed"):
            need(is_whole(getattr(self, name), 0), name, "a whole number from 0")
        for name in ("eval_rows", "eval_samples"):
            need(is_whole(getattr(self, name), 1), name, "a whole number from 1")
        need(
            is_whole(self.answers_per_prompt, 2),
            "answers_per_prompt",
            "a whole number from 2: one answer has nothing to be compared with",
        )
        for name in ("learning_rate", "temperature"):
            need(is_number(getattr(self, name), above=0), name, "a number above 0")
        need(is_number(self.beta, least=0), "beta", "a number from 0")
        need(isinstance(self.keep_start, bool), "keep_start", "true or false")
        if self.task is None:
            for name in ("train_file", "grader"):
                need(getattr(self, name) is not None, name, "a value, or `task` instead")
        return found

    def check(self) -> None:
        found = self.problems()
        if found:
            raise UserError("RunConfig: " + "; ".join(found))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> RunConfig:
        known = {f.name for f in fields(cls)}
        unknown = sorted(record.keys() - known)
        if unknown:
            raise UserError(
                f"RunConfig: unknown {', '.join(unknown)}, expected fields among "
                f"{', '.join(sorted(known))}: check the spelling"
            )
        return cls(**record)


def is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: Any, above: float | None = None, least: float | None = None) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return (above is None or value > above) and (least is None or value >= least)


def config_task(config: RunConfig) -> Task:
    """The task a config names, or the one that its own fields make up."""
    if config.task is not None:
        return load_task(config.task)
    return task_from_json(
        {
            "name": Path(config.train_file).stem,
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
    """(training rows, held-out rows)."""
    if config.task is not None:
        return task.rows("train"), task.rows("validation")
    held_out = read_rows(config.validation_file) if config.validation_file else []
    return read_rows(config.train_file), held_out
