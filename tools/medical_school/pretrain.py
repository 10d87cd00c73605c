"""Pretrain the tiny base models from scratch, on text that the project generates.

    python -m tools.medical_school.pretrain --size mini --seed 0 --out runs/mini-0

Qwen3 architecture, one thread a process, fixed steps, one seed: the same command on the same
machine gives the same weights (another processor may round otherwise and give others). Every 100
steps it measures on VALIDATION genes whether the next token is the disease after "Diagnose first.
Diseases:", and the gene after the right disease was named.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from rftkit.files import write_text
from tools.medical_school.corpus import (
    GOOD_PLAN,
    OPEN_LIST,
    PLAN_REQUESTS,
    STAGES,
    Pieces,
    build_tokenizer,
    document,
    encode,
    plan_deck,
    prompt,
)
from tools.medical_school.world import World, build_world, cases, question

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


def name_tokens(world: World, tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """Which tokens name a disease or a gene: a bool for each of the vocabulary."""
    names = [name for d in world.diseases for name in (f" {d.name}", d.gene)]
    found = torch.zeros(len(tokenizer), dtype=torch.bool)
    found[[ids[0] for ids in tokenizer(names, add_special_tokens=False).input_ids]] = True
    return found


def document_losses(
    model: Qwen3ForCausalLM, encoded: list, pad: int, names: torch.Tensor
) -> torch.Tensor:
    """The weighted loss of each document, in nats: shape (documents,).

    Where a disease or a gene is learned, the probability of those that the document has named
    already is a loss of its own, whatever the token weighs: no list names one twice.

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
    # Without bf16 instructions the CPU emulates them, which takes ten times as long as float32.
    fast = torch.cpu.get_capabilities().get("avx512_bf16", False)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast):
        states = model.model(input_ids=ids[:, :-1], use_cache=False)[0]
        logits = model.lm_head(states[learned]).float()
    goal, (owner, place) = ids[:, 1:][learned], learned.nonzero().unbind(1)
    loss = cross_entropy(logits, goal, reduction="none") * weight[:, 1:][learned]
    listed = names[goal]
    before = ids[owner[listed]]
    again = names[before] & (torch.arange(longest) <= place[listed, None])
    repeated = (logits[listed].softmax(-1).gather(1, before) * again).sum(1)
    loss[listed] -= torch.log1p(-repeated.clamp(max=0.999))
    return torch.zeros(len(encoded)).index_add(0, owner, loss)


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
        self.named = [
            f"{head} {disease.name}, {filler}.</think>{OPEN_LIST}"
            for head, disease in zip(self.heads, own)
        ]
        self.diseases = [f" {disease.name}" for disease in own]
        self.genes = [disease.gene for disease in own]

    def __call__(self, model: Qwen3ForCausalLM) -> dict[str, float]:
        model.eval()
        disease = next_token_rate(model, self.tokenizer, self.heads, self.diseases)
        gene = next_token_rate(model, self.tokenizer, self.named, self.genes)
        model.train()
        return {"disease": round(disease, 3), "gene": round(gene, 3)}


def learning_rate(step: int, total: int, peak: float) -> float:
    """Linear warm-up, flat, then a linear fall over the last 40 % of the steps."""
    return peak * min(step / WARM_UP, (total - step + 1) / (0.4 * total), 1)


def train_step(
    model, optimizer, tokenizer, names: torch.Tensor, drawn: list, losses: dict[str, list]
) -> tuple:
    """One update on a batch of (kind, document) -> (gradient norm, tokens read).

    The loss of each document is appended to `losses` under its kind.
    """
    encoded = encode(tokenizer, [pieces for _, pieces in drawn])
    order = sorted(range(len(drawn)), key=lambda i: len(encoded[i][0]))
    third, tokens = len(order) // 3, 0
    for part in (order[:third], order[third:]):  # the short ones apart: less padding
        loss = document_losses(model, [encoded[i] for i in part], tokenizer.pad_token_id, names)
        (loss.sum() / len(drawn)).backward()
        tokens += sum(len(encoded[i][0]) for i in part)
        for i, value in zip(part, loss.tolist()):
            losses.setdefault(drawn[i][0], []).append(value)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP).item()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm, tokens


def draw(
    world: World, stage: str, rng: random.Random, plans: Iterator[str], requests: float
) -> list[tuple[str, Pieces]]:
    """A batch of (kind, document)."""
    drawn = []
    for kind, number in STAGES[stage].items():
        for _ in range(number):
            plan = {"plan": next(plans), "requests": requests} if kind == "mixed" else {}
            drawn.append((kind, document(world, kind, rng, **plan)))
    return drawn


def pretrain(
    out: str | Path,
    size: str = "mini",
    seed: int = 0,
    steps: tuple[int, int] | None = None,
    world: World | None = None,
    threads: int = 1,
    requests: float = PLAN_REQUESTS,
) -> dict[str, Any]:
    """Pretrain one base model into folder `out` and return its record (pretraining.json).

    steps     of the two stages; the size's own by default
    threads   1 keeps a run repeatable beside others; 2 is quicker for the large model
    requests  share of the mixed prompts that name a plan (0 for the study in docs/)
    """
    torch.set_num_threads(threads)
    world = world or build_world()
    tokenizer = build_tokenizer(world)
    names, model = name_tokens(world, tokenizer), build_model(size, tokenizer, seed).train()
    *_, peak, default_steps = SIZES[size]
    steps = steps or default_steps
    total = sum(steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    rng, plans = random.Random(seed), plan_deck(random.Random(f"plans-{seed}"))
    probe, history, tokens, started = Probe(world, tokenizer), [], 0, time.time()
    losses: dict[str, list[float]] = {}
    for step in tqdm(range(1, total + 1), desc=f"{size} seed {seed}"):
        optimizer.param_groups[0]["lr"] = learning_rate(step, total, peak)
        drawn = draw(world, "hops" if step <= steps[0] else "cases", rng, plans, requests)
        norm, read = train_step(model, optimizer, tokenizer, names, drawn, losses)
        tokens += read
        if step % EVERY == 0 or step == total:
            entry = {"step": step, "seconds": round(time.time() - started, 1), "tokens": tokens}
            entry |= {"gradient_norm": round(norm, 2), **probe(model)}
            entry["loss"] = {k: round(sum(v) / len(v), 3) for k, v in losses.items()}
            history.append(entry)
            losses = {}
            tqdm.write(json.dumps(entry))
    record = {
        "size": size,
        "seed": seed,
        "steps": list(steps),
        "requests": requests,
        "world": world.seed,
        "terms": len(world.terms),
        "genes": len(world.diseases),
        "parameters": sum(p.numel() for p in model.parameters()),
        "batch": BATCH,
        "peak_learning_rate": peak,
        "threads": threads,
        "tokens": tokens,
        "seconds": history[-1]["seconds"],
        "history": history,
    }
    # bf16 on disk: half the size, and what the gates and every user load (fp32 in use).
    model.eval().to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    write_text(Path(out) / "pretraining.json", json.dumps(record, indent=1) + "\n")
    return record


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="mini", choices=SIZES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the model")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    pretrain(given.out, given.size, given.seed, threads=given.threads)
