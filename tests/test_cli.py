"""The command line: each example works, a mistake is one line, `--json` prints one object."""

import inspect
import json
import re
import shlex
import subprocess
from importlib import metadata

import pytest
import typer

from rftkit import __version__, cli, environment
from rftkit.graders.presets import PRESETS, preset

GROUP = typer.main.get_command(cli.app)
COMMANDS = sorted(GROUP.commands)
EXAMPLE = re.compile(r"^ +(rftkit [a-z].*)$|`(rftkit [a-z][^`]*)`", re.MULTILINE)


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grader.json").write_text(json.dumps(preset("gene_rank")))
    (tmp_path / "item.json").write_text('{"reference_gene": "A"}')
    (tmp_path / "sample.txt").write_text('<think>B?</think>{"genes": ["B", "A"]}')
    return tmp_path


def examples(command) -> list[list[str]]:
    """The words of every command line in a help text, up to where its output is sent."""
    text = "\n " + inspect.cleandoc(command.help)
    lines = [line or quoted for line, quoted in EXAMPLE.findall(text)]
    return [shlex.split(line.partition(" > ")[0])[1:] for line in lines]


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_a_help_page_shows_examples_that_the_commands_take(name):
    shown = examples(GROUP.commands[name] if name else GROUP)
    assert any(name in ("", words[0]) for words in shown)
    for command, *words in shown:
        if words or command == name:  # not one that is only mentioned
            with GROUP.commands[command].make_context(command, words):
                pass


def test_version_and_environment_are_printed(run):
    assert run("--version")[1].strip() == f"rftkit {__version__}"
    text, record = run("environment")[1], json.loads(run("environment", "--json")[1])
    assert record["machine"] in text and f"torch {record['versions']['torch']}" in text
    assert {"device", "profile", "sandbox"} <= record.keys() and "repair" not in record


def test_packages_that_do_not_fit_or_are_no_longer_on_disk_come_with_the_one_repair(monkeypatch):
    import torch

    monkeypatch.setattr(torch, "__version__", "2.0.0+cu121")  # then pip installed the one on disk
    on_disk = metadata.version("torch")
    assert (
        environment.repair() == f"restart the kernel (torch {on_disk} on disk, 2.0.0+cu121 loaded)"
    )
    versions = {"trl": "1.16.0", "torch": on_disk}
    monkeypatch.setattr(environment.metadata, "version", lambda name: versions.get(name, "1e9"))
    monkeypatch.setattr(environment.metadata, "requires", lambda name: ["torch>=2.8", "trl<1.15"])
    assert environment.report()["repair"] == "pip install 'trl<1.15'"


def test_a_gpu_is_named_with_its_driver_and_compute_capability(monkeypatch):
    import torch

    monkeypatch.setattr(environment, "choose_device", lambda: ("cuda", "bfloat16", "NVIDIA H200"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    answer = subprocess.CompletedProcess([], 0, "580.159.03\n")
    monkeypatch.setattr(environment.subprocess, "run", lambda *words, **form: answer)
    report = environment.report()
    assert (report["capability"], report["driver"]) == ("9.0", "580.159.03")


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("grade --grader missing.json --sample x", 1),
        ("grade --grader grader.json --sample x --item {", 1),
        ("grade --grader grader.json --sample x --item sample.txt", 1),
        ("runs missing", 1),
        ("doctor missing", 1),
        ("train missing.json --out r", 1),
        ("cases missing.zip --out o", 1),
        ("cases missing.zip --out o --candidates 4", 2),
        ("cases missing.zip --out o --signs 4", 2),
        ("demo --profile huge", 1),
        ("demo --profile smoke --out sample.txt/demo", 1),
        ("evaluate gene_ranking --model embedded:giant --out o", 1),
        ("evaluate gene_ranking --model embedded:mini --samples 0 --out o", 2),
        ("check item.json --no-such-option", 2),
    ],
)
def test_a_mistake_is_one_message_and_an_exit_code(run, files, command, code):
    given, out, err = run(*command.split())
    assert given == code and out == "" and "Traceback" not in err
    assert ("\nerror " in f"\n{err}") is (code == 1)


@pytest.mark.parametrize("sample", ['{"genes": ["B", "A"]}', "@sample.txt"])
@pytest.mark.parametrize("item", ["item.json", '{"reference_gene": "A"}'])
def test_grade_prints_the_report(run, files, sample, item):
    code, out, err = run("grade", "--grader", "grader.json", "--sample", sample, "--item", item)
    assert code == 0 and json.loads(out)["reward"] == pytest.approx(0.73) and err == ""


def test_a_grade_that_is_lost_prints_the_report_and_exits_1(run, files):
    code, out, err = run("grade", "--grader", "grader.json", "--sample", '{"genes": ["B"]}')
    assert code == 1 and json.loads(out)["reward"] is None and "item.reference_gene" in err


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ('{"type": "string_check", "name": "x", "input": 1, "operation": "is"}', 3),
        ('{"type": "string_check",\n', 1),
        ("NaN", 1),
    ],
)
def test_validate_grader_gives_every_problem_with_its_file(run, files, text, problems):
    (files / "bad.json").write_text(text)
    code, out, err = run("validate-grader", "./bad.json")
    assert code == 1 and out == "" and err.count("bad.json") == problems
    code, out, err = run("validate-grader", "bad.json", "--json")
    record = json.loads(out)
    assert code == 1 and not record["valid"] and len(record["problems"]) == problems
    assert json.loads(run("validate-grader", "grader.json", "--json")[1])["valid"]


def test_presets_are_listed_and_printed_with_their_arguments(run):
    listed = json.loads(run("graders", "--json")[1])["graders"]
    assert [row["name"] for row in listed] == list(PRESETS)
    assert json.loads(run("graders", "gene_rank")[1]) == preset("gene_rank")
    assert run("graders", "exact_match", "--length", 3)[0] == 1
    three = run("graders", "rank", "--key", "moods", "--reference", "mood", "--length", 3)[1]
    assert json.loads(three) == preset("rank", key="moods", reference="mood", length=3)


@pytest.mark.parametrize("boxed", [[], ["--sandbox", "--allow-weak-isolation"]])
def test_a_python_file_is_a_grader(run, files, boxed):
    (files / "own.py").write_text("def f(completions, right, **columns): return [4.0]\n")
    assert run("validate-grader", "own.py")[0] == 0
    assert run("validate-grader", "own.py:g")[0] == 1
    command = ["grade", "--grader", "own.py:f", "--sample", "x", "--item", '{"right": 1}', *boxed]
    code, out, err = run(*command)
    assert (code, json.loads(out)["reward"]) == (0, 4.0) and "note: grader 'f' returned 4" in err
    assert ".py:" not in err  # no place in the library
