"""python_runner() for python graders, run_program() for code that a model wrote."""

from __future__ import annotations

import atexit
import functools
import json
import os
import secrets
import signal
import struct
import sys
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from rftkit.files import UserError
from rftkit.sandbox import fresh, machine
from rftkit.sandbox.frames import (
    DISK_FULL,
    ERROR,
    GRADE,
    LOAD_ERROR,
    NONCE_BYTES,
    NUMBER,
    PROGRAM,
    REPLY_TOO_LARGE,
)
from rftkit.sandbox.limits import Limits
from rftkit.sandbox.process import Answer, Lost, Sandboxed, TooLong
from rftkit.sandbox.scratch import whole_blocks

MOST_SOURCES = 16  # graders whose warm parents are kept; the one not used for longest goes
MOST_WORKERS = 8


@dataclass
class Outcome:
    """What became of one call of grade().

    value              the number it returned (a float, perhaps not finite), or None
    runtime_error      why the PROGRAM failed: its traceback, or the limit it ran into
    failed_to_load     the text itself failed, before any sample was seen: no sample is to blame
    server_error       why the MACHINERY failed, so that there is no grade
    server_error_type  "lost" (the sandbox ended), "request" (the row cannot be sent)
    """

    value: float | None = None
    runtime_error: str | None = None
    server_error: str | None = None
    server_error_type: str | None = None
    failed_to_load: bool = False


@dataclass
class ProgramResult:
    """What a program did.

    stdout, stderr  what it printed, as text
    exit_code       0 good, 1 an exception; None where it was stopped
    error           why it was stopped, one sentence, or None
    seconds         from the question to the answer
    """

    stdout: str = ""
    stderr: str = ""
    exit_code: int | None = None
    error: str | None = None
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.exit_code == 0


def python_runner(
    *,
    allow_weak_isolation: bool = False,
    limits: Limits | None = None,
    workers: int | None = None,
) -> Runner:
    """What runs python graders in isolation: a function (source, sample, item) -> Outcome.

    allow_weak_isolation  run even where this machine cannot keep a program from the network and
                          from files (a line says so): for texts you wrote or have read yourself
    limits                of each grade; by default those of OpenAI's guide
    workers               grades at once; by default one a core, at most 8

    UserError where isolation is missing and was not waived. Calls with the same settings share
    one runner, and so its warm parents.

    >>> run = python_runner(allow_weak_isolation=True)
    >>> run("def grade(sample, item):\\n    return len(item)", {}, {"a": 1}).value
    1.0
    """
    require_isolation(allow_weak_isolation)
    return _shared_runner(limits or Limits(), workers or default_workers())


def run_program(
    source: str,
    stdin: str = "",
    arguments: tuple[str, ...] = (),
    *,
    limits: Limits | None = None,
    allow_weak_isolation: bool = False,
) -> ProgramResult:
    """Run a program that a model wrote, alone in the sandbox: the tests stay on our side.

    Give the case as `stdin` or `arguments` and compare what it printed; never hand a program its
    expected answer.

    >>> run_program("print(int(input()) ** 2)", "7", allow_weak_isolation=True).stdout
    '49\\n'
    """
    require_isolation(allow_weak_isolation)
    limits = limits or Limits()
    request = {"source": source, "stdin": stdin, "arguments": list(arguments)}
    start = time.perf_counter()
    result = _shared_runner(limits, default_workers()).run_program(request)
    result.seconds = time.perf_counter() - start
    return result


def require_isolation(allow_weak_isolation: bool) -> None:
    """UserError where files or network cannot be kept from a program; a line where that is
    accepted."""
    found = machine.report()
    if found.strong:
        return
    missing = " and ".join(found.missing)
    if not allow_weak_isolation:
        raise UserError(
            f"sandbox: this machine cannot keep a program from {missing} ({found.reason}), "
            f"expected Linux with Landlock and seccomp before other people's code or a model's "
            f"runs: use such a machine, or pass allow_weak_isolation=True (a RunConfig's field, an "
            f"option of `rftkit grade` and `rftkit evaluate`) for a text that you have read"
        )
    _say_weak(missing)


@functools.cache
def _say_weak(missing: str) -> None:
    print(f"sandbox: weak isolation, no protection of {missing}", file=sys.stderr)


def default_workers() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(MOST_WORKERS, cores or 1))


class Runner:
    """Runs grades of any number of sources; may be called from several threads.

    workers  how many run at once
    """

    def __init__(self, limits: Limits, workers: int):
        self.limits, self.workers = limits, workers
        self._forget()
        atexit.register(self.close)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._abandon)

    def __call__(self, source: str, sample: dict[str, Any], item: dict[str, Any]) -> Outcome:
        """One grade; never raises for anything that the source does."""
        try:
            nonce, request = grade_request(sample, item)
        except (TypeError, ValueError, RecursionError) as error:
            text = f"the row or the sample is not JSON ({error})"
            return Outcome(server_error=text, server_error_type="request")
        try:
            answer = self._ask(source, request)
        except TooLong:
            return Outcome(runtime_error=_too_long(self.limits))
        except Lost as error:
            return Outcome(server_error=f"the sandbox was lost: {error}", server_error_type="lost")
        if isinstance(answer, str):
            return Outcome(runtime_error=answer, failed_to_load=True)
        return _read_reply(nonce, answer, self.limits)

    def check(self, source: str) -> str:
        """Run the source alone, without grading: its traceback, or ""."""
        outcome = self(source, {}, {}) if not machine.can_fork() else self._load(source)
        return (outcome.failed_to_load and outcome.runtime_error) or outcome.server_error or ""

    def run_program(self, request: dict[str, Any]) -> ProgramResult:
        """See `rftkit.sandbox.run_program`."""
        content = PROGRAM + bytes(NONCE_BYTES) + json.dumps(request).encode()
        try:
            answer = self._ask("", content)
        except TooLong:
            return ProgramResult(error=_too_long(self.limits))
        except Lost as error:
            return ProgramResult(error=f"the sandbox was lost: {error}")
        stdout, stderr = (text.decode("utf-8", "replace") for text in answer.texts[1:])
        result = ProgramResult(stdout, stderr, error=_beyond_limits(answer, self.limits))
        if result.error is None and answer.status < 0:
            result.error = _killed(-answer.status)
        if result.error is None:
            result.exit_code = answer.status
        return result

    def close(self) -> None:
        """End all that is idle."""
        with self._lock:
            idle = [one for ones in self._idle.values() for one in ones]
            self._idle.clear()
        for one in idle:
            one.close()

    def _ask(self, source: str, request: bytes) -> Answer | str:
        """The answer, or the traceback of a source that cannot be loaded."""
        with self._places:
            if not machine.can_fork():
                return fresh.ask(source, request, self.limits)
            sandboxed = self._take(source)
            if sandboxed.load_error:
                return sandboxed.load_error
            try:
                return sandboxed.ask(request)
            finally:
                self._give_back(source, sandboxed)

    def _load(self, source: str) -> Outcome:
        try:
            with self._places:
                sandboxed = self._take(source)
                self._give_back(source, sandboxed)
        except Lost as error:
            return Outcome(server_error=f"the sandbox was lost: {error}")
        return Outcome(runtime_error=sandboxed.load_error, failed_to_load=True)

    def _take(self, source: str) -> Sandboxed:
        with self._lock:
            if source in self._failed:
                return self._failed[source]
            idle = self._idle.setdefault(source, [])
            self._idle.move_to_end(source)
            while idle:
                sandboxed = idle.pop()
                if sandboxed.alive:
                    return sandboxed
                sandboxed.close()  # killed by somebody while it waited
        sandboxed = Sandboxed(source, self.limits)
        if sandboxed.load_error:
            with self._lock:
                self._failed[source] = sandboxed
        return sandboxed

    def _give_back(self, source: str, sandboxed: Sandboxed) -> None:
        too_many: list[Sandboxed] = []
        with self._lock:
            if sandboxed.usable:
                self._idle.setdefault(source, []).append(sandboxed)
            while len(self._idle) > MOST_SOURCES:
                too_many += self._idle.popitem(last=False)[1]
        for one in too_many:
            one.close()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(self.workers)
        self._idle: OrderedDict[str, list[Sandboxed]] = OrderedDict()
        self._failed: dict[str, Sandboxed] = {}  # sources that cannot be loaded, so only once

    def _abandon(self) -> None:
        """In a process forked from ours: the sandboxes stay with the one that started them."""
        for ones in self._idle.values():
            for one in ones:
                one.abandon()
        self._forget()


def ask_once(sandboxed: Sandboxed, sample: dict[str, Any], item: dict[str, Any]) -> Outcome:
    """One grade of one warm parent; raises TooLong and Lost."""
    nonce, request = grade_request(sample, item)
    return _read_reply(nonce, sandboxed.ask(request), sandboxed.limits)


def grade_request(sample: dict[str, Any], item: dict[str, Any]) -> tuple[bytes, bytes]:
    """(the random bytes that its reply must begin with, the request)."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce, GRADE + nonce + json.dumps({"sample": sample, "item": item}).encode()


@functools.cache
def _shared_runner(limits: Limits, workers: int) -> Runner:
    return Runner(limits, workers)


def _read_reply(nonce: bytes, answer: Answer, limits: Limits) -> Outcome:
    """An Outcome from what came back. The bytes are a hostile program's until proven otherwise."""
    beyond = _beyond_limits(answer, limits)
    if beyond:
        return Outcome(runtime_error=beyond)
    reply = answer.texts[0]
    kind, body = reply[len(nonce) : len(nonce) + 1], reply[len(nonce) + 1 :]
    if reply.startswith(nonce) and kind == NUMBER and len(body) == 8:
        return Outcome(value=struct.unpack("<d", body)[0])
    if reply.startswith(nonce) and kind in (ERROR, LOAD_ERROR):
        text = body.decode("utf-8", "replace")
        return Outcome(runtime_error=text, failed_to_load=kind == LOAD_ERROR)
    if reply:
        return Outcome(runtime_error="the program wrote into the reply channel: result refused")
    if answer.status < 0:
        return Outcome(runtime_error=_killed(-answer.status))
    what = f"the program ended its process (exit code {answer.status}) before grade() returned"
    return Outcome(runtime_error=what)


def _beyond_limits(answer: Answer, limits: Limits) -> str | None:
    if answer.cause == REPLY_TOO_LARGE:
        return f"the reply is larger than {limits.reply:,} bytes: refused"
    if answer.cause == DISK_FULL or answer.bytes_left > whole_blocks(limits.disk):
        return f"more than {limits.disk:,} bytes were written to disk: stopped"
    return None


def _killed(number: int) -> str:
    """What it means that this signal ended a program."""
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    why = {
        "SIGSEGV": "it crashed: recursion too deep, or a library's fault",
        "SIGKILL": "it was killed: the machine's memory, or its time, was used up",
    }.get(name, "it was stopped")
    return f"the program ended by {name} ({why})"


def _too_long(limits: Limits) -> str:
    return f"the program ran longer than {limits.seconds:g} s: stopped"
