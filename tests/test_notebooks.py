"""The ways a notebook rots that show without running it, and how `make test` runs them."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from project_files import ADDRESS, ROOT, canonical, pins

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def python_of(cell: dict) -> str:
    """A code cell's Python: lines of IPython's own (%magic, !command) become blank."""
    text = "".join(cell["source"])
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", text, flags=re.M)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_whole_and_short_and_its_links_and_pins_are_right(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 200_000 and "widgets" not in notebook.metadata
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for lines in [cell.source.splitlines() for cell in code]:
        assert len(lines) <= 30 and max(map(len, lines)) <= 76, lines[0]
    source = "\n".join(cell.source for cell in code)
    assert not re.search(r"rftkit\.cli|rftkit import .*\bcli(_runs)?\b", source)
    for name, version in re.findall(r"\b([A-Za-z][\w.-]*)==(\d[\w.+]*)", source):
        assert pins()[canonical(name)] == version
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    badge = f"https://colab.research.google.com/github/{ADDRESS}/blob/main/notebooks/{path.name}"
    assert re.findall(r"https://colab\.[\w./-]+ipynb", text) == [badge]
    links = re.findall(r"\]\(<?([^)\s>#]+)", re.sub(r"```.*?```", "", text, flags=re.S))
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in local if not (path.parent / link).exists()] == []


def install_cell(path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return next(cell.source for cell in cells if cell.get("id") == "install")


def at_root(function, root, path, **options):
    """Call it with the path below `root`; os.makedirs calls itself with a path that is there."""
    return function(path if path.startswith(root) else root + path, **options)


@pytest.mark.parametrize("host", ["Colab", "Kaggle", "here"])
def test_a_hosted_notebook_keeps_the_loaded_torch_and_numpy_and_on_colab_its_runs(
    host, monkeypatch, tmp_path
):
    """The one cell of all notebooks, run by IPython with pip and the host replaced."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    (cell,) = set(map(install_cell, NOTEBOOKS))
    calls, shell = [], InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))
    shell.register_magic_function(calls.append, magic_name="pip")
    for name in ("torch", "numpy"):  # newer than those on disk
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__version__=f"99.1+{name}"))
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    monkeypatch.chdir(tmp_path)
    if host == "Colab":
        drive = SimpleNamespace(mount=calls.append)
        output = SimpleNamespace(enable_custom_widget_manager=lambda: calls.append("widgets"))
        colab = SimpleNamespace(drive=drive, output=output)
        monkeypatch.setitem(sys.modules, "google.colab", colab)
        for name in ("chdir", "makedirs"):  # the Drive lies in tmp_path
            there = partial(at_root, getattr(os, name), str(tmp_path))
            monkeypatch.setattr(os, name, there)
    elif host == "Kaggle":
        monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    shell.run_cell(cell).raise_error()
    kept = "torch==99.1+torch numpy==99.1+numpy"
    expected = f"install -q {kept} transformers=={pins()['transformers']} "
    assert [call.startswith(expected) for call in calls[:1]] == [True] * (host != "here")
    on_drive = tmp_path / "content" / "drive" / "MyDrive" / "rftkit"
    assert Path.cwd() == (on_drive if host == "Colab" else tmp_path)
    assert calls[1:] == (["widgets", "/content/drive"] if host == "Colab" else [])
    Path("runs").mkdir()
    shell.run_cell(cell).raise_error()  # the next session finds the runs of this one
    assert Path("runs").exists()


def test_the_readme_names_the_notebooks_that_exist():
    named = re.findall(r"\b\d\d_\w+(?=\.ipynb)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert set(named) == {path.stem for path in NOTEBOOKS}


def test_cells_after_a_failed_one_are_skipped_and_the_failed_notebook_is_left_as_it_was(tmp_path):
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "notebooks").mkdir()
    good, bad = (tmp_path / "notebooks" / f"{name}.ipynb" for name in ("00_good", "01_bad"))
    for path, texts in ((good, ("1 + 1",)), (bad, ("1", "1 / 0", "2", "3"))):
        nbformat.write(new_notebook(cells=[new_code_cell(text) for text in texts]), path)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "RFTKIT_"))}

    def run(*words):
        command = [sys.executable, *map(str, words)]
        return subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True)

    answer = run("-m", "pytest", bad, "--nbval-lax", "--nbval-current-env")
    assert "1 failed, 1 passed, 2 skipped" in answer.stdout.splitlines()[-1], answer.stdout
    before = bad.read_text()
    answer = run(ROOT / "tools" / "run_notebooks.py", good, bad)
    assert answer.returncode == 1 and "ZeroDivisionError" in answer.stdout
    assert bad.read_text() == before
    (cell,) = json.loads(good.read_text())["cells"]
    assert cell["outputs"][0]["data"]["text/plain"] == ["2"] and cell["execution_count"] == 1
