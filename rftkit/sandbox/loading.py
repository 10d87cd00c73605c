"""Reading the grader's text into the warm parent so that nothing of it goes on running there.

Each grade is a fork of the warm parent, so what changes in the parent between two grades the next
one can see. The text runs there once; then this file takes away what would let it run again:
threads and processes that it left (refused), timers, signal handlers, hooks, and functions of its
own in the place of ours. __init__.py says what this does not reach.
"""

from __future__ import annotations

import _thread
import builtins
import gc
import os
import signal
import sys
import time
import types
from collections.abc import Callable
from typing import Any, NamedTuple

from rftkit.sandbox import child, frames, scratch

_ALSO_CLONES = 0x4000_0000  # __WALL: children of whatever kind


class Loaded(NamedTuple):
    """error     the traceback of the text, or what it left running, or ""
    handlers  {signal: handler} that the text set: for the children, where they work as written
    """

    module: types.ModuleType
    error: str
    handlers: dict[int, Any]


def load(source: str, ours: list[types.ModuleType]) -> Loaded:
    """Run the text, then end all that it started in this process.

    ours  the modules that go on working here: what the text changed in them is undone, and what
          it changes in the standard library does not reach them
    """
    kept = [_keep(module) for module in [*ours, frames, scratch, sys.modules[__name__]]]
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    _take_away_hooks()
    module, error = child.load_source(source)
    for names, values, codes in kept:  # first of all, and with nothing but what stands here
        names.update(values)
        for function, code in codes:
            function.__code__ = code
    handlers = _take_away_handlers(before)
    sys.settrace(None)
    sys.setprofile(None)
    gc.callbacks.clear()
    return Loaded(module, error or _left_running(), handlers)


def _keep(module: types.ModuleType) -> tuple[dict, dict, list[tuple[Callable, types.CodeType]]]:
    """(a module's names, their values as they should be, the code of its functions).

    Builtins and modules of the standard library are there as copies, which the text, run later,
    does not find: a patched os.fork or builtins.len is then its own affair."""
    names = vars(module)
    values = dict(vars(builtins)) | dict(names)
    for name, value in values.items():
        if isinstance(value, types.ModuleType) and not value.__name__.startswith("rftkit"):
            values[name] = types.SimpleNamespace(**vars(value))
    functions = [value for value in names.values() if isinstance(value, types.FunctionType)]
    return names, values, [(function, function.__code__) for function in functions]


def _take_away_hooks() -> None:
    """What would call the text at each fork: an audit hook, which nobody can remove, and all that
    is registered for the parent's side of a fork. (The child's side stays: `random` seeds so.)"""
    register = os.register_at_fork

    def register_at_fork(
        *, before: Any = None, after_in_parent: Any = None, after_in_child: Any = None
    ) -> None:
        if after_in_child is not None:
            register(after_in_child=after_in_child)

    def addaudithook(hook: Any) -> None:
        raise PermissionError("the sandbox gives no audit hooks")

    for module in (os, sys.modules["posix"]):
        module.register_at_fork = register_at_fork
    sys.addaudithook = addaudithook


def _take_away_handlers(before: dict[int, Any]) -> dict[int, Any]:
    """Stop the timers, put back the signal handlers; returns those that the text had set."""
    for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        signal.setitimer(timer, 0)
    found = {}
    for number, handler in before.items():
        now = signal.getsignal(number)
        if now is not handler:
            found[number] = now
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    signal.set_wakeup_fd(-1)
    return found


def _left_running() -> str:
    """What the text left running in or beside this process, as an error, or ""."""
    advice = "one grade could tell the next one through it. Start it within grade()"
    try:
        while True:  # children that have ended are taken note of and forgotten
            if os.waitpid(-1, os.WNOHANG | _ALSO_CLONES)[0] == 0:
                return f"the source left a process running: {advice}"
    except ChildProcessError:
        pass
    if _threads() > 1:
        time.sleep(0.05)  # one that was just started has no frame yet; one that ends needs a turn
    names = sys.modules["threading"]._active if "threading" in sys.modules else {}
    for number in sys._current_frames():
        if number != _thread.get_ident():
            name = getattr(names.get(number), "name", number)
            return f"the source left a thread running ({str(name)[:60]}): {advice}"
    return ""


def _threads() -> int:
    """Threads of this process, Python's and those of libraries; 2 where nobody says."""
    try:
        return os.stat("/proc/self/task").st_nlink - 2
    except OSError:
        return 2
