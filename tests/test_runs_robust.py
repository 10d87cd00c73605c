"""`rftkit runs`: one bad run folder is named, and the table of the others is shown."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from rftkit.cli import app
from rftkit.training.run import list_runs, runs_table

LOOK = {"metric": "top1", "mean": 0.4, "low": 0.3, "high": 0.5}
LINES = [{"step": 1, "seconds": 1.5}, {"step": 2, "seconds": 3.0, "validation": LOOK}]
LOG = "".join(json.dumps(line) + "\n" for line in LINES).encode()


def make_run(folder, log=LOG, training=None, **config):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"task": "gene_ranking"} | config))
    if log is not None:
        (folder / "log.jsonl").write_bytes(log)
    if training is not None:
        (folder / "training.json").write_text(training)
    return folder


@pytest.fixture
def runs(tmp_path):
    make_run(tmp_path / "a", seed=1)
    make_run(tmp_path / "z", seed=2)
    return tmp_path


BAD_LOGS = {
    "a torn middle line": (b'{"step": 1, "sec\n' + LOG, "log.jsonl:1: not a JSON object"),
    "bytes that are no UTF-8": (LOG + b"\xff\xfe{}\n", "log.jsonl:3: not a JSON object"),
    "a line that is a list": (LOG + b"[1, 2]\n", "log.jsonl:3: not a JSON object"),
    "a line of brackets": (LOG + b"[" * 100_000 + b"\n", "log.jsonl:3: not a JSON object"),
    "a look that is a number": (b'{"step": 1, "seconds": 1, "validation": 3}\n', "TypeError"),
    "a look without its interval": (
        b'{"step": 1, "seconds": 1, "validation": {"mean": 0.4}}\n',
        "KeyError: 'low'",
    ),
    "a look of NaN": (
        b'{"step": 1, "seconds": 1, "validation": {"mean": NaN, "low": 0, "high": 1}}\n',
        "do not hold what a run writes",
    ),
    "alarms that are a word": (b'{"step": 1, "seconds": 1, "alarms": "x"}\n', "TypeError"),
    "a line without its seconds": (b'{"step": 1}\n', "KeyError: 'seconds'"),
}


def only_good_ones_are_shown(runs, said):
    found = list_runs(runs)
    assert [run["name"] for run in found["runs"]] == ["a", "z"]
    assert found["differing"] == ["seed"]
    assert [run["config"] for run in found["runs"]] == [{"seed": 1}, {"seed": 2}]
    [problem] = found["unreadable"]
    assert problem.startswith(str(runs / "bad")) and said in problem
    answer = CliRunner().invoke(app, ["runs", str(runs)])
    assert answer.exit_code == 0 and answer.exception is None
    assert "left out: " in " ".join(answer.output.split())
    row = list(runs_table(found)[0].values())
    assert row[:5] == ["a", "top1 0.400 [0.300, 0.500]", "2", "2", "unfinished"]


@pytest.mark.parametrize("kind", BAD_LOGS)
def test_a_bad_log_takes_the_table_down(runs, kind):
    log, said = BAD_LOGS[kind]
    make_run(runs / "bad", log, seed=7)
    only_good_ones_are_shown(runs, said)


WHOLE = {"config": {}, "training": {"stopped": "steps"}, "start": LOOK, "best": LOOK | {"step": 2}}


@pytest.mark.parametrize("part", [{"training": [1]}, {"best": [1]}, {"best": {"mean": 0.4}}])
def test_a_bad_training_record_takes_the_table_down(runs, part):
    make_run(runs / "bad", training=json.dumps(WHOLE | part), seed=7)
    only_good_ones_are_shown(runs, "training.json")


@pytest.mark.parametrize("torn", ["", "[]", '{"trai', "3", '{"best": {}}'])
def test_a_torn_training_record_is_taken_for_an_end(runs, torn):
    make_run(runs / "done", training=json.dumps(WHOLE))
    make_run(runs / "torn", training=torn)
    states = {run["name"]: run["state"] for run in list_runs(runs)["runs"]}
    assert states["done"] == "finished" and states["torn"] == "unfinished"


def test_a_log_that_cannot_be_read_takes_the_table_down(runs):
    folder = make_run(runs / "bad", log=None, training=json.dumps(WHOLE), seed=7)
    (folder / "log.jsonl").mkdir()  # a folder: no user, root included, reads it as a file
    only_good_ones_are_shown(runs, "log.jsonl: cannot be read (Is a directory)")


def test_a_torn_last_line_makes_a_run_unreadable(runs):
    """A run that was killed while it wrote, once in the middle of a letter."""
    make_run(runs / "torn", LOG + b'{"step": 3, "patterns": {"\xc3', seed=7)
    make_run(runs / "name", b'{"step": 1, "seconds": 2, "patterns": {"a\xe2\x80\xa8b": 1}}\n')
    found = list_runs(runs)
    assert [(run["name"], run["steps"]) for run in found["runs"]] == [
        ("a", 2), ("name", 1), ("torn", 2), ("z", 2)
    ]  # fmt: skip
    assert found["unreadable"] == []


def test_a_number_that_json_has_not_breaks_the_json_output(runs):
    make_run(runs / "odd", b'{"step": 1, "seconds": NaN}\n')
    answer = CliRunner().invoke(app, ["runs", str(runs), "--json"])
    assert answer.exit_code == 0 and len(json.loads(answer.stdout)["runs"]) == 3
