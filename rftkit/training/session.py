"""What the steps of a run need, and how Ctrl-C ends them."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rftkit.policy import LocalPolicy
from rftkit.task import Task
from rftkit.training.config import RunConfig
from rftkit.training.heldout import HeldOut, Progress
from rftkit.training.plan import Plan
from rftkit.training.store import Recorder, write_checkpoint
from rftkit.training.watchdogs import Watchdogs


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
