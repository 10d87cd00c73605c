"""Phenopackets -> cases -> rows: the answer stays out of the prompt, and nothing gets lost unseen.

Where RFTKIT_PHENOPACKETS names a copy of the published cases, these are measured too.
"""

import gzip
import json
import os
import random
import re
import zipfile
from collections import Counter

import pytest
from typer.testing import CliRunner

from rftkit.check import check_file
from rftkit.cli import app
from rftkit.files import UserError
from rftkit.genes import cases
from rftkit.genes.baselines import OverlapRanker
from rftkit.genes.cases import CONTRADICTED, MOST, NEAR, REPEATED, SHARES
from rftkit.genes.hpo import load_hpo
from rftkit.genes.phenopackets import (
    CONTRADICTION,
    STRAY,
    TEXT_BOOLEAN,
    Case,
    case_row,
    describe_time,
    prompt_text,
    read_cases,
)
from rftkit.real_cases import load_world, onset_group, read_real_cases
from rftkit.rows import read_rows, sha256_of, write_rows

SEIZURE, TALL, LENS, UNKNOWN = "HP:0001250", "HP:0001519", "HP:0001083", "HP:9999999"
TERMS = sorted(load_hpo().terms)[1000:9000:5]  # cases that draw five of them hardly ever share one


def causative(*genes, status="CAUSATIVE"):
    variants = ({"variationDescriptor": {"geneContext": {"symbol": gene}}} for gene in genes)
    parts = [{"interpretationStatus": status, "variantInterpretation": v} for v in variants]
    return [{"diagnosis": {"genomicInterpretations": parts}}]


def feature(term, excluded=False):
    return {"type": {"id": term, "label": "a label"}, "excluded": excluded}


def packet(case_id="case-1", gene="FBN1", shown=(TALL, LENS), missing=(SEIZURE,), pmid="PMID:1"):
    age = {"age": {"iso8601duration": "P6Y"}}
    return {
        "id": case_id,
        "subject": {"id": "someone", "sex": "FEMALE", "timeAtLastEncounter": age},
        "phenotypicFeatures": [*map(feature, shown), *(feature(term, True) for term in missing)],
        "interpretations": causative(gene),
        "diseases": [{"term": {"id": "OMIM:154700", "label": "a disease"}}],
        "metaData": {"externalReferences": [{"id": pmid, "description": "a title"}]},
    }


def read(tmp_path, *packets):
    write_rows(tmp_path / "cases.jsonl", packets)
    return read_cases(tmp_path / "cases.jsonl", load_hpo())


def test_no_field_that_names_the_answer_reaches_the_prompt(tmp_path):
    named = {"label": "XLEAK", "description": "XLEAK causes it"}  # filled in everywhere
    text = json.dumps(packet("XLEAK", "XLEAK", pmid="PMID:31337"))
    leaking = json.loads(text, object_hook=lambda part: part | named)
    leaking |= {"files": [{"uri": "XLEAK"}], "measurements": [{"assay": {"label": "XLEAK"}}]}
    leaking["diseases"][0]["onset"] = {"ontologyClass": {"id": "HP:0003593", "label": "XLEAK"}}
    row = case_row(read(tmp_path, leaking)[0][0], load_hpo(), ["GENE1", "GENE2"])
    prompt = row["messages"][0]["content"]
    assert not re.search("XLEAK|154700|31337|HGNC|PMID|OMIM", prompt, re.IGNORECASE)
    assert "Disproportionate tall stature; Ectopia lentis" in prompt and "Infantile" in prompt
    answer = {"reference_gene": "XLEAK", "disease": "OMIM:154700", "pmid": "PMID:31337"}
    assert row | answer | {"absent": [{"id": SEIZURE, "label": "Seizure"}]} == row
    bare = packet(missing=()) | {"subject": {"id": "x", "sex": "UNKNOWN_SEX"}}
    text = prompt_text(read(tmp_path, bare)[0][0], load_hpo(), ["A", "B"])
    assert text.count("not recorded") == 4 and "candidates: A, B" in text


def test_terms_count_once_present_before_absent_and_unknown_ones_are_counted(tmp_path):
    [case], counts = read(
        tmp_path, packet(shown=(TALL, TALL, UNKNOWN), missing=(TALL, SEIZURE, UNKNOWN))
    )
    assert (case.present, case.absent) == ([TALL], [SEIZURE])
    unknown = counts["terms_unknown_to_hpo"]
    assert (unknown["mentions"], unknown["terms"], unknown["cases"]) == (2, 1, 1)


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"interpretations": []}, "no causative gene"),
        ({"interpretations": causative("A", status="CANDIDATE")}, "no causative gene"),
        ({"interpretations": causative("A", "B")}, "several causative genes"),
        ({"phenotypicFeatures": [feature(SEIZURE, True)]}, "no present feature"),
        ({"phenotypicFeatures": [feature(UNKNOWN)]}, "no present feature"),
        ({"id": "good"}, "the id of an earlier case"),
    ],
)
def test_a_lost_case_is_counted_by_its_reason(tmp_path, part, reason):
    made, counts = read(tmp_path, packet("good"), packet("bad") | part)
    assert [case.case_id for case in made] == ["good"]
    assert (counts["records"], counts["lost"]) == (2, {reason: 1})


def test_a_time_is_written_in_words_or_left_out():
    ages = {"P1Y3M": "1 year 3 months", "P1DT12H": "1 day", "P0D": "newborn", "six": None}
    for duration, words in ages.items():
        assert describe_time({"age": {"iso8601duration": duration}}, load_hpo()) == words
    assert describe_time({"gestationalAge": {"weeks": 21}}, load_hpo()) == "21 weeks of gestation"
    terms = {"HP:0003577": "Congenital onset", "X:1": None}
    for term, words in terms.items():
        onset = {"ontologyClass": {"id": term, "label": "the gene is FBN1"}}
        assert describe_time(onset, load_hpo()) == words


def test_every_kind_of_source_gives_the_same_cases(tmp_path):
    packets = [packet(f"case-{number}") for number in range(3)]
    expected, _ = read(tmp_path, *packets)
    lines = (tmp_path / "cases.jsonl").read_bytes()
    (tmp_path / "cases.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "folder" / "FBN1").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "store.zip", "w") as archive:
        for one in packets:
            (tmp_path / "folder" / "FBN1" / f"{one['id']}.json").write_text(json.dumps(one))
            archive.writestr(f"0.1.26/FBN1/{one['id']}.json", json.dumps(one))
        archive.writestr("__MACOSX/0.1.26/._case-0.json", b"\x00\x05")
    write_rows(tmp_path / "rows" / "train.jsonl", [case_row(c, load_hpo()) for c in expected])
    (tmp_path / "rows" / "report.json").write_text("{}")
    assert len(expected) == 3
    for name in ("cases.jsonl.gz", "folder", "store.zip", "rows", "rows/train.jsonl"):
        assert read_cases(tmp_path / name, load_hpo())[0] == expected, name


def test_a_broken_foreign_or_useless_source_is_refused_with_its_place(tmp_path):
    line = json.dumps(packet()) + "\n"
    lost = packet(shown=()), packet() | {"interpretations": []}
    lost = "\n".join(map(json.dumps, lost)).encode()
    sources = {  # what the message says: content
        "cut.jsonl.gz:": gzip.compress((line * 2).encode())[:-9],
        "cut.jsonl:2: ": (line + line[:200]).encode(),
        "empty.jsonl: ": b"",
        "other.jsonl:2: ": (line + '{"name": 1}\n').encode(),
        "maybe.jsonl:1: ": line.replace('"excluded": true', '"excluded": "maybe"').encode(),
        "lost.jsonl: no case: no present feature (1 times); no causative gene (1 times)": lost,
    }
    for words, content in sources.items():
        file = tmp_path / words.partition(":")[0]
        file.write_bytes(content)
        with pytest.raises(UserError, match=re.escape(words)):
            read_cases(file, load_hpo())


def snake_case(part):
    """As the Python classes of `phenopackets` write it with preserving_proto_field_name."""
    capital_in_a_key = r'[A-Z](?=\w*": )'
    return json.loads(re.sub(capital_in_a_key, lambda m: "_" + m[0].lower(), json.dumps(part)))


def version_1(packet, onset):
    packet = {key: value for key, value in packet.items() if key != "interpretations"}
    features = packet["phenotypicFeatures"]
    return packet | {
        "phenotypicFeatures": [{"type": f["type"], "negated": f["excluded"]} for f in features],
        "genes": [{"symbol": "FBN1"}],
        "subject": {"id": "someone", "sex": "FEMALE", "ageAtCollection": {"age": "P6Y"}},
        "diseases": [packet["diseases"][0] | onset],
    }


def test_snake_case_and_version_1_are_read_as_version_2_is(tmp_path):
    age, term = {"age": {"iso8601duration": "P6M"}}, {"id": "HP:0003593"}
    for onset, old in [
        (age, {"ageOfOnset": {"age": "P6M"}}),
        ({"ontologyClass": term}, {"classOfOnset": term}),
    ]:
        made = packet()
        made["diseases"][0]["onset"] = onset
        expected, counts = read(tmp_path, made)
        assert expected[0].onset and expected[0].absent and counts["notes"] == {}
        other = version_1(packet(), old)
        for written in (snake_case(made), other, snake_case(other)):
            assert read(tmp_path, written) == (expected, counts)


def test_what_is_odd_is_read_counted_and_noted(tmp_path):
    texts = json.loads(json.dumps(packet("texts")).replace("true", '"true"'))
    texts["phenotypicFeatures"][0]["excluded"] = "False"
    status = packet("status", shown=("HP:0002133",))  # epilepticus, beside no seizure
    made, counts = read(tmp_path, packet("plain"), texts, status)
    assert [case.absent for case in made] == [[SEIZURE]] * 3 and made[1].present == [TALL, LENS]
    first = {note: (seen["number"], seen["first"][-2:]) for note, seen in counts["notes"].items()}
    assert first == {TEXT_BOOLEAN: (1, ":2"), CONTRADICTION: (1, ":3")}


def test_a_stray_json_is_left_out_with_a_note(tmp_path):
    for name, content in {"one": packet(), "zz_summary": {"cases": 1}, "list": []}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    made, counts = read_cases(tmp_path, load_hpo())
    assert [case.case_id for case in made] == ["case-1"] and counts["records"] == 1
    assert counts["notes"] == {STRAY: {"number": 2, "first": str(tmp_path / "list.json")}}
    with pytest.raises(UserError, match="no phenopacket"):
        read_cases(tmp_path / "zz_summary.json", load_hpo())


def some_cases(n_genes=120, seed=1):
    """Different features for every case; genes have one to nine cases."""
    made, rng = [], random.Random(seed)
    for gene in list(load_hpo().gene_diseases)[: n_genes * 7 : 7]:
        for _ in range(rng.randint(1, 9)):
            name = f"case-{len(made):04d}"
            made.append(Case(name, gene, "", f"PMID:{len(made)}", rng.sample(TERMS, 5), []))
    return made


def test_no_gene_and_no_copy_of_a_case_stands_on_two_sides():
    made = some_cases(200)
    twin = Case("twin", "OTHERGENE", "", "", made[0].present[::-1], [], sex="male")
    sides = cases.split_cases([*made, twin])
    side_of = {case.gene: side for side, cases in sides.items() for case in cases}
    assert all(side_of[case.gene] == side for side, cases in sides.items() for case in cases)
    assert side_of["OTHERGENE"] == side_of[made[0].gene]
    sizes = {side: len(cases) / (len(made) + 1) for side, cases in sides.items()}
    assert sizes == pytest.approx(SHARES, abs=0.03)
    assert cases.split_cases(random.Random(5).sample([*made, twin], len(made) + 1)) == sides
    many = [Case(f"many-{i}", "MANY", "", "", [TERMS[i]], []) for i in range(MOST + 1)]
    linked = Case("linked", "LINKED", "", "", many[3].present, [])
    for seed in range(3):  # a crowded gene, and what shares its features, always trains
        train = cases.split_cases([*some_cases(40), *many, linked], seed)["train"]
        assert {"MANY", "LINKED"} <= {case.gene for case in train}


def test_candidates_are_the_answer_and_genes_of_the_same_side_half_of_them_similar():
    made, hpo = some_cases(), load_hpo()
    pool, lists = {case.gene for case in made}, cases.candidate_lists(made, hpo, 11)
    similar = OverlapRanker(hpo, pool).rank_many([case.present for case in made], k=6)
    for case, names, most_similar in zip(made, lists, similar):
        assert len(set(names)) == len(names) == 11 and case.gene in names and set(names) <= pool
        assert set([gene for gene in most_similar if gene != case.gene][:5]) <= set(names)
    assert {names.index(case.gene) for case, names in zip(made, lists)} == set(range(11))
    with pytest.raises(UserError, match="--candidates is 999"):
        cases.candidate_lists(made, hpo, 999)


def test_of_near_duplicates_the_later_side_goes():
    long = Case("long", "A", "", "", TERMS[:20], [])
    near = Case("near", "B", "", "", [*TERMS[1:20][::-1], TERMS[40]], [])
    far = Case("far", "C", "", "", TERMS[25:45], [])
    sides = {"train": [*some_cases(40), long], "validation": [far], "test": [near]}
    rows = {side: [case_row(c, load_hpo()) for c in cases] for side, cases in sides.items()}
    kept, n_near = cases.drop_copies(rows, dict.fromkeys(rows, {}))
    assert (n_near, kept) == (1, rows | {"test": []})


def run(tmp_path, *more):
    made = some_cases()
    packets = [packet(c.case_id, c.gene, c.present, (), c.pmid) for c in made]
    # Two relatives of the first case, and a case of another gene in the words of the last.
    packets += [packet(f"sibling-{n}", made[0].gene, made[0].present, ()) for n in (1, 2)]
    packets += [packet("other", "OTHERGENE", made[-1].present, ()), packet("lost", shown=())]
    packets[0]["phenotypicFeatures"][0]["excluded"] = "false"
    source, out = tmp_path / "cases.jsonl", tmp_path / "out"
    write_rows(source, packets)
    result = CliRunner().invoke(app, ["cases", str(source), "--out", str(out), *more])
    assert result.exit_code == 0, result.output
    return result.output, json.loads((out / "report.json").read_text()), out


def test_the_files_are_written_and_the_report_adds_up(tmp_path):
    output, report, out = run(tmp_path, "--json")
    n_made = len(some_cases())
    assert json.loads(output) == report
    assert (report["records"], report["kept"]) == (n_made + 4, n_made + 3)
    assert report["lost"] == {"no present feature": 1} and report["duplicates"] == 2
    assert report["notes"][TEXT_BOOLEAN]["number"] == 1
    assert report["copies"] == {REPEATED: 2, CONTRADICTED: 2}
    for name, side in report["files"].items():
        genes = Counter(row["reference_gene"] for row in read_rows(out / name))
        assert (side["rows"], side["genes"]) == (genes.total(), len(genes))
        assert side["sha256"] == sha256_of(out / name)


def test_without_copies_the_printed_next_step_passes(tmp_path):
    output, report, _ = run(tmp_path, "--drop-copies", "--candidates", "5")
    assert report["dropped"] == {REPEATED: 2, CONTRADICTED: 2, NEAR: 0} and "copies" not in report
    assert sum(side["rows"] for side in report["files"].values()) == report["kept"] - 4
    assert TEXT_BOOLEAN in output
    command = " ".join(output.split()).partition("Next: rftkit ")[2].split()
    assert command[0] == "check" and CliRunner().invoke(app, command).exit_code == 0


def test_candidates_with_signs_come_from_the_command_and_pass_its_check(tmp_path):
    output, report, out = run(tmp_path, "--drop-copies", "--candidates", "3", "--signs", "2")
    rows = [row for name in report["files"] for row in read_rows(out / name)]
    assert report["signs"] == 2
    assert report["records"] == report["kept"] + sum(report["lost"].values())
    assert len(rows) == report["kept"] - sum(report["dropped"].values())
    command = " ".join(output.split()).partition("Next: rftkit ")[2].split()
    assert CliRunner().invoke(app, command).exit_code == 0


PUBLISHED = os.environ.get("RFTKIT_PHENOPACKETS")
needs_published = pytest.mark.skipif(not PUBLISHED, reason="RFTKIT_PHENOPACKETS is not set")


@needs_published
@pytest.mark.prove
def test_the_published_cases_give_the_documented_counts(tmp_path):
    report = cases.make_cases(PUBLISHED, tmp_path, without_copies=True)
    assert (report["records"], report["kept"]) == (8099, 8040)
    assert report["lost"] == {"no causative gene": 56, "no present feature": 3}
    assert report["terms_unknown_to_hpo"]["mentions"] == 249
    assert report["dropped"][REPEATED] == 244 and report["dropped"][CONTRADICTED] == 3
    checked = check_file(tmp_path / "train.jsonl", tmp_path / "validation.jsonl", "reference_gene")
    assert checked.ok, checked.counts


@needs_published
@pytest.mark.prove
def test_the_published_cases_give_the_documented_baselines(tmp_path):
    report = cases.make_cases(PUBLISHED, tmp_path, with_baselines=True)
    expected = [
        ("overlap", "as is", 8040, 35.7, 49.1, 54.4),
        ("overlap", "without own paper", 7049, 15.3, 28.0, 35.0),
        ("likelihood", "as is", 8040, 36.8, 51.3, 56.0),
        ("likelihood", "without own paper", 7049, 16.2, 31.2, 37.8),
    ]
    for line, (method, how, *numbers) in zip(report["baselines"], expected, strict=True):
        assert (line["method"], line["how"]) == (method, how)
        measured = [line[key] for key in ("n", "top1", "top5", "top10")]
        assert measured == pytest.approx(numbers, abs=0.1), line


@needs_published
def test_published_cases_in_the_words_of_the_small_world():
    world = load_world()
    rows, counts = read_real_cases(PUBLISHED, world)
    assert (counts["read"], counts["kept"], counts["genes"]) == (8099, 533, 41)
    assert counts["splits"] == {"train": 150, "test": 101, "validation": 282}
    assert sum(counts["lost"].values()) == counts["read"] - counts["kept"]
    for row in rows:
        assert 3 <= len(row["present"]) <= 6
        assert all(world.terms[term["id"]] == term["label"] for term in row["present"])
        assert row["split"] == world.splits[row["reference_gene"]]


def test_an_onset_belongs_to_a_group_of_the_small_world():
    texts = ["Neonatal onset", "3 days", "11 months", "9 years 2 months", "10 years", "newborn"]
    groups = ["birth", "birth", "infancy", "childhood", "later", None]
    assert [onset_group(text) for text in texts] == groups and onset_group(None) is None
