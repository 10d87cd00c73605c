"""What is seen of a run: one log object a step, and looks at held-out rows.

The held-out rows decide twice: which adapter is kept, and when to stop. They are sampled with the
same prompts and the same random numbers at every look, so two looks differ by the model alone.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rftkit.data.records import Sample, SamplingConfig
from rftkit.evaluation import bootstrap, clusters_of, pattern_shares, row_values
from rftkit.policy import LocalPolicy
from rftkit.task import Task
from rftkit.training.config import RunConfig

Observer = Callable[[dict[str, Any]], None]


# The fields of a step's log object, and what TRL calls those that it measures. `None` stands where
# a method has no such number (SFT has no reward).
FIELDS = {
    "reward_mean": "reward",
    "reward_std": "reward_std",
    "sub_rewards": None,
    "dead_groups": "frac_reward_zero_std",
    "completion_tokens": "completions/mean_length",
    "truncated": "completions/clipped_ratio",
    "entropy": "entropy",
    "kl": "kl",
    "grad_norm": "grad_norm",
    "loss": "loss",
    "patterns": None,
}


class Recorder:
    """One object a step: to log.jsonl, to events.jsonl in OpenAI's shape, to the observers."""

    def __init__(self, out: Path, observers: Sequence[Observer], steps: int):
        self.out, self.observers, self.steps = out, observers, steps
        self.log: list[dict[str, Any]] = []
        self.started = time.perf_counter()
        for name in ("log.jsonl", "events.jsonl", "samples.jsonl"):
            (out / name).write_text("")

    def step(self, record: dict[str, Any], samples: Sequence[Sample] = ()) -> None:
        record["seconds"] = round(time.perf_counter() - self.started, 3)
        self.log.append(record)
        append_lines(self.out / "log.jsonl", [record])
        append_lines(self.out / "events.jsonl", [self.event(record)])
        step = {"step": record["step"]}
        append_lines(self.out / "samples.jsonl", [step | s.to_json() for s in samples])
        for observer in self.observers:
            observer(record)

    def event(self, record: dict[str, Any]) -> dict[str, Any]:
        """What OpenAI's fine-tuning API reports of a step (object fine_tuning.job.event)."""
        said = [f"Step {record['step']}/{self.steps}"]
        if record.get("reward_mean") is not None:
            said.append(f"train mean reward={record['reward_mean']:.2f}")
        if "validation" in record:
            said.append(f"full validation mean reward={record['validation']['grade']:.2f}")
        return {
            "object": "fine_tuning.job.event",
            "id": f"event-{record['step']}",
            "created_at": int(time.time()),
            "level": "info",
            "type": "metrics",
            "message": ", ".join(said),
            "data": {key: value for key, value in record.items() if key != "patterns"},
        }


def append_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    if records:
        with open(path, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))


class HeldOut:
    """Looks at the held-out rows: same prompts, same seeds each time; keeps the best adapter."""

    def __init__(self, task: Task, rows: list[dict], config: RunConfig, out: Path):
        self.task, self.config, self.out = task, config, out
        self.rows = rows[: config.eval_rows]
        self.best: dict[str, Any] = {}
        self.looks_since_best = 0
        self.seconds = 0.0

    def look(self, policy: LocalPolicy, step: int) -> dict[str, Any]:
        """One validation record; the adapter is saved where it is the best so far."""
        import torch

        began, training = time.perf_counter(), policy.model.training
        policy.model.eval()
        settings = SamplingConfig(
            temperature=1.0, max_new_tokens=self.config.max_completion_tokens, seed=12_345
        )
        prompts = [row["messages"] for row in self.rows]
        with torch.random.fork_rng():  # looking must not change what is drawn next
            samples = policy.sample(prompts, self.config.eval_samples, settings)
        self.task.grade(self.rows, samples)
        values = row_values(self.task.headline, self.task, self.rows, samples)
        record = {
            "metric": self.task.headline,
            **bootstrap(values, clusters_of(self.rows, self.task)).to_json(),
            "grade": round(float(row_values("grade", self.task, self.rows, samples).mean()), 4),
            "patterns": rounded(pattern_shares(self.task, samples)),
            "n": len(self.rows),
        }
        policy.model.train(training)
        may_be_kept = step > 0 or self.config.keep_start
        if may_be_kept and (not self.best or record["mean"] > self.best["mean"]):
            self.best, self.looks_since_best = {"step": step, **record}, 0
            save_adapter(policy.model, self.out / "adapter")
        elif step > 0:
            self.looks_since_best += 1
        record["seconds"] = round(time.perf_counter() - began, 3)
        self.seconds += record["seconds"]
        return record

    @property
    def no_longer_improves(self) -> bool:
        return 0 < self.config.patience <= self.looks_since_best


def rounded(values: dict[str, float], digits: int = 4) -> dict[str, float]:
    return {k: round(float(v), digits) for k, v in values.items()}


def save_adapter(model: Any, folder: Path) -> None:
    """Written beside and renamed, so that a torn adapter is never read."""
    beside = folder.with_name(folder.name + ".writing")
    shutil.rmtree(beside, ignore_errors=True)
    # Linear layers alone are adapted: no embeddings to save, no need to look at the base's config.
    model.save_pretrained(beside, save_embedding_layers=False)
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(beside, folder)
    shutil.rmtree(old, ignore_errors=True)


def load_adapter_weights(model: Any, folder: Path) -> None:
    """Put a saved adapter's weights back into a model that has the same adapter."""
    from peft import load_peft_weights, set_peft_model_state_dict

    set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))


def step_callback(policy, config, recorder, watch, reward=None) -> Any:
    """Turns TRL's log of a step into ours, and looks at the held-out rows when it is time."""
    from transformers import TrainerCallback

    class Step(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **rest):
            if not logs or "loss" not in logs:
                return  # the summary at the end of training
            record: dict[str, Any] = {"step": state.global_step, "seconds": 0.0}
            for ours, trl in FIELDS.items():
                record[ours] = round(float(logs[trl]), 6) if trl in logs else None
            if reward is not None:
                record |= reward.summary()
            last = state.global_step >= state.max_steps
            if watch and (state.global_step % config.eval_every == 0 or last):
                record["validation"] = watch.look(policy, state.global_step)
                control.should_training_stop |= watch.no_longer_improves
            recorder.step(record, reward.samples if reward is not None else ())

    return Step()


def trainer_settings(config: RunConfig, out: Path) -> dict[str, Any]:
    """What both trainers share. One process, one optimiser step a batch."""
    import torch

    return dict(
        output_dir=str(out / "checkpoints"),
        max_steps=config.steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=3,
        seed=config.seed,
        gradient_checkpointing=False,  # it saves memory, which is here, and costs a third
        bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
    )
