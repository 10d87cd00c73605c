"""How to sample, and what came back: `<think>reasoning</think>output`; a grader sees the output."""

import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any, Self

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
UNCLOSED = "unclosed thinking"  # the parse stage of a thought that was opened and never closed
MARKS = r"<\|channel\|>(\w+).*?<\|message\|>(.*?)(?:<\|(?:end|return|call)\|>|\Z)"
CHANNEL = re.compile(MARKS, re.DOTALL)
TOOL_CALL = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)


@dataclass
class SamplingConfig:
    """How completions are drawn. The same settings mean the same for every engine and endpoint."""

    temperature: float = 1.0  # 0 is greedy; 1 samples from the model's own distribution
    top_p: float = 1.0  # nucleus; 1 keeps every token
    max_new_tokens: int = 64  # of one completion, the prefill not counted
    stop: list[str] = field(default_factory=list)  # beside the end token; kept in the output
    seed: int = 0  # one for the whole call
    prefill: str = ""  # put in the model's mouth; it counts as part of what the model said

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def split_completion(text: str) -> tuple[str, str]:
    """(reasoning, output): the output is exactly what follows `</think>`; all of the text where
    there is no thinking tag at all; empty where the tag was opened and never closed."""
    before, closed, after = text.partition(THINK_CLOSE)
    if closed:
        return before.strip().removeprefix(THINK_OPEN), after
    head, opened, thinking = text.partition(THINK_OPEN)
    return (thinking, "") if opened else ("", text)


def split_tool_calls(text: str) -> tuple[str, list[dict[str, Any]]]:
    """(the rest, the calls as the chat API has them) of a text with calls as Qwen and Hermes write
    them: `<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>`. Others stay in the text."""
    calls = []

    def take(match: re.Match) -> str:
        try:
            call = json.loads(match[1])
            arguments = json.dumps(call["arguments"], ensure_ascii=False)
            function = {"name": call["name"], "arguments": arguments}
        except (ValueError, LookupError, TypeError, RecursionError):
            return match[0]
        calls.append({"id": f"call_{len(calls)}", "type": "function", "function": function})
        return ""

    rest = TOOL_CALL.sub(take, text)
    return (rest.strip() if calls else text), calls


@dataclass
class Sample:
    """One completion of one model for one row: a line of samples.jsonl."""

    row_id: str = ""
    model: str = ""
    index: int = 0
    seed: int = 0
    reasoning: str = ""
    output_text: str = ""
    output_tools: list[dict[str, Any]] = field(default_factory=list)  # the chat API's tool_calls
    finish_reason: str = "stop"  # or "length" (cut at the limit), "error" (endpoint)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0  # wall time of the call, shared equally by the call's samples
    grade: float | None = None  # 0 to 1; None: not graded, or the grader itself failed
    sub_grades: dict[str, float | None] = field(default_factory=dict)
    parse_stage: str = ""  # how far it could be read: unclosed thinking, empty, text or json
    errors: list[str] = field(default_factory=list)  # error fields that the grader's report raised

    @classmethod
    def from_text(cls, text: str, tools: Any = None, **known: Any) -> Self:
        """A sample from a model's whole completion, thinking tags included. Calls in the text are
        moved to output_tools if the model was given `tools`, as an endpoint does."""
        if channels := CHANNEL.findall(text):  # gpt-oss's: all but the final one are reasoning
            marks = {"final": THINK_CLOSE}
            text = THINK_OPEN + "".join(marks.get(name, "") + said for name, said in channels)
        reasoning, output = split_completion(text)
        sample = cls(reasoning=reasoning, output_text=output, **known)
        if tools and not sample.output_tools:
            sample.output_text, sample.output_tools = split_tool_calls(output)
        sample.parse_stage = sample.find_parse_stage()
        if THINK_OPEN in text and THINK_CLOSE not in text:
            sample.parse_stage = UNCLOSED
        return sample

    @property
    def answer(self) -> str:
        """Output and tool calls as one text."""
        return self.output_text + (json.dumps(self.output_tools) if self.output_tools else "")

    @property
    def output_json(self) -> Any:
        """The output parsed as JSON, or None where it is not JSON."""
        try:
            # NaN is no JSON: int("NaN") raises ValueError.
            return json.loads(self.output_text, parse_constant=int)
        except (ValueError, RecursionError):
            return None

    def find_parse_stage(self) -> str:
        if not self.answer.strip():
            return "empty"
        return "text" if self.output_json is None else "json"

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))  # asdict() copies every list: 1 % of a tiny model's step
