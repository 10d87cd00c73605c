"""What stands behind `rftkit train` and `rftkit runs`."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rftkit.data.errors import UserError
from rftkit.graders.templates import fill_template
from rftkit.training.config import RunConfig, config_rows, config_task
from rftkit.training.plan import Plan, make_plan, measure_model
from rftkit.training.record import read_lines
from rftkit.training.run import Run, starting_adapter, train

STOPPED_EARLY = ("alarms", "gate.json")  # what a run leaves that ended before its first step
PATHS = ("model", "task", "train_file", "validation_file", "init_adapter", "grader")


def read_run_config(file: str | Path, model: str | None = None) -> RunConfig:
    """The RunConfig in a JSON file. A relative path in it is sought beside the file, then here.

    model   instead of the one that the file names

    Raises UserError for what is not a RunConfig, among it a job in OpenAI's shape.
    """
    path = Path(file)
    try:
        record = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}), expected a RunConfig as JSON: "
            "`rftkit train --help` shows one"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}), expected a RunConfig: mend it") from None
    if not isinstance(record, dict):
        raise UserError(f"{path}: {type(record).__name__}, expected one JSON object (a RunConfig)")
    if isinstance(record.get("method"), dict):
        raise UserError(
            f'{path}: "method" is an object, so this is a fine-tuning job in OpenAI\'s shape, '
            'expected a RunConfig, whose "method" is "grpo" or "sft": jobs arrive with '
            "`rftkit.job`, which is not here yet"
        )
    for key in PATHS:
        value = record.get(key)
        beside = path.parent / value if isinstance(value, str) else None
        if value and beside is not None and beside.exists():
            record[key] = str(beside)
    unread = None
    if isinstance(record.get("grader"), str):
        try:
            record["grader"] = read_grader(record["grader"])
        except UserError as error:
            unread = error
    config = RunConfig.from_json(record)
    config = replace(config, model=model) if model else config
    if unread:  # all that is wrong at once
        raise UserError("; ".join(["RunConfig: " + str(unread), *config.problems()]))
    config.check()
    return config


def read_grader(place: str) -> Any:
    try:
        return json.loads(Path(place).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f'"grader": {place} cannot be read ({error}), expected a grader\'s JSON or a file with '
            "it: `rftkit validate-grader` checks one"
        ) from None


def plan_of(config: RunConfig) -> Plan:
    """What `--dry-run` shows: nothing is trained, no weights are loaded."""
    task = config_task(config)
    rows, held_out = config_rows(config, task)
    if config.method == "grpo":
        task.grader.check_ready()
    if config.init_adapter:
        starting_adapter(config)
    if task.answer_template:
        for row in [*rows[:1], *held_out[:1]]:
            fill_template(task.answer_template, row)
    return make_plan(config, rows, held_out, **measure_model(config, rows))


def run_train(
    config: RunConfig, out: Path, reporter: Any, force: bool = False
) -> tuple[Run, dict[str, Any]]:
    """(the run, what `--json` prints).

    reporter   has say, plan, stage, advance: what the command line shows
    """
    progress = Progress(reporter, config)
    run = train(config, out, [progress], say=reporter.say, force=force)
    record = {
        "out": str(out),
        "training": run.training,
        "start": run.start,
        "best": run.best,
        "alarms": run.alarms,
    }
    return run, record


class Progress:
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


def list_runs(folder: Path) -> dict[str, Any]:
    """Every run under `folder`: {"runs": [...], "differing": [field names],
    "unreadable": [what is wrong with the files of those left out]}.

    A run has its name, state (finished or unfinished), steps, seconds, the held-out metric at the
    start and at its best, why it stopped, its alarms, and the fields of its config that differ
    between the runs.
    """
    from rftkit.training.folder import read_config

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder, expected one that holds run folders")
    runs, configs, unreadable = [], [], []
    for place in sorted(path.parent for path in folder.rglob("config.json")):
        try:
            if not is_run(place):
                continue
            config = read_config(place)
            runs.append({"name": str(place.relative_to(folder))} | run_summary(place))
            configs.append(config)
        except UserError as error:
            unreadable.append(str(error))
    names = [f.name for f in fields(RunConfig)]
    values = [[json.dumps(getattr(c, n), sort_keys=True) for c in configs] for n in names]
    differing = [name for name, found in zip(names, values) if len(set(found)) > 1]
    for run, config in zip(runs, configs):
        run["config"] = {name: getattr(config, name) for name in differing}
    return {"runs": runs, "differing": differing, "unreadable": unreadable}


def is_run(place: Path) -> bool:
    from rftkit.training.folder import is_begun

    try:
        return is_begun(place) or any((place / name).exists() for name in STOPPED_EARLY)
    except OSError as error:
        raise UserError(f"{place}: cannot be looked into ({error.strerror})") from None


def run_summary(place: Path) -> dict[str, Any]:
    """A run's line in the table, without its name and config, from log.jsonl and training.json.

    A torn training.json counts as none, as it does for `rftkit train`, which would go on there.
    Raises UserError where one of them is not what a run writes.
    """
    from rftkit.training.folder import read_summary

    log, summary = read_lines(place / "log.jsonl"), read_summary(place) or {}
    try:
        looks = [r["validation"] | {"step": r["step"]} for r in log if "validation" in r]
        best = summary.get("best") or max(looks, key=lambda v: v["mean"], default={})
        if best and not all(math.isfinite(best[key]) for key in ("mean", "low", "high")):
            raise ValueError("the best look is not a number")
        return {
            "state": "finished" if summary else "unfinished",
            "steps": len(log),
            "seconds": log[-1]["seconds"] if log else 0.0,
            "start": summary.get("start", {}),
            "best": best and {"metric": "the metric"} | best,
            "stopped": summary.get("training", {}).get("stopped"),
            "alarms": sorted({str(a["name"]) for r in log for a in r.get("alarms", [])}),
        }
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{place}: log.jsonl and training.json do not hold what a run writes "
            f"({type(error).__name__}: {error}), expected step, seconds and whole held-out looks: "
            "remove the folder, or train there again"
        ) from None


def runs_table(found: dict[str, Any]) -> list[str]:
    """The runs as a Markdown table: the held-out metric first, then what differs."""
    header = ["run", "held out", "at step", "steps", "ended by", "alarms", *found["differing"]]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for run in found["runs"]:
        best = run["best"]
        metric = "none"
        if best:
            metric = f"{best['metric']} {best['mean']:.3f} [{best['low']:.3f}, {best['high']:.3f}]"
        ended = str(run["stopped"] or run["state"])
        cells = [run["name"], metric, str(best.get("step", "")), str(run["steps"]), ended]
        cells.append(", ".join(run["alarms"]) or "none")
        cells += [short(run["config"][name]) for name in found["differing"]]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def short(value: Any) -> str:
    """A setting as a table's cell; of a grader its name."""
    if isinstance(value, dict):
        value = value.get("name") or value.get("type") or value
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    text = text.replace("|", "/")
    return text if len(text) <= 28 else text[:27] + "…"
