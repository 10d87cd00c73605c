"""Widgets of the notebooks. Each is a thin shell over pure functions, which the tests call.

    grader_lab(task, rows, samples)     choose a row and an answer, edit the grader, see the grade
    look_at(grader, row, answer, …)     the same as a record, without any widget
    weights_of, with_weight             the numbers of a formula that the lab's slider moves

Where there is no widget front end (a notebook run by a program, a terminal), the same view is
printed as text.
"""

from __future__ import annotations

import html
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rftkit.attacks import prompt_of
from rftkit.files import UserError, shorten
from rftkit.graders.answer import fill_template
from rftkit.graders.grader import Grader
from rftkit.records import Sample
from rftkit.rows import row_ids
from rftkit.task import Task

BAR = 20  # characters of a text bar
WEIGHT = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?|\.\d+)(\s*\*\s*)([A-Za-z_]\w*)")  # 0.7 * second


@dataclass
class View:
    """What the lab shows of one answer.

    problem       why there is no grade to show (the grader's JSON, the row): one text, or ""
    reward        None where the grader itself failed
    formula       calculate_output of a multi grader, or ""
    sub_rewards   {variable: grade}, as they enter the formula
    parse_stage   how far the output could be read: "unclosed thinking", "empty", "text", "json"
    explanations  one sentence a fault
    place, of     where the answer stands among all of `others` and itself, best 1; level answers
                  share the better place; None without a reward
    others        {name: reward} of the answers that it is compared with
    """

    problem: str = ""
    reward: float | None = None
    formula: str = ""
    sub_rewards: dict[str, float | None] = field(default_factory=dict)
    parse_stage: str = ""
    explanations: list[str] = field(default_factory=list)
    place: int | None = None
    of: int = 0
    others: dict[str, float | None] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return view_text(self)

    def _repr_html_(self) -> str:
        return view_html(self)


def look_at(
    grader: Grader | dict[str, Any] | str,
    row: dict[str, Any],
    answer: str,
    others: Mapping[str, str] | None = None,
) -> View:
    """Grade one answer, thinking tags included, and place it among others.

    grader  a grader, or grader JSON as a dict or as text (as somebody is just editing it)
    others  {name: answer} to the same row
    Whatever is wrong with the grader is said in `problem`; nothing is raised for it.
    """
    sample = Sample.from_text(answer)
    view = View(parse_stage=sample.parse_stage)
    try:
        made = grader if isinstance(grader, Grader) else Grader.load(_spec(grader))
        made.check_ready()
        report = made.evaluate(row, sample)
        samples = [Sample.from_text(text) for text in (others or {}).values()]
        grades = made.evaluate_many([row] * len(samples), samples)
    except UserError as error:
        view.problem = str(error)
        return view
    try:
        view.formula = made.to_json().get("calculate_output", "")
    except UserError:  # a Python function that cannot be exported has no formula either
        view.formula = ""
    view.reward, view.sub_rewards = report.reward, dict(report.sub_rewards)
    view.explanations = report.explanations
    view.others = {name: grade.reward for name, grade in zip(others or {}, grades)}
    known = [reward for reward in view.others.values() if reward is not None]
    if report.reward is not None:
        view.place = 1 + sum(reward > report.reward + 1e-9 for reward in known)
        view.of = 1 + len(known)
    return view


def _spec(grader: dict[str, Any] | str) -> dict[str, Any]:
    """Grader JSON from what stands in the editor; never a file of that name."""
    if isinstance(grader, dict):
        return grader
    try:
        spec = json.loads(grader)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"grader: not JSON ({error}), expected grader JSON: mend it there"
        ) from None
    if not isinstance(spec, dict):
        raise UserError(
            f"grader: a {type(spec).__name__}, expected one JSON object: wrap it in braces"
        )
    return spec


def weights_of(grader: str) -> dict[str, float]:
    """{name: number} for each `number * name` in the formula of grader JSON, the first of a name.

    `0.9 * max(first, 0.7 * second)` has {"max": 0.9, "second": 0.7}. Empty where the text is no
    grader JSON, as while somebody is editing it, or has no formula.
    """
    try:
        formula = _spec(grader).get("calculate_output")
    except UserError:
        return {}
    weights: dict[str, float] = {}
    for number, _, name in WEIGHT.findall(formula) if isinstance(formula, str) else []:
        weights.setdefault(name, float(number))
    return weights


def with_weight(grader: str, name: str, value: float) -> str:
    """The grader JSON with that number in its formula: what moving the lab's slider writes."""
    if name not in weights_of(grader):
        known = ", ".join(weights_of(grader)) or "none"
        raise UserError(f"grader: no number stands before * {name}, expected one of: {known}")
    spec = _spec(grader)
    formula = spec["calculate_output"]
    match = next(found for found in WEIGHT.finditer(formula) if found[3] == name)
    spec["calculate_output"] = formula[: match.start(1)] + f"{value:g}" + formula[match.end(1) :]
    return _text(spec)


def _text(spec: dict[str, Any]) -> str:
    return json.dumps(spec, indent=1, ensure_ascii=False)


def answers_for(task: Task, row: dict[str, Any], samples: Sequence[Sample] = ()) -> dict[str, str]:
    """{name: answer} that the lab offers for a row: the honest ones of the task, then samples."""
    templates = {"honest best": task.answer_template} if task.answer_template else {}
    templates |= {f"worse {i}": text for i, text in enumerate(task.worse_answers, 1)}
    offered = {name: fill_template(text, row) for name, text in templates.items()}
    for number, sample in enumerate(samples, 1):
        thinking = f"<think>{sample.reasoning}</think>" if sample.reasoning else ""
        offered[f"sample {number}"] = thinking + sample.output_text
    return offered


def view_text(view: View) -> str:
    """The view for a terminal: reward, sub-rewards as bars, stage, standing."""
    if view.problem:
        return f"no grade: {view.problem}"
    lines = [f"reward      {_number(view.reward)}   read as: {view.parse_stage}"]
    if view.formula:
        lines.append(f"formula     {view.formula}")
    for name, value in view.sub_rewards.items():
        lines.append(f"  {name:14} {_number(value)} {_bar(value)}")
    if view.place:
        lines.append(f"standing    {view.place} of {view.of}")
    named = list(view.others.items())
    shown = [*named, ("this answer", view.reward)]
    for name, value in sorted(shown, key=lambda entry: -_order(entry[1])) if named else []:
        mark = ">" if name == "this answer" else " "
        lines.append(f"{mark} {name:14} {_number(value)} {_bar(value)}")
    lines += [f"! {shorten(line, 100)}" for line in view.explanations[:3]]
    if len(view.explanations) > 3:
        lines.append(f"! and {len(view.explanations) - 3} more")
    return "\n".join(lines)


def view_html(view: View) -> str:
    """The view for a notebook. Whatever a model wrote is escaped."""
    if view.problem:
        return f'<pre style="color:#c0392b">{html.escape(view_text(view))}</pre>'
    return f"<pre>{html.escape(view_text(view))}</pre>"


def _bar(value: float | None) -> str:
    if value is None:
        return ""
    return "█" * round(BAR * min(max(value, 0.0), 1.0))


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def _order(value: float | None) -> float:
    return float("-inf") if value is None else value


def has_front_end() -> tuple[bool, str]:
    """(whether widgets can be used here, the reason).

    A kernel cannot ask who listens. Jupyter names its notebook to the kernels that it starts,
    VS Code and Colab leave their own marks; a notebook that a program runs has none of them.
    """
    if "google.colab" in sys.modules:
        return True, "Colab"
    if os.environ.get("JPY_SESSION_NAME"):
        return True, "a Jupyter front end started this kernel"
    main = sys.modules.get("__main__")
    if hasattr(main, "__vsc_ipynb_file__"):
        return True, "VS Code"
    return False, "no widget front end: shown as text"


def grader_lab(
    task: Task,
    rows: Sequence[dict[str, Any]],
    samples: Sequence[Sequence[Sample]] = (),
    *,
    widget: bool | None = None,
) -> Any:
    """The grader lab: choose a row and an answer (or type one), edit the grader, see the grade.
    A slider moves one number of the grader's formula.

    rows     rows of the task
    samples  for each row, answers of a model
    widget   True, False, or None: as `has_front_end` decides

    Returns the widget (ipywidgets.VBox), or prints the first row's view and returns None. The
    grader that you edit here lives in the widget alone: copy its JSON out to keep it.
    """
    if not rows:
        raise UserError("grader_lab: no rows, expected at least one: hand over task.rows('train')")
    usable, reason = has_front_end() if widget is None else (widget, "")
    if not usable:
        offered = answers_for(task, rows[0], samples[0] if samples else ())
        name = next(reversed(offered), "")
        answer = offered.pop(name, "")
        print(f"({reason})" if reason else "", f"row {row_ids(rows)[0]}, {name}:", answer)
        print(look_at(task.grader_spec, rows[0], answer, offered))
        return None
    return _build_lab(task, rows, samples)


def _build_lab(
    task: Task, rows: Sequence[dict[str, Any]], samples: Sequence[Sequence[Sample]]
) -> Any:
    import ipywidgets as w

    wide = w.Layout(width="98%")
    names = [str(name) for name in row_ids(rows)]
    row = w.Dropdown(options=[(name, i) for i, name in enumerate(names)], description="row")
    choice = w.Dropdown(description="answer")
    answer = w.Textarea(description="typed", layout=w.Layout(width="98%", height="5em"))
    editor = w.Textarea(
        value=_text(task.grader_spec),
        description="grader",
        layout=w.Layout(width="98%", height="16em"),
    )
    weight = w.Dropdown(description="number", layout=w.Layout(width="16em"))
    slider = w.FloatSlider(min=0, max=1, step=0.05, layout=w.Layout(width="24em"))
    prompt, shown = w.HTML(layout=wide), w.HTML(layout=wide)

    def offered() -> dict[str, str]:
        own = samples[row.value] if row.value < len(samples) else ()
        return answers_for(task, rows[row.value], own)

    def show(_: Any = None) -> None:
        answers = offered()
        if answers.get(choice.value) == answer.value:  # as it was chosen, not typed
            del answers[choice.value]
        shown.value = view_html(look_at(editor.value, rows[row.value], answer.value, answers))

    def take_answer(_: Any = None) -> None:
        answer.value = offered().get(choice.value, answer.value)
        show()

    def take_row(_: Any = None) -> None:
        text = prompt_of(rows[row.value])
        fields = {k: v for k, v in rows[row.value].items() if k != "messages"}
        prompt.value = f"<p>{html.escape(text)}</p><p><small>{html.escape(shorten(fields, 300))}"
        choice.options = list(offered())
        choice.value = next(iter(offered()), None)
        take_answer()

    def take_editor(_: Any = None) -> None:
        """Offer the numbers that stand in the formula now; the chosen one stays chosen."""
        weights, chosen = weights_of(editor.value), weight.value
        weight.options = [(f"… * {name}", name) for name in weights]
        weight.value = chosen if chosen in weights else next(iter(weights), None)
        take_weight()
        show()

    def take_weight(_: Any = None) -> None:
        weights = weights_of(editor.value)
        slider.disabled = weight.value not in weights
        if not slider.disabled:
            slider.max = max(1, slider.max, weights[weight.value])
            slider.value = weights[weight.value]

    def move(_: Any = None) -> None:
        if weights_of(editor.value).get(weight.value, slider.value) != slider.value:
            editor.value = with_weight(editor.value, weight.value, slider.value)

    row.observe(take_row, "value")
    weight.observe(take_weight, "value")
    slider.observe(move, "value")
    choice.observe(take_answer, "value")
    answer.observe(show, "value")
    editor.observe(take_editor, "value")
    take_row()
    take_editor()
    return w.VBox([w.HBox([row, choice]), prompt, answer, editor, w.HBox([weight, slider]), shown])
