"""The answer fields across a file: one missing, one of another type, one told in the prompt.

Which keys count as the answer? Those named like one (`reference_gene`, `answer`, `true_label`,
`expected_output`), the key to group by, and those that the caller names. Other fields, say `sex`
or the list of symptoms, may well stand in the prompt: they are not looked for there.

When does an answer stand in the prompt? When its value is found in a message word for word. Left
out, because chance finds them: values under 3 characters, numbers under 5, yes / no / true /
false. Upper and lower case count, except in values of several words or 8 characters and more
("REST" is a gene, "rest" is not). Where the prompt also holds two other rows' answers (or all
there are), it offers a choice - candidates, the labels to pick from - and that is a note.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from rftkit.data.contract import ID_KEYS, has_readable_messages, text_faults
from rftkit.data.faults import Fault, Place, plural, shorten, type_name, value_text
from rftkit.data.lines import walk
from rftkit.data.rows import Row, answer_fields, messages_text

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
