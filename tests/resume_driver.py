"""Trains, kills, resumes: the process behind test_training_resume.py and test_processes.py.

    python resume_driver.py RUNS.json      a list of [config, folder, wounds]

torch and TRL are imported once. Every session of a run is a fork of this process, which is killed
with SIGKILL by its wound; the next one resumes. After the last wound the run goes to its end.

    {"lines": 3, "delay": 0.2}   so many seconds after the log has so many lines
    {"at": "state", "call": 2}   inside: while the 2nd checkpoint is written (see POINTS)
    {"signal": "SIGTERM", "lines": 2}   asked to stop, not killed
    {"processes": 2, "lines": 2, "victim": 1}   two train together; the second one is killed
"""

import gc
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

if '"unsloth"' in Path(sys.argv[1]).read_text():
    import unsloth  # noqa: F401  it patches TRL, so it comes first

import torch
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer  # noqa: F401  imported once, here

from rftkit import RunConfig, train
from rftkit.training import store, watchdogs

POINTS = {
    "weights": (store, "write_adapter"),
    "state": (store, "write_json"),
    "rename": (store.os, "replace"),
    "old ones go": (store.shutil, "rmtree"),
    "best adapter": (watchdogs, "copy_adapter"),
    "copied weights": (store.shutil, "copyfile"),
    "log line": (store, "append_lines"),
}


def kill_at(place: str, call: int) -> None:
    """Kill this process before the `call`-th call of a function; of a line, half is written."""
    module, name = POINTS[place]
    function, calls = getattr(module, name), []

    def wrapped(*arguments, **named):
        calls.append(1)
        if len(calls) == call:
            if name == "append_lines":
                with open(arguments[0], "a") as file:
                    file.write(json.dumps(arguments[1])[1:60])
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)

    setattr(module, name, wrapped)


def launched(config: RunConfig, out: Path, wound: dict, rank: int, port: int) -> int:
    """One process of a session, a fork of this one; -> its number."""
    if child := os.fork():
        return child
    code, count = 0, wound.get("processes", 1)
    if count > 1:  # what a launcher tells it
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in own.items()})
    try:
        torch.set_num_threads(1)
        if "at" in wound:
            kill_at(wound["at"], wound["call"])
        train(config, out, say=lambda text: print(text, flush=True))
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        code = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "code", 1)
    os._exit(code)


def session(config: RunConfig, out: Path, wound: dict) -> int:
    """One session of the run; -> its exit code, -9 if it was killed; that of its victim where
    several processes train."""
    log, ended = out / "log.jsonl", 0
    before = log.stat().st_mtime_ns if log.exists() else 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    numbers = range(wound.get("processes", 1))
    children = [launched(config, out, wound, rank, port) for rank in numbers]
    child = children.pop(wound.get("victim", 0))
    while "lines" in wound and not ended:
        touched = log.exists() and log.stat().st_mtime_ns > before  # by this session
        if touched and log.read_bytes().count(b"\n") >= wound["lines"]:
            time.sleep(wound.get("delay", 0.0))
            os.kill(child, getattr(signal, wound.get("signal", "SIGKILL")))
            break
        time.sleep(0.005)
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        status = os.waitpid(child, 0)[1]
    for other in children:
        os.waitpid(other, 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    gc.freeze()  # the forks do not look through what is imported
    for fields, out, wounds in json.loads(Path(sys.argv[1]).read_text()):
        config = RunConfig(**fields)
        ends = [session(config, Path(out), wound) for wound in [*wounds, {}]]
        print("ENDS", json.dumps(ends), flush=True)
