"""train(): from a RunConfig to a run folder with the best adapter in it."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rftkit.environment import gathered, peak_memory_mb, process, together, versions
from rftkit.files import UserError, is_full_disk, read_json, write_json
from rftkit.graders.answer import fill_template
from rftkit.logs import Lines, alarms_of, read_lines
from rftkit.policy import LocalPolicy, Policy, load_policy
from rftkit.rows import Row, Source, closed_set_note, messages_key, read_rows
from rftkit.signal.numbers import Signal
from rftkit.signal.verdict import measure_signal
from rftkit.task import Task
from rftkit.training import store
from rftkit.training.config import RunConfig, config_base, config_rows, config_task
from rftkit.training.plan import Plan, plan_card, plan_run
from rftkit.training.report import shared_groups, write_report
from rftkit.training.session import Session, interrupts_heard, starting_adapter
from rftkit.training.trainer import run_steps
from rftkit.training.watchdogs import TrainingStopped

PROCESS_ENDED = re.compile("gloo/transport|remote process exited")  # what gloo and NCCL say


class GateSaysFix(UserError):
    """`verdict` is gate.json's object."""

    exit_code = 3

    def __init__(self, message: str, verdict: dict[str, Any]):
        super().__init__(message)
        self.verdict = verdict


@dataclass
class Run:
    """A finished run, as it stands in its folder."""

    policy: LocalPolicy = field(repr=False)
    log: list[dict[str, Any]] = field(repr=False)
    start: dict[str, Any]  # the validation before step 1
    best: dict[str, Any]
    training: dict[str, Any]
    out: Path

    @property
    def alarms(self) -> list[dict[str, Any]]:
        return alarms_of(self.log)


def train(
    config: RunConfig,
    out: str | Path,
    observers: Sequence[store.Observer] | None = None,
    task: Task | None = None,
    rows: Source | None = None,
    held_out: Source | None = None,
    existing: str = "resume",
    say: Callable[[str], None] | None = None,
    force: bool = False,
) -> Run:
    """Train, and leave in `out` what store.py lists, the best adapter among it.

    Observers are called with each step's log object (see store.Observer), `say` with a sentence
    when something is decided; without observers it prints both (see logs.Lines). `task`, `rows`
    and `held_out` replace what the config names, with rows as read_rows takes them; for sft a row
    may have a "completion". `existing`: "resume" the run in `out` (a finished one is loaded) or
    "replace" it. With `force` it trains though the signal gate says fix. Launched as several
    processes, each has a share of every step; the first one alone writes, observes and says.

    Raises UserError, GateSaysFix, TrainingStopped by a watchdog, Interrupted after Ctrl-C.
    """
    # Stage 1: what is trained, and on what.
    say = say or (print if observers is None else lambda text: None)
    observers = [Lines(say)] if observers is None else observers
    number, processes = process()
    if number > 0:
        say, observers = (lambda text: None), []
    if existing not in ("resume", "replace"):
        raise UserError(f'existing: "{existing}", expected resume or replace')
    if config.prompts_per_step % processes:
        share = f"expected a multiple of the {processes} processes: launch another number of them"
        raise UserError(f"prompts_per_step: {config.prompts_per_step}, {share}")
    if config.vllm_server and not find_spec("vllm"):
        raise UserError("vllm_server: vLLM is not installed: pip install 'trl[vllm]'")
    if "true" in map(os.environ.get, ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")):
        cure = "launch without, and set load_in_4bit for a large base (see notebook 11)"
        raise UserError(f"FSDP or DeepSpeed: they split weights that are sampled whole: {cure}")
    config_base(config)
    out = Path(out)
    with together():
        task = task or config_task(config)
        rows, held_out = known_rows(config, task, rows, held_out)
    if not held_out:
        say("no held-out rows: nothing will show whether it learned more than these rows")
    is_answer = task.group_by and task.group_by in f"{task.answer_template} {task.grader.record}"
    if is_answer and (note := closed_set_note(rows, held_out, task.group_by)):
        say(note)
        task = replace(task, group_by=None)
    refuse_leaks(rows, held_out, task)
    out.mkdir(parents=True, exist_ok=True)
    import torch

    threads = torch.get_num_threads()
    try:
        with interrupts_heard(say) as interrupted, store.alone_in(out):
            # Stage 2: is there a run in the folder? Then it is loaded or resumed.
            data = store.data_identity(rows, held_out, task)
            first = number == 0 and store.open_folder(out, config, data, existing)
            resume, *_ = gathered(first)
            if (out / "training.json").exists():
                say(f"{out}: this run is finished; its adapter is loaded")
                return load_run(out)
            session = Session(config, out, task, rows, held_out, observers, interrupted, resume)
            torch.set_num_threads(getattr(session.plan, "threads", None) or threads)
            for note in session.notes:
                say(note)
            if resume:
                say(f"{out}: resumes from step {session.step}")
            # Stage 3: the signal gate, and the validation that later ones are compared with.
            if session.step == 0:
                if number == 0 and config.gate == "on" and config.method == "grpo":
                    pass_gate(session, force)
                if number == 0:
                    write_json(out / "task.json", task.to_json())
                if session.held_out.rows:
                    session.held_out.validate(session.policy, 0)
            # Stage 4: the steps.
            if not session.is_over:
                run_steps(session)
            # Stage 5: the best adapter and the reports.
            done = number == 0 and finish(session)
            gathered(None)
            return done or load_run(out, session.policy)
    except Exception as error:
        ended = processes > 1 and PROCESS_ENDED.search(str(error))
        if ended and number > 0:
            raise SystemExit(0) from None  # the first one, or the launcher, says why
        if not ended and not is_full_disk(error, out):
            raise
        last = getattr(store.newest_checkpoint(out), "name", "no checkpoint")
        cause, cure = "no space left on the disk", "free some and start it again"
        if ended:
            cause, cure = "another of its processes has ended", "start it again"
        raise TrainingStopped(f"{out}: {cause}; {last} stands: {cure}") from error
    finally:
        torch.set_num_threads(threads)  # see session.quickest_threads


def known_rows(config: RunConfig, task: Task, rows: Any, held_out: Any) -> tuple[list, list]:
    """(training rows, held-out rows): those given, else those that the config names."""
    if rows is None:
        rows, named = config_rows(config, task)
        held_out = named if held_out is None else held_out
    rows, held_out = read_rows(rows), read_rows([] if held_out is None else held_out, "held_out")
    if not rows:
        raise UserError("training rows: none, expected one at least: see `rftkit check`")
    if task.group_by and not any(task.group_by in row for row in rows):
        columns = ", ".join(rows[0])
        raise UserError(f"group_by: no row has {task.group_by!r}, expected one of {columns}")
    return rows, held_out


def refuse_leaks(rows: list[Row], held_out: list[Row], task: Task) -> None:
    """Raise UserError where held-out rows share a prompt or a group with training rows."""
    if shared := shared_groups(rows, held_out, task):
        count = f"{len(shared)} values of {task.group_by} (first: {min(shared)})"
        raise UserError(f"{count} stand in both training and held-out rows: split by it")
    seen = set(map(messages_key, rows))
    if copies := [row for row in held_out if messages_key(row) in seen]:
        count = f"{len(copies)} of {len(held_out)} held-out rows"
        raise UserError(f"{count} have a prompt that is trained on, too: hold out other rows")


def pass_gate(session: Session, force: bool) -> None:
    """Is there anything to learn from these rewards? Raises GateSaysFix unless `force`."""
    config, place = session.config, session.out / "gate.json"
    if place.exists():  # of the same run; open_folder removes others
        verdict = read_json(place)
    else:
        session.task.grader.check_ready()
        session.policy.model.eval()
        most = max(64, config.steps * config.batch // 2)  # a small run's gate is small, too
        signal = run_signal(config, session.policy, session.task, session.rows, most=most)
        session.recorder.notify("gate", signal)
        verdict = signal.to_json()
    stop = verdict["verdict"] == "fix"
    write_json(place, verdict | {"forced": force and stop})
    if stop and not force:
        names = ", ".join(finding["name"] for finding in verdict["findings"])
        go_on = f"see {place}, change what it names; --force (in Python force=True) trains anyway"
        message = f"the signal gate says fix ({names}): {go_on}"
        raise GateSaysFix(message, verdict)


def run_signal(config: RunConfig, policy: Policy, task: Task, rows: list, **options: Any) -> Signal:
    """measure_signal() with the run's own numbers."""
    return measure_signal(
        policy, task, rows, answers=config.answers_per_prompt, temperature=config.temperature,
        max_completion_tokens=config.max_completion_tokens, seed=config.seed,
        completions=config.steps * config.batch, **options,
    )  # fmt: skip


def finish(session: Session) -> Run:
    """Install the best adapter; write the reports, and training.json last."""
    config, out, progress = session.config, session.out, session.progress
    if progress.best:
        session.held_out.install_best()
    else:
        store.save_adapter(session.policy.model, out / "adapter", session.policy.tokenizer)
    ended = "patience" if session.no_longer_improves else "steps"
    training = {
        "examples": len(session.rows),
        "steps": session.step,
        "seconds": round(session.recorder.seconds, 1),
        "validation_seconds": round(progress.seconds, 1),
        "peak_rss_mb": peak_memory_mb(),
        "samples": session.step * session.plan.generation_batch,
        "stopped": session.stopped["name"] if session.stopped else ended,
    }
    write_report(session, training)
    record = {"config": config.to_json(), "training": training, "start": progress.start}
    record |= {"best": progress.best, "best_checkpoints": progress.kept, "versions": versions()}
    write_json(out / "training.json", record | {"seed": config.seed})
    run = load_run(out, session.policy)
    session.recorder.notify("end", run)
    return run


def load_run(out: str | Path, policy: LocalPolicy | None = None) -> Run:
    """A finished run from its folder, wherever that stands, its best adapter loaded."""
    out = Path(out)
    if not (out / "training.json").exists():
        raise UserError(f"{out}: no training.json, expected a finished run: `rftkit train` ends it")
    config = store.read_config(out)
    if policy:
        store.load_adapter_weights(policy.model, out / "adapter")
    policy = policy or load_policy(str(out), config.engine)
    policy.model.eval()
    record, log = read_json(out / "training.json"), read_lines(out / "log.jsonl")
    return Run(policy, log, record["start"], record["best"], record["training"], out)


def plan(
    config: RunConfig | str,
    rows: Source | None = None,
    held_out: Source | None = None,
    gpu: str | None = None,
) -> Plan:
    """What `--dry-run` shows: without weights, it finds what would stop the run. Rows: as train()
    takes them. With `gpu`, what `rftkit plan` shows; `config` may then be a model's name."""
    if isinstance(config, str):
        return plan_card(RunConfig(model=config, lora_rank=16), [], [], gpu)
    task = config_task(config)
    rows, held_out = known_rows(config, task, rows, held_out)
    if gpu:
        return plan_card(config, rows, held_out, gpu)
    if config.method == "grpo":
        task.grader.check_ready()
    if config.init_adapter:
        starting_adapter(config)
    for row in [*rows[:1], *held_out[:1]] if task.answer_template else []:
        fill_template(task.answer_template, row)
    chosen, notes = plan_run(config, rows, held_out)
    chosen.reasons += notes
    return chosen
