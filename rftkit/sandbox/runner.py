"""Our side of the sandbox: python_runner() runs graders, report() says what this machine protects.
Nothing that comes back is trusted."""

from __future__ import annotations

import atexit
import functools
import json
import os
import re
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import warnings
from collections import defaultdict
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rftkit.files import UserError
from rftkit.sandbox import server
from rftkit.sandbox.isolation import Limits

LIMITS = Limits()
MOST_WORKERS = 8
PREFIX = "rftkit-sandbox-"
# Not ours: what a numerical library should know, and nothing else.
ENVIRONMENT = {"LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"} | dict.fromkeys(
    (f"{name}_NUM_THREADS" for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB")), "1"
)
# A server imports these once where a text imports them: OpenAI's grader image, and more.
SHARED_LIBRARIES = frozenset(
    "numpy pandas scipy sklearn rapidfuzz nltk rouge_score jsonschema pydantic yaml sympy sqlparse "
    "deepdiff asyncio dataclasses datetime decimal difflib fractions math random statistics "
    "string threading typing unicodedata".split()
)


@dataclass
class Outcome:
    """What became of one call of grade()."""

    value: float | None = None  # what grade() returned, perhaps NaN
    runtime_error: str | None = None  # why the TEXT failed: its traceback, or the limit it reached
    server_error: str | None = None  # why the MACHINERY failed, so that there is no grade
    failed_to_load: bool = False  # it failed before grade() was called: no sample is to blame


def python_runner(*, allow_weak_isolation: bool = False, limits: Limits = LIMITS) -> Runner:
    """What runs python graders in isolation: a function (source, sample, item) -> Outcome.

    UserError where this machine cannot keep a program from network and files, unless
    allow_weak_isolation waives that: for texts that you have read yourself. Calls with the same
    limits share one runner, with one worker a core.

    >>> run = python_runner(allow_weak_isolation=True)
    >>> run("def grade(sample, item):\n    return len(item)", {}, {"a": 1}).value
    1.0
    """
    if not report().strong:
        if not allow_weak_isolation:
            raise UserError(
                f"sandbox: files and network of this machine are open ({report().reason}): use "
                "Linux, or pass allow_weak_isolation=True for a text that you have read"
            )
        warnings.warn("sandbox: weak isolation, files or network are open", stacklevel=2)
    return _shared_runner(limits, os.getpid())


@functools.cache
def _shared_runner(limits: Limits, process: int) -> Runner:
    return Runner(limits, default_workers())  # a forked process starts its own


def default_workers() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(MOST_WORKERS, cores or 1))


def has_server() -> bool:
    """A server that forks needs Linux: macOS forks, but its libraries cannot bear it."""
    return sys.platform == "linux"


class Runner:
    """Runs grades of any number of texts, `workers` at once; several threads may call it."""

    def __init__(self, limits: Limits, workers: int):
        self.limits, self.workers = limits, workers
        self._places = threading.BoundedSemaphore(workers)
        self._idle: dict[tuple[str, ...], list[Sandbox]] = defaultdict(list)  # by their libraries
        atexit.register(self.close)

    def __call__(self, source: str, sample: dict[str, Any], item: dict[str, Any]) -> Outcome:
        """One grade; never raises for anything that the text does."""
        return self._ask(source, {"sample": sample, "item": item})

    def check(self, source: str) -> str:
        """Load the text without grading: why it fails, or ""."""
        outcome = self._ask(source, {})
        return outcome.runtime_error or outcome.server_error or ""

    def close(self) -> None:
        """End all that is idle."""
        for idle in self._idle.values():
            while idle:
                idle.pop().close()

    def _ask(self, source: str, content: dict[str, Any]) -> Outcome:
        nonce = secrets.token_hex(server.NONCE_BYTES // 2).encode()  # never begins with LOADED
        try:
            request = nonce + json.dumps({"source": source, **content}).encode()
        except (TypeError, ValueError, RecursionError) as error:
            return Outcome(server_error=f"request: the row or the sample is not JSON ({error})")
        try:
            with self._places:
                answer = self._send(source, request)
        except OSError as error:
            return Outcome(server_error=f"lost: the sandbox was lost: {error}")
        return _read_answer(answer, nonce, self.limits)

    def _send(self, source: str, request: bytes) -> bytes:
        if not has_server():
            return ask_alone(request, self.limits)
        sandbox = self._take(_libraries_of(source))
        answer = sandbox.ask(request)
        if server.HEADER.unpack_from(answer)[2]:  # it has ended
            sandbox.close()
        else:
            self._idle[sandbox.libraries].append(sandbox)
        return answer

    def _take(self, libraries: tuple[str, ...]) -> Sandbox:
        with suppress(IndexError):
            while (sandbox := self._idle[libraries].pop()).process.poll() is not None:
                sandbox.close()  # killed by somebody while it waited
            return sandbox
        return Sandbox(self.limits, libraries)


@functools.lru_cache(maxsize=64)
def _libraries_of(source: str) -> tuple[str, ...]:
    """The shared libraries that a text imports: `import a.b` and `from a.b import c`."""
    names = set(re.findall(r"^\s*(?:import|from)\s+([\w.]+)", source, re.MULTILINE))
    return tuple(sorted(name for name in names if name.partition(".")[0] in SHARED_LIBRARIES))


class Sandbox:
    """One server, asked by one thread at a time; OSError where it is lost."""

    def __init__(self, limits: Limits, libraries: tuple[str, ...]):
        self.libraries, self.folder = libraries, tempfile.mkdtemp(prefix=PREFIX)
        self.process = subprocess.Popen(
            **_interpreter("main", self.folder, limits, libraries), stdin=subprocess.PIPE
        )
        answer = self.ask()
        try:
            self.given: dict[str, list[str]] = json.loads(answer)  # what is protected: how
        except ValueError:
            self.close()
            raise OSError(f"it did not start: {answer.decode()}") from None

    def ask(self, request: bytes = b"") -> bytes:
        """The answer to a request, or the first message. OSError ends this sandbox, and so does
        KeyboardInterrupt: nobody may ask it again and get the late answer."""
        try:
            if request:
                server.write_message(self.process.stdin, request)
            answer = server.read_message(self.process.stdout)
            if answer is None:
                raise OSError("it ended without an answer")
            return answer
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End it: the server sees the closed pipe, ends, and takes its child with it."""
        with suppress(OSError), self.process:  # which closes the pipes and waits
            pass
        with suppress(RecursionError):  # nested deeper than Python recurses: it stays
            shutil.rmtree(self.folder, ignore_errors=True)


def ask_alone(request: bytes, limits: Limits) -> bytes:
    """An answer from a new interpreter: the way of machines without a server.

    Weak isolation: an empty folder, nothing of our environment, a clock, and the limits that the
    system has. Files, network and our memory are within reach.
    """
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as folder:
        arguments = _interpreter("main_alone", folder, limits, ())
        try:
            ended = subprocess.run(**arguments, input=request, timeout=limits.seconds)
            cause, status, reply = server.DONE, ended.returncode, ended.stdout
        except subprocess.TimeoutExpired as error:
            cause, status, reply = server.TOO_LONG, 0, error.output or b""
    if len(reply) > limits.reply + server.OVERHEAD:
        cause = server.TOO_LARGE
    return server.HEADER.pack(cause, status, True) + reply


def _interpreter(
    entry: str, folder: str, limits: Limits, libraries: tuple[str, ...]
) -> dict[str, Any]:
    """Arguments of Popen for an interpreter without our paths, settings and environment."""
    root = str(Path(__file__).parents[2])  # the folder that holds the package rftkit
    run = f"import sys; sys.path.append({root!r}); from rftkit.sandbox import server"
    installed = [p for p in sys.path if os.path.basename(p) in ("site-packages", "dist-packages")]
    settings = json.dumps([folder, limits, libraries, installed])
    windows = {name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ}
    return {
        "args": [sys.executable, "-ISB", "-X", "utf8", "-c", f"{run}; server.{entry}()", settings],
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
        "env": ENVIRONMENT | {"HOME": folder, "TMPDIR": folder} | windows,
        "cwd": folder,
        "start_new_session": os.name == "posix",  # Ctrl-C in a terminal is ours to answer
    }


def _read_answer(answer: bytes, nonce: bytes, limits: Limits) -> Outcome:
    """An Outcome from what came back. The reply is a hostile program's until proven otherwise."""
    cause, status, _ = server.HEADER.unpack_from(answer)
    reply = answer[server.HEADER.size :]
    is_loaded = reply.startswith(server.LOADED)
    reply = reply.removeprefix(server.LOADED)
    start, kind, body = reply[: len(nonce)], reply[len(nonce) :][:1], reply[len(nonce) + 1 :]
    kind = kind if start == nonce else b""
    if cause == server.TOO_LONG:
        error = f"the program ran longer than {limits.seconds:g} s: stopped"
    elif cause == server.TOO_LARGE:
        error = f"the reply is larger than {limits.reply:,} bytes: refused"
    elif kind == server.NUMBER and is_loaded and len(body) == 8:
        return Outcome(value=struct.unpack("<d", body)[0])
    elif kind == server.ERROR:
        error = body.decode("utf-8", "replace")
    elif reply:
        error = "the program wrote into the reply channel: result refused"
    elif status == server.BROKEN and not is_loaded:
        return Outcome(server_error="lost: the sandbox's protections could not be put on")
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
    def strong(self) -> bool:
        return bool(self.protections["files"] and self.protections["network"])

    def to_json(self) -> dict[str, Any]:
        return {"isolation": "strong" if self.strong else "weak", **asdict(self)}

    def __str__(self) -> str:
        lines = [f"{self.to_json()['isolation']} isolation, {self.way}"]
        for name, means in self.protections.items():
            lines.append(f"  {name}: {', '.join(means) or 'NOT protected'}")
        return "\n".join(lines + ([f"  {self.reason}"] if self.reason else []))


@functools.cache
def report() -> Report:
    """Which protections this machine gives: once a process, a sandbox is started (about 0.1 s) and
    says what it could put on."""
    protections = {name: [] for name in ("files", "network", "processes", "threads", "memory")}
    protections |= {"disk": [], "time": ["a clock outside"], "environment": ["an empty one"]}
    reason = f"{sys.platform} has no Landlock or no seccomp here"
    if not has_server():
        return Report(protections, "a new interpreter for each grade", reason)
    way = "a fork of a server for each grade"
    try:
        sandbox = Sandbox(LIMITS, ())
    except OSError as error:
        return Report(protections, way, str(error))
    sandbox.close()
    found = Report(protections | sandbox.given, way, reason)
    return replace(found, reason="") if found.strong else found
