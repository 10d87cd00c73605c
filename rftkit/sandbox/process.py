"""Our side of one warm parent: start it, ask it in time, end it. Linux only.

One thread at a time may use a Sandboxed. Everything that comes back is bytes of bounded length.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from rftkit.sandbox import frames, paths
from rftkit.sandbox.frames import HEADER
from rftkit.sandbox.limits import Limits
from rftkit.sandbox.scratch import remove

ROOT = str(Path(__file__).parents[2])  # the folder that holds the package rftkit
KILL_SECONDS = 10
EXIT_SECONDS = 5  # for all guards together, when our process ends
START_SECONDS = 60  # an interpreter's start on a very busy machine; the source has its own time
_ENTRY = "import sys; sys.path.append({root!r}); from rftkit.sandbox.{module} import main; main()"
# Not ours: what a numerical library should know, and nothing else.
ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "PATH": "/usr/bin:/bin",
    **{
        f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB")
    },
}


_ending: list[subprocess.Popen] = []  # guards that still clean up


@atexit.register  # before any runner registers its own end, so it comes after all of them
def _wait_for_guards() -> None:
    """Let them remove their folders; one that needs longer goes on without us."""
    deadline = time.monotonic() + EXIT_SECONDS
    for process in _ending:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.returncode = 0  # let go of: its end is no concern of ours any more


class Lost(Exception):
    """The sandbox itself failed: it could not start, or ended without an answer."""


class TooLong(Exception):
    """The time was over."""


class Answer(NamedTuple):
    """What the warm parent says about one child: see frames.py."""

    cause: bytes
    status: int
    bytes_left: int
    texts: list[bytes]  # the reply; of a program also its standard output and error


def command(module: str) -> list[str]:
    """An interpreter without our paths, settings and site packages, running `module`.main()."""
    if not sys.executable:
        raise Lost("the running Python does not know its own executable")
    entry = _ENTRY.format(root=ROOT, module=module)
    return [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", entry]


def settings(source: str, limits: Limits) -> dict:
    """What a process inside is told with its first message."""
    trees, lists = paths.readable_paths()
    return {
        "source": source,
        "limits": list(limits),
        "root": ROOT,
        "library_folders": paths.library_folders(),
        "trees": trees,
        "lists": lists,
        "may_unshare": True,  # False: as in a container that gives no namespaces
        "scratch": os.path.join(tempfile.gettempdir(), f"rftkit-sandbox-{secrets.token_hex(8)}"),
    }


class Sandboxed:
    """A guard and a warm parent for one source.

    given       {what is protected: by which means}, as the warm parent found them
    load_error  the traceback of the source itself, or ""
    usable      False once it has to be replaced
    """

    def __init__(self, source: str, limits: Limits):
        self.limits, self.usable = limits, True
        told = settings(source, limits)
        self._scratch = told["scratch"]
        _ending[:] = [process for process in _ending if process.poll() is None]
        try:
            self._process = subprocess.Popen(
                command("guard"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=ENVIRONMENT,
                start_new_session=True,  # Ctrl-C in a terminal is ours to answer
                bufsize=0,
            )
        except OSError as error:
            raise Lost(f"no process could be started ({error})") from None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        for file in (self._in, self._out):
            os.set_blocking(file, False)
        try:
            self._send(json.dumps(told).encode(), START_SECONDS)
            hello = self._receive(START_SECONDS)
            try:
                self.given: dict[str, list[str]] = json.loads(hello)
            except ValueError:
                raise Lost(f"it did not start: {hello.decode(errors='replace')}") from None
            try:
                self.load_error = self._receive(limits.seconds).decode("utf-8", "replace")
            except TooLong:
                self.load_error = f"the source ran longer than {limits.seconds:g} s: stopped"
            except Lost:
                self.load_error = "the source ended its process while it was read"
        except BaseException:
            self.close()
            raise
        if self.load_error:
            self.close()

    def ask(self, request: bytes) -> Answer:
        """Send one request and wait for its answer. TooLong and Lost end this sandbox."""
        deadline = time.monotonic() + self.limits.seconds
        try:
            self._send(request, self.limits.seconds)
            data = self._receive(max(0.0, deadline - time.monotonic()))
        except BaseException:  # KeyboardInterrupt as well: a late answer must meet nobody
            self.close()
            raise
        if len(data) < HEADER.size:
            self.close()
            raise Lost("its answer is cut")
        cause, status, left, finished, *lengths = HEADER.unpack_from(data)
        if finished:
            self.close()
        texts, start = [], HEADER.size
        for length in lengths:
            texts.append(data[start : start + length])
            start += length
        return Answer(cause, status, left, texts)

    def close(self) -> None:
        """End it: the guard sees the closed pipe and kills what runs, which is waited for, then
        removes the folder, which is not: emptying it can take longer than filling it did."""
        if not self.usable:
            return
        self.usable = False
        self._process.stdin.close()
        if not self._has_ended(KILL_SECONDS):
            self._process.kill()
        self._process.stdout.close()
        if self._process.poll() not in (None, 0):  # a guard that was killed leaves the folder
            remove(self._scratch)
        _ending.append(self._process)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def abandon(self) -> None:
        """After a fork of ours: let go of the pipes, which belong to the process we came from."""
        self.usable = False
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.returncode = 0  # not our child: do not wait for it

    def _send(self, data: bytes, seconds: float) -> None:
        view = memoryview(frames.LENGTH.pack(len(data)) + data)
        deadline = time.monotonic() + seconds
        while view:
            try:
                view = view[os.write(self._in, view) :]
            except BlockingIOError:
                self._wait(self._in, select.POLLOUT, deadline)
            except BrokenPipeError:
                raise Lost("it ended") from None

    def _receive(self, seconds: float) -> bytes:
        """The next message, and nothing of the one after it."""
        deadline = time.monotonic() + seconds
        size = frames.LENGTH.unpack(self._read(frames.LENGTH.size, deadline))[0]
        if size > self.limits.reply + 100_000:  # header, and a traceback
            raise Lost(f"its answer has {size:,} bytes")
        return self._read(size, deadline)

    def _read(self, count: int, deadline: float) -> bytes:
        data = b""
        while len(data) < count:
            self._wait(self._out, select.POLLIN, deadline)
            part = os.read(self._out, count - len(data))
            if not part:
                raise Lost("it ended without an answer")
            data += part
        return data

    def _has_ended(self, seconds: float) -> bool:
        """Have all processes inside let go of the pipe of replies, dead as they are?"""
        deadline = time.monotonic() + seconds
        try:
            while True:
                self._wait(self._out, select.POLLIN, deadline)
                if not os.read(self._out, 1 << 16):
                    return True
        except TooLong:
            return False

    def _wait(self, file: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(file, event)
        # At least one look: an answer that is there already is never too late.
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TooLong
