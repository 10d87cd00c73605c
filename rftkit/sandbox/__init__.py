"""Untrusted Python with limits: python graders, and code that a model wrote.

Threat model. The author of a job is semi-trusted: the grader's text may be careless or curious.
What a model wrote is hostile: it may do anything that a program can do, and training will find
whatever pays. So both run in processes of their own, which get

    files        the interpreter's libraries to read, one empty scratch folder to write in
    network      none
    environment  none of ours
    processes    none to start, none to signal, few threads; all die together
    memory       2 GB      time  2 minutes      disk  1 GB      reply  1 MB

    protections.py  what Linux gives: Landlock, seccomp (syscalls.py), namespaces, limits.py
    guard.py        makes the scratch folder, starts the warm parent, cleans up behind it
    warm_parent.py  reads the grader's text once, then forks a fresh child for each grade
    loading.py      that reading, after which nothing of the text goes on in the warm parent
    child.py        one grade, or one program
    process.py      our side of it: start, ask, stop in time
    runner.py       python_runner() for graders, run_program() for code a model wrote
    fresh.py        where forking a warm parent is not possible: a new interpreter each time
    machine.py      report(): which of this the machine gives, tried out and not assumed

Nothing that comes back is trusted: never unpickled, at most 1 MB, a number is eight bytes.
What no sandbox can do: a grader that runs a model's code WITHIN grade() shares its process with
it, and that code can decide that one grade (no other one). Hidden tests and the comparison belong
outside: `run_program` runs the code alone and hands back what it printed.
What a MODEL wrote runs in the child alone, and no grade leaves anything to the next. The AUTHOR of
a grader is trusted further: the text is read in the warm parent, from which every grade is forked.
A thread or process that it leaves there is refused; timers, handlers, hooks and replaced functions
are taken away. That stops the careless and the curious, not one who digs: through ctypes (writing
into memory, pthread_atfork, threads that are not Python's), through the frames above it or a second
copy of a built-in module, or with sys.monitoring (Python 3.12), a text can still keep a count of
its own grades. It gains the same rewards that its author could have written down, and no file,
network or process.
The disk is a file system of its own where the machine lets us mount one (namespaces): the kernel
keeps its size, and it takes memory, at most the disk's limit for each grade that runs, given back
after it. Elsewhere the folder is measured ten times a second: a program can then write more than
the limit in between, and hide unlinked files behind a memory map or a thread with files of its own.
Left out: the size and existence of files outside can be seen (their content and the names in
a folder cannot), and side channels such as timing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rftkit.sandbox.limits import Limits
    from rftkit.sandbox.machine import Report, report
    from rftkit.sandbox.runner import (
        Outcome,
        ProgramResult,
        default_workers,
        python_runner,
        run_program,
    )

__all__ = [
    "Limits",
    "Outcome",
    "ProgramResult",
    "Report",
    "default_workers",
    "python_runner",
    "report",
    "run_program",
]

_HOMES = {"Limits": "limits", "Report": "machine", "report": "machine"}


def __getattr__(name: str) -> Any:
    """Load a name where it is first used: the processes inside need only a part of this, and
    start in half the time without the rest."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'runner')}"), name)
