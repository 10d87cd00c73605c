"""Pretrain the tiny base models from scratch, on text that the project generates.

    python -m tools.medical_school.pretrain --size mini --seed 0 --out runs/mini-0

Qwen3 architecture, one thread a process, fixed steps, one seed: the same command on the same
machine gives the same weights (another processor may round otherwise and give others). Every 100
steps it measures on VALIDATION genes whether the next token is the disease after "Diagnose first.
Diseases:", and the gene after the right disease was named. A killed run goes on from its last
checkpoint when the command is repeated.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tools.medical_school.corpus import (
    GOOD_PLAN,
    OPEN_LIST,
    PLAN_REQUESTS,
    STAGES,
    build_tokenizer,
    document,
    encode,
    plan_deck,
    prompt,
)
from tools.medical_school.world import WORLD_SEED, World, build_world, cases, question

# width, layers, heads, feed-forward width, peak learning rate, steps of both stages
SIZES = {
    "tiny": (32, 2, 2, 64, 4e-3, (60, 60)),  # for tests of the pretraining itself
    "small": (64, 3, 4, 192, 3e-3, (220, 340)),  # for the study of plan names in docs/
    "mini": (128, 3, 4, 384, 2e-3, (220, 340)),
    "large": (256, 3, 8, 768, 1.5e-3, (450, 650)),  # a larger model needs its steps, as in life
}
BATCH, WARM_UP, CLIP, EVERY = 96, 50, 1.0, 100


def build_model(size: str, tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """A Qwen3 with random weights in one of SIZES."""
    width, layers, heads, inner, *_ = SIZES[size]
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        max_position_embeddings=256,
        rope_theta=10_000.0,
        tie_word_embeddings=False,
        use_cache=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def document_losses(model: Qwen3ForCausalLM, encoded: list, pad: int) -> torch.Tensor:
    """The weighted loss of each document, in nats: shape (documents,).

    Padding is on the right, so a causal model needs no mask; logits are made only where a token
    is learned, which saves most of the output layer.
    """
    longest = max(len(tokens) for tokens, _ in encoded)
    ids = torch.full((len(encoded), longest), pad)
    weight = torch.zeros((len(encoded), longest))
    for i, (tokens, weights) in enumerate(encoded):
        ids[i, : len(tokens)] = torch.tensor(tokens)
        weight[i, : len(weights)] = torch.tensor(weights)
    learned = weight[:, 1:] > 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = model.model(input_ids=ids[:, :-1], use_cache=False)[0]
        logits = model.lm_head(states[learned])
    loss = cross_entropy(logits.float(), ids[:, 1:][learned], reduction="none")
    owner = learned.nonzero()[:, 0]
    return torch.zeros(len(encoded)).index_add(0, owner, loss * weight[:, 1:][learned])


@torch.no_grad()
def next_token_rate(model, tokenizer, texts: list[str], wanted: list[str]) -> float:
    """Share of texts whose single most likely next token is the (first token of the) wanted."""
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    logits = model(**batch, logits_to_keep=1).logits[:, -1]
    goal = [ids[0] for ids in tokenizer(wanted, add_special_tokens=False).input_ids]
    return (logits.argmax(-1) == torch.tensor(goal)).float().mean().item()


class Probe:
    """Two rates on validation genes: signs -> disease, and disease -> gene."""

    def __init__(self, world: World, tokenizer: PreTrainedTokenizerFast, number: int = 480):
        self.tokenizer = tokenizer
        chosen = cases(world, "validation", number, seed=1)
        own = [world.diseases[case.disease] for case in chosen]
        self.heads = [
            f"{prompt(question(world, case))}<think>{GOOD_PLAN} Diseases:" for case in chosen
        ]
        filler = ", ".join(d.name for d in world.diseases[:4])
        self.told = [
            f"{head} {disease.name}, {filler}.</think>{OPEN_LIST}"
            for head, disease in zip(self.heads, own)
        ]
        self.diseases = [f" {disease.name}" for disease in own]
        self.genes = [disease.gene for disease in own]

    def __call__(self, model: Qwen3ForCausalLM) -> dict[str, float]:
        model.eval()
        disease = next_token_rate(model, self.tokenizer, self.heads, self.diseases)
        gene = next_token_rate(model, self.tokenizer, self.told, self.genes)
        model.train()
        return {"disease": round(disease, 3), "gene": round(gene, 3)}


def learning_rate(step: int, total: int, peak: float) -> float:
    """Linear warm-up, flat, then a linear fall over the last 40 % of the steps."""
    return peak * min(step / WARM_UP, (total - step + 1) / (0.4 * total), 1)


def train_step(model, optimizer, tokenizer, drawn: list, sums: dict[str, list]) -> tuple:
    """One update on a batch of (kind, document) -> (gradient norm, tokens read)."""
    encoded = encode(tokenizer, [pieces for _, pieces in drawn])
    order = sorted(range(len(drawn)), key=lambda i: len(encoded[i][0]))
    third, tokens = len(order) // 3, 0
    for part in (order[:third], order[third:]):  # the short ones apart: less padding
        losses = document_losses(model, [encoded[i] for i in part], tokenizer.pad_token_id)
        (losses.sum() / len(drawn)).backward()
        tokens += sum(len(encoded[i][0]) for i in part)
        for i, loss in zip(part, losses.tolist()):
            sums.setdefault(drawn[i][0], []).append(loss)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP).item()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm, tokens


def pretrain(
    out: str | Path,
    size: str = "mini",
    seed: int = 0,
    steps: tuple[int, int] | None = None,
    world: World | None = None,
    threads: int = 1,
    requests: float = PLAN_REQUESTS,
    quiet: bool = False,
) -> dict[str, Any]:
    """Pretrain one base model into folder `out` and return its record (pretraining.json).

    steps     of the two stages; the size's own by default
    threads   1 keeps a run repeatable beside others; 2 is quicker for the large model
    requests  share of the mixed prompts that name a plan (0 for the study in docs/)
    """
    torch.set_num_threads(threads)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    world = world or build_world()
    tokenizer = build_tokenizer(world)
    rng = random.Random(seed)
    model = build_model(size, tokenizer, seed)
    peak, steps = SIZES[size][4], steps or SIZES[size][5]
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    probe, total = Probe(world, tokenizer), sum(steps)
    state = {"step": 0, "tokens": 0, "seconds": 0.0, "history": [], "plans": 0}
    settings = dict(size=size, seed=seed, steps=list(steps), requests=requests)
    settings |= dict(world=world.seed, terms=len(world.terms), genes=len(world.diseases))
    checkpoint = out / "pretraining.pt"
    plans = plan_deck(random.Random(f"plans-{seed}"))
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=False)
        if saved["settings"] != settings:
            raise ValueError(f"{out} holds a run with other settings: {saved['settings']}")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        rng.setstate(saved["rng"])
        state = saved["state"]
        next(itertools.islice(plans, state["plans"], state["plans"]), None)
    model.train()
    sums: dict[str, list] = {}
    started = time.time() - state["seconds"]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), disable=quiet) as progress:
        bar = progress.add_task(f"{size} seed {seed}", total=total, completed=state["step"])
        for step in range(state["step"] + 1, total + 1):
            optimizer.param_groups[0]["lr"] = learning_rate(step, total, peak)
            share = STAGES["hops" if step <= steps[0] else "cases"]
            drawn = []
            for kind in share:
                for _ in range(share[kind]):
                    extra = {}
                    if kind == "mixed":
                        extra = {"plan": next(plans), "requests": requests}
                        state["plans"] += 1
                    drawn.append((kind, document(world, kind, rng, **extra)))
            norm, tokens = train_step(model, optimizer, tokenizer, drawn, sums)
            state.update(step=step, tokens=state["tokens"] + tokens)
            state["seconds"] = round(time.time() - started, 1)
            progress.update(bar, completed=step)
            if step % EVERY == 0 or step == total:
                record = {k: state[k] for k in ("step", "seconds", "tokens")}
                record |= {"gradient_norm": round(norm, 2), **probe(model)}
                record["loss"] = {k: round(sum(v) / len(v), 3) for k, v in sums.items()}
                state["history"].append(record)
                sums = {}
                progress.console.print(json.dumps(record), soft_wrap=True)
                save = dict(settings=settings, state=state, rng=rng.getstate())
                save |= dict(model=model.state_dict(), optimizer=optimizer.state_dict())
                torch.save(save, checkpoint.with_suffix(".writing"))
                os.replace(checkpoint.with_suffix(".writing"), checkpoint)
    record = settings | {
        "parameters": sum(p.numel() for p in model.parameters()),
        "batch": BATCH,
        "peak_learning_rate": peak,
        "threads": threads,
        **{k: state[k] for k in ("tokens", "seconds", "history")},
    }
    save_model(model.eval(), tokenizer, out, record)
    checkpoint.unlink(missing_ok=True)
    return record


def save_model(model, tokenizer, out: Path, record: dict[str, Any]) -> None:
    """bf16 on disk: half the size, and what the gates and every user load (fp32 in use)."""
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "pretraining.json").write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parse.add_argument("--size", default="mini", choices=SIZES)
    parse.add_argument("--seed", type=int, default=0)
    parse.add_argument("--out", required=True, help="folder for the model")
    parse.add_argument("--steps", type=int, nargs=2, help="of the two stages")
    parse.add_argument("--world", type=int, default=WORLD_SEED, help="seed of the world")
    parse.add_argument("--genes", type=int, default=240)
    parse.add_argument("--terms", type=int, default=200)
    parse.add_argument("--threads", type=int, default=1)
    parse.add_argument("--requests", type=float, default=PLAN_REQUESTS)
    given = parse.parse_args()
    world = build_world(given.world, given.terms, given.genes)
    steps = tuple(given.steps) if given.steps else None
    pretrain(given.out, given.size, given.seed, steps, world, given.threads, given.requests)


if __name__ == "__main__":
    main()
