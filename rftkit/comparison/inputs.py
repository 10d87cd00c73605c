"""What is evaluated: the rows, the task they belong to, the grader, metrics of your own.

Everything that can be wrong is said here, before a model is loaded.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rftkit.data.errors import UserError
from rftkit.data.files import dataset
from rftkit.data.records import Sample
from rftkit.data.rows import read_rows, row_ids, row_ids_note
from rftkit.evaluation import MetricFunction
from rftkit.graders.command_line import shelf_json
from rftkit.graders.context import Context
from rftkit.graders.shelf import SHELF
from rftkit.task import Task, load_task, task_from_json
from rftkit.training.command_line import read_grader


@dataclass
class Inputs:
    """Rows with the task that says how to grade and measure them.

    place      the file of the rows
    functions  metrics of your own, by the name under which they stand in the report
    headline   the metric that the picture and the paired differences show first
    notes      what was decided for the user, each a sentence
    """

    place: Path
    rows: list[dict[str, Any]]
    task: Task
    functions: dict[str, MetricFunction] = field(default_factory=dict)
    headline: str = "grade"
    notes: list[str] = field(default_factory=list)


def read_inputs(
    rows: str | Path,
    grader: str | Path | None = None,
    metrics: Sequence[str] = (),
    task: str | Path | None = None,
    group_by: str | None = None,
    allow_weak_isolation: bool = False,
) -> Inputs:
    """Read and check what is evaluated.

    rows      a JSONL file; or a task (a folder, or a name under datasets/), meaning its test rows
    grader    a file with grader JSON, or the name of one on the shelf; by default the task's
    metrics   "module:function" each, see load_metric
    task      a task folder or name, by default the one in whose folder the rows stand: it says
              where the answer stands, what intervals are clustered by, which thinking patterns
    group_by  instead of the task's
    allow_weak_isolation  of python graders, see Grader.load

    Raises UserError for anything missing, unreadable, or unfit for these rows.
    """
    place, found = find_task(rows, task)
    notes = []
    if found is None:
        if grader is None:
            raise UserError(
                f"--grader: missing, and no task.json stands beside {place}, expected one of the "
                "two: name a grader's JSON or `rftkit graders` for those on the shelf"
            )
        found = task_from_json({"name": place.stem, "question": "", "grader": {}})
        notes.append(
            "no task.json beside the rows, so the grade is the metric, and nothing says where the "
            "answer stands (top1 would need it): --task names one"
        )
    else:
        notes.append(f"task {found.name}: metrics {', '.join(found.metrics)}")
    changes: dict[str, Any] = {}
    if grader is not None:
        changes["grader_spec"] = grader_spec(grader)
    if group_by is not None:
        changes["group_by"] = group_by
    found = replace(found, **changes)
    found.allow_weak_isolation = allow_weak_isolation
    loaded = read_rows(place)
    check_fit(place, loaded, found)
    clusters = f"by {found.group_by}" if found.group_by else "by row (--group-by names a key)"
    notes += [f"intervals are clustered {clusters}", *filter(None, [row_ids_note(loaded)])]
    functions = {name: load_metric(name) for name in metrics}
    headline = next(iter(functions), found.headline)
    return Inputs(place, loaded, found, functions, headline, notes)


def find_task(rows: str | Path, task: str | Path | None) -> tuple[Path, Task | None]:
    """(the file of the rows, the task that was named or in whose folder they stand)."""
    place = Path(rows)
    named = load_task(task) if task is not None else None
    if place.is_dir() or (not place.exists() and is_dataset(str(rows))):
        own = load_task(rows)
        return own.folder / "test.jsonl", named or own
    if named is None and (place.parent / "task.json").exists():
        named = load_task(place.parent)
    return place, named


def is_dataset(name: str) -> bool:
    try:
        return (dataset(name) / "task.json").exists()
    except UserError:
        return False


def grader_spec(grader: str | Path) -> dict[str, Any]:
    """Grader JSON from a file, or from the shelf by its name."""
    if not Path(grader).exists() and str(grader) in SHELF:
        return shelf_json(str(grader))
    return read_grader(str(grader))


def check_fit(place: Path, rows: list[dict[str, Any]], task: Task) -> None:
    """Raise UserError where these rows cannot be graded, grouped, or compared with their answer."""
    if not rows:
        raise UserError(f"{place}: no rows, expected at least one")
    row_ids(rows)  # raises where two share an id
    task.grader.check_ready()
    task.grader.check_rows(rows)
    needed = [task.group_by] if task.group_by else []
    if task.answer_template is not None:
        needed.append(task.answer_path[1])
    for key in needed:
        lacking = [number for number, row in enumerate(rows, 1) if key not in row]
        if lacking:
            raise UserError(
                f'{place}:{lacking[0]}: without "{key}" ({len(lacking)} of {len(rows)} rows), '
                f"expected by task {task.name}: fill it in, or name another --task or --group-by"
            )


def load_metric(name: str) -> MetricFunction:
    """A metric of your own from "module:function", the module found as if `python` were run here.

    The function takes (sample, item), as a python grader does, and returns one number, the larger
    the better. sample: {"output_text", "output_json" (None where it is not JSON), "output_tools",
    "choices"} and beside these "reasoning", "finish_reason", "completion_tokens"; item: the row.
    It runs IN THIS PROCESS with all your rights: for your own code only.

    Raises UserError for a name that cannot be loaded; calling what is returned raises UserError
    where the function fails or returns anything but a finite number, naming the row.
    """
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise UserError(
            f'--metric: "{name}", expected module:function, such as my_metrics:first_letter for '
            "the function first_letter of my_metrics.py in this folder"
        )
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever a user's module raises when it is imported
        raise UserError(
            f"--metric {name}: cannot be loaded ({type(error).__name__}: {error}), expected a "
            f"function {function}(sample, item) in {module}.py here, or in an installed module"
        ) from None
    finally:
        sys.path.remove(here)
    if not callable(found):
        kind = type(found).__name__
        raise UserError(f"--metric {name}: a {kind}, expected a function of (sample, item)")
    return checked_metric(name, found)


def checked_metric(name: str, function: Callable[[dict, dict], float]) -> MetricFunction:
    """`function` as (row, Sample) -> a finite number."""

    def value(row: dict[str, Any], sample: Sample) -> float:
        context = Context(row, sample)
        seen = context.as_dict() | {
            "reasoning": sample.reasoning,
            "finish_reason": sample.finish_reason,
            "completion_tokens": sample.completion_tokens,
        }
        where = f"--metric {name}: row {sample.row_id}, answer of {sample.model}"
        try:
            result = function(seen, context.item)
        except Exception as error:
            raise UserError(
                f"{where}: {type(error).__name__}: {error}, expected a number: mend the function"
            ) from error
        if not isinstance(result, int | float) or not math.isfinite(result):
            raise UserError(f"{where}: {result!r}, expected a finite number")
        return float(result)

    return value
