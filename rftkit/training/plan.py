"""What a config comes to: batches, steps, completions, and the reason for each automatic choice.

Prompts a step times completions a prompt is the batch: what one optimiser step learns from. Where
it does not fit into memory at once it goes through in passes of `micro_batch` completions, whose
gradients are added up: the same step, more slowly.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rftkit.environment import choose_device
from rftkit.policy import LocalPolicy
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
    """The derived numbers of a run."""

    method: str
    rows: int
    held_out_rows: int
    prompts_per_step: int
    answers_per_prompt: int
    batch: int  # completions an optimiser step learns from
    micro_batch: int  # completions a forward and backward pass
    accumulation: int  # passes a step
    generation_batch: int  # completions sampled at a time: the batch, so each is used once
    steps: int  # optimiser steps at most
    completions: int  # drawn for training in all of them
    passes: float  # how often each row is seen, on average
    validations: int  # the one before step 1 among them
    validation_answers: int  # completions of one
    checkpoints: int  # written at most
    learning_rate: float  # of the LoRA weights, after three steps
    shared_prompts: bool = False  # the update reads a prompt once for all its completions
    reasons: list[str] = field(default_factory=list)  # a sentence for each automatic choice

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """The plan as a reader wants it, one line a fact."""
        text = [
            f"rows        {self.rows}, each seen {self.passes:.1f} times",
            f"step        {self.prompts_per_step} prompts x {self.answers_per_prompt} answers = "
            f"{self.batch} completions, {self.accumulation} passes of {self.micro_batch}",
            f"steps       {self.steps} at most, {self.completions} completions drawn",
            f"held out    {self.held_out_rows} rows, {self.validations} validations of "
            f"{self.validation_answers} answers",
        ]
        return text + [f"because     {reason}" for reason in self.reasons]


@dataclass
class Measured:
    """What memory and learning rate depend on."""

    hidden: int  # numbers a token
    context: int | None = None  # tokens it was made for, prompt and answer together
    prompt_tokens: int = 0  # of the longest prompt
    answer_bytes: float = 0.0  # that one more answer in a pass takes
    free_bytes: float = 0.0  # beside the weights


def make_plan(
    config: RunConfig,
    rows: Sequence[dict[str, Any]],
    held_out: Sequence[dict[str, Any]],
    model: Measured | None = None,
) -> Plan:
    """The plan of a config over these rows. Without `model` the batch goes through at once."""
    grpo, batch, steps = config.method == "grpo", config.batch, config.steps
    reasons = []
    if not grpo and config.epochs:
        steps = min(steps, -(-config.epochs * len(rows) // config.prompts_per_step))
        reasons.append(f"{steps} steps: at most {config.epochs} passes over {len(rows)} rows")
    micro, why = choose_micro_batch(config, model)
    rate, reason = choose_learning_rate(config, model)
    reasons += [why, reason]
    if model and model.context:
        room = model.context - model.prompt_tokens
        if config.max_completion_tokens > room:
            reasons.append(
                f"WARNING: the longest prompt ({model.prompt_tokens} tokens) and "
                f"max_completion_tokens {config.max_completion_tokens} exceed what the model was "
                f"made for ({model.context}): set max_completion_tokens to {max(room, 1)} or less"
            )
    seen = min(len(held_out), config.eval_rows)
    validations = 1 + -(-steps // config.eval_every) if seen and config.eval_every else 0
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
        validations=validations,
        validation_answers=seen * config.eval_samples if validations else 0,
        checkpoints=-(-steps // config.save_every),
        learning_rate=rate,
        reasons=reasons,
    )


def choose_learning_rate(config: RunConfig, model: Measured | None) -> tuple[float, str]:
    """(learning rate, why). The wider a model, the smaller the step that changes what it says.

    Where the width is not known, only the embedded models count as tiny: too small a step wastes
    a run, too large a one destroys what the model could do.
    """
    if config.learning_rate is not None:
        return config.learning_rate, f"learning_rate {config.learning_rate:g}: you asked for it"
    tiny = model.hidden < TINY_WIDTH if model else config.model.startswith("embedded:")
    rate = (TINY_RATES if tiny else USUAL_RATES)[config.method]
    kind = "tiny width, measured on the mini" if tiny else "usual width, from Unsloth's guide"
    return rate, f"learning_rate {rate:g}: {kind}; three times that if nothing moves"


def choose_micro_batch(config: RunConfig, model: Measured | None) -> tuple[int, str]:
    """(completions a pass, why): the largest divisor of the batch that the memory holds."""
    batch = config.batch
    if config.micro_batch is not None:
        return config.micro_batch, f"micro_batch {config.micro_batch}: you asked for it"
    if model is None:
        return batch, f"micro_batch {batch}, the whole batch: the model's size is not known here"
    room = MEMORY_SHARE * model.free_bytes
    fitting = [n for n in range(1, batch + 1) if batch % n == 0 and n * model.answer_bytes <= room]
    chosen = max(fitting, default=1)
    what = (
        f"micro_batch {chosen}, {batch // chosen} passes a step: {model.answer_bytes / 1e6:.0f} MB "
        f"an answer, {room / 1e9:.1f} GB may be used ({MEMORY_SHARE:.0%} of what is free)"
    )
    return chosen, what if fitting else f"{what}; even that may not fit"


def bytes_an_answer(model: Any, tokens: int, completion_tokens: int, number: int) -> float:
    """An upper estimate, without checkpointing; `number` bytes a number.

    Activations: Korthikanti et al., Reducing Activation Recomputation (2022), equation 1, which
    counts 16-bit numbers: s·h·(34 + 5·a·s/h) bytes a layer. Logits: in fp32 over the completion,
    with their gradient and one copy for the log-probabilities.
    """
    hidden, heads = model.hidden_size, getattr(model, "num_attention_heads", 1)
    layer = tokens * hidden * (34 + 5 * heads * tokens / hidden)
    activations = model.num_hidden_layers * layer * number / 2
    return activations + completion_tokens * model.vocab_size * 4 * 3


def measure_model(
    config: RunConfig, rows: Sequence[dict[str, Any]], tokenizer: Any = None
) -> Measured | None:
    """Read from the model's config and tokenizer; no weights are loaded. None where they cannot be
    read: loading the model will say why.

    tokenizer   the model's, where it is loaded already
    """
    from transformers import AutoConfig, AutoTokenizer

    base, (device, dtype, _) = config_base(config), choose_device()
    try:
        model = AutoConfig.from_pretrained(base).get_text_config()
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(base)
    except (OSError, ValueError):
        return None
    reader = LocalPolicy(None, tokenizer, config.model)
    chosen = random.Random(0).sample(list(rows), min(PROMPTS_MEASURED, len(rows)))
    prompts = reader.encode([row["messages"] for row in chosen])
    longest = max(map(len, prompts))
    hidden, number = model.hidden_size, 4 if dtype == "float32" else 2
    inner = getattr(model, "intermediate_size", None) or 4 * hidden
    parameters = model.num_hidden_layers * (4 * hidden**2 + 3 * hidden * inner)
    parameters += 2 * model.vocab_size * hidden
    limit = config.max_completion_tokens
    return Measured(
        hidden,
        getattr(model, "max_position_embeddings", None),
        longest,
        bytes_an_answer(model, longest + limit, limit, number),
        max(free_memory(device) - parameters * number, 1.0),
    )


def free_memory(device: str) -> float:
    """Bytes that are free: of the GPU, or of the machine."""
    if device == "cuda":
        import torch

        return float(torch.cuda.mem_get_info()[0])
    import psutil  # comes with accelerate

    return float(psutil.virtual_memory().available)


def run_order(rows: int, steps: int, prompts_per_step: int, seed: int) -> list[int]:
    """The row of every prompt of the whole run: steps * prompts_per_step numbers.

    One shuffled pass over the rows after the other, fixed by the seed alone, so that a resumed run
    meets the rows that it would have met. (TRL's own sampler starts its shuffling anew when a run
    is resumed in a later pass.)
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    while len(order) < steps * prompts_per_step:
        order += torch.randperm(rows, generator=generator).tolist()
    return order[: steps * prompts_per_step]
