"""GRPO through TRL's GRPOTrainer: what it is given, and what is taken out of it.

The prompt is all that the model reads. The row's answer fields travel beside it, to the grader.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from rftkit.data.records import Sample, SamplingConfig
from rftkit.data.rows import row_ids
from rftkit.evaluation import pattern_shares
from rftkit.graders import GraderFailure
from rftkit.graders.report import PROGRAM_FAILED
from rftkit.policy import LocalPolicy, decode, end_tokens, merged_adapter
from rftkit.signal.template import look_at_template
from rftkit.task import Task
from rftkit.training.config import RunConfig
from rftkit.training.heldout import rounded
from rftkit.training.plan import run_order
from rftkit.training.steps import Session, run_trainer, trainer_settings
from rftkit.training.watchdogs import TrainingStopped, garbage_in_first_batch, save_batch

TEMPLATE_ROWS = 8


def run_grpo(session: Session) -> None:
    """GRPO through TRL's trainer, one session of it."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl import GRPOConfig, GRPOTrainer

    policy, config, plan = session.policy, session.config, session.plan
    session.task.grader.check_ready()  # a formula or field that is not there stops here, not later
    session.task.grader.check_rows(session.rows)
    arguments = GRPOConfig(
        **trainer_settings(config, plan, session.out),
        num_generations=config.answers_per_prompt,
        max_completion_length=config.max_completion_tokens,
        temperature=config.temperature,
        beta=config.beta,
        shuffle_dataset=False,  # run_order has drawn the order of the whole run
    )
    reward = StepReward(session.task, session)
    own_sampler = {} if policy.engine == "unsloth" else {"rollout_func": rollouts(policy, config)}
    if own_sampler:
        own_sampler["rollout_func"] = timed(own_sampler["rollout_func"], session, "sampling")
    trainer = GRPOTrainer(
        model=policy.model,
        processing_class=policy.tokenizer,
        reward_funcs=reward,
        train_dataset=prompt_table(session.rows, plan.steps, config),
        args=arguments,
        **own_sampler,
    )
    if not config.init_adapter and "ref" in policy.model.peft_config:
        # TRL keeps a copy of the adapter as the reference. Of one that has learned nothing it adds
        # zeros to the base; without the copy TRL takes the base alone: the same numbers, sooner.
        policy.model.delete_adapter("ref")
    run_trainer(session, trainer, reward)


def prompt_table(rows: list[dict[str, Any]], steps: int, config: RunConfig) -> Any:
    """A line for every prompt of the whole run, in its order: what the model reads, and beside it
    the whole row, which goes to the grader alone."""
    from datasets import Dataset

    table = Dataset.from_list(
        [
            {
                "prompt": row["messages"],
                "item": json.dumps(row, ensure_ascii=False),
                "row_id": row_id,
            }
            for row, row_id in zip(rows, row_ids(rows))
        ]
    )
    return table.select(run_order(len(rows), steps, config.prompts_per_step, config.seed))


def step_seed(config: RunConfig, step: int) -> int:
    """Of a step's answers (steps from 1). It depends on the step alone: a run that goes on draws
    what it would have drawn."""
    return config.seed * 100_003 + step


def rollouts(policy: LocalPolicy, config: RunConfig) -> Callable:
    """policy's sampler as TRL's `rollout_func`: the same answers, several times quicker for a
    tiny model, whose time goes into Python between two tokens."""

    def draw(prompts: list, trainer: Any) -> dict[str, list]:
        group = config.answers_per_prompt
        texts = [policy.render(p) for p in prompts[::group]]
        ids = policy.tokenizer(texts, add_special_tokens=False).input_ids
        seed = step_seed(config, trainer.state.global_step + 1)
        settings = SamplingConfig(
            temperature=config.temperature, max_new_tokens=config.max_completion_tokens, seed=seed
        )
        training = policy.model.training
        policy.model.eval()
        with merged_adapter(policy.model) as model:
            drawn = decode(model, policy.tokenizer, ids, group, settings, list(range(len(ids))))
        policy.model.train(training)
        return {
            "prompt_ids": [i for i in ids for _ in range(group)],
            "completion_ids": [tokens for tokens, _ in drawn],
            "logprobs": None,
        }

    return draw


def timed(function: Callable, session: Session, name: str) -> Callable:
    """The same function; its seconds are added to the step's clock under `name`."""

    def call(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            spent = time.perf_counter() - began
            session.clock[name] = session.clock.get(name, 0.0) + spent

    return call


class StepReward:
    """The reward function that TRL calls once a step, and what it saw there.

    It hands on to the grader's own reward function (`Grader.as_reward_functions`), so each answer
    is graded once and TRL's log has its series; the samples are kept for ours.
    """

    def __init__(self, task: Task, session: Session | None = None):
        """session   of a run: looks at the first batch, tells an answer that was cut"""
        self.task, self.session = task, session
        self.samples: list[Sample] = []
        self.checked = session is None or session.resume_from is not None
        self.ends: set[int] | None = None
        if session is not None:
            self.ends = end_tokens(session.policy.model, session.policy.tokenizer)
        (self.reward,) = task.grader.as_reward_functions(
            item_column="item", observer=self.keep, end_token_ids=self.ends
        )
        self.__name__ = self.reward.__name__

    def __call__(self, prompts, completions, item, **columns) -> list[float | None]:
        began = time.perf_counter()
        try:
            return self.reward(completions, prompts, item=item, **columns)
        finally:
            ids = columns.get("completion_ids") or []
            names = columns.get("row_id") or []
            lengths = self.prompt_lengths(prompts)
            for number, sample in enumerate(self.samples):
                sample.completion_tokens = len(ids[number]) if ids else 0
                sample.row_id = names[number] if names else ""
                sample.index = number % self.session.config.answers_per_prompt if ids else 0
                sample.prompt_tokens = lengths[number]
                if self.session is not None:
                    drew = self.session.clock.get("sampling", 0.0)  # 0 where TRL draws
                    sample.seconds = round(drew / len(self.samples), 6)
                    step = len(self.session.recorder.log) + 1
                    sample.seed = step_seed(self.session.config, step)
            if self.session is not None:
                self.session.clock["grading"] = time.perf_counter() - began
            if not self.checked and ids:
                self.check_first_batch(prompts, ids)

    def keep(self, samples: list, grades: list) -> None:
        """Hears the samples and their grades from the grader's reward function."""
        self.samples = []
        for sample, grade in zip(samples, grades):
            if isinstance(sample, dict):  # an answer with tool calls
                sample = Sample(reasoning=sample["reasoning"], output_text=sample["output_text"])
            sample.model = "policy"
            sample.grade, sample.sub_grades = grade.reward, dict(grade.sub_rewards)
            sample.errors = grade.errors
            self.samples.append(sample)
        failed = [f for grade in grades for _, f in grade.faults if f.field == PROGRAM_FAILED]
        whole = all(PROGRAM_FAILED in grade.errors for grade in grades)
        if (
            failed and whole and self.session is not None
        ):  # a batch of zeros teaches nothing and costs a step
            raise GraderFailure(self.__name__, len(grades), len(grades), [failed[0].detail])

    def prompt_lengths(self, prompts: list) -> list[int]:
        """Tokens of each prompt as the policy reads it; 0 where there is no run."""
        if self.session is None:
            return [0] * len(prompts)
        policy, size = self.session.policy, self.session.config.answers_per_prompt
        texts = [policy.render(prompt) for prompt in prompts[::size]]
        ids = policy.tokenizer(texts, add_special_tokens=False).input_ids
        return [len(tokens) for tokens in ids for _ in range(size)]

    def check_first_batch(self, prompts: list, ids: list) -> None:
        self.checked = True
        policy = self.session.policy
        look = look_at_template(policy, self.session.rows[:TEMPLATE_ROWS])
        texts = [policy.render(prompt) for prompt in prompts]
        found = look.faults + garbage_in_first_batch(policy.tokenizer, texts, ids, self.ends)
        if found:
            found += look.odd + [look.no_end] * bool(look.no_end)  # odd alone may be meant so
            batch = save_batch(self.session.out, 1, "garbage", self.samples)
            raise TrainingStopped(
                "garbage in the first batch",
                f"step 1: {'; '.join(found)}. No weight has changed; the batch stands in {batch}: "
                "mend the model's chat template or tokenizer, or the limit",
            )

    def group_spread(self) -> float:
        """Mean over the prompts of the standard deviation of their answers' grades."""
        size = self.session.config.answers_per_prompt if self.session else len(self.samples)
        grades = [s.grade for s in self.samples]
        groups = [grades[i : i + size] for i in range(0, len(grades), size)]
        known = [[g for g in group if g is not None] for group in groups]
        spreads = [statistics.pstdev(group) for group in known if group]
        return round(statistics.mean(spreads), 4) if spreads else 0.0

    def summary(self) -> dict[str, Any]:
        """Of the last step: mean of each sub-grader, share of each thinking pattern, mean spread
        (standard deviation) within a group, and the share of answers with each grading error."""
        names = sorted({name for s in self.samples for name in s.sub_grades})
        means = {
            name: sum(s.sub_grades.get(name) or 0.0 for s in self.samples) / len(self.samples)
            for name in names
        }
        shares = pattern_shares(self.task, [self.samples])
        errors = Counter(error for sample in self.samples for error in sample.errors)
        return {
            "sub_rewards": rounded(means),
            "patterns": rounded(shares),
            "group_spread": self.group_spread(),
            "errors": rounded({name: n / len(self.samples) for name, n in errors.items()}),
        }
