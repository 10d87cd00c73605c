"""The command line: `rftkit --help`. Each command is a thin layer over one function.

Exit codes: 0 good, 1 findings or invalid input, 2 wrong usage, 3 the gate says fix,
130 interrupted and resumable. `--json` prints one object on standard output.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
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

from rftkit.data import CheckReport, check_file
from rftkit.data.errors import UserError
from rftkit.data.faults import plural

app = typer.Typer(
    name="rftkit",
    help="Learn and run Reinforcement Fine-Tuning (RFT): data, graders, training, evaluation.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
console = Console(highlight=False, soft_wrap=True)
complaints = Console(stderr=True, highlight=False, soft_wrap=True)

GOOD, FINDINGS, WRONG_USAGE, FIX_FIRST, INTERRUPTED = 0, 1, 2, 3, 130

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def print_json(record: Any) -> None:
    """One JSON object on standard output, and nothing else there."""
    sys.stdout.write(json.dumps(record, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


@app.callback()
def about() -> None:
    """Learn and run Reinforcement Fine-Tuning (RFT): data, graders, training, evaluation."""


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The training rows (JSONL).")],
    validation: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The validation rows: checks the split too.")
    ] = None,
    group_by: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Values of this key must not stand on both sides."),
    ] = None,
    answer_key: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="A key that holds the answer (may be given repeatedly)."),
    ] = None,
    answer_in_prompt_ok: Annotated[
        bool, typer.Option("--answer-in-prompt-ok", help="The task is to find it in the text.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Check RFT data: every fault with its line, what was expected and what to do next.

    A row is one JSON object a line. The model sees `messages`, which end with the user's
    question; every other key is for the grader alone:

        {"messages": [{"role": "user", "content": "Seizure, ataxia. Which gene?"}], "answer": "A"}

    Example:

        rftkit check train.jsonl --validation validation.jsonl --group-by reference_gene

    Exit code 0: clean (notes may remain). 1: faults. Keys named like an answer (reference...,
    answer..., label..., target..., correct..., expected..., solution..., gold..., truth...), the
    key to group by and each --answer-key are sought in the prompt.
    """
    report = check_file(file, validation, group_by, answer_key or (), answer_in_prompt_ok)
    if as_json:
        print_json(report.to_json())
    else:
        print_check(report)
    raise typer.Exit(GOOD if report.ok else FINDINGS)


def print_check(report: CheckReport) -> None:
    """Each fault on its own line, then what kinds there are, then the verdict."""
    if report.faults:
        typer.echo("\n".join(str(fault) for fault in report.faults) + "\n")
        table = Table("kind", "faults", "first at", box=None, pad_edge=False)
        table.columns[1].justify = "right"
        for kind, count in report.counts.items():
            first = next(fault for fault in report.faults if fault.kind == kind)
            table.add_row(kind, f"{count:,}", escape(first.place), style="red")
        console.print(table)
    for note in report.notes:
        console.print(f"note: {note}", markup=False, style="yellow")
    keys = ", ".join(report.answer_keys) or "none"
    console.print(f"answer keys, sought in the prompts: {keys}", markup=False)
    rows = ", ".join(f"{side}: {plural(count, 'row')}" for side, count in report.rows.items())
    verdict = "clean" if report.ok else plural(len(report.faults), "fault")
    color = "green" if report.ok else "red"
    console.print(f"{rows}: {verdict}", markup=False, style=color)


GraderOption = Annotated[str, typer.Option("--grader", help="File with a grader's JSON.")]


@app.command("grade")
def grade_command(
    grader: GraderOption,
    sample: Annotated[str, typer.Option(help="What the model said: a text, or @FILE.")],
    item: Annotated[str | None, typer.Option(help="The row: a file with one JSON object.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """One grade as a report, in the shape of OpenAI's graders/run.

    Example: `rftkit grade --grader grader.json --sample '{"genes": ["A"]}' --item row.json`
    """
    from rftkit.graders.command_line import grade_one

    report = grade_one(grader, sample, item)
    print_json(report.to_json())
    if not as_json:
        for line in report.explanations:
            complaints.print(line, markup=False)
    if report.reward is None:
        raise typer.Exit(FINDINGS)


@app.command("validate-grader")
def validate_grader_command(
    file: Annotated[str, typer.Argument(help="File with a grader's JSON.")],
    as_json: JsonFlag = False,
) -> None:
    """Check a grader's JSON: every fault with its place, exit 1; what was tolerated, exit 0.

    Example: `rftkit validate-grader grader.json`
    """
    from rftkit.graders.command_line import validate_file

    result = validate_file(file)
    if as_json:
        print_json(result)
    else:
        for problem in result["problems"]:
            complaints.print(f"{file}: {problem}", markup=False, style="red")
        for note in result["notes"]:
            console.print(f"note: {note}", markup=False)
        if result["valid"]:
            console.print(f"{file}: a valid {result['type']} grader", markup=False)
    if not result["valid"]:
        raise typer.Exit(FINDINGS)


@app.command("graders")
def graders_command(
    name: Annotated[str | None, typer.Argument(help="Print this one's JSON.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """The shelf of pre-built graders; with a NAME, that grader's JSON.

    Example: `rftkit graders gene_rank > grader.json`
    """
    from rftkit.graders.command_line import list_shelf, shelf_json

    if name is not None:
        print_json(shelf_json(name))
    elif as_json:
        print_json(list_shelf())
    else:
        for row in list_shelf()["graders"]:
            console.print(f"{row['name']:16}{row['type']:17}{row['about']}", markup=False)
        console.print("\nrftkit graders NAME prints its JSON, a start for your own.", markup=False)


@app.command("cases")
def cases_command(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="A .jsonl.gz, .jsonl, folder of .json, or .zip."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the files go.")],
    candidates: Annotated[
        int | None,
        typer.Option(min=5, metavar="N", help="Name N genes in the prompt, the true one among."),
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Also rank the genes without a model (10 s).")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the split and of the candidates' order.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Published cases (GA4GH phenopackets) -> train, validation and test rows, split by gene.

    Writes train.jsonl, validation.jsonl, test.jsonl and report.json, which counts what was lost
    and why. No answer gene stands in two files, and duplicates stand in one. About 10,000 cases
    come from the release archive of github.com/monarch-initiative/phenopacket-store (BSD-3).

    Example:

        rftkit cases all_phenopackets.zip --out cases --baselines

        rftkit check cases/train.jsonl --validation cases/validation.jsonl --group-by reference_gene
    """
    from rftkit.genes.command_line import print_cases, run_cases

    report = run_cases(source, out, candidates or 0, baselines, seed, complaints)
    if as_json:
        print_json(report)
    else:
        print_cases(report, out, console)


@app.command("signal")
def signal_command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The run's RunConfig (JSON).")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep signal.json and all samples here."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=32, metavar="N", help="Draw at most so many answers.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Before training: is there anything to learn from? go, fix or undecided, with the reasons.

    Draws a few answers of the policy that will be trained (at most 5 % of the run's completions,
    or 256) and looks at what training would see: pass@k, groups without spread, answers that are
    cut or cannot be read, and whether the grader knows right from wrong at all.

    Example, with run.json holding {"model": "embedded:mini", "task": "gene_ranking"}:

        rftkit signal run.json --out runs/signal

    Exit code 0: go, or undecided (it says how many more samples would settle it). 3: fix; each
    finding names its evidence and the knob to turn. 1: the config or the rows are invalid.
    """
    from rftkit.policy import load_policy
    from rftkit.signal import measure_signal
    from rftkit.signal.command_line import print_signal
    from rftkit.training import RunConfig
    from rftkit.training.config import config_rows, config_task

    run = RunConfig.from_json(read_json_object(config))
    run.check()
    if run.method != "grpo":
        raise UserError(
            f'{config}: method "{run.method}", expected "grpo": only a run that samples its own '
            "answers has a signal to measure"
        )
    task = config_task(run)
    rows, _ = config_rows(run, task)
    with ConsoleReporter() as reporter:
        reporter.stage("loading")
        policy = load_policy(run.model, run.engine, run.init_adapter)
        reporter.stage("drawing answers")
        signal = measure_signal(
            policy,
            task,
            rows,
            answers=run.answers_per_prompt,
            max_completion_tokens=run.max_completion_tokens,
            temperature=run.temperature,
            completions=run.steps * run.prompts_per_step * run.answers_per_prompt,
            most=samples,
            seed=run.seed,
            progress=reporter.advance,
        )
    if out is not None:
        signal.save(out)
    if as_json:
        print_json(signal.to_json())
    else:
        print_signal(signal, console)
    raise typer.Exit(FIX_FIRST if signal.verdict == "fix" else GOOD)


def read_json_object(path: Path) -> dict[str, Any]:
    """A file with one JSON object; UserError naming what is there instead."""
    try:
        record = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): name a JSON file") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}), expected one object: mend it there") from None
    if not isinstance(record, dict):
        raise UserError(f"{path}: a {type(record).__name__}, expected one JSON object")
    return record


@app.command("demo")
def demo_command(
    profile: Annotated[
        str, typer.Option(help="full, or smoke: the same steps, smaller, in about a minute.")
    ] = "full",
    samples: Annotated[int, typer.Option(min=1, help="Answers a case at T = 1.")] = 2,
    cases: Annotated[
        Path | None,
        typer.Option(help="Real cases too: phenopackets, or rows that `rftkit cases` wrote."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of training and sampling.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the run.")] = Path("runs/demo"),
    as_json: JsonFlag = False,
) -> None:
    """The whole of RFT once, on two CPU cores: train, compare, report.

    A base model of a million parameters answers cases, a grader scores the answers, GRPO
    reinforces the thinking behind the good ones. Then the tuned model meets its rivals on genes
    that never were an answer in training: random order, the annotation itself, its own base, the
    base told what to do, a larger base, SFT on the answers, SFT on the base's own right answers.

    Example: `rftkit demo --out runs/demo`, then open runs/demo/report.md, table.png, curve.png.
    """
    from rftkit.demo import paired_table, reading, run_demo, systems_table

    with ConsoleReporter() as reporter:
        report = run_demo(out, profile, samples, cases, seed, reporter)
    if as_json:
        print_json(report)
        return
    print_markdown_table(systems_table(report["systems"]))
    references = ", ".join(line["name"] for line in report["reference_lines"])
    console.print(f"Beside it, {references} ({report['reference_source']}).\n", markup=False)
    print_markdown_table(paired_table(report["paired"]))
    for sentence in reading(report):
        console.print(sentence, markup=False)
    if "real_cases" in report:
        real = report["real_cases"]
        console.print(f"\nReal published cases: {real['kept']} of {real['read']}", markup=False)
        print_markdown_table(systems_table(real["systems"]))
        print_markdown_table(paired_table(real["paired"]))
    console.print(
        f"\nWritten in {report['seconds']:.0f} s: {out}/report.md, report.json, table.png, "
        "curve.png, log.jsonl, samples.jsonl, adapter/",
        markup=False,
    )


@app.command("environment")
def environment_command(as_json: JsonFlag = False) -> None:
    """What this machine is, and what follows: device, dtype, profile, versions.

    Example: `rftkit environment --json`
    """
    from rftkit.environment import report

    found = report()
    if as_json:
        print_json(found)
        return
    for key, value in found.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if key == "versions" else value
        console.print(f"{key}: {text}", markup=False)


def print_markdown_table(lines: list[str]) -> None:
    """A Markdown table as a Rich one that fits 80 columns: .123 for 0.123."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    table = Table(*rows[0], header_style="bold", box=None, padding=(0, 1, 0, 0))
    for row in rows[2:]:
        table.add_row(*(escape(re.sub(r"\b0\.(?=\d)", ".", cell)) for cell in row))
    console.print(table)
    console.print()


class ConsoleReporter:
    """A bar with an ETA on standard error, lines above it as things happen."""

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


def main() -> None:
    """Entry point: a user's mistake is one message and an exit code, never a traceback."""
    for stream in (sys.stdout, sys.stderr):  # a terminal without é prints \xe9, not a traceback
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except UserError as error:
        complaints.print("error", str(error), markup=False, style="red")
        sys.exit(FINDINGS)
    except KeyboardInterrupt:
        complaints.print("interrupted")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
