"""A model that answers prompts: in this process, or behind an OpenAI-compatible endpoint.

policy = load_policy("embedded:mini")
samples = policy.sample([[{"role": "user", "content": "…"}]], n=2)
"""

import contextlib
import json
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from rftkit.decoding import decode, fitting
from rftkit.files import UserError, read_json, shorten
from rftkit.loading import load_adapter, load_model, load_tokenizer, model_folder, run_folder
from rftkit.records import THINK_CLOSE, THINK_OPEN, Sample, SamplingConfig

Messages = list[dict[str, Any]]  # one prompt: [{"role": "user", "content": "..."}, ...]
OWN_TEMPLATE = ": take the model's own chat template, or another role"
REASONING = re.compile(r"o\d|gpt-[5-9]")  # OpenAI's, which take max_completion_tokens alone
UNKNOWN = re.compile("unsupported|not support|unrecognized|unknown|unexpected|not permitted")


class Prompt(list[dict[str, Any]]):
    """A row's messages; a policy gives the model the row's `tools` with them. `number`: which
    random numbers its samples take; by default its place among the prompts."""

    def __init__(self, row: dict[str, Any], number: int | None = None):
        super().__init__(row["messages"])
        self.tools, self.number = row.get("tools") or None, number


Progress = Callable[[int], None] | None  # called with the number of completions just finished
Config = SamplingConfig | None


@dataclass
class LocalPolicy:
    """A model in this process with its tokenizer."""

    model: Any
    tokenizer: Any
    name: str
    engine: str = "transformers"
    reason: str = ""  # for the choice of engine, device and dtype
    batch_size: int = 512  # completions drawn side by side, if the memory holds them
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)

    def known_roles(self, messages: Messages) -> Messages:
        """The messages, "developer" as "system" for a template that does not name the former."""
        if "developer" in str(self.tokenizer.chat_template):
            return messages
        return [m | {"role": "system"} if m.get("role") == "developer" else m for m in messages]

    def apply_template(self, messages: Messages, **form: Any) -> str:
        """What the chat template makes of the messages; it raises errors of its own."""
        form = {"tokenize": False, "tools": tools_of(messages)} | self.chat_template_kwargs | form
        known = json.loads(json.dumps(self.known_roles(messages)), object_hook=with_object)
        return self.tokenizer.apply_chat_template(known, **form)

    def render(self, messages: Messages | str, prefill: str = "") -> str:
        """The text that the model reads: the chat template, then the prefill. UserError where a
        message is refused, or a message or the tools are left out."""
        if isinstance(messages, str):
            return messages + prefill
        try:
            text = self.apply_template(messages, add_generation_prompt=True)
        except Exception as error:  # jinja's own errors, a ValueError where there is no template
            roles = ", ".join(str(message.get("role")) for message in messages)
            fault = f"the chat template fails on roles {roles}: {shorten(str(error), 200)}"
            raise UserError(fault + OWN_TEMPLATE) from None
        tools = tools_of(messages)
        if tools and text == self.apply_template(list(messages), add_generation_prompt=True):
            raise UserError("the chat template leaves its tools out: take a model that knows tools")
        # Earlier reasoning may be left out, and a tool's result be written as JSON.
        known = [m for m in messages if isinstance(m.get("content"), str) and m["role"] != "tool"]
        contents = [message["content"].rpartition("</think>")[2].strip() for message in known]
        for message, content in zip(known, contents):
            if content and text.count(content) < sum(other.count(content) for other in contents):
                fault = f"does not hold {content[:60]!r} ({message['role']})"
                raise UserError(f"the prompt {text[:120]!r} {fault}{OWN_TEMPLATE}")
        return text + prefill

    def render_all(self, prompts: Iterable, prefill: str = "", name: str = "row") -> list[str]:
        """What render makes of each; its error names the number of the prompt, from 1."""
        texts = []
        for number, messages in enumerate(prompts, 1):
            try:
                texts.append(self.render(messages, prefill))
            except UserError as error:
                raise UserError(f"{name} {number}: {error}") from None
        return texts

    def encode(self, prompts: Sequence[Messages | str], prefill: str = "") -> list[list[int]]:
        """The token ids that the model reads, one list a prompt."""
        texts = self.render_all(prompts, prefill)
        return self.tokenizer(texts, add_special_tokens=False).input_ids

    def read(self, prompt: str, tokens: Sequence[int], prefill: str = "") -> str:
        """The text of a completion; it begins with `<think>` where the prompt ends in it. The marks
        of gpt-oss's channels are special tokens; they stay."""
        channels = "<|channel|>" in str(self.tokenizer.chat_template)
        text = prefill + self.tokenizer.decode(tokens, skip_special_tokens=not channels)
        return THINK_OPEN + text if prompt.rstrip().endswith(THINK_OPEN) else text

    def prompts_at_once(self, encoded: list[list[int]], n: int, config: SamplingConfig) -> int:
        longest = max(map(len, encoded), default=0) + config.max_new_tokens
        return max(1, min(self.batch_size, fitting(self.model, longest)) // n)

    def sample(
        self, prompts: list[Messages], n: int = 1, config: Config = None, progress: Progress = None
    ) -> list[list[Sample]]:
        """n completions of each prompt: samples[p][i], in the order of the prompts; `progress` is
        called after each batch."""
        config = config or SamplingConfig()
        texts = self.render_all(prompts)
        encoded = self.encode(texts, config.prefill)
        samples: list[list[Sample]] = [[] for _ in prompts]
        # Prompts of like length side by side: less padding.
        order = sorted(range(len(prompts)), key=lambda p: len(encoded[p]))
        width = self.prompts_at_once(encoded, n, config)
        with merged_adapter(self.model) as model:
            for start in range(0, len(order), width):
                batch = order[start : start + width]
                began = time.perf_counter()
                ids = [encoded[p] for p in batch]
                numbers = [getattr(prompts[p], "number", None) for p in batch]
                numbers = [p if own is None else own for p, own in zip(batch, numbers)]
                completions = decode(model, self.tokenizer, ids, n, config, numbers)
                seconds = (time.perf_counter() - began) / len(completions)
                for i, (tokens, reason) in enumerate(completions):
                    p = batch[i // n]
                    sample = Sample.from_text(
                        self.read(texts[p], tokens, config.prefill),
                        tools_of(prompts[p]),
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


def tools_of(messages: Messages) -> list[dict[str, Any]] | None:
    return getattr(messages, "tools", None)


def with_object(part: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments are text in the chat API; templates expect an object (so does vLLM)."""
    text = isinstance(part.get("arguments"), str)
    return part | {"arguments": json.loads(part["arguments"])} if text else part


# Parameters under which an adapter is merged while sampling. 32 completions of 56 tokens of SmolLM2
# (135M) took 15 s with merging, 16.5 s through the adapter. bf16 would round small changes away.
SMALL, SMALL_IN_FP32 = 50_000_000, 200_000_000


@contextlib.contextmanager
def merged_adapter(model: Any) -> Iterator[Any]:
    """The model to sample: a small one has its adapter merged into the base for that time.

    An adapter doubles the modules a token passes, which is most of a tiny model's time. Afterwards
    the very same base weights are put back (subtracting would leave rounding behind).
    """
    import torch

    small = hasattr(model, "merge_adapter") and not getattr(model, "is_loaded_in_4bit", False)
    if small:
        most = SMALL_IN_FP32 if model.dtype == torch.float32 else SMALL
        small = sum(p.numel() for p in model.parameters()) < most
    if not small or any(getattr(m, "merged", False) for m in model.modules()):
        yield model
        return
    base = [p for name, p in model.named_parameters() if "base_layer" in name]
    kept = [p.detach().clone() for p in base]
    model.merge_adapter()
    try:
        yield model.get_base_model()
    finally:
        model.unmerge_adapter()
        with torch.no_grad():
            for parameter, value in zip(base, kept):
                parameter.copy_(value)


@dataclass
class EndpointPolicy:
    """A model behind an OpenAI-compatible endpoint: vLLM, Ollama, a provider."""

    model: str
    name: str
    base_url: str | None = None
    workers: int = 8
    refused: set[str] = field(default_factory=set)  # parameters that it does not take

    def parameters(self, config: SamplingConfig, seed: int) -> dict[str, Any]:
        """How to sample, without what this endpoint does not take."""
        limits = ["max_tokens", "max_completion_tokens"]
        if REASONING.match(self.model.rpartition("/")[2]):
            limits.reverse()
        limits = [name for name in limits if name not in self.refused]
        asked = {"temperature": config.temperature, "top_p": config.top_p}
        asked |= {"seed": seed} | dict.fromkeys(limits[:1], config.max_new_tokens)
        return {name: value for name, value in asked.items() if name not in self.refused}

    def sample(
        self, prompts: list[Messages], n: int = 1, config: Config = None, progress: Progress = None
    ) -> list[list[Sample]]:
        """As LocalPolicy's; `progress` is called after each completion. One that never came has
        finish_reason "error" and says why in `errors`."""
        import openai

        config = config or SamplingConfig()
        key = os.environ.get("OPENAI_API_KEY", "none")
        client = openai.OpenAI(base_url=self.base_url, api_key=key, max_retries=4, timeout=120)

        def one(number: int) -> Sample:
            p, index = divmod(number, n)
            place = getattr(prompts[p], "number", None)
            sample = self.ask(client, prompts[p], p if place is None else place, index, config)
            if progress:
                progress(1)
            return sample

        with ThreadPoolExecutor(self.workers) as pool:
            flat = list(pool.map(one, range(len(prompts) * n)))
        return [flat[p * n : (p + 1) * n] for p in range(len(prompts))]

    def ask(
        self, client: Any, messages: Messages, place: int, index: int, config: SamplingConfig
    ) -> Sample:
        import openai

        # With one seed for all prompts they would share their luck: the same plan for each.
        seed = random.Random(f"{config.seed} {place} {index}").getrandbits(31)
        began, asked = time.perf_counter(), self.parameters(config, seed)
        extra = {"tools": tools} if (tools := tools_of(messages)) else {}
        if config.prefill:
            messages = [*messages, {"role": "assistant", "content": config.prefill}]
            extra |= {"add_generation_prompt": False, "continue_final_message": True}
        known = dict(model=self.name, index=index, seed=config.seed)
        try:
            reply = client.chat.completions.create(
                model=self.model,
                messages=messages,
                stop=config.stop or None,
                extra_body=extra,
                **asked,
            )
        except openai.OpenAIError as error:
            named = [name for name in asked if re.search(rf"\b{name}\b", str(error))]
            if named and UNKNOWN.search(str(error).lower()):
                self.refused.add(named[0])
                return self.ask(client, messages, place, index, config)
            errors = [f"{type(error).__name__}: {error}"[:300]]
            return Sample(finish_reason="error", errors=errors, **known)
        choice, usage = reply.choices[0], reply.usage
        text = choice.message.content or ""
        if thought := getattr(choice.message, "reasoning_content", None):  # servers part it
            text = f"{THINK_OPEN}{thought}{THINK_CLOSE}{text}"
        return Sample.from_text(
            config.prefill + text,
            tools,
            output_tools=[c.model_dump(exclude_none=True) for c in choice.message.tool_calls or ()],
            finish_reason="length" if choice.finish_reason == "length" else "stop",
            prompt_tokens=usage.prompt_tokens if usage else 0,
            completion_tokens=usage.completion_tokens if usage else 0,
            seconds=round(time.perf_counter() - began, 6),
            **known,
        )


Policy = LocalPolicy | EndpointPolicy  # or whatever has a name and a `sample` like theirs


def load_policy(
    model: str, engine: str = "auto", adapter: str | None = None, settings: Any = None
) -> Policy:
    """Load a model for sampling: what model_folder takes, or "endpoint:NAME" for a model behind the
    OpenAI-compatible endpoint of OPENAI_BASE_URL and OPENAI_API_KEY. settings: a dict that may hold
    load_in_4bit and chat_template_kwargs; by default that of the run which the model is of."""
    if model.startswith("endpoint:"):
        if not os.environ.keys() & {"OPENAI_BASE_URL", "OPENAI_API_KEY"}:
            raise UserError(f"{model}: OPENAI_BASE_URL is not set: set the server's URL")
        return EndpointPolicy(model.removeprefix("endpoint:"), name=model)
    run = run_folder(model)
    settings = settings or (read_json(run / "config.json") if run else {})
    base, own_adapter = model_folder(model)
    adapter = adapter or own_adapter
    loaded, tokenizer, *chosen = load_model(base, engine, settings.get("load_in_4bit", False))
    if adapter:
        loaded, tokenizer = load_adapter(loaded, adapter), load_tokenizer(base, adapter)
    policy = LocalPolicy(loaded.eval(), tokenizer, model, *chosen)
    policy.chat_template_kwargs = settings.get("chat_template_kwargs") or {}
    return policy
