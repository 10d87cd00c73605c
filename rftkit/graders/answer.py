"""What a grade is made from and what it becomes: the answer, faults, templates.

A template is a text with `{{ namespace.path }}` in it. The namespaces are `item` (a row of the
JSONL) and `sample` (what the model said); paths look like `a.b[0]["a key with blanks"]`. What is
filled in is never searched for templates again, so a model cannot smuggle one in. Values become
text as we chose: texts as they are, other scalars by `str`, lists and objects as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

from rftkit.files import UserError, shorten
from rftkit.records import UNCLOSED, Sample, is_unclosed, split_completion

PROGRAM_FAILED = "python_grader_runtime_error"  # which scores 0
# An error field of graders/run -> the field that carries the text, where the API has one.
ERROR_FIELDS: dict[str, str | None] = {
    **dict.fromkeys(("formula_parse_error", "sample_parse_error", "truncated_observation_error")),
    **dict.fromkeys(("unresponsive_reward_error", "invalid_variable_error", "other_error")),
    **dict.fromkeys(("model_grader_refusal_error", "model_grader_parse_error")),
    "python_grader_server_error": "python_grader_server_error_type",
    PROGRAM_FAILED: "python_grader_runtime_error_details",
    "model_grader_server_error": "model_grader_server_error_details",
}


class Fault(Exception):
    """Why one grade went wrong. `field` is one of ERROR_FIELDS, `variable` the sub-grader's.

    `score` is what the grade becomes: 0.0 where the SAMPLE is to blame (not JSON, truncated), None
    where the GRADER itself is (endpoint down, division by zero). TRL leaves a None out of its
    group; a 0 would teach the model from a broken scale.
    """

    def __init__(self, score: float | None, field: str, detail: str):
        super().__init__(detail)
        self.score, self.field, self.detail, self.variable = score, field, detail, ""

    @property
    def sentence(self) -> str:
        return f"{self.variable}: {self.detail}" if self.variable else self.detail


sample_fault, grader_fault = partial(Fault, 0.0), partial(Fault, None)  # (field, detail)


@dataclass
class Grade:
    """One grade; `to_json()` writes it as OpenAI's graders/run answers.

    The reward is None where the grader itself failed. `token_usage` is {model: {"total_tokens": …}}
    of judges.
    """

    reward: float | None
    sub_rewards: dict[str, float | None]
    faults: list[Fault] = field(default_factory=list)
    name: str = ""
    type: str = ""
    seconds: float = 0.0
    token_usage: dict[str, dict[str, int]] = field(default_factory=dict)
    unclosed: bool = False

    @property
    def errors(self) -> list[str]:
        return list(dict.fromkeys(fault.field for fault in self.faults))

    @property
    def explanations(self) -> list[str]:
        sentences = [fault.sentence for fault in self.faults]
        if self.unclosed:
            sentences.append("<think> was opened and never closed: the output is empty")
        return sentences

    def to_json(self) -> dict[str, Any]:
        errors: dict[str, Any] = {}
        for name, details in ERROR_FIELDS.items():
            sentences = [fault.sentence for fault in self.faults if fault.field == name]
            errors[name] = bool(sentences)
            if details:
                errors[details] = "\n".join(sentences) or None
        tokens = sum(usage.get("total_tokens", 0) for usage in self.token_usage.values())
        metadata = {
            "name": self.name,
            "type": self.type,
            "errors": errors,
            "execution_time": self.seconds,
            "scores": self.sub_rewards,
            "token_usage": tokens if self.token_usage else None,
            "sampled_model_name": next(iter(self.token_usage), None),
        }
        report = {"reward": self.reward, "sub_rewards": self.sub_rewards, "metadata": metadata}
        return report | {"model_grader_token_usage_per_model": self.token_usage}


class Scorer(NamedTuple):
    """What each kind of grader JSON is compiled to."""

    score: Callable[[Context], float]  # raises a Fault where there is no regular score
    check_ready: Callable[[], Any] = lambda: None  # UserError where it cannot run here
    workers: int = 1  # how many scores may usefully be computed at once


Answer = Sample | str | dict[str, Any]  # see Context


class Context:
    """What one grade can see: a row and an answer, its JSON parsed once and only if asked for.

    The answer is a Sample, a model's whole text (thinking tags are cut off) or a dict with
    `output_text` and, optionally, the other fields of SAMPLE_FIELDS. `usage` collects the tokens
    that model graders spend.
    """

    def __init__(self, item: dict[str, Any] | None, sample: Answer):
        if isinstance(sample, str):
            reasoning, output = split_completion(sample)
            stage = UNCLOSED if is_unclosed(sample) else ""
            known = {"reasoning": reasoning, "output_text": output, "parse_stage": stage}
        else:
            known = sample if isinstance(sample, dict) else vars(sample)
        self.item: dict[str, Any] = item or {}
        self.usage: dict[str, dict[str, int]] = {}
        self.output_text: str = known.get("output_text") or ""
        self.reasoning: str = known.get("reasoning") or ""
        self.finish_reason: str = known.get("finish_reason") or "stop"
        self.unclosed = known.get("parse_stage") == UNCLOSED
        self.output_tools: list[Any] = known.get("output_tools") or []
        for key in ("output_json", "choices"):  # what is given need not be made when asked for
            if known.get(key) is not None:
                vars(self)[key] = known[key]

    @cached_property
    def output_json(self) -> Any:
        """The output parsed as JSON. Raises the sample's fault where it is not JSON."""
        try:
            return json.loads(self.output_text, parse_constant=int)  # refuses NaN
        except (ValueError, RecursionError):
            shown = shorten(self.output_text)
            detail = f"the output is not JSON: {shown}" if shown else "the output is empty"
            raise sample_fault("sample_parse_error", detail) from None

    @cached_property
    def choices(self) -> list[dict[str, Any]]:
        """As the chat API would show this answer: one choice with one assistant message."""
        tools = {"tool_calls": self.output_tools} if self.output_tools else {}
        message = {"role": "assistant", "content": self.output_text, **tools}
        return [{"index": 0, "finish_reason": self.finish_reason, "message": message}]

    def as_dict(self) -> dict[str, Any]:
        """The `sample` argument of a python grader. `output_json` is None where it is not JSON."""
        try:
            output_json = self.output_json
        except Fault:
            output_json = None
        known = {"output_text": self.output_text, "output_json": output_json}
        return {**known, "output_tools": self.output_tools, "choices": self.choices}


# OpenAI's guide names all fields of a sample but `reasoning`, which is ours.
TEXT_FIELDS = ("output_text", "reasoning")
SAMPLE_FIELDS = (*TEXT_FIELDS, "output_json", "output_tools", "choices")
ITEM_FIELD = re.compile(r"\{\{\s*item\.([A-Za-z_]\w*)\s*\}\}")
# Innermost braces: in '{"a": {{item.n}}}' the last brace belongs to the JSON, not to the template.
_PLACEHOLDER = re.compile(r"\{\{([^{}]*)\}\}")
_STEP = re.compile(r"""\.([^\s.\[\]{}"']+)|\[(\d{1,9})\]|\["([^"]*)"\]""")
_PATH = re.compile(rf"\s*(item|sample)((?:{_STEP.pattern})+)\s*")


class TemplateError(ValueError):
    """A template that cannot be read."""


class TemplatePath:
    """A placeholder: `sample.output_json.genes[0]` has the namespace "sample" and the steps
    ("output_json", "genes", 0). `text` is the placeholder as its author wrote it."""

    def __init__(self, text: str):
        self.text = "{{" + shorten(text.strip(), 40) + "}}"
        match = _PATH.fullmatch(text)
        if match is None:
            raise TemplateError(f'{self.text}: expected item or sample, then .key, [0] or ["key"]')
        self.namespace = match[1]
        steps = _STEP.findall(match[2])
        self.steps = tuple(int(index) if index else key or quoted for key, index, quoted in steps)
        first, is_text = self.steps[0], self.steps[0] in TEXT_FIELDS
        bad = first not in SAMPLE_FIELDS or (is_text and len(self.steps) > 1)
        if self.namespace == "sample" and bad:
            known = f"{', '.join(SAMPLE_FIELDS)}; the first two are texts"
            raise TemplateError(f"{self.text}: a sample has {known}")

    def resolve(self, context: Context) -> Any:
        """The value in this context; raises a Fault where the path leads nowhere."""
        value, steps = context.item, self.steps
        if self.namespace == "sample":
            value, steps = getattr(context, steps[0]), steps[1:]
        try:
            for step in steps:
                if isinstance(value, str):
                    raise KeyError  # "abc"[0] is no entry of a list
                value = value[step]
            return value
        except (KeyError, IndexError, TypeError):
            there = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
            what = f"{self.text} is not there: no {step!r} in {shorten(there)}"
            if self.namespace == "sample":  # the answer is to blame; else the row or the grader
                raise sample_fault("sample_parse_error", what) from None
            raise grader_fault("invalid_variable_error", what) from None


class Template:
    """A text with placeholders, read once: literal pieces and paths in turn."""

    def __init__(self, text: str):
        """Raises TemplateError with what to write instead."""
        self.pieces: list[str | TemplatePath] = []
        for number, piece in enumerate(_PLACEHOLDER.split(text)):
            if number % 2:  # split() alternates between literal text and what stood in the braces
                self.pieces.append(TemplatePath(piece))
            elif "{{" in piece:
                raise TemplateError(f"{shorten(piece, 60)!r}: two braces open and do not close")
            elif piece:
                self.pieces.append(piece)
        self.paths = [piece for piece in self.pieces if isinstance(piece, TemplatePath)]

    def render(self, context: Context) -> str:
        """The text with every path filled in; raises a Fault where a path leads nowhere."""
        texts = [p if type(p) is str else render_value(p.resolve(context)) for p in self.pieces]
        return "".join(texts)


def render_value(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def fill_template(template: Any, item: dict[str, Any]) -> str:
    """A model's output made from a row: `{"genes": ["{{item.reference_gene}}"]}` and the like.

    The template is a text, or a JSON value whose texts hold `{{item.*}}`. Where it is JSON the
    result stays JSON whatever the row holds. UserError where it cannot be read or filled.

    >>> fill_template('{"genes": ["{{item.gene}}"], "n": {{item.n}}}', {"gene": 'a "b"', "n": 2})
    '{"genes": ["a \\\\"b\\\\""], "n": 2}'
    """
    text = template if isinstance(template, str) else json.dumps(template, ensure_ascii=False)
    context, written, is_json, in_quotes = Context(item, ""), [], False, False
    try:
        pieces = Template(text).pieces
        with suppress(ValueError):
            form = "".join(p if isinstance(p, str) else "0" for p in pieces)
            is_json = isinstance(json.loads(form), (dict, list))
        for piece in pieces:
            if isinstance(piece, str):
                unescaped_quotes = re.sub(r"\\.", "", piece).count('"')
                in_quotes ^= unescaped_quotes % 2 == 1
            elif piece.namespace != "item":
                raise TemplateError(f"{piece.text} is not of the row, expected {{{{item.KEY}}}}")
            else:
                value = piece.resolve(context)
                if in_quotes or not is_json:
                    value = render_value(value)
                piece = json.dumps(value, ensure_ascii=False) if is_json else value
                piece = piece[1:-1] if is_json and in_quotes else piece
            written.append(piece)
    except (Fault, TemplateError) as error:
        raise UserError(f"answer template: {error}: correct it, or the row") from None
    return "".join(written)


def answer_place(template: str) -> tuple[list[str | int], str] | None:
    """(where the right answer stands in the output, the row's field it comes from), or None.

    The path's last entry is a number where the answer is an entry of a list. A template that is
    not JSON has the empty path. Of several fields the first counts.

    >>> answer_place('{"genes": ["{{item.gene}}"]}'), answer_place('{"n": {{item.n}}}')
    ((['genes', 0], 'gene'), (['n'], 'n'))
    """
    marked = ITEM_FIELD.sub("\x00\\1\x00", template)
    for text in (marked, re.sub("\x00\\w+\x00", r'"\g<0>"', marked)):  # inside quotes, or not
        with suppress(ValueError):
            return _find_mark(json.loads(text, strict=False), [])
    first = ITEM_FIELD.search(template)
    return ([], first[1]) if first else None


def _find_mark(value: Any, path: list[str | int]) -> tuple[list[str | int], str] | None:
    """Depth first: the first text that is one mark and nothing else."""
    if isinstance(value, str):
        mark = re.fullmatch(" *\x00(\\w+)\x00 *", value)
        return (path, mark[1]) if mark else None
    entries = value.items() if isinstance(value, dict) else ()
    for key, entry in enumerate(value) if isinstance(value, list) else entries:
        place = _find_mark(entry, [*path, key])
        if place:
            return place
    return None
