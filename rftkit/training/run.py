"""train(): from a RunConfig to a run folder with the best adapter in it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rftkit.environment import machine, peak_memory_mb, set_seed, versions
from rftkit.evaluation import clusters_of, paired_difference
from rftkit.files import UserError, write_json, write_text
from rftkit.graders.answer import fill_template
from rftkit.graders.grader import read_grader
from rftkit.policy import LocalPolicy, check_weights, load_model, model_folder
from rftkit.rows import sha256_of
from rftkit.task import Task
from rftkit.training.config import (
    Plan,
    RunConfig,
    config_base,
    config_rows,
    config_task,
    make_plan,
    measure_model,
)
from rftkit.training.heldout import LOOK_SEED, HeldOut
from rftkit.training.store import (
    FINISHED,
    UNFINISHED,
    Checkpoints,
    Observer,
    Recorder,
    data_identity,
    load_adapter_weights,
    make_folder,
    open_folder,
    read_lines,
    read_summary,
    save_adapter,
    sole_user,
)
from rftkit.training.trainer import Interrupts, Session, resumed_state
from rftkit.training.watchdogs import TrainingStopped, Watchdogs, is_full_disk

STOPPED_EARLY = ("alarms", "gate.json")  # what a run leaves that ended before its first step


PATHS = ("model", "task", "train_file", "validation_file", "init_adapter", "grader")

# ------------------------------------------------------------------------------------------
# from rftkit.training.run:
# What a config comes to: batches, steps, completions, and the reason for each automatic choice.
#
# You state prompts a step and answers a prompt. Their product is the batch: the completions that
# one
# optimiser step learns from. Where they do not fit into memory at once, the batch is read in
# several
# passes (`micro_batch` answers each) whose gradients are added up: the same step, more slowly.


# ------------------------------------------------------------------------------------------
# from rftkit.training.run:
# The gate before step 1: is there anything to learn from these rewards?
#
# `rftkit.signal` samples the policy that will be trained, a few answers a row, and says go, fix or
# undecided. "fix" ends here, before hours are spent; "undecided" is said aloud and goes on. The
# verdict stands in RUN/gate.json, and a run that goes on does not ask again.


class GateSaysFix(UserError):
    """The gate's verdict is "fix" (exit code 3). `verdict` is gate.json's object."""

    exit_code = 3

    def __init__(self, message: str, verdict: dict[str, Any]):
        super().__init__(message)
        self.verdict = verdict


def pass_gate(
    policy: LocalPolicy,
    task: Task,
    rows: list[dict[str, Any]],
    config: RunConfig,
    out: Path,
    observers: Sequence[Observer] = (),
    force: bool = False,
) -> dict[str, Any]:
    """Measure, store, and raise GateSaysFix unless `force`; -> gate.json's object.

    An observer with a method `gate(signal)` is shown the whole signal, its samples among it.
    """
    place, told = out / "gate.json", False
    if place.exists():  # of this very config and data: open_folder clears what others left
        verdict = json.loads(place.read_text(encoding="utf-8"))
    else:
        verdict = measure_gate(policy, task, rows, config, observers)
        told = any(hasattr(observer, "gate") for observer in observers)
    verdict["forced"] = force and verdict["verdict"] == "fix"
    write_json(place, verdict)
    if verdict["verdict"] == "fix" and not force:
        lines = [f"{out}: the signal gate says fix, nothing was trained"]
        for found in [] if told else verdict["findings"]:
            lines += [f"  {found['name']}: {found['evidence']}", f"    -> {found['knob']}"]
        lines.append(f"The answers behind it: {place}; --force trains all the same")
        raise GateSaysFix("\n".join(lines), verdict)
    return verdict


def measure_gate(
    policy: LocalPolicy,
    task: Task,
    rows: list[dict[str, Any]],
    config: RunConfig,
    observers: Sequence[Observer],
) -> dict[str, Any]:
    """Sample, judge, show it to the observers that want to see it."""
    from rftkit.signal.verdict import measure_signal

    policy.model.eval()
    signal = measure_signal(
        policy,
        task,
        rows,
        answers=config.answers_per_prompt,
        max_completion_tokens=config.max_completion_tokens,
        temperature=config.temperature,
        completions=config.steps * config.batch,
        seed=config.seed,
    )
    for observer in observers:
        if hasattr(observer, "gate"):
            observer.gate(signal)
    return signal.to_json()


# ------------------------------------------------------------------------------------------
# from rftkit.training.run:
# train(): from a RunConfig to a run folder with the best adapter in it.


@dataclass
class Run:
    """What a finished run hands back; the same stands in its folder."""

    policy: LocalPolicy
    log: list[dict[str, Any]]
    start: dict[str, Any]  # the held-out look before step 1
    best: dict[str, Any]
    training: dict[str, Any]
    out: Path

    @property
    def alarms(self) -> list[dict[str, Any]]:
        """Every alarm of the log with its step."""
        return [{"step": r["step"], **a} for r in self.log for a in r.get("alarms", [])]


def train(
    config: RunConfig,
    out: str | Path,
    observers: Sequence[Observer] = (),
    task: Task | None = None,
    rows: list[dict[str, Any]] | None = None,
    held_out: list[dict[str, Any]] | None = None,
    existing: str = "resume",
    say: Callable[[str], None] = lambda text: None,
    force: bool = False,
) -> Run:
    """Train, and leave in `out` what folder.py lists, the best adapter among it.

    observers       called with each step's log object (a progress bar, a dashboard, a test)
    task, rows, held_out   instead of what the config names; for sft a row may carry its own
                           "completion"
    existing        what to do with a run that stands in `out` already: "resume" goes on where it
                    stopped (a finished one is loaded) and refuses another config or other data;
                    "replace" begins anew
    say             hears a sentence when something is decided
    force           train though the signal gate says fix

    Raises UserError for a config that cannot run or a held-out group that is trained on,
    GateSaysFix, TrainingStopped where a watchdog stops the run, and Interrupted (which is a
    KeyboardInterrupt) after Ctrl-C.
    """
    config.check()
    config_base(config)
    out = Path(out)
    task = task or config_task(config)
    if rows is None:
        rows, named = config_rows(config, task)
        held_out = named if held_out is None else held_out
    if not rows:
        raise UserError("training rows: none, expected one at least: see `rftkit check`")
    held_out = held_out or []
    assert_disjoint(rows, held_out, task)
    make_folder(out)
    try:
        with sole_user(out), Interrupts(say) as interrupts:
            found = open_folder(out, config, data_identity(rows, held_out, task), existing)
            if found == FINISHED:
                say(f"{out}: this run is finished; its adapter is loaded")
                return load_run(out, config)
            session = open_session(
                config, out, observers, task, rows, held_out, found == UNFINISHED, say, interrupts
            )
            return run_session(session, force)
    except Exception as error:
        if is_full_disk(error, out):
            raise full_disk(out) from error
        raise


def open_session(
    config: RunConfig,
    out: Path,
    observers: Sequence[Observer],
    task: Task,
    rows: list[dict[str, Any]],
    held_out: list[dict[str, Any]],
    goes_on: bool,
    say: Callable[[str], None],
    interrupts: Interrupts,
) -> Session:
    """Load the model, and put everything where the newest whole checkpoint left it."""
    set_seed(config.seed)
    base = config_base(config)
    model, tokenizer, engine, reason = load_model(base, config.engine)
    policy = LocalPolicy(with_lora(model, config, engine), tokenizer, config.model, engine, reason)
    plan = stored_plan(out) if goes_on else None
    if plan is None:
        plan = make_plan(config, rows, held_out, **measure_model(config, rows, tokenizer))
        write_json(out / "plan.json", plan.to_json())
    checkpoints = Checkpoints(out)
    newest = checkpoints.newest()
    checkpoints.after(newest)
    state = resumed_state(newest)
    if goes_on:
        where = f"step {state['step']}" if newest else "the start: no checkpoint was whole"
        say(f"{out}: goes on from {where}")
    watch = HeldOut(task, held_out, config, out) if held_out and config.eval_every else None
    if watch and state["held_out"]:
        watch.load(state["held_out"])
        watch.restore_best()
    watchdogs = Watchdogs(config.watchdog_steps, config.entropy_floor)
    watchdogs.load(state["watchdogs"])
    recorder = Recorder(out, observers, plan.steps, state["positions"], state["seconds"])
    return Session(
        config, plan, policy, task, rows, out, recorder, checkpoints, watchdogs, watch, interrupts,
        resume_from=newest,
    )  # fmt: skip


def stored_plan(out: Path) -> Plan | None:
    """The plan of the run that goes on: another batch size would add its sums in another order."""
    try:
        return Plan.from_json(json.loads((out / "plan.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def run_session(session: Session, force: bool = False) -> Run:
    """From where the session stands to the end of the run, and its summary."""
    config, policy, out, watch = session.config, session.policy, session.out, session.held_out
    if session.resume_from is None and config.gate == "on" and config.method == "grpo":
        observers = session.recorder.observers
        pass_gate(policy, session.task, session.rows, config, out, observers, force)
    if watch and session.resume_from is None:
        watch.look(policy, 0)
    if not is_over(session):
        if config.method == "grpo":
            from rftkit.training.trainer import run_grpo as method
        else:
            from rftkit.training.trainer import run_sft as method
        method(session)
    if watch and watch.best:
        load_adapter_weights(policy.model, out / "adapter")
    else:
        save_adapter(policy.model, out / "adapter")
    steps = len(session.recorder.log)
    training = {
        "examples": len(session.rows),
        "steps": steps,
        "seconds": round(session.recorder.seconds, 1),
        "validation_seconds": round(watch.seconds, 1) if watch else 0.0,
        "peak_rss_mb": peak_memory_mb(),
        "samples": steps * session.plan.batch if config.method == "grpo" else 0,
        "stopped": stop_reason(session),
    }
    start, best = (watch.start, watch.best) if watch else ({}, {})
    record = {"config": config.to_json(), "training": training, "start": start, "best": best}
    record["best_checkpoints"] = watch.kept if watch else []
    write_report(out, run_report(out, config, session.rows, training, watch))
    write_json(out / "training.json", record | {"versions": versions(), "seed": config.seed})
    policy.model.eval()
    run = Run(policy, session.recorder.log, start, best, training, out)
    for observer in session.recorder.observers:
        if hasattr(observer, "end"):
            observer.end(run)
    return run


def is_over(session: Session) -> bool:
    """Was the run killed after its last checkpoint and before its summary was written?

    A run that NaN stopped is not over: it was left unfinished, to go on once the cause is mended.
    """
    log, watch = session.recorder.log, session.held_out
    alarms = log[-1].get("alarms", []) if log else []
    stopped = [a for a in alarms if a.get("stops") and a["name"] != "not finite"]
    session.stopped = next(iter(stopped), None)
    no_better = watch is not None and watch.no_longer_improves
    return bool(log) and (len(log) >= session.plan.steps or no_better or bool(stopped))


def stop_reason(session: Session) -> str:
    """Why the run ended: "steps", "patience", or the watchdog's name."""
    if session.stopped:
        return session.stopped["name"]
    if session.held_out and session.held_out.no_longer_improves:
        return "patience"
    return "steps"


def full_disk(out: Path) -> TrainingStopped:
    last = next(Checkpoints(out).whole(), None)
    kept = f"the checkpoint {last.name} stands" if last else "no checkpoint was written yet"
    return TrainingStopped(
        "disk full",
        f"{out}: no space left on the disk, expected some MB a checkpoint; {kept}: free "
        "some space and start the run again",
    )


def load_run(out: str | Path, config: RunConfig | None = None) -> Run:
    """A finished run from its folder, its best adapter loaded."""
    from rftkit.training.store import read_config

    out = Path(out)
    config = config or read_config(out)
    record = read_summary(out)
    if record is None:
        raise UserError(
            f"{out}: no whole training.json, expected a finished run: `rftkit train` ends it"
        )
    if not (out / "adapter" / "adapter_model.safetensors").exists():
        raise UserError(
            f"{out / 'adapter'}: no adapter_model.safetensors, expected that of a finished run: "
            f"copy one of {out / 'checkpoints' / 'best'} there, or train anew into another folder"
        )
    base = config_base(config)
    model, tokenizer, engine, reason = load_model(base, config.engine)
    policy = LocalPolicy(with_lora(model, config, engine), tokenizer, config.model, engine, reason)
    load_adapter_weights(policy.model, out / "adapter")
    policy.model.eval()
    log = read_lines(out / "log.jsonl")
    return Run(policy, log, record["start"], record["best"], record["training"], out)


def assert_disjoint(rows: list[dict], held_out: list[dict], task: Task) -> None:
    """No group of the held-out rows is trained on: the best checkpoint would be the memorised."""
    if task.group_by is None:
        return
    shared = set(clusters_of(rows, task)) & set(clusters_of(held_out, task))
    if shared:
        raise UserError(
            f"{len(shared)} values of {task.group_by} stand in both training and held-out rows "
            f"(first: {sorted(shared)[0]}), expected none: split by {task.group_by}"
        )


def with_lora(model: Any, config: RunConfig, engine: str) -> Any:
    """The model with a fresh LoRA on every linear layer, or with the one of init_adapter."""
    start = starting_adapter(config) if config.init_adapter else None
    if engine == "unsloth":
        from unsloth import FastLanguageModel

        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        adapted = FastLanguageModel.get_peft_model(
            model,
            r=config.lora_rank,
            lora_alpha=config.lora_rank,
            target_modules=targets,
            random_state=config.seed,
        )
        if start:
            load_adapter_weights(adapted, Path(start))
        return adapted
    from peft import LoraConfig, PeftModel, get_peft_model

    if start:
        adapted = PeftModel.from_pretrained(model, start, is_trainable=True)
    else:
        lora = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        adapted = get_peft_model(model, lora)
    # The name that the user gave, not this machine's path: so the adapter can be moved.
    adapted.peft_config["default"].base_model_name_or_path = config.model
    return adapted


def starting_adapter(config: RunConfig) -> str:
    """Where init_adapter's weights are: it may be an adapter folder or a run folder.

    Raises UserError where it was made for another base or has another rank.
    """
    place = config.init_adapter
    base, adapter = model_folder(place)
    if adapter is None:
        raise UserError(f"init_adapter: {place} has no adapter, expected an adapter or run folder")
    check_weights(adapter)
    made = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
    if made.get("r") != config.lora_rank:
        raise UserError(
            f"init_adapter: {place} has rank {made.get('r')}, expected lora_rank "
            f"{config.lora_rank}: set lora_rank to {made.get('r')}"
        )
    if base != config_base(config):
        raise UserError(
            f"init_adapter: {place} was made for {made['base_model_name_or_path']}, expected "
            f"{config.model}: an adapter fits the base that it was trained on"
        )
    return adapter


START = "before training"


FLATTERS = (
    "Which step is kept was chosen on these rows, so its number flatters a little: report one "
    "from rows that no choice has seen (`rftkit evaluate`)."
)


def run_report(
    out: Path,
    config: RunConfig,
    rows: list[dict[str, Any]],
    training: dict[str, Any],
    watch: HeldOut | None,
) -> dict[str, Any]:
    """report.json's record (the fields are those of every report in the kit).

    rows      that were trained on
    training  of training.json: examples, steps, seconds, peak_rss_mb, stopped, …
    watch     the run's looks at held-out rows; None where there were none
    """
    data = json.loads((out / "data.json").read_text(encoding="utf-8"))
    gate = out / "gate.json"
    verdict = json.loads(gate.read_text(encoding="utf-8"))["verdict"] if gate.exists() else None
    weights = out / "adapter" / "adapter_model.safetensors"
    report = {
        "task": watch.task.name if watch else config.task,
        "n_cases": len(watch.rows) if watch else 0,
        "headline": watch.task.headline if watch else None,
        "sampling": {
            "samples": config.eval_samples,
            "temperature": 1.0,
            "max_new_tokens": config.max_completion_tokens,
            "seed": LOOK_SEED,
        },
        "systems": [],
        "paired": [],
        "training": training
        | {
            "method": config.method,
            "answer_groups_shared_with_eval": shared_groups(rows, watch) if watch else None,
        },
        "gates": {"signal": verdict},
        "notes": [FLATTERS] if watch and watch.best else [],
        "seed": config.seed,
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions(),
        "sha256": {"adapter": sha256_of(weights)} | {k: v[1] for k, v in data.items()},
    }
    if watch and watch.start:
        report["systems"].append(system(START, watch.start))
    if watch and watch.best:
        kept = f"kept, step {watch.best['step']}"
        report["systems"].append(system(kept, watch.best))
        if watch.start_values and watch.best_values:
            difference = paired_difference(
                watch.best_values["metric"],
                watch.start_values["metric"],
                clusters_of(watch.rows, watch.task),
            )
            found = {"difference": round(difference.mean, 4)}
            found |= {"low": round(difference.low, 4), "high": round(difference.high, 4)}
            report["paired"] = [{"a": kept, "b": START, "metric": watch.task.headline} | found]
    return report


def shared_groups(rows: list[dict[str, Any]], watch: HeldOut) -> int | None:
    """Answer groups in both training and held-out rows; None where the task names no group."""
    if watch.task.group_by is None:
        return None
    return len(set(clusters_of(rows, watch.task)) & set(clusters_of(watch.rows, watch.task)))


def system(name: str, look: dict[str, Any]) -> dict[str, Any]:
    """A look at held-out rows as a line of the report; looks sample, so nothing is greedy."""
    value = {key: look[key] for key in ("mean", "low", "high")}
    return {"name": name, "n": look["n"], look["metric"]: value, "greedy": {}} | {
        "mean_grade": look["grade"]
    }


def report_text(report: dict[str, Any]) -> str:
    """report.md"""
    training, metric = report["training"], report["headline"]
    gate = report["gates"]["signal"] or "not asked"
    lines = [f"# {report['task']}: {training['method']}, seed {report['seed']}", ""]
    if report["systems"]:
        lines += [f"| held-out rows: {report['n_cases']} | {metric} at T = 1 | mean grade |"]
        lines += ["|---|---|---|"]
    for row in report["systems"]:
        value = row[metric]
        cell = f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
        lines.append(f"| {row['name']} | {cell} | {row['mean_grade']:.3f} |")
    for pair in report["paired"]:
        found = f"{pair['difference']:+.3f} [{pair['low']:+.3f}, {pair['high']:+.3f}]"
        lines += ["", f"{pair['a']} - {pair['b']}: {found} in {pair['metric']}, row by row."]
    for note in report["notes"]:
        lines += ["", note]
    lines += [
        "",
        f"{training['examples']} rows, {training['steps']} steps, ended by {training['stopped']}; "
        f"{training['seconds']:.0f} s, {training['peak_rss_mb']:.0f} MB at most, on "
        f"{report['machine']}, {report['date']}. The signal gate: {gate}.",
        "",
    ]
    return "\n".join(lines)


def write_report(out: Path, report: dict[str, Any]) -> None:
    write_json(out / "report.json", report)
    write_text(out / "report.md", report_text(report))


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
            record["grader"] = read_grader(record["grader"])[0]
        except UserError as error:
            unread = error
    config = RunConfig.from_json(record)
    config = replace(config, model=model) if model else config
    if unread:  # all that is wrong at once
        raise UserError("; ".join(["RunConfig: " + str(unread), *config.problems()]))
    config.check()
    return config


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


def list_runs(folder: Path) -> dict[str, Any]:
    """Every run under `folder`: {"runs": [...], "differing": [field names],
    "unreadable": [what is wrong with the files of those left out]}.

    A run has its name, state (finished or unfinished), steps, seconds, the held-out metric at the
    start and at its best, why it stopped, its alarms, and the fields of its config that differ
    between the runs.
    """
    from rftkit.training.store import read_config

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
    from rftkit.training.store import is_begun

    try:
        return is_begun(place) or any((place / name).exists() for name in STOPPED_EARLY)
    except OSError as error:
        raise UserError(f"{place}: cannot be looked into ({error.strerror})") from None


def run_summary(place: Path) -> dict[str, Any]:
    """A run's line in the table, without its name and config, from log.jsonl and training.json.

    A torn training.json counts as none, as it does for `rftkit train`, which would go on there.
    Raises UserError where one of them is not what a run writes.
    """
    from rftkit.training.store import read_summary

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


def runs_table(found: dict[str, Any]) -> list[dict[str, str]]:
    """The runs as rows of a table: the held-out metric first, then what differs."""
    rows = []
    for run in found["runs"]:
        best = run["best"]
        metric = "none"
        if best:
            metric = f"{best['metric']} {best['mean']:.3f} [{best['low']:.3f}, {best['high']:.3f}]"
        row = {
            "run": run["name"],
            "held out": metric,
            "at step": str(best.get("step", "")),
            "steps": str(run["steps"]),
            "ended by": str(run["stopped"] or run["state"]),
            "alarms": ", ".join(run["alarms"]) or "none",
        }
        rows.append(row | {name: short(run["config"][name]) for name in found["differing"]})
    return rows


def short(value: Any) -> str:
    """A setting as a table's cell; of a grader its name."""
    if isinstance(value, dict):
        value = value.get("name") or value.get("type") or value
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    text = text.replace("|", "/")
    return text if len(text) <= 28 else text[:27] + "…"
