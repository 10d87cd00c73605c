"""The commands grade, validate-grader and graders."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from rftkit import cli
from rftkit.graders import SHELF


@pytest.fixture
def run(monkeypatch, capsys):
    """Call the command line as the console script does; returns (exit code, out, err)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["rftkit", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def files(tmp_path):
    (tmp_path / "grader.json").write_text(json.dumps(SHELF["gene_rank"].make().to_json()))
    (tmp_path / "item.json").write_text('{"reference_gene": "A"}')
    (tmp_path / "sample.txt").write_text('<think>B?</think>{"genes": ["B", "A"]}')
    return tmp_path


def test_grade_prints_the_report(run, files):
    grader, item = files / "grader.json", files / "item.json"
    for sample in ('{"genes": ["B", "A"]}', f"@{files / 'sample.txt'}"):
        code, out, _ = run("grade", "--grader", grader, "--sample", sample, "--item", item)
        report = json.loads(out)
        assert code == 0 and report["reward"] == pytest.approx(0.73)
        assert report["metadata"]["errors"]["sample_parse_error"] is True
    inline = ("--item", '{"reference_gene": "A"}')
    code, out, err = run("grade", "--grader", grader, "--sample", "no JSON", *inline, "--json")
    assert code == 0 and json.loads(out)["reward"] == 0.0 and err == ""
    code, out, err = run("grade", "--grader", grader, "--sample", "no JSON", *inline)
    assert "first: the output is not JSON: no JSON" in err


def test_grade_that_is_lost_prints_the_report_and_exits_1(run, files):
    code, out, err = run("grade", "--grader", files / "grader.json", "--sample", '{"genes": ["B"]}')
    assert code == 1 and json.loads(out)["reward"] is None
    assert "{{item.reference_gene}} is not there" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("grade", "--grader", "missing.json", "--sample", "x"),
        ("grade", "--grader", "GRADER", "--sample", "@missing.txt"),
        ("grade", "--grader", "GRADER", "--sample", "x", "--item", "missing.json"),
        ("grade", "--grader", "GRADER", "--sample", "x", "--item", "{"),
        ("grade", "--grader", "GRADER", "--sample", "x", "--item", "SAMPLE"),
        ("graders", "missing"),
    ],
)
def test_mistake_is_one_message_and_no_traceback(run, files, arguments):
    names = {"GRADER": files / "grader.json", "SAMPLE": files / "sample.txt"}
    code, out, err = run(*(names.get(a, a) for a in arguments))
    assert code == 1 and out == "" and err.startswith("error ") and "Traceback" not in err


def test_validate_grader_gives_every_reason(run, files):
    good = files / "grader.json"
    assert run("validate-grader", good)[0] == 0
    code, out, _ = run("validate-grader", good, "--json")
    expected = {"valid": True, "type": "multi", "problems": [], "notes": []}
    assert code == 0 and json.loads(out) == expected

    bad = files / "bad.json"
    bad.write_text('{"type": "string_check", "name": "x", "input": 1, "operation": "is"}')
    code, _, err = run("validate-grader", bad)
    assert code == 1 and err.count("bad.json: ") == 3
    code, out, err = run("validate-grader", bad, "--json")
    result = json.loads(out)
    assert code == 1 and err == "" and not result["valid"] and len(result["problems"]) == 3
    bad.write_text("{")
    assert run("validate-grader", bad)[0] == 1
    assert "not JSON" in json.loads(run("validate-grader", bad, "--json")[1])["problems"][0]


def test_shelf_lists_and_prints(run):
    code, out, _ = run("graders")
    assert code == 0 and all(name in out for name in SHELF)
    listed = json.loads(run("graders", "--json")[1])["graders"]
    assert [row["name"] for row in listed] == list(SHELF)
    code, out, _ = run("graders", "gene_rank")
    assert json.loads(out) == SHELF["gene_rank"].make().to_json()


@pytest.mark.parametrize("command", ["grade", "validate-grader", "graders"])
def test_help_shows_an_example(command):
    result = CliRunner().invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0 and "Example" in result.output


def test_importing_graders_loads_no_heavy_library():
    heavy = ["torch", "transformers", "openai", "nltk", "rouge_score", "rapidfuzz", "jsonschema"]
    code = (
        "import sys, rftkit.graders as g; g.Grader, g.reference_check, g.rank_grader, g.SHELF, "
        "g.JudgeSettings; "
        "assert g.rank_grader().grade({'reference_gene': 'A'}, '{\"genes\": [\"A\"]}')[0] == 1; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
