"""Our side of the sandbox: python_runner() for graders, run_program() for code a model wrote,
report() for what this machine protects. Nothing that comes back is trusted."""

from __future__ import annotations

import atexit
import functools
import json
import os
import re
import secrets
import signal
import struct
import sys
import threading
from dataclasses import asdict, dataclass
from typing import Any

from rftkit.files import UserError
from rftkit.sandbox import server
from rftkit.sandbox.isolation import Limits
from rftkit.sandbox.process import Lost, Sandbox, ask_alone
from rftkit.sandbox.server import GRADE, HEADER, LOADED, NONCE_BYTES, PROGRAM

LIMITS = Limits()
MOST_WORKERS = 8
# A server imports these once where a text imports them: OpenAI's grader image, and more.
SHARED_LIBRARIES = frozenset(
    "numpy pandas scipy sklearn rapidfuzz nltk rouge_score jsonschema pydantic yaml sympy sqlparse "
    "deepdiff asyncio dataclasses datetime decimal difflib fractions math random statistics "
    "string threading typing unicodedata".split()
)


@dataclass
class Outcome:
    """What became of one call of grade(), or of one program."""

    value: float | str | None = None  # what grade() returned (perhaps NaN), or a program printed
    runtime_error: str | None = None  # why the TEXT failed: its traceback, or the limit it reached
    server_error: str | None = None  # why the MACHINERY failed, so that there is no grade
    server_error_type: str | None = None  # "lost": the sandbox; "request": the row is not JSON
    failed_to_load: bool = False  # it failed before grade() was called: no sample is to blame


def python_runner(
    *, allow_weak_isolation: bool = False, limits: Limits = LIMITS, workers: int | None = None
) -> Runner:
    """What runs python graders in isolation: a function (source, sample, item) -> Outcome.

    UserError where this machine cannot keep a program from network and files, unless
    allow_weak_isolation waives that: for texts that you have read yourself. Calls with the same
    settings share one runner, with one worker a core by default.

    >>> run = python_runner(allow_weak_isolation=True)
    >>> run("def grade(sample, item):\\n    return len(item)", {}, {"a": 1}).value
    1.0
    """
    protection = report()
    if not protection.strong:
        missing = " and ".join(protection.missing)
        if not allow_weak_isolation:
            raise UserError(
                f"sandbox: this machine cannot keep a program from {missing} "
                f"({protection.reason}): use Linux with Landlock and seccomp, or pass "
                f"allow_weak_isolation=True for a text that you have read"
            )
        _say_weak(missing)
    return _shared_runner(limits, workers or default_workers())


def run_program(
    source: str, stdin: str = "", *, limits: Limits = LIMITS, allow_weak_isolation: bool = False
) -> Outcome:
    """Run a program that a model wrote, alone in the sandbox: the tests stay on our side.

    Give the case as `stdin` and compare what it printed; never hand a program its expected answer.

    >>> run_program("print(int(input()) ** 2)", "7", allow_weak_isolation=True).value
    '49\\n'
    """
    runner = python_runner(limits=limits, allow_weak_isolation=allow_weak_isolation)
    return runner.ask(source, {"stdin": stdin}, PROGRAM)


@functools.cache
def _say_weak(missing: str) -> None:
    print(f"sandbox: weak isolation, no protection of {missing}", file=sys.stderr)


def default_workers() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(MOST_WORKERS, cores or 1))


def has_server() -> bool:
    """A server that forks needs Linux: macOS forks, but its libraries cannot bear it."""
    return sys.platform == "linux"


class Runner:
    """Runs grades of any number of texts, `workers` at once; several threads may call it."""

    def __init__(self, limits: Limits, workers: int, may_unshare: bool = True):
        self.limits, self.workers, self.may_unshare = limits, workers, may_unshare
        self._forget()
        atexit.register(self.close)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def __call__(self, source: str, sample: dict[str, Any], item: dict[str, Any]) -> Outcome:
        """One grade; never raises for anything that the text does."""
        return self.ask(source, {"sample": sample, "item": item})

    def check(self, source: str) -> str:
        """Load the text without grading: why it fails, or ""."""
        outcome = self.ask(source, {})
        return outcome.runtime_error or outcome.server_error or ""

    def ask(self, source: str, content: dict[str, Any], kind: bytes = GRADE) -> Outcome:
        try:
            nonce, request = make_request(source, content, kind)
        except (TypeError, ValueError, RecursionError) as error:
            text = f"the row or the sample is not JSON ({error})"
            return Outcome(server_error=text, server_error_type="request")
        try:
            with self._places:
                answer = self._send(source, request)
        except Lost as error:
            return Outcome(server_error=f"the sandbox was lost: {error}", server_error_type="lost")
        return _read_answer(answer, nonce, self.limits)

    def close(self) -> None:
        """End all that is idle."""
        with self._lock:
            idle, self._idle = self._idle, []
        for sandbox in idle:
            sandbox.close()

    def _send(self, source: str, request: bytes) -> bytes:
        if not has_server():
            return ask_alone(request, self.limits)
        sandbox = self._take(_libraries_of(source))
        answer = sandbox.ask(request)
        if HEADER.unpack_from(answer)[2]:  # it has ended
            sandbox.close()
        else:
            with self._lock:
                self._idle.append(sandbox)
        return answer

    def _take(self, libraries: tuple[str, ...]) -> Sandbox:
        with self._lock:
            fitting = [sandbox for sandbox in self._idle if sandbox.libraries == libraries]
            if fitting:
                self._idle.remove(fitting[-1])
        if fitting and fitting[-1].is_alive():
            return fitting[-1]
        if fitting:
            fitting[-1].close()  # killed by somebody while it waited
        sandbox = Sandbox(self.limits, libraries, self.may_unshare)
        self.given = sandbox.given  # {what is protected: by which means}
        return sandbox

    def _forget(self) -> None:
        """At the start, and in a process forked from ours: servers belong to who started them."""
        self._others = getattr(self, "_idle", [])
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(self.workers)
        self._idle: list[Sandbox] = []  # the one used last at the end


def make_request(source: str, content: dict[str, Any], kind: bytes = GRADE) -> tuple[bytes, bytes]:
    """(the random bytes that its reply must hold, the request)."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce, kind + nonce + json.dumps({"source": source, **content}).encode()


@functools.cache
def _shared_runner(limits: Limits, workers: int) -> Runner:
    return Runner(limits, workers)


@functools.lru_cache(maxsize=64)
def _libraries_of(source: str) -> tuple[str, ...]:
    """The shared libraries that a text imports: `import a.b` and `from a.b import c`."""
    names = set(re.findall(r"^\s*(?:import|from)\s+([\w.]+)", source, re.MULTILINE))
    return tuple(sorted(name for name in names if name.partition(".")[0] in SHARED_LIBRARIES))


def _read_answer(answer: bytes, nonce: bytes, limits: Limits) -> Outcome:
    """An Outcome from what came back. The reply is a hostile program's until proven otherwise."""
    cause, status, _ = HEADER.unpack_from(answer)
    reply = answer[HEADER.size :]
    is_loaded = reply.startswith(LOADED)
    reply = reply.removeprefix(LOADED)
    kind, body = reply[NONCE_BYTES : NONCE_BYTES + 1], reply[NONCE_BYTES + 1 :]
    kind = kind if reply.startswith(nonce) else b""
    if cause == server.TOO_LONG:
        error = f"the program ran longer than {limits.seconds:g} s: stopped"
    elif cause == server.TOO_LARGE:
        error = f"the reply is larger than {limits.reply:,} bytes: refused"
    elif kind == server.NUMBER and is_loaded and len(body) == 8:
        return Outcome(value=struct.unpack("<d", body)[0])
    elif kind == server.TEXT and is_loaded:
        return Outcome(value=body.decode("utf-8", "replace"))
    elif kind == server.ERROR:
        error = body.decode("utf-8", "replace")
    elif reply:
        error = "the program wrote into the reply channel: result refused"
    elif status == server.BROKEN and not is_loaded:
        text = "the sandbox was lost: its protections could not be put on"
        return Outcome(server_error=text, server_error_type="lost")
    elif status < 0:
        error = f"the program ended by signal {-status} ({signal.strsignal(-status)})"
    else:
        error = f"the program ended its process (exit code {status}) before grade() returned"
    return Outcome(runtime_error=error, failed_to_load=not is_loaded)


@dataclass
class Report:
    """What stands between a sandboxed program and this machine."""

    protections: dict[str, list[str]]  # {files, network, …: by which means, or not at all}
    way: str  # how a grade runs: in a fork of a server, or in a new interpreter
    reason: str = ""  # why files or network are not protected

    @property
    def missing(self) -> list[str]:
        return [name for name in ("files", "network") if not self.protections.get(name)]

    @property
    def strong(self) -> bool:
        return not self.missing

    def to_json(self) -> dict[str, Any]:
        return {"isolation": "strong" if self.strong else "weak", **asdict(self)}

    def __str__(self) -> str:
        lines = [f"{self.to_json()['isolation']} isolation, {self.way}"]
        for name, means in self.protections.items():
            lines.append(f"  {name}: {', '.join(means) or 'NOT protected'}")
        return "\n".join(lines + ([f"  {self.reason}"] if self.reason else []))


# Prints the name of each protection that does not hold.
_TRIAL = """
import os, socket
file, folder = input(), input()
for name, action in (
    ("files", lambda: open(file).read(1)),
    ("files", lambda: os.listdir(folder)),
    ("network", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)),
    ("processes", lambda: os.kill(os.getppid(), 0)),
):
    try:
        action()
        print(name)
    except OSError:
        pass
"""


@functools.cache
def report() -> Report:
    """Which protections this machine gives: once a process, a sandbox is started and tries to
    break out (about 0.1 s)."""
    protections = {name: [] for name in ("files", "network", "processes", "threads", "memory")}
    protections |= {"disk": [], "time": ["a clock outside"], "environment": ["an empty one"]}
    if not has_server():
        reason = f"{sys.platform} has neither Landlock nor seccomp"
        return Report(protections, "a new interpreter for each grade", reason)
    way, runner = "a fork of a server for each grade", Runner(Limits(seconds=30), 1)
    stdin = f"{os.path.realpath(__file__)}\n{os.path.expanduser('~')}\n"
    outcome = runner.ask(_TRIAL, {"stdin": stdin}, PROGRAM)
    runner.close()
    if outcome.value is None:
        error = outcome.server_error or outcome.runtime_error
        return Report(protections, way, f"the sandbox failed its trial: {error}")
    protections |= runner.given | {name: [] for name in outcome.value.split()}
    means = {"files": "Landlock", "network": "seccomp"}
    lacking = [f"the kernel has no {means[name]}" for name in means if not protections[name]]
    return Report(protections, way, "; ".join(lacking))
