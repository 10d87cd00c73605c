"""The command line: `rftkit --help`. Each command is a thin layer over one function.

Exit codes: 0 good, 1 findings or invalid input, 2 wrong usage, 3 the gate says fix,
130 interrupted and resumable. `--json` prints one object on standard output.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from rftkit import __version__
from rftkit.comparison.command_line import evaluate_command
from rftkit.console import (
    FINDINGS,
    FIX_FIRST,
    GOOD,
    INTERRUPTED,
    ConsoleReporter,
    JsonFlag,
    complaints,
    console,
    print_json,
    print_markdown_table,
)
from rftkit.data import CheckReport, check_file
from rftkit.data.errors import UserError
from rftkit.data.faults import plural
from rftkit.doctor.command_line import doctor_command

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
    verdict = "clean" if report.ok else plural(len(report.faults), "fault")
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
    from rftkit.graders.command_line import grade_one

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
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Print this one's JSON.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """The shelf of pre-built graders; with a NAME, that grader's JSON, a start for your own.

    A grader turns an answer into a score from 0 to 1. Those marked (python) need a sandbox to run.

    Example: `rftkit graders` lists them, `rftkit graders gene_rank > grader.json` takes one.
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
    from rftkit.genes.command_line import print_cases, run_cases

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
    from rftkit.training import GateSaysFix, Interrupted
    from rftkit.training.command_line import plan_of, read_run_config, run_train

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
    from rftkit.training.command_line import list_runs, runs_table

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
    from rftkit.signal import measure_signal
    from rftkit.signal.command_line import print_signal
    from rftkit.training.command_line import read_run_config
    from rftkit.training.config import config_base, config_rows, config_task
    from rftkit.training.folder import make_folder

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
