"""Shared prompts give the copied form's numbers, and models that cannot share are told apart."""

from types import SimpleNamespace

import pytest

from rftkit.packing import pack, reason_to_copy, rows_apart, token_logprobs


@pytest.fixture(scope="module")
def batch():
    """Prompts of three lengths, completions of 0 to 9 tokens, groups not side by side."""
    import torch

    torch.manual_seed(1)
    prompts = [torch.randint(10, 1000, (n,)).tolist() for n in (12, 5, 17)] * 4
    sizes = [3, 9, 1, 0, 4, 7, 2, 2, 5, 6, 8, 3]
    return prompts, [torch.randint(10, 1000, (n,)).tolist() for n in sizes]


def one_by_one(model, prompts, completions, temperature):
    """The same numbers from one unpadded row for each completion."""
    import torch

    tables = torch.zeros(2, len(completions), max(map(len, completions)))
    for number, (prompt, completion) in enumerate(zip(prompts, completions)):
        if completion:
            ids = torch.tensor([[*prompt, *completion]])
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1] / temperature
            log = logits.log_softmax(-1)
            tables[0, number, : len(log)] = log.gather(1, ids[0, len(prompt) :, None])[:, 0]
            tables[1, number, : len(log)] = -(log.exp() * log).sum(-1).detach()
    return tables


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_shared_prompts_equal_copied_prompts(adapted, batch, attention, temperature):
    import torch

    adapted.set_attn_implementation(attention)
    logprobs, entropies = token_logprobs(adapted, *batch, temperature, entropy=True)
    expected, expected_entropies = one_by_one(adapted, *batch, temperature)
    assert (logprobs - expected).abs().max() < 1e-4
    assert (entropies - expected_entropies).abs().max() < 1e-4
    weights, gradients = torch.randn(expected.shape), []
    for numbers in (logprobs, expected):
        learned = [p for p in adapted.parameters() if p.requires_grad]
        parts = torch.autograd.grad((weights * numbers).sum(), learned)
        gradients.append(torch.cat([part.flatten() for part in parts]))
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[1].norm()


def test_each_prompt_stands_in_one_row():
    ids, positions, sees, *_ = pack([[5, 6], [7, 8, 9], [5, 6]], [[1, 2], [3], [4]])
    assert ids.tolist() == [[0, 5, 6, 1, 2, 4], [7, 8, 9, 3, 0, 0]]
    assert positions.tolist() == [[0, 0, 1, 2, 3, 2], [0, 1, 2, 3, 0, 0]]
    sees = sees[0].int().tolist()
    assert sees[4] == [0, 1, 1, 1, 1, 0]  # the first completion's second token
    assert sees[5] == [0, 1, 1, 0, 0, 1]  # the second completion sees nothing of the first


def test_a_padded_batch_comes_apart():
    import torch

    ids = torch.tensor([[0, 5, 6, 7, 1], [3, 4, 8, 0, 0]])
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert rows_apart(ids, mask, 3) == ([[5], [3, 4]], [[6, 7, 1], [8]])


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({}, ""),
        ({"_attn_implementation": "flash_attention_2"}, "flash_attention_2"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "attend"),
        ({"layer_types": None, "sliding_window": 4096}, "attend"),
        ({"output_router_logits": True}, "load-balance"),
    ],
)
def test_only_attention_that_takes_a_mask_shares(mini, changes, reason):
    values = vars(mini.model.config) | {"_attn_implementation": "sdpa"} | changes
    config = SimpleNamespace(**values)
    config.get_text_config = lambda: config
    model = type(mini.model).__new__(type(mini.model))
    vars(model).update(vars(mini.model) | {"config": config})
    assert reason in reason_to_copy(model) and bool(reason) == bool(reason_to_copy(model))


def test_unsloths_own_forward_copies(mini, monkeypatch):
    def forward(self, input_ids, attention_mask, position_ids, logits_to_keep):
        """As Unsloth puts it in."""

    forward.__module__ = "unsloth.models.llama"
    monkeypatch.setattr(type(mini.model), "forward", forward)
    assert "Unsloth" in reason_to_copy(mini.model)
