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
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rftkit.files import plural, shorten
from rftkit.rows import (
    ID_KEYS,
    Fault,
    Place,
    Row,
    answer_fields,
    bounded,
    digest_of,
    group_of,
    has_readable_messages,
    messages_digest,
    messages_text,
    own_id,
    place_of,
    read_lines,
    row_faults,
    summarized,
    text_faults,
    type_name,
    value_text,
    walk,
)

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse import csr_matrix


# ------------------------------------------------------------------------------------------
# from rftkit.data.answers:
# The answer fields across a file: one missing, one of another type, one told in the prompt.
#
# Which keys count as the answer? Those named like one (`reference_gene`, `answer`, `true_label`,
# `expected_output`), the key to group by, and those that the caller names. Other fields, say `sex`
# or the list of symptoms, may well stand in the prompt: they are not looked for there.
#
# When does an answer stand in the prompt? When its value is found in a message word for word. Left
# out, because chance finds them: values under 3 characters, numbers under 5, yes / no / true /
# false. Upper and lower case count, except in values of several words or 8 characters and more
# ("REST" is a gene, "rest" is not). Where the prompt also holds two other rows' answers (or all
# there are), it offers a choice - candidates, the labels to pick from - and that is a note.

ANSWER_WORDS = (
    ["reference", "answer", "label", "target", "correct", "expected", "solution", "gold", "truth"]
)  # fmt: skip
# answer_type, label_options, reference_url: about the answer, not the answer.
NOT_THE_ANSWER = set(
    "type format kind unit units options choices candidates id ids url source schema length date "
    "names count set by language".split()
)
COMMON_VALUES = {"yes", "no", "true", "false", "none", "null", "unknown", "other"}
PENDING_CHARACTERS = 50_000_000  # prompts held back until all answers of the file are known
MAX_ANSWER_WORDS = 6
SEARCHED_CHARACTERS = 500  # of a long answer the beginning is looked for
INVISIBLE = " \t\r\n\u00a0\u200b\u200c\u200d\u2060\ufeff"


def looks_like_answer(key: str) -> bool:
    """True where a key is named like the answer.

    >>> [k for k in ("reference_gene", "trueLabel", "answer_type", "sex") if looks_like_answer(k)]
    ['reference_gene', 'trueLabel']
    """
    if key in ID_KEYS:
        return False
    words = [w.lower() for w in re.split(r"[^A-Za-z0-9]+|(?<=[a-z])(?=[A-Z])", key) if w]
    if NOT_THE_ANSWER.intersection(words):
        return False
    return any(word.startswith(start) for word in words for start in ANSWER_WORDS)


def searchable_values(answer: Any) -> list[str]:
    """The texts of an answer (alone, in a list or in an object) that are worth looking for."""
    if not isinstance(answer, (str, int, float, list, dict)) or isinstance(answer, bool):
        return []
    leaves = [answer]
    if isinstance(answer, (list, dict)):
        leaves = [leaf for path, leaf in islice(walk(answer), 100)]
    texts = []
    for leaf in leaves[:50]:
        text = leaf.strip(INVISIBLE) if isinstance(leaf, str) else ""
        text = str(leaf) if type(leaf) in (int, float) else text
        is_number = re.fullmatch(r"[-+]?[\d.,]+%?", text[:30]) is not None
        if len(text) >= (5 if is_number else 3) and text.lower() not in COMMON_VALUES:
            texts.append(text[:SEARCHED_CHARACTERS])
    return texts


def stands_in(value: str, text: str) -> bool:
    """True where the value stands in the text as a word of its own.

    >>> stands_in("REST", "at rest"), stands_in("SCN1A", "SCN1A-related"), stands_in("ACH", "ACHE")
    (False, True, False)
    """
    if has_word(value, text):
        return True
    several_words = re.search(r"\w\W+\w", value) is not None
    if len(value) < 8 and not several_words:
        return False
    return has_word(value.casefold(), text.casefold())


def has_word(word: str, text: str) -> bool:
    start = text.find(word)
    while start >= 0:
        around = text[max(0, start - 1) : start] + text[start + len(word) : start + len(word) + 1]
        if not any(c.isalnum() or c == "_" for c in around):
            return True
        start = text.find(word, start + 1)
    return False


@dataclass
class Suspect:
    """An answer found in its prompt, held until we know whether the prompt offers a choice.

    text         the prompt; None where too many are held already
    in_a_list    a list of the row (its candidates, say) holds the answer among others
    """

    here: Place
    key: str
    value: str
    text: str | None
    in_a_list: bool


class AnswerWatch:
    """Sees every row of a file once; hands out faults row by row, and the rest at the end.

    keys         keys to look at beside those named like an answer
    allow_in_prompt  True for tasks that look for the answer in the text (extraction)
    values           the answers of another file, to know a choice by
    """

    def __init__(
        self, file: str, keys: Sequence[str] = (), group_by: str | None = None,
        allow_in_prompt: bool = False, values: dict[str, set[str]] | None = None,
    ) -> None:  # fmt: skip
        self.file, self.group_by, self.allow_in_prompt = file, group_by, allow_in_prompt
        self.named = {*keys, *([group_by] if group_by else [])}
        self.keys: dict[str, bool] = {}  # every answer field seen -> is it looked at?
        self.n_rows = 0
        self.rows_with_keys: dict[frozenset[str], list[int]] = defaultdict(list)
        self.types: dict[str, dict[str, list[tuple[int, str]]]] = defaultdict(dict)
        self.values = defaultdict(set) if values is None else values
        self.suspects: list[Suspect] = []
        self.pending = 0

    @property
    def looked_at(self) -> list[str]:
        return sorted(key for key, looked in self.keys.items() if looked)

    def add(self, row: Row, here: Place) -> Iterator[Fault]:
        fields = answer_fields(row)
        self.n_rows += 1
        self.rows_with_keys[frozenset(fields)].append(here.line or 0)
        text = prompt_text(row)
        for key, value in fields.items():
            if key not in self.keys:
                self.keys[key] = key in self.named or looks_like_answer(key)
                yield from unreachable_key(key, here)
            if isinstance(value, str):
                yield from text_faults(value, key, here)
            if self.keys[key]:
                yield from self._add_answer(key, row, text, here)

    def _add_answer(self, key: str, row: Row, text: str, here: Place) -> Iterator[Fault]:
        value = row[key]
        if key != self.group_by:  # a missing group has a fault of its own
            yield from answer_value_faults(key, value, here)
        if value not in (None, "", [], {}):
            shown = value_text(value)
            self.types[key].setdefault(type_name(value), []).append((here.line or 0, shown))
        for found in searchable_values(value):
            self.values[key].add(found)
            if text and stands_in(found, text):
                self.pending += len(text)
                keep = text if self.pending <= PENDING_CHARACTERS else None
                in_a_list = any(
                    is_choice_list(other, found, text)
                    for name, other in row.items()
                    if name not in self.named and not looks_like_answer(name)
                )
                self.suspects.append(Suspect(here, key, found, keep, in_a_list))
                break

    def finish(self) -> Iterator[Fault]:
        """What shows only when all rows were seen."""
        yield from self._missing_answers()
        yield from self._other_types()
        yield from self._answers_in_prompts()
        if self.n_rows and not self.looked_at and self.keys:
            names = ", ".join(sorted(self.keys)[:8])
            yield Place(self.file).note(
                "answer keys",
                f"no key is named like the answer (keys: {names}), so none was sought in a prompt",
                "a name such as reference_gene or answer",
                "name it with --answer-key KEY",
            )

    def _missing_answers(self) -> Iterator[Fault]:
        without = [
            line
            for keys, lines in self.rows_with_keys.items()
            if not keys.difference(ID_KEYS)
            for line in lines
        ]
        if without and len(without) == self.n_rows:
            yield Place(self.file, min(without)).note(
                "no answer field",
                "no row has an answer field",
                "a key such as reference_answer beside messages",
                "add it, unless the grader judges the output alone",
            )
            return
        example = next(iter(self.looked_at), "reference_answer")
        for line in sorted(without):
            yield Place(self.file, line).fault(
                "no answer field",
                'the row has no key beside "messages" that a grader could compare with',
                f"an answer field ({example})",
                f"add {value_text(example)}: a grader's template fails on the row",
                key=example,
            )
        yield from self._missing_keys()

    def _missing_keys(self) -> Iterator[Fault]:
        counts = Counter(
            key for keys, at in self.rows_with_keys.items() for key in keys for _ in at
        )
        usual = {key for key, count in counts.items() if 2 * count >= self.n_rows}
        rare = sorted(counts.keys() - usual)
        if rare:
            names = ", ".join(value_text(key) for key in rare[:5]) + ", ..." * (len(rare) > 5)
            yield Place(self.file).note(
                "field missing",
                f"{plural(len(rare), 'key')} in fewer than half of the rows: {names}",
                "the same keys in every row",
                "check the spelling; a grader's template fails where its key is missing",
            )
        for key in sorted(usual - {self.group_by, *ID_KEYS}):
            if counts[key] == self.n_rows:
                continue
            lacking = [
                (line, keys)
                for keys, lines in self.rows_with_keys.items()
                if key not in keys and keys.difference(ID_KEYS)
                for line in lines
            ]
            if self.keys[key]:
                for line, keys in lacking:
                    others = [k for k in keys if k not in usual]
                    yield self._answer_missing(key, counts[key], line, sorted(others))
            elif lacking:
                found = f"{value_text(key)} is missing in {plural(len(lacking), 'row')}"
                step = f"fill it in where a grader reads {{{{item.{key}}}}}"
                here = Place(self.file, min(line for line, _ in lacking))
                yield here.note("field missing", found, "it in every row", step, key=key)

    def _answer_missing(self, key: str, count: int, line: int, others: list[str]) -> Fault:
        found, step = f"{value_text(key)} is missing", f"add {value_text(key)}"
        close = difflib.get_close_matches(key, others, n=1, cutoff=0.75)
        if close:
            found += f", but {value_text(close[0])} is here"
            step = f"rename {value_text(close[0])} to {value_text(key)}"
        expected = f"it as in {plural(count, 'other row')}"
        step += ", or remove the row: a grader's template fails on it"
        return Place(self.file, line).fault("answer missing", found, expected, step, key=key)

    def _other_types(self) -> Iterator[Fault]:
        for key, seen in sorted(self.types.items()):
            usual = max(seen, key=lambda name: len(seen[name]))
            others = [(line, name, shown) for name in seen for line, shown in seen[name]]
            others = sorted(other for other in others if other[1] != usual)
            # Where a quarter of the rows is of another type, it is meant.
            if others and 4 * len(others) > self.n_rows:
                types = ", ".join(sorted(seen))
                found, step = (
                    f'"{key}" is of several types: {types}',
                    "let the grader read them all",
                )
                here = Place(self.file, others[0][0])
                yield here.note("answer type", found, f"type {usual} alone", step, key=key)
                continue
            for line, name, shown in others:
                found = f'"{key}" is of type {name}: {shown}'
                expected = f"type {usual} as in {plural(len(seen[usual]), 'other row')}"
                step = "write it as the others are: one grader reads them all"
                fault = Place(self.file, line).fault("answer type", found, expected, step, key=key)
                yield replace(fault, value=shown)

    def _answers_in_prompts(self) -> Iterator[Fault]:
        choices: dict[str, list[Place]] = defaultdict(list)
        phrases = {key: by_length(values) for key, values in self.values.items()}
        for suspect in self.suspects:
            if self.allow_in_prompt or self._offers_a_choice(suspect, phrases[suspect.key]):
                choices[suspect.key].append(suspect.here)
                continue
            yield suspect.here.fault(
                "answer in the prompt",
                f'the value of "{suspect.key}" ({value_text(suspect.value)}) is told in "messages"',
                "a prompt that does not tell the answer",
                "take it out (or, where the task is to find it in a text: --answer-in-prompt-ok)",
                key=suspect.key,
                value=suspect.value,
            )
        for key, places in sorted(choices.items()):
            why = "as you allowed" if self.allow_in_prompt else "among other rows' answers"
            yield places[0].note(
                "answer in the prompt",
                f'"{key}" stands in the prompt of {plural(len(places), "row")}, {why}',
                "a prompt that offers a choice, or a text to search",
                "nothing to do if the prompt shall name the candidates",
                key=key,
            )

    def _offers_a_choice(self, suspect: Suspect, phrases: dict[int, set[str]]) -> bool:
        """True where two other answers (or all others, if fewer) stand in the same prompt."""
        if suspect.in_a_list:
            return True
        needed = min(2, len(self.values[suspect.key]) - 1)
        if suspect.text is None or needed < 1:
            return False
        own, words, others = words_of(suspect.value), words_of(suspect.text), set()
        for length, known in phrases.items():
            for start in range(len(words) - length + 1):
                phrase = " ".join(words[start : start + length])
                if phrase in known and phrase != " ".join(own):
                    others.add(phrase)
                    if len(others) >= needed:
                        return True
        return False


def prompt_text(row: Row) -> str:
    """What the model reads: an assistant's message at the very end is an answer, not a prompt."""
    if not has_readable_messages(row):
        return ""
    messages = row["messages"]
    ends_with_answer = bool(messages) and messages[-1].get("role") == "assistant"
    return messages_text({"messages": messages[:-1] if ends_with_answer else messages})


def is_choice_list(field: Any, value: str, text: str) -> bool:
    """True for a list of texts that holds the value and another one, both told in the prompt."""
    if not isinstance(field, list) or value not in field:
        return False
    others = (other for other in field[:100] if isinstance(other, str) and other != value)
    return any(stands_in(other, text) for other in others if other)


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def by_length(values: set[str]) -> dict[int, set[str]]:
    """Values as phrases of words, by their number of words, so that a text is searched once."""
    phrases: dict[int, set[str]] = defaultdict(set)
    for value in values:
        words = words_of(value)
        if 0 < len(words) <= MAX_ANSWER_WORDS:
            phrases[len(words)].add(" ".join(words))
    return phrases


def answer_value_faults(key: str, value: Any, here: Place) -> Iterator[Fault]:
    """An answer that is empty, or that no model output can equal."""
    where = {"key": key, "value": value}
    if (
        value is None
        or value in ([], {})
        or (isinstance(value, str) and not value.strip(INVISIBLE))
    ):
        found = f'"{key}" is {value_text(value)}: the row has no answer'
        step = "fill it in, or remove the row: no output could ever be right"
        yield here.fault("answer empty", found, "an answer", step, **where)
    elif isinstance(value, str) and value != value.strip(INVISIBLE):
        shown = shorten(ascii(value))
        found = f'"{key}" has blanks (or invisible characters) around it: {shown}'
        step = "strip it: a grader that compares for equality would call every answer wrong"
        yield here.fault("answer with blanks", found, "the bare answer", step, **where)


def unreachable_key(key: str, here: Place) -> Iterator[Fault]:
    if not re.fullmatch(r"[A-Za-z_]\w*", key):
        found = f"the key {value_text(key)} is not one word"
        step = "rename it: a template {{item.KEY}} may not reach it"
        expected = "letters, digits and underscores"
        yield here.note("key name", found, expected, step, key=key)


# ------------------------------------------------------------------------------------------
# from rftkit.data.overlap:
# Near-duplicates across the split: validation prompts that training prompts all but contain.
#
# Two prompts are compared by the shingles they share: runs of three words that do not cross
# punctuation (Broder, "On the resemblance and containment of documents", 1997). In a list such as
# "Seizure, Ataxia, Global developmental delay" each entry is a shingle, so a shuffled list stays
# the
# same. Prompts of one task share their instructions: each shingle weighs log(rows / rows that have
# it), and one that stands in more than half of the rows weighs nothing. The similarity is the
# weighted Jaccard index: weight of the shared shingles / weight of all shingles of the two. A long
# instruction that a tenth of the rows share can still outweigh the case itself. It shows in that a
# prompt is then close to many rows at once (MANY_ROWS): of such, a near-duplicate must also share
# half of the shingles that hardly any row has (RARE_ROWS).
#
# All pairs are computed, as one product of sparse matrices, not sampled. Only where a file holds
# more
# than MAX_SHINGLES shingles is a fixed share of them looked at (by their hash, the same in all
# rows).

THRESHOLD = 0.8
MANY_ROWS = 10, 0.01  # as a number, and as a share of the training rows: the larger counts
RARE_ROWS = 10, 0.001
RARE_THRESHOLD = 0.5
SHINGLE_WORDS = 3
MAX_CHARACTERS = 200_000  # of one prompt
MAX_SHINGLES = 6_000_000  # of all prompts: 24 MB of hashes
# A number, a word, one Chinese or Japanese character, a sign, or a line break.
TOKEN = re.compile(
    r"\d+(?:[.,]\d+)+|[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+|[^\w\s]|\n"
)
SEPARATORS = set('.,;:!?()[]{}"|/\n。、，；：！？（）「」')


def shingles(text: str) -> set[int]:
    """The hashes (32 bits) of a text's shingles.

    >>> shingles("Seizure, Ataxia") == shingles("ataxia, seizure!")
    True
    """
    hashes = set()
    run: list[str] = []
    for token in [*TOKEN.findall(text[:MAX_CHARACTERS].casefold()), "."]:
        if token not in SEPARATORS:
            run.append(token)
            continue
        for start in range(max(1, len(run) - SHINGLE_WORDS + 1) if run else 0):
            shingle = " ".join(run[start : start + SHINGLE_WORDS])
            hashes.add(zlib.crc32(shingle.encode("utf-8", "surrogatepass")))
        run = []
    return hashes


class NearDuplicates:
    """Collects the prompts of both sides, then finds the pairs that are nearly the same."""

    def __init__(self) -> None:
        self.rows: dict[str, list[np.ndarray]] = {"train": [], "validation": []}
        self.lines: dict[str, list[int]] = {"train": [], "validation": []}
        self.held, self.step = 0, 1

    def add(self, side: str, line: int, text: str) -> None:
        """side is "train" or "validation"."""
        import numpy as np

        hashes = np.fromiter(shingles(text), dtype=np.uint32)
        hashes = hashes[hashes % self.step == 0]
        self.rows[side].append(hashes)
        self.lines[side].append(line)
        self.held += len(hashes)
        while self.held > MAX_SHINGLES:
            self.step *= 2
            for name, rows in self.rows.items():
                self.rows[name] = [row[row % self.step == 0] for row in rows]
            self.held = sum(len(row) for rows in self.rows.values() for row in rows)

    def pairs(self, threshold: float = THRESHOLD) -> list[tuple[int, int, float]]:
        """(validation line, its closest training line, similarity) where at least threshold."""
        import numpy as np

        if not (self.rows["train"] and self.rows["validation"]):
            return []
        train, validation, weight = self._matrices()
        n_rows = train.shape[0] + validation.shape[0]
        in_rows = np.asarray(train.sum(axis=0) + validation.sum(axis=0)).ravel()
        rare = in_rows <= max(RARE_ROWS[0], RARE_ROWS[1] * n_rows)
        train_rare, validation_rare = train[:, rare], validation[:, rare]
        train_total, validation_total = train @ weight, validation @ weight
        train, validation = train[:, weight > 0], validation[:, weight > 0]
        weighted = validation.multiply(weight[weight > 0]).tocsr()
        found = []
        for start in range(0, validation.shape[0], 64):  # in slices: the product may be dense
            shared = (weighted[start : start + 64] @ train.T).tocsr()
            for i in range(shared.shape[0]):
                span = slice(shared.indptr[i], shared.indptr[i + 1])
                columns, both = shared.indices[span], shared.data[span]
                if len(columns) == 0:
                    continue
                row = start + i
                similarity = both / (validation_total[row] + train_total[columns] - both)
                close = similarity >= threshold - 1e-9
                columns, similarity = columns[close], similarity[close]
                if len(columns) > max(MANY_ROWS[0], MANY_ROWS[1] * train.shape[0]):
                    alike = shares_rare(validation_rare[row], train_rare[columns])
                    columns, similarity = columns[alike], similarity[alike]
                if len(columns):
                    best = np.lexsort((columns, -similarity))[0]  # of several as close, the first
                    lines = self.lines["validation"][row], self.lines["train"][columns[best]]
                    found.append((*lines, float(similarity[best])))
        return found

    def _matrices(self) -> tuple[csr_matrix, csr_matrix, np.ndarray]:
        """Row x shingle matrices of 0 and 1 for both sides, and each shingle's weight."""
        import numpy as np
        from scipy.sparse import csr_matrix

        rows = self.rows["train"] + self.rows["validation"]
        ends = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
        _, columns, counts = np.unique(
            np.concatenate(rows), return_inverse=True, return_counts=True
        )
        n_rows, n_train = len(rows), len(self.rows["train"])
        # In a handful of rows nothing can be known to be the task's wording.
        weight = np.log(max(n_rows, 10) / counts)
        if n_rows >= 10:
            weight[2 * counts > n_rows] = 0.0
        ones = np.ones(len(columns))
        matrix = csr_matrix((ones, columns, ends), shape=(n_rows, len(counts)))
        return matrix[:n_train], matrix[n_train:], weight


def shares_rare(row: csr_matrix, others: csr_matrix) -> np.ndarray:
    """For each of the others: does it share half of the rare shingles with the row?

    True where neither has any: then there is nothing to tell them apart by.
    """
    import numpy as np

    shared = (others @ row.T).toarray().ravel()
    of_either = row.sum() + np.asarray(others.sum(axis=1)).ravel() - shared
    return shared >= RARE_THRESHOLD * of_either


# ------------------------------------------------------------------------------------------
# from rftkit.data.check:
# `rftkit check`: the data contract. Every fault of a file, each with its line, in one pass.
#
#     lines.py     is the line JSON, in UTF-8, an object?
#     contract.py  are `messages` and `tools` what the contract says?
#     answers.py   is the answer there, of one type, and not in the prompt?
#     here         between rows: copies, contradictions, ids, groups, limits
#     overlap.py   near-duplicates across the split
#
# A fault makes a job fail or its numbers wrong (exit code 1). A note is worth knowing (exit code
# 0).
# Limits: 50,000 training and 1,000 validation rows (OpenAI's reinforcement fine-tuning guide).

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
