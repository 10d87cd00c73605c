"""A task is a folder: rows, a grader, how an answer is written, thinking patterns, metrics.

    task = load_task("gene_ranking")          # a name under datasets/, or a folder
    rows = task.rows("test")
    task.grade(rows, samples)                 # fills grade, sub_grades and errors of every sample

`answer_template` says where a model's output holds the answer: in `{"genes": ["{{item.gene}}"]}`
the key "genes" holds a ranked list, and the row's field `gene` is the right entry.
"""

import re
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rftkit.files import UserError, dataset, read_json
from rftkit.graders.answer import answer_place, render_value, schema_of
from rftkit.graders.functions import beside
from rftkit.graders.grader import Grader, GraderSettings, read_grader
from rftkit.records import Sample
from rftkit.rows import Row, read_rows, row_ids

SPLITS = ("train", "validation", "test")


@dataclass
class Task:
    """The fields of task.json, and where the folder is. `grader`: whatever Grader.load reads."""

    name: str
    grader: Grader
    question: str = ""
    answer_template: str | None = None
    worse_answers: list[str] = field(default_factory=list)  # templates, better ones first
    group_by: str | None = None  # the field whose equal values make rows dependent
    patterns: dict[str, str] = field(default_factory=dict)  # {thinking pattern: regex}
    metrics: list[str] = field(default_factory=lambda: ["grade"])
    headline: str = "grade"
    maximum: float | None = None  # the grader's best grade; None: 1, or what right answers earn
    response_format: dict[str, Any] | None = None  # OpenAI's: a JSON schema that answers must fit
    folder: Path | None = None
    # Never read from a task.json: what may run on this machine is for its user to say.
    settings: GraderSettings = GraderSettings()

    def rows(self, split: str) -> list[Row]:
        """The rows of "train", "validation" or "test"."""
        if self.folder is None:
            raise UserError(f"task {self.name}: it has no folder with {split} rows: pass the rows")
        return read_rows(self.folder / f"{split}.jsonl")

    def __post_init__(self) -> None:
        self.grader = Grader.load(self.grader, self.settings)
        if self.maximum is not None:
            self.grader = replace(self.grader, maximum=self.maximum)
        if self.response_format is not None:
            self.grader = replace(self.grader, schema=schema_of(self.response_format))

    @property
    def grader_spec(self) -> dict[str, Any]:
        """The grader's JSON, or what a run keeps of a Python function."""
        return self.grader.record

    @cached_property
    def compiled_patterns(self) -> dict[str, re.Pattern]:
        return {name: re.compile(pattern) for name, pattern in self.patterns.items()}

    @cached_property
    def answer_path(self) -> tuple[list[str | int], str]:
        """(where the answer stands in the output, the row's field that it is compared with)"""
        if place := answer_place(self.answer_template or ""):
            return place
        raise UserError(f"answer_template {self.answer_template!r}: put {{{{item.FIELD}}}} in it")

    def reference(self, row: Row) -> Any:
        """The row's right answer."""
        name = self.answer_path[1]
        if name not in row:
            raise UserError(f'row {row_ids([row])[0]}: no "{name}", the answer: add it')
        return row[name]

    def answers(self, sample: Sample) -> list[Any]:
        """The ranked answers of a sample, best first; empty where none can be read."""
        path = self.answer_path[0]
        if not path:
            return [text] if (text := sample.answer.strip()) else []
        value = sample.output_json
        for step in path:
            if isinstance(step, int):
                return value if isinstance(value, list) else []
            value = value.get(step) if isinstance(value, dict) else None
        return [] if value is None else [value]

    def place(self, row: Row, sample: Sample) -> int | None:
        """The rank of the right answer among a sample's answers, from 1; None if it is absent."""
        reference, answers = self.reference(row), self.answers(sample)
        return answers.index(reference) + 1 if reference in answers else None

    def grade(self, rows: list[Row], samples: list[list[Sample]]) -> None:
        """Fill row_id, grade, sub_grades and errors of samples[row][index]; none if lost."""
        came: list[tuple[Row, Sample]] = []
        for row, row_id, group in zip(rows, row_ids(rows), samples, strict=True):
            for sample in group:
                sample.row_id = row_id
            came += [(row, sample) for sample in group if sample.finish_reason != "error"]
        grades = self.grader.evaluate_many(*zip(*came)) if came else []
        for (_, sample), grade in zip(came, grades):
            sample.grade, sample.sub_grades = grade.reward, dict(grade.sub_rewards)
            sample.errors = grade.errors

    def to_json(self) -> dict[str, Any]:
        """task.json's object."""
        maximum = None if self.grader.maximum == 1 else self.grader.maximum
        record = {key: getattr(self, key) for key in KEYS}
        record |= {"grader": self.grader_spec, "maximum": maximum}
        return {key: value for key, value in record.items() if value is not None}


KEYS = [f.name for f in fields(Task) if f.name not in ("folder", "settings")]  # of task.json


def load_task(name: str | Path) -> Task:
    """Read a task folder: a path, or the name of one under datasets/."""
    folder = Path(name)
    if not (folder / "task.json").exists():
        folder = dataset(str(name))
    return task_from_json(read_json(folder / "task.json"), folder)


def task_from_json(record: dict[str, Any], folder: Path | None = None) -> Task:
    """A task from task.json's object. `grader` may be whatever Grader.load reads, a path relative
    to the folder; a Python function always runs in the sandbox, for the folder may be another's."""
    place = folder / "task.json" if folder else "task"
    if missing := [key for key in ("name", "grader") if key not in record]:
        raise UserError(f"{place}: no {', '.join(missing)}, expected both: add what lacks")
    if unknown := sorted(record.keys() - {*KEYS}):
        raise UserError(f"{place}: unknown {', '.join(unknown)}, expected {', '.join(KEYS)}")
    values = dict(record)
    if isinstance(named := record["grader"], str):
        values["grader"] = read_grader(beside(folder or Path(), named))[0]
    if record.get("answer_template") is not None:
        values["answer_template"] = render_value(record["answer_template"])
    values["worse_answers"] = [render_value(worse) for worse in record.get("worse_answers", [])]
    return Task(**values, folder=folder)
