"""What happens around each step of TRL's trainer, for both methods.

TRL's trainers call back: before a step, before the optimiser moves, when the step's numbers are
known. There the record is written, held-out rows are looked at, watchdogs read, checkpoints saved.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rftkit.decoding import decode, end_tokens
from rftkit.evaluation import pattern_shares
from rftkit.files import UserError
from rftkit.graders.answer import PROGRAM_FAILED, fill_template
from rftkit.graders.rewards import GraderFailure, reward_function
from rftkit.policy import LocalPolicy, merged_adapter
from rftkit.records import Sample, SamplingConfig
from rftkit.rows import row_ids
from rftkit.signal.checks import check_template
from rftkit.task import Task
from rftkit.training.config import Plan, RunConfig, run_order
from rftkit.training.heldout import HeldOut, rounded
from rftkit.training.store import Checkpoints, Recorder, read_state, record_of
from rftkit.training.watchdogs import TrainingStopped, Watchdogs, garbage_in_first_batch, save_batch

# ------------------------------------------------------------------------------------------
# from rftkit.training.steps:
# What happens around each step of TRL's trainer, for both methods.
#
# TRL's trainers call back: before a step, before the optimiser moves, when the step's numbers are
# known. There the record is written, held-out rows are looked at, watchdogs read, checkpoints
# saved.


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM: the run saved a checkpoint and can go on."""


@dataclass
class Session:
    """One session of a run: everything that its steps need. A run may take several."""

    config: RunConfig
    plan: Plan
    policy: LocalPolicy
    task: Task
    rows: list[dict[str, Any]]
    out: Path
    recorder: Recorder
    checkpoints: Checkpoints
    watchdogs: Watchdogs
    held_out: HeldOut | None
    interrupts: Interrupts
    resume_from: Path | None = None
    stopped: dict[str, Any] | None = None  # the alarm that ended the run, if one did
    clock: dict[str, float] = field(default_factory=dict)  # seconds of this step, by what took them

    def save(self, trainer: Any) -> Path:
        """A checkpoint of the last whole step; on the way, what only older ones needed goes."""
        state = {
            "step": trainer.state.global_step,
            "seconds": self.recorder.seconds,
            "positions": self.recorder.positions(),
            "held_out": self.held_out.state() if self.held_out else None,
            "watchdogs": self.watchdogs.state(),
        }
        place = self.checkpoints.write(trainer.state.global_step, trainer, state)
        if self.held_out:
            self.held_out.clear()
        return place


def run_trainer(session: Session, trainer: Any, reward: Any = None) -> None:
    """trainer.train() with our callback in it, from the session's checkpoint where it has one.

    reward   what has `.samples` and `.summary()` of the step's batch (grpo)
    """
    from transformers import PrinterCallback

    step = step_callback(session, trainer, reward)
    trainer.add_callback(step)
    trainer.remove_callback(PrinterCallback)
    session.recorder.begin(session.plan, session.held_out.start if session.held_out else {})
    try:
        trainer.train(resume_from_checkpoint=session.resume_from and str(session.resume_from))
    except GraderFailure as failure:
        number = trainer.state.global_step + 1
        batch = save_batch(session.out, number, "grader failed", reward.samples)
        if trainer.state.global_step:  # before step 1 there is nothing to keep
            step.restore_random_state()
            session.save(trainer)
        raise TrainingStopped(
            "grader failed",
            f"step {number}: {failure}; its batch stands in {batch}, the steps before it "
            "are saved: mend the grader and start the run again",
        ) from failure
    if session.interrupts.asked:
        raise Interrupted(
            f"interrupted after step {trainer.state.global_step}; a checkpoint is saved in "
            f"{session.out}: the same command goes on"
        )


def step_callback(session: Session, trainer: Any, reward: Any) -> Any:
    """Turns TRL's log of a step into ours, and does what is due then."""
    from transformers import TrainerCallback

    config, watch, dogs = session.config, session.held_out, session.watchdogs

    class Step(TrainerCallback):
        skipped = False
        random_state: Any = None
        mark = 0.0

        def on_train_begin(self, args, state, control, **rest):
            self.mark = session.recorder.seconds

        def on_step_begin(self, args, state, control, **rest):
            self.random_state = random_states()
            session.clock.clear()

        def restore_random_state(self) -> None:
            """As the step began: what a step drew that did not end is drawn again."""
            if self.random_state is not None:
                self.random_state()

        def on_pre_optimizer_step(self, args, state, control, model=None, **rest):
            self.skipped = dogs.not_finite([p for p in model.parameters() if p.requires_grad])

        def on_log(self, args, state, control, logs=None, **rest):
            if not logs or "loss" not in logs:
                return  # the summary at the end of training
            step, samples = state.global_step, reward.samples if reward is not None else ()
            record = record_of(step, logs)
            if reward is not None:
                record |= reward.summary()
            alarms = dogs.read(record)
            for alarm in alarms:
                if alarm.get("stops"):
                    save_batch(session.out, step, alarm["name"], samples)
            if self.skipped or record["loss"] is None:
                alarms.append(dogs.skip_alarm(record["loss"]))
                save_batch(session.out, step, "not finite", samples)
            last = step >= state.max_steps
            if watch and (step % config.eval_every == 0 or last):
                log = [*session.recorder.log, record]
                record["validation"] = watch.look(session.policy, step, log)
                alarms += watch.alarms
            if alarms:
                record["alarms"] = alarms
            record["timings"] = self.timings(record)
            session.recorder.step(record, samples)
            if config.report_to != "none" and "validation" in record:
                report_look(trainer, record["validation"])
            self.finish(state, control, alarms, last)

        def timings(self, record: dict[str, Any]) -> dict[str, float]:
            """Seconds of this step by what took them; `training` is all that is not measured."""
            found = dict(session.clock)
            if "validation" in record:
                found["evaluation"] = record["validation"]["seconds"]
            whole, self.mark = session.recorder.seconds - self.mark, session.recorder.seconds
            found["training"] = max(whole - sum(found.values()), 0.0)
            return {name: round(seconds, 3) for name, seconds in found.items()}

        def finish(self, state, control, alarms, last: bool) -> None:
            """Stop or save, where it is due. The checkpoint comes after the record: it notes how
            long the record's files are."""
            stops = next((alarm for alarm in alarms if alarm.get("stops")), None)
            session.stopped = session.stopped or stops
            no_better = bool(watch) and watch.no_longer_improves
            control.should_training_stop |= bool(stops) or no_better or session.interrupts.asked
            due = state.global_step % config.save_every == 0
            failures = dogs.skipped
            if stops:
                dogs.start_again()  # who mends the cause gets the full patience
            if due or last or control.should_training_stop:
                session.save(trainer)
            if stops and stops["name"] == "not finite":
                raise TrainingStopped(
                    stops["name"],
                    f"step {state.global_step}: {stops['cause']} {failures} times in a row, "
                    f"so the run stopped: its batches stand in {session.out / 'alarms'}",
                )

    return Step()


def report_look(trainer: Any, look: dict[str, Any]) -> None:
    """A look at held-out rows, to TensorBoard or trackio: TRL sends them its own series alone."""
    from transformers import Trainer

    values = {look["metric"]: look["mean"], "grade": look["grade"], **look["patterns"]}
    # Not the trainer's own `log`, which would send the step's means a second time.
    Trainer.log(trainer, {f"held_out/{name}": value for name, value in values.items()})


def random_states() -> Callable[[], None]:
    """Notes the state of every random generator; call the result to put it back."""
    import random

    import numpy as np
    import torch

    python, numpy, here = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None

    def put_back() -> None:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(here)
        if gpu is not None:
            torch.cuda.set_rng_state_all(gpu)

    return put_back


class Interrupts:
    """While it is entered, Ctrl-C and SIGTERM ask for an end after the step that is running.

    A second Ctrl-C stops at once; the last checkpoint then stands. Signals reach the main thread
    alone: in any other, nothing is changed.
    """

    def __init__(self, say: Callable[[str], None] = lambda text: None):
        self.say, self.asked = say, False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self.hear)
        return self

    def __exit__(self, *caught: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def hear(self, number: int, frame: Any) -> None:
        if self.asked:
            raise Interrupted("interrupted at once; the last checkpoint stands: start it again")
        self.asked = True
        self.say("stopping after this step, with a checkpoint (once more: at once)")


def trainer_settings(config: RunConfig, plan: Plan, out: Path) -> dict[str, Any]:
    """What both trainers share: one process, one optimiser step a batch, nothing saved."""
    import torch

    if config.report_to == "tensorboard":  # transformers reads the place from here alone
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(out / "tensorboard")
    return dict(
        output_dir=str(out / "checkpoints"),
        max_steps=plan.steps,
        per_device_train_batch_size=plan.micro_batch,
        gradient_accumulation_steps=plan.accumulation,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=3,
        seed=config.seed,
        gradient_checkpointing=False,  # it saves memory, which is here, and costs a third
        bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        save_strategy="no",  # steps.py saves
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is not finite is shown, not smoothed away
        report_to=[] if config.report_to == "none" else [config.report_to],
        run_name=out.name,
        disable_tqdm=True,
    )


def resumed_state(place: Path | None) -> dict[str, Any]:
    """run_state.json of a checkpoint; an empty state where there is none."""
    if place is not None:
        return read_state(place)
    return {"step": 0, "seconds": 0.0, "positions": {}, "held_out": None, "watchdogs": {}}


# ------------------------------------------------------------------------------------------
# from rftkit.training.grpo:
# GRPO through TRL's GRPOTrainer: what it is given, and what is taken out of it.
#
# The prompt is all that the model reads. The row's answer fields travel beside it, to the grader.

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

    It hands on to the grader's own reward function (`reward_function`), so each answer
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
        self.reward = reward_function(
            task.grader, item_column="item", observer=self.keep, end_token_ids=self.ends
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
        look = check_template(policy, self.session.rows[:TEMPLATE_ROWS])
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


# ------------------------------------------------------------------------------------------
# from rftkit.training.sft:
# SFT through TRL's SFTTrainer: the same run, but the completions are given, not sampled.


def run_sft(session: Session) -> None:
    """SFT through TRL's trainer, one session of it: the loss on the completion alone."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    policy, task, config, plan = session.policy, session.task, session.config, session.plan
    table = Dataset.from_list([sft_example(policy, task, row, config) for row in session.rows])
    order = run_order(len(session.rows), plan.steps, config.prompts_per_step, config.seed)
    trainer = SFTTrainer(
        model=policy.model,
        processing_class=policy.tokenizer,
        train_dataset=table.select(order),
        args=SFTConfig(
            **trainer_settings(config, plan, session.out),
            max_length=None,
            train_sampling_strategy="sequential",  # run_order has drawn the order of the whole run
        ),
    )
    run_trainer(session, trainer)


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
