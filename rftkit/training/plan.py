"""What a config comes to: batches, steps, completions, and the reason for each automatic choice.

You state prompts a step and answers a prompt. Their product is the batch: the completions that one
optimiser step learns from. Where they do not fit into memory at once, the batch is read in several
passes (`micro_batch` answers each) whose gradients are added up: the same step, more slowly.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rftkit.training.config import RunConfig, config_base

MEMORY_SHARE = 0.4  # of the free memory, for what grows with the batch
PROMPTS_MEASURED = 256
TINY_WIDTH = 512  # hidden numbers a token; the embedded models have 128 and 256
# Measured on the embedded mini: grpo on validation genes (docs/embedded_models.md); sft is the rate
# of the demo's two SFT rivals (datasets/recorded_runs/demo.json).
TINY_RATES = {"grpo": 2e-3, "sft": 1e-3}
# Quoted: Unsloth's LoRA hyperparameters guide, where to start with models of usual size.
USUAL_RATES = {"grpo": 5e-6, "sft": 2e-4}


@dataclass
class Plan:
    """The derived numbers of a run.

    batch            completions an optimiser step learns from
    micro_batch      completions a forward and backward pass; accumulation: passes a step
    generation_batch completions sampled at a time: the batch, so every answer is used once
    steps            optimiser steps at most; completions: drawn for training in all of them
    passes           how often each row is seen, on average
    looks            at the held-out rows, that before step 1 among them; look_answers: drawn each
    checkpoints      written at most
    learning_rate    of the LoRA weights, after three steps
    reasons          one sentence an automatic choice
    """

    method: str
    rows: int
    held_out_rows: int
    prompts_per_step: int
    answers_per_prompt: int
    batch: int
    micro_batch: int
    accumulation: int
    generation_batch: int
    steps: int
    completions: int
    passes: float
    looks: int
    look_answers: int
    checkpoints: int
    learning_rate: float
    reasons: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Plan:
        return cls(**record)

    def lines(self) -> list[str]:
        """The plan as a reader wants it, one line a fact."""
        grpo = self.method == "grpo"
        each = f" x {self.answers_per_prompt} answers = {self.batch} completions" if grpo else ""
        text = [
            f"rows        {self.rows}, each seen {self.passes:.1f} times",
            f"step        {self.prompts_per_step} prompts{each}",
            f"passes      {self.accumulation} a step, {self.micro_batch} completions each",
            f"steps       {self.steps} at most, a checkpoint every so often: {self.checkpoints}",
        ]
        if grpo:
            text.append(f"sampling    {self.completions} completions, {self.batch} at a time")
        if self.looks:
            text.append(
                f"held out    {self.held_out_rows} rows, {self.looks} looks of "
                f"{self.look_answers} answers, the one before step 1 among them"
            )
        else:
            text.append("held out    never looked at: no best adapter, no early stop")
        return text + [f"because     {reason}" for reason in self.reasons]


@dataclass
class ModelShape:
    """What memory depends on. Parameters are counted by the usual formula, embeddings included."""

    layers: int
    hidden: int
    heads: int
    vocabulary: int
    bytes_a_number: int
    parameters: float
    context: int | None = None  # tokens that it was made for, prompt and answer together


def make_plan(
    config: RunConfig,
    rows: Sequence[dict[str, Any]],
    held_out: Sequence[dict[str, Any]],
    shape: ModelShape | None = None,
    prompt_tokens: int = 0,
    free_bytes: float | None = None,
) -> Plan:
    """The plan of a config over these rows; nothing is loaded here.

    shape, prompt_tokens (the longest prompt), free_bytes   what `measure_model` found; without
    them the whole batch goes through at once
    """
    grpo, batch = config.method == "grpo", config.batch
    steps, reasons = config.steps, []
    if not grpo and config.epochs:
        whole = -(-config.epochs * len(rows) // config.prompts_per_step)
        if whole < steps:
            steps = whole
            reasons.append(f"{steps} steps: {config.epochs} passes over {len(rows)} rows")
    micro, why = choose_micro_batch(config, shape, prompt_tokens, free_bytes)
    rate, reason = choose_learning_rate(config, shape)
    reasons += [why, reason]
    context = shape.context if shape else None
    if context and prompt_tokens + config.max_completion_tokens > context:
        reasons.append(
            f"WARNING: the longest prompt ({prompt_tokens} tokens) and max_completion_tokens "
            f"{config.max_completion_tokens} exceed what the model was made for ({context}): set "
            f"max_completion_tokens to {max(context - prompt_tokens, 1)} or less"
        )
    seen = min(len(held_out), config.eval_rows)
    looks = 1 + -(-steps // config.eval_every) if seen and config.eval_every else 0
    return Plan(
        method=config.method,
        rows=len(rows),
        held_out_rows=seen,
        prompts_per_step=config.prompts_per_step,
        answers_per_prompt=config.answers_per_prompt if grpo else 1,
        batch=batch,
        micro_batch=micro,
        accumulation=batch // micro,
        generation_batch=batch if grpo else 0,
        steps=steps,
        completions=steps * batch if grpo else 0,
        passes=round(steps * config.prompts_per_step / max(len(rows), 1), 2),
        looks=looks,
        look_answers=seen * config.eval_samples if looks else 0,
        checkpoints=-(-steps // config.save_every),
        learning_rate=rate,
        reasons=reasons,
    )


def choose_learning_rate(config: RunConfig, shape: ModelShape | None) -> tuple[float, str]:
    """(learning rate, why). The wider a model, the smaller the step that changes what it says.

    Where the width is not known, only the embedded models count as tiny: too small a step wastes
    a run, too large a one destroys what the model could do.
    """
    if config.learning_rate is not None:
        return config.learning_rate, f"learning_rate {config.learning_rate:g}: you asked for it"
    tiny = shape.hidden < TINY_WIDTH if shape else config.model.startswith("embedded:")
    rate = (TINY_RATES if tiny else USUAL_RATES)[config.method]
    kind = "a tiny model: measured on the embedded mini" if tiny else (
        f"LoRA with {config.method} on a model of usual size: quoted from Unsloth's guide"
    )  # fmt: skip
    width = f" (hidden {shape.hidden})" if shape else ""
    return rate, f"learning_rate {rate:g}{width}, for {kind}; three times that if nothing moves"


def choose_micro_batch(
    config: RunConfig, shape: ModelShape | None, prompt_tokens: int, free_bytes: float | None
) -> tuple[int, str]:
    """(completions a pass, why): the largest divisor of the batch that the memory holds."""
    batch = config.batch
    if config.micro_batch is not None:
        return config.micro_batch, f"micro_batch {config.micro_batch}: you asked for it"
    if shape is None or not free_bytes:
        return batch, f"micro_batch {batch}, the whole batch: the model's size is not known here"
    each = bytes_an_answer(shape, prompt_tokens, config.max_completion_tokens)
    room = MEMORY_SHARE * free_bytes
    fitting = [n for n in range(1, batch + 1) if batch % n == 0 and n * each <= room]
    chosen = max(fitting, default=1)
    what = (
        f"computed, {each / 1e6:.0f} MB an answer of {prompt_tokens} + "
        f"{config.max_completion_tokens} tokens (layers {shape.layers}, hidden {shape.hidden}, "
        f"vocabulary {shape.vocabulary}); {room / 1e9:.1f} GB may be used, {MEMORY_SHARE:.0%} of "
        "what is free"
    )
    if chosen == batch:
        return batch, f"micro_batch {batch}, the whole batch in one pass: {what}"
    if not fitting:
        return 1, f"micro_batch 1, and even that may not fit: {what}; shorten max_completion_tokens"
    return chosen, f"micro_batch {chosen}, gradients of {batch // chosen} passes added up: {what}"


def bytes_an_answer(shape: ModelShape, prompt_tokens: int, completion_tokens: int) -> float:
    """Memory that one more answer in a pass takes (an upper estimate, without checkpointing).

    Activations: Korthikanti et al., Reducing Activation Recomputation (2022), equation 1, which
    counts 16-bit numbers: s·h·(34 + 5·a·s/h) bytes a layer. Logits: in fp32 over the completion,
    with their gradient and one copy for the log-probabilities.
    """
    tokens = prompt_tokens + completion_tokens
    layer = tokens * shape.hidden * (34 + 5 * shape.heads * tokens / shape.hidden)
    activations = shape.layers * layer * shape.bytes_a_number / 2
    logits = completion_tokens * shape.vocabulary * 4 * 3
    return activations + logits


def measure_model(
    config: RunConfig, rows: Sequence[dict[str, Any]], tokenizer: Any = None
) -> dict[str, Any]:
    """{"shape", "prompt_tokens", "free_bytes"} for make_plan; no weights are loaded.

    tokenizer   the model's, where it is loaded already
    """
    from rftkit.environment import choose_device
    from rftkit.policy import LocalPolicy

    base = config_base(config)
    device, dtype, _ = choose_device()
    try:
        from transformers import AutoConfig, AutoTokenizer

        found = AutoConfig.from_pretrained(base).get_text_config()
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(base)
    except (OSError, ValueError):
        return {}  # loading the model will say what is wrong with it
    reader = LocalPolicy(None, tokenizer, config.model)
    chosen = random.Random(0).sample(list(rows), min(PROMPTS_MEASURED, len(rows)))
    texts = [reader.render(row["messages"]) for row in chosen]
    ids = tokenizer(texts, add_special_tokens=False).input_ids if texts else [[]]
    layers, hidden, vocabulary = found.num_hidden_layers, found.hidden_size, found.vocab_size
    inner = getattr(found, "intermediate_size", None) or 4 * hidden
    parameters = layers * (4 * hidden**2 + 3 * hidden * inner) + 2 * vocabulary * hidden
    shape = ModelShape(
        layers,
        hidden,
        getattr(found, "num_attention_heads", 1),
        vocabulary,
        4 if dtype == "float32" else 2,
        float(parameters),
        getattr(found, "max_position_embeddings", None),
    )
    free = free_memory(device) - parameters * shape.bytes_a_number
    return {
        "shape": shape,
        "prompt_tokens": max(len(i) for i in ids),
        "free_bytes": max(free, 1.0),
    }


def free_memory(device: str) -> float:
    """Bytes that are free: of the GPU, or of the machine (its total where that is all it says)."""
    if device == "cuda":
        import torch

        return float(torch.cuda.mem_get_info()[0])
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return float(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return 4e9


def run_order(rows: int, steps: int, prompts_per_step: int, seed: int) -> list[int]:
    """The row of every prompt of the whole run: steps * prompts_per_step numbers.

    One shuffled pass over the rows after the other, fixed by the seed alone, so that a resumed run
    meets the rows that it would have met. (TRL's own sampler starts its shuffling anew when a run
    goes on in a later pass.)
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    while len(order) < steps * prompts_per_step:
        order += torch.randperm(rows, generator=generator).tolist()
    return order[: steps * prompts_per_step]
