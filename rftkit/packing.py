"""Shared prompts: the log-probabilities of many completions, each prompt read once.

GRPO draws G completions of a prompt, and the usual update reads G copies of that prompt. Here a
prompt stands once in a row with its completions beside it. A 4-D attention mask lets each of them
see the prompt and itself, and positions start anew after the prompt:

    tokens     p p p p a a a b b        columns a sees: p and a; b sees: p and b
    positions  0 1 2 3 4 5 6 4 5

Up to rounding, loss and gradients are those of the copied form. The same idea with a kernel of its
own: Prefix Grouper, arXiv:2506.05433.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import compress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Tokens = Sequence[int]
PADDING, PROMPT = -1, 0  # the first completion of a row is block 1


def reason_to_copy(model: Any) -> str:
    """Why this model cannot share prompts, "" where it can: its attention must take a 4-D mask."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config.get_text_config()
    attention = getattr(config, "_attn_implementation", None)
    layers = getattr(config, "layer_types", None)
    window = layers is None and getattr(config, "sliding_window", None)
    parameters = inspect.signature(base.forward).parameters
    if "unsloth" in inspect.unwrap(type(base).forward).__module__:
        return "Unsloth's kernels take no 4-D mask"
    if attention not in ("sdpa", "eager"):
        return f"the attention is {attention}, not sdpa or eager"
    if window or set(layers or ()) - {"full_attention"} or getattr(base, "_is_stateful", False):
        return "some layers do not attend to all that stands before a token"
    if not {"attention_mask", "position_ids", "logits_to_keep"} <= set(parameters):
        return f"{type(base).__name__}.forward takes no position_ids or no logits_to_keep"
    if getattr(config, "output_router_logits", False):
        return "its load-balance loss needs the copied form"
    return ""


def pack(prompts: Sequence[Tokens], completions: Sequence[Tokens]) -> tuple:
    """(ids_P_T, positions_P_T, sees_P_T_T, kept, places) of P rows, one for each distinct prompt;
    completions[i] answers prompts[i], in any order.

    sees    does the query (second axis) see the key (third)?
    kept    the last `kept` columns give all logits that are needed
    places  (5, tokens): a token's completion, its number in it, its row, the kept column that
            predicts it, and the token
    """
    import torch

    groups: dict[tuple[int, ...], list[int]] = {}
    for number, prompt in enumerate(prompts):
        groups.setdefault(tuple(prompt), []).append(number)
    before = max(map(len, groups))
    after = max(sum(len(completions[i]) for i in group) for group in groups.values())
    ids, positions, blocks, places = [], [], [], []
    for row, (prompt, group) in enumerate(groups.items()):
        # Padded on the left, so that all prompts end in one column: it predicts first tokens.
        left, length, column = before - len(prompt), len(prompt), 1
        row_ids = [0] * left + list(prompt)
        row_positions = [0] * left + list(range(length))
        row_blocks = [PADDING] * left + [PROMPT] * length
        for block, number in enumerate(group, PROMPT + 1):
            size = len(completions[number])
            row_ids += completions[number]
            row_positions += range(length, length + size)
            row_blocks += [block] * size
            for token, target in enumerate(completions[number]):
                places.append((number, token, row, column + token - 1 if token else 0, target))
            column += size
        right = before + after - len(row_ids)
        ids.append(row_ids + [0] * right)
        positions.append(row_positions + [0] * right)
        blocks.append(row_blocks + [PADDING] * right)
    blocks_P_T = torch.tensor(blocks)
    same = blocks_P_T[:, :, None] == blocks_P_T[:, None, :]
    sees_P_T_T = (same | (blocks_P_T == PROMPT)[:, None, :]).tril()
    places = torch.tensor(places, dtype=torch.long).view(-1, 5).T
    return torch.tensor(ids), torch.tensor(positions), sees_P_T_T, after + 1, places


def attention_mask(sees: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is added to the attention scores: 0 where a query sees a key, else the lowest number."""
    import torch

    lowest = torch.finfo(dtype).min
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, lowest)


def token_logprobs(
    model: Any,
    prompts: Sequence[Tokens],
    completions: Sequence[Tokens],
    temperature: float = 1.0,
    entropy: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(log-probabilities, entropies or None) of the completions' tokens, each (N, longest), with
    zeros after a completion's end. Entropies carry no gradient. Of the model `reason_to_copy` must
    be ""; the reference is the same in disable_adapter()."""
    import torch

    ids_P_T, positions_P_T, sees_P_T_T, kept, places = pack(prompts, completions)
    first = next(model.parameters())  # of a DDP wrapper, too, which has no dtype
    device = first.device
    logits = model(
        input_ids=ids_P_T.to(device),
        attention_mask=attention_mask(sees_P_T_T[:, None].to(device), first.dtype),
        position_ids=positions_P_T.to(device),
        logits_to_keep=kept,
        use_cache=False,
    ).logits.float()
    logits = logits if temperature == 1.0 else logits / temperature
    completion, token, row, column, target = places.to(device)
    normaliser = logits.logsumexp(-1)
    values = [logits[row, column, target] - normaliser[row, column]]
    if entropy:
        with torch.no_grad():
            probability = (logits - normaliser[..., None]).exp_()
            values.append((normaliser - (probability * logits).sum(-1))[row, column])
    shape = (len(completions), max(map(len, completions)))
    tables = [x.new_zeros(shape).index_put((completion, token), x) for x in values]
    return tables[0], tables[1] if entropy else None


def rows_apart(ids: torch.Tensor, mask: torch.Tensor, width: int) -> tuple[list, list]:
    """TRL's padded batch as lists without padding: (prompts, completions, of `width` columns)."""
    pairs = list(zip(ids.tolist(), mask.bool().tolist()))
    prompts = [list(compress(row[:-width], seen[:-width])) for row, seen in pairs]
    return prompts, [list(compress(row[-width:], seen[-width:])) for row, seen in pairs]
