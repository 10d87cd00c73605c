"""What a run takes on a graphics card: bytes and seconds, from the model's config.

weights      2 bytes a number (4 on a CPU); in 4 bits .5625 in the layers (NF4, a scale for 64)
adapter      16 bytes a number of LoRA on each linear layer: fp32, its gradient, Adam's two moments
KV cache     keys and values of all completions of a step, and four fp32 tables to draw tokens from
activations  what a layer keeps for its backward pass, counted as in Korthikanti et al. 2022 (arXiv
             2205.05198, section 4.1), here for a gated MLP, grouped heads and LoRA, and without
             attention scores, which SDPA does not keep. In 16 bits norms and the adapter's inputs
             keep wider copies. Unsloth checkpoints: a layer's input each, and one whole layer.
logits       fp32 over a completion, three times: with a gradient, and for log-probabilities;
             Unsloth cuts them in chunks: of one completion at a time

Sampling and update take turns: the peak has the larger of the two. Seconds by the roofline
(Williams et al. 2009): a sampled token reads weights and cache, or waits for Python; the update
does 2 operations a weight and token forward, 2 backward (frozen weights have no gradient), 2 for
the reference of a KL term, 2 where Unsloth checkpoints.
"""

from types import SimpleNamespace
from typing import Any

from rftkit.decoding import widths
from rftkit.files import MODELS, UserError, read_json
from rftkit.training.config import RunConfig

USABLE = 0.9  # of a card's memory; the rest is CUDA's own, or lies in pieces
# Of the peak: an H200 copied at 4.3 of 4.8 TB/s; Korthikanti et al. train at 42 to 56 %.
BANDWIDTH_SHARE, OPERATIONS_SHARE = 0.8, 0.4
# A layer and token when sampling waits for Python: by Qwen's speeds with transformers on an H20
# (qwen.readthedocs.io) .60 ms for each of Qwen3 0.6B to 32B; with LoRA 1.3 times (on the mini).
WAIT_SECONDS = 0.6e-3 * 1.3


def known(kind: str) -> dict[str, SimpleNamespace]:
    """The "cards" or "models" of models/cards.json, by name."""
    records = read_json(MODELS / "cards.json")[kind]
    return {name: SimpleNamespace(**record) for name, record in records.items()}


def find_card(name: str | None) -> SimpleNamespace:
    if (card := known("cards").get(str(name).lower())) is None:
        raise UserError(f"--gpu {name}: not known, expected one of {', '.join(known('cards'))}")
    return card


def sizes(model: Any) -> tuple[int, int, int, int, int, int]:
    """(hidden, inner, width of queries, of keys, experts, experts that a token passes)"""
    inner = getattr(model, "intermediate_size", None) or 4 * model.hidden_size
    experts = getattr(model, "num_local_experts", None) or 1
    active = getattr(model, "num_experts_per_tok", None) or 1
    return model.hidden_size, inner, *widths(model), experts, active


def parts(
    model: Any, config: RunConfig, prompt: int, completion: int, micro: int = 1, number: int = 2
) -> dict[str, float]:
    """Bytes by part, of passes of `micro` completions; a number has `number` bytes."""
    hidden, inner, queries, keys, experts, active = sizes(model)
    tokens, layers = prompt + completion, model.num_hidden_layers
    layer = 2 * hidden * (queries + keys) + 3 * hidden * inner * experts
    heads = 1 if getattr(model, "tie_word_embeddings", True) else 2
    linear = 0.5625 if config.load_in_4bit else number
    adapter = 4 * hidden + 2 * (queries + keys)  # in + out; fused experts get no LoRA
    adapter += 3 * (hidden + inner) if experts == 1 else 0
    wide, wider = (9, 5) if number == 2 else (6, 3)
    kept = 4 * inner * active + wide * hidden + wider * (queries + keys) + 7 * config.lora_rank
    unsloth = config.engine == "unsloth"
    kept = layers * hidden + kept if unsloth else layers * kept
    cache = 2 * layers * keys * number * tokens + 16 * model.vocab_size
    return {
        "weights": linear * layers * layer + number * heads * hidden * model.vocab_size,
        "adapter": 16 * config.lora_rank * layers * adapter,
        "KV cache": cache * config.batch,
        "activations": micro * tokens * kept * number,
        "logits": 12 * completion * model.vocab_size * (1 if unsloth else micro),
    }


def peak(held: dict[str, float]) -> float:
    update = held["activations"] + held["logits"]
    return held["weights"] + held["adapter"] + max(held["KV cache"], update)


def seconds(
    model: Any, config: RunConfig, prompt: int, completion: int, micro: int, card: SimpleNamespace
) -> tuple[float, float]:
    """(sampling, update) of a step whose completions all have `completion` tokens."""
    hidden, inner, queries, keys, _, active = sizes(model)
    held, layers = parts(model, config, prompt, completion), model.num_hidden_layers
    read = (held["weights"] + held["KV cache"] / 2) / (card.bandwidth * 1e9 * BANDWIDTH_SHARE)
    passed = hidden * (2 * (queries + keys) + 3 * inner * active) * layers
    operations = 4 + 2 * (config.beta > 0) + 2 * (config.engine == "unsloth")
    operations *= (passed + hidden * model.vocab_size) * config.batch * (prompt + completion)
    update = operations / (card.operations * 1e12 * OPERATIONS_SHARE)
    wait = layers * WAIT_SECONDS
    return completion * max(wait, read), max(update, config.batch // micro * 4 * wait)
