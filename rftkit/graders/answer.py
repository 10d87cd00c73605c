"""`{{ namespace.path }}` in a grader's texts, filled from the item or the sample.

Two namespaces, `item` and `sample`; blanks allowed; paths as in JSON path: `a.b[0].c`, and
`["a key with blanks"]`. A text without braces stands for itself. A value that was filled in is
never searched for templates again, so a model cannot smuggle one in.

How a value becomes text is not documented by OpenAI. Our choice: texts as they are; other
scalars by Python's str (`True`, `None`, `1.0`, `5`); lists and objects as JSON.

A path that is not there is the sample's fault under `sample` (grade 0) and an invalid variable
under `item` (no grade: the row or the grader is wrong, not the answer).
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rftkit.files import UserError, shorten
from rftkit.records import UNCLOSED, Sample, is_unclosed, split_completion

# ------------------------------------------------------------------------------------------
# from rftkit.graders.report:
# What can go wrong with a grade, and the report that says so (shape: OpenAI's graders/run).
#
# Two kinds of fault are kept apart, because training must treat them differently:
#
# - the SAMPLE's fault (not JSON, truncated, a path that is not there): the grade is 0;
# - the GRADER's own fault (endpoint down, formula divides by zero): there is no grade (None).
#   TRL leaves a None out of its group; a 0 would teach the model from a broken scale.
#
# The names of the error fields are OpenAI's (`openai.types.fine_tuning.alpha.GraderRunResponse`).

# A python grader's own program failed on a sample, which scores 0 for it.
PROGRAM_FAILED = "python_grader_runtime_error"
# Field -> the field that carries its text, where the API has one.
ERROR_FIELDS: dict[str, str | None] = {
    "formula_parse_error": None,
    "sample_parse_error": None,
    "truncated_observation_error": None,
    "unresponsive_reward_error": None,
    "invalid_variable_error": None,
    "other_error": None,
    "python_grader_server_error": "python_grader_server_error_type",
    PROGRAM_FAILED: "python_grader_runtime_error_details",
    "model_grader_server_error": "model_grader_server_error_details",
    "model_grader_refusal_error": None,
    "model_grader_parse_error": None,
}


class Fault(Exception):
    """Why one grade went wrong.

    field   one of ERROR_FIELDS
    detail  one plain sentence
    score   what the grade becomes: 0.0 (the sample's fault) or None (the grader's own)
    """

    def __init__(self, field: str, detail: str, score: float | None):
        super().__init__(detail)
        self.field, self.detail, self.score = field, detail, score


def sample_fault(field: str, detail: str) -> Fault:
    """The sample is to blame: it scores 0, and the fault is counted."""
    return Fault(field, detail, 0.0)


def grader_fault(field: str, detail: str) -> Fault:
    """The grader's machinery is to blame: no score at all, and the fault is counted."""
    return Fault(field, detail, None)


class GraderFailure(Exception):
    """Too many grades of one step were lost to the grader's own faults: stop with a checkpoint.

    lost, total  grades without a score, and all grades of the step
    reasons      up to five different details
    """

    def __init__(self, name: str, lost: int, total: int, reasons: list[str]):
        super().__init__(
            f"grader {name!r} failed on {lost} of {total} answers of one step, which is too many "
            f"to go on (the answers are not to blame): {'; '.join(reasons)}"
        )
        self.name, self.lost, self.total, self.reasons = name, lost, total, reasons


class Grade(NamedTuple):
    """One grade: the reward (None: the grader itself failed), a number for each sub-grader, and
    what went wrong as pairs of (sub-grader's variable, or "" for the whole; fault)."""

    reward: float | None
    sub_rewards: dict[str, float | None]
    faults: tuple[tuple[str, Fault], ...] = ()

    @property
    def errors(self) -> list[str]:
        """The names of the error fields, each once: what `Sample.errors` holds."""
        return list(dict.fromkeys(fault.field for _, fault in self.faults))


@dataclass
class GraderReport:
    """The answer of graders/run; `to_json()` has exactly its shape.

    reward          None (null) where the grader itself failed; the API has no word for that
    explanations    one sentence a fault, ours; not part of the API's shape
    execution_time  seconds
    """

    name: str
    type: str
    reward: float | None
    sub_rewards: dict[str, float | None] = field(default_factory=dict)
    errors: dict[str, Any] = field(default_factory=dict)
    execution_time: float = 0.0
    token_usage: dict[str, dict[str, int]] = field(default_factory=dict)
    explanations: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The object of graders/run. `token_usage` is the total, as the `openai` package types
        it; the split is in `model_grader_token_usage_per_model`."""
        total = sum(usage.get("total_tokens", 0) for usage in self.token_usage.values())
        return {
            "reward": self.reward,
            "sub_rewards": dict(self.sub_rewards),
            "metadata": {
                "name": self.name,
                "type": self.type,
                "errors": dict(self.errors),
                "execution_time": self.execution_time,
                "scores": dict(self.sub_rewards),
                "token_usage": total if self.token_usage else None,
                "sampled_model_name": next(iter(self.token_usage), None),
            },
            "model_grader_token_usage_per_model": {
                model: dict(usage) for model, usage in self.token_usage.items()
            },
        }


def error_object(faults: tuple[tuple[str, Fault], ...]) -> dict[str, Any]:
    """All error fields, false where nothing happened, the detail fields null."""
    errors: dict[str, Any] = {}
    for name, detail_name in ERROR_FIELDS.items():
        errors[name] = False
        if detail_name:
            errors[detail_name] = None
    for variable, fault in faults:
        errors[fault.field] = True
        detail_name = ERROR_FIELDS[fault.field]
        if detail_name:
            detail = f"{variable}: {fault.detail}" if variable else fault.detail
            errors[detail_name] = "\n".join(filter(None, [errors[detail_name], detail]))
    return errors


# ------------------------------------------------------------------------------------------
# from rftkit.graders.context:
# What one grade can see: the item (a row of the JSONL) and the sample (what the model said).
#
# `sample` follows OpenAI's guide: `output_text`, `output_json`, `output_tools`, `choices`; and
# `reasoning`, which is ours and which no grader sees unless its template asks.

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


# ------------------------------------------------------------------------------------------
# from rftkit.graders.templates:
# `{{ namespace.path }}` in a grader's texts, filled from the item or the sample.
#
# Two namespaces, `item` and `sample`; blanks allowed; paths as in JSON path: `a.b[0].c`, and
# `["a key with blanks"]`. A text without braces stands for itself. A value that was filled in is
# never searched for templates again, so a model cannot smuggle one in.
#
# How a value becomes text is not documented by OpenAI. Our choice: texts as they are; other
# scalars by Python's str (`True`, `None`, `1.0`, `5`); lists and objects as JSON.
#
# A path that is not there is the sample's fault under `sample` (grade 0) and an invalid variable
# under `item` (no grade: the row or the grader is wrong, not the answer).

# Innermost braces: in '{"a": {{item.n}}}' the last brace belongs to the JSON, not to the template.
_PLACEHOLDER = re.compile(r"\{\{([^{}]*)\}\}")
ITEM_FIELD = re.compile(r"\{\{\s*item\.([A-Za-z_]\w*)\s*\}\}")
_STEP = re.compile(
    r"""\.(?P<key>[^\s.\[\]{}"']+)|\[(?P<index>\d{1,9})\]|\["(?P<double>[^"]*)"\]|\['(?P<single>[^']*)'\]"""
)
_TEXT_FIELDS = ("output_text", "reasoning")


class TemplateError(ValueError):
    """A template that cannot be read: what is wrong and what to write instead."""


def braced(text: str) -> str:
    """A placeholder as its author wrote it, for a message."""
    return "{{" + shorten(text, 40) + "}}"


@dataclass(frozen=True)
class Path:
    """A parsed placeholder: `sample.output_json.genes[0]` has the namespace "sample" and the steps
    ("output_json", "genes", 0)."""

    namespace: str
    steps: tuple[str | int, ...]
    text: str

    def resolve(self, context: Context) -> Any:
        """The value in this context; raises a Fault where the path leads nowhere."""
        steps = self.steps
        if self.namespace == "sample":
            value, steps = getattr(context, steps[0]), steps[1:]
        else:
            value = context.item
        for step in steps:
            if type(step) is int:
                if not isinstance(value, (list, tuple)) or step >= len(value):
                    raise self._missing(step, value)
            elif not isinstance(value, dict) or step not in value:
                raise self._missing(step, value)
            value = value[step]
        return value

    def _missing(self, step: str | int, value: Any) -> Exception:
        if isinstance(value, dict):
            there = f"an object with the keys {', '.join(sorted(map(str, value))) or '(none)'}"
        elif isinstance(value, (list, tuple)):
            there = f"a list of {len(value)}"
        else:
            there = f"{type(value).__name__} {shorten(value, 40)!r}"
        detail = shorten(f"{braced(self.text)} is not there: {step!r} is asked of {there}", 300)
        if self.namespace == "sample":
            return sample_fault("sample_parse_error", detail)
        return grader_fault("invalid_variable_error", detail)


@dataclass(frozen=True)
class Template:
    """A compiled text: literal pieces and paths in turn. Made by `compile_template`."""

    text: str
    pieces: tuple[str | Path, ...]

    @property
    def paths(self) -> list[Path]:
        return [piece for piece in self.pieces if isinstance(piece, Path)]

    def renderer(self) -> Callable[[Context], str]:
        """A function from a context to the filled-in text, the common cases made quick."""
        if not self.paths:
            literal = self.text
            return lambda context: literal
        if len(self.pieces) > 1:
            return self.render
        path = self.pieces[0]
        if path.namespace == "sample" and path.steps[0] in _TEXT_FIELDS:
            return operator.attrgetter(path.steps[0])
        if path.namespace == "item" and len(path.steps) == 1:
            return _item_field(path)
        return lambda context: render_path(path, context)

    def render(self, context: Context) -> str:
        """The text with every path filled in; raises a Fault where a path leads nowhere."""
        return "".join(
            piece if type(piece) is str else render_path(piece, context) for piece in self.pieces
        )


def compile_template(text: str) -> Template:
    """Read a text with placeholders; raises TemplateError with what to write instead.

    >>> compile_template("Answer: {{ item.answer }}").paths[0].steps
    ('answer',)
    """
    pieces: list[str | Path] = []
    end = 0
    for match in _PLACEHOLDER.finditer(text):
        if match.start() > end:
            pieces.append(text[end : match.start()])
        pieces.append(parse_path(match.group(1)))
        end = match.end()
    if end < len(text):
        pieces.append(text[end:])
    for piece in pieces:
        if isinstance(piece, str) and "{{" in piece:
            near = shorten(piece[piece.index("{{") :], 40)
            raise TemplateError(
                f"two braces open at {near!r} and do not close as {{{{ namespace.path }}}}: close "
                f"them, or put a blank between them where plain braces are meant"
            )
    return Template(text, tuple(pieces))


def parse_path(text: str) -> Path:
    """Read what stands between the braces: `sample.output_json.genes[0]`."""
    text = text.strip()
    namespace = re.match(r"\w*", text).group()
    if namespace not in ("item", "sample"):
        raise TemplateError(
            f"{braced(text)} has the namespace {namespace!r}, expected item or sample: write "
            f"{{{{item.KEY}}}} for a field of the row, {{{{sample.output_text}}}} for the answer"
        )
    steps: list[str | int] = []
    position = len(namespace)
    while position < len(text):
        match = _STEP.match(text, position)
        if match is None:
            rest = shorten(text[position:], 40)
            raise TemplateError(
                f'{braced(text)} cannot be read from {rest!r} on, expected .key, [0] or ["key"]: '
                f"paths look like item.a.b[0]"
            )
        key = next(k for k in ("key", "index", "double", "single") if match.group(k) is not None)
        steps.append(int(match.group(key)) if key == "index" else match.group(key))
        position = match.end()
    if not steps:
        raise TemplateError(
            f"{braced(text)} names no variable, expected {text}.NAME: "
            + ("name a key of the row" if text == "item" else f"one of {', '.join(SAMPLE_FIELDS)}")
        )
    if namespace == "sample":
        if steps[0] not in SAMPLE_FIELDS:
            raise TemplateError(
                f"{braced(text)}: the sample has no {shorten(steps[0], 40)!r}, expected one of "
                f"{', '.join(SAMPLE_FIELDS)}: a field of a JSON answer is "
                f"{braced(f'sample.output_json.{steps[0]}')}"
            )
        if steps[0] in _TEXT_FIELDS and len(steps) > 1:
            raise TemplateError(
                f"{braced(text)}: sample.{steps[0]} is a text, expected nothing below it: use "
                f"sample.output_json for the fields of a JSON answer"
            )
    return Path(namespace, tuple(steps), text)


def render_value(value: Any) -> str:
    """A value as text: texts as they are, scalars by str, lists and objects as JSON.

    >>> render_value("BRCA1"), render_value(1.0), render_value(True), render_value(None)
    ('BRCA1', '1.0', 'True', 'None')
    >>> render_value({"genes": ["A"]})
    '{"genes": ["A"]}'
    """
    if isinstance(value, str):
        return value
    if isinstance(value, (dict, list, tuple)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _item_field(path: Path) -> Callable[[Context], str]:
    """A renderer for `item.KEY`: a text that is there is taken as it is, the rest goes the long
    way round."""
    (key,) = path.steps

    def render(context: Context) -> str:
        value = context.item.get(key)
        return value if type(value) is str else render_path(path, context)

    return render


def render_path(path: Path, context: Context) -> str:
    value = path.resolve(context)
    if type(value) is str:
        return value
    try:
        return render_value(value)
    except (ValueError, RecursionError) as error:
        # Nested too deep, circular, or a whole number of 5,000 digits.
        detail = f"{braced(path.text)} cannot be written as text: {type(error).__name__}"
        if path.namespace == "sample":
            raise sample_fault("sample_parse_error", detail) from None
        raise grader_fault("invalid_variable_error", detail) from None


def fill_template(template: Any, item: dict[str, Any]) -> str:
    """A model's output made from a row: `{"genes": ["{{item.reference_gene}}"]}` and the like.

    template  a text, or a JSON value whose texts hold `{{item.*}}`
    Within JSON the result stays JSON whatever the row holds: inside quotes a value is escaped,
    outside quotes it is written as a JSON value. A text that is not JSON takes values as they are.
    Raises UserError where the template cannot be read or the row lacks a field.

    >>> fill_template('{"genes": ["{{item.gene}}"], "n": {{item.n}}}', {"gene": 'a "b"', "n": 2})
    '{"genes": ["a \\\\"b\\\\""], "n": 2}'
    """
    context = Context(item, "")
    try:
        if isinstance(template, str):
            return _fill_text(template, context)
        return json.dumps(_fill_leaves(template, context), ensure_ascii=False)
    except TemplateError as error:
        raise UserError(f"answer template: {error}") from None
    except Exception as fault:
        detail = getattr(fault, "detail", None) or f"{type(fault).__name__}: {fault}"
        raise UserError(
            f"answer template: {detail}: give every row that field, or change the template"
        ) from None


def _fill_leaves(node: Any, context: Context) -> Any:
    if isinstance(node, str):
        return _compile_for_item(node).render(context)
    if isinstance(node, list):
        return [_fill_leaves(child, context) for child in node]
    if isinstance(node, dict):
        return {_fill_leaves(k, context): _fill_leaves(v, context) for k, v in node.items()}
    return node


def _fill_text(text: str, context: Context) -> str:
    template = _compile_for_item(text)
    if not _is_json_with(template):
        return template.render(context)
    written: list[str] = []
    in_quotes = False
    for piece in template.pieces:
        if isinstance(piece, str):
            written.append(piece)
            # A quote that is not escaped opens or closes a JSON text.
            in_quotes ^= len(re.sub(r"\\.", "", piece).split('"')) % 2 == 0
        elif in_quotes:
            written.append(json.dumps(render_path(piece, context), ensure_ascii=False)[1:-1])
        else:
            written.append(json.dumps(piece.resolve(context), ensure_ascii=False))
    return "".join(written)


def _is_json_with(template: Template) -> bool:
    """Does the text become a JSON object or list once its placeholders hold something?"""
    probe = "".join(piece if isinstance(piece, str) else "0" for piece in template.pieces)
    try:
        return isinstance(json.loads(probe), (dict, list))
    except (ValueError, RecursionError):
        return False


def _compile_for_item(text: str) -> Template:
    template = compile_template(text)
    for path in template.paths:
        if path.namespace != "item":
            raise TemplateError(
                f"{braced(path.text)} asks for the sample, expected {{{{item.KEY}}}}: an answer "
                f"template says what the row's own fields look like as a model's output"
            )
    return template


def answer_place(template: str) -> tuple[list[str | int], str] | None:
    """(where the right answer stands in the output, the row's field it comes from), or None.

    template  an answer template as text: '{"genes": ["{{item.gene}}"]}' -> (["genes", 0], "gene")
    The path's last entry is a number where the answer is an entry of a list. A template that is
    not JSON has the empty path. Of several fields the first counts.

    >>> answer_place("Answer: {{item.answer}}"), answer_place('{"n": {{item.n}}}')
    (([], 'answer'), (['n'], 'n'))
    """
    fields = [match.group(1) for match in ITEM_FIELD.finditer(template)]
    marks = {f"\x00{field}\x00": field for field in fields}
    filled = ITEM_FIELD.sub(lambda match: f"\x00{match.group(1)}\x00", template)
    for quoted in (filled, re.sub("\x00(\\w+)\x00", r'"\g<0>"', filled)):
        try:
            return _find_mark(json.loads(quoted, strict=False), marks, [])
        except (ValueError, RecursionError):
            continue
    return ([], fields[0]) if fields else None


def _find_mark(
    value: Any, marks: dict[str, str], path: list[str | int]
) -> tuple[list[str | int], str] | None:
    """Depth first: the first text that is one mark and nothing else."""
    if isinstance(value, str):
        return (path, marks[value.strip(" ")]) if value.strip(" ") in marks else None
    if not isinstance(value, dict | list):
        return None
    for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
        found = _find_mark(entry, marks, [*path, key])
        if found:
            return found
    return None
