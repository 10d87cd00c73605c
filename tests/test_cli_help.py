"""The help of every command: it shows an example, and the example is one that the command takes."""

from __future__ import annotations

import inspect
import re
import shlex

import pytest
import typer
from typer.testing import CliRunner

from rftkit import __version__
from rftkit.cli import app

GROUP = typer.main.get_command(app)
COMMANDS = sorted(GROUP.commands)
EXAMPLE = re.compile(r"^ +(rftkit [a-z].*)$|`(rftkit [a-z][^`]*)`", re.MULTILINE)


def examples(text: str) -> list[str]:
    """Every command line in a help text, up to where its output is sent."""
    found = [line or quoted for line, quoted in EXAMPLE.findall(text)]
    return [line.partition(" > ")[0] for line in found]


def accept(example: str) -> None:
    """Parse an example as the command line would; nothing is run."""
    _, name, *words = shlex.split(example)
    with GROUP.commands[name].make_context(name, words):
        pass


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_shows_no_example_of_its_own(name):
    text = inspect.cleandoc(GROUP.commands[name].help)
    assert any(example.split()[1] == name for example in examples("\n " + text)), text


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_an_example_is_refused_by_the_command_it_teaches(name):
    text = GROUP.commands[name].help if name else GROUP.help
    for example in examples(text):
        if "COMMAND" not in example and not example.endswith("--help"):
            accept(example)


def test_a_wrong_example_goes_unnoticed():
    (good,) = examples("Example:\n\n    rftkit graders rank > grader.json\n")
    accept(good)
    for wrong in ("rftkit graders --no-such-option", "rftkit no-such-command x"):
        with pytest.raises(Exception, match="no-such"):
            accept(wrong)


def test_the_example_of_grade_gives_other_rewards_than_it_says(tmp_path):
    text = GROUP.commands["grade"].help
    said = re.search(r'"reward" is (\S+) and then ([\d.]+)\.', text)
    path = tmp_path / "grader.json"
    shelf = CliRunner().invoke(app, shlex.split(examples(text)[0])[1:])
    path.write_text(shelf.stdout)
    found = []
    for example in examples(text)[1:]:
        words = [word.replace("grader.json", str(path)) for word in shlex.split(example)[1:]]
        result = CliRunner().invoke(app, [*words, "--json"])
        assert result.exit_code == 0, result.output
        found.append(float(re.search(r'"reward": ([\d.]+)', result.stdout)[1]))
    assert found == [float(said[1]), float(said[2])]


def test_the_first_page_names_no_first_command():
    page = CliRunner().invoke(app, ["--help"])
    assert page.exit_code == 0 and "rftkit demo" in page.output and "Exit codes" in page.output
    assert CliRunner().invoke(app, ["--version"]).output.strip() == f"rftkit {__version__}"


def test_the_environment_hides_what_follows_from_it():
    said = CliRunner().invoke(app, ["environment"]).output
    for word in ("machine", "device", "profile", "RFTKIT_PROFILE", "torch"):
        assert word in said
