"""The commands for what others take up: label, distill, export, export-data, serve."""

from pathlib import Path
from typing import Annotated

import typer

from rftkit import console
from rftkit.console import JsonFlag, Reporter, argument, option, options_from
from rftkit.distill import Distilling, distill
from rftkit.evaluation import Interval
from rftkit.files import UserError, plural
from rftkit.label import Labelling, label

app = typer.Typer()


@app.command("label")
@options_from(Labelling)
def label_command(asked: Labelling, as_json: JsonFlag = False) -> None:
    """Let a model label rows: a stream, one line a row, in the order of the rows.

    FILE gets each row with the model's answer as its `completion`, which SFT learns: a smaller
    student from `{"task": "genes", "method": "sft", "train_file": "labels.jsonl"}`. With --samples
    K the label is the answer that most of K samples give; their share is its `confidence`. What
    gets no label stands in FILE.failed.jsonl with the reason. If it is interrupted, the same
    command goes on. JSONL is read row by row, a table whole.

    Example: `rftkit label pool.jsonl --model runs/rft --out labels.jsonl --samples 4`
    """
    try:
        with Reporter() as reporter:
            counts = label(asked, reporter)
    except KeyboardInterrupt:
        console.complain(f"{asked.out}: interrupted: the same command goes on")
        raise typer.Exit(console.INTERRUPTED) from None
    if as_json:
        console.print_json(counts)
    else:
        console.say(f"{asked.out}: {counts['labelled']:,} of {counts['rows']:,} rows labelled")
    if counts["failed"]:
        console.complain(f"{plural(counts['failed'], 'row')} without a label: {asked.failed}")
    if not counts["labelled"]:
        raise typer.Exit(console.FINDINGS)


@app.command("distill")
@options_from(Distilling)
def distill_command(asked: Distilling, as_json: JsonFlag = False) -> None:
    """Train a small student on machine labels: it answers at once, without a trace.

    It takes the form and the tokenizer of --model, with random weights. So it needs many labels,
    some of each answer: more than people write, which is why a model writes them.

    Example: `rftkit distill labels.jsonl --model embedded:mini --width 64 --out student`, then
    `rftkit evaluate gene_ranking --model runs/rft --model student --out runs/table`
    """
    with Reporter() as reporter:
        record = distill(asked, reporter)
    if as_json:
        console.print_json(record)
    else:
        size, rows = f"{record['parameters']:,} parameters", plural(record["rows"], "row")
        console.say(f"{asked.out}: {size}, {rows}, {record['seconds']:.0f} s")


@app.command("export-data")
def export_data_command(
    file: Annotated[str, argument("FILE", "A RunConfig as JSON, or rows (.jsonl, .csv …).")],
    to: Annotated[str, option("S", "openai, azure or bedrock.")],
    out: Annotated[Path, option("FILE", "The job (.json), or the rows (.jsonl).")],
) -> None:
    """Write a run as a fine-tuning job of OpenAI, Azure or Bedrock; or rows as their JSONL.

    JOB.json holds the arguments of `client.fine_tuning.jobs.create`; JOB-train.jsonl and
    JOB-validation.jsonl lie beside it: upload these two, and write their ids into the job. Each
    setting is printed as it went out, also those that the service does not have. What a config
    leaves to its defaults, the service chooses. `rftkit train JOB.json` reads the job again.

    Bedrock grades by an AWS Lambda alone: the grader must be your lambda_handler, in a file.py.

    Example: `rftkit export-data run.json --to openai --out job.json`, or rows alone:
    `rftkit export-data rows.csv --to bedrock --out rows.jsonl`
    """
    from rftkit.job_out import SERVICES, export_job
    from rftkit.rows import read_rows, write_rows
    from rftkit.training.config import config_file, read_run_config

    is_config = config_file(file) is not None
    if to not in SERVICES:
        raise typer.BadParameter(f"{to!r}, expected {', '.join(SERVICES)}", param_hint="--to")
    if out.suffix != (suffix := ".json" if is_config else ".jsonl"):
        raise typer.BadParameter(f"{out}, expected a name in {suffix}", param_hint="--out")
    if is_config:
        console.say("\n".join(map(str, export_job(read_run_config(file), to, out))))
        console.say(f"{out}: `rftkit train {out} --dry-run` reads it again")
    elif out.exists():
        raise UserError(f"{out}: there already: name another --out")
    else:
        write_rows(out, rows := read_rows(file))
        console.say(f"{out}: {plural(len(rows), 'row')}")


@app.command("export")
def export_command(
    run: Annotated[Path, argument("RUN", "A finished run's folder.")],
    out: Annotated[Path, option("DIR", "The folder to write.")],
    to: Annotated[str, option("FORM", "adapter, merged or gguf.")] = "adapter",
    prove: Annotated[int, option("N", "Compare so many greedy answers.", min=0)] = 0,
    rows: Annotated[Path | None, option("FILE", "Rows for that; else the run's test rows.")] = None,
    endpoint: Annotated[str | None, option("NAME", "Where it is served: prove it there.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Take a run's model out, as adapter, merged weights or GGUF, and prove that it is the same.

    With --prove the first N rows are answered greedily by the run and by what was exported (a GGUF
    in llama.cpp): equal texts, the largest difference of a logit, both scores with intervals. An
    export that stands in DIR is not written again, only proved. Exit code 1: a text differs.

    --endpoint NAME asks the model of that name at OPENAI_BASE_URL. GGUF needs the extra:
    `pip install "rftkit[export]"`.

    Example: `rftkit export runs/first --to merged --out models/first --prove 20`
    """
    from rftkit.exporting import export

    report = export(run, to, out, prove, endpoint, rows, console.complain)
    if as_json:
        console.print_json(report)
    elif prove:
        console.say(f"{report['equal']} of {plural(report['of'], 'answer')} equal")
        for name in ("max_logit_difference", "logit_difference_from_base"):
            if report[name] is not None:
                console.say(f"{name.replace('_', ' ')} {report[name]:.2g}")
        for name, score in report["score"].items():
            console.say(f"grade, {name}: {Interval(**score)}")
    for found in report.get("mismatches", ()):
        place = f"row {found['row_id']}: the texts part at character {found['at']}"
        if found["margin"] is not None:
            place += f", where the run's logits are {found['margin']:.2g} apart"
        console.complain(f"{place}: {found['trained']!r}, exported {found['exported']!r}")
    if report.get("mismatches"):
        raise typer.Exit(console.FINDINGS)


@app.command("serve")
def serve_command(
    port: Annotated[int, option("N", "Port on this machine.", min=1)] = 8000,
    folder: Annotated[Path, option("DIR", "Files, jobs and runs.", "--dir")] = Path("runs/serve"),
    model: Annotated[str | None, option("M", "Train this, whatever a job names.")] = None,
    judge: Annotated[list[str] | None, option("A=B", "B judges where a job says A.")] = None,
) -> None:
    """Serve OpenAI's fine-tuning API here: upload, create a job, watch it, ask the tuned model.

    For the official client with another address: OPENAI_BASE_URL=http://127.0.0.1:8000/v1. It
    answers this machine alone; with RFTKIT_TOKEN set, only clients that send it as their API key.
    Needs the extra: `pip install "rftkit[serve]"`.

    Example: `rftkit serve --model smollm2`
    """
    try:
        from rftkit.serve import serve
    except ImportError as error:
        raise UserError(f'{error.name} is missing: pip install "rftkit[serve]"') from None
    console.say(f"http://127.0.0.1:{port}/v1, state in {folder}; Ctrl-C stops, a job is resumed")
    serve(folder, port, model, judge or [])
