"""What every command of the command line shares: two streams, exit codes, tables, a progress bar.

Results go to standard output, everything else (progress, complaints) to standard error, so that
`rftkit … --json > file` holds one JSON object and nothing more.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

console = Console(highlight=False, soft_wrap=True)
complaints = Console(stderr=True, highlight=False, soft_wrap=True)

GOOD, FINDINGS, WRONG_USAGE, FIX_FIRST, INTERRUPTED = 0, 1, 2, 3, 130

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def print_json(record: Any) -> None:
    """One JSON object on standard output, and nothing else there."""
    sys.stdout.write(json.dumps(record, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def print_markdown_table(lines: list[str]) -> None:
    """A Markdown table as a Rich one that fits 80 columns: .123 for 0.123."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    table = Table(*rows[0], header_style="bold", box=None, padding=(0, 1, 0, 0))
    for row in rows[2:]:
        table.add_row(*(escape(re.sub(r"\b0\.(?=\d)", ".", cell)) for cell in row))
    console.print(table)
    console.print()


class ConsoleReporter:
    """A bar with an ETA on standard error, lines above it as things happen.

    with ConsoleReporter() as reporter:
        reporter.plan(1_000)            # the whole work, in any unit
        reporter.stage("evaluating")    # what is going on
        reporter.advance(64)            # so much of it is done
    """

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
        )
        self.progress = Progress(*columns, console=complaints, transient=True)
        self.bar = self.progress.add_task("starting", total=None)

    def __enter__(self) -> ConsoleReporter:
        self.progress.start()
        return self

    def __exit__(self, *caught: Any) -> None:
        self.progress.stop()

    def say(self, text: str = "") -> None:
        complaints.print(text, markup=False)

    def plan(self, work: float) -> None:
        self.progress.update(self.bar, total=work)

    def stage(self, name: str) -> None:
        self.progress.update(self.bar, description=name)

    def advance(self, work: float) -> None:
        self.progress.advance(self.bar, work)
