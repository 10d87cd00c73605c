"""`rftkit regrade`: stored completions under another grader, by the same numbers as by hand."""

import json

import pytest
from typer.testing import CliRunner

from rftkit import regrade
from rftkit.cli import app
from rftkit.files import UserError, write_json
from rftkit.records import Sample
from rftkit.rows import write_rows
from rftkit.training.store import append_samples

CHECK = {"type": "string_check", "name": "says a", "operation": "like", "reference": "a"}
CHECK |= {"input": "{{sample.output_text}}"}
ROWS = [{"messages": [{"role": "user", "content": q}], "row_id": q, "answer": q} for q in "pq"]
# row, text, grade before; by CHECK 1 where the text has an "a"
ANSWERS = [("p", "a", 0.0), ("p", "b", 1.0), ("p", "ab", 0.5), ("q", "a", 1.0), ("q", "b", None)]
ANSWERS += [("q", "c", 1.0)]  # as good as "a" before


@pytest.fixture()
def run(tmp_path):
    """What a run leaves that is read."""
    write_rows(tmp_path / "rows.jsonl", ROWS)
    write_json(tmp_path / "config.json", {"train_file": "rows.jsonl", "grader": CHECK})
    samples = [Sample.from_text(text, row_id=row, grade=grade) for row, text, grade in ANSWERS]
    append_samples(tmp_path / "samples.jsonl", samples, step=1)
    return tmp_path


def test_which_answers_change_places_is_counted_as_by_hand(run):
    report = regrade(run, CHECK, rows=ROWS)
    assert (report["n_answers"], report["n_graded"], report["grader"]) == (6, 5, "says a")
    assert report["before"] == pytest.approx(3.5 / 5) and report["after"] == pytest.approx(3 / 5)
    assert report["changed"] == pytest.approx(4 / 5)
    assert report["best_changed"] == pytest.approx(1 / 2)  # of p, "b" was best and is worst now
    assert report["swapped"] == pytest.approx(2 / 3)  # a-b and b-ab, not a-ab, which are level
    assert [a["grade_before"] for a in report["answers"]] == [grade for _, _, grade in ANSWERS]
    assert [a["grade"] for a in report["answers"]] == [1, 0, 1, 1, 0, 0]


def test_the_command_finds_the_rows_and_writes_both_grades(run, monkeypatch):
    monkeypatch.chdir(run)
    words = ["regrade", str(run), "--grader", json.dumps(CHECK), "--out", "both.jsonl"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "5 of 6 answers" in result.stdout and "1.00 -> 0.00  p: b" in result.stdout
    lines = [json.loads(line) for line in (run / "both.jsonl").read_text().splitlines()]
    assert [(x["grade_before"], x["grade"]) for x in lines][:2] == [(0.0, 1.0), (1.0, 0.0)]
    result = CliRunner().invoke(app, ["regrade", str(run), "--grader", "exact_match", "--json"])
    assert json.loads(result.stdout)["after"] == 0 and "answers" not in json.loads(result.stdout)
    assert len((run / "samples.jsonl").read_text().splitlines()) == 6  # left as it was


def test_rows_that_are_not_at_hand_are_asked_for(run):
    (run / "config.json").unlink()
    with pytest.raises(UserError, match="6 answers to rows that are not at hand"):
        regrade(run, CHECK)
    with pytest.raises(UserError, match="no answer has both grades"):
        write_rows(run / "samples.jsonl", [vars(Sample.from_text("a", row_id="p"))])
        regrade(run, CHECK, rows=ROWS)
