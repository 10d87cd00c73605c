"""Checkpoints that are whole or not there: all that a run needs to go on as if nothing happened.

RUN/checkpoints/step-000010/  adapter_model.safetensors, adapter_config.json   the weights
                              optimizer.pt, scheduler.pt, rng_state.pth,
                              trainer_state.json                  written and read by transformers
                              run_state.json   ours: log positions, held-out looks, seconds
                              complete.json    size and checksum of each file, written last
RUN/checkpoints/best/         the adapters of the best three looks

A checkpoint is written into `.writing`, forced to the disk, and renamed. Killed at any moment, it
is either whole under its name or under no name that is read; a file that was damaged later fails
its checksum, and the checkpoint before is taken.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rftkit.data.writing import write_json
from rftkit.policy import check_weights

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
