"""The commands grade, validate-grader and graders."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rftkit import cli
from rftkit.graders.presets import SHELF
from rftkit.graders.python import IMAGE_LIBRARIES

ROOT = Path(__file__).resolve().parents[1]


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


@pytest.mark.parametrize("text", ['{"type": "string_check",\n', "[1", '{"a": 1, "a": 2}', "NaN"])
@pytest.mark.parametrize("shown", ["d.json", "./d.json"])
def test_a_torn_file_is_named_twice(run, tmp_path, monkeypatch, text, shown):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.json").write_text(text)
    code, out, err = run("validate-grader", shown)
    assert code == 1 and out == "" and err.startswith(f"{shown}: ")
    assert err.count("d.json") == 1, err
    assert ("line 2" in err) is ("\n" in text)


def test_a_missing_library_is_named_without_what_to_install(run, tmp_path, monkeypatch):
    here = {"re", "json"}
    monkeypatch.setattr("rftkit.graders.python._is_installed", lambda name: name in here)
    source = "import json, re, cv2, mine\nfrom sklearn import metrics\nimport yaml, PIL.Image\n"
    spec = {"type": "python", "name": "own"}
    place = tmp_path / "own.json"

    def note():
        text = source + "def grade(sample, item):\n    return 1.0\n"
        place.write_text(json.dumps(spec | {"source": text}))
        code, out, _ = run("validate-grader", place, "--json")
        assert code == 0
        return "; ".join(json.loads(out)["notes"])

    assert "pip install 'rftkit[grader-image]' (scikit-learn, pyyaml)" in note()
    assert "pip install mine opencv-python-headless pillow (PIL, cv2, mine)" in note()
    source = "import mine\n"
    assert "pip install mine" in note() and "grader-image" not in note()
    source = "import sklearn\n"
    assert "'rftkit[grader-image]'" in note() and "scikit-learn" in note()
    here |= {"sklearn"}
    assert "pip" not in note()


def test_the_extra_lacks_a_library_that_it_is_advised_for():
    """What rftkit itself needs comes with any of its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["grader-image"]
    given = {re.match(r"[\w-]+", text).group().lower() for text in wanted}
    assert set(IMAGE_LIBRARIES.values()) <= given


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
