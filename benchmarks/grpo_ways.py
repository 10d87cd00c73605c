"""Ways of doing the same GRPO steps, each in a process of its own that waits for its turn.

trl_defaults   TRL's GRPOTrainer and PEFT as they come: gradient checkpointing, 8 completions a
               pass, bf16 autocast, transformers' generate
trl            the same with rftkit's settings: one pass, no checkpointing, fp32 on a CPU
copied         rftkit.train with a copy of the prompt for each completion in the update
rftkit         rftkit.train: its sampler, shared prompts, its log and its checkpoints
unsloth        rftkit.train through Unsloth's model, its sampling and its loss (benchmarks/gpu.py)
floor          rftkit/loop.py: nothing but the algorithm

The same in all: model, adapter, rows and their order, group size, limit, temperature, grader, loss
(TRL's default, dapo, with a KL term), AdamW and its learning rate. TRL's own sampling draws other
completions than rftkit's, of the same lengths on average.
"""

from __future__ import annotations

import functools
import itertools
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rftkit import loop
from rftkit.environment import peak_memory_mb, set_seed
from rftkit.task import Task, load_task
from rftkit.training.config import RunConfig


class Turns:
    """The clock of one way. `pause` ends a step: its numbers go out, and the next step waits."""

    def __init__(self, connection: Any):
        self.connection, self.parts = connection, {}
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def pause(self, record: dict[str, Any]) -> None:
        """record   of the step: reward_mean, completion_tokens, grad_norm"""
        import torch

        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        numbers = {"seconds": wall, "cpu_seconds": cpu, "parts": dict(self.parts)}
        for name in ("reward_mean", "completion_tokens", "grad_norm"):
            numbers[name] = record[name]
        numbers["peak_rss_mb"] = peak_memory_mb() or 0.0
        if torch.cuda.is_available():
            numbers["peak_gpu_mb"] = torch.cuda.max_memory_allocated() / 1e6
            torch.cuda.empty_cache()  # for the others
        self.connection.send(numbers)
        self.connection.recv()
        self.parts.clear()
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def timed(self, function: Callable, name: str) -> Callable:
        """The same function; its seconds count under `name`."""
        import torch

        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            reference = name == "forward" and not torch.is_grad_enabled()
            part, began = "reference" if reference else name, time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.parts[part] = self.parts.get(part, 0.0) + time.perf_counter() - began

        return call

    def watch(self) -> None:
        """Time the parts of a step, whichever way; what is in none of them is "other"."""
        import torch
        from trl import GRPOTrainer

        from rftkit.packing import token_logprobs

        for owner, method, name in (
            (loop, "decode", "sampling"),
            (GRPOTrainer, "_generate", "sampling"),
            (Task, "grade", "grading"),
            (GRPOTrainer, "_calculate_rewards", "grading"),
            (GRPOTrainer, "_get_per_token_logps_and_entropies", "forward"),
            (torch.Tensor, "backward", "backward"),
            (torch.optim.AdamW, "step", "optimizer"),
        ):
            setattr(owner, method, self.timed(getattr(owner, method), name))
        replace("token_logprobs", self.timed(token_logprobs, "forward"))


def replace(name: str, function: Callable) -> None:
    """`name` is `function` in every module of rftkit that has it."""
    import rftkit.training.run  # noqa: F401  so that its modules are among them

    for module in [m for key, m in sys.modules.items() if key.startswith("rftkit")]:
        if name in vars(module):
            setattr(module, name, function)


def run_way(
    way: str, config: RunConfig, folder: Path, threads: int, exact: bool, connection: Any
) -> None:
    """What a child process does: the way's steps, one a turn, until it is killed.

    exact   the end token counts as any other, so that every completion has the limit's length
    """
    if way == "unsloth":
        import unsloth  # noqa: F401  (before trl, transformers and peft)
    import torch

    from rftkit import decoding

    torch.set_num_threads(threads)
    try:
        turns = Turns(connection)
        turns.watch()
        if exact:
            decoding.end_tokens = lambda model, tokenizer: set()
            replace("find_garbage", lambda *given: [])  # it asks for end tokens
        WAYS[way](config, folder, turns, exact)
        connection.send({"error": f"{way} has no step left: raise config.steps"})
    except BrokenPipeError:
        pass  # nobody listens any more: another way failed
    except Exception:
        connection.send({"error": f"{way}: {traceback.format_exc()}"})


def rftkit(config: RunConfig, folder: Path, turns: Turns, exact: bool) -> None:
    from rftkit.training.run import train

    train(config, folder / "run", observers=[turns.pause])


def copied(config: RunConfig, folder: Path, turns: Turns, exact: bool) -> None:
    replace("reason_to_copy", lambda model: "it was asked for")
    rftkit(config, folder, turns, exact)


def unsloth(config: RunConfig, folder: Path, turns: Turns, exact: bool) -> None:
    rftkit(config.replace(engine="unsloth"), folder, turns, exact)


def floor(config: RunConfig, folder: Path, turns: Turns, exact: bool) -> None:
    same = ("model", "task", "steps", "learning_rate", "beta", "seed")
    settings = loop.Settings(
        **{name: getattr(config, name) for name in same},
        prompts=config.prompts_per_step,
        group=config.answers_per_prompt,
        max_tokens=config.max_completion_tokens,
        validate_every=0,
    )
    for record, _ in loop.grpo(settings):
        turns.pause(record)


def trl_defaults(config: RunConfig, folder: Path, turns: Turns, exact: bool) -> None:
    """Its passes of 8 completions are gathered to the same step."""
    size = min(8, config.batch)
    passes = dict(gradient_accumulation_steps=config.batch // size)
    trl(config, folder, turns, exact, per_device_train_batch_size=size, **passes)


def trl(config: RunConfig, folder: Path, turns: Turns, exact: bool, **passes: Any) -> None:
    import torch
    from peft import LoraConfig

    from rftkit.decoding import end_tokens
    from rftkit.graders.rewards import reward_function
    from rftkit.policy import load_model, model_folder

    set_seed(config.seed)
    task = load_task(config.task)
    model, tokenizer, *_ = load_model(model_folder(config.model)[0], "transformers")
    rows, settings = task.rows("train"), loop.Settings(seed=config.seed)
    order = itertools.islice(
        loop.row_order(len(rows), settings), config.steps * config.prompts_per_step
    )
    ends = end_tokens(model, tokenizer)
    size = config.micro_batch or config.batch
    whole = dict(per_device_train_batch_size=size, gradient_accumulation_steps=config.batch // size)
    whole |= dict(gradient_checkpointing=False, bf16=torch.cuda.is_available())
    rank = config.lora_rank
    stock_trainer(
        model,
        tokenizer,
        reward_function(task.grader, item_column="item", end_token_ids=ends),
        [{"prompt": rows[n]["messages"], "item": json.dumps(rows[n])} for n in order],
        turns.pause,
        LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM"),
        output_dir=str(folder),
        max_steps=config.steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=3,
        seed=config.seed,
        num_generations=config.answers_per_prompt,
        max_completion_length=config.max_completion_tokens,
        temperature=config.temperature,
        beta=config.beta,
        shuffle_dataset=False,
        generation_kwargs=dict(min_new_tokens=config.max_completion_tokens) if exact else None,
        **(passes or whole),
    ).train()


def stock_trainer(
    model: Any,
    tokenizer: Any,
    reward: Callable,
    table: list[dict[str, Any]],
    after_step: Callable[[dict[str, Any]], None],
    peft_config: Any = None,
    **settings: Any,
) -> Any:
    """TRL's trainer with transformers' generate; what is not set is TRL's default.

    after_step   called with TRL's log of each step, and our names for two of its fields
    """
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback, ProgressCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class AfterStep(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict, **named: Any) -> None:
            if "loss" in logs:
                lengths = logs["completions/mean_length"]
                after_step(logs | {"reward_mean": logs["reward"], "completion_tokens": lengths})

    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=reward,
        train_dataset=Dataset.from_list(table),
        args=GRPOConfig(
            use_cpu=not torch.cuda.is_available(), logging_steps=1, report_to=[], **settings
        ),
        peft_config=peft_config,
        callbacks=[AfterStep()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


WAYS: dict[str, Callable] = {
    way.__name__: way for way in (trl_defaults, trl, copied, rftkit, floor, unsloth)
}
