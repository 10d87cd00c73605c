"""train(): from a RunConfig to a run folder with the best adapter in it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rftkit.data.writing import write_json
from rftkit.environment import peak_memory_mb, set_seed, versions
from rftkit.evaluation import clusters_of
from rftkit.policy import LocalPolicy, load_model, model_folder
from rftkit.task import Task
from rftkit.training.config import RunConfig, config_rows, config_task
from rftkit.training.watch import (
    HeldOut,
    Observer,
    Recorder,
    load_adapter_weights,
    save_adapter,
)


@dataclass
class Run:
    """What a finished run hands back; the same stands in its folder."""

    policy: LocalPolicy
    log: list[dict[str, Any]]
    start: dict[str, Any]  # the held-out look before step 1
    best: dict[str, Any]
    training: dict[str, Any]
    out: Path


def train(
    config: RunConfig,
    out: str | Path,
    observers: Sequence[Observer] = (),
    task: Task | None = None,
    rows: list[dict[str, Any]] | None = None,
    held_out: list[dict[str, Any]] | None = None,
) -> Run:
    """Train, and leave in `out`: config.json, log.jsonl, adapter/ (the best by held-out rows).

    observers       called with each step's log object (a progress bar, a dashboard, a test)
    task, rows, held_out   instead of what the config names; for sft a row may carry its own
                           "completion"

    Raises UserError for a config that cannot run, ValueError where a held-out group is trained on.
    """
    config.check()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    task = task or config_task(config)
    if rows is None:
        rows, named = config_rows(config, task)
        held_out = named if held_out is None else held_out
    assert_disjoint(rows, held_out or [], task)
    write_json(out / "config.json", config.to_json())
    set_seed(config.seed)
    base, _ = model_folder(config.model)
    model, tokenizer, engine, reason = load_model(base, config.engine)
    policy = LocalPolicy(with_lora(model, config, engine), tokenizer, config.model, engine, reason)
    recorder = Recorder(out, observers, config.steps)
    watch = HeldOut(task, held_out, config, out) if held_out and config.eval_every else None
    began = time.perf_counter()
    start = watch.look(policy, 0) if watch else {}
    if config.method == "grpo":
        from rftkit.training.grpo import run_grpo as method
    else:
        from rftkit.training.sft import run_sft as method
    spent = method(policy, task, rows, config, recorder, watch)
    if watch:
        load_adapter_weights(policy.model, out / "adapter")
    else:
        save_adapter(policy.model, out / "adapter")
    training = {
        "examples": len(rows),
        "steps": len(recorder.log),
        "seconds": round(time.perf_counter() - began, 1),
        "validation_seconds": round(watch.seconds, 1) if watch else 0.0,
        "peak_rss_mb": peak_memory_mb(),
        **spent,
    }
    best = watch.best if watch else {}
    record = {"config": config.to_json(), "training": training, "start": start, "best": best}
    write_json(out / "training.json", record | {"versions": versions(), "seed": config.seed})
    policy.model.eval()
    return Run(policy, recorder.log, start, best, training, out)


def assert_disjoint(rows: list[dict], held_out: list[dict], task: Task) -> None:
    """No group of the held-out rows is trained on: the best checkpoint would be the memorised."""
    if task.group_by is None:
        return
    shared = set(clusters_of(rows, task)) & set(clusters_of(held_out, task))
    if shared:
        raise ValueError(
            f"{len(shared)} values of {task.group_by} stand in both training and held-out rows "
            f"(first: {sorted(shared)[0]}), expected none: split by {task.group_by}"
        )


def with_lora(model: Any, config: RunConfig, engine: str) -> Any:
    """The model with a fresh LoRA on every linear layer, or with the one of init_adapter."""
    if engine == "unsloth":
        from unsloth import FastLanguageModel

        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        return FastLanguageModel.get_peft_model(
            model,
            r=config.lora_rank,
            lora_alpha=config.lora_rank,
            target_modules=targets,
            random_state=config.seed,
        )
    from peft import LoraConfig, PeftModel, get_peft_model

    if config.init_adapter:
        return PeftModel.from_pretrained(model, config.init_adapter, is_trainable=True)
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
