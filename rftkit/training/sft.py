"""SFT through TRL's SFTTrainer: the same run, but the completions are given, not sampled."""

from __future__ import annotations

import math
import random
from typing import Any

from rftkit.data.errors import UserError
from rftkit.graders import fill_template
from rftkit.task import Task
from rftkit.training.config import RunConfig
from rftkit.training.watch import step_callback, trainer_settings


def run_sft(policy, task, rows, config, recorder, watch) -> dict[str, Any]:
    """SFT through TRL's trainer: the loss on the completion alone; -> {"samples": 0}."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    examples = [sft_example(policy, task, row, config) for row in rows]
    random.Random(config.seed).shuffle(examples)
    batch = min(config.prompts_per_step, len(examples))
    settings = trainer_settings(config, recorder.out)
    if config.epochs:
        settings["max_steps"] = min(config.steps, config.epochs * math.ceil(len(examples) / batch))
    arguments = SFTConfig(**settings, per_device_train_batch_size=batch, max_length=None)
    trainer = SFTTrainer(
        model=policy.model,
        processing_class=policy.tokenizer,
        train_dataset=Dataset.from_list(examples),
        args=arguments,
        callbacks=[step_callback(policy, config, recorder, watch)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return {"samples": 0}


def sft_example(policy, task: Task, row: dict, config: RunConfig) -> dict[str, list[int]]:
    """Token ids, and labels that are -100 (not learned) on the prompt."""
    completion = row.get("completion")
    if completion is None:
        template = config.completion_template or task.answer_template
        if template is None:
            raise UserError(
                "method sft: rows without `completion` and no answer_template, expected one of "
                "them: say how a right answer is written"
            )
        head, _, body = template.rpartition("</think>")
        completion = (head + "</think>" if head else "") + fill_template(body, row)
    tokenizer = policy.tokenizer
    prompt = tokenizer(policy.render(row["messages"]), add_special_tokens=False).input_ids
    answer = tokenizer(completion, add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}
