"""The run folder: what is trained in it, the record of each step, checkpoints to resume from.

RUN/  config.json  task.json         the RunConfig, and the task, for an evaluation
      data.json                      checksums of the rows and the grader
      plan.json  gate.json           the derived batch sizes, the signal gate's verdict
      log.jsonl  samples.jsonl       an object a step, and every completion that was trained on
      checkpoints/step-000010/       to resume from: adapter, optimiser, random numbers, our state
      checkpoints/best/              the adapters of the best three validations
      adapter/                       the best of them
      alarms/                        batches of steps that went wrong
      report.json  report.md  training.json     training.json comes last: the run is finished

What is read again is written under another name and renamed when it is whole.
"""

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

from rftkit.environment import gathered, process
from rftkit.files import UserError, read_json, shorten, write_json
from rftkit.loading import check_weights
from rftkit.logs import NAMES, read_lines
from rftkit.records import Sample
from rftkit.task import Task
from rftkit.training.config import RunConfig

# Fields that do not change what is learned: a run is resumed with another value, too.
FREE_FIELDS = ("gate", "save_every", "allow_weak_isolation", "sandbox")
# These name rows and grader; data.json compares what they name, for a file has many paths.
COMPARED_BY_CONTENT = ("task", "train_file", "validation_file", "grader", "answer_template",
                       "group_by", "patterns", "grader_maximum")  # fmt: skip

# Called with each step's log object. It may have methods too, each of them optional:
#   begin(plan, log, start)   before the first step, with the log of earlier sessions and the
#                             validation before step 1 (or {})
#   gate(signal)              after the signal gate
#   answers(record, samples)  the completions of the step that was just logged
#   end(run)                  after the last step
Observer = Callable[[dict[str, Any]], None]

LINES = ("log.jsonl", "samples.jsonl")
OWN = ("config.json", "data.json", "task.json", *LINES, "plan.json", "gate.json", "training.json",
       "report.json", "report.md", "checkpoints", "adapter", "alarms")  # fmt: skip

# Fields of a step's log object.
FIELDS = ("reward_mean", "reward_std", "sub_rewards", "dead_groups", "completion_tokens",
          "truncated", "entropy", "kl", "grad_norm", "loss", "patterns")  # fmt: skip


def record_of(step: int, logs: dict[str, Any]) -> dict[str, Any]:
    """TRL's log of a step as our log object. None: not finite, or the method has no such number."""
    measured = {ours: float(logs[trl]) for trl, ours in NAMES.items() if trl in logs}
    finite = {name: round(value, 6) for name, value in measured.items() if math.isfinite(value)}
    return {"step": step, "seconds": 0.0} | {name: finite.get(name) for name in FIELDS}


class Recorder:
    """One object a step: to log.jsonl and to the observers; the completions to samples.jsonl. A
    checkpoint notes how long both files are; a resumed run cuts them back to there. Of several
    processes the first one writes, the others keep the log in mind."""

    def __init__(self, out: Path, observers: Sequence[Observer], state: dict[str, Any]):
        self.out, self.observers = out, observers
        self.started = time.perf_counter() - state.get("seconds", 0.0)
        self.writes = process()[0] == 0
        for name in LINES if self.writes else ():
            with open(out / name, "ab") as file:
                file.truncate(state["positions"][name] if state else 0)
        gathered(None)  # the others read what the first has cut back
        self.log = read_lines(out / "log.jsonl")

    @property
    def seconds(self) -> float:
        """Since the run began, without the time between its sessions."""
        return round(time.perf_counter() - self.started, 3)

    def notify(self, event: str, *arguments: Any) -> None:
        """Call the method of that name of each observer that has one."""
        for observer in self.observers:
            if method := getattr(observer, event, None):
                method(*arguments)

    def step(self, record: dict[str, Any], samples: Sequence[Sample] = ()) -> None:
        record["seconds"] = self.seconds
        if self.writes:
            append_samples(self.out / "samples.jsonl", samples, step=record["step"])
            append_lines(self.out / "log.jsonl", [record])
        self.log.append(record)
        for observer in self.observers:
            observer(record)
        self.notify("answers", record, list(samples))

    def positions(self) -> dict[str, int]:
        """Bytes of each file, which are on the disk now."""
        for name in LINES:
            force_to_disk(self.out / name)
        return {name: (self.out / name).stat().st_size for name in LINES}


def append_samples(path: Path, samples: Sequence[Sample], **known: Any) -> None:
    append_lines(path, [known | sample.to_json() for sample in samples])


def append_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """UserError where another run trains in this folder: both would write one log. Of several
    processes of a run the first one holds the lock."""
    from filelock import FileLock, Timeout  # comes with transformers; a kill releases it

    if process()[0] > 0:
        yield
        return
    lock = FileLock(out / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{out}: another process trains there: name another folder") from None
    try:
        yield
    finally:
        (out / ".lock").unlink(missing_ok=True)
        lock.release()


def data_identity(rows: list[dict], held_out: list[dict], task: Task) -> dict[str, Any]:
    """What a run is trained on, as sizes and checksums: data.json."""
    reading = [task.answer_template, task.group_by, task.patterns, task.metrics, task.headline]
    parts = {"training rows": rows, "held-out rows": held_out, "grader": [task.grader.record]}

    def identity(records: list) -> list[int | str]:
        text = "".join(json.dumps(r, sort_keys=True, default=str) + "\n" for r in records)
        return [len(records), hashlib.sha256(text.encode()).hexdigest()]

    return {name: identity(part) for name, part in (parts | {"task": [reading]}).items()}


def open_folder(out: Path, config: RunConfig, data: dict[str, Any], existing: str) -> bool:
    """Does a run stand there to be resumed or loaded? Otherwise the folder is made ready for a new
    one. UserError, naming what differs, for another run, and for files that no run wrote."""
    names = [name for name in OWN if (out / name).exists()]
    if names and not {"config.json", "data.json"} <= {*names}:
        raise UserError(f"{out}: holds {', '.join(names)} that no run wrote: name another folder")
    differing = differences(out, config, data) if names else []
    resume = existing == "resume" and is_begun(out)
    if resume and differing:
        go_on = f'name another folder; to go on from this run, set "init_adapter": "{out}"'
        raise UserError(f"{out}: another run ({'; '.join(differing)}): {go_on}")
    if resume and (out / "training.json").exists():
        return True
    kept = {"config.json", "data.json"}  # written anew below
    if existing == "resume" and not differing:
        kept.add("gate.json")  # a run that the gate stopped need not ask it again
    for path in (out / name for name in names if not resume and name not in kept):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_json(out / "data.json", data)
    write_json(out / "config.json", config.to_json())
    return resume


def is_begun(out: Path) -> bool:
    """Was a step of a run logged here? A folder without one holds nothing to lose."""
    return (out / "log.jsonl").exists() and (out / "log.jsonl").stat().st_size > 0


def read_config(out: Path) -> RunConfig:
    """The config of a run folder, unchecked: its files may be gone. Absent fields: the default."""
    return RunConfig.model_construct(**read_json(out / "config.json"))


def differences(out: Path, config: RunConfig, data: dict[str, Any]) -> list[str]:
    """In what the run in `out` would train differently: "steps: 70 there, 40 here"."""
    before, now, known = dict(read_config(out)), config.to_json(), read_json(out / "data.json")
    contents = {name: f"{name}: changed" for name in data if known[name] != data[name]}
    free = FREE_FIELDS if contents else (*FREE_FIELDS, *COMPARED_BY_CONTENT)
    fields = {
        name: f"{name}: {shorten(repr(before[name]))} there, {shorten(repr(value))} here"
        for name, value in now.items()
        if before[name] != value and name not in free
    }
    return [*(fields | contents).values()]


def newest_checkpoint(out: Path) -> Path | None:
    return max(out.glob("checkpoints/step-*"), default=None)


@contextmanager
def written_whole(folder: Path, name: str = ".writing") -> Iterator[Path]:
    """A folder to fill, which takes this name once it is whole and on the disk; `name` is what it
    is called till then. Of one that fails nothing is left."""
    beside = folder.with_name(name)
    shutil.rmtree(beside, ignore_errors=True)
    try:
        yield beside
        for path in beside.iterdir():
            force_to_disk(path)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)  # of a step that a kill undid
    os.replace(beside, folder)
    force_to_disk(folder.parent)


def write_checkpoint(out: Path, trainer: Any, state: dict[str, Any]) -> None:
    """checkpoints/step-N with the trainer's state and ours; the one before goes."""
    place = out / "checkpoints" / f"step-{state['step']:06d}"
    if place.exists():  # the same step of the same run
        return
    with written_whole(place) as folder:
        write_adapter(trainer.model, folder)
        trainer._save_optimizer_and_scheduler(str(folder))
        trainer._save_rng_state(str(folder))
        trainer.state.save_to_json(str(folder / "trainer_state.json"))
        write_json(folder / "run_state.json", state)
    for old in place.parent.glob("step-*"):
        if old != place:
            shutil.rmtree(old, ignore_errors=True)


def write_adapter(model: Any, folder: Path) -> None:
    """As PEFT's save_pretrained, but without a model card, and without TRL's frozen copy ("ref"),
    whose folder transformers' loader would prefer."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    # Linear layers alone are adapted: no embeddings to save, no need to look at the base's config.
    weights = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
    config = copy(model.peft_config["default"])
    config.inference_mode = True
    config.save_pretrained(folder)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def save_adapter(model: Any, folder: Path, tokenizer: Any = None) -> None:
    with written_whole(folder) as beside:
        write_adapter(model, beside)
        if tokenizer:
            tokenizer.save_pretrained(beside)


def copy_adapter(source: Path, folder: Path) -> None:
    """File by file: a run's adapters differ in their weights alone, so `folder` is always whole."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        beside = folder / f".{file.name}"
        shutil.copyfile(file, beside)
        force_to_disk(beside)
        os.replace(beside, folder / file.name)


def force_to_disk(path: Path) -> None:
    """fsync a file or a folder's list of names (Windows opens no folders)."""
    if path.is_file() or os.name != "nt":
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def load_adapter_weights(model: Any, folder: Path) -> None:
    """Into a model that has the same adapter."""
    from peft import load_peft_weights, set_peft_model_state_dict

    check_weights(folder)
    set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
