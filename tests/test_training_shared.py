"""TRL's trainer with shared prompts: its loss and gradients, from one copy of each prompt."""

import pytest
import torch

from rftkit.training import trainer

PROMPTS, GROUP, WIDTH = 2, 3, 6


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
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    calls, packed, found = [], trainer.token_logprobs, []
    count = lambda *given: calls.append(given) or packed(*given)  # noqa: E731
    monkeypatch.setattr(trainer, "token_logprobs", count)
    batch = batch_of_trl()
    ids, mask = (torch.cat([batch[f"prompt_{k}"], batch[f"completion_{k}"]], 1)
                 for k in ("ids", "mask"))  # fmt: skip
    settings = GRPOConfig(
        output_dir=str(tmp_path), loss_type=loss_type, beta=beta, num_generations=GROUP,
        per_device_train_batch_size=PROMPTS * GROUP, use_cpu=True, report_to=[],
        temperature=0.7, max_completion_length=WIDTH,
    )  # fmt: skip
    for kind in (GRPOTrainer, trainer.shared_prompts_trainer()):
        made = kind(
            model=adapted,
            processing_class=mini.tokenizer,
            reward_funcs=lambda completions, **rest: [0.0] * len(completions),
            train_dataset=Dataset.from_list([{"prompt": "a"}] * 8),
            args=settings,
        )
        made.current_gradient_accumulation_steps = 1
        if "ref" in adapted.peft_config:  # TRL's copy of the adapter
            adapted.delete_adapter("ref")
        with torch.no_grad(), adapted.disable_adapter():
            reference, nothing, _ = made._get_per_token_logps_and_entropies(
                adapted, ids, mask, WIDTH, batch_size=4
            )
        assert nothing is None
        adapted.zero_grad()
        loss = made._compute_loss(adapted, batch | {"ref_per_token_logps": reference})
        loss.backward()
        learned = [p.grad.flatten() for p in adapted.parameters() if p.requires_grad]
        entropy = made._metrics["train"]["entropy"][-1]
        reference = reference * batch["completion_mask"]
        found.append((reference, loss.detach(), torch.cat(learned), entropy))
    (reference, loss, gradient, entropy), other = found
    assert (reference - other[0]).abs().max() < 1e-4 and abs(entropy - other[3]) < 1e-4
    assert abs(loss - other[1]) < 1e-5 and gradient.norm() > 0
    assert (gradient - other[2]).norm() < 1e-5 * gradient.norm()
    assert len(calls) == 2  # two of the reference's last chunk have nothing to share


def test_long_completions_are_not_read_side_by_side():
    def pays(prompt, completion, group, hidden):
        prompts = [[0] * prompt] * group
        return trainer.sharing_pays(prompts, [[1] * completion] * group, hidden)

    assert pays(70, 30, 8, 128) and pays(140, 8, 8, 128) and pays(300, 60, 8, 128)
    assert not pays(100, 2_000, 8, 1024) and pays(2_000, 100, 8, 1024)
    assert not pays(100, 100, 1, 128)  # nothing to share
