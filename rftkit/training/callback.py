"""`rftkit.Doctor()`: our watchdogs, doctor and log for any script with a trainer of TRL."""

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from rftkit.console import complain
from rftkit.doctor import Examination, examine
from rftkit.files import write_text
from rftkit.logs import Log, add_record, read_lines, renamed
from rftkit.training.store import FIELDS, append_lines
from rftkit.training.watchdogs import Watchdogs


class Doctor(TrainerCallback):
    """`GRPOTrainer(..., callbacks=[rftkit.Doctor()])`, best with logging_steps=1.

    Writes log.jsonl into output_dir, as a run of ours has it, and prints each finding of the doctor
    when it first shows; `examination` holds the latest. A step whose gradient is not finite is
    skipped. Three of these in a row end the training, and so do `watchdog_steps` logs in a row in
    which every group was dead or the entropy under `entropy_floor`.
    """

    examination: Examination | None = None

    def __init__(self, watchdog_steps: int = 10, entropy_floor: float = 0.01):  # as in RunConfig
        self.watchdogs = Watchdogs(watchdog_steps, entropy_floor)
        self.log, self.due = Log("log.jsonl", []), 10  # logs until the doctor looks
        self.printed: set[str] = set()  # names of findings
        self.alarms: list[dict[str, Any]] = []  # since the last log

    def on_train_begin(self, args, state, control, **rest):
        self.path, self.began = Path(args.output_dir) / "log.jsonl", time.perf_counter()
        self.log.best_is_kept = args.load_best_model_at_end
        earlier = read_lines(self.path) if state.global_step else []  # resumed: up to there
        self.log.records = [record for record in earlier if record["step"] <= state.global_step]
        self.write(state, anew=True)

    def on_pre_optimizer_step(self, args, state, control, model=None, **rest):
        # With fp16 the loss scaler skips such steps, and needs to see them.
        if not args.fp16 and self.watchdogs.not_finite(model.parameters()):
            self.sound([self.watchdogs.skip_alarm(0.0)], state, control)

    def on_log(self, args, state, control, logs=None, **rest):
        # null for NaN and infinity, as in our log: JSON has neither.
        fields = json.loads(json.dumps(renamed(logs or {})), parse_constant=lambda name: None)
        if not fields:
            return  # the summary at the end of training
        records, count = self.log.records, len(self.log.records)
        add_record(records, {"step": state.global_step} | dict.fromkeys(FIELDS) | fields)
        joined = len(records) == count  # a validation, to the record of its step
        if not joined:
            self.sound(self.watchdogs.read(records[-1]), state, control)
            records[-1]["seconds"] = round(time.perf_counter() - self.began, 3)
            records[-1] |= {"alarms": self.alarms} if self.alarms else {}
            self.alarms = []
        self.write(state, anew=joined)
        if len(records) >= self.due:
            self.due += max(10, self.due // 20)
            self.on_train_end(args, state, control)

    def on_train_end(self, args, state, control, **rest):
        self.examination = examine(self.log)
        for finding in self.examination.findings:
            if finding.name not in self.printed and state.is_world_process_zero:
                name = finding.name.replace("_", " ")
                complain(f"doctor: {name}: {finding.evidence}; change: {finding.setting}")
            self.printed.add(finding.name)

    def write(self, state: Any, anew: bool) -> None:
        if state.is_world_process_zero and anew:
            write_text(self.path, "".join(json.dumps(r) + "\n" for r in self.log.records))
        elif state.is_world_process_zero:
            append_lines(self.path, self.log.records[-1:])

    def sound(self, alarms: list[dict[str, Any]], state: Any, control: Any) -> None:
        self.alarms += alarms
        for alarm in alarms:
            control.should_training_stop |= alarm["stops"]
            if state.is_world_process_zero:
                complain(f"watchdog: {alarm['name']}: {alarm['cause']}")
