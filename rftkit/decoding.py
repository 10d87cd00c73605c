"""Decoding: one batch of prompts in, n completions of each out. One file and no kernels.

Left padding, a KV cache that each prompt fills once however many completions it gets, rows that
leave the batch as they finish; where prompts are long, the completions of one share its row.
"""

from __future__ import annotations

import functools
import itertools
import os
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rftkit.packing import attention_mask, reason_to_copy
from rftkit.records import SamplingConfig

if TYPE_CHECKING:
    import torch

LONG_HEAD = 64  # tokens that prompts share, from which on they are read once
CPU_ROOM, GPU_ROOM = 1e9, 0.4  # for what is drawn at once: bytes; of the free memory
ROOM = 32  # tokens by which a full cache grows


def decode(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    n: int,
    config: SamplingConfig,
    numbers: Sequence[int],
) -> list[tuple[list[int], str]]:
    """n completions of each prompt: [(token ids with the end token, finish reason)], P * n.

    The uniform samples of a completion are fixed by (seed, the prompt's number, its own index): all
    models share them, and neither batch size nor neighbours change a completion.
    """
    import torch

    device = next(model.parameters()).device
    ends = end_tokens(model, tokenizer)
    width, head = max(len(p) for p in prompts), shared_head(prompts)
    ids = torch.full((len(prompts), width), tokenizer.pad_token_id)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for i, p in enumerate(prompts):  # what they share, padding, the rest
        ids[i, :head] = torch.tensor(p[:head])
        ids[i, width - len(p) + head :] = torch.tensor(p[head:])
        mask[i, :head] = mask[i, width - len(p) + head :] = 1
    uniforms = None if config.greedy else uniform_numbers(numbers, n, config).to(device)
    tokens: list[list[int]] = [[] for _ in range(len(prompts) * n)]
    finished = [False] * len(tokens)
    lanes = n if side_by_side(model, width, n, config) else 1  # completions in a row
    with torch.inference_mode():
        ids, mask = ids.to(device), mask.to(device)
        cache = None
        if head:  # read once, for all prompts
            cache = model(input_ids=ids[:1, :head], use_cache=True).past_key_values
            cache.batch_repeat_interleave(len(ids))
        out = model(
            input_ids=ids[:, head:],
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0)[:, head:],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache, logits = out.past_key_values, out.logits[:, -1].repeat_interleave(n, 0)
        if n > lanes:  # each prompt was read once; its completions now go separate ways
            cache.batch_repeat_interleave(n)
            mask = mask.repeat_interleave(n, 0)
        give_room(cache)
        position = mask.sum(-1, keepdim=True).expand(-1, lanes)
        rows = [list(range(i, i + lanes)) for i in range(0, len(tokens), lanes)]  # completions
        seen = attended(model, mask, lanes, config.max_new_tokens)
        for step in range(config.max_new_tokens):
            drawn = choose(logits, config, None if uniforms is None else uniforms[:, step])
            for i, token in zip(itertools.chain(*rows), drawn.tolist()):
                if not finished[i]:
                    tokens[i].append(token)
                    said = tokenizer.decode(tokens[i]) if config.stop else ""
                    finished[i] = token in ends or any(text in said for text in config.stop)
            going = [r for r, row in enumerate(rows) if not all(finished[i] for i in row)]
            if not going or step + 1 == config.max_new_tokens:
                break
            drawn = drawn.view(-1, lanes)
            if len(going) <= 0.8 * len(rows):  # leaving costs a copy: not at every finished row
                rows, index = [rows[r] for r in going], torch.tensor(going, device=device)
                cache.batch_select_indices(index)
                drawn, mask, position = drawn[index], mask[index], position[index]
                if uniforms is not None:
                    uniforms = uniforms.view(-1, lanes, config.max_new_tokens)[index].flatten(0, 1)
                seen = attended(model, mask, lanes, config.max_new_tokens)
            width += lanes
            out = model(
                input_ids=drawn,
                attention_mask=seen[..., :width],
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
            )
            cache, logits, position = out.past_key_values, out.logits.flatten(0, 1), position + 1
    return [(row, "stop" if end else "length") for row, end in zip(tokens, finished)]


def shared_head(prompts: Sequence[list[int]]) -> int:
    """How many first tokens all prompts share, where that saves much; one of each stays."""
    head = min(len(os.path.commonprefix(prompts)), min(map(len, prompts)) - 1)
    return head if head >= LONG_HEAD and len(prompts) > 1 else 0


def widths(config: Any) -> tuple[int, int]:
    """Numbers of a token's queries, and of its keys, in a layer of a model with this config."""
    heads = getattr(config, "num_attention_heads", None) or 1
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads * size, (getattr(config, "num_key_value_heads", None) or heads) * size


def fitting(model: Any, tokens: int) -> int:
    """Completions of so many tokens, prompt included, that are drawn at once within 1 GB, or within
    two fifths of a GPU's free memory: keys, values, and four tables as wide as the vocabulary."""
    import torch

    config, first = model.config.get_text_config(), next(model.parameters())
    cache = 2 * config.num_hidden_layers * widths(config)[1] * first.element_size()
    room = GPU_ROOM * torch.cuda.mem_get_info()[0] if first.is_cuda else CPU_ROOM
    return int(room / ((tokens + ROOM) * cache + 4 * 4 * config.vocab_size))


def side_by_side(model: Any, width: int, n: int, config: SamplingConfig) -> bool:
    """Do the completions of a prompt share a row and its cache, as in packing.py? Where the prompt
    is most of what is read: those that have ended stay until the row's last one has."""
    return n > 1 and width >= 3 * config.max_new_tokens and not reason_to_copy(model)


def attended(model: Any, mask: torch.Tensor, lanes: int, tokens: int) -> torch.Tensor:
    """The mask of the next `tokens` tokens per lane; mask (rows, width) is the prompt's.

    One lane: (rows, width + tokens), or booleans (rows, 1, 1, width + tokens), which the model
    would otherwise build at every token: a tenth of a tiny model's time. Where it would build
    something else, it does. Several: added to the scores, (rows, 1, lanes, width + lanes * tokens).
    """
    import torch

    if lanes > 1:  # each sees the prompt, and of the tokens behind it its own
        own = torch.eye(lanes, dtype=torch.bool, device=mask.device).repeat(1, tokens)
        prompt = mask.bool()[:, None, None].expand(-1, 1, lanes, -1)
        sees = torch.cat([prompt, own.expand(len(mask), 1, -1, -1)], -1)
        return attention_mask(sees, model.dtype)
    mask = torch.cat([mask, mask.new_ones(len(mask), tokens)], 1)
    config = model.config.get_text_config()
    plain = set(getattr(config, "layer_types", None) or [None]) == {"full_attention"}
    if plain and config._attn_implementation == "sdpa" and not mask.all():
        return mask.bool()[:, None, None, :]
    return mask


def give_room(cache: Any) -> None:
    """From now on the cache writes new keys and values into spare room behind the others. By itself
    it copies all of them at every token: a tenth of the time at 70 tokens, two fifths at 360."""
    from transformers.cache_utils import DynamicLayer

    def update(layer: Any, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple:
        layer.keys, layer.values = appended(layer.keys, keys), appended(layer.values, values)
        return layer.keys, layer.values

    for layer in cache.layers:
        if type(layer) is DynamicLayer:
            # A layer that held itself would keep its memory until Python collects cycles.
            layer.update = functools.partial(update, weakref.proxy(layer))


def appended(past: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """`new` behind `past` on the third of four axes; copies only where past's storage is full."""
    rows, heads, width, size = past.shape
    shape = (rows, heads, width + new.shape[2], size)
    # A view of a buffer with room: its heads lie further apart than its own width.
    if past.stride(2) == size and past.stride(1) >= shape[2] * size:
        whole = past.as_strided(shape, past.stride(), past.storage_offset())
    else:
        whole = past.new_empty(rows, heads, shape[2] + ROOM * new.shape[2], size)[:, :, : shape[2]]
        whole[:, :, :width] = past
    whole[:, :, width:] = new
    return whole


def uniform_numbers(numbers: Sequence[int], n: int, config: SamplingConfig) -> torch.Tensor:
    """A uniform sample in [0, 1) for each completion and token: (P * n, max_new_tokens)."""
    import torch

    def row(number: int, index: int) -> torch.Tensor:
        seed = ((config.seed * 1_000_003 + number) * 4_099 + index) % 2**63
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(config.max_new_tokens, generator=generator)

    return torch.stack([row(number, index) for number in numbers for index in range(n)])


def choose(
    logits: torch.Tensor, config: SamplingConfig, uniforms: torch.Tensor | None
) -> torch.Tensor:
    """The next token of each row, (rows,): the likeliest, or the one its uniform sample falls on.

    logits (rows, vocabulary), uniforms (rows,). Walking down the cumulative distribution, a row's
    token depends on nothing but its own logits and number.
    """
    import torch

    if uniforms is None:
        return logits.argmax(-1)
    probability = torch.softmax(logits.float() / config.temperature, -1)
    if config.top_p < 1:
        ordered, order = probability.sort(-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= config.top_p
        outside = torch.zeros_like(outside).scatter(-1, order, outside)
        probability = probability.masked_fill(outside, 0.0)
    cumulative = probability.cumsum(-1)
    # The last sum may round to a little under 1: scale the uniform sample to it.
    goal = uniforms.to(cumulative.device)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, goal, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Every token that ends a completion, by the tokenizer and the model's generation config."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}
