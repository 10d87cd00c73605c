"""A workshop's two commands: which exercises passed, and is this laptop ready?"""

import json
import re
import shlex
import shutil
from collections import namedtuple
from importlib import metadata

import nbformat
import psutil
import pytest
import typer
from nbformat.v4 import new_output
from project_files import ROOT
from test_notebook_exercises import EXERCISES, checked, solution_of

from rftkit import cli, environment, files, workshop
from rftkit.sandbox.runner import Outcome


@pytest.fixture
def laptop(tmp_path, capsys):
    """A folder with 03 as a learner saves it: the first exercise passed, the second failed."""
    notebook = nbformat.read(ROOT / "notebooks" / "03_signal.ipynb", 4)
    cells = {cell["id"]: cell for cell in notebook.cells}
    passed = checked("estimate", solution_of("estimate"))
    cells["exercise-estimate-check"].outputs = [new_output("stream", text=passed)]
    failed = cells["exercise-group-check"]
    trace = [f"----> {line}" for line in failed.source.splitlines()]
    failed.outputs = [new_output("error", ename="AssertionError", evalue="", traceback=trace)]
    (tmp_path / "one" / "notebooks").mkdir(parents=True)
    nbformat.write(notebook, tmp_path / "one" / "notebooks" / "03_signal.ipynb")
    capsys.readouterr()  # what the notebook's cells print
    return tmp_path / "one"


def test_an_exercise_passed_if_its_check_says_so_in_the_saved_notebook(run, laptop):
    code, text, _ = run("progress", laptop)
    assert code == 0 and text.split()[-5:] == "1 of 3 exercises passed".split()
    record = json.loads(run("progress", laptop, "--json")[1])
    checks = {"chance": True, "group_size": False, "verifiable": False}
    assert record == {str(laptop): {"03_signal": checks}}


def test_many_folders_are_a_row_each(run, laptop, tmp_path):
    shutil.copytree(ROOT / "notebooks", tmp_path / "two", ignore=lambda *_: ["runs"])
    rows = run("progress", laptop, tmp_path / "two")[1].splitlines()
    assert [row.split()[-2:] for row in rows[1:3]] == [["1", "3"], ["0", str(len(EXERCISES))]]
    assert run("progress", tmp_path)[0] == 1


def test_every_exercise_of_the_notebooks_is_counted_and_none_is_passed_as_committed():
    found = workshop.progress(ROOT)
    homes = [notebook for notebook, _ in EXERCISES.values()]
    assert {name: len(checks) for name, checks in found.items() if checks} == {
        name: homes.count(name) for name in homes
    }
    assert not any(passed for checks in found.values() for passed in checks.values())


def test_a_ready_laptop_is_one_line(run):
    code, text, _ = run("environment", "--workshop")
    assert code == 0 and text.startswith("ready: ") and text.count("\n") == 1


def lose_a_package(monkeypatch, tmp_path):
    known = metadata.version

    def version(name):
        if name == "trl":
            raise metadata.PackageNotFoundError(name)
        return "1.0" if name == "peft" else known(name)

    monkeypatch.setattr(environment.metadata, "version", version)


def cut_the_mini_short(monkeypatch, tmp_path):
    shutil.copytree(files.MODELS, tmp_path / "models")
    (tmp_path / "models" / "mini" / "model.safetensors").write_bytes(b"short")
    monkeypatch.setattr(files, "MODELS", tmp_path / "models")


def fill_the_memory(monkeypatch, tmp_path):
    memory = namedtuple("Memory", "available")(1e9)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def stop_the_sandbox(monkeypatch, tmp_path):
    lost = Outcome(server_error="lost: the sandbox ended")
    monkeypatch.setattr(workshop.runner, "python_runner", lambda: lambda *request: lost)


@pytest.mark.parametrize(
    ("fault", "shown"),
    [
        (lose_a_package, "trl==1.14.2 peft==0.21.2"),
        (fill_the_memory, "1.0 GB free"),
        (stop_the_sandbox, "sandbox: lost"),
        (cut_the_mini_short, "model.safetensors"),
    ],
)
def test_a_laptop_that_is_not_ready_names_the_first_fault(run, monkeypatch, tmp_path, fault, shown):
    fault(monkeypatch, tmp_path)
    code, text, _ = run("environment", "--workshop")
    assert code == 1 and text.startswith("not ready: ") and shown in text
    assert text.count("\n") == 1
    record = json.loads(run("environment", "--workshop", "--json")[1])
    assert record == {"ready": False, "line": text.removeprefix("not ready: ").strip()}


def minutes_of(numbers):
    """What the title rows of these notebooks add up to, in the full profile."""
    paths = [path for number in numbers for path in (ROOT / "notebooks").glob(f"{number}_*.ipynb")]
    titles = ["".join(json.loads(path.read_text("utf-8"))["cells"][0]["source"]) for path in paths]
    return sum(float(re.search(r"\| full \|[^|]*\| ([\d.]+)", title)[1]) for title in titles)


def test_the_plans_minutes_are_those_of_the_notebooks():
    text = (ROOT / "docs" / "workshop.md").read_text(encoding="utf-8")
    lists = re.findall(r"\*\* \| (\d\d(?:, \d\d)+) \| ([\d.]+) \|", text)
    assert len(lists) == 2
    for numbers, shown in lists:
        assert minutes_of(numbers.split(", ")) == pytest.approx(float(shown))
    [day] = re.findall(r"the same, then 09[^|]*\| ([\d.]+) \|", text)
    assert minutes_of([*lists[1][0].split(", "), "09"]) == pytest.approx(float(day))
    rest, shown = re.search(
        r"then ((?:\d\d, )+\d\d and \d\d) with.*?\(([\d.]+)", text, re.S
    ).groups()
    assert minutes_of(re.findall(r"\d\d", rest)) == pytest.approx(float(shown))


@pytest.mark.parametrize("page", ["workshop.md", "troubleshooting.md"])
def test_the_commands_of_the_pages_exist_and_so_do_their_make_targets(page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    lines = re.findall(r"(?:`|bin/)rftkit ([a-z][^`\n]*)`", text)
    assert lines
    for name, *words in map(shlex.split, lines):
        command = typer.main.get_command(cli.app).commands[name]
        if words or name in ("demo", "environment", "progress"):
            with command.make_context(name, words):
                pass
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    assert set(re.findall(r"(?:`|^ *|=2 )make ([a-z-]+)", text, re.M)) <= targets
