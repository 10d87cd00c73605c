"""`rftkit cases`: split by gene, candidate lists that do not leak, a report that adds up."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from genes_samples import packet, write_packets
from typer.testing import CliRunner

from rftkit.check import check_file
from rftkit.cli import app, main
from rftkit.files import UserError
from rftkit.genes import cases as cases_module
from rftkit.genes.case import Case
from rftkit.genes.cases import (
    CROWDED,
    SHARES,
    assert_sides_disjoint,
    candidate_lists,
    count_duplicates,
    crowded_genes,
    make_cases,
    split_cases,
)
from rftkit.genes.hpo import load_hpo
from rftkit.rows import read_rows, sha256_of

# Eighty phenotypes: cases that draw five of them hardly ever resemble each other.
TERMS = sorted(load_hpo().children["HP:0000118"])
TERMS += [term for system in TERMS for term in load_hpo().children[system]][:60]


def some_cases(n_genes=60, seed=1):
    """Different features for every case; genes have one to nine cases."""
    genes = list(load_hpo().gene_diseases)[: n_genes * 7 : 7]
    made, rng = [], random.Random(seed)
    for gene in genes:
        for _ in range(rng.randint(1, 9)):
            present = rng.sample(TERMS, 5)
            name = f"case-{len(made):04d}"
            made.append(Case(name, gene, "OMIM:1", f"PMID:{len(made)}", present, []))
    return made


def some_packets():
    return [
        packet(case.case_id, case.gene, tuple(case.present), (), case.pmid)
        for case in some_cases(n_genes=120)
    ]


# The split.


def test_no_gene_and_no_copy_of_a_case_stands_on_two_sides():
    made = some_cases()
    twin = Case("twin", "OTHERGENE", "", "", made[0].present[::-1], [], sex="male")
    sides = split_cases([*made, twin])
    side_of = {case.gene: side for side, cases in sides.items() for case in cases}
    assert sum(len(cases) for cases in sides.values()) == len(made) + 1
    for side, cases in sides.items():
        assert {side_of[case.gene] for case in cases} == {side}
    # Same features, another gene, another order, another sex: still on the same side.
    assert side_of["OTHERGENE"] == side_of[made[0].gene]


def test_the_shares_are_those_that_are_documented():
    made = some_cases(n_genes=200)
    sizes = {side: len(cases) / len(made) for side, cases in split_cases(made).items()}
    assert sizes == pytest.approx(SHARES, abs=0.03)


def test_the_split_depends_on_the_seed_and_not_on_the_order_of_the_cases():
    made = some_cases()
    again = random.Random(5).sample(made, len(made))
    assert split_cases(made) == split_cases(again)
    assert split_cases(made) != split_cases(made, seed=1)


def test_rows_of_a_gene_do_not_stand_in_one_block():
    genes = [case.gene for case in split_cases(some_cases())["train"]]
    blocks = 1 + sum(a != b for a, b in zip(genes, genes[1:]))
    assert blocks > 2 * len(set(genes))


def test_a_crowded_gene_and_what_shares_its_features_always_train():
    made = some_cases(n_genes=300)
    many = [
        Case(f"many-{i}", "MANY", "", "", [TERMS[0]], [term])
        for i, term in enumerate(list(load_hpo().terms)[: CROWDED + 1])
    ]
    linked = Case("linked", "LINKED", "", "", many[3].present, many[3].absent)
    assert crowded_genes([*made, *many, linked]) == {"MANY", "LINKED"}
    for seed in range(6):
        train = {case.gene for case in split_cases([*made, *many, linked], seed=seed)["train"]}
        assert {"MANY", "LINKED"} <= train


@pytest.mark.parametrize("what", ["gene", "features"])
def test_a_leaking_split_is_an_error(what):
    one = Case("one", "G1", "", "", ["HP:0001250"], [])
    other = Case("other", "G2", "", "", ["HP:0000252"], [])
    assert_sides_disjoint({"train": [one], "test": [other]})
    if what == "gene":
        other.gene = "G1"
    else:
        other.present = ["HP:0001250"]
    with pytest.raises(AssertionError, match=f"case other: its {what} stands in train and in test"):
        assert_sides_disjoint({"train": [one], "test": [other]})


def test_make_cases_asserts_its_own_split(tmp_path, monkeypatch):
    def by_row(rows, group_by, shares, seed):
        return {side: rows[number::3] for number, side in enumerate(shares)}

    monkeypatch.setattr(cases_module, "split_by_group", by_row)
    with pytest.raises(AssertionError, match="stands in"):
        make_cases(write_packets(tmp_path / "cases.jsonl", some_packets()), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_genes_cannot_make_three_sides(tmp_path):
    source = write_packets(tmp_path / "cases.jsonl", [packet("a", "AAA"), packet("b", "BBB")])
    with pytest.raises(UserError, match="name 2 genes, expected at least 3"):
        make_cases(source, tmp_path / "out")


# Candidate lists.


def test_candidates_hold_the_answer_once_and_only_genes_of_the_same_side():
    hpo, made = load_hpo(), some_cases()
    pool = {case.gene for case in made}
    for case, names in zip(made, candidate_lists(made, hpo, 10)):
        assert len(names) == len(set(names)) == 10
        assert names.count(case.gene) == 1 and set(names) <= pool


def test_the_place_of_the_answer_says_nothing_and_is_the_same_again():
    hpo, made = load_hpo(), some_cases(n_genes=120)
    lists = candidate_lists(made, hpo, 5)
    places = Counter(names.index(case.gene) for case, names in zip(made, lists))
    assert min(places[place] for place in range(5)) > len(made) / 5 * 0.6
    assert lists == candidate_lists(made, hpo, 5) != candidate_lists(made, hpo, 5, seed=1)


def test_half_of_the_distractors_resemble_the_case_and_half_do_not():
    from rftkit.genes.baselines import OverlapRanker

    hpo, made = load_hpo(), some_cases(n_genes=120)
    ranker = OverlapRanker(hpo, {case.gene for case in made})
    orders = ranker.rank_many([case.present for case in made], k=len(ranker.genes))
    top = 0
    for case, names, order in zip(made, candidate_lists(made, hpo, 11), orders):
        others = [gene for gene in order if gene != case.gene]
        assert set(others[:5]) <= set(names)
        top += len(set(others[5:60]) & set(names)) > 0
    assert top > len(made) / 2, "nothing drawn at random"


def test_more_candidates_than_genes_is_a_clear_error():
    with pytest.raises(UserError, match=r"--candidates is 61, expected at most 60"):
        candidate_lists(some_cases(n_genes=60), load_hpo(), 61)


# The command.


def run(tmp_path, *more):
    source = write_packets(tmp_path / "cases.jsonl", some_packets())
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["cases", str(source), "--out", str(out), *more])
    return result, out


def test_the_files_are_written_and_the_report_adds_up(tmp_path):
    result, out = run(tmp_path)
    assert result.exit_code == 0, result.output
    names = ["report.json", "test.jsonl", "train.jsonl", "validation.jsonl"]
    assert sorted(path.name for path in out.iterdir()) == names
    report = json.loads((out / "report.json").read_text())
    assert report["records"] == report["kept"] == len(some_packets())
    for name in names[1:]:
        rows, side = read_rows(out / name), report["files"][name]
        assert side["rows"] == len(rows) and side["sha256"] == sha256_of(out / name)
        assert side["genes"] == len({row["reference_gene"] for row in rows})
    assert sum(side["rows"] for side in report["files"].values()) == report["kept"]
    assert "baselines" not in report


def test_the_same_source_gives_the_same_bytes(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    first, second = run(tmp_path / "a")[1], run(tmp_path / "b")[1]
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


@pytest.mark.parametrize("more", [(), ("--candidates", "5")])
def test_the_written_rows_keep_the_data_contract(tmp_path, more):
    out = run(tmp_path, *more)[1]
    report = check_file(
        out / "train.jsonl",
        out / "validation.jsonl",
        "reference_gene",
        answer_in_prompt_ok=bool(more),
    )
    assert report.ok, [str(fault) for fault in report.faults[:3]]


def test_the_free_form_never_names_the_answer_and_the_candidate_form_does(tmp_path):
    for more, named in (((), False), (("--candidates", "5"), True)):
        folder = tmp_path / str(named)
        folder.mkdir()
        for row in read_rows(run(folder, *more)[1] / "train.jsonl"):
            words = row["messages"][0]["content"].replace(",", " ").replace(".", " ").split()
            assert (row["reference_gene"] in words) is named
            assert ("candidates" in row) is named


def test_baselines_are_four_records_in_percent(tmp_path):
    result, out = run(tmp_path, "--baselines", "--json")
    printed = json.loads(result.stdout)
    assert printed == json.loads((out / "report.json").read_text())
    lines = printed["baselines"]
    assert [(line["method"], line["how"]) for line in lines] == [
        (method, how)
        for method in ("overlap", "likelihood")
        for how in ("as is", "without own paper")
    ]
    for line in lines:
        assert line["n"] == printed["kept"]
        assert 0 <= line["top1"] <= line["top5"] <= line["top10"] <= 100


def test_what_was_lost_is_printed_by_reason(tmp_path):
    extra = [packet("none", interpretations=[]), packet("odd", present=("HP:9999999",))]
    source = write_packets(tmp_path / "cases.jsonl", some_packets() + extra)
    result = CliRunner().invoke(app, ["cases", str(source), "--out", str(tmp_path / "out")])
    assert "lost, no causative gene: 1" in result.output
    assert "lost, no present feature that HPO knows: 1" in result.output
    assert "HP:9999999" in result.output and "Human Phenotype Ontology" in result.output


def test_duplicates_are_counted_and_kept(tmp_path):
    made = some_cases(n_genes=5)
    copy = Case("copy", made[0].gene, "", "", made[0].present[::-1], [])
    assert count_duplicates([*made, copy]) == count_duplicates(made) + 1


def test_a_broken_source_exits_1_without_a_traceback(tmp_path, monkeypatch, capsys):
    source = tmp_path / "cases.jsonl"
    source.write_text(json.dumps(packet()) + "\n{broken\n")
    monkeypatch.setattr("sys.argv", ["rftkit", "cases", str(source), "--out", str(tmp_path / "o")])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr().err
    assert stop.value.code == 1 and "cases.jsonl:2" in said and "Traceback" not in said


def test_too_few_candidates_is_wrong_usage(tmp_path):
    assert run(tmp_path, "--candidates", "3")[0].exit_code == 2
