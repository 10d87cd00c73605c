"""`rftkit check`: every fault of a file, each with its line, in one pass.

`contract.py` finds what is wrong with a line by itself. Here: the answers, and what shows only
between rows.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rftkit.contract import Fault, Row, read_lines, readable_messages, value_text, walk
from rftkit.rows import ID_KEYS, answer_fields, group_of, messages_key, messages_text, own_id

MAX_ROWS = {"train": 50_000, "validation": 1_000}  # OpenAI's reinforcement fine-tuning guide


class Line(NamedTuple):
    """A line that holds a row."""

    file: str
    number: int
    row: Row

    def fault(self, kind: str, found: str, key: str = "", value: str = "") -> Fault:
        return Fault(kind, found, key, value, self.file, self.number)

    def seen_from(self, other: Line) -> str:
        """`line 3`, or `train.jsonl:3` from another file."""
        return f"line {self.number}" if other.file == self.file else f"{self.file}:{self.number}"


@dataclass
class CheckReport:
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
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

    def to_json(self) -> dict[str, Any]:
        record = {"ok": self.ok, "counts": self.counts} | vars(self)
        return record | {"faults": [fault.to_json() for fault in self.faults]}


def check_file(
    path: str | Path,
    validation: str | Path | None = None,
    group_by: str | None = None,
    answer_keys: Sequence[str] = (),
    answer_in_prompt_ok: bool = False,
) -> CheckReport:
    """Check a training file, and the split to its validation file by the field `group_by`.
    `answer_keys`: beside those named like an answer; `answer_in_prompt_ok`: to be found there."""
    report, found, lines = CheckReport(files={"train": str(path)}), [], []
    if validation:
        report.files["validation"] = str(validation)
    else:
        report.notes.append("the split was not checked: name the other file with --validation")
    for side, file in report.files.items():
        own = []
        for number, row, faults in read_lines(file):
            found += faults
            own += [] if row is None else [Line(file, number, row)]
        report.rows[side] = len(own)
        for line in own[MAX_ROWS[side] :][:1]:
            found.append(line.fault("too many rows", f"{len(own):,} rows"))
        lines += own
    names = {name for line in lines for name in answer_fields(line.row)}
    named = {name for name in names if looks_like_answer(name)}
    keys = report.answer_keys = sorted(named | {*answer_keys, group_by} & names)
    for key in keys:
        found += answer_faults(lines, key)
        found += [] if answer_in_prompt_ok else answers_in_prompts(lines, key)
    found += repeated_ids(lines)
    found += repeated_prompts(lines, keys)
    found += group_faults(lines, group_by) if group_by else ()
    found += near_duplicates(lines, str(validation)) if validation else ()
    order = list(report.files.values())
    report.faults = sorted(found, key=lambda fault: (order.index(fault.file), fault.line or 0))
    return report


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


def answer_faults(lines: Sequence[Line], key: str) -> Iterator[Fault]:
    """A key that most rows lack is optional; where a quarter is of another type, it is meant."""
    types = Counter(json_type(line.row[key]) for line in lines if key in line.row)
    [(usual, count)] = types.most_common(1)
    for line in lines:
        value = line.row.get(key)
        bare = value.strip(INVISIBLE) if isinstance(value, str) else value
        if key not in line.row:
            if 2 * types.total() >= len(lines):
                yield line.fault("answer missing", f'"{key}" is missing', key)
            continue
        if bare in (None, "", [], {}):
            kind = "answer empty"
        elif bare != value:
            kind = "answer with blanks"
        elif json_type(value) != usual and 4 * count > 3 * types.total():
            kind = "answer type"
        else:
            continue
        yield line.fault(kind, f'"{key}" is {value_text(value)}', key, value_text(value))


def json_type(value: Any) -> str:
    return "number" if type(value) in (int, float) else type(value).__name__


def answers_in_prompts(lines: Sequence[Line], key: str) -> Iterator[Fault]:
    """Rows whose prompt tells the answer word for word. Where it also holds two other rows' answers
    (or all there are), it offers a choice: candidates, the labels to pick from."""
    known = {words_of(value) for line in lines for value in searchable(line.row.get(key))}
    longest = min(6, max(map(len, known), default=0))
    for line in lines:
        messages = readable_messages(line.row)
        if messages and messages[-1].get("role") == "assistant":
            messages = messages[:-1]  # an answer, no part of the prompt
        prompt = messages_text({"messages": messages})
        told = [value for value in searchable(line.row.get(key)) if stands_in(value, prompt)]
        words = words_of(prompt) if told else ()
        phrases = {words[i : i + n] for n in range(1, longest + 1) for i in range(len(words))}
        others = phrases & known - {words_of(value) for value in told[:1]}
        if told and len(others) < max(1, min(2, len(known) - 1)):
            shown = value_text(told[0])
            found = f'the value of "{key}" ({shown}) stands in "messages"'
            yield line.fault("answer in the prompt", found, key, shown)


def searchable(answer: Any) -> list[str]:
    """The texts of an answer (alone, in a list or in an object) that are worth looking for. Chance
    finds others: under 3 characters, numbers under 5, yes and no."""
    texts = []
    for _, leaf in walk(answer):
        text = str(leaf).strip(INVISIBLE) if type(leaf) in (str, int, float) else ""
        is_number = re.fullmatch(r"[-+]?[\d.,]+%?", text) is not None
        if len(text) >= (5 if is_number else 3) and text.lower() not in COMMON_VALUES:
            texts.append(text)
    return texts


def stands_in(value: str, text: str) -> bool:
    """True where the value stands in the text as a word of its own: "SCN1A" in "SCN1A-related",
    not in "SCN1AB". Case counts, except in values of several words or 8 characters and more."""
    if len(value) >= 8 or len(words_of(value)) > 1:
        value, text = value.casefold(), text.casefold()
    return value in text and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text) is not None


def words_of(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text))


def repeated_ids(lines: Sequence[Line]) -> Iterator[Fault]:
    first: dict[str, Line] = {}
    for line in lines:
        identity = own_id(line.row)
        if identity and (other := first.setdefault(identity, line)) is not line:
            found = f"the id {value_text(identity)} stands in {other.seen_from(line)} too"
            yield line.fault("duplicate id", found, "case_id", identity)


def repeated_prompts(lines: Sequence[Line], keys: Collection[str]) -> Iterator[Fault]:
    first: dict[str, Line] = {}
    for line in lines:
        other = first.setdefault(messages_key(line.row), line)
        if other is line or not readable_messages(line.row):
            continue
        same = all(line.row.get(key) == other.row.get(key) for key in keys)
        kind = "duplicate" if same else "contradiction"
        kind = kind if other.file == line.file else "duplicate across the split"
        found, shown = f"the messages are those of {other.seen_from(line)}", messages_text(line.row)
        yield line.fault(kind, found, "messages", value_text(shown))


def group_faults(lines: Sequence[Line], key: str) -> Iterator[Fault]:
    first: dict[str, Line] = {}
    for line in lines:
        group = group_of(line.row, key)
        if group is None:
            yield line.fault("group missing", f'"{key}" is missing or empty', key)
        elif (other := first.setdefault(group, line)).file != line.file:
            shown = value_text(group)
            found = f"{key} {shown} stands in {other.seen_from(line)} too"
            yield line.fault("group on both sides", found, key, shown)


def near_duplicates(lines: Sequence[Line], validation: str) -> Iterator[Fault]:
    """Validation prompts that are nearly a training prompt. Exact copies are named elsewhere."""
    prompts: dict[str, Line] = {}
    for line in lines:
        if readable_messages(line.row):
            prompts.setdefault(messages_key(line.row), line)
    trained = [line for line in prompts.values() if line.file != validation]
    held_out = [line for line in prompts.values() if line.file == validation]
    texts = ([messages_text(line.row) for line in side] for side in (trained, held_out))
    for number, other, similarity in similar_prompts(*texts):
        line, shown = held_out[number], f"{similarity:.0%}"
        found = f"the messages are {shown} those of {trained[other].seen_from(line)}"
        yield line.fault("near-duplicate across the split", found, "messages", shown)


# Compared are runs of three words that do not cross punctuation (Broder 1997), so that a shuffled
# list of symptoms stays the same, by the weighted Jaccard index. A run weighs log(rows / rows that
# have it), and nothing where more than half of the rows have it: prompts share their instructions.
# An instruction that a tenth of the rows share can still outweigh the case itself: a prompt is then
# close to MANY rows at once, and must also share half of the RARE runs.
THRESHOLD = 0.8
MANY = 10, 0.01  # as a number, and as a share of the training rows: the larger counts
RARE = 10, 0.001
# A number, one Chinese or Japanese character, a word, a sign, or a line break.
TOKEN = re.compile(r"\d+(?:[.,]\d+)+|[\u3040-\u9fff]|[^\W\u3040-\u9fff]+|[^\w\s]|\n")
SEPARATORS = set('.,;:!?()[]{}"|/\n。、，；：！？（）「」')


def shingles(text: str) -> set[int]:
    """The hashes (32 bits) of a text's runs of three words."""
    hashes = set()
    run: list[str] = []
    for token in [*TOKEN.findall(text.casefold()), "."]:
        if token not in SEPARATORS:
            run.append(token)
            continue
        for start in range(max(1, len(run) - 2) if run else 0):
            shingle = " ".join(run[start : start + 3])
            hashes.add(zlib.crc32(shingle.encode("utf-8", "surrogatepass")))
        run = []
    return hashes


def similar_prompts(
    train: Sequence[str], validation: Sequence[str]
) -> list[tuple[int, int, float]]:
    """(validation index, index of its closest training text, similarity) from THRESHOLD on: all
    pairs are computed, as products of sparse matrices of 0 and 1 (rows x shingles)."""
    import numpy as np
    from scipy.sparse import csr_matrix

    if not train or not validation:
        return []
    rows = [np.fromiter(shingles(text), np.uint32) for text in [*train, *validation]]
    ends = np.cumsum([0, *map(len, rows)])
    _, columns, counts = np.unique(np.concatenate(rows), return_inverse=True, return_counts=True)
    matrix = csr_matrix((np.ones(len(columns)), columns, ends), (len(rows), len(counts)))
    # In a handful of rows nothing can be known to be the task's wording.
    weight = np.log(max(len(rows), 10) / counts)
    if len(rows) >= 10:
        weight[2 * counts > len(rows)] = 0.0
    total, n_train = matrix @ weight, len(train)
    rare = matrix[:, counts <= max(RARE[0], RARE[1] * len(rows))]
    matrix, weight = matrix[:, weight > 0], weight[weight > 0]
    trained = matrix[:n_train].T.tocsr()
    pairs = []
    for row in range(n_train, len(rows)):
        shared = matrix[row].multiply(weight).tocsr() @ trained
        others, both = shared.indices, shared.data
        similarity = both / (total[row] + total[others] - both)
        near = similarity >= THRESHOLD - 1e-9
        if near.sum() > max(MANY[0], MANY[1] * n_train):
            both = (rare[others] @ rare[row].T).toarray().ravel()
            either = rare[row].sum() + np.asarray(rare[others].sum(axis=1)).ravel() - both
            near &= 2 * both >= either
        if near.any():
            others, similarity = others[near], similarity[near]
            best = np.lexsort((others, -similarity))[0]  # of several as close, the first
            pairs.append((row - n_train, int(others[best]), float(similarity[best])))
    return pairs
