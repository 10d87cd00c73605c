"""How much a sandboxed program may use, and the kernel's own limits (setrlimit)."""

from __future__ import annotations

from typing import NamedTuple

try:
    import resource
except ImportError:  # Windows
    resource = None


class Limits(NamedTuple):
    """What one grade, or one program, may use; the defaults are those of OpenAI's graders guide.

    seconds     from asking to the answer, waiting included
    memory      bytes of address space, libraries included
    disk        bytes in the scratch folder (memory, where it is a tmpfs), and in any one file
    reply       bytes of a result, or of what a program prints
    threads     threads and processes together, where the machine can count them
    open_files  open files and pipes
    """

    seconds: float = 120.0
    memory: int = 2_000_000_000
    disk: int = 1_000_000_000
    reply: int = 1_000_000
    threads: int = 64
    open_files: int = 128


def limit_process(limits: Limits, count_threads: bool) -> None:
    """Limit this process and all that it forks; hard limits, so there is no way back.

    count_threads  the kernel counts all processes of a USER, so this is for a user (or a user
                   namespace) that is the sandbox's alone
    """
    if resource is None:
        return
    wanted = {
        "RLIMIT_AS": limits.memory,
        "RLIMIT_FSIZE": limits.disk,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_RTPRIO": 0,
    }
    if count_threads:
        wanted["RLIMIT_NPROC"] = limits.threads
    for name, value in wanted.items():
        which = getattr(resource, name, None)
        if which is not None:
            _lower(which, value)


def _lower(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    try:
        resource.setrlimit(which, (value, value))
    except (ValueError, OSError):
        pass  # macOS refuses some of them; the report says which machine this is
