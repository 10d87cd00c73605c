"""What a config comes to: batches, steps, completions, and the reason for each automatic choice.

Prompts a step times completions a prompt is the batch of one optimiser step. Where the memory does
not hold it, passes of `micro_batch` completions add up their gradients: the same step, more slowly.
"""

import math
from dataclasses import dataclass, field, replace
from itertools import islice
from types import SimpleNamespace
from typing import Any

from rftkit.decoding import GPU_ROOM
from rftkit.environment import choose_device, process
from rftkit.files import UserError
from rftkit.loading import hub_place, is_embedded, load_tokenizer
from rftkit.loop import Settings, row_order
from rftkit.policy import LocalPolicy, Prompt
from rftkit.signal.checks import prompt_notes
from rftkit.signal.verdict import EMBEDDED_TOKENS, OTHER_TOKENS, completion_limit
from rftkit.training import memory
from rftkit.training.config import RunConfig, config_base

# Of the free memory, for what grows with the batch. glibc may hold 1.7 times what a CPU run needs.
MEMORY_SHARE = {"cpu": 0.4, "cuda": 0.8}
# Larger passes are no quicker on a CPU: 32 completions of SmolLM2 took 17 s and 7.4 GB in one pass,
# in four 16 s and 2.7 GB.
MOST = {"cpu": 3e9, "cuda": math.inf}  # bytes
PROMPTS_MEASURED = 256
USUAL_TOKENS = 300, 256  # of prompt and completion, for a model that is planned without rows
TINY_WIDTH = 512  # hidden numbers a token; the embedded models have 128 and 256
# Measured on the embedded mini: grpo on validation genes (docs/embedded_models.md); sft is the rate
# of the demo's two SFT rivals (datasets/recorded_runs/demo.json).
TINY_RATES = {"grpo": 2e-3, "sft": 1e-3}
# Quoted: Unsloth's LoRA hyperparameters guide, where to start with models of usual size.
USUAL_RATES = {"grpo": 5e-6, "sft": 2e-4}


class Plan(SimpleNamespace):
    """The numbers that make_plan derives, as they stand in plan.json."""

    def lines(self) -> list[str]:
        return [
            f"rows        {self.rows}, each seen {self.passes:.1f} times",
            f"step        {self.prompts_per_step} prompts x {self.answers_per_prompt} answers = "
            f"{self.batch} completions, {self.accumulation} passes of {self.micro_batch}",
            f"steps       {self.steps} at most, {self.completions} completions drawn",
            f"held out    {self.held_out_rows} rows, {self.validations} validations of "
            f"{self.validation_answers} answers",
            *(f"because     {reason}" for reason in self.reasons),
        ]


@dataclass
class Measured:
    """Of a model and its prompts: what memory and learning rate depend on."""

    architecture: Any  # the config of its language model
    prompt_tokens: int  # of the longest prompt
    context: int | None = None  # tokens it was made for, prompt and answer together
    notes: list[str] = field(default_factory=list)  # on the prompts
    config: RunConfig = field(default_factory=RunConfig)
    card: SimpleNamespace | None = None  # see memory.find_card; None: this machine
    loaded: bool = False  # do the weights take their memory already?

    @property
    def room(self) -> int:
        """Completion tokens that context and memory hold."""
        room = max(1, (self.context or OTHER_TOKENS) - self.prompt_tokens)
        answer, usable = self.memory(room)
        while room > 1 and answer > usable:
            room //= 2
            answer, usable = self.memory(room)
        return room

    def memory(self, completion_tokens: int) -> tuple[float, float]:
        """(bytes of one more answer in a pass, bytes for all of them), both on the safe side."""
        import psutil  # comes with accelerate
        import torch

        device, dtype, _ = ("cuda", "", "") if self.card else choose_device()
        number, tokens = 4 if dtype == "float32" else 2, (self.prompt_tokens, completion_tokens)
        parts = memory.parts(self.architecture, self.config, *tokens, number=number)
        free = psutil.virtual_memory().available
        if device == "cuda":
            known = self.card and self.card.memory * 1e9 * memory.USABLE
            free = known or torch.cuda.mem_get_info()[0]
        free -= 0 if self.loaded else parts["weights"] + parts["adapter"]
        free /= process()[1] if device == "cpu" else 1  # each GPU has a process of its own
        usable = min(MEMORY_SHARE[device] * max(free, 1.0), MOST[device])
        return parts["activations"] + parts["logits"], usable


def plan_run(
    config: RunConfig, rows: list[dict], held_out: list[dict], policy: LocalPolicy | None = None
) -> tuple[Plan, list[str]]:
    """(the plan, what the user should know). An unset max_completion_tokens comes from the
    policy's completions; without the policy it is a guess."""
    model = measure_model(config, rows, held_out)
    notes = model.notes if model else []
    if policy and model:
        model.loaded = True
    if config.max_completion_tokens is None:
        room = min(model.room, OTHER_TOKENS) if model else OTHER_TOKENS
        if policy:
            policy.model.eval()
            limit, note = completion_limit(policy, rows, room, config.temperature, config.seed)
        else:
            limit = EMBEDDED_TOKENS if is_embedded(config_base(config)) else room
            note = f"max_completion_tokens {limit}: a run takes it from its model"
        config, notes = config.model_copy(update={"max_completion_tokens": limit}), [note, *notes]
    return make_plan(config, rows, held_out, model), notes


def make_plan(
    config: RunConfig, rows: list[dict], held_out: list[dict], model: Measured | None = None
) -> Plan:
    """Without `model` the batch goes through at once."""
    grpo, batch, steps, reasons = config.method == "grpo", config.batch, config.steps, []
    micro, rate, processes = config.micro_batch, config.learning_rate, process()[1]
    if not grpo and config.epochs:
        steps = min(steps, -(-config.epochs * len(rows) // config.prompts_per_step))
        reasons.append(f"{steps} steps: at most {config.epochs} passes over {len(rows)} rows")
    if micro is None:
        micro, reason = choose_micro_batch(config, model)
        reasons.append(reason)
    if processes > 1:
        micro = math.gcd(micro, batch // processes)
        reasons.append(f"{processes} processes: {batch // processes} of these completions in each")
    if rate is None:
        rate, reason = choose_learning_rate(config, model)
        reasons.append(reason)
    room = model.context - model.prompt_tokens if model and model.context else math.inf
    if (config.max_completion_tokens or 0) > room:
        check_context(model.prompt_tokens if rows else 0, model.context, config_base(config))
        reasons.append(
            f"WARNING: the longest prompt has {model.prompt_tokens} tokens, the model was made for "
            f"{model.context}: set max_completion_tokens to {max(room, 1)} or less"
        )
    seen = min(len(held_out), config.eval_rows)
    validations = 1 + -(-steps // config.eval_every) if seen and config.eval_every else 0
    return Plan(
        method=config.method,
        rows=len(rows),
        held_out_rows=seen,
        prompts_per_step=config.prompts_per_step,
        answers_per_prompt=config.answers_per_prompt if grpo else 1,
        batch=batch,  # completions an optimiser step learns from
        micro_batch=micro,  # completions a forward and backward pass
        accumulation=batch // micro,  # passes a step
        generation_batch=batch if grpo else 0,  # completions sampled at a time, each used once
        steps=steps,  # optimiser steps at most
        completions=steps * batch if grpo else 0,  # drawn for training in all of them
        passes=round(steps * config.prompts_per_step / max(len(rows), 1), 2),
        validations=validations,  # the one before step 1 among them
        validation_answers=seen * config.eval_samples if validations else 0,
        learning_rate=rate,  # of the LoRA weights, after three steps
        max_completion_tokens=config.max_completion_tokens,
        shared_prompts=False,  # does the update read a prompt once for all its completions?
        reasons=reasons,  # a sentence for each automatic choice
    )


def check_context(longest: int, context: int | None, base: str) -> None:
    """UserError where a prompt of so many tokens leaves the model no room for an answer. On other
    rows than the demo's, the embedded models only show that the parts fit."""
    if context and longest >= context and not is_embedded(base):
        fault = f"the longest prompt has {longest} tokens, the model was made for {context}"
        raise UserError(f"{fault}: shorten the prompts or take another model")


def plan_card(config: RunConfig, rows: list, held_out: list, gpu: str) -> Plan:
    """make_plan's, and what the run takes on a card: GB by part, whether that fits, else the
    nearest settings that do; seconds a step, hours, dollars."""
    card, model = memory.find_card(gpu), measure_model(config, rows, held_out)
    if model is None:
        known = f"a folder or one of {', '.join(memory.known('models'))}"
        raise UserError(f'model "{config.model}": no config.json, expected {known}')
    limit, group = config.max_completion_tokens or USUAL_TOKENS[1], config.answers_per_prompt

    def planned(**changes: Any) -> Plan:
        now = config.model_copy(update={"max_completion_tokens": limit} | changes)
        plan = make_plan(now, rows, held_out, replace(model, config=now, card=card))
        form = now, model.prompt_tokens, plan.max_completion_tokens, plan.micro_batch
        parts = memory.parts(model.architecture, *form)
        sampling, update = memory.seconds(model.architecture, *form, card)
        if config.engine != "unsloth":  # then the sampler takes no more than it has room for
            room = memory.USABLE * card.memory * 1e9 - parts["weights"] - parts["adapter"]
            cache, least = parts["KV cache"], parts["KV cache"] / now.prompts_per_step
            parts["KV cache"] = min(cache, max(least, GPU_ROOM * room))
            sampling *= math.ceil(cache / parts["KV cache"])
        sampled = plan.steps + plan.validations * plan.validation_answers / plan.batch
        plan.prompt_tokens = model.prompt_tokens
        plan.prompts = "measured" if rows and model.context else "estimated"
        plan.memory_gb = {name: size / 1e9 for name, size in parts.items()}
        plan.gpu, plan.card_gb, plan.peak_gb = gpu, card.memory, memory.peak(parts) / 1e9
        plan.fits, plan.nearest = plan.peak_gb <= memory.USABLE * card.memory, {}
        plan.seconds_a_step = sampling + update
        plan.hours = (sampled * sampling + plan.steps * update) / 3600
        plan.usd, plan.price = plan.hours * card.usd, card.quoted
        return plan

    plan, changes, half = planned(), {"micro_batch": None}, {"max_completion_tokens": limit // 2}
    ways = {}, {"load_in_4bit": True}, half, {"answers_per_prompt": max(2, group // 2)}
    for way in () if plan.fits else ways:  # what costs a run least comes first
        changes |= way
        if (other := planned(**changes)).fits:
            plan.nearest = changes | {"micro_batch": other.micro_batch}
            break
    return plan


def choose_learning_rate(config: RunConfig, model: Measured | None) -> tuple[float, str]:
    """The wider a model, the smaller the step."""
    tiny = model is not None and model.architecture.hidden_size < TINY_WIDTH
    rate = (TINY_RATES if tiny else USUAL_RATES)[config.method]
    kind = "tiny width, measured on the mini" if tiny else "usual width, from Unsloth's guide"
    return rate, f"learning_rate {rate:g}: {kind}; three times that if nothing moves"


def choose_micro_batch(config: RunConfig, model: Measured | None) -> tuple[int, str]:
    """The largest divisor of the batch, or of a process's share of it, that the memory holds."""
    batch = config.batch // process()[1]
    if model is None:
        return batch, f"micro_batch {batch}, the whole batch: the model's size is not known"
    answer, usable = model.memory(config.max_completion_tokens or OTHER_TOKENS)
    fitting = [n for n in range(1, batch + 1) if batch % n == 0 and n * answer <= usable]
    chosen = max(fitting, default=1)
    return chosen, (
        f"micro_batch {chosen}, {batch // chosen} passes a step: {answer / 1e6:.0f} MB an answer, "
        f"{usable / 1e9:.1f} GB may be used{'' if fitting else '; even that may not fit'}"
    )


def measure_model(config: RunConfig, rows: list[dict], held_out: list[dict]) -> Measured | None:
    """From config and tokenizer, without weights; out of the hub's reach from models/cards.json;
    None where loading the model will say why.
    UserError where the chat template does not write a row's messages."""
    from transformers import AutoConfig

    base = config_base(config)
    try:
        architecture = AutoConfig.from_pretrained(**hub_place(base)).get_text_config()
        tokenizer = load_tokenizer(base)
    except (OSError, ValueError):
        name = config.model.rpartition("/")[2].lower()
        near = [m for n, m in memory.known("models").items() if name.startswith(n.lower())]
        # 24 letters a message for its frame.
        letters = [sum(24 + len(str(m.get("content"))) for m in row["messages"]) for row in rows]
        longest = max(letters, default=3 * USUAL_TOKENS[0]) // 3
        return Measured(near[0], longest, config=config) if near else None
    kwargs = config.chat_template_kwargs or {}
    policy = LocalPolicy(None, tokenizer, config.model, chat_template_kwargs=kwargs)
    policy.render_all(map(Prompt, rows))
    policy.render_all(map(Prompt, held_out), name="held-out row")
    context = getattr(architecture, "max_position_embeddings", None)
    if not rows:
        return Measured(architecture, USUAL_TOKENS[0], context, config=config)
    some = rows[:: -(-len(rows) // PROMPTS_MEASURED)]
    longest = max(map(len, policy.encode(list(map(Prompt, some)))))
    notes = prompt_notes(policy, rows)
    return Measured(architecture, longest, context, notes, config=config)


def run_order(rows: int, steps: int, prompts_per_step: int, seed: int) -> list[int]:
    """The row of every prompt of the whole run. (TRL's own sampler starts anew when a run is
    resumed in a later pass.)"""
    return list(islice(row_order(rows, Settings(seed=seed)), steps * prompts_per_step))
