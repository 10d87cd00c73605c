"""Check a grader's JSON: all faults at once, each with its place.

The shapes are those of `openai.types.graders`, whose import takes seconds; pydantic judges them.
What it cannot see is checked here: templates, the formula, ranges, labels, a python grader's text.
Tolerated, with a note: a grader inside a job, a request or an eval, a missing `name`,
`"operation": "neq"`, a list in multi, a source that is indented as a whole, and what changes no
grade here (`pass_threshold`, `invalid_grade`).
"""

import math
import re
import textwrap
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from rftkit.contract import walk
from rftkit.files import UserError, shorten
from rftkit.graders.answer import Template, TemplateError
from rftkit.graders.functions import python_spec
from rftkit.graders.scorers import Formula, FormulaError, source_problem


def shape(**fields: Any) -> type[BaseModel]:
    """A model of these fields, which refuses other keys and types."""
    return create_model("shape", __config__=ConfigDict(extra="forbid", strict=True), **fields)


PART = (
    str
    | shape(type=Literal["input_text", "output_text"], text=str)
    | shape(type=Literal["input_image"], image_url=str, detail=(str | None, None))
    | shape(type=Literal["input_audio"], input_audio=dict[str, str])
)
MESSAGE = shape(
    role=Literal["user", "assistant", "system", "developer"],
    content=PART | list[PART],
    type=(Literal["message"] | None, None),
)
WHOLE, NUMBER = (int | None, None), (float | None, None)
SAMPLING = shape(
    max_completions_tokens=WHOLE, seed=WHOLE, temperature=NUMBER, top_p=NUMBER,
    reasoning_effort=(str | None, None),
)  # fmt: skip
METRICS = Literal["cosine", "fuzzy_match", "bleu", "gleu", "meteor", "rouge_1", "rouge_2",
                  "rouge_3", "rouge_4", "rouge_5", "rouge_l"]  # fmt: skip
ALL = {"type": str, "name": str, "maximum": NUMBER}  # maximum is ours: the best grade
PAIR = ALL | {"input": str, "reference": str}
ASKED = ALL | {"model": str, "input": list[MESSAGE]}
SHAPES = {
    "string_check": shape(**PAIR, operation=Literal["eq", "ne", "like", "ilike"]),
    "text_similarity": shape(**PAIR, evaluation_metric=METRICS),
    "score_model": shape(**ASKED, range=(list[float], None), sampling_params=(SAMPLING, None)),
    "label_model": shape(**ASKED, labels=list[str], passing_labels=list[str]),
    "python": shape(**ALL, source=str, image_tag=(str, None)),
    "multi": shape(**ALL, graders=dict, calculate_output=str),
}
TYPES = tuple(SHAPES)
INSIDE = {"method", "reinforcement", "grader", "testing_criteria"}  # of a job, request or eval
IGNORED = {
    "pass_threshold": "belongs to evals and changes no grade",
    "invalid_grade": "changes no grade: an answer that cannot be graded counts 0",
}


class GraderSpecError(UserError):
    """A grader's JSON that cannot be used; `problems` holds one sentence a fault."""

    def __init__(self, place: str, problems: list[str]):
        self.problems = problems
        super().__init__("\n".join(f"{place}: {problem}" for problem in problems))


FAULT, NOTE = "fault", "note"
Findings = list[tuple[str, str, str]]  # (FAULT or NOTE, place inside the JSON, text)


def validate_spec(
    spec: Any, place: str = "grader", has_embedder: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """(the grader in its plain form, notes on what was tolerated); GraderSpecError has every fault.
    With an embedder the metric "cosine" can be computed."""
    inside, findings = "", []
    while isinstance(spec, dict) and spec.get("type") not in TYPES and INSIDE & spec.keys():
        key = min(INSIDE & spec.keys())
        spec, inside = spec[key], f"{inside}{key}."
        if isinstance(spec, list) and len(spec) == 1:
            spec = spec[0]
    if isinstance(spec, dict) and spec.get("type") == "function" and "signature" in spec:
        findings.append((NOTE, "", f"function {spec['name']}, called as {spec['signature']} does"))
        spec = python_spec(spec)
    plain = _check(spec, "", has_embedder, findings)
    findings = [(kind, (inside + at).strip("."), text) for kind, at, text in findings]
    if inside:
        findings.append((NOTE, inside[:-1], "the grader was found here"))
    lines = [(kind, f"{at}: {text}" if at else text) for kind, at, text in findings]
    if problems := [line for kind, line in lines if kind is FAULT]:
        raise GraderSpecError(place, problems)
    return plain, [line for _, line in lines]


def texts_of(spec: dict[str, Any]) -> list[tuple[str, str]]:
    """(place, text) for each text of one grader that may hold templates."""
    parts = {key: spec[key] for key in ("input", "reference") if key in spec}
    return [(place, text) for place, text in walk(parts) if isinstance(text, str)]


def _check(spec: Any, variable: str, has_embedder: bool, findings: Findings) -> dict[str, Any]:
    """The plain form of one grader, which is a `variable` of a multi grader or stands alone."""
    allowed = [name for name in TYPES if name != "multi" or not variable]
    kind = spec.get("type", "missing") if isinstance(spec, dict) else spec
    if kind not in allowed:
        place = "type" if isinstance(spec, dict) else ""
        text = f"{shorten(kind)}, expected one of {', '.join(allowed)}"
        if kind == "endpoint":
            text = '"endpoint" is a grader behind a URL: ask it from a function, file.py:function'
        findings.append((FAULT, place, text))
        return {}
    plain = {key: value for key, value in spec.items() if value is not None}
    if "name" not in plain:
        plain["name"] = variable or kind
        findings.append((NOTE, "name", f'missing, read as "{plain["name"]}"'))
    if kind == "string_check" and plain.get("operation") == "neq":
        plain["operation"] = "ne"
        findings.append((NOTE, "operation", '"neq", read as "ne"'))
    if re.match(r"\s*\n[ \t]|[ \t]", source := str(plain.get("source", ""))):
        plain["source"] = textwrap.dedent(source)
        findings.append((NOTE, "source", "indented as a whole, read without that"))
    for key in IGNORED.keys() & plain.keys():
        del plain[key]
        findings.append((NOTE, key, IGNORED[key]))
    faults = _faults_of_shape({**plain, "graders": {}} if kind == "multi" else plain)
    findings += [(FAULT, place, text) for place, text in faults.items()]
    if kind == "multi":
        _check_multi(plain, has_embedder, findings)
    elif not faults:  # the rest relies on the types being right
        _check_values(plain, has_embedder, findings)
    return plain


def _faults_of_shape(plain: dict[str, Any]) -> dict[str, str]:
    faults = {}
    try:
        SHAPES[plain["type"]].model_validate(plain)
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            message, loc = fault["msg"], fault["loc"]
            if fault["type"] not in ("missing", "extra_forbidden"):
                message += f", not {shorten(fault['input'])}"
            if "content" in loc:  # pydantic adds each form that it could have
                loc = loc[: loc.index("content") + 1]
            place = re.sub(r"\.(\d+)", r"[\1]", ".".join(map(str, loc)))
            faults.setdefault(place, message)
    return faults


def _check_values(plain: dict[str, Any], has_embedder: bool, findings: Findings) -> None:
    """What the types leave open in one grader that is no multi."""
    namespaces = {"sample"} if plain["type"] == "python" else set()
    for place, text in texts_of(plain):
        try:
            namespaces |= {part.namespace for part in Template(text).paths}
        except TemplateError as error:
            findings.append((FAULT, place, str(error)))
    if "sample" not in namespaces:
        text = "no {{sample.…}} in it: every answer to a row gets the same grade"
        findings.append((NOTE, "", text))
    if plain.get("evaluation_metric") == "cosine" and not has_embedder:
        text = "cosine, expected another metric, or GraderSettings(embedder=…)"
        findings.append((FAULT, "evaluation_metric", text))
    if plain["type"] == "python" and (wrong := source_problem(plain["source"])):
        findings.append((FAULT, "source", wrong))
    limits = plain.get("range", [0, 1])
    if len(limits) != 2 or not -math.inf < limits[0] < limits[1] < math.inf:
        findings.append((FAULT, "range", f"{limits}, expected two numbers, the lower one first"))
    labels, passing = plain.get("labels", ()), plain.get("passing_labels", ())
    if plain["type"] == "label_model" and not (passing and set(passing) <= set(labels)):
        findings.append((FAULT, "passing_labels", f"{passing}, expected some of {labels}"))


def _check_multi(plain: dict[str, Any], has_embedder: bool, findings: Findings) -> None:
    graders, formula = plain.get("graders"), plain.get("calculate_output")
    named = []
    if isinstance(graders, dict):
        named = [(f"graders.{name}", name, grader) for name, grader in graders.items()]
    elif isinstance(graders, list):
        for index, grader in enumerate(graders):
            name = _variable(grader, str(formula), [name for _, name, _ in named])
            named.append((f"graders[{index}]", name, grader))
        names = ", ".join(name for _, name, _ in named)
        findings.append((NOTE, "graders", f"a list; its graders are the variables {names}"))
    if not named:
        findings.append((FAULT, "graders", f"{shorten(graders)}, expected an object of graders"))
    parts = plain["graders"] = {}
    for place, variable, grader in named:
        if variable in parts or not variable.isidentifier():
            text = f"its variable is {variable!r}, expected letters, digits and _, once: rename"
            findings.append((FAULT, place, text))
        inner: Findings = []
        parts[variable] = _check(grader, variable, has_embedder, inner)
        findings += [(kind, f"{place}.{at}" if at else place, text) for kind, at, text in inner]
    if not isinstance(formula, str):
        return
    try:
        used = Formula(formula).variables
    except FormulaError as error:
        text = f"{error}: the formula is {shorten(formula)!r}"
        findings.append((FAULT, "calculate_output", text))
        return
    for variable in sorted(used - set(parts)) if parts else ():
        text = f"{variable!r} is no grader, expected {', '.join(parts)}"
        findings.append((FAULT, "calculate_output", text))
    for variable in parts:
        if variable not in used:
            text = f"does not use {variable!r}: it is graded and reported only"
            findings.append((NOTE, "calculate_output", text))


def _variable(grader: Any, formula: str, taken: list[str]) -> str:
    """The variable of a grader in a list. The API reference shows a list whose formula says
    `string_check_score`: so it is TYPE_score where the formula uses that, otherwise the grader's
    name with _ for all that is not a letter or digit."""
    record = grader if isinstance(grader, dict) else {}
    name = f"{record.get('type')}_score"
    if name in formula and name not in taken:
        return name
    return re.sub(r"\W", "_", str(record.get("name")))
