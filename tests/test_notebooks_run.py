"""How notebooks are run, in tests (nbval and conftest.py) and by `make notebooks`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from project_files import ROOT

GOOD = ("import os; print(os.environ['RFTKIT_PROFILE'], os.environ['HF_HUB_OFFLINE'])", "1 + 1")
BAD = ("x = 1", "1 / 0", "x + 1", "x + 2")


@pytest.fixture
def folder(tmp_path):
    """A project in small: conftest.py, pyproject.toml and two notebooks, one that fails."""
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "notebooks").mkdir()
    for name, cells in (("00_good", GOOD), ("01_bad", BAD)):
        notebook = new_notebook(cells=[new_code_cell(text) for text in cells])
        nbformat.write(notebook, tmp_path / "notebooks" / f"{name}.ipynb")
    return tmp_path


def run_python(folder, *words, **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "RFTKIT_", "HF_"))}
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=clean | environment,
        capture_output=True,
        text=True,
    )


def test_cells_after_a_failed_one_still_run_or_none_waits_longer_than_nbvals_five_seconds(folder):
    (folder / "test_wait.py").write_text(
        "def test_wait(request):\n"
        "    cells = [i for i in request.session.items if hasattr(i, 'output_timeout')]\n"
        "    assert cells and all(cell.output_timeout >= 30 for cell in cells)\n"
    )
    arguments = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=60", "-rs", "-v"]
    answer = run_python(folder, "-m", "pytest", "notebooks", "test_wait.py", *arguments)
    assert answer.returncode == 1
    assert "1 failed, 4 passed, 2 skipped" in answer.stdout.splitlines()[-1]
    assert "Cell 1 of this notebook failed" in answer.stdout
    assert "ZeroDivisionError" in answer.stdout


def test_make_notebooks_writes_a_failed_notebook_or_not_a_good_one(folder):
    good, bad = folder / "notebooks" / "00_good.ipynb", folder / "notebooks" / "01_bad.ipynb"
    before = bad.read_text()
    answer = run_python(folder, str(ROOT / "tests" / "run_notebooks.py"), str(good), str(bad))
    assert answer.returncode == 1
    assert "ZeroDivisionError" in answer.stdout
    assert bad.read_text() == before
    cells = nbformat.read(good, as_version=4).cells
    assert cells[0].outputs[0].text == "full 1\n"
    assert cells[1].outputs[0].data["text/plain"] == "2"
    assert [cell.execution_count for cell in cells] == [1, 2]


def test_make_notebooks_passes_where_there_is_nothing_to_run(folder):
    answer = run_python(folder, str(ROOT / "tests" / "run_notebooks.py"), "notebooks/*.ipynb")
    assert answer.returncode == 1 and "no such notebook" in answer.stderr
