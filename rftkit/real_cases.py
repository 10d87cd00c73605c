"""Published cases told in the words of the embedded world.

The tiny models know 200 terms and 240 genes. A real case can be put to them only so far: each term
becomes its nearest ancestor among the 200; cases with fewer than three are left out; of more than
six the six most specific stay, because the models never saw a longer chart. What was kept and what
was lost is counted. The world's genes and terms were chosen from HPO alone, without these cases.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rftkit.files import MODELS, UserError, read_json
from rftkit.genes.case import Case, map_cases
from rftkit.genes.hpo import load_hpo
from rftkit.genes.phenopackets import read_cases
from rftkit.rows import read_rows

WORLD_FILE = MODELS / "world.json"  # written by `python -m tools.medical_school.world`

# HPO's clinical modifiers of onset (aspect C rows), in four coarse groups.
ONSETS = {
    "birth": ("Embryonal", "Fetal", "Antenatal", "Congenital", "Neonatal"),
    "infancy": ("Infantile",),
    "childhood": ("Childhood",),
    "later": ("Juvenile", "Young adult", "Adult", "Middle age", "Late"),
}
ONSET_OF = {f"{name} onset": group for group, names in ONSETS.items() for name in names}

QUESTION = "Which genes may be responsible?"
MOST_PRESENT, MOST_ABSENT, FEWEST_PRESENT = 6, 3, 3
NO_ONSET, NO_SEX = "infancy", "female"  # what is written where a case records none: counted


@dataclass
class World:
    """The closed world that the embedded models know: 200 HPO terms, 240 genes."""

    terms: dict[str, str]  # HPO id -> label
    splits: dict[str, str]  # gene -> train, validation or test
    annotation: dict[str, set[str]]  # gene -> the HPO ids of its disease

    def genes(self, split: str | None = None) -> list[str]:
        return [gene for gene, own in self.splits.items() if split in (None, own)]


@functools.cache
def load_world() -> World:
    """The world of the shipped models, from models/world.json."""
    record = read_json(WORLD_FILE)
    terms = {term["id"]: term["label"] for term in record["terms"]}
    ids = list(terms)
    return World(
        terms,
        {disease["gene"]: disease["split"] for disease in record["diseases"]},
        {d["gene"]: {ids[t] for t in d["terms"]} for d in record["diseases"]},
    )


def question_text(present: list[str], absent: list[str], onset: str, sex: str) -> str:
    """The one form in which this world asks; no task name, no plan."""
    return (
        f"Symptoms present: {', '.join(present)}. Symptoms absent: {', '.join(absent) or 'none'}. "
        f"History: {onset} onset, {sex}. {QUESTION}"
    )


@dataclass
class RealCases:
    """Rows in the world's form, with counts of what was kept, lost and filled in."""

    rows: list[dict[str, Any]]
    read: int
    lost: dict[str, int] = field(default_factory=dict)
    filled: dict[str, int] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)

    def summary(self) -> list[str]:
        """Lines for the reader."""
        lost = "; ".join(f"{count} {reason}" for reason, count in self.lost.items())
        filled = "; ".join(f"{count} {what}" for what, count in self.filled.items())
        splits = ", ".join(f"{count} of {name} genes" for name, count in self.splits.items())
        genes = len({row["reference_gene"] for row in self.rows})
        return [
            f"Real cases: {len(self.rows)} of {self.read} kept, {genes} genes ({splits}).",
            f"  lost: {lost or 'none'}",
            f"  filled in: {filled or 'nothing'}",
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "read": self.read,
            "kept": len(self.rows),
            "genes": len({row["reference_gene"] for row in self.rows}),
            "lost": self.lost,
            "filled_in": self.filled,
            "splits": self.splits,
        }


def tell_real_cases(source: str | Path, world: World) -> RealCases:
    """Real cases of the world's genes, as rows that its models can read.

    source: phenopackets (as `rftkit cases` reads them), or rows that `rftkit cases` wrote.
    """
    hpo = load_hpo()
    found, lost = read_source(source)
    read = len(found) + sum(lost.values())
    kept, unfit = map_cases(hpo, found, list(world.terms), world.genes(), FEWEST_PRESENT)
    told = RealCases([], read, {**lost, **unfit})
    carriers = Counter(term for terms in world.annotation.values() for term in terms)
    filled: Counter = Counter()
    for case in kept:
        onset = onset_group(case.onset)
        filled["without a usable onset: infancy written"] += onset is None
        filled["without a sex: female written"] += case.sex not in ("male", "female")
        sex = case.sex if case.sex in ("male", "female") else NO_SEX
        present = sorted(case.present, key=carriers.__getitem__)[:MOST_PRESENT]
        labels = [world.terms[t] for t in present]
        absent = [world.terms[t] for t in case.absent][:MOST_ABSENT]
        question = question_text(labels, absent, onset or NO_ONSET, sex)
        told.rows.append(
            {
                "messages": [{"role": "user", "content": question}],
                "reference_gene": case.gene,
                "case_id": case.case_id,
                "split": world.splits[case.gene],
                "present": [{"id": i, "label": label} for i, label in zip(present, labels)],
            }
        )
    told.filled = dict(filled)
    told.splits = dict(Counter(row["split"] for row in told.rows))
    if not told.rows:
        raise UserError(f"{source}: none of {read} cases can be told in the embedded world: {lost}")
    return told


def read_source(source: str | Path) -> tuple[list[Case], dict[str, int]]:
    """(cases, {reason: lost}) of phenopackets, or of rows that `rftkit cases` wrote."""
    source = Path(source)
    if source.suffix == ".jsonl" and source.is_file():
        with open(source, encoding="utf-8") as file:
            first = file.readline()
        try:
            is_rows = "messages" in json.loads(first)
        except ValueError:
            is_rows = False
        if is_rows:
            return [case_of_row(row) for row in read_rows(source)], {}
    reading = read_cases(source, load_hpo())
    return reading.cases, dict(reading.lost)


def case_of_row(row: dict[str, Any]) -> Case:
    missing = [key for key in ("reference_gene", "case_id", "present") if key not in row]
    if missing:
        raise UserError(f"--cases: a row without {', '.join(missing)}, expected all: see `cases`")
    return Case(
        case_id=row["case_id"],
        gene=row["reference_gene"],
        disease=row.get("disease", ""),
        pmid=row.get("pmid", ""),
        present=[term["id"] for term in row["present"]],
        absent=[term["id"] for term in row.get("absent", [])],
        sex=row.get("sex"),
        age=row.get("age"),
        onset=row.get("onset"),
    )


def onset_group(text: str | None) -> str | None:
    """The world's onset group of an HPO onset label or of an age such as "3 years 2 months"."""
    if text is None:
        return None
    if text in ONSET_OF:
        return ONSET_OF[text]
    years = re.match(r"(\d+) years?\b", text)
    if years:
        age = int(years.group(1))
        return "childhood" if age < 10 else "later"
    months = re.match(r"(\d+) months?\b", text)
    if months:
        return "infancy"
    return "birth" if re.match(r"\d+ (day|week)s?\b", text) else None
