"""A model that answers prompts: in this process, or behind an OpenAI-compatible endpoint.

policy = load_policy("embedded:mini")
samples = policy.sample([[{"role": "user", "content": "…"}]], n=2)
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from rftkit.decoding import decode
from rftkit.environment import choose_device
from rftkit.files import UserError, embedded_model, read_json
from rftkit.records import Sample, SamplingConfig

Messages = list[dict[str, Any]]  # one prompt: [{"role": "user", "content": "..."}, ...]
Progress = Callable[[int], None] | None  # called with the number of completions just finished
Config = SamplingConfig | None


class Policy(Protocol):
    """Anything that answers prompts."""

    name: str

    def sample(
        self, prompts: list[Messages], n: int = 1, config: Config = None, progress: Progress = None
    ) -> list[list[Sample]]:
        """n completions of each prompt: samples[p][i], in the order of the prompts.

        A completion that never came has finish_reason "error" and says why in `errors`.
        """
        ...


@dataclass
class LocalPolicy(Policy):
    """A model in this process with its tokenizer."""

    model: Any
    tokenizer: Any
    name: str
    engine: str = "transformers"
    reason: str = ""  # for the choice of engine, device and dtype
    batch_size: int = 512  # completions drawn side by side

    def render(self, messages: Messages | str, prefill: str = "") -> str:
        """The text that the model reads: the chat template, then the prefill."""
        if not isinstance(messages, str):
            form = dict(tokenize=False, add_generation_prompt=True)
            messages = self.tokenizer.apply_chat_template(messages, **form)
        return messages + prefill

    def encode(self, prompts: Sequence[Messages | str], prefill: str = "") -> list[list[int]]:
        """The token ids that the model reads, one list a prompt."""
        texts = [self.render(messages, prefill) for messages in prompts]
        return self.tokenizer(texts, add_special_tokens=False).input_ids

    def sample(
        self, prompts: list[Messages], n: int = 1, config: Config = None, progress: Progress = None
    ) -> list[list[Sample]]:
        """See Policy.sample; `progress` is called after each batch."""
        config = config or SamplingConfig()
        encoded = self.encode(prompts, config.prefill)
        samples: list[list[Sample]] = [[] for _ in prompts]
        # Prompts of like length side by side: less padding.
        order = sorted(range(len(prompts)), key=lambda p: len(encoded[p]))
        width = max(1, self.batch_size // n)
        with merged_adapter(self.model) as model:
            for start in range(0, len(order), width):
                batch = order[start : start + width]
                began = time.perf_counter()
                ids = [encoded[p] for p in batch]
                completions = decode(model, self.tokenizer, ids, n, config, batch)
                seconds = (time.perf_counter() - began) / len(completions)
                for i, (tokens, reason) in enumerate(completions):
                    p = batch[i // n]
                    text = self.tokenizer.decode(tokens, skip_special_tokens=True)
                    sample = Sample.from_text(
                        config.prefill + text,
                        model=self.name,
                        index=i % n,
                        seed=config.seed,
                        finish_reason=reason,
                        prompt_tokens=len(encoded[p]),
                        completion_tokens=len(tokens),
                        seconds=round(seconds, 6),
                    )
                    samples[p].append(sample)
                if progress:
                    progress(len(completions))
        return samples


SMALL = 50_000_000  # parameters under which an adapter is merged while sampling


@contextlib.contextmanager
def merged_adapter(model: Any) -> Iterator[Any]:
    """The model to sample: a small one has its adapter merged into the base for that time.

    An adapter doubles the number of modules a token passes, which is most of a tiny model's time.
    Afterwards the very same base weights are put back (subtracting would leave rounding behind).
    Large models are sampled through their adapter, as they are.
    """
    import torch

    small = hasattr(model, "merge_adapter") and sum(p.numel() for p in model.parameters()) < SMALL
    if not small or any(getattr(m, "merged", False) for m in model.modules()):
        yield model
        return
    base = {name: p for name, p in model.named_parameters() if "base_layer" in name}
    kept = {name: p.detach().clone() for name, p in base.items()}
    model.merge_adapter()
    try:
        yield model.get_base_model()
    finally:
        model.unmerge_adapter()
        with torch.no_grad():
            for name, parameter in base.items():
                parameter.copy_(kept[name])


@dataclass
class EndpointPolicy(Policy):
    """A model behind an OpenAI-compatible endpoint: vLLM, Ollama, a provider."""

    model: str
    name: str
    base_url: str | None = None
    workers: int = 8

    def sample(
        self, prompts: list[Messages], n: int = 1, config: Config = None, progress: Progress = None
    ) -> list[list[Sample]]:
        """See Policy.sample; `progress` is called after each completion."""
        import openai

        config = config or SamplingConfig()
        key = os.environ.get("OPENAI_API_KEY", "none")
        client = openai.OpenAI(base_url=self.base_url, api_key=key, max_retries=4, timeout=120)

        def one(number: int) -> Sample:
            sample = self.ask(client, prompts[number // n], number % n, config)
            if progress:
                progress(1)
            return sample

        with ThreadPoolExecutor(self.workers) as pool:
            flat = list(pool.map(one, range(len(prompts) * n)))
        return [flat[p * n : (p + 1) * n] for p in range(len(prompts))]

    def ask(self, client: Any, messages: Messages, index: int, config: SamplingConfig) -> Sample:
        import openai

        began, extra = time.perf_counter(), None
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
                extra_body=extra,
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


def load_policy(
    model: str, engine: str = "auto", adapter: str | None = None, name: str | None = None
) -> Policy:
    """Load a model for sampling: what model_folder takes, or "endpoint:NAME" for a model behind the
    OpenAI-compatible endpoint of OPENAI_BASE_URL and OPENAI_API_KEY."""
    if model.startswith("endpoint:"):
        return EndpointPolicy(model.removeprefix("endpoint:"), name=name or model)
    base, own_adapter = model_folder(model)
    loaded, tokenizer, engine, reason = load_model(base, engine)
    if adapter or own_adapter:
        loaded = load_adapter(loaded, adapter or own_adapter)
    return LocalPolicy(loaded.eval(), tokenizer, name or model, engine, reason)


def model_folder(model: str) -> tuple[str, str | None]:
    """What a user calls a model: (where the base is, where the adapter is or None).

    "embedded:mini", a folder with a model, a folder with an adapter, a run folder, a hub name.
    """
    if model.startswith("embedded:"):
        return str(embedded_model(model.removeprefix("embedded:"))), None
    path = Path(model)
    if (path / "adapter" / "adapter_config.json").exists():
        path = path / "adapter"
    config = path / "adapter_config.json"
    if config.exists():
        record = read_json(config)
        base = record.get("base_model_name_or_path") if isinstance(record, dict) else None
        if not isinstance(base, str) or not base:
            missing = 'no "base_model_name_or_path", expected the model it was made for'
            raise UserError(f"{config}: {missing}: write its name there, such as embedded:mini")
        return model_folder(base)[0], str(path)
    # An unfinished run's folder has a config.json too: its RunConfig.
    if path.exists() and "model_type" not in read_json(path / "config.json"):
        raise UserError(f"{path}: not a model, an adapter or a finished run: name one of these")
    return model, None


def check_weights(folder: str | Path) -> None:
    """Raise UserError where a folder's weight files are missing or cut short. Reads their headers
    alone, so that it can come before a long evaluation."""
    from safetensors import SafetensorError, safe_open

    folder = Path(folder)
    if (folder / "adapter_config.json").exists() and not any(folder.glob("adapter_model.*")):
        raise UserError(f"{folder}: no adapter_model.safetensors: copy it there or name another")
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(str(file), framework="numpy"):
                pass
        except (OSError, SafetensorError) as error:
            cut = f"{file}: no whole safetensors file ({error})"
            raise UserError(f"{cut}: copy it again, or take another checkpoint") from None


def load_model(base: str, engine: str = "auto") -> tuple[Any, Any, str, str]:
    """(model, tokenizer, engine, reason): fp32 on a CPU, bf16 on a GPU that has it."""
    device, dtype, reason = choose_device()
    engine, why = choose_engine(engine, device)
    check_weights(base)
    try:
        if engine == "unsloth":
            import unsloth  # it patches trl, transformers and peft, and must come before them
            import torch  # isort: skip

            model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
                base, dtype=getattr(torch, dtype), load_in_4bit=False, max_seq_length=1024
            )
        else:
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer
            from transformers.utils import logging

            logging.disable_progress_bar()  # a bar for each weight file says nothing here
            tokenizer = AutoTokenizer.from_pretrained(base)
            model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
            model = model.to(device)
    except (OSError, ValueError) as error:  # ValueError: no such architecture, a broken tokenizer
        cause = f'model: "{base}" could not be loaded ({str(error).splitlines()[0]})'
        raise UserError(f"{cause}: check its name, and HF_HUB_OFFLINE") from None
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return model, tokenizer, engine, f"{why}; {reason}"


def choose_engine(engine: str, device: str) -> tuple[str, str]:
    """("transformers" or "unsloth", the reason). `auto` takes Unsloth on a GPU that has it."""
    if engine not in ("auto", "transformers", "unsloth"):
        raise UserError(f'engine: "{engine}", expected auto, transformers or unsloth')
    early = [m for m in ("trl", "peft") if m in sys.modules and "unsloth" not in sys.modules]
    if engine == "auto":
        if device != "cuda":
            return "transformers", "no CUDA GPU: transformers + PEFT"
        if find_spec("unsloth") and not early:
            return "unsloth", "a CUDA GPU is here and Unsloth is installed"
        return "transformers", "Unsloth is not installed, or came too late: transformers + PEFT"
    if engine == "unsloth" and early:
        cause = f"engine: unsloth after {' and '.join(early)}, which it patches"
        raise UserError(f"{cause}: start a new process (restart the kernel) and load it first")
    return engine, "asked for"


def load_adapter(model: Any, adapter: str) -> Any:
    """The model with a PEFT adapter on it; UserError where the two do not fit."""
    from peft import PeftModel

    check_weights(adapter)
    try:
        return PeftModel.from_pretrained(model, adapter)
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        cause = f"{adapter}: could not be loaded ({type(error).__name__}: {str(error)[:200]})"
        raise UserError(f"{cause}, expected an adapter of this base: name another") from None
