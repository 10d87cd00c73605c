"""Made-up rows for the tests of the data contract."""

from __future__ import annotations

import json
import random
from pathlib import Path

from rftkit.check import check_file

ROOT = Path(__file__).resolve().parents[1]
GENES = ["SCN1A", "FBN1", "NF1", "PAH", "HTT", "CFTR", "DMD", "RET", "OTC", "GLA", "TTN", "HBB"]
SIGNS = ["Seizure", "Ataxia", "Chorea", "Anemia", "Macrocephaly", "Cataract", "Global delay"]


def make_row(number: int, **more) -> dict:
    rng = random.Random(number)
    present, absent = rng.sample(SIGNS, 3), f"sign {number}, trait {number}"
    text = f"Symptoms present: {', '.join(present)}. Symptoms absent: {absent}. Which genes?"
    return {
        "messages": [{"role": "user", "content": text}],
        "reference_gene": GENES[number % len(GENES)],
        "case_id": f"case-{number}",
    } | more


def with_text(row: dict, words: str) -> dict:
    """The row with these words added to its prompt."""
    content = row["messages"][0]["content"] + " " + words
    return row | {"messages": [{"role": "user", "content": content}]}


def lines_of(rows: list[dict]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def check_bytes(tmp_path: Path, content: bytes, **options):
    (tmp_path / "train.jsonl").write_bytes(content)
    return check_file(tmp_path / "train.jsonl", **options)


def check_rows(tmp_path: Path, rows: list[dict], **options):
    return check_bytes(tmp_path, lines_of(rows), **options)


def check_split(tmp_path: Path, train: list[dict], validation: list[dict], **options):
    (tmp_path / "validation.jsonl").write_bytes(lines_of(validation))
    return check_rows(tmp_path, train, validation=tmp_path / "validation.jsonl", **options)


def places(report) -> list[tuple[int | None, str]]:
    return [(fault.line, fault.kind) for fault in report.faults]


GOOD = [make_row(n) for n in range(30)]
ROW = json.dumps(GOOD[0]).encode()
