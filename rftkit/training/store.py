"""report.json and report.md of a run: what it kept, beside what it began with."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from rftkit.files import UserError, write_json
from rftkit.policy import check_weights
from rftkit.records import Sample
from rftkit.task import Task
from rftkit.training.config import RunConfig

# ------------------------------------------------------------------------------------------
# from rftkit.training.record:
# The record of a run: one log object a step, told to every file and to everyone who watches.
#
# log.jsonl holds it, events.jsonl says it in the shape of OpenAI's fine-tuning API,
# samples.jsonl has
# the answers, observers hear it. A checkpoint notes how long the three files were; a run that
# goes on
# cuts them back to there, so that no line is lost and none stands twice.

# Hears each step's log object. It may have methods too, each of which may be missing:
#   begin(plan, log, start)   before the first step; `log` holds the steps of an earlier session,
#                             `start` the look at the held-out rows before step 1 (or is empty)
#   gate(signal)              after the signal gate
#   answers(record, samples)  the completions of the step that was just logged
#   end(run)                  after the last step
Observer = Callable[[dict[str, Any]], None]

FILES = ("log.jsonl", "events.jsonl", "samples.jsonl")

# The fields of a step's log object, and what TRL calls those that it measures. `None` stands where
# a method has no such number (SFT has no reward).
FIELDS = {
    "reward_mean": "reward",
    "reward_std": "reward_std",
    "sub_rewards": None,
    "dead_groups": "frac_reward_zero_std",
    "completion_tokens": "completions/mean_length",
    "truncated": "completions/clipped_ratio",
    "entropy": "entropy",
    "kl": "kl",
    "grad_norm": "grad_norm",
    "loss": "loss",
    "patterns": None,
}


def record_of(step: int, logs: dict[str, Any]) -> dict[str, Any]:
    """TRL's log of a step as our log object; what is not finite becomes None (JSON has no NaN)."""
    record: dict[str, Any] = {"step": step, "seconds": 0.0}
    for ours, trl in FIELDS.items():
        value = logs.get(trl)
        record[ours] = None if value is None or not math.isfinite(value) else round(float(value), 6)
    return record


class Recorder:
    """One object a step: to log.jsonl, to events.jsonl in OpenAI's shape, to the observers."""

    def __init__(
        self,
        out: Path,
        observers: Sequence[Observer],
        steps: int,
        positions: dict[str, int] | None = None,
        seconds: float = 0.0,
    ):
        """positions, seconds   of the checkpoint that the run goes on from"""
        self.out, self.observers, self.steps = out, observers, steps
        self.started = time.perf_counter() - seconds
        for name in FILES:
            cut_back(out / name, (positions or {}).get(name, 0))
        self.log = read_lines(out / "log.jsonl")

    @property
    def seconds(self) -> float:
        """Since the run began, without the time between its sessions."""
        return round(time.perf_counter() - self.started, 3)

    def begin(self, plan: Any, start: dict[str, Any]) -> None:
        for observer in self.observers:
            if hasattr(observer, "begin"):
                observer.begin(plan, list(self.log), start)

    def step(self, record: dict[str, Any], samples: Sequence[Sample] = ()) -> None:
        record["seconds"] = self.seconds
        append_lines(self.out / "samples.jsonl", step_lines(record["step"], samples))
        append_lines(self.out / "events.jsonl", [self.event(record), *self.alarm_events(record)])
        append_lines(self.out / "log.jsonl", [record])
        self.log.append(record)
        for observer in self.observers:
            observer(record)
            if hasattr(observer, "answers"):
                observer.answers(record, list(samples))

    def event(self, record: dict[str, Any]) -> dict[str, Any]:
        """What OpenAI's fine-tuning API reports of a step (object fine_tuning.job.event)."""
        said = [f"Step {record['step']}/{self.steps}"]
        if record.get("reward_mean") is not None:
            said.append(f"train mean reward={record['reward_mean']:.2f}")
        if "validation" in record:
            look = record["validation"]
            said.append(f"full validation mean reward={look['grade']:.2f}")
            said.append(f"full validation mean parse error={look['parse_error']:.2f}")
        data = {key: value for key, value in record.items() if key != "patterns"}
        return event(f"event-{record['step']}", "info", "metrics", ", ".join(said), data)

    def alarm_events(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            event(f"event-{record['step']}-{alarm['name']}", "warn", "message",
                  f"Step {record['step']}/{self.steps}: {alarm['cause']}", alarm)
            for alarm in record.get("alarms", [])
        ]  # fmt: skip

    def positions(self) -> dict[str, int]:
        """How long each file is, in bytes, and on the disk: what a checkpoint notes."""
        found = {}
        for name in FILES:
            with open(self.out / name, "ab") as file:
                os.fsync(file.fileno())
                found[name] = file.tell()
        return found


def event(name: str, level: str, kind: str, message: str, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "object": "fine_tuning.job.event",
        "id": name,
        "created_at": int(time.time()),
        "level": level,
        "type": kind,
        "message": message,
        "data": data,
    }


def step_lines(step: int, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    return [{"step": step} | sample.to_json() for sample in samples]


def append_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Lines of JSON at the end of a file, in one write."""
    if records:
        with open(path, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))


def cut_back(path: Path, size: int) -> None:
    """Keep a file's first `size` bytes; a missing file is made."""
    with open(path, "ab") as file:
        file.truncate(size)


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file; a last line that was torn is left out.

    Raises UserError for a line that is no object: something else than a run has written there.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}), expected a run's log: change its rights"
        ) from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line, parse_constant=lambda name: None)  # NaN is no number
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise UserError(
                f"{path}:{number}: not a JSON object, expected the record of a step: remove the "
                "line, or train anew into another folder"
            )
        found.append(record)
    return found


# ------------------------------------------------------------------------------------------
# from rftkit.training.folder:
# A run folder: is there a run in it, may this one go on, what does a finished one hold.
#
# RUN/  config.json       the RunConfig             data.json       what rows and grader it
# trained on
#       plan.json         the derived batch sizes   gate.json       the verdict before step 1
#       log.jsonl  events.jsonl  samples.jsonl      record.py
#       checkpoints/      to go on from, and the best three adapters
#       adapter/          the best adapter          report.json, report.md   what it came to
#       training.json     written last: the run is finished
#       alarms/           batches of steps that went wrong

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


# ------------------------------------------------------------------------------------------
# from rftkit.training.checkpoints:
# Checkpoints that are whole or not there: all that a run needs to go on as if nothing happened.
#
# RUN/checkpoints/step-000010/  adapter_model.safetensors, adapter_config.json   the weights
#                               optimizer.pt, scheduler.pt, rng_state.pth,
#                               trainer_state.json                  written and read by transformers
#                               run_state.json   ours: log positions, held-out looks, seconds
#                               complete.json    size and checksum of each file, written last
# RUN/checkpoints/best/         the adapters of the best three looks
#
# A checkpoint is written into `.writing`, forced to the disk, and renamed. Killed at any moment, it
# is either whole under its name or under no name that is read; a file that was damaged later fails
# its checksum, and the checkpoint before is taken.

MARKER, STATE = "complete.json", "run_state.json"
KEPT = 2  # the newest, and one before it in case a disk damages the newest


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, out: Path):
        self.folder = out / "checkpoints"

    def write(self, step: int, trainer: Any, state: dict[str, Any]) -> Path:
        """Write the trainer's state and ours; -> the folder. Older ones go, all but one."""
        beside, place = self.folder / ".writing", self.folder / f"step-{step:06d}"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        try:
            write_adapter(trainer.model, beside)
            trainer._save_optimizer_and_scheduler(str(beside))
            trainer._save_rng_state(str(beside))
            trainer.state.save_to_json(str(beside / "trainer_state.json"))
            write_json(beside / STATE, state)
            write_marker(beside)
        except BaseException:  # a full disk gets back what the attempt took
            shutil.rmtree(beside, ignore_errors=True)
            raise
        shutil.rmtree(place, ignore_errors=True)  # a torn or an equal one of the same step
        os.replace(beside, place)
        force_to_disk(self.folder)
        for old in self.all()[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        return place

    def all(self) -> list[Path]:
        """Folders that bear a checkpoint's name, oldest first."""
        return sorted(self.folder.glob("step-*"))

    def newest(self) -> Path | None:
        """The newest whole checkpoint to go on from; what is torn is passed over."""
        return next((place for place in self.whole() if self.logs_reach(place)), None)

    def whole(self) -> Iterator[Path]:
        """The whole checkpoints, newest first."""
        return (place for place in reversed(self.all()) if is_whole_checkpoint(place))

    def logs_reach(self, place: Path) -> bool:
        """Are the run's files as long as they were at this checkpoint? Where somebody or a disk
        has shortened one, an earlier checkpoint is taken, and the lost steps are made again."""
        positions = read_state(place).get("positions", {})
        files = {name: self.folder.parent / name for name in positions}
        return all(f.exists() and f.stat().st_size >= positions[n] for n, f in files.items())

    def after(self, place: Path | None) -> None:
        """Remove what is newer than `place`: torn folders that a run going on would meet again."""
        for other in self.all():
            if place is None or other.name > place.name:
                shutil.rmtree(other, ignore_errors=True)


def read_state(place: Path) -> dict[str, Any]:
    return json.loads((place / STATE).read_text(encoding="utf-8"))


def write_adapter(model: Any, folder: Path) -> None:
    """The trained adapter alone: TRL's frozen copy ("ref") would else stand in a folder beside it,
    and transformers' loader, finding a folder, would load that one and not the trained one."""
    # Linear layers alone are adapted: no embeddings to save, no need to look at the base's config.
    model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False)


def write_marker(folder: Path) -> None:
    """complete.json, when every other file is on the disk."""
    files = {}
    for path in sorted(folder.iterdir()):
        force_to_disk(path)
        files[path.name] = fingerprint(path)
    write_json(folder / MARKER, files)
    force_to_disk(folder)


def is_whole_checkpoint(folder: Path) -> bool:
    try:
        files = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return all(fingerprint(folder / name) == known for name, known in files.items())
    except (OSError, ValueError):
        return False


def fingerprint(path: Path) -> list[int]:
    """[size in bytes, CRC-32]"""
    size = checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            size, checksum = size + len(block), zlib.crc32(block, checksum)
    return [size, checksum]


def force_to_disk(path: Path) -> None:
    """fsync a file or a folder's list of names (folders cannot be opened on Windows)."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_adapter(model: Any, folder: Path) -> None:
    """Written beside and renamed, so that a torn adapter is never read."""
    beside = folder.with_name(folder.name + ".writing")
    shutil.rmtree(beside, ignore_errors=True)
    write_adapter(model, beside)
    move_into_place(beside, folder)


def copy_adapter(source: Path, folder: Path) -> None:
    beside = folder.with_name(folder.name + ".writing")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(source, beside)
    move_into_place(beside, folder)


def move_into_place(beside: Path, folder: Path) -> None:
    for path in beside.iterdir():
        force_to_disk(path)
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(beside, folder)
    shutil.rmtree(old, ignore_errors=True)


def load_adapter_weights(model: Any, folder: Path) -> None:
    """Put a saved adapter's weights back into a model that has the same adapter.

    Raises UserError where the file is missing or torn.
    """
    from peft import load_peft_weights, set_peft_model_state_dict

    check_weights(folder)
    set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))


# ------------------------------------------------------------------------------------------
# from rftkit.training.report:
# report.json and report.md of a run: what it kept, beside what it began with.
