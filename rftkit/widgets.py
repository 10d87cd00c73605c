"""The grader lab of the notebooks: a thin shell over functions without widgets.

grader_lab(task, rows, samples)     choose a row and an answer, edit the grader, see the grade
look_at(grader, row, answer, …)     the same as a record, without any widget
"""

from __future__ import annotations

import html
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    """What the lab shows of one answer."""

    problem: str = ""  # why there is no grade to show
    reward: float | None = None  # None where the grader itself failed
    formula: str = ""  # of a multi grader
    sub_rewards: dict[str, float | None] = field(default_factory=dict)
    parse_stage: str = ""  # how far the output could be read: "empty", "text", "json", …
    explanations: list[str] = field(default_factory=list)
    others: dict[str, float | None] = field(default_factory=dict)  # rewards of other answers

    @property
    def place(self) -> tuple[int, int] | None:
        """(where the answer stands, best 1, among how many); equal answers share the better place.
        None without a reward."""
        if self.reward is None:
            return None
        known = [reward for reward in self.others.values() if reward is not None]
        return 1 + sum(reward > self.reward + 1e-9 for reward in known), 1 + len(known)

    def __str__(self) -> str:
        if self.problem:
            return f"no grade: {self.problem}"
        lines = [f"reward      {_number(self.reward)}   read as: {self.parse_stage}"]
        lines += [f"formula     {self.formula}"] if self.formula else []
        lines += [f"  {name:14} {_bar(value)}" for name, value in self.sub_rewards.items()]
        lines += ["standing    {} of {}".format(*self.place)] if self.place else []
        if self.others:
            ranking = [(value, " ", name) for name, value in self.others.items()]
            ranking.append((self.reward, ">", "this answer"))
            ranking.sort(key=lambda entry: float("inf") if entry[0] is None else -entry[0])
            lines += [f"{mark} {name:14} {_bar(value)}" for value, mark, name in ranking]
        return "\n".join(lines + [f"! {shorten(line, 100)}" for line in self.explanations])

    def _repr_html_(self) -> str:
        """For a notebook. Whatever a model wrote is escaped."""
        style = ' style="color:#c0392b"' if self.problem else ""
        return f"<pre{style}>{html.escape(str(self))}</pre>"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def _bar(value: float | None) -> str:
    return f"{_number(value)} {'█' * round(BAR * min(max(value or 0.0, 0.0), 1.0))}"


def look_at(
    grader: dict[str, Any] | str,
    row: dict[str, Any],
    answer: str,
    others: Mapping[str, str] | None = None,
) -> View:
    """Grade one answer, thinking tags included, and place it among others, {name: answer}.

    The grader may be its JSON as text, as somebody is just editing it: whatever is wrong with it
    stands in `problem`, and nothing is raised.
    """
    others, sample = others or {}, Sample.from_text(answer)
    view = View(parse_stage=sample.parse_stage)
    try:
        spec = _spec(grader)
        made = Grader.load(spec)
        made.check_ready()
        report = made.evaluate(row, sample)
        grades = made.evaluate_many([row] * len(others), [*map(Sample.from_text, others.values())])
    except UserError as error:
        view.problem = str(error)
        return view
    view.formula = spec.get("calculate_output", "")
    view.reward, view.sub_rewards = report.reward, dict(report.sub_rewards)
    view.explanations = report.explanations
    view.others = {name: grade.reward for name, grade in zip(others, grades)}
    return view


def _spec(grader: dict[str, Any] | str) -> dict[str, Any]:
    """Grader JSON from what stands in the editor; never a file of that name."""
    try:
        spec = json.loads(grader) if isinstance(grader, str) else grader
    except ValueError as error:
        raise UserError(f"grader: not JSON ({error}): correct it there") from None
    if not isinstance(spec, dict):
        raise UserError(f"grader: a {type(spec).__name__}, expected one JSON object")
    return spec


def _text(spec: dict[str, Any]) -> str:
    return json.dumps(spec, indent=1, ensure_ascii=False)


def weights_of(grader: str) -> dict[str, float]:
    """{name: number} for each `number * name` in the formula of grader JSON, the first of a name.

    `0.9 * max(first, 0.7 * second)` has {"max": 0.9, "second": 0.7}. Empty where the text is no
    grader JSON, as while somebody is editing it, or has no formula.
    """
    try:
        formula = str(_spec(grader).get("calculate_output"))
    except UserError:
        return {}
    weights: dict[str, float] = {}
    for number, _, name in WEIGHT.findall(formula):
        weights.setdefault(name, float(number))
    return weights


def with_weight(grader: str, name: str, value: float) -> str:
    """The grader JSON with that number in its formula, which has one before `* name`."""
    spec = _spec(grader)
    formula = spec["calculate_output"]
    match = next(match for match in WEIGHT.finditer(formula) if match[3] == name)
    spec["calculate_output"] = formula[: match.start(1)] + f"{value:g}" + formula[match.end(1) :]
    return _text(spec)


def answers_for(task: Task, row: dict[str, Any], samples: Sequence[Sample] = ()) -> dict[str, str]:
    """{name: answer} that the lab offers for a row: the honest ones of the task, then samples."""
    templates = {"honest best": task.answer_template} if task.answer_template else {}
    templates |= {f"worse {i}": text for i, text in enumerate(task.worse_answers, 1)}
    offered = {name: fill_template(text, row) for name, text in templates.items()}
    for number, sample in enumerate(samples, 1):
        thinking = f"<think>{sample.reasoning}</think>" if sample.reasoning else ""
        offered[f"sample {number}"] = thinking + sample.output_text
    return offered


def has_front_end() -> bool:
    """Can widgets be used here? A kernel cannot ask who listens: Jupyter names its notebook to the
    kernels that it starts, VS Code and Colab leave marks of their own."""
    is_vs_code = hasattr(sys.modules.get("__main__"), "__vsc_ipynb_file__")
    return is_vs_code or "google.colab" in sys.modules or "JPY_SESSION_NAME" in os.environ


def grader_lab(
    task: Task,
    rows: Sequence[dict[str, Any]],
    samples: Sequence[Sequence[Sample]] = (),
    *,
    widget: bool | None = None,
) -> Any:
    """The grader lab: choose a row and an answer (or type one), edit the grader, see the grade.
    A slider moves one number of the grader's formula. `samples` are answers of a model to each row.

    Returns the widget (ipywidgets.VBox), or prints the first row's view and returns None where
    there is no front end. The edited grader lives in the widget alone: copy its JSON to keep it.
    """
    if has_front_end() if widget is None else widget:
        return _build_lab(task, rows, samples)
    offered = answers_for(task, rows[0], samples[0] if samples else ())
    name = next(reversed(offered), "")
    answer = offered.pop(name, "")
    print(f"(no widget front end: shown as text) row {row_ids(rows)[0]}, {name}:", answer)
    print(look_at(task.grader_spec, rows[0], answer, offered))
    return None


def _build_lab(
    task: Task, rows: Sequence[dict[str, Any]], samples: Sequence[Sequence[Sample]]
) -> Any:
    import ipywidgets as w

    def wide(**more: str) -> w.Layout:
        return w.Layout(width="98%", **more)

    names = [(str(name), place) for place, name in enumerate(row_ids(rows))]
    row = w.Dropdown(options=names, description="row")
    choice = w.Dropdown(description="answer")
    answer = w.Textarea(description="typed", layout=wide(height="5em"))
    spec = _text(task.grader_spec)
    editor = w.Textarea(value=spec, description="grader", layout=wide(height="16em"))
    weight = w.Dropdown(description="number", layout=w.Layout(width="16em"))
    slider = w.FloatSlider(min=0, max=1, step=0.05, layout=w.Layout(width="24em"))
    prompt, shown = w.HTML(layout=wide()), w.HTML(layout=wide())

    def offered() -> dict[str, str]:
        own = samples[row.value] if row.value < len(samples) else ()
        return answers_for(task, rows[row.value], own)

    def show(_: Any = None) -> None:
        answers = offered()
        if answers.get(choice.value) == answer.value:  # as it was chosen, not typed
            del answers[choice.value]
        shown.value = look_at(editor.value, rows[row.value], answer.value, answers)._repr_html_()

    def take_answer(_: Any = None) -> None:
        answer.value = offered().get(choice.value, answer.value)
        show()

    def take_row(_: Any = None) -> None:
        fields = {k: v for k, v in rows[row.value].items() if k != "messages"}
        question, known = prompt_of(rows[row.value]), shorten(fields, 300)
        prompt.value = f"<p>{html.escape(question)}</p><small>{html.escape(known)}</small>"
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

    observers = {row: take_row, weight: take_weight, slider: move, choice: take_answer}
    for control, observer in (observers | {answer: show, editor: take_editor}).items():
        control.observe(observer, "value")
    take_row()
    take_editor()
    return w.VBox([w.HBox([row, choice]), prompt, answer, editor, w.HBox([weight, slider]), shown])
