"""A task is a folder: rows, a grader, how an answer is written, thinking patterns, metrics.

    task = load_task("gene_ranking")          # a name under datasets/, or a folder
    rows = task.rows("test")
    task.grade(rows, samples)                 # fills grade, sub_grades, errors of every sample

Nothing here knows what the task is about: where the answer stands in a model's output is read off
`answer_template`. `{"genes": ["{{item.reference_gene}}"]}` says that the output is JSON, that its
key "genes" holds a ranked list, and that the row's field `reference_gene` is the right entry.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rftkit.files import UserError, dataset
from rftkit.graders.answer import answer_place
from rftkit.graders.grader import Grader, GraderSettings
from rftkit.records import Sample
from rftkit.rows import read_rows, row_ids

SPLITS = ("train", "validation", "test")


@dataclass
class Task:
    """The fields of task.json, and where the folder is."""

    name: str
    question: str
    grader_spec: dict[str, Any]
    answer_template: str | None = None
    worse_answers: list[str] = field(default_factory=list)
    group_by: str | None = None
    patterns: dict[str, str] = field(default_factory=dict)
    metrics: list[str] = field(default_factory=lambda: ["grade"])
    headline: str = "grade"
    folder: Path | None = None
    # Never read from a task.json: what may run on this machine is for its user to say.
    settings: GraderSettings = GraderSettings()

    def rows(self, split: str) -> list[dict[str, Any]]:
        """The rows of "train", "validation" or "test"."""
        if split not in SPLITS:
            raise UserError(f'split: "{split}", expected one of {", ".join(SPLITS)}')
        if self.folder is None:
            raise UserError(f"task {self.name}: it has no folder, so no {split} rows: hand rows in")
        return read_rows(self.folder / f"{split}.jsonl")

    @cached_property
    def grader(self) -> Grader:
        return Grader.load(self.grader_spec, self.settings)

    @cached_property
    def compiled_patterns(self) -> dict[str, re.Pattern]:
        return {name: re.compile(pattern) for name, pattern in self.patterns.items()}

    @cached_property
    def answer_path(self) -> tuple[list[str | int], str]:
        """(where the answer stands in the output, the row's field it is compared with).

        The path's last entry is a number where the answer is a ranked list. An answer that is
        plain text has the empty path.
        """
        if self.answer_template is None:
            raise UserError(
                f"task {self.name}: no answer_template, expected one for metrics that look for the "
                'right answer: add it, or measure "grade" alone'
            )
        found = answer_place(self.answer_template)
        if found is None:
            raise UserError(
                f"task {self.name}: answer_template {self.answer_template!r} names no "
                "{{item.FIELD}}: write the row's answer field where the right answer belongs"
            )
        return found

    def reference(self, row: dict[str, Any]) -> Any:
        """The row's right answer. UserError where the row lacks the field."""
        name = self.answer_path[1]
        if name not in row:
            row_id = next(iter(row_ids([row])))
            raise UserError(
                f'task {self.name}: row {row_id} has no field "{name}", expected one with the '
                "right answer, as answer_template names it: add it, or correct the template"
            )
        return row[name]

    def answers(self, sample: Sample) -> list[Any]:
        """The ranked answers of a sample, best first; empty where none can be read."""
        path = self.answer_path[0]
        if not path:
            text = sample.output_text.strip()
            return [text] if text else []
        found = sample.output_json
        for step in path:
            if isinstance(step, int):
                return found if isinstance(found, list) else []
            found = found.get(step) if isinstance(found, dict) else None
        return [] if found is None else [found]

    def place(self, row: dict[str, Any], sample: Sample) -> int | None:
        """Where the right answer stands in the ranked answers, from 1; None where it does not."""
        reference = self.reference(row)
        for place, answer in enumerate(self.answers(sample), 1):
            if answer == reference:
                return place
        return None

    def grade(self, rows: list[dict[str, Any]], samples: list[list[Sample]]) -> None:
        """Fill row_id, grade, sub_grades and errors of samples[row][index], in place."""
        for row, row_id, group in zip(rows, row_ids(rows), samples, strict=True):
            for sample in group:
                sample.row_id = row_id
                self.grade_sample(row, sample)

    def grade_sample(self, row: dict[str, Any], sample: Sample) -> None:
        """Fill the grade fields of one answer; one that never came back has none."""
        if sample.finish_reason == "error":
            return
        grade = self.grader.evaluate(row, sample)
        sample.grade, sample.sub_grades = grade.reward, dict(grade.sub_rewards)
        sample.errors = grade.errors

    def to_json(self) -> dict[str, Any]:
        """task.json's object."""
        return {
            "name": self.name,
            "question": self.question,
            "grader": self.grader_spec,
            "answer_template": self.answer_template,
            "worse_answers": self.worse_answers,
            "group_by": self.group_by,
            "patterns": self.patterns,
            "metrics": self.metrics,
            "headline": self.headline,
        }


def load_task(name: str | Path) -> Task:
    """Read a task folder: a path, or the name of one under datasets/."""
    folder = Path(name)
    if not (folder / "task.json").exists():
        folder = dataset(str(name))
    place = folder / "task.json"
    try:
        record = json.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder}: no task.json, expected a task folder: take {dataset('gene_ranking')} as "
            "an example"
        ) from None
    except ValueError as error:
        raise UserError(f"{place}: not JSON ({error}): mend it there") from None
    return task_from_json(record, folder)


def task_from_json(record: dict[str, Any], folder: Path | None = None) -> Task:
    """A task from task.json's object; `grader` may be a path, relative to the folder."""
    known = dict(record)
    place = folder / "task.json" if folder else "task"
    missing = [key for key in ("name", "question", "grader") if key not in known]
    if missing:
        raise UserError(f"{place}: without {', '.join(missing)}, expected all three: add them")
    grader = known.pop("grader")
    if isinstance(grader, str):
        path = (folder or Path()) / grader
        try:
            grader = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f'{place}: "grader": {path} cannot be read ({error})') from None
    template = known.get("answer_template")
    if template is not None and not isinstance(template, str):
        known["answer_template"] = json.dumps(template)
    worse = [w if isinstance(w, str) else json.dumps(w) for w in known.pop("worse_answers", [])]
    fields = set(Task.__dataclass_fields__) - {"settings"}
    unknown = sorted(known.keys() - fields)
    if unknown:
        raise UserError(
            f"{place}: unknown {', '.join(unknown)}, expected {', '.join(sorted(fields))}: "
            "check the spelling"
        )
    return Task(grader_spec=grader, worse_answers=worse, folder=folder, **known)
