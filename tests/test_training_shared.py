"""TRL's trainer with shared prompts: its loss and gradients, from one copy of each prompt."""

import pytest
import torch

from rftkit.training.trainer import shared_prompts_trainer, sharing_pays

PROMPTS, GROUP, WIDTH = 2, 3, 6


def made_trainer(kind, mini, adapted, folder, loss_type, beta):
    from datasets import Dataset
    from trl import GRPOConfig

    return kind(
        model=adapted,
        processing_class=mini.tokenizer,
        reward_funcs=lambda completions, **rest: [0.0] * len(completions),
        train_dataset=Dataset.from_list([{"prompt": "a"}] * 8),
        args=GRPOConfig(
            output_dir=str(folder), loss_type=loss_type, beta=beta, num_generations=GROUP,
            per_device_train_batch_size=PROMPTS * GROUP, use_cpu=True, report_to=[],
            temperature=0.7, max_completion_length=WIDTH,
        ),
    )  # fmt: skip


def batch_of_trl():
    """As TRL hands it over: prompts padded left, completions right, the rows in any order."""
    torch.manual_seed(1)
    count, width = PROMPTS * GROUP, 24
    prompts = torch.randint(10, 1000, (PROMPTS, width)).repeat(GROUP, 1)
    prompt_mask = torch.ones_like(prompts)
    prompt_mask[::2, :4] = 0  # the first prompt is shorter
    lengths = torch.tensor([3, 5, 1, 4, 2, 5])[:, None]  # none has the whole width
    return {
        "prompt_ids": prompts,
        "prompt_mask": prompt_mask,
        "completion_ids": torch.randint(10, 1000, (count, WIDTH)),
        "completion_mask": (torch.arange(WIDTH) < lengths).long(),
        "advantages": torch.randn(count),
        "old_per_token_logps": torch.randn(count, WIDTH) * 0.3 - 7,
        "num_items_in_batch": lengths.sum(),
    }


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_loss_and_gradients_are_trls(mini, adapted, tmp_path, monkeypatch, loss_type, beta):
    from trl import GRPOTrainer

    calls = []
    from rftkit.training import trainer as shared

    packed = shared.token_logprobs
    monkeypatch.setattr(
        shared, "token_logprobs", lambda *given: calls.append(given) or packed(*given)
    )
    batch, found = batch_of_trl(), {}
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    for kind in (GRPOTrainer, shared_prompts_trainer()):
        trainer = made_trainer(kind, mini, adapted, tmp_path, loss_type, beta)
        trainer.current_gradient_accumulation_steps = 1
        if "ref" in adapted.peft_config:  # TRL's copy of the adapter
            adapted.delete_adapter("ref")
        with torch.no_grad(), adapted.disable_adapter():
            reference, nothing, _ = trainer._get_per_token_logps_and_entropies(
                adapted, ids, mask, WIDTH, batch_size=4
            )
        assert nothing is None
        inputs = batch | {"ref_per_token_logps": reference}
        adapted.zero_grad()
        loss = trainer._compute_loss(adapted, inputs)
        loss.backward()
        learned = [p.grad.flatten() for p in adapted.parameters() if p.requires_grad]
        entropy = trainer._metrics["train"]["entropy"][-1]
        keep = batch["completion_mask"]
        found[kind] = (reference * keep, loss.detach(), torch.cat(learned), entropy)
    (reference, loss, gradient, entropy), other = found.values()
    assert (reference - other[0]).abs().max() < 1e-4 and abs(entropy - other[3]) < 1e-4
    assert abs(loss - other[1]) < 1e-5 and gradient.norm() > 0
    assert (gradient - other[2]).norm() < 1e-5 * gradient.norm()
    assert len(calls) == 2  # two of the reference's last chunk have nothing to share


def test_long_completions_are_not_read_side_by_side():
    def pays(prompt, completion, group, hidden):
        prompts = [[0] * prompt] * group
        return sharing_pays(prompts, [[1] * completion] * group, hidden)

    assert pays(70, 30, 8, 128) and pays(140, 8, 8, 128) and pays(300, 60, 8, 128)
    assert not pays(100, 2_000, 8, 1024) and pays(2_000, 100, 8, 1024)
    assert not pays(100, 100, 1, 128)  # nothing to share
