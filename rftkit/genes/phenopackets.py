"""GA4GH phenopackets -> cases. Schema: https://phenopacket-schema.readthedocs.io/en/2.0.0/; version
1 (negated, genes, ageAtCollection) and the snake_case of its Python classes are read as well.

A phenopacket names its answer in many places: interpretations, diseases, variants, the paper's
title, the id, the file's name. From these only gene, disease id and PMID are taken, as answer
fields; `onset` is the one thing under `diseases` that a prompt may say. Terms are read by id and
printed with the release's own label. (The protobuf classes of `phenopackets` take 200 x as long.)
"""

import gzip
import json
import re
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rftkit.files import UserError, plural
from rftkit.genes.hpo import Hpo

SEXES = {"MALE": "male", "FEMALE": "female", "OTHER_SEX": "other"}
UNITS = ("year", "month", "week", "day")
PACKET = {"subject", "phenotypicFeatures", "phenotypic_features"}
STRAY = "a .json file is no phenopacket: left out"
TEXT_BOOLEAN = "excluded is text: read as true or false"
CONTRADICTION = "a present term lies under an excluded one: kept as recorded"
DURATION = re.compile(r"P(?:(\d+)Y)?(?:(\d+)M)?(?:(\d+)W)?(?:(\d+)D)?(?:T[\dHMS.]+)?")


@dataclass
class Case:
    """One patient. Terms are HPO ids of the one release that hpo.py reads, each at most once."""

    case_id: str
    gene: str
    disease: str  # OMIM id
    pmid: str  # the paper, "PMID:123" or ""
    present: list[str]
    absent: list[str]  # features that were looked for in vain
    sex: str | None = None  # None: not recorded
    age: str | None = None  # "1 year 3 months"
    onset: str | None = None  # "Infantile onset"

    @property
    def features(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Present and absent ids, each sorted: equal for cases that differ in their order alone."""
        return tuple(sorted(self.present)), tuple(sorted(self.absent))


def read_cases(source: str | Path, hpo: Hpo) -> tuple[list[Case], dict[str, Any]]:
    """(the cases of a source, counts as they stand in report.json). A source is a .jsonl or
    .jsonl.gz file (one phenopacket, or one row of `case_row`, a line), a .json file, a folder of
    these, or the release .zip of the phenopacket-store."""
    cases: dict[str, Case] = {}
    lost: Counter[str] = Counter()  # reason -> cases
    unknown: Counter[str] = Counter()  # "HP:… label" -> mentions
    notes: dict[str, list[str]] = defaultdict(list)  # what is odd and was read -> places
    cases_with_unknown = 0
    for place, record in read_records(source):
        if place.endswith(".json") and not (isinstance(record, dict) and PACKET & record.keys()):
            notes[STRAY].append(place)
            continue
        try:
            read = read_row if "messages" in record else read_case
            case, terms, odd = read(record, hpo)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{place}: not a phenopacket ({error!r}): correct it") from error
        for note in odd:
            notes[note].append(place)
        unknown.update(terms)
        cases_with_unknown += bool(terms)
        if isinstance(case, str):
            lost[case] += 1
        elif cases.setdefault(case.case_id, case) is not case:
            lost["the id of an earlier case"] += 1
    if not cases:
        reasons = "; ".join(f"{reason} ({number} times)" for reason, number in lost.items())
        raise UserError(f"{source}: no case: {reasons or 'no phenopacket'}: correct the source")
    return list(cases.values()), {
        "records": len(cases) + lost.total(),
        "kept": len(cases),
        "lost": dict(sorted(lost.items())),
        "notes": {n: {"number": len(p), "first": p[0]} for n, p in notes.items()},
        "terms_unknown_to_hpo": {
            "mentions": unknown.total(),
            "terms": len(unknown),
            "cases": cases_with_unknown,
            "most_frequent": dict(unknown.most_common(10)),
        },
    }


def camel_case(part: dict[str, Any]) -> dict[str, Any]:
    return {re.sub("_([a-z])", lambda m: m[1].upper(), key): v for key, v in part.items()}


def read_case(packet: dict[str, Any], hpo: Hpo) -> tuple[Case | str, list[str], set[str]]:
    """(one phenopacket as a case, or why it is lost; its terms unknown to HPO; what was odd)."""
    if any("_" in key for key in packet):
        packet = json.loads(json.dumps(packet), object_hook=camel_case)
    subject, unknown, notes = packet["subject"], [], set()
    present, absent = {}, {}  # each term once, in order
    for feature in packet.get("phenotypicFeatures") or []:
        given = feature["type"]
        if term := hpo.resolve(given["id"]):
            (absent if is_excluded(feature, notes) else present)[term] = None
        else:
            unknown.append(f"{given['id']} {given.get('label', '')}".strip())
    genes = causative_genes(packet)
    if len(genes) != 1:
        return "several causative genes" if genes else "no causative gene", unknown, notes
    if not present:
        return "no present feature", unknown, notes
    if not hpo.closure_of(present).isdisjoint(absent):
        notes.add(CONTRADICTION)
    disease = next((d for d in packet.get("diseases") or [] if not is_excluded(d, notes)), {})
    age = subject.get("timeAtLastEncounter") or subject.get("ageAtCollection")
    onset = disease.get("onset") or disease.get("ageOfOnset")
    onset = onset or {"ontologyClass": disease.get("classOfOnset") or {}}
    references = packet.get("metaData", {}).get("externalReferences") or []
    case = Case(
        case_id=packet["id"],
        gene=genes.pop(),
        disease=disease.get("term", {}).get("id", ""),
        pmid=next((r["id"] for r in references if r["id"].startswith("PMID:")), ""),
        present=list(present),
        absent=[term for term in absent if term not in present],
        sex=SEXES.get(subject.get("sex")),
        age=describe_time(age or {}, hpo),
        onset=describe_time(onset, hpo),
    )
    return case, unknown, notes


def is_excluded(part: dict[str, Any], notes: set[str]) -> bool:
    value = part.get("excluded", part.get("negated"))  # version 1
    if isinstance(value, str):
        notes.add(TEXT_BOOLEAN)
        value = {"true": True, "false": False}[value.lower()]
    return bool(value)


def read_row(row: dict[str, Any], hpo: Hpo) -> tuple[Case, list[str], set[str]]:
    """The case of a row that `case_row` wrote."""
    fields = {name: row[name] for name in ROW_FIELDS}
    for name in ("present", "absent"):
        fields[name] = [term["id"] for term in row[name] if term["id"] in hpo.terms]
    return Case(gene=row["reference_gene"], **fields), [], set()


def causative_genes(packet: dict[str, Any]) -> set[str]:
    genes = {gene["symbol"] for gene in packet.get("genes") or []}  # version 1
    for interpretation in packet.get("interpretations") or []:
        for finding in interpretation.get("diagnosis", {}).get("genomicInterpretations") or []:
            if finding.get("interpretationStatus") == "CAUSATIVE":
                variant = finding.get("variantInterpretation", {}).get("variationDescriptor", {})
                gene = finding.get("gene") or variant.get("geneContext") or {}
                genes |= {gene["symbol"]} if gene else set()
    return genes


def describe_time(element: dict[str, Any], hpo: Hpo) -> str | None:
    """An age such as "1 year 3 months", a gestational age, or the label of an onset term."""
    if age := element.get("age"):
        match = DURATION.fullmatch(age if isinstance(age, str) else age["iso8601duration"])
        counts = zip(match.groups(default="0"), UNITS) if match else ()
        words = " ".join(plural(int(n), unit) for n, unit in counts if int(n))
        return words or ("newborn" if match else None)
    if "gestationalAge" in element:
        return f"{element['gestationalAge']['weeks']} weeks of gestation"
    term = hpo.resolve(element.get("ontologyClass", {}).get("id", ""))
    return hpo.terms[term] if term else None


def read_records(source: str | Path) -> Iterator[tuple[str, Any]]:
    """(place, record); place reads "cases.jsonl.gz:17" or "store.zip/GENE/case.json"."""
    place = str(source)
    try:
        for place, text in _texts(Path(source)):
            yield place, json.loads(text)
    except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(f"{place}: cannot be read ({error}): fetch it again") from error


def _texts(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for file in sorted(path.rglob("*.jsonl")) or sorted(path.rglob("*.json")):
            yield from _texts(file)
    elif path.suffix == ".json":
        yield str(path), path.read_bytes()
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".json") and "__MACOSX" not in name:
                    yield f"{path}/{name}", archive.read(name)
    else:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                yield f"{path}:{number}", line


NOT_RECORDED = "not recorded"
QUESTION = "Which gene is responsible?"
ROW_FIELDS = ("case_id", "pmid", "disease", "present", "absent", "sex", "age", "onset")
CONTRACT = (
    'Answer with JSON alone: {"genes": ["GENE1", "GENE2", "GENE3", "GENE4", "GENE5"]}, five '
    "different gene symbols, most likely first."
)


def prompt_text(case: Case, hpo: Hpo, candidates: Sequence[str] = ()) -> str:
    """The prompt as the model reads it; `candidates` makes it the candidate-list form."""
    present = "; ".join(hpo.terms[term] for term in case.present)
    absent = "; ".join(hpo.terms[term] for term in case.absent) or NOT_RECORDED
    sex, age, onset = (value or NOT_RECORDED for value in (case.sex, case.age, case.onset))
    among = f" It is one of these candidates: {', '.join(candidates)}." if candidates else ""
    return (
        f"Symptoms present: {present}.\nSymptoms absent: {absent}.\n"
        f"History: sex {sex}; age at last encounter {age}; onset {onset}.\n\n"
        f"{QUESTION}{among} {CONTRACT}"
    )


def case_row(case: Case, hpo: Hpo, candidates: Sequence[str] = ()) -> dict[str, Any]:
    """The case as a row of the RFT contract: `messages`, and answer fields beside it."""
    message = {"role": "user", "content": prompt_text(case, hpo, candidates)}
    row = {"messages": [message], "reference_gene": case.gene}
    row |= {name: getattr(case, name) for name in ROW_FIELDS}
    for name in ("present", "absent"):
        row[name] = [{"id": term, "label": hpo.terms[term]} for term in row[name]]
    return row | ({"candidates": list(candidates)} if candidates else {})
