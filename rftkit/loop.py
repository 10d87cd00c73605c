"""GRPO in one file: sample, grade, advantage, ratio, clip, KL, loss, step, validate, log.

    python -m rftkit.loop                     # the embedded mini on gene ranking, about a minute
    python -m rftkit.loop --steps 20 --seed 1 --json

Plain torch with PEFT's LoRA adapter. Tensor names end in their shape: P prompts, G completions per
prompt (a group), N = P * G completions, L tokens in the longest completion.

`rftkit.train` adds config files, checkpoints and resuming, early stopping, the best adapter, the
gate, watchdogs, failed grades, batches larger than memory, and mixed precision.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rftkit.decoding import decode
from rftkit.environment import set_seed
from rftkit.evaluation import row_values
from rftkit.packing import token_logprobs
from rftkit.policy import LocalPolicy, Prompt, load_model, merged_adapter, model_folder
from rftkit.records import Sample, SamplingConfig
from rftkit.task import Task, load_task

VALIDATION_SEED = 12_345  # the same random numbers at every validation


@dataclass(frozen=True)
class Settings:
    """The demo's settings. The learning rate suits a model of a million parameters."""

    model: str = "embedded:mini"
    task: str = "gene_ranking"
    steps: int = 40
    prompts: int = 8  # P
    group: int = 8  # G
    updates: int = 1  # optimizer steps per batch; clipping has no effect on the first
    learning_rate: float = 2e-3
    warmup: int = 3
    clip: float = 0.2
    beta: float = 0.04  # weight of the KL term
    temperature: float = 1.0
    max_tokens: int = 64
    lora_rank: int = 4
    validate_every: int = 10
    seed: int = 0


def grpo(settings: Settings) -> Iterator[tuple[dict[str, Any], list[list[Sample]]]]:
    """Train; yield each step's log record and graded samples[P][G]. Step 0 only validates."""
    import torch
    from peft import LoraConfig, get_peft_model

    P, G = settings.prompts, settings.group
    set_seed(settings.seed)
    task = load_task(settings.task)
    rows = task.rows("train")
    base, tokenizer, *_ = load_model(model_folder(settings.model)[0], "transformers")
    r = settings.lora_rank
    lora = LoraConfig(r=r, lora_alpha=r, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, lora)
    policy = LocalPolicy(model, tokenizer, settings.model)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, weight_decay=0.0)
    order = row_order(len(rows), settings)
    if settings.validate_every:
        yield {"step": 0, "validation": validate(policy, task, settings)}, []

    for step in range(1, settings.steps + 1):
        start = time.perf_counter()
        # 1. Sample a group of completions for each prompt from the current policy.
        batch_P = [rows[next(order)] for _ in range(P)]
        prompts_P = policy.encode(list(map(Prompt, batch_P)))
        sampling = SamplingConfig(
            temperature=settings.temperature,
            max_new_tokens=settings.max_tokens,
            seed=settings.seed * 100_003 + step,
        )
        with merged_adapter(model) as merged:
            decoded_N = decode(merged, tokenizer, prompts_P, G, sampling, range(P))
        completions_N = [tokens for tokens, _ in decoded_N]
        prompts_N = [prompt for prompt in prompts_P for _ in range(G)]

        # 2. Grade: one reward for each whole completion.
        samples_N = [
            Sample.from_text(tokenizer.decode(tokens, skip_special_tokens=True), finish_reason=end)
            for tokens, end in decoded_N
        ]
        samples_P_G = [samples_N[p * G : (p + 1) * G] for p in range(P)]
        task.grade(batch_P, samples_P_G)
        rewards_P_G = torch.tensor([[s.grade for s in group] for group in samples_P_G])

        # 3. Advantage: reward minus the group's mean, divided by the group's standard deviation.
        centred_P_G = rewards_P_G - rewards_P_G.mean(1, keepdim=True)
        advantages_P_G = centred_P_G / (rewards_P_G.std(1, keepdim=True) + 1e-4)
        advantages_N_1 = advantages_P_G.view(-1, 1).to(model.device)

        # 4. Reference log-probabilities: the base model, with the adapter disabled.
        with torch.no_grad(), model.disable_adapter():
            reference_N_L, _ = token_logprobs(model, prompts_N, completions_N, settings.temperature)
        lengths_N = torch.tensor([len(tokens) for tokens in completions_N], device=model.device)
        mask_N_L = torch.arange(max(lengths_N), device=model.device) < lengths_N[:, None]

        # 5. Ratio, clip, KL, loss and optimizer step.
        old_N_L = None
        for _ in range(settings.updates):
            logprobs_N_L, entropy_N_L = token_logprobs(
                model, prompts_N, completions_N, settings.temperature, entropy=True
            )
            old_N_L = logprobs_N_L.detach() if old_N_L is None else old_N_L
            losses_N_L, kl_N_L = token_losses(
                logprobs_N_L, old_N_L, reference_N_L, advantages_N_1, settings
            )
            loss = mean_token(losses_N_L, mask_N_L)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(trainable, 1.0)
            warmup = min(1.0, (step - 1) / settings.warmup)
            optimizer.param_groups[0]["lr"] = settings.learning_rate * warmup
            optimizer.step()
            optimizer.zero_grad()

        # 6. Log, and validate on held-out rows.
        record = {
            "step": step,
            "reward_mean": rewards_P_G.mean().item(),
            "reward_std": rewards_P_G.std().item(),
            "dead_groups": (rewards_P_G.std(1) < 1e-6).float().mean().item(),
            "completion_tokens": lengths_N.float().mean().item(),
            "truncated": sum(reason == "length" for _, reason in decoded_N) / len(decoded_N),
            "entropy": mean_token(entropy_N_L, mask_N_L).item(),
            "kl": mean_token(kl_N_L, mask_N_L).item(),
            "grad_norm": norm.item(),
            "loss": loss.item(),
            "seconds": time.perf_counter() - start,
        }
        every = settings.validate_every
        if every and (step % every == 0 or step == settings.steps):
            record["validation"] = validate(policy, task, settings)
        yield record, samples_P_G


def token_losses(logprobs_N_L, old_N_L, reference_N_L, advantages_N_1, settings: Settings):
    """Return (loss, KL to the reference) per token, both (N, L)."""
    import torch

    ratio = (logprobs_N_L - old_N_L).exp()  # 1 at the first update, but with a gradient
    clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
    surrogate = torch.min(ratio * advantages_N_1, clipped * advantages_N_1)
    log_ratio = reference_N_L - logprobs_N_L
    kl = log_ratio.exp() - log_ratio - 1  # Schulman's k3 estimator: unbiased, never negative
    # The old policy sampled the tokens: the ratio reweights the KL term to the current policy.
    return settings.beta * ratio * kl - surrogate, kl


def mean_token(values_N_L, mask_N_L):
    """Mean over all tokens of the batch, as in DAPO; `rftkit.train` and TRL do the same."""
    return (values_N_L * mask_N_L).sum() / mask_N_L.sum()


def row_order(count: int, settings: Settings) -> Iterator[int]:
    """Yield row indices forever; each pass over the rows is shuffled anew."""
    import torch

    generator = torch.Generator().manual_seed(settings.seed)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


def validate(policy: LocalPolicy, task: Task, settings: Settings) -> float:
    """The task's headline metric: mean over two samples per validation row at temperature 1."""
    rows = task.rows("validation")
    sampling = SamplingConfig(max_new_tokens=settings.max_tokens, seed=VALIDATION_SEED)
    samples = policy.sample(list(map(Prompt, rows)), 2, sampling)
    task.grade(rows, samples)
    return float(row_values(task.headline, task, rows, samples).mean())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rftkit.loop")
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--json", action="store_true", help="end with a JSON summary line")
    arguments = parser.parse_args()
    start, scores = time.perf_counter(), []
    for record, _ in grpo(Settings(steps=arguments.steps, seed=arguments.seed)):
        print("  ".join(f"{k} {v:.3f}" if k != "step" else f"{k} {v}" for k, v in record.items()))
        if "validation" in record:
            scores.append(record["validation"])
    if arguments.json:
        seconds = round(time.perf_counter() - start, 1)
        print(json.dumps({"start": scores[0], "end": scores[-1], "seconds": seconds}))


if __name__ == "__main__":
    main()
