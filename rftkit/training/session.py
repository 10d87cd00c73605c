"""A session of a run: everything that its steps need, and how Ctrl-C ends it."""

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
    """Ctrl-C or SIGTERM: the run saved a checkpoint and can be resumed."""


class Interrupts:
    """While it is entered, Ctrl-C and SIGTERM ask for an end after the step that is running.

    A second Ctrl-C stops at once; the last checkpoint then stands. Signals reach the main thread
    alone: in any other, nothing is changed.
    """

    def __init__(self, say: Callable[[str], None]):
        self.say, self.asked = say, False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self.ask)
        return self

    def __exit__(self, *caught: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def ask(self, number: int, frame: Any) -> None:
        if self.asked:
            raise Interrupted("interrupted at once; the last checkpoint stands: start it again")
        self.asked = True
        self.say("stopping after this step, with a checkpoint (once more: at once)")


@dataclass
class Session:
    """What the steps of a run need. A run may take several sessions."""

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
    resume_from: Path | None = None  # a checkpoint
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
