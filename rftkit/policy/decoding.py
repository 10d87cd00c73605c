"""Decoding: one batch of prompts in, n completions of each out. One file and no kernels.

Left padding, a KV cache that each prompt fills once however many answers it gets, rows leaving
the batch as they finish. Every answer draws from random numbers of its own, fixed by (seed, prompt
number, answer number): so two models that are asked the same questions meet the same luck, and
neither batch size nor neighbours change an answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rftkit.data.records import SamplingConfig

if TYPE_CHECKING:
    import torch


def decode(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    n: int,
    config: SamplingConfig,
    numbers: list[int],
) -> list[tuple[list[int], str]]:
    """n completions of each prompt -> [(token ids with the end token, finish reason)], P * n.

    numbers   the prompts' numbers in the whole call: they fix the random numbers
    """
    import torch

    device = next(model.parameters()).device
    ends = end_tokens(model, tokenizer)
    longest = max(len(p) for p in prompts)
    ids = torch.full((len(prompts), longest), tokenizer.pad_token_id)
    mask = torch.zeros((len(prompts), longest), dtype=torch.long)
    for i, p in enumerate(prompts):
        ids[i, longest - len(p) :] = torch.tensor(p)
        mask[i, longest - len(p) :] = 1
    luck = None if config.greedy else uniform_numbers(numbers, n, config).to(device)
    tokens: list[list[int]] = [[] for _ in range(len(prompts) * n)]
    finished = [False] * len(tokens)
    with torch.inference_mode():
        ids, mask = ids.to(device), mask.to(device)
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            use_cache=True,
            logits_to_keep=1,
        )
        cache, logits = out.past_key_values, out.logits[:, -1]
        if n > 1:  # each prompt was read once; its answers now go separate ways
            cache.batch_repeat_interleave(n)
            logits, mask = logits.repeat_interleave(n, 0), mask.repeat_interleave(n, 0)
        position, rows = mask.sum(-1, keepdim=True), list(range(len(tokens)))
        width = longest
        mask = torch.cat([mask, mask.new_ones(len(mask), config.max_new_tokens)], 1)
        seen = attended(model, mask)
        for step in range(config.max_new_tokens):
            drawn = choose(logits, config, None if luck is None else luck[:, step])
            for row, token in zip(rows, drawn.tolist()):
                if not finished[row]:
                    tokens[row].append(token)
                    finished[row] = token in ends or stopped(tokenizer, tokens[row], config.stop)
            going = [i for i, row in enumerate(rows) if not finished[row]]
            if not going or step + 1 == config.max_new_tokens:
                break
            if len(going) <= 0.8 * len(rows):  # finished rows leave, not at every single one
                rows, index = [rows[i] for i in going], torch.tensor(going, device=device)
                cache.batch_select_indices(index)
                drawn, mask, position = drawn[index], mask[index], position[index]
                luck, seen = luck if luck is None else luck[index], attended(model, mask)
            width += 1
            out = model(
                input_ids=drawn[:, None],
                attention_mask=seen[..., :width],
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
            )
            cache, logits, position = out.past_key_values, out.logits[:, -1], position + 1
    return [(row, "stop" if end else "length") for row, end in zip(tokens, finished)]


def attended(model: Any, mask: torch.Tensor) -> torch.Tensor:
    """What one new token may look at: mask (rows, width), or (rows, 1, 1, width) as booleans.

    From the first the model makes the second anew at every token, which for a tiny model is a
    tenth of the work. Where it would make something else (a sliding window, another attention, or
    nothing because no prompt is padded) it is left to do so.
    """
    settings = model.config.get_text_config()
    plain = set(getattr(settings, "layer_types", None) or [None]) == {"full_attention"}
    if plain and settings._attn_implementation == "sdpa" and not mask.all():
        return mask.bool()[:, None, None, :]
    return mask


def uniform_numbers(numbers: list[int], n: int, config: SamplingConfig) -> torch.Tensor:
    """One number in [0, 1) for each answer and token: shape (P * n, max_new_tokens)."""
    import torch

    made = []
    for number in numbers:
        for index in range(n):
            mixed = (config.seed * 1_000_003 + number) * 4_099 + index
            generator = torch.Generator().manual_seed(mixed % 2**63)
            made.append(torch.rand(config.max_new_tokens, generator=generator))
    return torch.stack(made)


def choose(logits: torch.Tensor, config: SamplingConfig, luck: torch.Tensor | None) -> torch.Tensor:
    """The next token of each row: the likeliest, or the one that the row's luck falls on.

    logits (rows, vocabulary), luck (rows,) in [0, 1) -> (rows,). A token is drawn by walking down
    the cumulative distribution, so a row's draw depends on nothing but its own logits and luck.
    """
    import torch

    if luck is None:
        return logits.argmax(-1)
    probability = torch.softmax(logits.float() / config.temperature, -1)
    if config.top_p < 1:
        ordered, order = probability.sort(-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= config.top_p
        probability = probability.masked_fill(
            torch.zeros_like(outside).scatter(-1, order, outside), 0.0
        )
    walk = probability.cumsum(-1)
    # The last sum may round to a little under 1: scale the luck to it.
    goal = luck.to(walk.device)[:, None] * walk[:, -1:]
    return torch.searchsorted(walk, goal, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Every token that ends a completion, by the tokenizer and the model's generation config."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = set(ends if isinstance(ends, list) else [ends]) | {tokenizer.eos_token_id}
    return {token for token in found if token is not None}


def stopped(tokenizer: Any, tokens: list[int], stop: list[str]) -> bool:
    return bool(stop) and any(text in tokenizer.decode(tokens) for text in stop)
