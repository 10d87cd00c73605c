"""A run folder: is there a run in it, may this one go on, what does a finished one hold.

RUN/  config.json       the RunConfig             data.json       what rows and grader it trained on
      plan.json         the derived batch sizes   gate.json       the verdict before step 1
      log.jsonl  events.jsonl  samples.jsonl      record.py
      checkpoints/      to go on from, and the best three adapters
      adapter/          the best adapter          report.json, report.md   what it came to
      training.json     written last: the run is finished
      alarms/           batches of steps that went wrong
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from rftkit.data.errors import UserError
from rftkit.data.writing import write_json
from rftkit.task import Task
from rftkit.training.config import RunConfig

NEW, UNFINISHED, FINISHED = "new", "unfinished", "finished"
OWN_FILES = (
    "config.json", "data.json", "plan.json", "gate.json", "log.jsonl", "events.jsonl",
    "samples.jsonl", "training.json", "report.json", "report.md",
)  # fmt: skip
OWN_FOLDERS = ("checkpoints", "adapter", "alarms")
SUMMARY = ("config", "training", "start", "best")  # what training.json holds


def data_identity(
    rows: Sequence[dict[str, Any]], held_out: Sequence[dict[str, Any]], task: Task
) -> dict[str, Any]:
    """What a run is trained on, as sizes and checksums: data.json."""
    return {
        "training rows": [len(rows), checksum(rows)],
        "held-out rows": [len(held_out), checksum(held_out)],
        "grader": [1, checksum([grader_identity(task)])],
        "task": [1, checksum([task_identity(task)])],
    }


def task_identity(task: Task) -> list[Any]:
    """What else of a task decides what a run comes to: how answers are read, grouped, measured."""
    return [task.answer_template, task.group_by, task.patterns, task.metrics, task.headline]


def grader_identity(task: Task) -> Any:
    """The grader's JSON; of one that is a function of this process, its name."""
    try:
        return task.grader.to_json()
    except (UserError, ValueError, TypeError, OSError):
        return task.grader.name


def checksum(records: Sequence[Any]) -> str:
    found = hashlib.sha256()
    for record in records:
        found.update(json.dumps(record, sort_keys=True, default=str).encode() + b"\n")
    return found.hexdigest()


def open_folder(out: Path, config: RunConfig, data: dict[str, Any], existing: str) -> str:
    """NEW, UNFINISHED (it goes on) or FINISHED; a new one gets its config.json and data.json.

    out        a folder that is there (make_folder)
    existing   "resume" or "replace" what is there

    Raises UserError where a run with another config or other data stands there, naming the fields;
    and where files of a run's names stand there that no run wrote.
    """
    if existing not in ("resume", "replace"):
        raise UserError(f'existing: "{existing}", expected resume or replace')
    refuse_others(out)
    found = UNFINISHED if is_begun(out) else NEW
    if existing == "resume" and found != NEW:
        differing = differences(out, config, data)
        if differing:
            raise UserError(
                f"{out}: another run stands here ({'; '.join(differing)}), expected the same "
                "config and data to go on: name another folder, or remove this one"
            )
        found = UNFINISHED if read_summary(out) is None else FINISHED
    else:
        again = existing == "resume" and (out / "gate.json").exists()
        clear(out, but=["gate.json"] if again and not differences(out, config, data) else [])
        found = NEW
    if found != FINISHED:
        write_json(out / "config.json", config.to_json())
        write_json(out / "data.json", data)
    return found


def make_folder(out: Path) -> None:
    """The run's folder; UserError where there can be none."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be a run's folder ({error.strerror}), expected a place where one can "
            "be made: name another with --out"
        ) from None


def refuse_others(out: Path) -> None:
    """A folder with files of a run's names that no run wrote: UserError, for they would be lost."""
    names = [name for name in (*OWN_FILES, *OWN_FOLDERS) if (out / name).exists()]
    if names and not is_runs_config(out / "config.json"):
        raise UserError(
            f"{out}: holds {', '.join(names)}, which a run would overwrite, and no run's "
            "config.json, expected an empty folder or a run to go on with: name another folder"
        )


def is_runs_config(path: Path) -> bool:
    """Is it a RunConfig, and not, say, the config.json of a model?"""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and {"model", "method", "prompts_per_step"} <= record.keys()


def read_summary(out: Path) -> dict[str, Any] | None:
    """training.json of a finished run; None where there is none, or a torn one."""
    try:
        record = json.loads((out / "training.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and set(SUMMARY) <= record.keys() else None


def is_begun(out: Path) -> bool:
    """Was a step of training logged or saved here? A folder without one holds nothing to lose."""
    log = out / "log.jsonl"
    begun = (log.exists() and log.stat().st_size > 0) or any(out.glob("checkpoints/step-*"))
    return (out / "config.json").exists() and (begun or (out / "training.json").exists())


def differences(out: Path, config: RunConfig, data: dict[str, Any]) -> list[str]:
    """What differs between the run in `out` and the one that is asked for, by name."""
    before = read_config(out)
    found = config.differences(before)
    try:
        known = json.loads((out / "data.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = None
    if not isinstance(known, dict):
        return [*found, "data.json: missing or torn, so its rows are not known"]
    others = [name for name, identity in data.items() if known.get(name) != identity]
    if others:
        found += config.differences(before, content=True)
    for name in others:
        count, there = data[name][0], (known.get(name) or ["none"])[0]
        same = "another" if name in ("grader", "task") else "others of that number"
        found.append(f"{name}: {same if there == count else f'{there} there, {count} here'}")
    return found


def read_config(out: Path) -> RunConfig:
    """The config of a run folder; fields that it does not know yet have their default."""
    try:
        record = json.loads((out / "config.json").read_text(encoding="utf-8"))
        known = {f.name for f in fields(RunConfig)}
        return RunConfig(**{key: value for key, value in record.items() if key in known})
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{out / 'config.json'}: cannot be read ({error}), expected a RunConfig: is {out} a "
            "run folder?"
        ) from None


def clear(out: Path, but: Sequence[str] = ()) -> None:
    """Remove what a run writes, and nothing else that may stand in the folder."""
    for name in OWN_FILES:
        if name not in but:
            (out / name).unlink(missing_ok=True)
    for name in OWN_FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)


@contextmanager
def sole_user(out: Path):
    """One process a run folder. The lock is the system's: it ends with the process, however."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with open(out / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{out}: another process trains here, expected none: wait for it, or name another "
                "folder"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
