"""`rftkit check`: the data contract. Every fault of a file, each with its line, in one pass.

    lines.py     is the line JSON, in UTF-8, an object?
    contract.py  are `messages` and `tools` what the contract says?
    answers.py   is the answer there, of one type, and not in the prompt?
    here         between rows: copies, contradictions, ids, groups, limits
    overlap.py   near-duplicates across the split

A fault makes a job fail or its numbers wrong (exit code 1). A note is worth knowing (exit code 0).
Limits: 50,000 training and 1,000 validation rows (OpenAI's reinforcement fine-tuning guide).
"""

from __future__ import annotations

import difflib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rftkit.data.answers import AnswerWatch
from rftkit.data.contract import has_readable_messages, row_faults
from rftkit.data.faults import Fault, Place, bounded, place_of, plural, summarized, value_text
from rftkit.data.lines import read_lines
from rftkit.data.overlap import THRESHOLD, NearDuplicates
from rftkit.data.rows import (
    Row,
    answer_fields,
    digest_of,
    group_of,
    messages_digest,
    messages_text,
    own_id,
)

MAX_ROWS = {"train": 50_000, "validation": 1_000}
FEW_ROWS = 24  # the guide: "start with several dozen to a few hundred"


@dataclass
class CheckReport:
    """What `check_file` found.

    rows         side ("train", "validation") -> the number of lines that are rows
    answer_keys  the keys that were taken for the answer and sought in the prompts
    """

    faults: list[Fault] = field(default_factory=list)
    notes: list[Fault] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    answer_keys: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.faults

    @property
    def counts(self) -> dict[str, int]:
        """Faults by kind, the most frequent first."""
        return dict(Counter(fault.kind for fault in self.faults).most_common())

    def to_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "files": self.files,
            "rows": self.rows,
            "answer_keys": self.answer_keys,
            "counts": self.counts,
            "faults": [fault.to_json() for fault in self.faults],
            "notes": [note.to_json() for note in self.notes],
        }


def check_file(
    path: str | Path,
    validation: str | Path | None = None,
    group_by: str | None = None,
    answer_keys: Sequence[str] = (),
    answer_in_prompt_ok: bool = False,
) -> CheckReport:
    """Check a training file, and the split to its validation file; reports, never raises.

    group_by             the answer field whose values must not stand on both sides
    answer_keys          keys to take for the answer, beside those named like one (answers.py)
    answer_in_prompt_ok  for tasks that look for the answer in a given text
    """
    report = CheckReport()
    between = BetweenRows(group_by, compare_sides=validation is not None)
    values: dict[str, set[str]] = defaultdict(set)
    looked_at: set[str] = set()
    found: list[Fault] = []
    for side, file in (("train", path), ("validation", validation)):
        if file is None:
            continue
        name = place_of(file).file
        report.files[side] = name
        if side == "validation" and is_same_file(path, file):
            found.append(same_file_fault(name))
            continue
        watch = AnswerWatch(name, answer_keys, group_by, answer_in_prompt_ok, values)
        found += _check_side(side, file, watch, between)
        report.rows[side] = watch.n_rows
        looked_at.update(watch.looked_at)
    found += between.finish()
    if validation is None and report.rows.get("train"):
        found.append(no_validation_note(report.files["train"]))
    report.answer_keys = sorted(looked_at)
    order = {name: index for index, name in enumerate(report.files.values())}
    found.sort(key=lambda fault: (order[fault.file], fault.line or 0))
    report.faults = [fault for fault in found if fault.severity == "fault"]
    report.notes = summarized(fault for fault in found if fault.severity == "note")
    return report


def _check_side(
    side: str, path: str | Path, watch: AnswerWatch, between: BetweenRows
) -> Iterator[Fault]:
    first_system, system_rows = None, 0
    for line in read_lines(path):
        yield from line.faults
        if line.row is None:
            continue
        here = Place(watch.file, line.number)
        kinds = {fault.kind for fault in line.faults}
        contract = bounded(row_faults(line.row, here))
        for fault in [*contract, *bounded(watch.add(line.row, here))]:
            # A line in a wrong encoding has damaged text by nature: once said is enough.
            if not (fault.kind == "damaged text" and "wrong encoding" in kinds):
                yield fault
        yield from between.add(side, line.row, here, watch)
        if has_system_role(line.row):
            first_system, system_rows = first_system or here, system_rows + 1
        if watch.n_rows == MAX_ROWS[side] + 1:
            yield too_many_rows(side, here)
    if first_system:
        yield system_role_note(first_system, system_rows)
    if side == "train" and 0 < watch.n_rows < FEW_ROWS:
        found, step = f"{plural(watch.n_rows, 'training row')}", "collect more before a real job"
        expected = "several dozen to a few hundred"
        yield Place(watch.file).note("few rows", found, expected, step)
    yield from watch.finish()


class BetweenRows:
    """What two rows, on one side or on both, must not share."""

    def __init__(self, group_by: str | None, compare_sides: bool) -> None:
        self.group_by = group_by
        self.prompts: dict[bytes, tuple[str, Place, bytes]] = {}
        self.ids: dict[str, Place] = {}
        self.without_id: dict[str, list[Place]] = defaultdict(list)
        self.groups: dict[str, tuple[Place, int]] = {}  # of the training rows: first, how many
        self.without_group: list[tuple[Place, Row | None]] = []
        self.n_rows = 0
        self.near = NearDuplicates() if compare_sides else None
        self.files: dict[str, str] = {}

    def add(self, side: str, row: Row, here: Place, watch: AnswerWatch) -> Iterator[Fault]:
        self.n_rows += 1
        self.files[side] = here.file
        yield from self._identity(row, here)
        if self.group_by:
            yield from self._group(side, row, here, self.group_by)
        if has_readable_messages(row) and row["messages"]:
            yield from self._prompt(side, row, here, watch)

    def _identity(self, row: Row, here: Place) -> Iterator[Fault]:
        own = own_id(row)
        if own is None:
            self.without_id[here.file].append(here)
            return
        first = self.ids.setdefault(own, here)
        if first is not here:
            found = f"the id {value_text(own)} stands in {said(first, here)} too"
            step = "give each row an id of its own: results are joined by it"
            yield here.fault("duplicate id", found, "an id used once", step, "case_id", own)

    def _group(self, side: str, row: Row, here: Place, key: str) -> Iterator[Fault]:
        group = group_of(row, key)
        if group is None:
            # Names alone are kept, to suggest one where no row at all has the key.
            self.without_group.append((here, None if self.without_group else answer_fields(row)))
            return
        if side == "train":
            first, count = self.groups.get(group, (here, 0))
            self.groups[group] = first, count + 1
        elif group in self.groups:
            first, count = self.groups[group]
            shown = f"{key} {value_text(group)}"
            found = f"{shown} stands in {plural(count, 'training row')} too, first {first.line}"
            step = "move all rows of a group to one side: rftkit.data.split_by_group"
            expected = "groups that stand on one side of the split"
            yield here.fault("group on both sides", found, expected, step, key, group)

    def _prompt(self, side: str, row: Row, here: Place, watch: AnswerWatch) -> Iterator[Fault]:
        prompt = messages_digest(row)
        answers = {key: value for key, value in row.items() if watch.keys.get(key)}
        answer = digest_of(answers) if answers else b""
        first_side, first, first_answer = self.prompts.setdefault(prompt, (side, here, answer))
        if first is here:
            if self.near:  # copies word for word are found below and need no comparison
                self.near.add(side, here.line or 0, messages_text(row))
            return
        where = {"key": "messages", "value": messages_text(row)}
        if first_side != side:
            kind, expected = "duplicate across the split", "validation prompts not trained on"
            found = f"the messages are those of {said(first, here)}"
            step = "remove the row from one side: the model would be tested on what it saw"
        elif answer and first_answer and answer != first_answer:
            kind, expected = "contradiction", "one answer to one prompt"
            found = f"the messages are those of {said(first, here)}, the answer is another"
            step = "keep one of the two, or add to the prompts what tells them apart"
        else:
            kind, expected = "duplicate", "each prompt once"
            found = f"the messages are those of {said(first, here)}, and so is the answer"
            step = "remove one of the two: a copy counts double"
        yield here.fault(kind, found, expected, step, **where)

    def finish(self) -> Iterator[Fault]:
        for places in self.without_id.values():
            found = f"{plural(len(places), 'row')} without case_id or row_id"
            step = "add one if rows will ever be moved: the line number serves until then"
            yield places[0].note("no id", found, "an id in each row", step)
        yield from self._missing_groups()
        for line, train_line, similarity in self.near.pairs() if self.near else []:
            here = Place(self.files["validation"], line)
            train = Place(self.files["train"], train_line)
            found = f"the messages are {similarity:.0%} those of {said(train, here)}"
            step = "remove the row from one side, or split by a key that keeps the two together"
            expected = f"less than {THRESHOLD:.0%} in common across the split"
            kind, where = "near-duplicate across the split", ("messages", f"{similarity:.0%}")
            yield here.fault(kind, found, expected, step, *where)

    def _missing_groups(self) -> Iterator[Fault]:
        if not self.without_group or self.group_by is None:
            return
        shown = value_text(self.group_by)
        expected, step = "a group for each row", f"fill {shown} in, or remove the row"
        if len(self.without_group) < self.n_rows:
            for here, _ in self.without_group:
                found = f"{shown} is missing or empty, and the split goes by it"
                yield here.fault("group missing", found, expected, step, self.group_by)
            return
        here, fields = self.without_group[0]
        names = list(fields or {})
        close = difflib.get_close_matches(self.group_by, names, n=1)
        step = f"group by {close[0] if close else 'another key'} (keys: {', '.join(names[:8])})"
        found = f"no row has {shown}"
        yield here.fault("group missing", found, "the key to group by", step, self.group_by)


def said(other: Place, here: Place) -> str:
    """`line 3`, or `train.jsonl:3` where the other row stands in another file."""
    return f"line {other.line}" if other.file == here.file else f"{other.file}:{other.line}"


def is_same_file(path: str | Path, other: str | Path) -> bool:
    try:
        return os.path.samefile(path, other)
    except (OSError, ValueError):
        return False


def same_file_fault(name: str) -> Fault:
    found, expected = "the validation file is the training file", "two files without a common row"
    step = "split the rows: rftkit.data.split_by_group"
    return Place(name).fault("same file twice", found, expected, step)


def too_many_rows(side: str, here: Place) -> Fault:
    limit = MAX_ROWS[side]
    what = "training" if side == "train" else "validation"
    found, expected = f"this is {what} row {limit + 1:,}", f"at most {limit:,} {what} rows"
    step = "remove rows; a few hundred good ones often do"
    return here.fault("too many rows", found, expected, step)


def has_system_role(row: Row) -> bool:
    return has_readable_messages(row) and any(m.get("role") == "system" for m in row["messages"])


def system_role_note(here: Place, count: int) -> Fault:
    found = f'{plural(count, "row")} with the role "system", this one first'
    step = 'write "developer" if the file shall also run on Azure (its older documents)'
    return here.note("system role", found, '"developer" on Azure', step, key="messages")


def no_validation_note(name: str) -> Fault:
    step = "name it: rftkit check FILE --validation FILE; a job needs both"
    found = "no validation file, so the split was not checked"
    return Place(name).note("no validation file", found, "a validation file", step)
