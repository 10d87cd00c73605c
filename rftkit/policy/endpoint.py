"""A model behind an OpenAI-compatible endpoint: vLLM, Ollama, a provider."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from rftkit.data.records import Sample, SamplingConfig
from rftkit.policy.protocol import Messages, Policy, Progress


@dataclass
class EndpointPolicy(Policy):
    """A model behind an OpenAI-compatible endpoint; failed calls give samples with "error"."""

    model: str
    name: str
    base_url: str | None = None
    workers: int = 8

    def sample(
        self,
        prompts: list[Messages],
        n: int = 1,
        config: SamplingConfig | None = None,
        progress: Progress | None = None,
    ) -> list[list[Sample]]:
        """See Policy.sample; `progress` hears of each answer."""
        from concurrent.futures import ThreadPoolExecutor

        config = config or SamplingConfig()
        client = self.client()

        def one(job: tuple[int, int]) -> Sample:
            sample = self.ask(client, prompts[job[0]], job[1], config)
            if progress:
                progress(1)
            return sample

        jobs = [(p, i) for p in range(len(prompts)) for i in range(n)]
        with ThreadPoolExecutor(self.workers) as pool:
            flat = list(pool.map(one, jobs))
        return [flat[p * n : (p + 1) * n] for p in range(len(prompts))]

    def client(self) -> Any:
        import openai

        key = os.environ.get("OPENAI_API_KEY", "none")
        return openai.OpenAI(base_url=self.base_url, api_key=key, max_retries=4, timeout=120)

    def ask(self, client: Any, messages: Messages, index: int, config: SamplingConfig) -> Sample:
        import openai

        began, extra = time.perf_counter(), {}
        if config.prefill:
            messages = [*messages, {"role": "assistant", "content": config.prefill}]
            extra = {"add_generation_prompt": False, "continue_final_message": True}
        known = dict(model=self.name, index=index, seed=config.seed)
        try:
            reply = client.chat.completions.create(
                model=self.model,
                messages=messages,
                temperature=config.temperature,
                top_p=config.top_p,
                max_tokens=config.max_new_tokens,
                seed=config.seed + index,
                stop=config.stop or None,
                extra_body=extra or None,
            )
        except openai.OpenAIError as error:
            errors = [f"{type(error).__name__}: {error}"[:300]]
            return Sample(finish_reason="error", errors=errors, **known)
        choice, usage = reply.choices[0], reply.usage
        return Sample.from_text(
            config.prefill + (choice.message.content or ""),
            finish_reason="length" if choice.finish_reason == "length" else "stop",
            prompt_tokens=usage.prompt_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
            seconds=round(time.perf_counter() - began, 6),
            **known,
        )
