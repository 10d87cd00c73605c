"""The parts of README.md that a benchmark writes: each between two comments of its own."""

from __future__ import annotations

from pathlib import Path

from rftkit.files import write_text

README = Path(__file__).resolve().parents[1] / "README.md"


def marks(name: str, script: str) -> tuple[str, str]:
    return f"<!-- {name}: written by benchmarks/{script} -->", f"<!-- end of {name} -->"


def read_block(name: str, script: str) -> str:
    """What stands there now. ValueError: README.md lacks one of the two comments."""
    return split(name, script)[1].strip()


def write_block(name: str, script: str, text: str) -> None:
    """Put `text` there; all else stays. ValueError: README.md lacks one of the two comments."""
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
