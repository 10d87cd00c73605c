"""What the commands share: exit codes, options, tables, progress.

Results go to standard output, all else to standard error: `--json > file` holds one object. Of
several processes that train together the first one prints.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TimeElapsedColumn
from rich.table import Table

from rftkit.environment import process

GOOD, FINDINGS, FIX_FIRST, INTERRUPTED = 0, 1, 3, 130  # exit codes; 2, wrong usage, is Typer's

# emoji=False: a model called endpoint:m: is no circled M.
FORM = {"highlight": False, "soft_wrap": True, "emoji": False, "quiet": process()[0] > 0}
stdout, stderr = Console(**FORM), Console(stderr=True, **FORM)


def say(text: str = "", style: str | None = None) -> None:
    """A line of the result, on standard output."""
    stdout.print(text, markup=False, style=style)


def complain(text: str, style: str | None = None) -> None:
    """A line on standard error."""
    stderr.print(text, markup=False, style=style)


def print_json(record: Any) -> None:
    sys.stdout.write(json.dumps(record, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def print_table(rows: Sequence[Mapping[str, str | int | float]]) -> None:
    """Records as a table for 80 columns: 0.123 becomes .123, but not in the first column."""
    if not rows:
        return
    table = Table(header_style="bold", box=None, padding=(0, 1, 0, 0))
    for name, first in rows[0].items():
        table.add_column(escape(name), justify="left" if isinstance(first, str) else "right")
    forms = {int: "{:,}".format, float: "{:.1f}".format, str: str}
    for row in rows:
        name, *values = [forms[type(value)](value) for value in row.values()]
        short = [re.sub(r"\b0\.(?=\d)", ".", value) for value in values]
        table.add_row(*map(escape, [name, *short]))
    stdout.print(table)
    stdout.print()


def argument(metavar: str, help: str) -> Any:
    return typer.Argument(metavar=metavar, help=help)


def option(metavar: str, help: str, *names: str, **bounds: int) -> Any:
    return typer.Option(*names, metavar=metavar, help=help, **bounds)


def flag(name: str, help: str) -> Any:
    return typer.Option(name, help=help)


JsonFlag = Annotated[bool, flag("--json", "Print one JSON object instead of text.")]
GRADER = "Grader JSON, its file, a preset, or file.py:function."
SandboxFlag = Annotated[bool, flag("--sandbox", "Box a Python function of yours too.")]
WeakIsolationFlag = Annotated[bool, flag("--allow-weak-isolation", "Of a grader you have read.")]


def options_from(settings: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command take a dataclass, whose fields, annotated for Typer, are its options."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        fields = signature(settings, eval_str=True).parameters
        _, *own = signature(command, eval_str=True).parameters.values()

        @wraps(command)
        def run(**given: Any) -> None:
            command(settings(**{name: given.pop(name) for name in fields}), **given)

        every = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in (*fields.values(), *own)]
        run.__signature__ = Signature(every)
        return run

    return decorate


class Reporter(Progress):
    """A bar with an ETA on standard error, lines above it; or quiet. Work counts in any unit."""

    def __init__(self, quiet: bool = False) -> None:
        columns = (*Progress.get_default_columns(), TimeElapsedColumn())
        super().__init__(*columns, console=stderr, transient=True, disable=quiet)
        self.bar = self.add_task("starting", total=None)

    def say(self, text: str = "") -> None:
        if not self.disable:
            complain(text)

    def stage(self, name: str, work: float | None = None) -> None:
        """Begin something whose amount of work is known, or not."""
        self.reset(self.bar, description=name, total=work)

    def work(self, done: float) -> None:
        self.advance(self.bar, done)


def validation_text(validation: Mapping[str, Any]) -> str:
    """ "validation top1 0.314 [0.271, 0.357]" """
    mean, low, high = (validation[key] for key in ("mean", "low", "high"))
    return f"validation {validation['metric']} {mean:.3f} [{low:.3f}, {high:.3f}]"
