"""`rftkit evaluate`: the table, and what must be known beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rftkit.console import (
    FINDINGS,
    ConsoleReporter,
    JsonFlag,
    complaints,
    console,
    print_json,
    print_markdown_table,
)


def evaluate_command(
    rows: Annotated[
        Path, typer.Argument(metavar="ROWS", help="The rows (JSONL), or a task: its test rows.")
    ],
    model: Annotated[
        list[str],
        typer.Option(metavar="M", help="A model; give it again for each model to compare."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the report goes.")],
    grader: Annotated[
        str | None,
        typer.Option(metavar="G", help="Grader JSON, or one on the shelf; default: the task's."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="Answers a row at T = 1.")] = 2,
    seed: Annotated[int, typer.Option(min=0, metavar="S", help="Of the sampling.")] = 0,
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="MODULE:FUNCTION", help="A metric of your own (repeatable)."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(metavar="T", help="A task folder or name; default: the one beside ROWS."),
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Rows of one value are drawn together."),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Longest answer; default: 64 embedded, else 1,024."),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Answers side by side; fewer need less memory."),
    ] = None,
    allow_weak_isolation: Annotated[
        bool, typer.Option("--allow-weak-isolation", help="Of a python grader that you have read.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Evaluate models on the same rows, prompts and seeds: a table with intervals.

    A model is `embedded:mini`, `embedded:large`, a folder, a run or its adapter, a hub name, or
    endpoint:NAME behind OPENAI_BASE_URL. Every model answers every row: N times at T = 1 for the
    headline, once greedily. Differences are paired row by row, each later model minus each earlier
    one, so name the baseline first.

    Example, a tuned model against its base on genes that neither was trained on:

        rftkit evaluate gene_ranking --model embedded:mini --model runs/demo --out runs/comparison

        rftkit evaluate rows.jsonl --model embedded:mini --grader grader.json --out runs/mine

    A metric of your own is a function (sample, item) -> number, as a python grader's: with
    my_metrics.py in this folder, --metric my_metrics:short. Written: report.json, report.md,
    table.png, samples.jsonl.

    Exit code 0: all answers came and were graded. 1: some did not (they count as 0 and are named),
    a python grader's own program failed on all of them, or the input is invalid.
    """
    from rftkit.comparison.report import comparison_table, paired_table
    from rftkit.comparison.run import compare_models

    with ConsoleReporter() as reporter:
        report = compare_models(
            rows,
            model,
            grader,
            out,
            samples,
            seed,
            metric or (),
            task,
            group_by,
            max_tokens,
            batch_size,
            reporter,
            allow_weak_isolation,
        )
    if as_json:
        print_json(report)
    else:
        print_markdown_table(comparison_table(report))
        if report["paired"]:
            print_markdown_table(paired_table(report["paired"]))
        console.print(
            f"{report['n_cases']} rows, written in {report['seconds']:.0f} s: {out}/report.md, "
            "report.json, table.png, samples.jsonl",
            markup=False,
        )
    for note in report["notes"]:
        complaints.print(note, markup=False, style="yellow")
    if any(
        system["failed"] or system["ungraded"] or system["grader_errors"] == system["answers"]
        for system in report["systems"]
    ):
        raise typer.Exit(FINDINGS)
