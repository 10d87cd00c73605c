"""What all graders share: the answer they read, the grade they return, its faults, and templates.

A template is text with `{{ namespace.path }}` placeholders. The namespaces are `item` (a row of the
JSONL) and `sample` (the model's answer); paths look like `a.b[0]["a key with spaces"]`. Filled-in
text is never searched for placeholders again, so a model cannot inject one. Strings are inserted
unchanged, other scalars by `str`, lists and objects as JSON.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

from rftkit.files import UserError, shorten
from rftkit.records import UNCLOSED, Sample, split_tool_calls

PROGRAM_FAILED = "python_grader_runtime_error"  # the reward is then 0
# Error flag of graders/run -> the field for its message; None if the API has no such field.
ERROR_FIELDS: dict[str, str | None] = {
    **dict.fromkeys(("formula_parse_error", "sample_parse_error", "truncated_observation_error")),
    **dict.fromkeys(("unresponsive_reward_error", "invalid_variable_error", "other_error")),
    **dict.fromkeys(("model_grader_refusal_error", "model_grader_parse_error")),
    "python_grader_server_error": "python_grader_server_error_type",
    PROGRAM_FAILED: "python_grader_runtime_error_details",
    "model_grader_server_error": "model_grader_server_error_details",
}


class Fault(Exception):
    """Why one grade failed. `field` is a key of ERROR_FIELDS, `variable` the sub-grader's name.

    `score` is the resulting reward: 0.0 if the SAMPLE is at fault (not JSON, truncated), None if
    the GRADER is (endpoint down, division by zero). TRL leaves a None out of its group; a 0 would
    penalize the model for an error of the grader.
    """

    def __init__(self, score: float | None, field: str, detail: str):
        super().__init__(detail)
        self.score, self.field, self.detail, self.variable = score, field, detail, ""

    @property
    def sentence(self) -> str:
        return f"{self.variable}: {self.detail}" if self.variable else self.detail


class ListEnds(Fault):
    """A list in the answer ends before the place that a grader asks for."""


sample_fault, grader_fault = partial(Fault, 0.0), partial(Fault, None)  # (field, detail)


@dataclass
class Grade:
    """One grade, in to_json() as OpenAI's graders/run has it. `reward` is None if the grader itself
    failed; `token_usage` is that of model graders, {model: {"total_tokens": …}}."""

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
            sentences.append("<think> was never closed: the output is empty")
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


Answer = Sample | str | dict[str, Any]  # see Context


class Context:
    """The row and the answer that a grader reads. The answer's JSON is parsed once, on first use.

    `sample` is a Sample, a whole completion as text (its reasoning is split off) or a dict with
    `output_text` and maybe other SAMPLE_FIELDS. `usage` counts the tokens of model graders.
    """

    def __init__(self, item: dict[str, Any] | None, sample: Answer):
        if isinstance(sample, str):
            sample = Sample.from_text(sample)
        fields = sample if isinstance(sample, dict) else vars(sample)
        self.item: dict[str, Any] = item or {}
        self.usage: dict[str, dict[str, int]] = {}
        self.output_text: str = fields.get("output_text") or ""
        self.reasoning: str = fields.get("reasoning") or ""
        self.finish_reason: str = fields.get("finish_reason") or "stop"
        self.unclosed = fields.get("parse_stage") == UNCLOSED
        self.output_tools: list[Any] = fields.get("output_tools") or []
        if self.item.get("tools") and not self.output_tools:  # a text that calls them
            self.output_text, self.output_tools = split_tool_calls(self.output_text)
        for key in ("output_json", "choices"):  # a given value replaces the cached property
            if fields.get(key) is not None:
                vars(self)[key] = fields[key]

    @cached_property
    def output_json(self) -> Any:
        """The output parsed as JSON; raises a sample fault if it is not JSON."""
        try:
            return json.loads(self.output_text, parse_constant=int)  # refuses NaN
        except (ValueError, RecursionError):
            excerpt = shorten(self.output_text)
            detail = f"the output is not JSON: {excerpt}" if excerpt else "the output is empty"
            raise sample_fault("sample_parse_error", detail) from None

    @cached_property
    def choices(self) -> list[dict[str, Any]]:
        """The answer in the chat API's format: one choice with one assistant message."""
        tools = {"tool_calls": self.output_tools} if self.output_tools else {}
        message = {"role": "assistant", "content": self.output_text, **tools}
        return [{"index": 0, "finish_reason": self.finish_reason, "message": message}]

    def as_dict(self) -> dict[str, Any]:
        """The `sample` argument of a python grader. `output_json` is None if it is not JSON."""
        try:
            output_json = self.output_json
        except Fault:
            output_json = None
        output = {"output_text": self.output_text, "output_json": output_json}
        return {**output, "output_tools": self.output_tools, "choices": self.choices}


def schema_of(response_format: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of OpenAI's response_format. UserError where it is none, or says strict and
    leaves a key open: https://developers.openai.com/api/docs/guides/structured-outputs."""
    from jsonschema import Draft202012Validator, SchemaError

    form = response_format.get("json_schema") or {}
    schema = form.get("schema")
    if response_format.get("type") != "json_schema" or not isinstance(schema, dict):
        found = shorten(json.dumps(response_format))
        raise UserError(f'{found}, expected {{"type": "json_schema", "json_schema": {{…}}}}')
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise UserError(f"schema{error.json_path[1:]}: {error.message}: correct it") from None
    if form.get("strict") and (place := next(open_objects(schema, "schema"), None)):
        expected = "expected every property required and additionalProperties false"
        raise UserError(f"{place} is not strict: {expected}")
    return schema


def open_objects(schema: Any, place: str) -> Iterator[str]:
    """Where a schema's objects leave a key open."""
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            known, required = {*schema.get("properties", ())}, {*schema.get("required", ())}
            if schema.get("additionalProperties") is not False or known != required:
                yield place
        for key, part in schema.items():
            yield from open_objects(part, f"{place}.{key}")
    for number, part in enumerate(schema if isinstance(schema, list) else ()):
        yield from open_objects(part, f"{place}[{number}]")


def schema_fault(context: "Context", schema: dict[str, Any]) -> Fault | None:
    """The sample's fault where its output is no JSON or does not fit: it names the field."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    try:
        error = best_match(Draft202012Validator(schema).iter_errors(context.output_json))
    except Fault as fault:
        return fault
    if error is None:
        return None
    place = error.json_path.removeprefix("$").lstrip(".") or "the output"
    return sample_fault("sample_parse_error", f"{place}: {shorten(error.message)} (schema)")


class Scorer(NamedTuple):
    """The compiled form of one grader or sub-grader."""

    score: Callable[[Context], float]  # raises Fault if there is no score
    check_ready: Callable[[], Any] = lambda: None  # raises UserError if it cannot run here
    workers: int = 1  # how many scores to compute in parallel


# The fields of a sample in OpenAI's guide, and `reasoning`, which rftkit adds.
TEXT_FIELDS = ("output_text", "reasoning")
SAMPLE_FIELDS = (*TEXT_FIELDS, "output_json", "output_tools", "choices")
ITEM_FIELD = re.compile(r"\{\{\s*item\.([A-Za-z_]\w*)\s*\}\}")
# Matches the innermost braces: in '{"a": {{item.n}}}' the last brace belongs to the JSON.
_PLACEHOLDER = re.compile(r"\{\{([^{}]*)\}\}")
_STEP = re.compile(r"""\.([^\s.\[\]{}"'()|+*=<>!,]+)|\[(\d{1,9})\]|\["([^"]*)"\]""")
_PATH = re.compile(rf"\s*(item|sample)((?:{_STEP.pattern})+)\s*")


class TemplateError(ValueError):
    """Invalid template syntax."""


class TemplatePath:
    """A parsed placeholder: `sample.output_json.genes[0]` has the namespace "sample" and the steps
    ("output_json", "genes", 0). `text` is the placeholder as its author wrote it."""

    def __init__(self, text: str):
        self.text = "{{" + shorten(text.strip(), 40) + "}}"
        match = _PATH.fullmatch(text)
        if match is None:
            expected = 'item or sample, then .key, [0] or ["key"], and no call or filter'
            raise TemplateError(f"{self.text}: expected {expected}: compute in a python grader")
        self.namespace = match[1]
        steps = _STEP.findall(match[2])
        self.steps = tuple(int(index) if index else key or quoted for key, index, quoted in steps)
        first, is_text = self.steps[0], self.steps[0] in TEXT_FIELDS
        invalid = first not in SAMPLE_FIELDS or (is_text and len(self.steps) > 1)
        if self.namespace == "sample" and invalid:
            raise TemplateError(f"{self.text}: expected one of {', '.join(SAMPLE_FIELDS)}")

    def resolve(self, context: Context) -> Any:
        """The value in this context; raises Fault if the path does not exist."""
        value, steps = context.item, self.steps
        if self.namespace == "sample":
            value, steps = getattr(context, steps[0]), steps[1:]
        try:
            for step in steps:
                if isinstance(value, str):
                    raise KeyError  # a path does not index into a string
                value = value[step]
            return value
        except (KeyError, IndexError, TypeError) as error:
            keys = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
            detail = f"{self.text} does not exist: no {step!r} in {shorten(keys)}"
            if self.namespace == "sample":  # the answer is at fault; else the row or the grader
                kind = ListEnds if value and isinstance(error, IndexError) else Fault
                raise kind(0.0, "sample_parse_error", detail) from None
            raise grader_fault("invalid_variable_error", detail) from None


class Template:
    """A parsed template: `pieces` alternates between literal text and placeholders."""

    def __init__(self, text: str):
        """Raises TemplateError, which says what to write instead."""
        self.pieces: list[str | TemplatePath] = []
        for number, piece in enumerate(_PLACEHOLDER.split(text)):
            if number % 2:  # split() alternates between literal text and placeholders
                self.pieces.append(TemplatePath(piece))
            elif "{{" in piece:
                raise TemplateError(f"{shorten(piece, 60)!r}: braces are not closed, expected }}}}")
            elif piece:
                self.pieces.append(piece)
        self.paths = [piece for piece in self.pieces if isinstance(piece, TemplatePath)]

    def render(self, context: Context) -> str:
        """The text with every placeholder filled in; raises Fault if a path does not exist."""
        texts = [p if type(p) is str else render_value(p.resolve(context)) for p in self.pieces]
        return "".join(texts)


def render_value(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def fill_template(template: Any, item: dict[str, Any]) -> str:
    """Fill an answer template from a row, for example `{"genes": ["{{item.reference_gene}}"]}`.

    The template is text, or a JSON value whose strings contain `{{item.*}}`. A JSON template gives
    valid JSON for any row. Raises UserError if the template cannot be parsed or filled.

    >>> fill_template('{"genes": ["{{item.gene}}"], "n": {{item.n}}}', {"gene": 'a "b"', "n": 2})
    '{"genes": ["a \\\\"b\\\\""], "n": 2}'
    """
    text = render_value(template)
    context, filled, is_json, in_quotes = Context(item, ""), [], False, False
    try:
        pieces = Template(text).pieces
        with suppress(ValueError):
            skeleton = "".join(p if isinstance(p, str) else "0" for p in pieces)
            is_json = isinstance(json.loads(skeleton), (dict, list))
        for piece in pieces:
            if isinstance(piece, str):
                unescaped_quotes = re.sub(r"\\.", "", piece).count('"')
                in_quotes ^= unescaped_quotes % 2 == 1
            elif piece.namespace != "item":
                raise TemplateError(f"{piece.text} is no row field, expected {{{{item.KEY}}}}")
            else:
                value = piece.resolve(context)
                if in_quotes or not is_json:
                    value = render_value(value)
                piece = json.dumps(value, ensure_ascii=False) if is_json else value
                piece = piece[1:-1] if is_json and in_quotes else piece
            filled.append(piece)
    except (Fault, TemplateError) as error:
        raise UserError(f"answer template: {error}: correct the template or the row") from None
    return "".join(filled)


def answer_place(template: str) -> tuple[list[str | int], str] | None:
    """Return (path of the right answer in the output, row field that holds it), or None.

    The path ends in an index if the answer is in a list; it is empty if the template is not JSON.
    If the template has several fields, the first one counts.

    >>> answer_place('{"genes": ["{{item.gene}}"]}'), answer_place('{"n": {{item.n}}}')
    ((['genes', 0], 'gene'), (['n'], 'n'))
    """
    marked = ITEM_FIELD.sub("\x00\\1\x00", template)
    for text in (marked, re.sub("\x00\\w+\x00", r'"\g<0>"', marked)):  # with or without quotes
        with suppress(ValueError):
            return _find_mark(json.loads(text, strict=False), [])
    first = ITEM_FIELD.search(template)
    return ([], first[1]) if first else None


def _find_mark(value: Any, path: list[str | int]) -> tuple[list[str | int], str] | None:
    """Depth-first search for the first string that is one marked field and nothing else."""
    if isinstance(value, str):
        mark = re.fullmatch(" *\x00(\\w+)\x00 *", value)
        return (path, mark[1]) if mark else None
    entries = value.items() if isinstance(value, dict) else ()
    for key, entry in enumerate(value) if isinstance(value, list) else entries:
        place = _find_mark(entry, [*path, key])
        if place:
            return place
    return None
