"""What a GRPO step learns from: completions that our sampler draws, and their rewards."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable
from typing import Any

from rftkit.decoding import decode, end_tokens
from rftkit.evaluation import pattern_shares, rounded
from rftkit.graders.answer import PROGRAM_FAILED
from rftkit.graders.rewards import GraderFailure, reward_function
from rftkit.policy import merged_adapter
from rftkit.records import Sample, SamplingConfig
from rftkit.signal.checks import check_template
from rftkit.task import Task
from rftkit.training.config import RunConfig
from rftkit.training.session import Session
from rftkit.training.watchdogs import TrainingStopped, garbage_in_first_batch, save_batch

TEMPLATE_ROWS = 8  # read with the first batch


def step_seed(config: RunConfig, step: int) -> int:
    """It depends on the step (from 1) alone: a resumed run draws what it would have drawn."""
    return config.seed * 100_003 + step


def sampler(session: Session) -> Callable[[list, Any], dict[str, Any]]:
    """The policy's sampler as TRL's `rollout_func`: several times quicker for a tiny model, whose
    time goes into Python between two tokens."""
    policy, config = session.policy, session.config
    group = config.answers_per_prompt

    def draw(prompts: list, trainer: Any) -> dict[str, Any]:
        ids = policy.encode(prompts[::group])
        settings = SamplingConfig(
            temperature=config.temperature,
            max_new_tokens=config.max_completion_tokens,
            seed=step_seed(config, trainer.state.global_step + 1),
        )
        training = policy.model.training
        policy.model.eval()
        with session.timed("sampling"), merged_adapter(policy.model) as model:
            drawn = decode(model, policy.tokenizer, ids, group, settings, list(range(len(ids))))
        policy.model.train(training)
        return {
            "prompt_ids": [i for i in ids for _ in range(group)],
            "completion_ids": [tokens for tokens, _ in drawn],
            "logprobs": None,
        }

    return draw


class StepReward:
    """The reward function that TRL calls once a step; it keeps the step's graded samples."""

    def __init__(self, task: Task, session: Session | None = None):
        """session   of a run: then the first batch is checked, and a truncated answer scores 0"""
        self.task, self.session = task, session
        self.samples: list[Sample] = []
        self.checked = session is None or session.resume_from is not None
        policy = session and session.policy
        self.ends = end_tokens(policy.model, policy.tokenizer) if policy else None
        self.reward = reward_function(
            task.grader, item_column="item", observer=self.keep, end_token_ids=self.ends
        )
        self.__name__ = self.reward.__name__

    def __call__(self, prompts, completions, **columns) -> list[float | None]:
        if self.session is None:
            return self.reward(completions, prompts, **columns)
        try:
            with self.session.timed("grading"):
                return self.reward(completions, prompts, **columns)
        finally:  # a batch whose grader fails is kept, too
            self.complete_samples(prompts, **columns)
            if not self.checked:
                self.checked = True
                self.check_first_batch(prompts, columns["completion_ids"])

    def keep(self, samples: list, grades: list) -> None:
        """Called by the grader's reward function with the batch it graded."""
        self.samples = []
        for sample, grade in zip(samples, grades):
            if isinstance(sample, dict):  # an answer with tool calls
                sample = Sample(reasoning=sample["reasoning"], output_text=sample["output_text"])
            sample.model = "policy"
            sample.grade, sample.sub_grades = grade.reward, dict(grade.sub_rewards)
            sample.errors = grade.errors
            self.samples.append(sample)
        failed = [f for grade in grades for _, f in grade.faults if f.field == PROGRAM_FAILED]
        if self.session and failed and all(PROGRAM_FAILED in grade.errors for grade in grades):
            # A batch of zeros teaches nothing and costs a step.
            raise GraderFailure(self.__name__, len(grades), len(grades), [failed[0].detail])

    def complete_samples(self, prompts, completion_ids, row_id, **columns) -> None:
        """What only the run knows of a sample: its place, lengths, seed and time."""
        session, group = self.session, self.session.config.answers_per_prompt
        lengths = list(map(len, session.policy.encode(prompts[::group])))
        for number, sample in enumerate(self.samples):
            sample.row_id, sample.index = row_id[number], number % group
            sample.prompt_tokens = lengths[number // group]
            sample.completion_tokens = len(completion_ids[number])
            seconds = session.clock.get("sampling", 0.0) / len(self.samples)  # 0 where TRL draws
            sample.seconds = round(seconds, 6)
            sample.seed = step_seed(session.config, len(session.recorder.log) + 1)

    def check_first_batch(self, prompts: list, completion_ids: list) -> None:
        policy = self.session.policy
        template = check_template(policy, self.session.rows[:TEMPLATE_ROWS])
        texts = [policy.render(prompt) for prompt in prompts]
        garbage = garbage_in_first_batch(policy.tokenizer, texts, completion_ids, self.ends)
        if faults := template.faults + garbage:
            faults += template.odd
            batch = save_batch(self.session.out, 1, "garbage", self.samples)
            message = f"step 1: {'; '.join(faults)}; the batch stands in {batch}, no weight has "
            message += "changed: fix the model's chat template or tokenizer, or the limit"
            raise TrainingStopped("garbage in the first batch", message)

    def summary(self) -> dict[str, Any]:
        """Means of the sub-graders; shares of patterns and of errors; the mean standard deviation
        of the grades within a group."""
        samples, count = self.samples, len(self.samples)
        group = self.session.config.answers_per_prompt if self.session else count
        grades = [
            [s.grade for s in samples[i : i + group] if s.grade is not None]
            for i in range(0, count, group)
        ]
        stds = [statistics.pstdev(group) for group in grades if group]
        names = sorted({name for s in samples for name in s.sub_grades})
        means = {n: sum(s.sub_grades.get(n) or 0.0 for s in samples) / count for n in names}
        errors = Counter(error for sample in samples for error in sample.errors)
        return {
            "sub_rewards": rounded(means),
            "patterns": rounded(pattern_shares(self.task, [samples])),
            "group_spread": round(statistics.mean(stds), 4) if stds else 0.0,
            "errors": rounded({name: n / count for name, n in errors.items()}),
        }
