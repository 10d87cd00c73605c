"""Made-up material for the gene tests: a tiny ontology, and phenopackets of nobody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rftkit.genes.hpo import HPO_RELEASE

# id: (label, parents)
TINY_TERMS = {
    "HP:0000001": ("All", []),
    "HP:0000118": ("Phenotypic abnormality", ["HP:0000001"]),
    "HP:0000010": ("Limb sign", ["HP:0000118"]),
    "HP:0000011": ("Arm sign", ["HP:0000010"]),
    "HP:0000012": ("Leg sign", ["HP:0000010"]),
    "HP:0000013": ("Left arm sign", ["HP:0000011"]),
    "HP:0000020": ("Eye sign", ["HP:0000118"]),
    "HP:0000021": ("Eye and arm sign", ["HP:0000020", "HP:0000011"]),
    "HP:0003577": ("Congenital onset", ["HP:0000001"]),
    "HP:0001419": ("X-linked recessive inheritance", ["HP:0000001"]),
}
# disease, name, qualifier, term, reference, onset, frequency, aspect
TINY_ROWS = [
    ("OMIM:1", "First", "", "HP:0000011", "PMID:1", "", "1/1", "P"),
    ("OMIM:1", "First", "", "HP:0000020", "PMID:2;PMID:1", "", "1/2", "P"),
    ("OMIM:1", "First", "", "HP:0000012", "PMID:3", "HP:0003577", "0/9", "P"),
    ("OMIM:1", "First", "", "HP:0003577", "PMID:1", "", "", "C"),
    ("OMIM:1", "First", "", "HP:0001419", "OMIM:1", "", "", "I"),
    ("OMIM:2", "Second", "", "HP:0000012", "OMIM:2", "", "25%", "P"),
    ("OMIM:2", "Second", "NOT", "HP:0000020", "OMIM:2", "", "", "P"),
    ("ORPHA:3", "Third", "", "HP:0000999", "ORPHA:3", "", "HP:0040282", "P"),
    ("ORPHA:4", "No gene", "", "HP:0000013", "ORPHA:4", "", "", "P"),
]
TINY_GENES = [("AAA", "OMIM:1"), ("BBB", "OMIM:2"), ("CCC", "OMIM:2"), ("CCC", "ORPHA:3")]


def write_tiny_hpo(folder: Path) -> Path:
    """The three raw files of an ontology of ten terms; HP:0000999 is an alternative id of 0021."""
    stanzas = [f"format-version: 1.2\ndata-version: hp/releases/{HPO_RELEASE}\n"]
    for term, (label, parents) in TINY_TERMS.items():
        lines = [f"id: {term}", f"name: {label}"]
        lines += ["alt_id: HP:0000999"] if term == "HP:0000021" else []
        lines += [f"is_a: {parent} ! {TINY_TERMS[parent][0]}" for parent in parents]
        stanzas.append("[Term]\n" + "\n".join(lines) + "\n")
    stanzas.append(
        "[Term]\nid: HP:0000777\nname: obsolete Arm\nis_obsolete: true\nreplaced_by: HP:0000011\n"
    )
    stanzas.append("[Term]\nid: HP:0000778\nname: obsolete, gone\nis_obsolete: true\n")
    stanzas.append("[Typedef]\nid: part_of\nname: part of\n")
    (folder / "hp.obo").write_text("\n".join(stanzas), encoding="utf-8")
    header = "database_id\tdisease_name\tqualifier\thpo_id\treference\tevidence\tonset\tfrequency"
    rows = ["#description: made up", header + "\tsex\tmodifier\taspect\tbiocuration"]
    for disease, name, qualifier, term, reference, onset, frequency, aspect in TINY_ROWS:
        cells = [disease, name, qualifier, term, reference, "PCS", onset, frequency, "", ""]
        rows.append("\t".join([*cells, aspect, "us"]))
    (folder / "phenotype.hpoa").write_text("\n".join(rows) + "\n", encoding="utf-8")
    genes = ["ncbi_gene_id\tgene_symbol\thpo_id\thpo_name\tfrequency\tdisease_id"]
    genes += [f"1\t{gene}\tHP:0000011\tArm sign\t-\t{disease}" for gene, disease in TINY_GENES]
    (folder / "genes_to_phenotype.txt").write_text("\n".join(genes) + "\n", encoding="utf-8")
    return folder


def packet(
    case_id: str = "case-1",
    gene: str = "FBN1",
    present: tuple[str, ...] = ("HP:0001519", "HP:0001083"),
    absent: tuple[str, ...] = ("HP:0001250",),
    pmid: str = "PMID:1",
    **more: Any,
) -> dict[str, Any]:
    """A phenopacket of version 2; `more` replaces whole top-level parts."""
    features = [{"type": {"id": term, "label": "a label"}} for term in present]
    features += [{"type": {"id": term, "label": "a label"}, "excluded": True} for term in absent]
    finding = {
        "interpretationStatus": "CAUSATIVE",
        "variantInterpretation": {"variationDescriptor": {"geneContext": {"symbol": gene}}},
    }
    whole = {
        "id": case_id,
        "subject": {
            "id": "someone",
            "sex": "FEMALE",
            "timeAtLastEncounter": {"age": {"iso8601duration": "P6Y"}},
        },
        "phenotypicFeatures": features,
        "interpretations": [{"diagnosis": {"genomicInterpretations": [finding]}}],
        "diseases": [{"term": {"id": "OMIM:154700", "label": "a disease"}}],
        "metaData": {"externalReferences": [{"id": pmid, "description": "a title"}]},
    }
    return whole | more


def write_packets(path: Path, packets: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(p) + "\n" for p in packets), encoding="utf-8")
    return path
