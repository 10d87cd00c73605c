"""The commands about runs: signal, train, plan, doctor, runs, evaluate, demo."""

import json
from pathlib import Path
from textwrap import fill
from typing import Annotated, Any

import typer

from rftkit import console
from rftkit.compare import Comparison, compare_models, gain_table
from rftkit.console import JsonFlag, Reporter, SandboxFlag, argument, flag, option, options_from
from rftkit.demo import Demo, reading
from rftkit.environment import process
from rftkit.files import UserError, dataset, plural, read_text
from rftkit.logs import Lines, ending
from rftkit.training.report import list_runs, paired_table, runs_table, systems_table

app = typer.Typer()


@app.command("signal")
def signal_command(
    config: Annotated[Path, argument("CONFIG", "The run's RunConfig (JSON).")],
    samples: Annotated[int | None, option("N", "Draw at most so many answers.", min=32)] = None,
    sandbox: SandboxFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Before training: is there anything to learn from? go, fix or undecided, with the reasons.

    Draws a few answers (at most 5 % of the run's completions, or 256) and measures what training
    would see: pass@k, dead groups, truncated answers, does the grader know right from wrong?

    Example, run.json holding {"task": "gene_ranking"}: `rftkit signal run.json`
    """
    from rftkit.policy import load_policy
    from rftkit.training.config import config_base, config_rows, config_task, read_run_config
    from rftkit.training.run import run_signal

    run = read_run_config(config, sandbox=sandbox)
    if run.method != "grpo":
        raise UserError(f'{config}: method "{run.method}", expected "grpo": it alone has a signal')
    config_base(run)
    task = config_task(run)
    rows, _ = config_rows(run, task)
    task.grader.check_ready()  # before the model is loaded
    try:
        with Reporter() as reporter:
            reporter.stage("drawing answers")
            policy = load_policy(run.model, run.engine, run.init_adapter, settings=run.to_json())
            signal = run_signal(run, policy, task, rows, most=samples, progress=reporter.work)
    except KeyboardInterrupt:
        console.complain(f"{config}: interrupted: --samples 32 or max_completion_tokens shorten it")
        raise typer.Exit(console.INTERRUPTED) from None
    if as_json:
        console.print_json(signal.to_json())
    else:
        console.say(signal.text(console.stdout.width))
    raise typer.Exit(console.FIX_FIRST if signal.verdict == "fix" else console.GOOD)


@app.command("train")
def train_command(
    file: Annotated[Path, argument("FILE", "A RunConfig as JSON, or a fine-tuning job.")],
    out: Annotated[Path | None, option("RUN", "The run's folder.")] = None,
    files: Annotated[Path | None, option("DIR", "Where a job's files lie.")] = None,
    dry_run: Annotated[bool, flag("--dry-run", "Print what it comes to; train nothing.")] = False,
    force: Annotated[bool, flag("--force", "Train though the gate says fix.")] = False,
    model: Annotated[str | None, option("M", "Instead of the model that FILE names.")] = None,
    judge: Annotated[list[str] | None, option("A=B", "B judges where a job says A.")] = None,
    sandbox: SandboxFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a LoRA by GRPO or SFT, watched by held-out rows; resume where a run was stopped.

    FILE holds a RunConfig, such as {"task": "gene_ranking", "model": "embedded:mini", "steps": 70}.
    For GPUs some come with the kit: gene_candidates/NAME and extraction/NAME, where NAME is
    t4_colab, l4_24gb or h100_80gb.

    Or FILE is a job of OpenAI, Azure or Bedrock: its JSON, or the Python script that creates it.
    Its files are found in DIR by name or id, or by DIR/files.json ({"file-abc": "train.jsonl"}).

    RUN gets log.jsonl (one object a step), samples.jsonl, checkpoints/ and adapter/ (the best by
    the held-out task metric). After Ctrl-C or a crash the same command resumes.

    Example: `rftkit train config.json --out runs/first --dry-run`, then without `--dry-run`.
    A job: `rftkit train job.json --files data --model smollm2 --dry-run`
    """
    from rftkit.dashboard import dashboard_figure
    from rftkit.job import Events, job_config, job_page
    from rftkit.job_file import is_job, read_job
    from rftkit.training.config import config_file, read_run_config
    from rftkit.training.run import GateSaysFix, plan, train
    from rftkit.training.session import Interrupted

    if out is None and not dry_run:
        raise typer.BadParameter("expected a folder, or --dry-run", param_hint="--out")
    if wrong := [pair for pair in judge or () if "=" not in pair]:
        raise typer.BadParameter(f"{wrong[0]!r}, expected A=B", param_hint="--judge")
    observers: list[Any] = []
    if job := is_job(config_file(file) or file):
        judges = dict(pair.split("=", 1) for pair in judge or ())
        config, mapped = job_config(file, files, model, judges)
        config = config.replace(sandbox=sandbox or config.sandbox)
        console.complain("\n".join(map(str, mapped)))
        if not dry_run:
            observers = [Events(out, read_job(file))]
    else:
        config = read_run_config(file, model, sandbox)
    if dry_run and job:
        page = job_page(config, console.complain)
        if as_json:
            console.print_json({"mapped": [m._asdict() for m in mapped]} | page)
        raise typer.Exit(page["exit_code"])
    if dry_run:
        chosen = plan(config)
        if as_json:
            console.print_json(vars(chosen))
        else:
            console.say("\n".join(chosen.lines()))
        return
    try:
        with Reporter() as reporter:
            observers = [Lines(reporter.say, reporter), *observers]
            run = train(config, out, observers, say=reporter.say, force=force)
    except GateSaysFix as refusal:
        if as_json:
            console.print_json({"out": str(out), "gate": refusal.verdict})
        raise
    except Interrupted as stop:  # printed here: Typer ends a KeyboardInterrupt without a word
        if as_json:
            console.print_json({"out": str(out), "interrupted": str(stop)})
        console.complain(str(stop))
        raise typer.Exit(console.INTERRUPTED) from None
    if process()[0] > 0:
        return
    picture = f"{out}/curve.png"
    dashboard_figure(run.log, run.start).savefig(picture)
    if as_json:
        record = {"training": run.training, "start": run.start, "best": run.best}
        console.print_json({"out": str(out), **record, "alarms": run.alarms, "picture": picture})
    else:
        console.say("\n".join(ending(run)))
    if any(alarm.get("stops") for alarm in run.alarms):
        raise typer.Exit(console.FINDINGS)


@app.command("plan")
def plan_command(
    model: Annotated[str, argument("MODEL", "A model, or a RunConfig's file.")],
    gpu: Annotated[str | None, option("NAME", "One card; without it all that are known.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """What a GRPO run takes on a GPU: GB by part, seconds a step, hours, dollars.

    No weights are loaded; the formula and its sources are in rftkit/training/memory.py. Completions
    reach the limit. Exit code 1: it does not fit; the nearest settings that do are named.

    Example: `rftkit plan Qwen3-4B --gpu t4`, `rftkit plan extraction/t4_colab --gpu t4`
    """
    from rftkit.training.config import config_file, read_run_config
    from rftkit.training.memory import known
    from rftkit.training.run import plan

    config = read_run_config(model) if config_file(model) else model
    plans = [plan(config, gpu=name) for name in ([gpu] if gpu else known("cards"))]
    if as_json:
        console.print_json(vars(plans[0]) if gpu else {"plans": list(map(vars, plans))})
    else:
        how = {"card_gb": "data sheet", "usd": "quoted", "prompt_tokens": plans[0].prompts}
        names = [*plans[0].memory_gb, "peak_gb", "card_gb", "prompt_tokens", "micro_batch"]
        console.print_table([
            {"GB of": name} | {p.gpu: (p.memory_gb | vars(p))[name] for p in plans}
            | {"": how.get(name, "computed")} for name in [*names, "seconds_a_step", "hours", "usd"]
        ])  # fmt: skip
        console.say("prices: " + "; ".join(f"{p.gpu} {p.price}" for p in plans))
    for p in [p for p in plans if not p.fits]:
        fits = f"set {json.dumps(p.nearest)}" if p.nearest else "take a larger card"
        console.complain(f"{p.gpu}: {p.peak_gb:.1f} of {p.card_gb:g} GB do not fit: {fits}")
    raise typer.Exit(console.GOOD if any(p.fits for p in plans) else console.FINDINGS)


@app.command("doctor")
def doctor_command(
    log: Annotated[Path, argument("RUN_OR_LOG", "A run's folder, its log, or an exported table.")],
    as_json: JsonFlag = False,
) -> None:
    """What is wrong with a run: each finding with its steps, evidence and the setting to change.

    Reads our log.jsonl, the trainer_state.json of TRL and Unsloth, verl's JSON lines, and a W&B
    run's history as .csv or .json.

    Example: `rftkit doctor runs/first`, `rftkit doctor outputs/checkpoint-100/trainer_state.json`
    """
    from rftkit.doctor import examine

    report = examine(log)
    if as_json:
        console.print_json(report.to_json())
    else:
        count = plural(len(report.findings), "finding")
        console.say(f"{report.source}: {plural(report.steps, 'step')}, {count}")
        for finding in report.findings:
            steps = f"{plural(len(finding.steps), 'step')}, {finding.steps[0]}-{finding.steps[-1]}"
            console.say(f"\n{finding.name.replace('_', ' ')} ({steps})", style="bold")
            texts = {"seen": finding.evidence, "means": finding.why, "limit": finding.limit}
            texts["change"] = finding.setting
            for title, text in [part for part in texts.items() if part[1]]:
                console.say(fill(f"   {title:7}{text}", 96, subsequent_indent=" " * 10))
        for note in report.notes:
            console.say(f"note: {note}")
    raise typer.Exit(console.FINDINGS if report.findings else console.GOOD)


@app.command("runs")
def runs_command(
    folder: Annotated[Path, argument("DIR", "A folder with run folders.")],
    as_json: JsonFlag = False,
) -> None:
    """All runs under DIR side by side: held-out metrics, and the fields in which they differ.

    Example: `rftkit runs runs`
    """
    runs = list_runs(folder)
    if as_json:
        console.print_json(runs)
        return
    for problem in runs["unreadable"]:
        console.complain(f"left out: {problem}", style="yellow")
    rows, width = runs_table(runs), console.stdout.width
    columns = zip(*rows[:1], *map(dict.values, rows))
    fits = sum(max(map(len, column)) + 1 for column in columns) <= width
    console.print_table(rows if fits else [])
    for row in [] if fits else rows:  # a block each
        console.say(row.pop("run"), style="bold")
        text = "; ".join(f"{name}: {value}" for name, value in row.items())
        console.say(fill(text, width, initial_indent="  ", subsequent_indent="  "))
    if not runs["runs"]:
        console.say(f"{folder}: no runs")


@app.command("evaluate")
@options_from(Comparison)
def evaluate_command(asked: Comparison, as_json: JsonFlag = False) -> None:
    """Evaluate models on the same rows, prompts and seeds: a table with intervals.

    A model is `embedded:mini`, `smollm2` (fetched), a folder, a run or its adapter, a hub name, or
    endpoint:NAME behind OPENAI_BASE_URL. It answers every row N times at T = 1 and once greedily.
    Differences are paired row by row: name the baseline first. A metric of your own is a function
    (sample, item) -> number: with my_metrics.py in this folder, --metric my_metrics:short.
    A gain in top1 is split: fewer cut answers, more readable ones, `selection` of what the first
    model solved now and then, and `beyond`. A run brings its task, grader, chat template and token
    limit. If it is interrupted, the same command goes on.

    Example: `rftkit evaluate gene_ranking --model embedded:mini --model runs/demo --out runs/table`
    """
    with Reporter() as reporter:
        report = compare_models(asked, reporter)
    if as_json:
        console.print_json(report)
    else:
        print_tables(report)
        console.print_table(gain_table(report))
        console.say(f"{report['n_cases']} rows, {report['seconds']:.0f} s: {asked.out}/report.md")
    for note in report["notes"]:
        console.complain(note, style="yellow")
    for s in report["systems"]:
        if s["failed"] or s["ungraded"] or s["grader_errors"] == s["answers"]:
            raise typer.Exit(console.FINDINGS)


@app.command("demo")
@options_from(Demo)
def demo_command(
    demo: Demo,
    real: Annotated[bool, flag("--real", "Show what a real model was measured to do.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """The whole of RFT once, on two CPU cores: train, compare, report.

    A base model of a million parameters answers cases, a grader scores the answers, GRPO
    reinforces the thinking behind the good ones. Then the tuned model meets its rivals on genes
    that never were an answer in training.

    Example: `rftkit demo --out runs/demo`, then open runs/demo/report.md, table.png, curve.png.
    """
    if real:
        return typer.echo(read_text(dataset("recorded_runs") / "gene_candidates.md"))
    with Reporter() as reporter:
        report = demo.run(reporter)
    if as_json:
        console.print_json(report)
        return
    print_tables(report)
    console.say("\n".join(reading(report)))
    if "real_cases" in report:
        real = report["real_cases"]
        console.say(f"\nReal published cases: {real['kept']} of {real['read']}")
        print_tables(real)
    console.say(f"\n{report['seconds']:.0f} s: {demo.out}/report.md, table.png, curve.png")


def print_tables(report: dict[str, Any]) -> None:
    console.print_table(systems_table(report))
    console.print_table(paired_table(report))
