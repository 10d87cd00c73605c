"""The grader lab of the notebooks: a thin shell over functions without widgets."""

import html
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rftkit.files import UserError, shorten
from rftkit.graders.answer import fill_template
from rftkit.graders.grader import Grader
from rftkit.records import Sample
from rftkit.rows import messages_text, row_ids
from rftkit.task import Task

WEIGHT = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?|\.\d+)\s*\*\s*([A-Za-z_]\w*)")  # 0.7 * second


def look_at(
    grader: dict[str, Any] | str,
    row: dict[str, Any],
    answer: str,
    others: Mapping[str, str] | None = None,
) -> str:
    """What the lab shows of one answer, thinking tags included, among others, {name: answer}. The
    grader may be JSON that is just being edited: what is wrong with it is shown, not raised."""
    others, sample = others or {}, Sample.from_text(answer)
    try:
        made = Grader.load(grader)
        made.check_ready()
        report = made.evaluate(row, sample)
        reports = made.evaluate_many([row] * len(others), [*map(Sample.from_text, others.values())])
    except UserError as error:
        return f"no grade: {error}"
    reward = "none" if report.reward is None else f"{report.reward:.2f}"
    lines = [f"reward      {reward}   read as: {sample.parse_stage}"]
    formula = made.to_json().get("calculate_output")
    lines += [f"formula     {formula}"] if formula else []
    lines += [f"  {name:14} {_bar(value)}" for name, value in report.sub_rewards.items()]
    if report.reward is not None:
        known = [other.reward for other in reports if other.reward is not None]
        better = sum(reward > report.reward + 1e-9 for reward in known)
        lines.append(f"standing    {1 + better} of {1 + len(known)}")
    if others:
        ranking = [(other.reward, " ", name) for name, other in zip(others, reports)]
        ranking.append((report.reward, ">", "this answer"))
        ranking.sort(key=lambda entry: float("inf") if entry[0] is None else -entry[0])
        lines += [f"{mark} {name:14} {_bar(value)}" for value, mark, name in ranking]
    return "\n".join(lines + [f"! {shorten(line, 100)}" for line in report.explanations])


def _bar(value: float | None) -> str:
    if value is None:
        return "none "
    return f"{value:.2f} {'█' * round(20 * min(max(value, 0.0), 1.0))}"


def weights_of(grader: str) -> dict[str, float]:
    """{name: number} of a formula in grader JSON: `0.9 * max(first, 0.7 * second)` has
    {"max": 0.9, "second": 0.7}. Empty where the text is (not yet) JSON with a formula."""
    try:
        formula = json.loads(grader)["calculate_output"]
    except (ValueError, LookupError, TypeError):
        return {}
    return {name: float(number) for number, name in WEIGHT.findall(formula)}


def with_weight(grader: str, name: str, value: float) -> str:
    """The grader JSON with that number in its formula, which has one before `* name`."""
    spec = json.loads(grader)
    formula = spec["calculate_output"]
    *_, match = (match for match in WEIGHT.finditer(formula) if match[2] == name)
    spec["calculate_output"] = formula[: match.start(1)] + f"{value:g}" + formula[match.end(1) :]
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
    """Choose a row and an answer (or type one), edit the grader, or move one number of its formula
    by a slider, and see the grade. `samples` are answers of a model to each row. Returns the widget
    (a VBox); without a front end it prints the first row's view. To keep a grader copy its JSON."""
    if not (has_front_end() if widget is None else widget):
        answers = answers_for(task, rows[0], samples[0] if samples else ())
        name, typed = answers.popitem() if answers else ("nothing", "")
        print(f"(no widget front end: shown as text) row {row_ids(rows)[0]}, {name}:", typed)
        print(look_at(task.grader_spec, rows[0], typed, answers))
        return None
    import ipywidgets as w

    names = [(str(name), place) for place, name in enumerate(row_ids(rows))]
    row = w.Dropdown(options=names, description="row")
    choice = w.Dropdown(description="answer")
    answer = w.Textarea(description="typed", layout={"width": "98%", "height": "5em"})
    editor = w.Textarea(description="grader", layout={"width": "98%", "height": "16em"})
    weight = w.Dropdown(description="number", layout={"width": "16em"})
    slider = w.FloatSlider(min=0, max=1, step=0.05, layout={"width": "24em"})
    prompt, shown = w.HTML(layout={"width": "98%"}), w.HTML(layout={"width": "98%"})
    editor.value = json.dumps(task.grader_spec, indent=1, ensure_ascii=False)

    def offered() -> dict[str, str]:
        return answers_for(task, rows[row.value], samples[row.value] if samples else ())

    def show(_: Any = None) -> None:
        answers = offered()
        if answers.get(choice.value) == answer.value:  # as it was chosen, not typed
            del answers[choice.value]
        text = look_at(editor.value, rows[row.value], answer.value, answers)
        shown.value = f"<pre>{html.escape(text)}</pre>"

    def take_answer(_: Any = None) -> None:
        answer.value = offered().get(choice.value, answer.value)
        show()

    def take_row(_: Any = None) -> None:
        fields = {k: v for k, v in rows[row.value].items() if k != "messages"}
        question, known = messages_text(rows[row.value]), shorten(fields, 300)
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
