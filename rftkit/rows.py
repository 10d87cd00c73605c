"""Rows: read from a file or from memory, written as JSONL, named, split.

A row is a plain dict: `messages` (what the model sees), optionally `tools`, and answer fields
(what the grader reads as `{{item.KEY}}`, and the model never sees).
"""

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rftkit.contract import Row, Source, read_lines, value_text
from rftkit.files import UserError, say_once, write_text

ID_KEYS = ("case_id", "row_id")


class Rows(list[Row]):
    """Rows that read_rows has checked; it returns them as they are."""


def read_rows(source: Source, in_memory: str = "rows") -> list[Row]:
    """Read rows strictly: the first fault raises UserError at `file:line`.

    The source is a file (.jsonl, .json with an array, .csv, .parquet), a folder that `datasets`
    saved, or rows in memory, which messages call `in_memory`: a DataFrame, a Dataset, any iterable
    of dicts. `prompt` (text or messages) may replace `messages`; a note says so once.
    """
    if isinstance(source, Rows):
        return source
    rows = Rows()
    for line in read_lines(source, in_memory):
        if line.faults:
            raise UserError(str(line.faults[0]))
        if line.moved:
            say_once(f"{line.file}: {line.moved}")
        rows.append(line.row)
    return rows


def write_rows(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as JSONL: the same rows give the same bytes. The old file stays whole where a
    value is not JSON: NaN raises ValueError, a set TypeError."""
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    write_text(path, "".join(lines))


def own_id(row: Row) -> str | None:
    """The id that a row carries (text or a whole number) as text, or None."""
    ids = [str(row[key]) for key in ID_KEYS if isinstance(row.get(key), (str, int))]
    return next((text for text in ids if text.strip()), None)


def row_ids(rows: Sequence[Row]) -> list[str]:
    """Each row's `case_id` or `row_id` as text; without one its line number (from 1) serves, so
    call it on the rows as they were read. Raises UserError where two rows share an id."""
    line_of: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        identity = own_id(row) or str(number)
        if identity in line_of:
            both = f"rows {line_of[identity]} and {number}"
            raise UserError(f"{both} share the id {value_text(identity)}: rename one")
        line_of[identity] = number
    return list(line_of)


def answer_fields(row: Row) -> Row:
    """What a grader reads as `{{item.KEY}}`: every key but `messages` and `tools`."""
    return {key: value for key, value in row.items() if key not in ("messages", "tools")}


def messages_text(row: Row) -> str:
    """The text of all messages, one after the other, without their roles."""
    contents = [message.get("content") for message in row.get("messages", [])]
    return "\n".join(text for text in contents if isinstance(text, str))


def messages_key(row: Row) -> str:
    """Equal where two rows have the same messages, roles included."""
    return json.dumps(row.get("messages"), sort_keys=True)


def sha256_of(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def split_by_group(
    rows: Sequence[Row], group_by: str, shares: Mapping[str, float], seed: int
) -> dict[str, list[Row]]:
    """Split rows so that no group, and no copy of a prompt, stands on two sides.

    A group is one value of the answer field `group_by`. `shares`, {"train": 0.8, "test": 0.2}, add
    up to 1. The same rows, whatever their order, and the same seed give the same sides.
    Groups are dealt out from the largest to the smallest; each goes to a side drawn at random, in
    proportion to the room left there, among those with room for it. Rows keep their order.
    """
    if not shares or min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise UserError(f"shares are {dict(shares)}, expected positive shares that add up to 1")
    bundles = _bundles(rows, group_by)
    if len(bundles) < len(shares):
        raise UserError(f"{len(bundles)} groups by {group_by!r}, expected {len(shares)} at least")
    room = {side: share * len(rows) for side, share in shares.items()}
    dealt: dict[str, list[list[int]]] = {side: [] for side in shares}
    rng = random.Random(seed)
    for bundle in bundles:
        fitting = [side for side in shares if room[side] >= len(bundle)]
        if fitting:
            side = rng.choices(fitting, weights=[room[s] for s in fitting])[0]
        else:
            side = max(shares, key=room.__getitem__)
        dealt[side].append(bundle)
        room[side] -= len(bundle)
    for side in shares:  # no side stays empty while another can spare a small group
        if not dealt[side]:
            richest = max(shares, key=lambda s: len(dealt[s]))
            dealt[side].append(dealt[richest].pop())
    return {side: [rows[i] for i in sorted(sum(dealt[side], []))] for side in shares}


def _bundles(rows: Sequence[Row], group_by: str) -> list[list[int]]:
    """Row indices that must stay together, largest bundle first; ties by content, not by order."""
    from scipy.cluster.hierarchy import DisjointSet

    groups, together = [], DisjointSet()
    for number, row in enumerate(rows, 1):
        group = group_of(row, group_by)
        if group is None:
            keys = ", ".join(answer_fields(row))
            raise UserError(f"row {number} has no {group_by!r}: group by another key ({keys})")
        groups.append(group)
        for node in (group, prompt := messages_key(row)):
            together.add(node)
        together.merge(group, prompt)
    members: dict[Any, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[together[group]].append(index)
    return sorted(members.values(), key=lambda m: (-len(m), min(groups[i] for i in m)))


def closed_set_note(rows: Sequence[Row], held_out: Sequence[Row], key: str) -> str:
    """A note if `key` has few values, each in many rows, and most held-out ones occur in training,
    else "". Labels are like that: to split by them would hold out labels never trained on."""
    train, other = ({group_of(row, key) for row in side} - {None} for side in (rows, held_out))
    few = len(train | other) ** 2 <= 2 * (len(rows) + len(held_out))
    if not few or 2 * len(train & other) <= len(other):
        return ""
    labels = f"{key} has few values, each in many rows: labels are no group"
    return f"{labels}. Split by a source (patient, author, document) if several rows share one"


def group_of(row: Row, group_by: str) -> str | None:
    """The row's group as text; None where the key is missing, null or empty."""
    value = row.get(group_by)
    if isinstance(value, str):
        return value if value.strip() else None
    return None if value in (None, [], {}) else json.dumps(value, sort_keys=True)
