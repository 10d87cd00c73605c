"""`rftkit check`: find every fault of a file or of rows in memory, with its line, in one pass.

`contract.py` checks each line on its own. This module checks the answer fields and compares rows
with each other.
"""

import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rftkit import contract
from rftkit.contract import Line, RowFault, Source, read_lines, readable_messages, value_text, walk
from rftkit.files import UserError, plural
from rftkit.rows import (
    answer_fields,
    closed_set_note,
    group_of,
    messages_key,
    messages_text,
    own_id,
)

CONVERT = 'rftkit.write_rows("new.jsonl", rftkit.read_rows({})) writes the form OpenAI requires'
MAX_ROWS = {"train": 50_000, "validation": 1_000}  # OpenAI's reinforcement fine-tuning guide


@dataclass(repr=False)
class CheckReport:
    faults: list[RowFault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)  # side -> number of lines with a row
    files: dict[str, str] = field(default_factory=dict)
    answer_keys: list[str] = field(default_factory=list)  # prompts are searched for their values

    @property
    def ok(self) -> bool:
        return not self.faults

    @property
    def counts(self) -> dict[str, int]:
        """Number of faults of each kind, the most frequent first."""
        return dict(Counter(fault.kind for fault in self.faults).most_common())

    def __repr__(self) -> str:
        rows = ", ".join(f"{side}: {plural(count, 'row')}" for side, count in self.rows.items())
        counts = ", ".join(f"{kind} {count}" for kind, count in self.counts.items())
        verdict = f"{plural(len(self.faults), 'fault')} ({counts})" if counts else "clean"
        return f"{rows}: {verdict}"

    def to_json(self) -> dict[str, Any]:
        record = {"ok": self.ok, "counts": self.counts} | vars(self)
        return record | {"faults": [fault.to_json() for fault in self.faults]}


def check_rows(
    rows: Source,
    validation: Source | None = None,
    group_by: str | None = None,
    answer_keys: Collection[str] = (),
    answer_in_prompt_ok: bool = False,
    not_answer: Collection[str] = (),
) -> CheckReport:
    """Check training rows, and their split from the validation rows by the key `group_by`.
    `answer_keys`: more keys that hold answers (without any: `group_by`), `not_answer`: keys that
    hold none; `answer_in_prompt_ok`: prompts may contain answers."""
    report, faults, sides = CheckReport(files={"train": contract.source_name(rows)}), [], ([], [])
    if validation is None:
        report.notes.append("the split was not checked: pass the validation file with --validation")
    else:
        report.files["validation"] = contract.source_name(validation, "held_out")
    for (side, file), source, lines in zip(report.files.items(), (rows, validation), sides):
        for line in read_lines(source, file):
            faults += line.faults
            lines += [] if line.row is None else [line]
        moved = [line for line in lines if line.moved]
        if len(moved) < len(lines):  # the other rows have them at the top
            faults += [line.fault("messages", line.moved, "messages") for line in moved]
        elif moved:
            place = f"{moved[0].moved} in {plural(len(moved), 'row')}"
            name = f'"{file}"' if isinstance(source, (str, Path)) else file
            report.notes.append(f"{file}: {place}: {CONVERT.format(name)}")
        for line in lines[MAX_ROWS[side] :][:1]:
            faults.append(line.fault("too many rows", f"{len(lines):,} rows"))
        report.rows[side] = len(lines)
    lines = sum(sides, [])
    fields = {name for line in lines for name in answer_fields(line.row)}
    if lines and (unknown := {*answer_keys, *not_answer} - fields):
        columns = ", ".join(sorted(fields)) or "none"
        raise UserError(f"answer key {min(unknown)}: no such column, expected one of {columns}")
    likely = {name for name in fields - {*answer_keys, *not_answer} if looks_like_answer(name)}
    copies = {name for name in likely if repeats_prompt(lines, name)}
    report.notes += [f'"{name}" repeats the prompt: not an answer key' for name in sorted(copies)]
    passed = ({*answer_keys} or {group_by}) & fields - {*not_answer}
    keys = report.answer_keys = sorted(likely - copies | passed)
    for key in keys:
        faults += answer_faults(lines, key)
        faults += [] if answer_in_prompt_ok else answers_in_prompts(lines, key)
    faults += [*repeated_ids(lines), *repeated_prompts(lines, keys), *near_duplicates(*sides)]
    if group_by:
        note = closed_set_note(*([line.row for line in side] for side in sides), group_by)
        is_closed = bool(note) and group_by in keys  # a source, such as an author, is a group
        report.notes += [note] if is_closed else []
        faults += group_faults(lines, group_by, is_closed)
    order = list(report.files.values())
    report.faults = sorted(faults, key=lambda fault: (order.index(fault.file), fault.line or 0))
    return report


check_file = check_rows


# Answer keys are those whose name suggests an answer, the group key, and those that the caller
# passes. Other fields, such as `sex` or the list of symptoms, may appear in the prompt.
ANSWER_WORDS = "reference answer label target correct expected solution gold truth".split()
# answer_type, label_options, reference_url describe the answer; they do not hold it.
NOT_THE_ANSWER = set(
    "type format kind unit units options choices candidates id ids url source schema length date "
    "names count set by language".split()
)
COMMON_VALUES = {"yes", "no", "true", "false", "none", "null", "unknown", "other"}
INVISIBLE = " \t\r\n\u00a0\u200b\u200c\u200d\u2060\ufeff"


def looks_like_answer(key: str) -> bool:
    """True for `reference_gene` and `trueLabel`, False for `answer_type` and `sex`."""
    words = [w.lower() for w in re.split(r"[^A-Za-z0-9]+|(?<=[a-z])(?=[A-Z])", key) if w]
    if NOT_THE_ANSWER.intersection(words):
        return False
    return any(word.startswith(start) for word in words for start in ANSWER_WORDS)


def answer_faults(lines: Sequence[Line], key: str) -> Iterator[RowFault]:
    """A key in under half of the rows is optional. Types may differ if a quarter of them do."""
    types = Counter(json_type(line.row[key]) for line in lines if key in line.row)
    [(common_type, count)] = types.most_common(1)
    for line in lines:
        value = line.row.get(key)
        stripped = value.strip(INVISIBLE) if isinstance(value, str) else value
        if key not in line.row:
            if 2 * types.total() >= len(lines):
                yield line.fault("answer missing", f'"{key}" is missing', key)
            continue
        if stripped in (None, "", [], {}):
            kind = "answer empty"
        elif stripped != value:
            kind = "answer with blanks"
        elif json_type(value) != common_type and 4 * count > 3 * types.total():
            kind = "answer type"
        else:
            continue
        yield line.fault(kind, f'"{key}" is {value_text(value)}', key, value_text(value))


def json_type(value: Any) -> str:
    return "number" if type(value) in (int, float) else type(value).__name__


def answers_in_prompts(lines: Sequence[Line], key: str) -> Iterator[RowFault]:
    """Rows whose prompt contains the answer. A prompt that also contains two other rows' answers
    (or all of them) lists candidates or labels to choose from, which is no fault."""
    answers = {words_of(value) for line in lines for value in searchable(line.row.get(key))}
    longest = min(6, max(map(len, answers), default=0))
    for line in lines:
        messages = readable_messages(line.row)
        if messages and messages[-1].get("role") == "assistant":
            messages = messages[:-1]  # an answer, not part of the prompt
        prompt = messages_text({"messages": messages})
        values = searchable(line.row.get(key))
        leaked = [v for v in values if occurs_in(v, prompt) and not is_option(v, prompt)]
        words = words_of(prompt) if leaked else ()
        phrases = {words[i : i + n] for n in range(1, longest + 1) for i in range(len(words))}
        others = phrases & answers - {words_of(value) for value in leaked[:1]}
        if leaked and len(others) < max(1, min(2, len(answers) - 1)):
            answer = value_text(leaked[0])
            text = f'"messages" contains the value of "{key}" ({answer})'
            yield line.fault("answer in the prompt", text, key, answer)


# A list of options: lines or words marked A. or (2) or with a bullet, or a word such as "choose"
# with a list after it.
MARK = r"(?:^|\s)(?:[-*•]|\(?(?:[A-Za-z]|\d\d?)[.):])\s+"
OFFER = r"(?i:\b(?:options|choices|candidates|labels|categories|classes|choose|one of|either)\b)"
OFFER += r"[^.?!]*?(?:[,;/|:([\n]|\bor)"


def is_option(value: str, prompt: str) -> bool:
    """True if the prompt offers the value in a list of options."""
    bare = re.escape(re.sub(rf"\A{MARK}", "", value))
    marked = rf"{MARK}{bare}(?:\s*(?:[.;,\n]|\Z)|{MARK})"
    if len(re.findall(MARK, prompt)) > 1 and re.search(marked, prompt):
        return True
    return re.search(rf"{OFFER}\W*{bare}(?!\w)", prompt) is not None


def repeats_prompt(lines: Sequence[Line], key: str) -> bool:
    """True if most values of the key are a message of the row's own prompt, or all of them."""
    copies = []
    for line in lines:
        if isinstance(value := line.row.get(key), str):
            texts = [str(m.get("content")).strip() for m in readable_messages(line.row)]
            copies.append(value.strip() in {*texts, "\n".join(texts)})
    return 2 * sum(copies) > len(copies)


def searchable(answer: Any) -> list[str]:
    """The values in an answer that are worth searching for: short ones match by chance, too."""
    texts = []
    for _, leaf in walk(answer):
        text = str(leaf).strip(INVISIBLE) if type(leaf) in (str, int, float) else ""
        is_number = re.fullmatch(r"[-+]?[\d.,]+%?", text) is not None
        if len(text) >= (5 if is_number else 3) and text.lower() not in COMMON_VALUES:
            texts.append(text)
    return texts


def occurs_in(value: str, text: str) -> bool:
    """True if the value occurs in the text as a whole word: "SCN1A" in "SCN1A-related", not in
    "SCN1AB". Case matters, except for values of several words or at least 8 characters."""
    if len(value) >= 8 or len(words_of(value)) > 1:
        value, text = value.casefold(), text.casefold()
    return value in text and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text) is not None


def words_of(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text))


def repeated_ids(lines: Sequence[Line]) -> Iterator[RowFault]:
    first: dict[str, Line] = {}
    for line in lines:
        identity = own_id(line.row)
        if identity and (other := first.setdefault(identity, line)) is not line:
            text = f"the id {value_text(identity)} is also in {other.place_from(line)}"
            yield line.fault("duplicate id", text, "case_id", identity)


def repeated_prompts(lines: Sequence[Line], keys: Collection[str]) -> Iterator[RowFault]:
    first: dict[str, Line] = {}
    for line in lines:
        other = first.setdefault(messages_key(line.row), line)
        if other is line or not readable_messages(line.row):
            continue
        same = all(line.row.get(key) == other.row.get(key) for key in keys)
        kind = "duplicate" if same else "contradiction"
        kind = kind if other.file == line.file else "duplicate across the split"
        text = f"the messages equal those of {other.place_from(line)}"
        yield line.fault(kind, text, "messages", value_text(messages_text(line.row)))


def group_faults(lines: Sequence[Line], key: str, is_closed: bool) -> Iterator[RowFault]:
    """is_closed: the groups are few labels, which may be on both sides."""
    first: dict[str, Line] = {}
    for line in lines:
        group = group_of(line.row, key)
        if group is None:
            yield line.fault("group missing", f'"{key}" is missing or empty', key)
        elif (other := first.setdefault(group, line)).file != line.file and not is_closed:
            value = value_text(group)
            text = f"{key} {value} is also in {other.place_from(line)}"
            yield line.fault("group on both sides", text, key, value)


def near_duplicates(train: Sequence[Line], held_out: Sequence[Line]) -> Iterator[RowFault]:
    """Validation prompts that nearly equal a training prompt; not the exact copies."""
    readable = [line for line in (*train, *held_out) if readable_messages(line.row)]
    first = {messages_key(line.row): line for line in reversed(readable)}
    train, held_out = (
        [line for line in side if first.get(messages_key(line.row)) is line]
        for side in (train, held_out)
    )
    texts = ([messages_text(line.row) for line in side] for side in (train, held_out))
    for number, other, similarity in similar_prompts(*texts):
        line, percent = held_out[number], f"{similarity:.0%}"
        text = f"the messages are {percent} similar to {train[other].place_from(line)}"
        yield line.fault("near-duplicate across the split", text, "messages", percent)


# Similarity is the weighted Jaccard index over runs of three words (Broder 1997). Runs do not cross
# punctuation, so a shuffled list of symptoms counts as equal. A run weighs log(rows / rows with it)
# or 0, if more than half of the rows have it: prompts share their instructions. An instruction that
# a tenth of the rows share can still outweigh the case itself. The prompt is then similar to MANY
# rows at once, and must also share half of its RARE runs with a row to count as a near-copy of it.
THRESHOLD = 0.8
MANY = 10, 0.01  # a count, and a share of the training rows: the larger one applies
RARE = 10, 0.001
# A number, one Chinese or Japanese character, a word, a sign, or a line break.
TOKEN = re.compile(r"\d+(?:[.,]\d+)+|[\u3040-\u9fff]|[^\W\u3040-\u9fff]+|[^\w\s]|\n")
SEPARATORS = set('.,;:!?()[]{}"|/\n。、，；：！？（）「」')


def shingles(text: str) -> set[int]:
    """32-bit hashes of a text's runs of three words."""
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


def similar_prompts(train: list[str], validation: list[str]) -> list[tuple[int, int, float]]:
    """(validation index, index of its closest training text, similarity), from THRESHOLD up."""
    import numpy as np
    from scipy.sparse import csr_matrix

    if not train or not validation:
        return []
    rows = [np.fromiter(shingles(text), np.uint32) for text in [*train, *validation]]
    ends = np.cumsum([0, *map(len, rows)])
    _, columns, counts = np.unique(np.concatenate(rows), return_inverse=True, return_counts=True)
    matrix = csr_matrix((np.ones(len(columns)), columns, ends), (len(rows), len(counts)))
    # With fewer than ten rows, frequent runs need not be the task's instructions.
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
            best = np.lexsort((others, -similarity))[0]  # on a tie, the first
            pairs.append((row - n_train, int(others[best]), float(similarity[best])))
    return pairs
