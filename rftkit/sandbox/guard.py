"""The outermost process inside: makes the scratch folder, starts the warm parent, cleans up.

It runs no code but its own and waits for one of two ends: our side closes the pipe of requests
(or dies, which is the same), or the warm parent ends. Then all is killed and the folder removed.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import traceback

from rftkit.sandbox import frames, protections, warm_parent
from rftkit.sandbox.limits import Limits
from rftkit.sandbox.scratch import MOST_FILES, hard_limit, remove

REQUESTS, REPLIES = 0, 1


def main() -> None:
    """Entry point of the process that `process.py` starts; the settings are the first message."""
    settings = json.loads(frames.read_frame(REQUESTS))
    settings["limits"] = Limits(*settings["limits"])
    settings["mounted"] = False
    scratch = settings["scratch"]
    os.mkdir(scratch, 0o700)
    try:
        _watch(settings, scratch)
    finally:
        if settings["mounted"]:
            protections.unmount(scratch)
        remove(scratch)


def _watch(settings: dict, scratch: str) -> None:
    libraries = settings["library_folders"]
    sys.path[:] = [path for path in sys.path if path != settings["root"]] + libraries
    try:
        namespaces = []
        if settings["may_unshare"]:
            namespaces = protections.enter_namespaces()
            size = hard_limit(settings["limits"].disk)
            settings["mounted"] = protections.mount_in_memory(scratch, size, MOST_FILES)
        user = protections.private_user([*settings["trees"], os.path.dirname(scratch)])
        if user is not None:
            os.chown(scratch, user[0], user[0])
        alive, held_by_parent = os.pipe()
        parent = os.fork()
    except OSError:
        frames.write_frame(REPLIES, traceback.format_exc().encode())
        return
    if parent == 0:
        try:
            os.close(alive)
            pipes = (REQUESTS, REPLIES, held_by_parent)
            warm_parent.main(pipes, settings, namespaces, user)
        finally:
            os._exit(1)
    os.close(REPLIES)
    os.close(held_by_parent)
    poll = select.poll()
    poll.register(REQUESTS, 0)  # asks for nothing: only the end of the pipe is reported
    poll.register(alive, 0)
    poll.poll()
    # The first kill ends a whole process namespace; where there is none, the group does.
    for kill in (os.kill, os.killpg):
        try:
            kill(parent, signal.SIGKILL)
        except ProcessLookupError:
            pass
    os.waitpid(parent, 0)
