"""Copies among published cases: counted and kept by default, left out with --drop-copies."""

from __future__ import annotations

import json

import pytest
from genes_samples import packet, write_packets
from test_genes_cases import TERMS, some_cases, some_packets
from typer.testing import CliRunner

from rftkit.check import check_file
from rftkit.cli import app
from rftkit.genes.case import Case, case_row
from rftkit.genes.cases import CONTRADICTED, NEAR, REPEATED, copies_of, count_copies, drop_copies
from rftkit.genes.hpo import load_hpo
from rftkit.rows import read_rows, write_rows


def with_copies():
    """Made-up packets, and three more that tell the first again: once for another gene."""
    made = some_packets()
    first = some_cases(n_genes=120)[0]
    again = [packet(f"sibling-{n}", first.gene, tuple(first.present), (), "P") for n in (1, 2)]
    last = some_cases(n_genes=120)[-1]
    return [*made, *again, packet("other", "OTHERGENE", tuple(last.present), (), "P")]


def run(tmp_path, *more):
    source = write_packets(tmp_path / "cases.jsonl", with_copies())
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["cases", str(source), "--out", str(out), *more])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split()), out


def check(out, *more):
    arguments = [str(out / "train.jsonl"), "--validation", str(out / "validation.jsonl"), *more]
    return CliRunner().invoke(app, ["check", *arguments, "--group-by", "reference_gene"])


def rows_of(out):
    return [
        row for side in ("train", "validation", "test") for row in read_rows(out / f"{side}.jsonl")
    ]


def test_kept_copies_are_not_announced(tmp_path):
    said, out = run(tmp_path)
    report = json.loads((out / "report.json").read_text())
    assert report["copies"] == {REPEATED: 2, CONTRADICTED: 2} and "dropped" not in report
    assert "2 with the prompt and gene of another case" in said and "--drop-copies" in said
    assert "Next: rftkit check" in said
    assert len(rows_of(out)) == len(with_copies())


@pytest.mark.parametrize("form", [(), ("--candidates", "5")], ids=["free", "candidates"])
def test_what_is_left_without_copies_does_not_pass_the_check(tmp_path, form):
    said, out = run(tmp_path, "--drop-copies", *form)
    report = json.loads((out / "report.json").read_text())
    dropped = {REPEATED: 2, CONTRADICTED: 2, NEAR: 0}
    assert report["dropped"] == dropped and "copies" not in report
    rows = rows_of(out)
    assert len(rows) == report["kept"] - 4 == sum(f["rows"] for f in report["files"].values())
    assert report["duplicates"] == 0 and "--drop-copies" not in said
    answer_told = ["--answer-in-prompt-ok"] if form else []
    assert check(out, *answer_told).exit_code == 0
    ids = {row["case_id"] for row in rows}
    first, last = some_cases(n_genes=120)[0].case_id, some_cases(n_genes=120)[-1].case_id
    assert len(ids & {first, "sibling-1", "sibling-2"}) == 1 and not ids & {last, "other"}


def test_the_next_step_that_is_printed_fails_on_what_was_written(tmp_path):
    said, _ = run(tmp_path, "--drop-copies")
    command = said.partition("Next: rftkit ")[2].split()
    assert command[0] == "check" and CliRunner().invoke(app, command).exit_code == 0


def test_cases_that_differ_in_age_alone_are_taken_for_copies():
    hpo = load_hpo()
    young = Case("a", "FBN1", "", "", TERMS[:3], [], age="1 year")
    old = Case("b", "FBN1", "", "", TERMS[:3], [], age="9 years")
    assert copies_of([young, old], hpo) == {}
    assert copies_of([young, old, old, young], hpo) == {2: REPEATED, 3: REPEATED}
    assert count_copies({"train": [young, old], "test": [old]}, hpo)[REPEATED] == 0


def test_a_near_duplicate_is_taken_from_training_or_left_in_the_test(tmp_path):
    hpo = load_hpo()
    train = some_cases(n_genes=40)
    long = Case("long", "GENEA", "", "", TERMS[:20], [])
    near = Case("near", "GENEB", "", "", [*TERMS[1:20][::-1], TERMS[40]], [])
    far = Case("far", "GENEC", "", "", TERMS[25:45], [])
    sides = {"train": [*train, long], "validation": [far], "test": [near, far]}
    sides["test"][1] = Case("far-too", "GENED", "", "", [*TERMS[26:45], TERMS[3]], [])
    rows = {side: [case_row(case, hpo) for case in cases] for side, cases in sides.items()}
    kept, kept_rows, dropped = drop_copies(sides, rows, hpo)
    assert dropped == {REPEATED: 0, CONTRADICTED: 0, NEAR: 2}
    assert len(kept["train"]) == len(train) + 1 and kept["test"] == []
    assert [case.case_id for case in kept["validation"]] == ["far"]
    assert [row["case_id"] for row in kept_rows["validation"]] == ["far"]
    write_rows(tmp_path / "train.jsonl", kept_rows["train"])
    write_rows(tmp_path / "test.jsonl", rows["test"])
    before = check_file(tmp_path / "train.jsonl", tmp_path / "test.jsonl", "reference_gene")
    assert before.counts == {"near-duplicate across the split": 1}
