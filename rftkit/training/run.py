"""train(): from a RunConfig to a run folder with the best adapter in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rftkit.data.errors import UserError
from rftkit.data.writing import write_json
from rftkit.environment import peak_memory_mb, set_seed, versions
from rftkit.evaluation import clusters_of
from rftkit.policy import LocalPolicy, check_weights, load_model, model_folder
from rftkit.task import Task
from rftkit.training.checkpoints import Checkpoints, load_adapter_weights, save_adapter
from rftkit.training.config import RunConfig, config_base, config_rows, config_task
from rftkit.training.folder import (
    FINISHED,
    UNFINISHED,
    data_identity,
    make_folder,
    open_folder,
    read_summary,
    sole_user,
)
from rftkit.training.gate import pass_gate
from rftkit.training.heldout import HeldOut
from rftkit.training.plan import Plan, make_plan, measure_model
from rftkit.training.record import Observer, Recorder, read_lines
from rftkit.training.report import run_report, write_report
from rftkit.training.steps import Interrupts, Session, resumed_state
from rftkit.training.watchdogs import TrainingStopped, Watchdogs, is_full_disk


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
            from rftkit.training.grpo import run_grpo as method
        else:
            from rftkit.training.sft import run_sft as method
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
    from rftkit.training.folder import read_config

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
