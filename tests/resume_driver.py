"""Trains, kills, resumes: the process behind test_training_resume.py.

    python resume_driver.py CONFIG.json OUT '[wounds]'

torch and TRL are imported once. Every session of the run is a fork of this process, which is killed
with SIGKILL by its wound; the next one resumes. After the last wound the run goes to its end.

    {"lines": 3, "delay": 0.2}   so many seconds after the log has so many lines
    {"at": "state", "call": 2}   inside: while the 2nd checkpoint is written (see POINTS)
    {"signal": "SIGTERM", "lines": 2}   asked to stop, not killed
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

if '"unsloth"' in Path(sys.argv[1]).read_text():
    import unsloth  # noqa: F401  it patches TRL, so it comes first

import torch
import trl
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer  # noqa: F401  imported once, here

from rftkit import RunConfig, train
from rftkit.training import heldout, store


def kill_at(call: int):
    """A function that kills this process when it is called for the `call`-th time."""
    left = [call]

    def count() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return count


def before(module, name: str, count) -> None:
    """Call `count` before every call of module.name."""
    function = getattr(module, name)

    def wrapped(*arguments, **named):
        count()
        return function(*arguments, **named)

    setattr(module, name, wrapped)


def tear_a_line(count) -> None:
    """Before a log line is whole, half of it stands in the file."""
    whole = store.append_lines

    def torn(path, records):
        if records and path.name == "log.jsonl":
            with open(path, "a") as file:
                file.write(json.dumps(records[0])[:60])
                file.flush()
                count()
                file.truncate(file.tell() - 60)
        whole(path, records)

    store.append_lines = torn


POINTS = {
    "weights": lambda count: before(store, "write_adapter", count),
    "state": lambda count: before(store, "write_json", count),
    "rename": lambda count: before(store.os, "replace", count),
    "old ones go": lambda count: before(store.shutil, "rmtree", count),
    "best adapter": lambda count: before(heldout, "copy_adapter", count),
    "copied weights": lambda count: before(store.shutil, "copytree", count),
    "log line": tear_a_line,
}


def session(config: RunConfig, out: Path, wound: dict) -> int:
    """One session of the run in a fork of this process; -> its wait status."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            if "at" in wound:
                POINTS[wound["at"]](kill_at(wound["call"]))
            train(config, out, say=lambda text: print(text, flush=True))
            code = 0
        except KeyboardInterrupt as stop:
            print(stop, flush=True)
            code = 130
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            code = 1
        os._exit(code)
    log = out / "log.jsonl"
    while "lines" in wound and os.waitpid(child, os.WNOHANG)[0] == 0:
        if log.exists() and log.read_bytes().count(b"\n") >= wound["lines"]:
            time.sleep(wound.get("delay", 0.0))
            os.kill(child, getattr(signal, wound.get("signal", "SIGKILL")))
            break
        time.sleep(0.005)
    else:
        if "lines" in wound:
            return 0  # it ended before its wound
    return os.waitpid(child, 0)[1]


def main() -> None:
    config = RunConfig(**json.loads(Path(sys.argv[1]).read_text()))
    out, wounds = Path(sys.argv[2]), json.loads(sys.argv[3])
    ends = []
    for wound in [*wounds, {}]:
        status = session(config, out, wound)
        ends.append(-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))
    print("ENDS", json.dumps(ends), trl.__version__)


if __name__ == "__main__":
    main()
