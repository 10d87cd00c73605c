"""What the commands share: exit codes, options, two streams, tables, progress.

Results go to standard output, everything else (progress, complaints) to standard error, so that
`rftkit … --json > file` holds one JSON object and nothing more.
"""

from __future__ import annotations

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
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

GOOD, FINDINGS, FIX_FIRST, INTERRUPTED = 0, 1, 3, 130  # exit codes; 2, wrong usage, is Typer's

# emoji=False: a model called endpoint:m: is no circled M.
console = Console(highlight=False, soft_wrap=True, emoji=False)
complaints = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def say(text: str = "", style: str | None = None) -> None:
    """A line of the result, on standard output."""
    console.print(text, markup=False, style=style)


def complain(text: str, style: str | None = None) -> None:
    """A line on standard error."""
    complaints.print(text, markup=False, style=style)


def print_json(record: Any) -> None:
    sys.stdout.write(json.dumps(record, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def print_table(rows: Sequence[Mapping[str, str]]) -> None:
    """Records as a table, narrow enough for 80 columns: 0.123 becomes .123 but in the names."""
    if not rows:
        return
    table = Table(header_style="bold", box=None, padding=(0, 1, 0, 0))
    for name in rows[0]:
        numbers = all(re.fullmatch(r"[\d.,%+-]*", row[name]) for row in rows)
        table.add_column(escape(name), justify="right" if numbers else "left")
    for row in rows:
        name, *values = row.values()
        short = [re.sub(r"\b0\.(?=\d)", ".", value) for value in values]
        table.add_row(*map(escape, [name, *short]))
    console.print(table)
    console.print()


# --- options -----------------------------------------------------------------------------------


def argument(metavar: str, help: str) -> Any:
    return typer.Argument(metavar=metavar, help=help)


def option(metavar: str, help: str, *names: str, **bounds: int) -> Any:
    return typer.Option(*names, metavar=metavar, help=help, **bounds)


def flag(name: str, help: str) -> Any:
    return typer.Option(name, help=help)


JsonFlag = Annotated[bool, flag("--json", "Print one JSON object instead of text.")]
WeakIsolationFlag = Annotated[
    bool, flag("--allow-weak-isolation", "Of a python grader that you have read.")
]


def options_from(settings: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command take each field of a dataclass as an option, and the object as its first
    argument. The fields' annotations are Typer's."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        fields = list(signature(settings, eval_str=True).parameters.values())
        _, *own = signature(command, eval_str=True).parameters.values()

        @wraps(command)
        def run(**given: Any) -> None:
            values = {field.name: given.pop(field.name) for field in fields}
            command(settings(**values), **given)

        parameters = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in (*fields, *own)]
        run.__signature__ = Signature(parameters)
        return run

    return decorate


# --- progress ----------------------------------------------------------------------------------


class Reporter:
    """A bar with an ETA on standard error, lines above it as things happen; or quiet.

    with Reporter() as reporter:
        reporter.plan(1_000)            # the whole work, in any unit
        reporter.stage("evaluating")    # what is going on
        reporter.advance(64)            # so much of it is done
    """

    def __init__(self, quiet: bool = False) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
        )
        self.quiet = quiet
        self.progress = Progress(*columns, console=complaints, transient=True, disable=quiet)
        self.bar = self.progress.add_task("starting", total=None)

    def __enter__(self) -> Reporter:
        self.progress.start()
        return self

    def __exit__(self, *caught: Any) -> None:
        self.progress.stop()

    def say(self, text: str = "") -> None:
        if not self.quiet:
            complain(text)

    def plan(self, work: float) -> None:
        self.progress.update(self.bar, total=work)

    def stage(self, name: str) -> None:
        self.progress.update(self.bar, description=name)

    def advance(self, work: float) -> None:
        self.progress.advance(self.bar, work)

    def count(self, name: str, done: int, total: int) -> None:
        """A stage with a size of its own; total 0: not known."""
        self.progress.update(self.bar, description=name, completed=done, total=total or None)


class TrainingProgress:
    """Observes a run for the terminal: a bar with its ETA, the reward, the held-out metric."""

    def __init__(self, reporter: Reporter):
        self.reporter = reporter
        self.steps = 0
        self.validation: Mapping[str, Any] = {}

    def begin(self, plan: Any, log: Sequence[dict[str, Any]], start: Mapping[str, Any]) -> None:
        for line in plan.lines():
            self.reporter.say(line)
        self.reporter.plan(plan.steps)
        self.reporter.advance(len(log))
        self.reporter.stage(f"step {len(log)}/{plan.steps}")
        self.steps, self.validation = plan.steps, start
        for record in log:
            self.validation = record.get("validation", self.validation)

    def gate(self, signal: Any) -> None:
        self.reporter.say(f"signal gate: {signal.verdict}: {signal.reason}")
        for finding in signal.findings:
            self.reporter.say(f"  {finding.name}: {finding.evidence}\n    -> {finding.setting}")

    def __call__(self, record: Mapping[str, Any]) -> None:
        self.validation = record.get("validation", self.validation)
        text = step_text(record, self.validation)
        self.reporter.advance(1)
        self.reporter.stage(f"step {record['step']}/{self.steps} {text}")
        if "validation" in record:
            self.reporter.say(f"step {record['step']:4}: {text}")
        for alarm in record.get("alarms", []):
            self.reporter.say(f"step {record['step']:4}: ALARM {alarm['name']}: {alarm['cause']}")


def step_text(record: Mapping[str, Any], validation: Mapping[str, Any]) -> str:
    """One line about a step: "reward 0.41 (std 0.30), held-out top1 0.31 [0.26, 0.36]"."""
    parts = []
    if record.get("reward_mean") is not None:
        std = record.get("reward_std")
        parts.append(f"reward {record['reward_mean']:.2f}")
        parts[-1] += "" if std is None else f" (std {std:.2f})"
    elif record.get("loss") is not None:
        parts.append(f"loss {record['loss']:.3f}")
    if validation:
        parts.append(validation_text(validation))
    return ", ".join(parts)


def validation_text(validation: Mapping[str, Any]) -> str:
    mean, low, high = (validation[key] for key in ("mean", "low", "high"))
    return f"held-out {validation['metric']} {mean:.3f} [{low:.3f}, {high:.3f}]"
