"""How model families write a chat: each row of docs/chat_templates.md, with small templates that
behave alike, written for these tests."""

from __future__ import annotations

import re
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from project_files import ROOT

from rftkit import policy as policies
from rftkit.files import fetched_folder
from rftkit.loading import load_tokenizer
from rftkit.policy import LocalPolicy
from rftkit.records import UNCLOSED, Sample
from rftkit.training.session import StepReward

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SWITCHED = CHATML + (
    "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}"
)
LLAMA = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{% if m.role == 'system' %}Today: 30 Nov 2026\n\n{% endif %}{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n"
    "{% endif %}"
)
GEMMA = (
    "{% set first = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
    "{% set turns = messages[1:] if messages[0].role == 'system' else messages %}"
    "{% for m in turns %}{% if m.role not in ('user', 'assistant') %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}<start_of_turn>"
    "{{ 'model' if m.role == 'assistant' else 'user' }}\n{{ first if loop.first }}{{ m.content }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
HARMONY = (
    "<|start|>system<|message|>Reasoning: {{ reasoning_effort | default('medium') }}<|end|>"
    "{% for m in messages %}<|start|>"
    "{{ 'developer' if m.role in ('developer', 'system') else m.role }}<|message|>{{ m.content }}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    "{# answers: <|channel|>analysis ... <|channel|>final #}"
)
THOUGHT, ANSWER = "2 is even", '{"even": true}'
TAGGED = f"<think>{THOUGHT}</think>{ANSWER}"
CHANNELS = "<|channel|>analysis<|message|>" + THOUGHT
FINAL = "<|end|><|start|>assistant<|channel|>final<|message|>" + ANSWER
# family: its template, what switches thinking off or sets it, what ends the prompt then, the marks
# around the system message, a completion, and one that is cut while it thinks.
FAMILIES = {
    "Qwen3": (
        SWITCHED, {"enable_thinking": False}, "<think>\n\n</think>\n\n",
        "<|im_start|>system\nSYSTEM<|im_end|>", f"{TAGGED}<|im_end|>", f"<think>{THOUGHT}",
    ),
    "Qwen3 Thinking (2507), DeepSeek-R1": (
        CHATML + "{% if add_generation_prompt %}<think>\n{% endif %}", {}, "assistant\n<think>\n",
        "<|im_start|>system\nSYSTEM<|im_end|>", f"{THOUGHT}</think>{ANSWER}<|im_end|>", THOUGHT,
    ),
    "Llama 3": (
        LLAMA, {}, "assistant<|end_header_id|>\n\n",
        "Today: 30 Nov 2026\n\nSYSTEM<|eot_id|>", f"{TAGGED}<|eot_id|>", f"<think>{THOUGHT}",
    ),
    "Gemma 3": (
        GEMMA, {}, "<start_of_turn>model\n", "<start_of_turn>user\nSYSTEM\n\nUSER<end_of_turn>",
        f"{TAGGED}<end_of_turn>", f"<think>{THOUGHT}",
    ),
    "SmolLM2": (
        CHATML, {}, "<|im_start|>assistant\n", "<|im_start|>system\nSYSTEM<|im_end|>",
        f"{TAGGED}<|im_end|>", f"<think>{THOUGHT}",
    ),
    "SmolLM3": (
        SWITCHED, {"enable_thinking": False}, "<think>\n\n</think>\n\n",
        "<|im_start|>system\nSYSTEM<|im_end|>", f"{TAGGED}<|im_end|>", f"<think>{THOUGHT}",
    ),
    "gpt-oss": (
        HARMONY, {"reasoning_effort": "high"}, "<|start|>assistant",
        "Reasoning: high<|end|><|start|>developer<|message|>SYSTEM<|end|>",
        f"{CHANNELS}{FINAL}<|return|>", CHANNELS,
    ),
}  # fmt: skip
ASKED = [{"role": "system", "content": "SYSTEM"}, {"role": "user", "content": "USER"}]
ENDS = ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|return|>"]
MARKS = [*ENDS, "<|im_start|>", "<|start|>", "<|channel|>", "<|message|>"]


@pytest.fixture(scope="module")
def tokenizer():
    """Bytes, and the families' marks as special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: n for n, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    made = Tokenizer(models.BPE(letters, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(MARKS)
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=ENDS[0], eos_token=ENDS[0])


def answers(policy, monkeypatch, text):
    """The sample of a model that says `text`, and what it had read."""
    ids, read = policy.tokenizer(text, add_special_tokens=False).input_ids, []

    def say(model, tokenizer, prompts, n, config, numbers):
        read.extend(prompts)
        return [(ids, "stop")]

    monkeypatch.setattr(policies, "decode", say)
    monkeypatch.setattr(policies, "fitting", lambda model, tokens: 1)
    [[sample]] = policy.sample([ASKED])
    return sample, policy.tokenizer.decode(read[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_asked_and_read_as_its_template_has_it(family, tokenizer, monkeypatch):
    template, kwargs, end, system, said, cut = FAMILIES[family]
    tokenizer.chat_template = template
    policy = LocalPolicy(None, tokenizer, family, chat_template_kwargs=kwargs)
    whole, prompt = answers(policy, monkeypatch, said)
    assert prompt.endswith(end) and system in prompt
    assert (whole.reasoning, whole.output_text, whole.parse_stage) == (THOUGHT, ANSWER, "json")
    partial, _ = answers(policy, monkeypatch, cut)
    assert (partial.reasoning, partial.output_text, partial.parse_stage) == (THOUGHT, "", UNCLOSED)
    plain, _ = answers(policy, monkeypatch, FINAL if family == "gpt-oss" else ANSWER)
    if not end.endswith("<think>\n"):  # there, what closes no thought is a thought
        assert (plain.reasoning, plain.output_text) == ("", ANSWER)


def test_the_page_has_a_row_for_each_family_with_its_switch():
    page = (ROOT / "docs" / "chat_templates.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?!family)([^|]+) \|(.*)", page, flags=re.M)
    assert {name: [k for k in kwargs if k in row] for (name, row), (_, kwargs, *_) in zip(
        rows, FAMILIES.values())} == {name: list(f[1]) for name, f in FAMILIES.items()}  # fmt: skip


def test_several_channels_of_thought_are_one_reasoning():
    said = CHANNELS + "<|end|><|start|>assistant<|channel|>commentary to=f <|constrain|>json"
    sample = Sample.from_text(f"{said}<|message|>{{}}<|call|>{FINAL}")
    assert (sample.reasoning, sample.output_text) == (THOUGHT + "{}", ANSWER)


@pytest.mark.parametrize("family", ["gpt-oss", "Qwen3 Thinking (2507), DeepSeek-R1"])
def test_training_grades_what_sampling_reads(family, tokenizer):
    template, kwargs, _, _, said, _ = FAMILIES[family]
    tokenizer.chat_template = template
    policy = LocalPolicy(None, tokenizer, family, chat_template_kwargs=kwargs)
    reward = StepReward.__new__(StepReward)  # TRL decodes without special tokens
    reward.session = SimpleNamespace(policy=policy, timed=lambda name: nullcontext())
    reward.reward = lambda texts, **columns: [Sample.from_text(text) for text in texts]
    reward.complete_samples, reward.checked = lambda *given, **columns: None, True
    reward.samples = []
    ids = tokenizer(said, add_special_tokens=False).input_ids
    [sample] = reward([policy.render(ASKED)], ["decoded by TRL"], completion_ids=[ids])
    assert (sample.reasoning, sample.output_text) == (THOUGHT, ANSWER)


@pytest.mark.skipif(not fetched_folder("smollm2").exists(), reason="rftkit fetch smollm2")
def test_smollm2s_own_template_does_what_its_row_says(monkeypatch):
    policy = LocalPolicy(None, load_tokenizer(str(fetched_folder("smollm2"))), "smollm2")
    _, _, end, system, said, _ = FAMILIES["SmolLM2"]
    sample, prompt = answers(policy, monkeypatch, said)
    assert prompt.endswith(end) and system in prompt
    assert (sample.reasoning, sample.output_text) == (THOUGHT, ANSWER)
    assert "SmolLM" in policy.render(ASKED[1:])  # a system message of its own
