"""A model behind an OpenAI-compatible endpoint: vLLM, Ollama, a provider."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rftkit.environment import choose_device
from rftkit.files import UserError, embedded_model
from rftkit.records import Sample, SamplingConfig

if TYPE_CHECKING:
    import torch


# ------------------------------------------------------------------------------------------
# from rftkit.policy.protocol:
# What every policy promises, wherever its model runs.

Messages = list[dict[str, Any]]  # one prompt: [{"role": "user", "content": "..."}, ...]
Progress = Callable[[int], None]  # hears how many answers have just been finished


class Policy(Protocol):
    """Anything that answers prompts."""

    name: str

    def sample(
        self,
        prompts: list[Messages],
        n: int = 1,
        config: SamplingConfig | None = None,
        progress: Progress | None = None,
    ) -> list[list[Sample]]:
        """n answers to each prompt: samples[p][i], in the order of the prompts.

        config    temperature, top_p, longest answer, stop texts, seed (None: the defaults, T = 1)
        progress  called as answers are finished, with their number; the numbers add up to P * n

        An answer that never came has finish_reason "error" and says why in `errors`.
        """
        ...


# ------------------------------------------------------------------------------------------
# from rftkit.policy.decoding:
# Decoding: one batch of prompts in, n completions of each out. One file and no kernels.
#
# Left padding, a KV cache that each prompt fills once however many answers it gets, rows leaving
# the batch as they finish. Every answer draws from random numbers of its own, fixed by (seed,
# prompt
# number, answer number): so two models that are asked the same questions meet the same luck, and
# neither batch size nor neighbours change an answer.


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


# ------------------------------------------------------------------------------------------
# from rftkit.policy.local:
# A model in this process: its prompts rendered, batched and decoded.

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

    def encode(self, prompts: list[Messages], prefill: str = "") -> list[list[int]]:
        """The token ids that the model reads, one list a prompt."""
        texts = [self.render(messages, prefill) for messages in prompts]
        return self.tokenizer(texts, add_special_tokens=False).input_ids

    def sample(
        self,
        prompts: list[Messages],
        n: int = 1,
        config: SamplingConfig | None = None,
        progress: Progress | None = None,
    ) -> list[list[Sample]]:
        """See Policy.sample; `progress` hears of each batch."""
        config = config or SamplingConfig()
        encoded = self.encode(prompts, config.prefill)
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


# ------------------------------------------------------------------------------------------
# from rftkit.policy.endpoint:
# A model behind an OpenAI-compatible endpoint: vLLM, Ollama, a provider.


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


# ------------------------------------------------------------------------------------------
# from rftkit.policy.loading:
# From what a user calls a model to a policy: which engine, which folder, which adapter.


def choose_engine(engine: str, device: str) -> tuple[str, str]:
    """("transformers" or "unsloth", the reason). `auto` takes Unsloth on a GPU that has it."""
    if engine == "auto":
        import importlib.util

        found = importlib.util.find_spec("unsloth") is not None
        if device == "cuda" and found and "trl" not in sys.modules:
            return "unsloth", "a CUDA GPU is here and Unsloth is installed"
        why = "no CUDA GPU" if device != "cuda" else "Unsloth is not installed"
        return "transformers", f"{why}: transformers + PEFT"
    if engine not in ("transformers", "unsloth"):
        raise UserError(
            f'engine: "{engine}", expected auto, transformers or unsloth: leave it at auto'
        )
    if engine == "unsloth" and "unsloth" not in sys.modules:
        early = [name for name in ("trl", "peft") if name in sys.modules]
        if early:
            raise UserError(
                f"engine: unsloth was asked for after {' and '.join(early)} had been imported, "
                "expected to come first, since it patches them at import: start a new process "
                "(restart the kernel) and load with engine='unsloth' before anything else"
            )
    return engine, "asked for"


def model_folder(model: str) -> tuple[str, str | None]:
    """What a user calls a model -> (where the base is, where the adapter is or None).

    "embedded:mini", a folder with a model, a folder with an adapter, a run folder, a hub name.
    """
    if model.startswith("embedded:"):
        return str(embedded_model(model.removeprefix("embedded:"))), None
    path = Path(model)
    if (path / "adapter" / "adapter_config.json").exists():
        path = path / "adapter"
    if (path / "adapter_config.json").exists():
        return model_folder(adapter_base(path / "adapter_config.json"))[0], str(path)
    if path.exists() and not is_model_config(path / "config.json"):
        raise UserError(
            f"{model}: no adapter_config.json there and no config.json of a model, expected a "
            "model, an adapter or a finished run's folder: name one of these"
        )
    return model, None


def adapter_base(file: Path) -> str:
    """The base that an adapter names in its adapter_config.json.

    Raises UserError for a file that is torn, or names none, or names the adapter itself.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file}: cannot be read ({error}), expected PEFT's JSON: take this file from a whole "
            "copy of the adapter"
        ) from None
    base = record.get("base_model_name_or_path") if isinstance(record, dict) else None
    if not isinstance(base, str) or not base:
        raise UserError(
            f'{file}: no "base_model_name_or_path", expected the model that the adapter was made '
            "for: write its name there, such as embedded:mini"
        )
    if Path(base).resolve() in (file.parent.resolve(), file.parent.parent.resolve()):
        raise UserError(
            f'{file}: "base_model_name_or_path" is the adapter itself, expected the model that it '
            "was made for: write its name there"
        )
    return base


def check_weights(folder: str | Path) -> None:
    """Raise UserError where a local model's or adapter's weight files are missing or cut short.

    Reads the files' headers alone, so that it can come before a long evaluation.
    """
    from safetensors import SafetensorError, safe_open

    place = Path(folder)
    weights = ("adapter_model.safetensors", "adapter_model.bin")
    is_adapter = (place / "adapter_config.json").exists()
    if is_adapter and not any((place / name).is_file() for name in weights):
        raise UserError(
            f"{place}: no {weights[0]}, expected the adapter's weights beside its "
            "adapter_config.json: copy the file there, or name another checkpoint of the run"
        )
    for file in sorted(place.glob("*.safetensors")):
        try:
            with safe_open(str(file), framework="numpy"):
                pass
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{file}: no whole safetensors file ({error}), expected a model's weights: "
                "copy or download it again, or take another checkpoint"
            ) from None


def is_model_config(path: Path) -> bool:
    """Is this config.json a model's? An unfinished run's folder has one too: its RunConfig."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and "model_type" in record


def load_policy(
    model: str, engine: str = "auto", adapter: str | None = None, name: str | None = None
) -> Policy:
    """Load a model for sampling: see model_folder for what `model` may be.

    "endpoint:NAME" is a model behind an OpenAI-compatible endpoint, its address and key taken from
    OPENAI_BASE_URL and OPENAI_API_KEY.
    """
    if model.startswith("endpoint:"):
        return EndpointPolicy(model.removeprefix("endpoint:"), name=name or model)
    base, found = model_folder(model)
    loaded, tokenizer, engine, reason = load_model(base, engine)
    if adapter or found:
        loaded = load_adapter(loaded, adapter or found)
    return LocalPolicy(loaded.eval(), tokenizer, name or model, engine, reason)


def load_adapter(model: Any, adapter: str) -> Any:
    """The model with a PEFT adapter on it; UserError where the two do not fit."""
    from peft import PeftModel

    check_weights(adapter)
    try:
        return PeftModel.from_pretrained(model, adapter)
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(
            f"{adapter}: the adapter could not be loaded ({reason}), expected adapter_config.json "
            "and adapter_model.safetensors of one adapter, made for this base: check both files, "
            "or take another checkpoint"
        ) from None


def load_model(base: str, engine: str = "auto") -> tuple[Any, Any, str, str]:
    """(model, tokenizer, engine, reason): fp32 on a CPU, bf16 on a GPU that has it."""
    device, dtype, reason = choose_device()
    engine, why = choose_engine(engine, device)
    check_weights(base)
    try:
        if engine == "unsloth":
            return (*load_unsloth(base, dtype), engine, f"{why}; {reason}")
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()  # one bar a weight file says nothing about a small model
        tokenizer = AutoTokenizer.from_pretrained(base)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype)).to(device)
    except UserError:
        raise
    except (OSError, ValueError) as error:  # ValueError: no such architecture, a broken tokenizer
        raise UserError(
            f'model: "{base}" could not be loaded ({str(error).splitlines()[0]}), expected '
            '"embedded:mini", "embedded:large", a folder or a hub name: check its spelling, and '
            "whether this machine may reach the hub (HF_HUB_OFFLINE)"
        ) from None
    return model, prepare_tokenizer(tokenizer), engine, f"{why}; {reason}"


def load_unsloth(base: str, dtype: str) -> tuple[Any, Any]:
    import unsloth  # noqa: F401  must come before trl, transformers and peft
    import torch  # isort: skip
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        base, dtype=getattr(torch, dtype), load_in_4bit=False, max_seq_length=1024
    )
    return model, prepare_tokenizer(tokenizer)


def prepare_tokenizer(tokenizer: Any) -> Any:
    """Left padding, a pad token: what batched decoding needs."""
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.eos_token is None:
        raise UserError("tokenizer: no end token, expected eos_token: set it in its config")
    return tokenizer
