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
from dataclasses import dataclass
from typing import Any

from rftkit.data.errors import UserError
from rftkit.graders.context import SAMPLE_FIELDS, Context, shorten
from rftkit.graders.report import grader_fault, sample_fault

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
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    if isinstance(value, dict | list):
        for key, entry in entries:
            found = _find_mark(entry, marks, [*path, key])
            if found:
                return found
    return None
