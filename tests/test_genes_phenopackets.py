"""Phenopackets -> cases: nothing that names the answer is told, nothing is dropped in silence."""

from __future__ import annotations

import copy
import gzip
import json
import re
import zipfile

import pytest
from genes_samples import packet, write_packets

from rftkit.files import UserError
from rftkit.genes.case import case_row, prompt_text
from rftkit.genes.hpo import load_hpo
from rftkit.genes.phenopackets import (
    NO_GENE,
    NO_KNOWN_PRESENT,
    NO_PRESENT,
    REPEATED_ID,
    SEVERAL_GENES,
    describe_duration,
    describe_time,
    read_cases,
    read_phenopackets,
)


@pytest.fixture(scope="module")
def hpo():
    return load_hpo()


def read(tmp_path, hpo, *packets):
    return read_cases(write_packets(tmp_path / "cases.jsonl", list(packets)), hpo)


def messages_of(case, hpo):
    return json.dumps(case_row(case, hpo)["messages"])


# What must never be told.

LEAKS = {
    "id": "PMID_XLEAK_id",
    "interpretations": [
        {
            "id": "XLEAK-interpretation",
            "diagnosis": {
                "disease": {"id": "OMIM:154700", "label": "XLEAK disease"},
                "genomicInterpretations": [
                    {
                        "subjectOrBiosampleId": "XLEAK-subject",
                        "interpretationStatus": "CAUSATIVE",
                        "variantInterpretation": {
                            "variationDescriptor": {
                                "id": "XLEAK-variant",
                                "geneContext": {"valueId": "HGNC:3603", "symbol": "XLEAKGENE"},
                                "expressions": [{"syntax": "hgvs.c", "value": "XLEAK:c.1A>T"}],
                                "vcfRecord": {"chrom": "XLEAK", "pos": 1},
                            }
                        },
                    }
                ],
            },
        }
    ],
    "diseases": [
        {
            "term": {"id": "OMIM:154700", "label": "XLEAK disease"},
            "onset": {"ontologyClass": {"id": "HP:0003593", "label": "XLEAK onset"}},
        }
    ],
    "metaData": {
        "createdBy": "XLEAK",
        "externalReferences": [
            {"id": "PMID:31337", "description": "XLEAK: XLEAKGENE causes it", "reference": "XLEAK"}
        ],
    },
    "measurements": [{"assay": {"label": "XLEAK assay"}}],
    "files": [{"uri": "XLEAK.vcf"}],
}


def leaking_packet():
    whole = packet(**copy.deepcopy(LEAKS))
    whole["subject"]["id"] = "XLEAK subject"
    whole["subject"]["timeAtLastEncounter"] = {
        "ontologyClass": {"id": "HP:0003621", "label": "XLEAK age"}
    }
    for feature in whole["phenotypicFeatures"]:
        feature["type"]["label"] = "XLEAK feature of XLEAKGENE"
        feature["evidence"] = [{"reference": {"description": "XLEAK"}}]
        feature["onset"] = {"age": {"iso8601duration": "XLEAK"}}
    return whole


@pytest.mark.parametrize("form", ["free", "candidates"])
def test_no_leak_field_reaches_the_messages(tmp_path, hpo, form):
    (case,) = read(tmp_path, hpo, leaking_packet()).cases
    names = ["OTHER1", "OTHER2", "OTHER3", "OTHER4", "OTHER5"] if form == "candidates" else []
    told = json.dumps(case_row(case, hpo, names)["messages"])
    assert not re.search("XLEAK|154700|31337|HGNC|PMID|OMIM", told, re.IGNORECASE)
    assert "Disproportionate tall stature" in told
    assert "onset Infantile onset" in told and "encounter Juvenile onset" in told


def test_the_answer_stands_beside_the_messages(tmp_path, hpo):
    (case,) = read(tmp_path, hpo, leaking_packet()).cases
    row = case_row(case, hpo)
    assert row["reference_gene"] == "XLEAKGENE" and row["disease"] == "OMIM:154700"
    assert row["case_id"] == "PMID_XLEAK_id" and row["pmid"] == "PMID:31337"
    assert row["present"] == [
        {"id": "HP:0001519", "label": "Disproportionate tall stature"},
        {"id": "HP:0001083", "label": "Ectopia lentis"},
    ]
    assert row["absent"] == [{"id": "HP:0001250", "label": "Seizure"}]


def test_the_prompt_tells_features_history_and_the_form_of_the_answer(tmp_path, hpo):
    (case,) = read(tmp_path, hpo, packet()).cases
    text = prompt_text(case, hpo)
    assert text.startswith("Symptoms present: Disproportionate tall stature; Ectopia lentis.\n")
    assert "Symptoms absent: Seizure.\n" in text
    assert "sex female; age at last encounter 6 years; onset not recorded" in text
    example = re.search(r"\{.*\}", text).group()
    assert [len(v) for v in json.loads(example).values()] == [5] and "genes" in json.loads(example)
    assert "candidates" not in text
    assert "candidates: A, B" in prompt_text(case, hpo, ["A", "B"])


def test_nothing_recorded_is_said_and_not_left_blank(tmp_path, hpo):
    bare = packet(absent=(), subject={"id": "x", "sex": "UNKNOWN_SEX"})
    (case,) = read(tmp_path, hpo, bare).cases
    text = prompt_text(case, hpo)
    assert "Symptoms absent: not recorded." in text
    assert "sex not recorded; age at last encounter not recorded; onset not recorded" in text


# What a case is made of.


def test_excluded_false_is_present_and_a_copy_counts_once(tmp_path, hpo):
    whole = packet(present=("HP:0001519", "HP:0001519"), absent=("HP:0001519", "HP:0001250"))
    whole["phenotypicFeatures"][0]["excluded"] = False
    (case,) = read(tmp_path, hpo, whole).cases
    assert (case.present, case.absent) == (["HP:0001519"], ["HP:0001250"])


def test_alternative_ids_are_followed_and_unknown_terms_counted(tmp_path, hpo):
    old = next(t.alt_ids[0] for t in hpo.terms.values() if t.id == "HP:0000003")
    reading = read(tmp_path, hpo, packet(present=(old, "HP:9999999"), absent=("HP:9999999",)))
    assert reading.cases[0].present == ["HP:0000003"] and reading.cases[0].absent == []
    summary = reading.summary()["terms_unknown_to_hpo"]
    assert (summary["mentions"], summary["terms"], summary["cases"]) == (2, 1, 1)
    assert summary["most_frequent"] == {"HP:9999999 a label": 2}


def finding(symbol, status="CAUSATIVE", where="variant"):
    if where == "gene":
        return {"interpretationStatus": status, "gene": {"symbol": symbol}}
    descriptor = {"variationDescriptor": {"geneContext": {"symbol": symbol}}}
    return {"interpretationStatus": status, "variantInterpretation": descriptor}


def interpreted(*findings):
    return [{"diagnosis": {"genomicInterpretations": list(findings)}}]


def test_two_variants_of_one_gene_are_one_gene(tmp_path, hpo):
    whole = packet(interpretations=interpreted(finding("NBAS"), finding("NBAS", where="gene")))
    assert read(tmp_path, hpo, whole).cases[0].gene == "NBAS"


def test_a_gene_that_is_merely_a_candidate_is_not_the_answer(tmp_path, hpo):
    whole = packet(interpretations=interpreted(finding("NBAS"), finding("TTN", "CANDIDATE")))
    assert read(tmp_path, hpo, whole).cases[0].gene == "NBAS"


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"interpretations": []}, NO_GENE),
        ({"interpretations": interpreted(finding("TTN", "REJECTED"))}, NO_GENE),
        ({"interpretations": interpreted(finding("NBAS"), finding("TTN"))}, SEVERAL_GENES),
        ({"phenotypicFeatures": []}, NO_PRESENT),
        ({"phenotypicFeatures": [{"type": {"id": "HP:0001250"}, "excluded": True}]}, NO_PRESENT),
        ({"phenotypicFeatures": [{"type": {"id": "HP:9999999"}}]}, NO_KNOWN_PRESENT),
        ({"id": "good"}, REPEATED_ID),
    ],
)
def test_a_lost_case_is_counted_by_its_reason(tmp_path, hpo, broken, reason):
    reading = read(tmp_path, hpo, packet("good"), packet("bad") | broken)
    assert [case.case_id for case in reading.cases] == ["good"]
    assert reading.summary()["records"] == 2 and reading.summary()["lost"] == {reason: 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("P1Y3M", "1 year 3 months"),
        ("P2Y", "2 years"),
        ("P3W", "3 weeks"),
        ("P1D", "1 day"),
        ("P0D", "newborn"),
        ("P1DT12H", "1 day"),
        ("P1.5Y", None),
        ("six", None),
        (None, None),
    ],
)
def test_durations_are_told_in_words(text, words):
    assert describe_duration(text) == words


@pytest.mark.parametrize(
    ("element", "words"),
    [
        ({"gestationalAge": {"weeks": 21, "days": 3}}, "21 weeks of gestation"),
        ({"ontologyClass": {"id": "HP:0003577", "label": "anything"}}, "Congenital onset"),
        ({"ontologyClass": {"id": "X:1", "label": "the gene is FBN1"}}, None),
        (
            {
                "ageRange": {
                    "start": {"iso8601duration": "P1Y"},
                    "end": {"iso8601duration": "P2Y"},
                }
            },
            "1 year to 2 years",
        ),
        ({"timestamp": "2020-01-01T00:00:00Z"}, None),
        (None, None),
    ],
)
def test_each_way_to_give_a_time_is_told_or_left_out(hpo, element, words):
    assert describe_time(element, hpo) == words


# Files.


def test_every_kind_of_source_gives_the_same_cases(tmp_path, hpo):
    packets = [packet(f"case-{i}", pmid=f"PMID:{i}") for i in range(3)]
    lines = write_packets(tmp_path / "cases.jsonl", packets)
    with gzip.open(tmp_path / "cases.jsonl.gz", "wb") as file:
        file.write(lines.read_bytes())
    folder = tmp_path / "folder" / "FBN1"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "store.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for one in packets:
            text = json.dumps(one, indent=2)
            (folder / f"{one['id']}.json").write_text(text)
            archive.writestr(f"0.1.26/FBN1/{one['id']}.json", text)
        archive.writestr("__MACOSX/0.1.26/._case-0.json", b"\x00\x05")
        archive.writestr("0.1.26/README.md", "not a case")
    expected = read_cases(lines, hpo).cases
    assert len(expected) == 3
    for name in ("cases.jsonl.gz", "folder", "store.zip"):
        assert read_cases(tmp_path / name, hpo).cases == expected, name
    one_file = folder / "case-1.json"
    assert [case.case_id for case in read_cases(one_file, hpo).cases] == ["case-1"]


def test_a_source_is_read_as_a_stream(tmp_path):
    path = write_packets(tmp_path / "cases.jsonl", [packet("first")])
    with open(path, "a") as file:
        file.write("{ this line is broken\n")
    stream = read_phenopackets(path)
    assert next(stream)[1]["id"] == "first"
    with pytest.raises(UserError, match="cases.jsonl:2"):
        next(stream)


def torn_gzip(tmp_path):
    packets = [packet(f"case-{i}", pmid=f"PMID:{i * 7919}") for i in range(400)]
    raw = write_packets(tmp_path / "whole.jsonl", packets).read_bytes()
    path = tmp_path / "torn.jsonl.gz"
    path.write_bytes(gzip.compress(raw)[:-2000])
    return path


def damaged_gzip(tmp_path):
    path = torn_gzip(tmp_path)
    raw = bytearray(path.read_bytes())
    raw[2000:2400] = bytes(400)
    path.write_bytes(raw)
    return path


def torn_zip(tmp_path):
    path = tmp_path / "torn.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/case-1.json", json.dumps(packet()))
    path.write_bytes(path.read_bytes()[:-30])
    return path


def damaged_zip(tmp_path):
    path = tmp_path / "damaged.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/case-1.json", json.dumps(packet()))
    raw = bytearray(path.read_bytes())
    raw[60:90] = bytes(30)
    path.write_bytes(raw)
    return path


def written(name, content):
    def make(tmp_path):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


GOOD_LINE = json.dumps(packet()) + "\n"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (torn_gzip, r"torn.jsonl.gz: the compressed file is torn after line \d+"),
        (damaged_gzip, r"torn.jsonl.gz(:\d+)?: "),
        (torn_zip, r"torn.zip: the archive cannot be read"),
        (damaged_zip, r"damaged.zip/a/case-1.json: the archive cannot be read"),
        (written("cut.jsonl", GOOD_LINE + GOOD_LINE[:200]), r"cut.jsonl:2: not one JSON object"),
        (written("deep.jsonl", "[" * 100_000), r"deep.jsonl:1: not one JSON object"),
        (written("list.jsonl", "[1, 2]\n"), r"list.jsonl:1: a JSON list"),
        (written("latin.jsonl", b'{"id": "\xe9"}\n'), r"latin.jsonl:1: not UTF-8"),
        (written("empty.jsonl", ""), r"empty.jsonl: holds no phenopacket"),
        (written("other.jsonl", '{"name": 1}\n'), r"other.jsonl:1: is no phenopacket \(keys name"),
        (written("f/case.json", "{"), r"f/case.json: not one JSON object"),
    ],
)
def test_a_broken_source_names_file_and_record(tmp_path, hpo, make, message):
    with pytest.raises(UserError, match=message):
        read_cases(make(tmp_path), hpo)


def test_a_missing_source_says_what_would_do(tmp_path, hpo):
    with pytest.raises(UserError, match="no such file or folder, expected phenopackets"):
        read_cases(tmp_path / "nowhere.zip", hpo)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("phenotypicFeatures", {"a": 1}, r'"phenotypicFeatures" is .* expected an array'),
        ("phenotypicFeatures", ["Seizure"], r'"phenotypicFeatures\[0\]" is "Seizure"'),
        (
            "phenotypicFeatures",
            [{"type": {"label": "Seizure"}}],
            r'"phenotypicFeatures\[0\].type.id" is missing',
        ),
        ("phenotypicFeatures", [{"type": {"id": 7}}], r'"id" is 7, expected a string'),
        ("interpretations", [{"diagnosis": []}], r'"diagnosis" is \[\], expected an object'),
        ("subject", "someone", r'"subject" is "someone"'),
        ("diseases", [{"term": "OMIM:1"}], r'"term" is "OMIM:1"'),
    ],
)
def test_a_part_of_the_wrong_form_is_named(tmp_path, hpo, part, value, message):
    with pytest.raises(UserError, match=r"cases.jsonl:2: " + message):
        read(tmp_path, hpo, packet("one"), packet("two") | {part: value})


def test_version_1_is_refused_because_its_negated_features_would_be_read_as_present(tmp_path, hpo):
    features = [{"type": {"id": "HP:0001250", "label": "Seizure"}, "negated": True}]
    with pytest.raises(UserError, match="word of version 1"):
        read(tmp_path, hpo, packet(phenotypicFeatures=features))
