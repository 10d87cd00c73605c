"""A model in this process: its prompts rendered, batched and decoded."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rftkit.data.records import Sample, SamplingConfig
from rftkit.policy.decoding import decode
from rftkit.policy.protocol import Messages, Policy, Progress

SMALL = 50_000_000  # parameters under which an adapter is merged for the time of sampling


@dataclass
class LocalPolicy(Policy):
    """A model in this process with its tokenizer."""

    model: Any
    tokenizer: Any
    name: str
    engine: str = "transformers"
    reason: str = ""
    batch_size: int = 512  # answers drawn side by side

    def render(self, messages: Messages | str, prefill: str = "") -> str:
        """The text that the model reads: the chat template, then the words put in its mouth."""
        if isinstance(messages, str):
            return messages + prefill
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return text + prefill

    def sample(
        self,
        prompts: list[Messages],
        n: int = 1,
        config: SamplingConfig | None = None,
        progress: Progress | None = None,
    ) -> list[list[Sample]]:
        """See Policy.sample; `progress` hears of each batch."""
        config = config or SamplingConfig()
        texts = [self.render(messages, config.prefill) for messages in prompts]
        encoded = self.tokenizer(texts, add_special_tokens=False).input_ids
        samples: list[list[Sample]] = [[] for _ in prompts]
        # Prompts of like length side by side: less padding.
        order = sorted(range(len(prompts)), key=lambda p: len(encoded[p]))
        width = max(1, self.batch_size // n)
        with merged_adapter(self.model) as model:
            for start in range(0, len(order), width):
                chosen = order[start : start + width]
                began = time.perf_counter()
                completions = decode(
                    model, self.tokenizer, [encoded[p] for p in chosen], n, config, chosen
                )
                seconds = (time.perf_counter() - began) / (len(chosen) * n)
                for i, (tokens, reason) in enumerate(completions):
                    p, index = chosen[i // n], i % n
                    text = self.tokenizer.decode(tokens, skip_special_tokens=True)
                    samples[p].append(
                        Sample.from_text(
                            config.prefill + text,
                            model=self.name,
                            index=index,
                            seed=config.seed,
                            finish_reason=reason,
                            prompt_tokens=len(encoded[p]),
                            completion_tokens=len(tokens),
                            seconds=round(seconds, 6),
                        )
                    )
                if progress:
                    progress(len(completions))
        return samples


@contextlib.contextmanager
def merged_adapter(model: Any) -> Iterator[Any]:
    """For the time of sampling, a small model's adapter is added into its weights; gives the model
    to sample: the base, now that the adapter is in it.

    An adapter doubles the number of modules a token passes, which is most of a tiny model's time.
    Afterwards the very same base weights are put back (subtracting would leave rounding behind).
    Large models are sampled through their adapter, as they are.
    """
    small = hasattr(model, "merge_adapter") and sum(p.numel() for p in model.parameters()) < SMALL
    if not small or any(getattr(m, "merged", False) for m in model.modules()):
        yield model
        return
    kept = {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if "base_layer" in name
    }
    model.merge_adapter()
    try:
        yield model.get_base_model()
    finally:
        model.unmerge_adapter()
        import torch

        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in kept:
                    parameter.copy_(kept[name])
