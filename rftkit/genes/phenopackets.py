"""GA4GH phenopackets, version 2 -> cases.

A source is a .jsonl or .jsonl.gz file (one phenopacket a line), a .json file, a folder of .json
files, or the release .zip of the phenopacket-store; all are read as a stream, one phenopacket in
memory at a time. Schema: https://phenopacket-schema.readthedocs.io/en/2.0.0/.

A phenopacket names its answer in many places: interpretations, diseases, variants, the paper's
title, the id, the file's name. From these only gene, disease id and PMID are taken, as answer
fields; `onset` is the one thing under `diseases` that may be told. Terms are read by id, and the
label printed is the release's own: a label in the file could say anything.

A plain walk over the dicts reads 10,000 cases in 0.1 s once they are parsed; the protobuf classes
of the package `phenopackets` take 18 s for the same.
"""

from __future__ import annotations

import gzip
import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from rftkit.files import UserError
from rftkit.genes.case import Case
from rftkit.genes.hpo import Hpo

NO_GENE = "no causative gene"
SEVERAL_GENES = "several causative genes"
NO_PRESENT = "no present feature"
NO_KNOWN_PRESENT = "no present feature that HPO knows"
REPEATED_ID = "the id of an earlier case"

SEXES = {"MALE": "male", "FEMALE": "female", "OTHER_SEX": "other"}
UNITS = (("Y", "year"), ("M", "month"), ("W", "week"), ("D", "day"))
DURATION = re.compile(r"P(?:(\d+)Y)?(?:(\d+)M)?(?:(\d+)W)?(?:(\d+)D)?(?:T[\dHMS.]+)?")
AGAIN = "fetch or write the file again"


@dataclass
class Reading:
    """Cases that were kept, and what became of everything else.

    lost           {reason: cases}
    unknown_terms  {"HP:… label as given": mentions} that the release does not know; a case keeps
                   its other terms
    """

    cases: list[Case] = field(default_factory=list)
    records: int = 0
    lost: Counter = field(default_factory=Counter)
    unknown_terms: Counter = field(default_factory=Counter)
    cases_with_unknown_terms: int = 0

    def summary(self) -> dict[str, Any]:
        """Counts as they stand in report.json; the most frequent unknown terms by name."""
        return {
            "records": self.records,
            "kept": len(self.cases),
            "lost": dict(sorted(self.lost.items())),
            "terms_unknown_to_hpo": {
                "mentions": self.unknown_terms.total(),
                "terms": len(self.unknown_terms),
                "cases": self.cases_with_unknown_terms,
                "most_frequent": dict(self.unknown_terms.most_common(10)),
            },
        }


def read_cases(source: str | Path, hpo: Hpo, watch: Callable[[int], None] | None = None) -> Reading:
    """Read every phenopacket of a source. A case that cannot serve is counted by its reason.

    watch: called with the number of phenopackets read so far, every 500.
    UserError, naming file and record, where a file is truncated or malformed.
    """
    reading = Reading()
    seen: set[str] = set()
    for place, packet in read_phenopackets(source):
        reading.records += 1
        if watch and reading.records % 500 == 0:
            watch(reading.records)
        case = parse_case(place, packet, hpo, reading)
        if case is None:
            continue
        if case.case_id in seen:
            reading.lost[REPEATED_ID] += 1
            continue
        seen.add(case.case_id)
        reading.cases.append(case)
    if not reading.records:
        raise UserError(f"{source}: holds no phenopacket, expected at least one: check the path")
    return reading


def parse_case(place: str, packet: dict[str, Any], hpo: Hpo, reading: Reading) -> Case | None:
    """One phenopacket as a case, or None with the reason counted in `reading`.

    UserError where the record is no phenopacket of version 2.
    """
    if "phenotypicFeatures" not in packet and not ("id" in packet and "subject" in packet):
        raise UserError(
            f"{place}: is no phenopacket (keys {', '.join(list(packet)[:4]) or 'none'}), expected "
            '"id", "subject" and "phenotypicFeatures": keep other JSON files out of the source'
        )
    genes = _causative_genes(place, packet)
    present, absent = _features(place, packet, hpo, reading)
    subject = _get(place, packet, "subject", dict)
    reason = None
    if len(genes) != 1:
        reason = SEVERAL_GENES if genes else NO_GENE
    elif not present:
        reason = NO_PRESENT if present is None else NO_KNOWN_PRESENT
    if reason:
        reading.lost[reason] += 1
        return None
    disease, onset = _disease(place, packet)
    return Case(
        case_id=_get(place, packet, "id", str) or place,
        gene=genes.pop(),
        disease=disease,
        pmid=_pmid(place, packet),
        present=present,
        # What is present cannot be absent; a file that says both is taken at its better word.
        absent=[term for term in absent if term not in set(present)],
        sex=SEXES.get(subject.get("sex")),
        age=describe_time(subject.get("timeAtLastEncounter"), hpo),
        onset=describe_time(onset, hpo),
    )


def describe_time(element: Any, hpo: Hpo) -> str | None:
    """A TimeElement in words: an age, a gestational age, or the label of an onset term.

    None where it is missing or cannot be told without a birth date (timestamp, interval).

    >>> describe_time({"age": {"iso8601duration": "P1Y3M"}}, hpo)  # doctest: +SKIP
    '1 year 3 months'
    """
    if not isinstance(element, dict):
        return None
    if isinstance(age := element.get("age"), dict):
        return describe_duration(age.get("iso8601duration"))
    if isinstance(between := element.get("ageRange"), dict):
        ends = [between.get(end) or {} for end in ("start", "end")]
        texts = [describe_duration(end.get("iso8601duration")) for end in ends]
        return f"{texts[0]} to {texts[1]}" if all(texts) else None
    if isinstance(before_birth := element.get("gestationalAge"), dict):
        weeks = before_birth.get("weeks")
        return f"{weeks} weeks of gestation" if isinstance(weeks, int) else None
    if isinstance(term := element.get("ontologyClass"), dict):
        known = hpo.resolve(str(term.get("id")))
        return hpo.label(known) if known else None
    return None


def describe_duration(text: Any) -> str | None:
    """An ISO 8601 duration in words; hours and below are left out.

    >>> describe_duration("P1Y3M"), describe_duration("P20D"), describe_duration("soon")
    ('1 year 3 months', '20 days', None)
    """
    match = DURATION.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return None
    parts = []
    for number, (_, unit) in zip(match.groups(), UNITS):
        if number and int(number):
            parts.append(f"{int(number)} {unit}{'' if int(number) == 1 else 's'}")
    return " ".join(parts) or "newborn"


# What a phenopacket holds, each part with its place in the message when it has the wrong form.


def _get(place: str, holder: dict[str, Any], key: str, kind: type) -> Any:
    """holder[key], an empty value where it is missing; UserError where it has another type."""
    value = holder.get(key)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        names = {dict: "an object", list: "an array", str: "a string"}
        raise UserError(
            f'{place}: "{key}" is {json.dumps(value)[:60]}, expected {names[kind]} (GA4GH '
            f"phenopacket, version 2): {AGAIN}"
        )
    return value


def _objects(place: str, holder: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """holder[key] as a list of objects."""
    items = _get(place, holder, key, list)
    for number, item in enumerate(items):
        _get(place, {f"{key}[{number}]": item}, f"{key}[{number}]", dict)
    return items


def _features(
    place: str, packet: dict[str, Any], hpo: Hpo, reading: Reading
) -> tuple[list[str] | None, list[str]]:
    """(present, absent) ids of the release, each once; present is None where none was given."""
    found: dict[bool, dict[str, None]] = {False: {}, True: {}}
    any_present = any_unknown = False
    for number, feature in enumerate(_objects(place, packet, "phenotypicFeatures")):
        if "negated" in feature:
            raise UserError(
                f'{place}: "phenotypicFeatures[{number}]" holds "negated", the word of version 1, '
                'expected version 2 ("excluded"): convert the file (phenopacket-tools convert)'
            )
        kind = _get(place, feature, "type", dict)
        given = _get(place, kind, "id", str)
        if not given:
            raise UserError(
                f'{place}: "phenotypicFeatures[{number}].type.id" is missing, expected an id such '
                f"as HP:0001250: {AGAIN}"
            )
        excluded = feature.get("excluded") is True
        any_present = any_present or not excluded
        term = hpo.resolve(given)
        if term is None:
            any_unknown = True
            reading.unknown_terms[f"{given} {kind.get('label', '')}".strip()] += 1
        else:
            found[excluded][term] = None
    reading.cases_with_unknown_terms += any_unknown
    return list(found[False]) if any_present else None, list(found[True])


def _causative_genes(place: str, packet: dict[str, Any]) -> set[str]:
    """Symbols of all genes that an interpretation calls causative, by variant or by gene."""
    genes = set()
    for interpretation in _objects(place, packet, "interpretations"):
        diagnosis = _get(place, interpretation, "diagnosis", dict)
        for finding in _objects(place, diagnosis, "genomicInterpretations"):
            if finding.get("interpretationStatus") != "CAUSATIVE":
                continue
            variant = _get(place, finding, "variantInterpretation", dict)
            descriptor = _get(place, variant, "variationDescriptor", dict)
            for holder, key in ((descriptor, "geneContext"), (finding, "gene")):
                symbol = _get(place, _get(place, holder, key, dict), "symbol", str).strip()
                genes.update([symbol] if symbol else [])
    return genes


def _disease(place: str, packet: dict[str, Any]) -> tuple[str, Any]:
    """(id, onset) of the disease; of several, the first that has an onset."""
    diseases = [d for d in _objects(place, packet, "diseases") if d.get("excluded") is not True]
    if not diseases:
        return "", None
    disease = next((d for d in diseases if d.get("onset")), diseases[0])
    return _get(place, _get(place, disease, "term", dict), "id", str), disease.get("onset")


def _pmid(place: str, packet: dict[str, Any]) -> str:
    """The paper, "PMID:123"; "" where none is named."""
    for reference in _objects(place, _get(place, packet, "metaData", dict), "externalReferences"):
        if (name := _get(place, reference, "id", str)).startswith("PMID:"):
            return name
    return ""


# Files.


def read_phenopackets(source: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, phenopacket); place reads "cases.jsonl.gz:17" or "store.zip/GENE/case.json".

    UserError, naming file and record, for what is missing, torn, or not JSON.
    """
    path = Path(source)
    if not path.exists():
        raise UserError(
            f"{path}: no such file or folder, expected phenopackets (.jsonl, .jsonl.gz, .json, a "
            "folder of .json, or the phenopacket-store's release .zip): check the path"
        )
    try:
        if path.is_dir():
            for file in sorted(path.rglob("*.json")):
                yield _parse(str(file), file.read_bytes())
        elif zipfile.is_zipfile(path) or path.suffix.lower() == ".zip":
            yield from _read_zip(path)
        elif path.suffix.lower() == ".json":
            yield _parse(str(path), path.read_bytes())
        else:
            yield from _read_lines(path)
    except OSError as error:
        raise UserError(
            f"{error.filename or path}: cannot be read ({error.strerror or error}): check its "
            "permissions"
        ) from error


def _parse(place: str, raw: bytes) -> tuple[str, dict[str, Any]]:
    try:
        packet = json.loads(raw)
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 text, expected JSON: {AGAIN}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{place}: not one JSON object ({error}), expected a phenopacket: {AGAIN}"
        ) from error
    if not isinstance(packet, dict):
        raise UserError(
            f"{place}: a JSON {type(packet).__name__}, expected an object, one phenopacket each: "
            "write each on a line (.jsonl) or into a file (.json) of its own"
        )
    return place, packet


def _read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with open(path, "rb") as file:
        packed = file.peek(2)[:2] == b"\x1f\x8b"  # gzip, whatever the name says
        lines: BinaryIO = gzip.open(file) if packed else file  # type: ignore[assignment]
        number = 0
        try:
            for raw in lines:
                number += 1
                if raw.strip():
                    yield _parse(f"{path}:{number}", raw)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(
                f"{path}: the compressed file is torn after line {number} ({error}), expected a "
                f"whole .gz file: {AGAIN}"
            ) from error


def _read_zip(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    place = str(path)
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                place = f"{path}/{name}"
                hidden = any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
                if name.endswith(".json") and not hidden:
                    yield _parse(place, archive.read(name))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"{place}: the archive cannot be read ({error}), expected a whole .zip without a "
            f"password: {AGAIN}"
        ) from error
