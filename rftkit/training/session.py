"""One session of a run: its state, the sampler and reward of a step, and how Ctrl-C ends it."""

from __future__ import annotations

import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rftkit.decoding import decode, end_tokens
from rftkit.evaluation import pattern_shares, rounded
from rftkit.graders.answer import PROGRAM_FAILED
from rftkit.graders.rewards import GraderFailure, reward_function
from rftkit.policy import LocalPolicy, merged_adapter
from rftkit.records import Sample, SamplingConfig
from rftkit.signal.checks import check_template
from rftkit.task import Task
from rftkit.training.config import RunConfig
from rftkit.training.heldout import HeldOut, Progress
from rftkit.training.plan import Plan
from rftkit.training.store import Recorder, write_checkpoint
from rftkit.training.watchdogs import TrainingStopped, Watchdogs, garbage_in_first_batch, save_batch


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM; the run can be resumed."""


@dataclass
class Interrupts:
    """Did Ctrl-C or SIGTERM ask for an end after the step that is running? A second one stops at
    once."""

    say: Callable[[str], None]
    asked: bool = False

    @contextmanager
    def heard(self) -> Iterator[Interrupts]:
        main = threading.current_thread() is threading.main_thread()  # signals reach no other
        signals = (signal.SIGINT, signal.SIGTERM) if main else ()
        before = {number: signal.signal(number, self.ask) for number in signals}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def ask(self, number: int, frame: Any) -> None:
        if self.asked:
            raise Interrupted("interrupted at once; the last checkpoint stands: start it again")
        self.asked = True
        self.say("stopping after this step, with a checkpoint (once more: at once)")


@dataclass
class Session:
    """A run may take several sessions: each resumes from the checkpoint of the one before."""

    config: RunConfig
    plan: Plan
    policy: LocalPolicy
    task: Task
    rows: list[dict[str, Any]]
    out: Path
    recorder: Recorder
    watchdogs: Watchdogs
    held_out: HeldOut | None
    interrupts: Interrupts
    resume_from: Path | None = None
    stopped: dict[str, Any] | None = None  # the alarm that ended the run, if one did
    clock: dict[str, float] = field(default_factory=dict)  # seconds of this step, by what took them

    @property
    def progress(self) -> Progress:
        return self.held_out.progress if self.held_out else Progress()

    @property
    def no_longer_improves(self) -> bool:
        return 0 < self.config.patience <= self.progress.since_best

    def save(self, trainer: Any) -> None:
        """A checkpoint of the last whole step; what only older ones needed goes."""
        state = {
            "step": trainer.state.global_step,
            "seconds": self.recorder.seconds,
            "positions": self.recorder.positions(),
            "progress": asdict(self.progress),
            "watchdogs": asdict(self.watchdogs),
        }
        write_checkpoint(self.out, trainer, state)
        if self.held_out:
            self.held_out.remove_others()

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the block's seconds to the step's clock."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.clock[name] = self.clock.get(name, 0.0) + time.perf_counter() - began


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
