"""`rftkit cases`: progress while it runs, a table when it is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from rftkit.genes.cases import make_cases


def run_cases(
    source: Path,
    out: Path,
    candidates: int,
    baselines: bool,
    seed: int,
    console: Console,
    without_copies: bool = False,
) -> dict[str, Any]:
    """`make_cases` with a progress bar on `console`, which vanishes when it is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    hidden = not console.is_terminal
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden
    ) as progress:
        bars: dict[str, Any] = {}

        def watch(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=total or None)
            progress.update(bars[what], completed=done)

        return make_cases(source, out, candidates, baselines, seed, watch, without_copies)


def print_cases(report: dict[str, Any], out: Path, console: Console) -> None:
    """What was kept, what was lost and why, what each side holds, and the baselines."""
    console.print(
        f"{report['source']}: {report['records']:,} phenopackets, {report['kept']:,} cases kept",
        markup=False,
    )
    for reason, number in report["lost"].items():
        console.print(f"  lost, {reason}: {number:,}", markup=False)
    unknown = report["terms_unknown_to_hpo"]
    if unknown["mentions"]:
        names = "; ".join(list(unknown["most_frequent"])[:3])
        console.print(
            f"  left out of {unknown['cases']:,} cases: {unknown['mentions']:,} mentions of "
            f"{unknown['terms']:,} terms that HPO {report['hpo_release']} does not know ({names})",
            markup=False,
        )
    if report["duplicates"]:
        console.print(
            f"  kept, on one side: {report['duplicates']:,} cases that repeat gene and features of "
            "another",
            markup=False,
        )
    for reason, number in report.get("dropped", {}).items():
        console.print(f"  left out, {reason}: {number:,}", markup=False)
    table = Table("file", "rows", "genes", "papers", "largest gene", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, side in report["files"].items():
        numbers = (side[key] for key in ("rows", "genes", "papers", "rows_of_largest_gene"))
        table.add_row(str(out / name), *(f"{number:,}" for number in numbers))
    console.print(table)
    if report.get("baselines"):
        console.print("\nBaselines without a language model, in percent, all genes of HPO ranked:")
        table = Table("method", "how", "n", "top1", "top5", "top10", box=None, pad_edge=False)
        for column in table.columns[2:]:
            column.justify = "right"
        for line in report["baselines"]:
            shares = (f"{line[key]:.1f}" for key in ("top1", "top5", "top10"))
            table.add_row(line["method"], line["how"], f"{line['n']:,}", *shares)
        console.print(table)
        console.print(
            "As is, the annotation was partly made from these very cases; without own paper is "
            "the honest line.",
            markup=False,
        )
    console.print(f"\n{report['attribution']}", markup=False)
    print_next_step(report, out, console)


def print_next_step(report: dict[str, Any], out: Path, console: Console) -> None:
    """The check of what was written, and what it will say."""
    copies = report.get("copies", {})
    if any(copies.values()):
        counted = "; ".join(f"{number:,} {reason}" for reason, number in copies.items() if number)
        console.print(
            f"\nThe source holds copies: {counted}. `rftkit check` reports them, exit 1. "
            "--drop-copies leaves them out, and near-duplicates across the split.",
            markup=False,
        )
    told = " --answer-in-prompt-ok" if report["candidates"] else ""
    console.print(
        f"\nNext: rftkit check {out / 'train.jsonl'} --validation {out / 'validation.jsonl'} "
        f"--group-by {report['split']['by']}{told}",
        markup=False,
    )
