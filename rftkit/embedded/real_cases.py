"""Published cases told in the words of the embedded world.

The tiny models know 200 terms and 240 genes. A real case can be put to them only so far: each term
becomes its nearest ancestor among the 200; cases with fewer than three are left out; of more than
six the six most specific stay, because the models never saw a longer chart. What was kept and what
was lost is counted. The world's genes and terms were chosen from HPO alone, without these cases.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rftkit.data.errors import UserError
from rftkit.data.rows import read_rows
from rftkit.embedded.world import ONSET_OF, Case, World, question
from rftkit.genes.case import Case as RealCase
from rftkit.genes.hpo import load_hpo
from rftkit.genes.mapping import map_cases
from rftkit.genes.phenopackets import read_cases

MOST_PRESENT, MOST_ABSENT, FEWEST_PRESENT = 6, 3, 3
NO_ONSET, NO_SEX = "infancy", "female"  # what is written where a case records none: counted


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
    kept, unfit = map_cases(hpo, found, world.term_ids, world.genes(), FEWEST_PRESENT)
    told = RealCases([], read, {**lost, **unfit})
    number = {term: i for i, term in enumerate(world.term_ids)}
    split = {disease.gene: disease.split for disease in world.diseases}
    filled: Counter = Counter()
    for case in kept:
        by_rarity = sorted((number[t] for t in case.present), key=lambda t: world.carriers[t])
        onset = onset_group(case.onset)
        filled["without a usable onset: infancy written"] += onset is None
        filled["without a sex: female written"] += case.sex not in ("male", "female")
        sex = case.sex if case.sex in ("male", "female") else NO_SEX
        absent = [number[t] for t in case.absent][:MOST_ABSENT]
        mapped = Case(by_rarity[:MOST_PRESENT], absent, onset or NO_ONSET, sex)
        told.rows.append(
            {
                "messages": [{"role": "user", "content": question(world, mapped)}],
                "reference_gene": case.gene,
                "case_id": case.case_id,
                "split": split[case.gene],
                "present": [
                    {"id": world.term_ids[t], "label": world.terms[t]} for t in mapped.present
                ],
            }
        )
    told.filled = dict(filled)
    told.splits = dict(Counter(row["split"] for row in told.rows))
    if not told.rows:
        raise UserError(f"{source}: none of {read} cases can be told in the embedded world: {lost}")
    return told


def read_source(source: str | Path) -> tuple[list[RealCase], dict[str, int]]:
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


def case_of_row(row: dict[str, Any]) -> RealCase:
    missing = [key for key in ("reference_gene", "case_id", "present") if key not in row]
    if missing:
        raise UserError(f"--cases: a row without {', '.join(missing)}, expected all: see `cases`")
    return RealCase(
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
