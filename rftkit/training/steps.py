"""What happens around each step of TRL's trainer, for both methods.

TRL's trainers call back: before a step, before the optimiser moves, when the step's numbers are
known. There the record is written, held-out rows are looked at, watchdogs read, checkpoints saved.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rftkit.graders import GraderFailure
from rftkit.policy import LocalPolicy
from rftkit.task import Task
from rftkit.training.checkpoints import Checkpoints, read_state
from rftkit.training.config import RunConfig
from rftkit.training.heldout import HeldOut
from rftkit.training.plan import Plan
from rftkit.training.record import Recorder, record_of
from rftkit.training.watchdogs import TrainingStopped, Watchdogs, save_batch


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
