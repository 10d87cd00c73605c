"""The warm parent: locked in, it runs the grader's text once, then forks a child for each grade.

So a grade costs a fork and no start of an interpreter, and what one grade changes in its memory
dies with it. The parent itself reads requests as bytes, hands them on and never looks into them.

Where a child goes beyond a limit, the answer says so and this process ends: that kills the child,
however it resists, and our side starts a new parent.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import sys
import time
import types
from collections.abc import Callable

from rftkit.sandbox import child, frames, loading, protections
from rftkit.sandbox.frames import DISK_FULL, DONE, GRADE, HEADER, REPLY_OVERHEAD, REPLY_TOO_LARGE
from rftkit.sandbox.limits import Limits, limit_process
from rftkit.sandbox.scratch import bytes_in, bytes_mounted, bytes_unlinked, whole_blocks, wipe

_LOOK_AT_DISK_EVERY = 0.1  # seconds


def main(
    pipes: tuple[int, int, int],
    settings: dict,
    namespaces: list[str],
    user: tuple[int, bool] | None,
) -> None:
    """Lock this process in, say with what, run the source, then serve requests. Never returns.

    pipes  of requests, of replies, and one whose other end the guard holds as long as it lives
    """
    requests, replies, to_guard = pipes
    requests, replies = _take_away_standard_files(requests, replies)
    limits, scratch = settings["limits"], settings["scratch"]
    os.setpgid(0, 0)
    os.chdir(scratch)
    os.environ.update(HOME=scratch, TMPDIR=scratch)
    given, child_filter = _lock_in(settings, namespaces, user)
    if _is_alone(to_guard):
        os._exit(1)
    frames.write_frame(replies, json.dumps(given).encode())
    module, error, handlers = loading.load(settings["source"], [sys.modules[__name__]])
    if not error and not wipe(scratch):  # a file by its name: grades could write in it in turn
        error = "the source left files that cannot be removed"
    frames.write_frame(replies, error.encode("utf-8", "replace"))
    if error:
        os._exit(0)
    settings["handlers"] = handlers
    gc.collect()
    gc.freeze()  # what is here stays: a child's collector need not touch (and so copy) it
    while (request := frames.read_frame(requests)) is not None:
        answer, finished = _serve(request, module, limits, child_filter, settings)
        frames.write_frame(replies, answer)
        if finished:
            break
    os._exit(0)


def _lock_in(
    settings: dict, namespaces: list[str], user: tuple[int, bool] | None
) -> tuple[dict[str, list[str]], protections.Filter | None]:
    """Everything this machine has, from the weakest to the strongest. Returns {what is protected:
    by which means} and the filter for the children."""
    _set_first_to_be_killed()
    has_private_user = user is not None and protections.become(*user)
    if not has_private_user:
        protections.drop_capabilities()
    counted = has_private_user or ("user" in namespaces and os.geteuid() != 0)
    limit_process(settings["limits"], counted)
    protections.forbid_new_privileges()
    protections.die_with_parent()
    protections.adopt_orphans()  # so that loading.py sees every process the source left
    files, network, processes, child_filter = [], [], [], None
    try:
        version = protections.restrict_files(
            settings["trees"], settings["lists"], settings["scratch"]
        )
        files.append(f"Landlock ABI {version}")
    except OSError:
        pass
    try:
        child_filter = protections.restrict_system_calls()
        network.append("seccomp")
        processes.append("seccomp")
    except OSError:
        pass
    network += ["network namespace"] if "network" in namespaces else []
    processes += ["process namespace"] if "process" in namespaces else []
    threads = ["own user"] if has_private_user else ["user namespace"] if counted else []
    given = {"files": files, "network": network, "processes": processes, "threads": threads}
    if settings["mounted"]:
        given["disk"] = ["a file system of that size (tmpfs, in memory)"]
    else:
        given["disk"] = ["its folder is measured"]
    return given, child_filter


def _serve(
    request: bytes,
    module: types.ModuleType,
    limits: Limits,
    child_filter: protections.Filter | None,
    settings: dict,
) -> tuple[bytes, bool]:
    """Fork a child for one request; returns (the answer for our side, is this parent finished)."""
    pipes = [os.pipe() for _ in range(1 if request[:1] == GRADE else 3)]
    pid = os.fork()
    if pid == 0:
        try:
            for number, handler in settings["handlers"].items():
                signal.signal(number, handler)
            child.main(request, module, [end for _, end in pipes], limits, child_filter)
        finally:
            os._exit(child.BROKEN)
    for _, end in pipes:
        os.close(end)
    ends = [end for end, _ in pipes]
    scratch, enough = settings["scratch"], whole_blocks(limits.disk)

    def bytes_taken(by: int | None) -> int:
        if settings["mounted"]:
            return bytes_mounted(scratch)
        unlinked = bytes_unlinked(by, limits.open_files, scratch) if by else 0
        return bytes_in(scratch, enough) + unlinked

    cause, texts = _collect(ends, limits, lambda: bytes_taken(pid) > enough)
    status, left = 0, 0
    if cause == DONE:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        left = bytes_taken(None)
    finished = cause != DONE or (left > 0 and not wipe(scratch))
    for end in ends:
        os.close(end)
    texts += [b""] * (3 - len(texts))
    header = HEADER.pack(cause, status, left, finished, *map(len, texts))
    return b"".join([header, *texts]), finished


def _collect(
    ends: list[int], limits: Limits, is_disk_full: Callable[[], bool]
) -> tuple[bytes, list[bytes]]:
    """Read all pipes to their ends; stop early where the child says or writes too much."""
    poll = select.poll()
    for end in ends:
        poll.register(end, select.POLLIN)
    texts = {end: b"" for end in ends}
    is_open = set(ends)
    next_look = time.monotonic() + _LOOK_AT_DISK_EVERY
    while is_open:
        # By the clock: a program that writes into its pipe all the time is looked at no less.
        ready = poll.poll(max(0.0, next_look - time.monotonic()) * 1000)
        if time.monotonic() >= next_look:
            if is_disk_full():
                return DISK_FULL, [texts[end] for end in ends]
            next_look = time.monotonic() + _LOOK_AT_DISK_EVERY
        for end, _ in ready:
            data = os.read(end, 65536)
            texts[end] += data
            if not data:
                poll.unregister(end)
                is_open.discard(end)
        if sum(map(len, texts.values())) > limits.reply + REPLY_OVERHEAD:
            return REPLY_TOO_LARGE, [b""] * len(ends)
    return DONE, [texts[end] for end in ends]


def _take_away_standard_files(requests: int, replies: int) -> tuple[int, int]:
    """Move the two pipes up and put /dev/null in the places 0, 1 and 2, for print() and input()."""
    moved = os.dup(requests), os.dup(replies)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    os.close(nothing)
    return moved


def _is_alone(to_guard: int) -> bool:
    """Did the guard die before this process asked to die with it?"""
    poll = select.poll()
    poll.register(to_guard, 0)
    return bool(poll.poll(0))


def _set_first_to_be_killed() -> None:
    """When the machine runs out of memory, the sandbox goes and not the training."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass
