"""What the benchmarks share: a record's label, and the parts of README.md that they write."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from rftkit.environment import machine, versions
from rftkit.files import write_text

README = Path(__file__).resolve().parents[1] / "README.md"


def label(program: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Where and how the numbers of a record were taken."""
    command = " ".join([program, *arguments])
    today = date.today().isoformat()
    return {"command": command, "machine": machine(), "date": today, "versions": versions()}


def marks(name: str, script: str) -> tuple[str, str]:
    return f"<!-- {name}: written by benchmarks/{script} -->", f"<!-- end of {name} -->"


def read_block(name: str, script: str) -> str:
    """What stands there now. ValueError: one of the two comments is missing."""
    return split(name, script)[1].strip()


def write_block(name: str, script: str, text: str) -> None:
    """Put `text` between its two comments; all else stays. ValueError: one of them is missing."""
    before, _, after = split(name, script)
    begin, end = marks(name, script)
    write_text(README, f"{before}{begin}\n{text}\n{end}{after}")


def split(name: str, script: str) -> tuple[str, str, str]:
    begin, end = marks(name, script)
    before, found, rest = README.read_text(encoding="utf-8").partition(begin)
    block, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{README}: no block {begin} … {end}: put both comments where it belongs")
    return before, block, after
