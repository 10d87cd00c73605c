"""What the benchmarks share: a record's label, and the parts of Markdown pages that they write."""

from __future__ import annotations

import re
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

    @property
    def pattern(self) -> re.Pattern:
        begin = f"<!-- {self.name}: written by benchmarks/{self.script} -->"
        return re.compile(f"({begin}\n)(.*)(\n<!-- end of {self.name} -->)", re.DOTALL)

    def read(self) -> str:
        return self.pattern.search((ROOT / self.page).read_text(encoding="utf-8"))[2]

    def write(self, text: str) -> None:
        """Replace what stands between the comments; all else stays."""
        page = (ROOT / self.page).read_text(encoding="utf-8")
        new, count = self.pattern.subn(lambda match: match[1] + text + match[3], page)
        if not count:
            raise ValueError(f"{self.page}: no block {self.name}: put its two comments there")
        write_text(ROOT / self.page, new)
