"""GRPO through TRL's GRPOTrainer: what it is given, and what is taken out of it.

The prompt is all that the model reads. The row's answer fields travel beside it, to the grader.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from rftkit.data.records import Sample, SamplingConfig
from rftkit.data.rows import answer_fields
from rftkit.evaluation import pattern_shares
from rftkit.graders import GraderFailure
from rftkit.graders.rewards import MAX_LOST_SHARE
from rftkit.policy import LocalPolicy, decode, merged_adapter
from rftkit.task import Task
from rftkit.training.config import RunConfig
from rftkit.training.watch import rounded, step_callback, trainer_settings


def run_grpo(policy, task, rows, config, recorder, watch) -> dict[str, Any]:
    """GRPO through TRL's trainer; -> {"samples": completions drawn}."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    task.grader.check_ready()  # a formula or a field that is not there stops here, not at step 1
    task.grader.check_rows(rows)
    batch = config.prompts_per_step * config.answers_per_prompt
    arguments = GRPOConfig(
        **trainer_settings(config, recorder.out),
        per_device_train_batch_size=batch,
        num_generations=config.answers_per_prompt,
        max_completion_length=config.max_completion_tokens,
        temperature=config.temperature,
        beta=config.beta,
    )
    reward = StepReward(task)
    # The prompt is what the model reads; the answer fields go to the grader alone.
    table = Dataset.from_list(
        [
            {"prompt": row["messages"], "item": json.dumps(answer_fields(row), ensure_ascii=False)}
            for row in rows
        ]
    )
    own_sampler = {} if policy.engine == "unsloth" else {"rollout_func": rollouts(policy, config)}
    trainer = GRPOTrainer(
        model=policy.model,
        processing_class=policy.tokenizer,
        reward_funcs=reward,
        train_dataset=table,
        args=arguments,
        callbacks=[step_callback(policy, config, recorder, watch, reward)],
        **own_sampler,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    steps = trainer.state.global_step
    return {"samples": steps * batch}


def rollouts(policy: LocalPolicy, config: RunConfig) -> Callable:
    """policy.py's sampler as TRL's `rollout_func`: the same answers, several times quicker for a
    tiny model, whose time goes into Python between two tokens."""

    def draw(prompts: list, trainer: Any) -> dict[str, list]:
        group = config.answers_per_prompt
        texts = [policy.render(p) for p in prompts[::group]]
        ids = policy.tokenizer(texts, add_special_tokens=False).input_ids
        seed = config.seed * 100_003 + trainer.state.global_step + 1
        settings = SamplingConfig(
            temperature=config.temperature, max_new_tokens=config.max_completion_tokens, seed=seed
        )
        training = policy.model.training
        policy.model.eval()
        with merged_adapter(policy.model):
            drawn = decode(
                policy.model, policy.tokenizer, ids, group, settings, list(range(len(ids)))
            )
        policy.model.train(training)
        return {
            "prompt_ids": [i for i in ids for _ in range(group)],
            "completion_ids": [tokens for tokens, _ in drawn],
            "logprobs": None,
        }

    return draw


class StepReward:
    """The reward function that TRL calls once a step, and what it saw there."""

    def __init__(self, task: Task):
        self.task = task
        self.__name__ = task.grader.name
        self.samples: list[Sample] = []

    def __call__(self, prompts, completions, item, **columns) -> list[float | None]:
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        self.samples = [Sample.from_text(text, model="policy") for text in texts]
        for fields_of_row, sample in zip(item, self.samples):
            self.task.grade_sample(json.loads(fields_of_row), sample)
        lost = [sample for sample in self.samples if sample.grade is None]
        if len(lost) > MAX_LOST_SHARE * len(self.samples):
            reasons = sorted({error for sample in lost for error in sample.errors})
            raise GraderFailure(self.__name__, len(lost), len(self.samples), reasons)
        return [sample.grade for sample in self.samples]

    def summary(self) -> dict[str, Any]:
        """Mean of each sub-grader and the share of each thinking pattern, over the last step."""
        names = sorted({name for s in self.samples for name in s.sub_grades})
        means = {
            name: sum(s.sub_grades.get(name) or 0.0 for s in self.samples) / len(self.samples)
            for name in names
        }
        shares = pattern_shares(self.task, [self.samples])
        return {"sub_rewards": rounded(means), "patterns": rounded(shares)}
