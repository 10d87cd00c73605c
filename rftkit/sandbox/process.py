"""Our side of the sandbox's processes: start one, ask it, end it, and leave no folder behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from rftkit.sandbox import server
from rftkit.sandbox.isolation import Limits

PREFIX = "rftkit-sandbox-"
PATIENCE = 120  # seconds for what only a very busy machine delays
# Not ours: what a numerical library should know, and nothing else.
ENVIRONMENT = {"LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"} | dict.fromkeys(
    (f"{name}_NUM_THREADS" for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB")), "1"
)


class Lost(Exception):
    """The sandbox itself failed: it could not start, or ended without an answer."""


class Sandbox:
    """One server, asked by one thread at a time. given: {what is protected: by which means}."""

    def __init__(self, limits: Limits, libraries: tuple[str, ...], may_unshare: bool):
        self.libraries, self.folder, self.process = libraries, tempfile.mkdtemp(prefix=PREFIX), None
        settings = _settings(self.folder, limits, libraries, may_unshare)
        try:
            self.process = subprocess.Popen(**_interpreter("main", self.folder))
            self.given: dict[str, list[str]] = json.loads(self.ask(settings))
        except (OSError, ValueError) as error:  # where it is no JSON, it is a traceback
            self.close()
            raise Lost(f"it did not start: {getattr(error, 'doc', error)}") from None

    def ask(self, message: bytes) -> bytes:
        """The answer to a message. Lost ends this sandbox, and so does KeyboardInterrupt: nobody
        may ask it again and get the late answer."""
        try:
            server.write_message(self.process.stdin, message)
            answer = server.read_message(self.process.stdout)
            if answer is not None:
                return answer
            raise OSError("no answer")
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise Lost(f"it ended: {error}") from None
            raise

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        """End it: the server sees the closed pipe, ends, and takes its child with it."""
        if self.process is not None:
            with suppress(OSError):  # of what it did not read any more
                self.process.stdin.close()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process.stdout.close()
        _remove(self.folder)


def ask_alone(request: bytes, limits: Limits) -> bytes:
    """An answer from a new interpreter: the way of machines without a server.

    Weak isolation: an empty folder, nothing of our environment, a clock, and the limits that the
    system has. Files, network and our memory are within reach.
    """
    folder, cause = tempfile.mkdtemp(prefix=PREFIX), server.DONE
    messages = (_settings(folder, limits, (), may_unshare=False), request)
    arguments = _interpreter("main_alone", folder) | {"stdin": None, "timeout": limits.seconds}
    arguments["input"] = b"".join(server.LENGTH.pack(len(m)) + m for m in messages)
    try:
        ended = subprocess.run(**arguments)
        reply, status = ended.stdout, ended.returncode
    except subprocess.TimeoutExpired as error:
        cause, status, reply = server.TOO_LONG, 0, error.output or b""
    except OSError as error:
        raise Lost(f"no process could be started ({error})") from None
    finally:
        _remove(folder)
    if len(reply) > limits.reply + server.OVERHEAD:
        cause = server.TOO_LARGE
    return server.HEADER.pack(cause, status, True) + reply


def _interpreter(entry: str, folder: str) -> dict[str, Any]:
    """Arguments of Popen for an interpreter without our paths, settings and environment."""
    root = str(Path(__file__).parents[2])  # the folder that holds the package rftkit
    run = f"import sys; sys.path.append({root!r}); from rftkit.sandbox import server"
    windows = {name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ}
    return {
        "args": [sys.executable, "-ISB", "-X", "utf8", "-c", f"{run}; server.{entry}()"],
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
        "env": ENVIRONMENT | {"HOME": folder, "TMPDIR": folder} | windows,
        "cwd": folder,
        "start_new_session": os.name == "posix",  # Ctrl-C in a terminal is ours to answer
    }


def _settings(folder: str, limits: Limits, libraries: tuple[str, ...], may_unshare: bool) -> bytes:
    """The first message to a process inside. may_unshare: False as in a container that gives no
    namespaces."""
    installed = ("site-packages", "dist-packages")
    folders = [path for path in sys.path if os.path.basename(path) in installed]
    return json.dumps([folder, limits, libraries, folders, may_unshare]).encode()


def _remove(folder: str) -> None:
    with suppress(RecursionError):  # nested deeper than Python recurses: it stays
        shutil.rmtree(folder, ignore_errors=True)
