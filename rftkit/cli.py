"""The command line: `rftkit --help`. Each command is a thin layer over one function.

Exit codes: 0 good, 1 findings or invalid input, 2 wrong usage, 3 the gate says fix,
130 interrupted and resumable. `--json` prints one object on standard output.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from textwrap import fill
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from rftkit import __version__
from rftkit.check import CheckReport, check_file
from rftkit.doctor import Examination, examine
from rftkit.files import UserError, plural, shorten
from rftkit.genes.cases import make_cases
from rftkit.graders.answer import GraderReport
from rftkit.graders.grader import Grader, GraderSettings
from rftkit.graders.presets import SHELF, shelf_json
from rftkit.graders.spec import GraderSpecError, read_spec, validate_spec
from rftkit.signal.numbers import Signal
from rftkit.training.config import (
    Plan,
    RunConfig,
    config_rows,
    config_task,
)
from rftkit.training.run import (
    Run,
    list_runs,
    plan_of,
    read_run_config,
    runs_table,
    train,
)

# ------------------------------------------------------------------------------------------
# from rftkit.cli:
# What every command of the command line shares: two streams, exit codes, tables, a progress bar.
#
# Results go to standard output, everything else (progress, complaints) to standard error, so that
# `rftkit … --json > file` holds one JSON object and nothing more.

# emoji=False: a model called endpoint:m: is no circled M.
console = Console(highlight=False, soft_wrap=True, emoji=False)
complaints = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

GOOD, FINDINGS, WRONG_USAGE, FIX_FIRST, INTERRUPTED = 0, 1, 2, 3, 130

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def print_json(record: Any) -> None:
    """One JSON object on standard output, and nothing else there."""
    sys.stdout.write(json.dumps(record, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def print_markdown_table(lines: list[str]) -> None:
    """A Markdown table as a Rich one that fits 80 columns: .123 for 0.123, but for names."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    table = Table(*rows[0], header_style="bold", box=None, padding=(0, 1, 0, 0))
    for name, *values in rows[2:]:
        table.add_row(escape(name), *(escape(re.sub(r"\b0\.(?=\d)", ".", v)) for v in values))
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


# ------------------------------------------------------------------------------------------
# from rftkit.cli:
# `rftkit evaluate`: the table, and what must be known beside it.


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
    from rftkit.compare import compare_models, comparison_table, paired_table

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


# ------------------------------------------------------------------------------------------
# from rftkit.cli:
# `rftkit doctor`: a log's findings as text that teaches, or as JSON.

GOOD_, FINDINGS_ = 0, 1


def doctor_command(
    log: Annotated[
        Path,
        typer.Argument(metavar="RUN_OR_LOG", help="A run folder, log.jsonl or trainer_state.json."),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of text.")
    ] = False,
) -> None:
    """What is wrong with a run: each finding with its steps, its evidence and the knob to turn.

    Reads our own log.jsonl and the trainer_state.json that TRL and Unsloth leave in a checkpoint
    folder: dead groups, a reward without spread, truncation, entropy and KL, gradients, a grader
    that fails, a reward that rises while the held-out metric falls, and what else a log can tell.

    Limits are those of Axolotl's guide "Training Stability & Debugging": groups without spread
    below 0.8, cut answers to 0.3, clipped tokens to 0.1, KL to 0.5, entropy from 0.05 nats a token,
    gradient norm from 0.001. A limit counts as passed where 5 of 8 steps are beyond it; a KL above
    5, and a gradient spike, count at once. Two differ from the guide's healthy ranges. Gradient
    norm: 1 to 10 is let pass unless it is ten times the run's median, for 10 is the guide's own red
    flag. Entropy: no upper limit, though the guide's red flag is 1.0. A model with a small
    vocabulary that is trained on many ways to think starts higher and learns: our recorded demo
    runs start at 1.0 to 1.2 and end at 0.6 to 0.7, with a gain (measured:
    datasets/recorded_runs/demo.json).

    Example: `rftkit doctor runs/first`, `rftkit doctor outputs/checkpoint-100/trainer_state.json`

    Exit code 0: no finding. 1: findings, or a log that cannot be read.
    """
    found = examine(log)
    if as_json:
        text = json.dumps(found.to_json(), ensure_ascii=False, indent=2, allow_nan=False)
    else:
        text = as_text(found)
    typer.echo(text)
    raise typer.Exit(FINDINGS_ if found.findings else GOOD_)


def as_text(found: Examination) -> str:
    """One paragraph a finding: name and steps, what was seen, what it means, what to turn."""
    number = len(found.findings)
    verdict = "no finding" if number == 0 else f"{number} finding{'s' * (number > 1)}"
    parts = [f"{found.source}: {found.steps} steps, {verdict}"]
    for place, finding in enumerate(found.findings, 1):
        lines = [f"{place}. {finding.name.replace('_', ' ')} ({step_ranges(finding.steps)})"]
        for title, text in (
            ("seen", finding.evidence),
            ("means", finding.why),
            ("turn", finding.setting),
        ):
            lines.append(fill(text, 96, initial_indent=f"   {title:6}", subsequent_indent=" " * 9))
        parts.append("\n".join(lines))
    parts += [fill(f"note: {note}", 96, subsequent_indent="      ") for note in found.notes]
    return "\n\n".join(parts)


def step_ranges(steps: list[int]) -> str:
    """[1, 2, 3, 7] -> "steps 1-3, 7"; long lists end with a count.

    >>> step_ranges([5])
    'step 5'
    """
    ranges: list[list[int]] = []
    for step in steps:
        if ranges and step == ranges[-1][1] + 1:
            ranges[-1][1] = step
        else:
            ranges.append([step, step])
    texts = [str(a) if a == b else f"{a}-{b}" for a, b in ranges]
    shown = ", ".join(texts[:6])
    more = f" and {len(texts) - 6} more stretches" if len(texts) > 6 else ""
    return f"step{'s' * (len(steps) != 1)} {shown}{more}"


# ------------------------------------------------------------------------------------------
# from rftkit.cli:
# `rftkit cases`: progress while it runs, a table when it is done.


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


# ------------------------------------------------------------------------------------------
# from rftkit.cli:
# What stands behind `rftkit grade`, `rftkit validate-grader` and `rftkit graders`.


def grade_one(
    grader: str, sample: str, item: str | None, allow_weak_isolation: bool = False
) -> GraderReport:
    """Grade one text.

    grader  a file with grader JSON
    sample  what the model said, or @FILE
    item    a file with one JSON object (the row), or such an object itself, or None
    """
    loaded = Grader.load(Path(grader), GraderSettings(allow_weak_isolation=allow_weak_isolation))
    row = {} if item is None else read_item(item)
    return loaded.report(row, read_text(sample[1:]) if sample.startswith("@") else sample)


def validate_file(file: str) -> dict[str, Any]:
    """{"valid", "type", "problems", "notes"}; a file that is no JSON is a problem as well."""
    try:
        spec, notes = validate_spec(*read_spec(Path(file)))
    except GraderSpecError as error:
        return {"valid": False, "type": None, "problems": error.problems, "notes": []}
    except UserError as error:
        problem = without_place(str(error), shorten(str(Path(file)), 200))
        return {"valid": False, "type": None, "problems": [problem], "notes": []}
    return {"valid": True, "type": spec["type"], "problems": [], "notes": notes}


def without_place(text: str, place: str) -> str:
    """An error's text without the file at its head, which the caller prints; its line stays.

    >>> without_place("d.json:2: not JSON", "d.json"), without_place("d.json: empty", "d.json")
    ('line 2: not JSON', 'empty')
    """
    found = re.match(rf"{re.escape(place)}:(?:(\d+):)? ", text)
    if found is None:
        return text
    return (f"line {found[1]}: " if found[1] else "") + text[found.end() :]


def list_shelf() -> dict[str, Any]:
    """The pre-built graders: {"graders": [{"name", "type", "about"}, …]}."""
    return {
        "graders": [
            {"name": name, "type": entry.make().to_json()["type"], "about": entry.about}
            for name, entry in SHELF.items()
        ]
    }


def read_item(item: str) -> dict[str, Any]:
    """A row from a file that holds one JSON object, or from such an object's text."""
    place = "item" if item.lstrip().startswith("{") else item
    text = item if place == "item" else read_text(item)
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{shorten(place)}: not one JSON object ({shorten(str(error))}), expected a row: take "
            f"one line of the JSONL"
        ) from None
    if not isinstance(row, dict):
        raise UserError(f"{shorten(place)}: a {type(row).__name__}, expected one JSON object")
    return row


def read_text(file: str) -> str:
    """A file's text."""
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{shorten(file, 200)}: cannot be read ({reason}): name a text file in UTF-8"
        ) from None


# ------------------------------------------------------------------------------------------
# from rftkit.cli:
# What `rftkit signal` prints: the verdict, its reasons, the numbers, and some of the samples.

COLOURS = {"go": "green", "fix": "red", "undecided": "yellow"}


def print_signal(signal: Signal, console: Console) -> None:
    """Verdict first, then what it rests on."""
    colour = COLOURS[signal.verdict]
    console.print(f"{signal.verdict}: {signal.reason}", markup=False, style=f"bold {colour}")
    for finding in signal.findings:
        console.print(f"\n{finding.name}", markup=False, style="bold")
        console.print(f"  {finding.evidence}", markup=False)
        console.print(f"  turn: {finding.knob}", markup=False)
    console.print()
    for question in signal.questions:
        console.print(f"{question.question} {question.answer}", markup=False, style="bold")
        console.print(f"  {question.evidence}", markup=False)
    for note in signal.notes:
        console.print(f"note: {note}", markup=False, style="yellow")
    if signal.samples:
        print_numbers(signal, console)
        print_samples(signal, console)


def print_numbers(signal: Signal, console: Console) -> None:
    """The table of numbers: means over rows with 95 % intervals over groups of rows."""
    table = Table("measured", "value", box=None, pad_edge=False, header_style="bold")
    for name, value in number_lines(signal):
        table.add_row(name, escape(value))
    console.print()
    console.print(table)


def number_lines(signal: Signal) -> list[tuple[str, str]]:
    """(name, value) of every number, in words."""
    lines = [
        (
            "drawn",
            f"{signal.samples} answers of {signal.policy} to {signal.rows} rows, seed "
            f"{signal.seed} (at most {signal.budget})",
        )
    ]
    lines += [(f"pass@{k}", str(value)) for k, value in signal.pass_at.items()]
    if signal.reward is not None:
        lines += [
            ("reward", f"{signal.reward}, spread within a row {signal.spread:.3f}"),
            (f"groups of {signal.group} without spread", str(signal.dead_groups)),
            ("  among readable answers", str(signal.dead_ability)),
        ]
        kinds = [(kind, share) for kind, share in signal.dead_kinds.items() if share >= 0.005]
        lines += [(f"  dead: {kind}", f"{share:.0%}") for kind, share in kinds]
    if signal.format_share is not None:
        form = signal.format_share
        lines.append(("spread that is form, ability", f"{form:.0%}, {1 - form:.0%}"))
    for name, part in signal.sub_graders.items():
        value = f"mean {part['mean']:.2f}, spread {part['spread']:.2f}, moves in "
        lines.append((f"sub-grader {name}", f"{value}{part['moving']:.0%} of rows"))
    read = ", ".join(f"{stage} {share:.1%}" for stage, share in signal.stages.items())
    lines.append(("answers", read))
    lengths = {k: v for k, v in signal.lengths.items() if k not in ("limit", "probe")}
    shown = ", ".join(f"{name} {tokens:.0f}" for name, tokens in lengths.items())
    lines.append(("tokens", f"{shown}; limit {signal.lengths['limit']}, cut {signal.cut}"))
    lines.append(("rows", f"{len(signal.never)} never solved, {len(signal.always)} always solved"))
    for name, pattern in signal.patterns.items():
        earns = "" if pattern["reward"] is None else f", which earn {pattern['reward']:.2f}"
        lines.append((f"pattern {name}", f"{pattern['share']:.0%} of the answers{earns}"))
    return lines


def print_samples(signal: Signal, console: Console) -> None:
    """Some answers, from the worst to the best."""
    console.print("\nanswers, from worst to best", style="bold")
    for sample in signal.shown:
        console.print(f"  {sample_line(sample)}", markup=False)


def sample_line(sample: dict[str, Any], width: int = 90) -> str:
    """One answer in one line: grade, row, what was thought and said."""
    grade = "lost" if sample["grade"] is None else f"{sample['grade']:.2f}"
    said = f"{sample['reasoning']} => {sample['output_text']}".replace("\n", " ")
    cut = " (cut)" if sample["finish_reason"] == "length" else ""
    return f"{grade} {sample['row_id']}: {said[:width]}{cut}"


# ------------------------------------------------------------------------------------------
# from rftkit.cli:
# What stands behind `rftkit train` and `rftkit runs`.


def run_train(
    config: RunConfig, out: Path, reporter: Any, force: bool = False
) -> tuple[Run, dict[str, Any]]:
    """(the run, what `--json` prints).

    reporter   has say, plan, stage, advance: what the command line shows
    """
    progress = TrainingProgress(reporter, config)
    run = train(config, out, [progress], say=reporter.say, force=force)
    record = {
        "out": str(out),
        "training": run.training,
        "start": run.start,
        "best": run.best,
        "alarms": run.alarms,
    }
    return run, record


class TrainingProgress:
    """An observer for the terminal: a bar with its ETA, the reward, the held-out metric."""

    def __init__(self, reporter: Any, config: RunConfig):
        self.reporter, self.config = reporter, config
        self.look: dict[str, Any] | None = None

    def begin(self, plan: Plan, log: list[dict[str, Any]], start: dict[str, Any]) -> None:
        for line in plan.lines():
            self.reporter.say(line)
        self.reporter.plan(plan.steps)
        self.reporter.advance(len(log))
        self.look = start or None
        for record in log:
            self.look = record.get("validation", self.look)
        self.reporter.stage(f"step {len(log)}/{plan.steps}")
        self.steps = plan.steps

    def gate(self, signal: Any) -> None:
        self.reporter.say(f"signal gate: {signal.verdict}: {signal.reason}")
        for finding in signal.findings:
            self.reporter.say(f"  {finding.name}: {finding.evidence}")
            self.reporter.say(f"    -> {finding.knob}")

    def __call__(self, record: dict[str, Any]) -> None:
        self.look = record.get("validation", self.look)
        self.reporter.advance(1)
        self.reporter.stage(f"step {record['step']}/{self.steps} " + step_text(record, self.look))
        if "validation" in record:
            self.reporter.say(f"step {record['step']:4}: {step_text(record, self.look)}")
        for alarm in record.get("alarms", []):
            self.reporter.say(f"step {record['step']:4}: ALARM {alarm['name']}: {alarm['cause']}")


def step_text(record: dict[str, Any], look: dict[str, Any] | None) -> str:
    """One line about a step: "reward 0.41 (spread 0.30), held-out top1 0.31 [0.26, 0.36]"."""
    said = []
    if record.get("reward_mean") is not None:
        spread = record.get("reward_std")
        said.append(f"reward {record['reward_mean']:.2f}")
        if spread is not None:
            said[-1] += f" (spread {spread:.2f})"
    elif record.get("loss") is not None:
        said.append(f"loss {record['loss']:.3f}")
    if look:
        low, high = look["low"], look["high"]
        said.append(f"held-out {look['metric']} {look['mean']:.3f} [{low:.3f}, {high:.3f}]")
    return ", ".join(said)


# --- all runs side by side ---------------------------------------------------------------------


# ------------------------------------------------------------------------------------------
# from rftkit.cli:
# The command line: `rftkit --help`. Each command is a thin layer over one function.
#
# Exit codes: 0 good, 1 findings or invalid input, 2 wrong usage, 3 the gate says fix,
# 130 interrupted and resumable. `--json` prints one object on standard output.

app = typer.Typer(
    name="rftkit",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def print_version(asked: bool) -> None:
    if asked:
        console.print(f"rftkit {__version__}", markup=False)
        raise typer.Exit(GOOD)


@app.callback()
def about(
    version: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Print and exit."),
    ] = False,
) -> None:
    """Learn and run Reinforcement Fine-Tuning (RFT): data, graders, training, evaluation.

    New here? One command plays the whole of RFT through on this machine, in minutes:

        rftkit demo

    Then your own data, from rows to a tuned model and what it is worth:

        rftkit check train.jsonl --validation validation.jsonl

        rftkit graders gene_rank > grader.json

        rftkit grade --grader grader.json --sample '{"genes": ["SCN1A"]}' --item row.json

        rftkit train config.json --out runs/first

        rftkit evaluate test.jsonl --model embedded:mini --model runs/first --out runs/table

    `rftkit COMMAND --help` explains a command, with an example. Exit codes: 0 good, 1 findings or
    invalid input, 2 wrong usage, 3 fix first, 130 interrupted.
    """


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
    verdict = "clean" if report.ok else plural(sum(report.counts.values()), "fault")
    color = "green" if report.ok else "red"
    console.print(f"{rows}: {verdict}", markup=False, style=color)


GraderOption = Annotated[str, typer.Option("--grader", metavar="FILE", help="A grader's JSON.")]


@app.command("grade")
def grade_command(
    grader: GraderOption,
    sample: Annotated[str, typer.Option(metavar="TEXT", help="What the model said, or @FILE.")],
    item: Annotated[
        str | None, typer.Option(metavar="ROW", help="The row: one JSON object, or its file.")
    ] = None,
    allow_weak_isolation: Annotated[
        bool, typer.Option("--allow-weak-isolation", help="Of a python grader that you have read.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Grade one answer: the score, each part of it, and what went wrong.

    The item is the row that the answer is compared with: its answer fields, which the model never
    saw. What is printed has the shape of OpenAI's graders/run. A python grader runs in a sandbox;
    what it tried there stands in the report's error fields.

    Example, the right answer in first place and then in second:

        rftkit graders two_guesses > grader.json

        rftkit grade --grader grader.json --sample '{"genes": ["A", "B"]}' --item '{"reference_gene": "A"}'

        rftkit grade --grader grader.json --sample '{"genes": ["A", "B"]}' --item '{"reference_gene": "B"}'

    The "reward" is 1 and then 0.5. Exit code 0: graded. 1: the grader itself could not run.
    """  # noqa: E501  (a command to copy stands on one line)

    report = grade_one(grader, sample, item, allow_weak_isolation)
    print_json(report.to_json())
    if not as_json:
        for line in report.explanations:
            complaints.print(line, markup=False)
    if report.reward is None:
        raise typer.Exit(FINDINGS)


@app.command("validate-grader")
def validate_grader_command(
    file: Annotated[str, typer.Argument(metavar="FILE", help="File with a grader's JSON.")],
    as_json: JsonFlag = False,
) -> None:
    """Check a grader's JSON: every fault with its place, what stands there, what is allowed.

    Example: `rftkit graders gene_rank > grader.json`, then `rftkit validate-grader grader.json`

    Exit code 0: valid; what was tolerated is noted. 1: faults, or no JSON.
    """

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
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Print this one's JSON.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """The shelf of pre-built graders; with a NAME, that grader's JSON, a start for your own.

    A grader turns an answer into a score from 0 to 1. Those marked (python) need a sandbox to run.

    Example: `rftkit graders` lists them, `rftkit graders gene_rank > grader.json` takes one.
    """

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
    drop_copies: Annotated[
        bool, typer.Option("--drop-copies", help="Leave out what `rftkit check` calls a copy.")
    ] = False,
    seed: Annotated[
        int, typer.Option(metavar="N", help="Of the split and of the candidates' order.")
    ] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Published cases (GA4GH phenopackets) -> train, validation and test rows, split by gene.

    Writes train.jsonl, validation.jsonl, test.jsonl and report.json, which counts what was lost
    and why. No answer gene stands in two files, and duplicates stand in one. About 10,000 cases
    come from the release archive of github.com/monarch-initiative/phenopacket-store (BSD-3).

    Some cases are published in the same words as another (siblings, mostly). They are counted and
    kept, and `rftkit check` reports them; --drop-copies keeps one of each, so that it exits 0.

    Example:

        rftkit cases all_phenopackets.zip --out cases --drop-copies --baselines

        rftkit check cases/train.jsonl --validation cases/validation.jsonl --group-by reference_gene
    """

    report = run_cases(source, out, candidates or 0, baselines, seed, complaints, drop_copies)
    if as_json:
        print_json(report)
    else:
        print_cases(report, out, console)


@app.command("train")
def train_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A RunConfig as JSON.")],
    out: Annotated[Path, typer.Option(metavar="RUN", help="The run's folder.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what the config comes to; train nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Train though the gate says fix.")] = False,
    model: Annotated[str | None, typer.Option(help="Instead of the model that FILE names.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Train a LoRA by GRPO or SFT, watched by held-out rows; go on where a run was stopped.

    FILE holds a RunConfig: every field but the task has a default.

        {"task": "gene_ranking", "model": "embedded:mini", "steps": 70, "prompts_per_step": 8}

    RUN gets log.jsonl (one object a step), samples.jsonl, checkpoints/ and adapter/ (the best by
    the held-out task metric). Ctrl-C saves a checkpoint; the same command goes on from there, and
    from the last checkpoint after a crash.

    Example: `rftkit train config.json --out runs/first --dry-run`, then without `--dry-run`.

    Exit code 1: invalid input, or a watchdog stopped the run. 3: the signal gate says fix. 130:
    interrupted, and resumable.
    """
    from rftkit.training.run import GateSaysFix
    from rftkit.training.trainer import Interrupted

    config = read_run_config(file, model)
    if dry_run:
        plan = plan_of(config)
        if as_json:
            print_json(plan.to_json())
        else:
            for line in plan.lines():
                console.print(line, markup=False)
        return
    try:
        with ConsoleReporter() as reporter:
            run, record = run_train(config, out, reporter, force)
    except GateSaysFix as refusal:
        if as_json:
            print_json({"out": str(out), "gate": refusal.verdict})
        raise
    except Interrupted as stop:  # said here: typer ends a KeyboardInterrupt with 130 and no word
        if as_json:
            print_json({"out": str(out), "interrupted": str(stop)})
        complaints.print(str(stop), markup=False)
        raise typer.Exit(INTERRUPTED) from None
    from rftkit.dashboard import save_run_picture

    record["picture"] = str(save_run_picture(out))
    if as_json:
        print_json(record)
    else:
        best = run.best
        if best:
            console.print(
                f"kept step {best['step']}: held-out {best['metric']} {best['mean']:.3f} "
                f"[{best['low']:.3f}, {best['high']:.3f}], before training "
                f"{run.start['mean']:.3f}",
                markup=False,
            )
        ended = run.training["stopped"]
        console.print(f"{run.training['steps']} steps, ended by {ended}: {out}", markup=False)
    if any(alarm.get("stops") for alarm in run.alarms):
        raise typer.Exit(FINDINGS)


@app.command("runs")
def runs_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with run folders.")],
    as_json: JsonFlag = False,
) -> None:
    """All runs under DIR side by side: held-out metrics, and the fields in which they differ.

    Example: `rftkit runs runs`
    """

    found = list_runs(folder)
    if as_json:
        print_json(found)
        return
    for problem in found["unreadable"]:
        complaints.print(f"left out: {problem}", markup=False, style="yellow")
    if found["runs"]:
        print_markdown_table(runs_table(found))
    else:
        console.print(f"{folder}: no runs", markup=False)


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

    Exit code 0: go, or undecided (it says what would settle it). 3: fix; each
    finding names its evidence and the knob to turn. 1: the config or the rows are invalid.
    """
    from rftkit.policy import load_policy
    from rftkit.signal.verdict import measure_signal
    from rftkit.training.config import config_base
    from rftkit.training.store import make_folder

    run = read_run_config(config)
    if run.method != "grpo":
        raise UserError(
            f'{config}: method "{run.method}", expected "grpo": only a run that samples its own '
            "answers has a signal to measure"
        )
    config_base(run)
    task = config_task(run)
    rows, _ = config_rows(run, task)
    task.grader.check_ready()  # before the model is loaded
    if out is not None:
        make_folder(out)  # a place that cannot be written is said before the work
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


@app.command("demo")
def demo_command(
    profile: Annotated[
        str,
        typer.Option(metavar="NAME", help="full, or smoke: the same steps, smaller, in a minute."),
    ] = "full",
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="Answers a case at T = 1.")] = 2,
    cases: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Real cases too: phenopackets, or rows that `rftkit cases` wrote."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of training and sampling.")] = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the run.")] = Path(
        "runs/demo"
    ),
    as_json: JsonFlag = False,
) -> None:
    """The whole of RFT once, on two CPU cores: train, compare, report.

    A base model of a million parameters answers cases, a grader scores the answers, GRPO
    reinforces the thinking behind the good ones. Then the tuned model meets its rivals on genes
    that never were an answer in training: random order, the annotation itself, its own base, the
    base told what to do, a larger base, SFT on the answers, SFT on the base's own right answers.

    Example: `rftkit demo --out runs/demo`, then open runs/demo/report.md, table.png, curve.png.
    """
    from rftkit.compare import paired_table
    from rftkit.demo import reading, run_demo, systems_table

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


app.command("doctor")(doctor_command)
app.command("evaluate")(evaluate_command)


@app.command("environment")
def environment_command(as_json: JsonFlag = False) -> None:
    """What this machine is, and what follows: device, precision, profile, versions, and what its
    sandbox protects from a python grader or a model's code.

    Paste its output into a question or a report: numbers depend on it. The profile is what the
    notebooks run in: full, or smoke (the same steps, smaller) with RFTKIT_PROFILE=smoke.

    Example: `rftkit environment`, or `rftkit environment --json` for a record.
    """
    from rftkit import sandbox
    from rftkit.environment import report

    isolation = sandbox.report()
    found = report() | {"sandbox": isolation.to_json()}
    if as_json:
        print_json(found)
        return
    lines = {
        "machine": found["machine"],
        "device": f"{found['device']} in {found['dtype']} ({found['reason']})",
        "profile": f"{found['profile']} (RFTKIT_PROFILE sets it: full or smoke)",
        "versions": ", ".join(f"{name} {number}" for name, number in found["versions"].items()),
        "sandbox": str(isolation),
    }
    for key, text in lines.items():
        console.print(f"{key:9} {text}", markup=False)


def main() -> None:
    """Entry point: a user's mistake is one message and an exit code, never a traceback."""
    for stream in (sys.stdout, sys.stderr):  # a terminal without é prints \xe9, not a traceback
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except UserError as error:
        complaints.print("error", str(error), markup=False, style="red")
        sys.exit(error.exit_code)
    except PermissionError as error:
        text = f"{error.filename}: {error.strerror}, expected a place that may be written: name "
        complaints.print("error", text + "another, or change its rights", markup=False, style="red")
        sys.exit(FINDINGS)


if __name__ == "__main__":
    main()
