"""report(): which protections this machine gives. They are tried out in a sandbox, not assumed."""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Report:
    """What stands between a sandboxed program and this machine.

    protections  {files, network, processes, threads, memory, time, disk, environment: by which
                 means; an empty list: not protected here}
    way          "warm parent, a fork for each grade" or "a new interpreter for each grade"
    reason       why something is missing, one sentence, or ""
    """

    protections: dict[str, list[str]] = field(default_factory=dict)
    way: str = ""
    reason: str = ""

    @property
    def strong(self) -> bool:
        """Files and network are both out of a program's reach."""
        return not self.missing

    @property
    def missing(self) -> list[str]:
        """Those of files and network that are not protected."""
        return [name for name in ("files", "network") if not self.protections.get(name)]

    def to_json(self) -> dict[str, Any]:
        return {"isolation": "strong" if self.strong else "weak", **asdict(self)}

    def __str__(self) -> str:
        """One line a protection."""
        lines = [f"{self.to_json()['isolation']} isolation, {self.way}"]
        for name, means in self.protections.items():
            lines.append(f"  {name}: {', '.join(means) or 'NOT protected'}")
        return "\n".join(lines + ([f"  {self.reason}"] if self.reason else []))


# Each line tries what must not work, and says which protection failed if it does.
_TRIALS = """
import os, socket, sys
def works(action):
    try:
        action()
    except OSError:
        return False
    return True
def grade(sample, item):
    holes = 0
    holes += 1 * works(lambda: open(item["file"]).read(1))
    holes += 2 * works(lambda: os.listdir(item["folder"]))
    holes += 4 * works(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    holes += 8 * works(lambda: os.kill(os.getppid(), 0))
    return holes
"""


def can_fork() -> bool:
    """Is there a warm parent? It needs Linux; macOS forks, but its libraries do not bear it."""
    return sys.platform == "linux"


@functools.cache
def report() -> Report:
    """Which protections this machine gives: a sandbox is started and tries to break out (once a
    process, about 0.1 s)."""
    from rftkit.sandbox.limits import Limits, resource
    from rftkit.sandbox.process import Lost, Sandboxed

    always = {"time": ["our clock"], "environment": ["an empty one"], "memory": [], "disk": []}
    if resource is not None and hasattr(resource, "RLIMIT_AS") and sys.platform != "darwin":
        always["memory"], always["disk"] = ["RLIMIT_AS"], ["RLIMIT_FSIZE"]
    if not can_fork():
        return Report(
            {"files": [], "network": [], "processes": [], "threads": [], **always},
            "a new interpreter for each grade",
            f"{sys.platform} has neither Landlock nor seccomp",
        )
    way = "a warm parent, a fork for each grade"
    try:
        sandboxed = Sandboxed(_TRIALS, Limits(seconds=30))
    except Lost as error:
        return Report(always, way, f"the sandbox does not start: {error}")
    if sandboxed.load_error:
        return Report(always, way, f"the sandbox failed its trial: {sandboxed.load_error}")
    try:
        disk = always["disk"] + sandboxed.given["disk"]
        return _try_out(sandboxed, {**sandboxed.given, **always, "disk": disk}, way)
    finally:
        sandboxed.close()


def _try_out(sandboxed: Any, protections: dict[str, list[str]], way: str) -> Report:
    from rftkit.sandbox.process import Lost, TooLong
    from rftkit.sandbox.runner import ask_once

    item = {"file": os.path.realpath(__file__), "folder": os.path.expanduser("~")}
    try:
        outcome = ask_once(sandboxed, {}, item)
    except (Lost, TooLong) as error:
        return Report({}, way, f"the sandbox failed its trial: {error!r}")
    if outcome.value is None:
        return Report({}, way, f"the sandbox failed its trial: {outcome.runtime_error}")
    holes = int(outcome.value)
    reasons = []
    for name, bits, what in (
        ("files", 3, "the kernel has no Landlock, or it is switched off"),
        ("network", 4, "the kernel has no seccomp, or no table of system calls is known"),
        ("processes", 8, "neither seccomp nor a process namespace is there"),
    ):
        if holes & bits:
            protections[name] = []
        if not protections[name]:
            reasons.append(what)
    return Report(protections, way, "; ".join(reasons))
