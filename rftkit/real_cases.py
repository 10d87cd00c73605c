"""Published cases in the small vocabulary of the embedded models: 200 terms, 240 genes.

Each term of a real case becomes its nearest ancestor among the 200; cases with fewer than three are
left out; of more than six the six most specific stay, because the models never saw a longer chart.
What was lost is counted, because the cases that fit are the easier ones. Genes and terms were
chosen from HPO alone, without these cases.
"""

import functools
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rftkit.files import MODELS, UserError, read_json
from rftkit.genes.hpo import Hpo, load_hpo
from rftkit.genes.phenopackets import read_cases
from rftkit.rows import Row

WORLD_FILE = MODELS / "world.json"  # written by `python -m tools.medical_school.world`

ONSETS = {  # HPO's onset terms in four coarse groups
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
    terms: dict[str, str]  # HPO id -> label
    splits: dict[str, str]  # gene -> train, validation or test
    annotation: dict[str, set[str]]  # gene -> the HPO ids of its disease

    def genes(self, split: str | None = None) -> list[str]:
        return [gene for gene, own in self.splits.items() if split in (None, own)]


@functools.cache
def load_world() -> World:
    record = read_json(WORLD_FILE)
    terms = {term["id"]: term["label"] for term in record["terms"]}
    ids, diseases = list(terms), record["diseases"]
    splits = {disease["gene"]: disease["split"] for disease in diseases}
    annotation = {disease["gene"]: {ids[t] for t in disease["terms"]} for disease in diseases}
    return World(terms, splits, annotation)


def question_text(present: list[str], absent: list[str], onset: str, sex: str) -> str:
    return (
        f"Symptoms present: {', '.join(present)}. Symptoms absent: {', '.join(absent) or 'none'}. "
        f"History: {onset} onset, {sex}. {QUESTION}"
    )


def read_real_cases(source: str | Path, world: World) -> tuple[list[Row], dict[str, Any]]:
    """(cases of the world's genes as rows that its models can read, counts of what was kept, lost
    and filled in). The source holds phenopackets, or rows of `rftkit cases`."""
    hpo = load_hpo()
    cases, counts = read_cases(source, hpo)
    lost = Counter(counts["lost"])
    carriers = Counter(term for terms in world.annotation.values() for term in terms)
    rows, filled = [], Counter()
    for case in cases:
        if case.gene not in world.splits:
            lost["gene not among the genes asked about"] += 1
            continue
        nearest = (nearest_term(hpo, term, world.terms) for term in case.present)
        present = list(dict.fromkeys(term for term in nearest if term))
        if len(present) < FEWEST_PRESENT:
            lost[f"fewer than {FEWEST_PRESENT} present terms in the vocabulary"] += 1
            continue
        # An absent term is not mapped: "no focal seizure" does not say "no seizure".
        implied = hpo.closure_of(present)
        absent = [term for term in case.absent if term in world.terms and term not in implied]
        present = sorted(present, key=carriers.__getitem__)[:MOST_PRESENT]
        onset = onset_group(case.onset)
        sex = case.sex if case.sex in ("male", "female") else None
        filled["without a usable onset: infancy written"] += onset is None
        filled["without a sex: female written"] += sex is None
        labels = [[world.terms[t] for t in terms] for terms in (present, absent[:MOST_ABSENT])]
        question = question_text(*labels, onset or NO_ONSET, sex or NO_SEX)
        row = {"messages": [{"role": "user", "content": question}], "reference_gene": case.gene}
        row |= {"case_id": case.case_id, "split": world.splits[case.gene]}
        row["present"] = [{"id": term, "label": world.terms[term]} for term in present]
        rows.append(row)
    if not rows:
        raise UserError(f"{source}: no case of this world in {counts['records']}: {dict(lost)}")
    return rows, {
        "read": counts["records"],
        "kept": len(rows),
        "genes": len({row["reference_gene"] for row in rows}),
        "lost": dict(lost),
        "filled_in": dict(filled),
        "splits": dict(Counter(row["split"] for row in rows)),
    }


def nearest_term(hpo: Hpo, term_id: str, vocabulary: dict[str, str]) -> str | None:
    """The term, or its nearest ancestor in the vocabulary; of several as near the smallest id."""
    level = {hpo.resolve(term_id)} - {None}
    while level and not level & vocabulary.keys():
        level = {parent for term in level for parent in hpo.parents[term]}
    return min(level & vocabulary.keys(), default=None)


def onset_group(text: str | None) -> str | None:
    """The world's onset group of an HPO onset label or of an age such as "3 years 2 months"."""
    age = re.match(r"(\d+) (day|week|month|year)s?\b", text or "")
    if age is None:
        return ONSET_OF.get(text or "")
    years = "childhood" if int(age[1]) < 10 else "later"
    return {"year": years, "month": "infancy"}.get(age[2], "birth")
