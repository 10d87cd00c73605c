"""What the benchmarks share: a record's label, and the parts of Markdown pages that they write."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from rftkit.environment import machine, versions
from rftkit.files import write_text

ROOT = Path(__file__).resolve().parents[1]


def label(program: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Where and how the numbers of a record were taken."""
    command = " ".join([program, *arguments])
    today = date.today().isoformat()
    return {"command": command, "machine": machine(), "date": today, "versions": versions()}


class Block(NamedTuple):
    """A part of a page, between two comments. ValueError: one of the two is missing."""

    page: str  # relative to the project
    name: str
    script: str

    def read(self) -> str:
        return self._split()[1].strip()

    def write(self, text: str) -> None:
        """Replace what stands between the comments; all else stays."""
        before, _, after = self._split()
        begin, end = self._marks()
        write_text(ROOT / self.page, f"{before}{begin}\n{text}\n{end}{after}")

    def _marks(self) -> tuple[str, str]:
        begin = f"<!-- {self.name}: written by benchmarks/{self.script} -->"
        return begin, f"<!-- end of {self.name} -->"

    def _split(self) -> tuple[str, str, str]:
        begin, end = self._marks()
        text = (ROOT / self.page).read_text(encoding="utf-8")
        before, found, rest = text.partition(begin)
        block, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"{self.page}: no block {begin} … {end}: put both where it belongs")
        return before, block, after
