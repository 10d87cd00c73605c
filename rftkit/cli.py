"""The command line: `rftkit --help`. Each command calls one function and prints what it returns.

Exit codes: 0 good, 1 findings or invalid input, 2 wrong usage, 3 the gate says fix,
130 interrupted and resumable. `--json` prints one object on standard output.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rftkit import __version__, cli_runs, console
from rftkit.console import JsonFlag, WeakIsolationFlag, argument, flag, option
from rftkit.files import UserError, plural, read_text

app = typer.Typer(
    name="rftkit",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def print_version(asked: bool) -> None:
    if asked:
        console.say(f"rftkit {__version__}")
        raise typer.Exit(console.GOOD)


@app.callback()
def about(
    version: Annotated[
        bool,
        typer.Option("--version", callback=print_version, is_eager=True, help="Print and exit."),
    ] = False,
) -> None:
    """Learn and run Reinforcement Fine-Tuning (RFT): data, graders, training, evaluation.

    New here? One command runs the whole of RFT on this machine, in minutes:

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


@app.command("check")
def check_command(
    file: Annotated[Path, argument("FILE", "The training rows (JSONL).")],
    validation: Annotated[Path | None, option("FILE", "Validation rows, for the split.")] = None,
    group_by: Annotated[str | None, option("KEY", "Each value on one side of the split.")] = None,
    answer_key: Annotated[list[str] | None, option("KEY", "Holds the answer (repeatable).")] = None,
    answer_in_prompt_ok: Annotated[
        bool, flag("--answer-in-prompt-ok", "The task is to find it in the text.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Check RFT data: every fault with its line, what was expected and what to do next.

    A row is one JSON object a line. The model sees `messages`, which end with the user's
    question; every other key is for the grader alone:

        {"messages": [{"role": "user", "content": "Seizure, ataxia. Which gene?"}], "answer": "A"}

    The prompts are searched for answers: values of keys named like one (reference..., answer...,
    label..., target..., correct..., expected..., solution..., gold..., truth...), of the key to
    group by and of each --answer-key. Exit code 0: clean (notes may remain). 1: faults.

    Example: `rftkit check train.jsonl --validation validation.jsonl --group-by reference_gene`
    """
    from rftkit.check import check_file

    report = check_file(file, validation, group_by, answer_key or (), answer_in_prompt_ok)
    if as_json:
        console.print_json(report.to_json())
        raise typer.Exit(console.GOOD if report.ok else console.FINDINGS)
    console.say("\n".join(map(str, report.faults)))
    first = {fault.kind: fault.place for fault in reversed(report.faults)}
    counts = report.counts.items()
    console.print_table([{"kind": k, "faults": n, "first at": first[k]} for k, n in counts])
    for note in report.notes:
        console.say(f"note: {note}", style="yellow")
    console.say(f"searched for in the prompts: {', '.join(report.answer_keys) or 'no answer key'}")
    rows = ", ".join(f"{side}: {plural(count, 'row')}" for side, count in report.rows.items())
    verdict = "clean" if report.ok else plural(sum(report.counts.values()), "fault")
    console.say(f"{rows}: {verdict}", style="green" if report.ok else "red")
    raise typer.Exit(console.GOOD if report.ok else console.FINDINGS)


@app.command("grade")
def grade_command(
    grader: Annotated[str, option("FILE", "A grader's JSON.")],
    sample: Annotated[str, option("TEXT", "What the model said, or @FILE.")],
    item: Annotated[str | None, option("ROW", "The row: one JSON object, or its file.")] = None,
    allow_weak_isolation: WeakIsolationFlag = False,
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
    from rftkit.graders.grader import Grader, GraderSettings

    settings = GraderSettings(allow_weak_isolation=allow_weak_isolation)
    text = read_text(sample[1:]) if sample.startswith("@") else sample
    row = {} if item is None else read_item(item)
    report = Grader.load(Path(grader), settings).evaluate(row, text)
    console.print_json(report.to_json())
    for line in [] if as_json else report.explanations:
        console.complain(line)
    raise typer.Exit(console.FINDINGS if report.reward is None else console.GOOD)


def read_item(item: str) -> dict[str, Any]:
    text = item if item.lstrip().startswith("{") else read_text(item)
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"--item: not JSON ({error}), expected a row of the JSONL") from None
    if not isinstance(row, dict):
        raise UserError(f"--item: a {type(row).__name__}, expected one JSON object")
    return row


@app.command("validate-grader")
def validate_grader_command(
    file: Annotated[str, argument("FILE", "File with a grader's JSON.")], as_json: JsonFlag = False
) -> None:
    """Check a grader's JSON: every fault with its place, what stands there, what is allowed.

    Example: `rftkit graders gene_rank > grader.json`, then `rftkit validate-grader grader.json`

    Exit code 0: valid; what was tolerated is noted. 1: faults, or no JSON.
    """
    from rftkit.graders.grader import read_grader
    from rftkit.graders.spec import GraderSpecError, validate_spec

    problems: list[str] = []
    kind, notes = None, []
    try:
        spec, notes = validate_spec(*read_grader(Path(file)))
        kind = spec["type"]
    except UserError as error:
        problems = error.problems if isinstance(error, GraderSpecError) else [str(error)]
    if as_json:
        result = {"valid": not problems, "type": kind, "problems": problems, "notes": notes}
        console.print_json(result)
    else:
        for problem in problems:
            named = problem.startswith(str(Path(file)))
            console.complain(problem if named else f"{file}: {problem}", style="red")
        for line in [f"note: {note}" for note in notes] + [f"a valid {kind} grader"] * bool(kind):
            console.say(line)
    raise typer.Exit(console.FINDINGS if problems else console.GOOD)


@app.command("graders")
def graders_command(
    name: Annotated[str | None, argument("NAME", "Print this one's JSON.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """The preset graders; with a NAME, that grader's JSON, a start for your own.

    A grader turns an answer into a score from 0 to 1. Those marked (python) need a sandbox to run.

    Example: `rftkit graders` lists them, `rftkit graders gene_rank > grader.json` takes one.
    """
    from rftkit.graders.presets import PRESETS, preset

    if name is not None:
        console.print_json(preset(name))
        return
    presets = [
        {"name": name, "type": make()["type"], "about": make.__doc__.partition("\n")[0]}
        for name, make in PRESETS.items()
    ]
    if as_json:
        console.print_json({"graders": presets})
    else:
        console.print_table(presets)
        console.say("rftkit graders NAME prints its JSON, a start for your own.")


@app.command("cases")
def cases_command(
    source: Annotated[Path, argument("SOURCE", "A .jsonl.gz, .jsonl, folder of .json, or .zip.")],
    out: Annotated[Path, option("DIR", "Where the files go.")],
    candidates: Annotated[int | None, option("N", "Name N genes in the prompt.", min=5)] = None,
    baselines: Annotated[bool, flag("--baselines", "Rank genes without a model too.")] = False,
    drop_copies: Annotated[bool, flag("--drop-copies", "Keep one of each copied case.")] = False,
    seed: Annotated[int, option("N", "Of the split and of the candidates' order.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Published cases (GA4GH phenopackets) -> train, validation and test rows, split by gene.

    Writes train.jsonl, validation.jsonl, test.jsonl and report.json, which counts what was lost
    and why. No answer gene stands in two files, and duplicates stand in one. About 10,000 cases
    come from the release archive of github.com/monarch-initiative/phenopacket-store (BSD-3). Some
    repeat the words of another (siblings, mostly): `rftkit check` reports these copies;
    --drop-copies keeps one of each.

    Example: `rftkit cases all_phenopackets.zip --out cases --drop-copies --baselines`
    """
    from rftkit.genes.cases import make_cases

    with console.Reporter() as reporter:
        reporter.stage("ranking without a model" if baselines else "reading")
        report = make_cases(source, out, candidates or 0, baselines, seed, drop_copies)
    if as_json:
        console.print_json(report)
    else:
        print_cases(report, out)


def print_cases(report: dict[str, Any], out: Path) -> None:
    """What was kept, what was lost and why, what each side holds, the baselines, the next step."""
    kept = f"{report['records']:,} phenopackets, {report['kept']:,} cases kept"
    console.say(f"{report['source']}: {kept}")
    counts = {"mentions of terms unknown to HPO": report["terms_unknown_to_hpo"]["mentions"]}
    counts["duplicates, kept on one side"] = report["duplicates"]
    for key in ("lost", "dropped", "copies"):
        counts |= {f"{key}: {reason}": number for reason, number in report.get(key, {}).items()}
    console.print_table([{"what": what, "number": number} for what, number in counts.items()])
    keys = ("rows", "genes", "papers", "rows_of_largest_gene")
    sides = [(str(out / name), side) for name, side in report["files"].items()]
    console.print_table([{"file": file} | {key: side[key] for key in keys} for file, side in sides])
    if report.get("baselines"):
        console.say("Baselines without a language model, in percent, all genes of HPO ranked (as")
        console.say("is, the annotation was partly made from these very cases):")
        console.print_table(report["baselines"])
    console.say(report["attribution"])
    more = " --answer-in-prompt-ok" if report["candidates"] else ""
    check = f"rftkit check {out / 'train.jsonl'} --validation {out / 'validation.jsonl'}"
    console.say(f"Next: {check} --group-by {report['split']['by']}{more}")


@app.command("environment")
def environment_command(as_json: JsonFlag = False) -> None:
    """What this machine is, and what follows: device, precision, profile, versions, and what its
    sandbox protects from a python grader or a model's code.

    Paste its output into a question or a report: numbers depend on it. The profile is what the
    notebooks run in: full, or smoke (the same steps, smaller) with RFTKIT_PROFILE=smoke.

    Example: `rftkit environment`, or `rftkit environment --json` for a record.
    """
    from rftkit import environment
    from rftkit.sandbox import runner

    isolation, machine = runner.report(), environment.report()
    if as_json:
        console.print_json(machine | {"sandbox": isolation.to_json()})
        return
    console.say(f"machine   {machine['machine']}")
    console.say(f"device    {machine['device']} in {machine['dtype']} ({machine['reason']})")
    console.say(f"profile   {machine['profile']} (RFTKIT_PROFILE sets it: full or smoke)")
    console.say(f"versions  {', '.join(f'{name} {v}' for name, v in machine['versions'].items())}")
    console.say(f"sandbox   {isolation}")


app.add_typer(cli_runs.app)


def main() -> None:
    """Entry point: a user's mistake is one message and an exit code, never a traceback."""
    for stream in (sys.stdout, sys.stderr):  # a terminal without é prints \xe9, not a traceback
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None:  # no place that the user named
            raise
        console.complain(f"error {error}", style="red")
        sys.exit(getattr(error, "exit_code", console.FINDINGS))


if __name__ == "__main__":
    main()
