"""Copies among published cases: found by what the prompt says, left out where that is asked for.

A paper that reports a family gives several cases in the very same words. As rows they are
duplicates, which count double in training and shrink no interval in evaluation; two genes told in
the same words contradict each other; and a case that all but repeats a training case tests memory.
`rftkit check` reports all three. They are kept by default, because they are what was published.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rftkit.data.overlap import NearDuplicates
from rftkit.data.rows import messages_text
from rftkit.genes.case import Case, prompt_text
from rftkit.genes.hpo import Hpo

REPEATED = "with the prompt and gene of another case"
CONTRADICTED = "with the prompt of a case of another gene"
NEAR = "near-duplicates of a case on another side"


def copies_of(cases: Sequence[Case], hpo: Hpo) -> dict[int, str]:
    """{number of the case in the list: why it is a copy}; the first of several alike is none.

    A prompt that is told for several genes has no right answer: all of its cases are copies.
    Lists of candidates are left out of the comparison; they differ from copy to copy.
    """
    alike: dict[str, list[int]] = defaultdict(list)
    for number, case in enumerate(cases):
        alike[prompt_text(case, hpo)].append(number)
    found = {}
    for numbers in alike.values():
        if len({cases[number].gene for number in numbers}) > 1:
            found |= dict.fromkeys(numbers, CONTRADICTED)
        else:
            found |= dict.fromkeys(numbers[1:], REPEATED)
    return found


def count_copies(sides: Mapping[str, Sequence[Case]], hpo: Hpo) -> dict[str, int]:
    """How many rows drop_copies would leave out, by reason; near-duplicates are not sought."""
    counts = Counter(why for cases in sides.values() for why in copies_of(cases, hpo).values())
    return {why: counts[why] for why in (REPEATED, CONTRADICTED)}


def drop_copies(
    sides: Mapping[str, Sequence[Case]], rows: Mapping[str, Sequence[dict[str, Any]]], hpo: Hpo
) -> tuple[dict[str, list[Case]], dict[str, list[dict[str, Any]]], dict[str, int]]:
    """(sides, rows, {why: how many were left out}): what is left passes `rftkit check`.

    sides, rows   per side the cases, and the row of each
    Of near-duplicates across the split the later side's goes: training keeps its rows, and what
    is tested was not all but trained on.
    """
    kept = {}
    counts: Counter[str] = Counter()
    for side, cases in sides.items():
        copies = copies_of(cases, hpo)
        counts.update(copies.values())
        kept[side] = [n for n in range(len(cases)) if n not in copies]
    names = list(sides)
    for later in names[1:]:
        near = True
        while near:  # each row that goes changes how common the words of the others are
            near = set()
            for earlier in names[: names.index(later)]:
                near |= near_duplicates(rows[earlier], kept[earlier], rows[later], kept[later])
            kept[later] = [n for n in kept[later] if n not in near]
            counts[NEAR] += len(near)
    return (
        {side: [sides[side][n] for n in numbers] for side, numbers in kept.items()},
        {side: [rows[side][n] for n in numbers] for side, numbers in kept.items()},
        {why: counts[why] for why in (REPEATED, CONTRADICTED, NEAR)},
    )


def near_duplicates(
    earlier: Sequence[dict[str, Any]],
    earlier_kept: Sequence[int],
    later: Sequence[dict[str, Any]],
    later_kept: Sequence[int],
) -> set[int]:
    """Numbers of the later rows that all but repeat an earlier one (data/overlap.py)."""
    found = NearDuplicates()
    for number in earlier_kept:
        found.add("train", number, messages_text(earlier[number]))
    for number in later_kept:
        found.add("validation", number, messages_text(later[number]))
    return {number for number, _, _ in found.pairs()}
