"""Shared prompts in TRL's trainer: the update reads each prompt once for all its completions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rftkit.packing import rows_apart, token_logprobs


def shared_prompts_trainer() -> type:
    """TRL's GRPOTrainer (1.14.2) with log-probabilities from one copy of each prompt, for models
    of which `packing.reason_to_copy` is "". The numbers are TRL's own, up to rounding."""
    import torch
    from trl import GRPOTrainer

    class SharedPromptsTrainer(GRPOTrainer):
        def _get_per_token_logps_and_entropies(
            self,
            model,
            input_ids,  # (N, T): prompts padded on the left, completions on the right
            attention_mask,
            logits_to_keep,  # the width of the completions
            batch_size=None,
            compute_entropy=False,
            **others,  # of images, and the load balance of experts
        ):
            copied = super()._get_per_token_logps_and_entropies
            rows = (input_ids, attention_mask)
            if any(value is not None and value is not False for value in others.values()):
                others |= {"batch_size": batch_size, "compute_entropy": compute_entropy}
                return copied(model, *rows, logits_to_keep, **others)
            hidden = model.config.get_text_config().hidden_size
            parts = []
            for chunk in zip(*(x.split(batch_size or len(x)) for x in rows)):
                prompts, completions = rows_apart(*chunk, logits_to_keep)
                if sharing_pays(prompts, completions, hidden):
                    tables = token_logprobs(
                        model, prompts, completions, self.temperature, compute_entropy
                    )
                else:
                    tables = copied(model, *chunk, logits_to_keep, compute_entropy=compute_entropy)
                parts.append(tables[: 1 + compute_entropy])
            logprobs, *entropies = (
                torch.cat([pad(table, (0, logits_to_keep - table.shape[1])) for table in kind])
                for kind in zip(*parts)
            )
            return logprobs, entropies[0] if entropies else None, None

        def _prepare_inputs(self, generation_batch):
            with unshuffled():
                return super()._prepare_inputs(generation_batch)

    pad = torch.nn.functional.pad
    return SharedPromptsTrainer


def sharing_pays(
    prompts: Sequence[list[int]], completions: Sequence[list[int]], hidden: int
) -> bool:
    """Does it take fewer operations? A token passes about 12·h² weights a layer, and attention over
    a row of T tokens adds 2·T·h: long completions side by side cost more than copies of a prompt.
    """
    beside = Counter()  # tokens of all completions of a prompt
    for prompt, completion in zip(prompts, completions):
        beside[tuple(prompt)] += len(completion)

    def cost(rows: int, after: int) -> int:
        tokens = max(map(len, prompts)) + after
        return rows * tokens * (12 * hidden + 2 * tokens)

    copied = cost(len(prompts), max(map(len, completions)))
    return cost(len(beside), max(beside.values())) < copied


@contextmanager
def unshuffled() -> Iterator[None]:
    """TRL shuffles a batch before it is split into passes. As drawn, a group stays together, so
    that a pass shares its prompt; the gradient of the step is the same sum."""
    from trl.trainer import grpo_trainer

    shuffle = grpo_trainer.shuffle_sequence_dict
    grpo_trainer.shuffle_sequence_dict = lambda batch: batch
    try:
        yield
    finally:
        grpo_trainer.shuffle_sequence_dict = shuffle
