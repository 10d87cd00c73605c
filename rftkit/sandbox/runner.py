"""The parent side of the sandbox: python_runner() runs graders, report() lists the protections.
The parent trusts nothing that comes back."""

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
# The child's whole environment: nothing of ours, and one thread for each numerical library.
ENVIRONMENT = {"LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"} | dict.fromkeys(
    (f"{name}_NUM_THREADS" for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB")), "1"
)
# A server imports these once if the source imports them: those of OpenAI's image, and more.
SHARED_LIBRARIES = frozenset(
    "numpy pandas scipy sklearn rapidfuzz nltk rouge_score jsonschema pydantic yaml sympy sqlparse "
    "deepdiff asyncio dataclasses datetime decimal difflib fractions math random statistics "
    "string threading typing unicodedata".split()
)


@dataclass
class Outcome:
    """The result of one call of grade()."""

    value: float | None = None  # what grade() returned; may be NaN
    runtime_error: str | None = None  # why the GRADER failed: its traceback or the limit it hit
    server_error: str | None = None  # why the SANDBOX failed; there is no grade
    failed_to_load: bool = False  # it failed before grade() ran: not the sample's fault


def python_runner(*, allow_weak_isolation: bool = False) -> "Runner":
    """Return a function (source, sample, item) -> Outcome that runs python graders in isolation.

    Raises UserError if this machine cannot block access to network and files. Pass
    allow_weak_isolation=True to run anyway, only for source code that you have read. All calls
    share one runner with one worker per core.

    >>> run = python_runner(allow_weak_isolation=True)
    >>> run("def grade(sample, item):\n    return len(item)", {}, {"a": 1}).value
    1.0
    """
    if not report().strong:
        if not allow_weak_isolation:
            raise UserError(
                f"sandbox: cannot block access to files and network ({report().reason}): use "
                "Linux, or pass allow_weak_isolation=True for code that you have read"
            )
        warnings.warn("sandbox: weak isolation, files or network are open", stacklevel=2)
    return _shared_runner(os.getpid())


@functools.cache
def _shared_runner(process: int) -> "Runner":
    return Runner(LIMITS, default_workers())  # a forked process creates its own


def default_workers() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(MOST_WORKERS, cores or 1))


def has_server() -> bool:
    """The forking server needs Linux: on macOS, libraries may crash after a fork."""
    return sys.platform == "linux"


class Runner:
    """Runs any number of graders, `workers` calls at once; several threads may call it."""

    def __init__(self, limits: Limits, workers: int):
        self.limits, self.workers = limits, workers
        self._slots = threading.BoundedSemaphore(workers)
        self._idle: dict[tuple[str, ...], list[Sandbox]] = defaultdict(list)  # by their libraries
        atexit.register(self.close)

    def __call__(self, source: str, sample: dict[str, Any], item: dict[str, Any]) -> Outcome:
        """Run one grade. Nothing that the grader does raises an exception here."""
        return self._ask(source, {"sample": sample, "item": item})

    def check(self, source: str) -> str:
        """Load the source without grading; return its error, or ""."""
        outcome = self._ask(source, {})
        return outcome.runtime_error or outcome.server_error or ""

    def close(self) -> None:
        """Close all idle sandboxes."""
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
            with self._slots:
                answer = self._send(source, request)
        except OSError as error:
            return Outcome(server_error=f"lost: the sandbox ended: {error}")
        return _read_answer(answer, nonce, self.limits)

    def _send(self, source: str, request: bytes) -> bytes:
        if not has_server():
            return ask_alone(request, self.limits)
        sandbox = self._take(_libraries_of(source))
        answer = sandbox.ask(request)
        if server.HEADER.unpack_from(answer)[2]:  # the server has ended
            sandbox.close()
        else:
            self._idle[sandbox.libraries].append(sandbox)
        return answer

    def _take(self, libraries: tuple[str, ...]) -> "Sandbox":
        with suppress(IndexError):
            while (sandbox := self._idle[libraries].pop()).process.poll() is not None:
                sandbox.close()  # it was killed while idle
            return sandbox
        return Sandbox(self.limits, libraries)


@functools.lru_cache(maxsize=64)
def _libraries_of(source: str) -> tuple[str, ...]:
    """The shared libraries that a source imports: `import a.b` and `from a.b import c`."""
    names = set(re.findall(r"^\s*(?:import|from)\s+([\w.]+)", source, re.MULTILINE))
    return tuple(sorted(name for name in names if name.partition(".")[0] in SHARED_LIBRARIES))


class Sandbox:
    """One server process, used by one thread at a time; raises OSError if the server ends."""

    def __init__(self, limits: Limits, libraries: tuple[str, ...]):
        self.libraries, self.folder = libraries, tempfile.mkdtemp(prefix=PREFIX)
        self.process = subprocess.Popen(
            **_interpreter("main", self.folder, limits, libraries), stdin=subprocess.PIPE
        )
        answer = self.ask()
        try:
            self.protections: dict[str, list[str]] = json.loads(answer)  # as in Report
        except ValueError:
            self.close()
            raise OSError(f"it did not start: {answer.decode()}") from None

    def ask(self, request: bytes = b"") -> bytes:
        """Send the request, if any, and return the next message. Any exception closes this sandbox,
        KeyboardInterrupt too: otherwise the next call would receive the late answer."""
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
        """Close the pipe; the server then ends its child and itself."""
        with suppress(OSError), self.process:  # closes the pipes and waits
            pass
        with suppress(RecursionError):  # leave folders nested too deep for Python
            shutil.rmtree(self.folder, ignore_errors=True)


def ask_alone(request: bytes, limits: Limits) -> bytes:
    """Run one request in a new interpreter, for machines without a server. Isolation is weak: an
    empty folder and environment, a timeout, the system's limits; files and network are open."""
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as folder:
        arguments = _interpreter("main_alone", folder, limits, ())
        try:
            completed = subprocess.run(**arguments, input=request, timeout=limits.seconds)
            cause, status, reply = server.DONE, completed.returncode, completed.stdout
        except subprocess.TimeoutExpired as error:
            cause, status, reply = server.TOO_LONG, 0, error.output or b""
    if len(reply) > limits.reply + server.OVERHEAD:
        cause = server.TOO_LARGE
    return server.HEADER.pack(cause, status, True) + reply


def _interpreter(
    entry: str, folder: str, limits: Limits, libraries: tuple[str, ...]
) -> dict[str, Any]:
    """Popen arguments for an interpreter without our paths, settings and environment."""
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
        "start_new_session": os.name == "posix",  # only this process gets the terminal's Ctrl-C
    }


def _read_answer(answer: bytes, nonce: bytes, limits: Limits) -> Outcome:
    """Parse a reply into an Outcome. Treat it as hostile until its nonce matches."""
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
        return Outcome(server_error="lost: the sandbox could not apply its protections")
    elif status < 0:
        error = f"the program was killed by signal {-status} ({signal.strsignal(-status)})"
    else:
        error = f"the program ended its process (exit code {status}) before grade() returned"
    return Outcome(runtime_error=error, failed_to_load=not is_loaded)


@dataclass
class Report:
    """What protects this machine from a sandboxed program."""

    protections: dict[str, list[str]]  # {files, network, …: mechanisms; [] if unprotected}
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
    """The protections on this machine, as the sandbox says that the first call starts (0.1 s)."""
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
    tested = Report(protections | sandbox.protections, way, reason)
    return replace(tested, reason="") if tested.strong else tested
