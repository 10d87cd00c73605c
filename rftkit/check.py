"""`rftkit check`: every fault of a file, each with its line, in one pass.

`contract.py` finds what is wrong with a line by itself. Here: the answers, and what shows only
between rows. A fault makes a job fail or its numbers wrong; a note is worth knowing.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rftkit.contract import KINDS, Fault, Row, read_lines, readable_messages, value_text, walk
from rftkit.files import plural
from rftkit.overlap import similar_prompts
from rftkit.rows import ID_KEYS, answer_fields, digest_of, group_of, messages_text, own_id

MAX_ROWS = {"train": 50_000, "validation": 1_000}  # OpenAI's reinforcement fine-tuning guide
FEW_ROWS = 24  # the guide: "start with several dozen to a few hundred"
# kind -> (what was expected, the next step)
KINDS |= {
    "no validation file": ("a validation file", "name it with --validation: a job needs both"),
    "same file twice": ("a file of other rows", "split the rows with rftkit.split_by_group"),
    "too many rows": ("50,000 for training, 1,000 for validation", "remove the others"),
    "few rows": ("several dozen or more", "collect more before a real job"),
    "answer missing": ("it as in the other rows", "add it: a grader's template fails on the row"),
    "answer empty": ("an answer", "fill it in, or remove the row: no output could be right"),
    "answer with blanks": ("the bare answer", "strip it: no output would equal it"),
    "answer type": ("the other rows' type", "write it as they do: one grader reads them all"),
    "answer in the prompt": (
        "a prompt that does not tell the answer",
        "take it out (or, if the task is to find it in a text: --answer-in-prompt-ok)",
    ),
    "duplicate id": ("it once", "give each row an id of its own: results are joined by it"),
    "duplicate": ("each prompt once", "remove one of the two: a copy counts double"),
    "contradiction": ("one answer to one prompt", "keep one, or tell the prompts apart"),
    "duplicate across the split": ("prompts not trained on", "remove the row from one side"),
    "near-duplicate across the split": ("less than 80% alike", "keep them on one side"),
    "group missing": ("a group for each row", "fill it in, or group by another key"),
    "group on both sides": ("each group on one side", "split with rftkit.split_by_group"),
}


@dataclass
class Side:
    """One file of the split ("train" or "validation"), with (line, row) of what is a row."""

    name: str
    file: str
    rows: list[tuple[int, Row]] = field(default_factory=list)

    def fault(self, line: int | None, kind: str, found: str, key: str = "", value: str = ""):
        return Fault(kind, found, key, value, self.file, line)

    def note(self, line: int | None, kind: str, found: str) -> Fault:
        return Fault(kind, found, file=self.file, line=line, severity="note")

    def place(self, line: int, seen_from: Side) -> str:
        """`line 3`, or `train.jsonl:3` where the other row stands in another file."""
        return f"line {line}" if self is seen_from else f"{self.file}:{line}"


@dataclass
class CheckReport:
    """What `check_file` found."""

    faults: list[Fault] = field(default_factory=list)
    notes: list[Fault] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)  # side -> how many lines are rows
    files: dict[str, str] = field(default_factory=dict)
    answer_keys: list[str] = field(default_factory=list)  # looked for in the prompts

    @property
    def ok(self) -> bool:
        return not self.faults

    @property
    def counts(self) -> dict[str, int]:
        """How many faults there are of each kind, the most frequent first."""
        return dict(Counter(fault.kind for fault in self.faults).most_common())

    def add(self, found: Iterable[Fault]) -> None:
        for fault in found:
            (self.notes if fault.severity == "note" else self.faults).append(fault)

    def to_json(self) -> dict[str, Any]:
        faults, notes = ([f.to_json() for f in found] for found in (self.faults, self.notes))
        record = {"ok": self.ok, "counts": self.counts}
        return record | vars(self) | {"faults": faults, "notes": notes}


def check_file(
    path: str | Path,
    validation: str | Path | None = None,
    group_by: str | None = None,
    answer_keys: Sequence[str] = (),
    answer_in_prompt_ok: bool = False,
) -> CheckReport:
    """Check a training file, and the split to its validation file.

    Values of the answer field `group_by` must not stand on both sides. `answer_keys` are taken for
    the answer beside those named like one. `answer_in_prompt_ok` is for tasks that look for the
    answer in a given text.
    """
    report, sides = CheckReport(), [Side("train", str(path))]
    if validation is None:
        report.add([sides[0].note(None, "no validation file", "the split was not checked")])
    else:
        sides.append(Side("validation", str(validation)))
        if Path(path).resolve() == Path(validation).resolve():
            report.add([sides.pop().fault(None, "same file twice", "it is the training file")])
    for side in sides:
        for line, row, faults in read_lines(side.file):
            report.add(faults)
            side.rows += [(line, row)] if row is not None else []
        report.files[side.name], report.rows[side.name] = side.file, len(side.rows)
        report.add(size_faults(side))
    names = {name for side in sides for _, row in side.rows for name in answer_fields(row)}
    named = {name for name in names if looks_like_answer(name)}
    keys = report.answer_keys = sorted(named | {*answer_keys, group_by} & names)
    for key in keys:
        for side in sides:
            report.add(answer_faults(side, key))
        report.add(answers_in_prompts(sides, key, answer_in_prompt_ok))
    report.add(repeated_ids(sides))
    report.add(repeated_prompts(sides, keys))
    report.add(group_faults(sides, group_by) if group_by else ())
    report.add(near_duplicates(*sides) if len(sides) == 2 else ())
    order = {name: place for place, name in enumerate(report.files.values())}
    for found in (report.faults, report.notes):
        found.sort(key=lambda fault: (order.get(fault.file, 1), fault.line or 0))
    return report


def size_faults(side: Side) -> Iterator[Fault]:
    limit, count = MAX_ROWS[side.name], len(side.rows)
    if count > limit:
        yield side.fault(side.rows[limit][0], "too many rows", f"{count:,} rows")
    if side.name == "train" and 0 < count < FEW_ROWS:
        yield side.note(None, "few rows", plural(count, "row"))


# Keys that count as the answer are those named like one, the key to group by, and those that the
# caller names. Other fields, say `sex` or the list of symptoms, may well stand in the prompt.
ANSWER_WORDS = "reference answer label target correct expected solution gold truth".split()
# answer_type, label_options, reference_url: about the answer, not the answer.
NOT_THE_ANSWER = set(
    "type format kind unit units options choices candidates id ids url source schema length date "
    "names count set by language".split()
)
COMMON_VALUES = {"yes", "no", "true", "false", "none", "null", "unknown", "other"}
INVISIBLE = " \t\r\n\u00a0\u200b\u200c\u200d\u2060\ufeff"


def looks_like_answer(key: str) -> bool:
    """True of `reference_gene` and `trueLabel`, not of `answer_type` and `sex`."""
    words = [w.lower() for w in re.split(r"[^A-Za-z0-9]+|(?<=[a-z])(?=[A-Z])", key) if w]
    if key in ID_KEYS or NOT_THE_ANSWER.intersection(words):
        return False
    return any(word.startswith(start) for word in words for start in ANSWER_WORDS)


def answer_faults(side: Side, key: str) -> Iterator[Fault]:
    """Answers that are missing, empty, in invisible blanks, or of another type than the others.

    A key that most rows lack is optional; where a quarter is of another type, it is meant.
    """
    types = Counter(json_type(row[key]) for _, row in side.rows if key in row)
    usual, count = types.most_common(1)[0] if types else ("", 0)
    for line, row in side.rows:
        value = row.get(key)
        bare = value.strip(INVISIBLE) if isinstance(value, str) else value
        shown = value_text(value)
        found = f'"{key}" is {shown}'
        if key not in row and 2 * types.total() >= len(side.rows):
            kind, found, shown = "answer missing", f'"{key}" is missing', ""
            if close := difflib.get_close_matches(key, row.keys(), n=1, cutoff=0.75):
                found += f', but "{close[0]}" is here'
        elif key in row and bare in (None, "", [], {}):
            kind = "answer empty"
        elif bare != value:
            kind = "answer with blanks"
        elif key in row and json_type(value) != usual and 4 * count > 3 * types.total():
            kind = "answer type"
        else:
            continue
        yield side.fault(line, kind, found, key, shown)


def json_type(value: Any) -> str:
    return "number" if type(value) in (int, float) else type(value).__name__


def answers_in_prompts(sides: Sequence[Side], key: str, allowed: bool) -> Iterator[Fault]:
    """Rows whose prompt tells the answer word for word.

    Where the prompt also holds two other rows' answers (or all there are), it offers a choice:
    candidates, the labels to pick from. That is a note.
    """
    values = {v for side in sides for _, row in side.rows for v in searchable(row.get(key))}
    known = {" ".join(words_of(value)) for value in values}
    longest = min(6, max((value.count(" ") + 1 for value in known), default=0))
    for side in sides:
        choices = []
        for line, row in side.rows:
            prompt = prompt_text(row)
            value = next((v for v in searchable(row.get(key)) if stands_in(v, prompt)), None)
            if value is None:
                continue
            others = phrases(prompt, longest) & known - {" ".join(words_of(value))}
            if allowed or len(others) >= max(1, min(2, len(known) - 1)):
                choices.append(line)
                continue
            shown = value_text(value)
            found = f'the value of "{key}" ({shown}) stands in "messages"'
            yield side.fault(line, "answer in the prompt", found, key, shown)
        if choices:
            found = f'"{key}" stands among others in the prompt of {plural(len(choices), "row")}'
            yield side.note(choices[0], "answer in the prompt", found)


def searchable(answer: Any) -> list[str]:
    """The texts of an answer (alone, in a list or in an object) that are worth looking for.

    Chance finds others: under 3 characters, numbers under 5, yes and no.
    """
    texts = []
    for _, leaf in list(walk(answer))[:50]:
        text = str(leaf).strip(INVISIBLE) if type(leaf) in (str, int, float) else ""
        is_number = re.fullmatch(r"[-+]?[\d.,]+%?", text[:30]) is not None
        if len(text) >= (5 if is_number else 3) and text.lower() not in COMMON_VALUES:
            texts.append(text[:500])  # of a long answer the beginning is looked for
    return texts


def stands_in(value: str, text: str) -> bool:
    """True where the value stands in the text as a word of its own: "SCN1A" in "SCN1A-related",
    not in "SCN1AB". Case counts, except in values of several words or 8 characters and more."""
    if len(value) >= 8 or len(words_of(value)) > 1:
        value, text = value.casefold(), text.casefold()
    return value in text and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text) is not None


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def phrases(text: str, longest: int) -> set[str]:
    """Every run of up to `longest` words."""
    words, lengths = words_of(text), range(1, longest + 1)
    return {" ".join(words[i : i + n]) for n in lengths for i in range(len(words) - n + 1)}


def prompt_text(row: Row) -> str:
    """What the model reads: an assistant's message at the very end is an answer, not a prompt."""
    messages = readable_messages(row)
    if messages and messages[-1].get("role") == "assistant":
        messages = messages[:-1]
    return messages_text({"messages": messages})


# Between rows.


def repeated_ids(sides: Sequence[Side]) -> Iterator[Fault]:
    first: dict[str, tuple[Side, int]] = {}
    for side in sides:
        for line, row in side.rows:
            identity = own_id(row)
            if identity and first.setdefault(identity, (side, line)) != (side, line):
                other, place = first[identity]
                found = f"the id {value_text(identity)} stands in {other.place(place, side)} too"
                yield side.fault(line, "duplicate id", found, "case_id", identity)


def repeated_prompts(sides: Sequence[Side], keys: Collection[str]) -> Iterator[Fault]:
    """Prompts that come again word for word."""
    first: dict[bytes, tuple[Side, int, bytes]] = {}
    for side in sides:
        for line, row in side.rows:
            if not readable_messages(row):
                continue
            own = side, line, digest_of({key: row[key] for key in keys if key in row})
            other, place, answers = first.setdefault(digest_of(row["messages"]), own)
            if (other, place) == (side, line):
                continue
            kind = "duplicate" if answers == own[2] else "contradiction"
            kind = kind if other is side else "duplicate across the split"
            found = f"the messages are those of {other.place(place, side)}"
            yield side.fault(line, kind, found, "messages", value_text(messages_text(row)))


def group_faults(sides: Sequence[Side], key: str) -> Iterator[Fault]:
    """Groups on both sides, and rows without one. Where no row has the key, one fault says so."""
    rows = [(side, line, row, group_of(row, key)) for side in sides for line, row in side.rows]
    if rows and not any(group for *_, group in rows):
        side, line, row, _ = rows[0]
        close = difflib.get_close_matches(key, answer_fields(row), n=1)
        hint = f", but {close[0]}" if close else ""
        yield side.fault(line, "group missing", f'no row has "{key}"{hint}', key)
        return
    first: dict[str, tuple[Side, int]] = {}
    for side, line, _, group in rows:
        if group is None:
            yield side.fault(line, "group missing", f'"{key}" is missing or empty', key)
        elif first.setdefault(group, (side, line))[0] is not side:
            (other, place), shown = first[group], value_text(group)
            found = f"{key} {shown} stands in {other.place(place, side)} too"
            yield side.fault(line, "group on both sides", found, key, shown)


def near_duplicates(train: Side, validation: Side) -> Iterator[Fault]:
    """Validation prompts that are nearly a training prompt. Exact copies are named elsewhere."""
    prompts: dict[bytes, tuple[Side, int, str]] = {}
    for side in (train, validation):
        for line, row in side.rows:
            if readable_messages(row):
                own = side, line, messages_text(row)
                prompts.setdefault(digest_of(row["messages"]), own)
    trained, held_out = ([p for p in prompts.values() if p[0] is s] for s in (train, validation))
    pairs = similar_prompts([p[2] for p in trained], [p[2] for p in held_out])
    for number, other, similarity in pairs:
        kind, shown = "near-duplicate across the split", f"{similarity:.0%}"
        found = f"the messages are {shown} those of {train.file}:{trained[other][1]}"
        yield validation.fault(held_out[number][1], kind, found, "messages", shown)
