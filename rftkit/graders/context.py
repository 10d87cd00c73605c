"""What one grade can see: the item (a row of the JSONL) and the sample (what the model said).

`sample` follows OpenAI's guide: `output_text`, `output_json`, `output_tools`, `choices`; and
`reasoning`, which is ours and which no grader sees unless its template asks.
"""

from __future__ import annotations

import json
from typing import Any

from rftkit.data.errors import UserError
from rftkit.data.records import UNCLOSED, Sample, is_unclosed, split_completion
from rftkit.graders.report import Fault, sample_fault

# The guide also names output_audio: a local model has none, so asking for it finds nothing.
SAMPLE_FIELDS = (
    "output_text",
    "output_json",
    "output_tools",
    "choices",
    "output_audio",
    "reasoning",
)
_NOT_PARSED = object()


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


# One decoder for all samples: json.loads builds a new one on every call with parse_constant.
_decode = json.JSONDecoder(parse_constant=_refuse_constant).decode


class Context:
    """One item and one sample, opened for grading; the sample's JSON is parsed once, if asked.

    usage  tokens spent by model graders, {model: {"prompt_tokens": …}}
    """

    # Defaults stand on the class: a context is made for every grade, and most change few of them.
    reasoning = ""
    finish_reason = "stop"
    unclosed = False  # a thought was opened and never closed: that is why the output is empty
    output_tools: list[Any] = []
    _output_json: Any = _NOT_PARSED
    _choices: list[dict[str, Any]] | None = None

    def __init__(self, item: dict[str, Any] | None, sample: Sample | str | dict[str, Any]):
        if item is None:
            item = {}
        elif not isinstance(item, dict):
            kind = type(item).__name__
            raise UserError(f"item: a {kind}, expected an object: hand over one row of the JSONL")
        self.item = item
        self.usage: dict[str, dict[str, int]] = {}
        if isinstance(sample, Sample):
            self.output_text = sample.output_text
            self.reasoning = sample.reasoning
            self.finish_reason = sample.finish_reason
            self.unclosed = sample.parse_stage == UNCLOSED
            if hasattr(sample, "output_tools"):
                self.output_tools = sample.output_tools or []
        elif isinstance(sample, str):
            self.reasoning, self.output_text = split_completion(sample)
            self.unclosed = is_unclosed(sample)
        elif isinstance(sample, dict):
            self.output_text = sample.get("output_text") or ""
            self.reasoning = sample.get("reasoning") or ""
            self.finish_reason = sample.get("finish_reason") or "stop"
            self.unclosed = sample.get("parse_stage") == UNCLOSED
            self.output_tools = sample.get("output_tools") or []
            self._choices = sample.get("choices")
            if sample.get("output_json") is not None:
                self._output_json = sample["output_json"]
        else:
            kind = type(sample).__name__
            raise UserError(
                f"sample: a {kind}, expected a Sample, a text or a dict: hand over what the model "
                f"said"
            )

    @property
    def output_json(self) -> Any:
        """The output parsed as JSON. Raises the sample's fault where it is not JSON."""
        if self._output_json is _NOT_PARSED:
            try:
                self._output_json = _decode(self.output_text)
            except (ValueError, RecursionError):
                shown = shorten(self.output_text)
                detail = f"the output is not JSON: {shown}" if shown else "the output is empty"
                self._output_json = sample_fault("sample_parse_error", detail)
        if isinstance(self._output_json, Fault):
            raise self._output_json.with_traceback(None)
        return self._output_json

    @property
    def choices(self) -> list[dict[str, Any]]:
        """As the chat API would show this answer: one choice with one assistant message."""
        if self._choices is None:
            message: dict[str, Any] = {"role": "assistant", "content": self.output_text}
            if self.output_tools:
                message["tool_calls"] = self.output_tools
            choice = {"index": 0, "finish_reason": self.finish_reason, "message": message}
            self._choices = [choice]
        return self._choices

    @property
    def output_audio(self) -> Any:
        raise sample_fault("sample_parse_error", "the sample has no audio")

    def as_dict(self) -> dict[str, Any]:
        """The `sample` argument of a python grader. `output_json` is None where it is not JSON."""
        try:
            output_json = self.output_json
        except Fault:
            output_json = None
        return {
            "output_text": self.output_text,
            "output_json": output_json,
            "output_tools": self.output_tools,
            "choices": self.choices,
        }


def sample_from_completion(
    completion: Any, prompt: Any = None, unclosed_is_cut: bool = False, **known: Any
) -> Sample | dict:
    """A sample from what TRL hands to a reward function: a text, or a list of chat messages.

    A plain prompt that ends in `<think>` opened the thinking itself, so the completion is read
    as if it began there. Of a list of messages, the last assistant message is the output, and
    `output_tools` are the tool calls of all of them.

    unclosed_is_cut  a thought that never closed shows that the limit cut the answer
    """
    if isinstance(completion, str):
        if isinstance(prompt, str) and prompt.rstrip().endswith("<think>"):
            completion = "<think>" + completion
        return _sample(completion, unclosed_is_cut, known)
    assistant = [m for m in completion if m.get("role") == "assistant"]
    content = assistant[-1].get("content") if assistant else ""
    if isinstance(content, list):  # content parts: [{"type": "text", "text": …}]
        content = "".join(part.get("text") or "" for part in content)
    sample = _sample(content or "", unclosed_is_cut, known)
    tools = [call for message in assistant for call in message.get("tool_calls") or []]
    if not tools:
        return sample
    return {
        "output_text": sample.output_text,
        "reasoning": sample.reasoning,
        "finish_reason": sample.finish_reason,
        "parse_stage": sample.parse_stage,
        "output_tools": tools,
    }


def _sample(text: str, unclosed_is_cut: bool, known: dict[str, Any]) -> Sample:
    sample = Sample.from_text(text, **known)
    if unclosed_is_cut and sample.parse_stage == UNCLOSED:
        sample.finish_reason = "length"
    return sample


def shorten(value: Any, limit: int = 80) -> str:
    """A value for a message, cut so that a message stays one line."""
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text[: limit * 4].split())
    text = text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair cannot print
    return text if len(text) <= limit else text[: limit - 1] + "…"
