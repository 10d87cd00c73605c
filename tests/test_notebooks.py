"""The ways a notebook rots that show without running it, and how `make test` runs them."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from project_files import ROOT, badge_target, canonical, pins

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PRIVATE = r"(?<![\w.~-])/(?:work|root|home|Users|tmp)/[\w.]|\b[A-Z]:\\\\?Users\b"


def python_of(cell: dict) -> str:
    """A code cell's Python: lines of IPython's own (%magic, !command) become blank."""
    text = "".join(cell["source"])
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", text, flags=re.M)


# --- the rules: each gives a list of faults, empty for a good notebook -------------------------


def not_valid(path, notebook):
    ids = [cell.get("id") for cell in notebook["cells"]]
    if None in ids or len(set(ids)) < len(ids):
        return ["cells without an id, or two with the same"]
    try:
        nbformat.validate(nbformat.from_dict(notebook))
    except nbformat.ValidationError as error:
        return [str(error).splitlines()[0]]
    return ["metadata.widgets"] if "widgets" in notebook["metadata"] else []


def not_run_in_order(path, notebook):
    counts = [c["execution_count"] for c in notebook["cells"] if c["cell_type"] == "code"]
    return [] if counts == list(range(1, len(counts) + 1)) else [f"execution counts {counts}"]


def badge_elsewhere(path, notebook):
    links = re.findall(r"https://colab\.[\w./-]+ipynb", json.dumps(notebook))
    wrong = [link for link in links if link != badge_target(path.name)]
    return wrong if links else ["no Colab badge"]


def dead_links(path, notebook):
    text = "\n".join("".join(c["source"]) for c in notebook["cells"] if c["cell_type"] != "code")
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    targets = re.findall(r"\]\(<?([^)\s>]+)", text) + re.findall(
        r"(?:src|href)=[\"']([^\"']+)", text
    )
    local = [target.split("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]
    return [target for target in local if not (path.parent / target).exists()]


def machine_paths(path, notebook):
    text = json.dumps([c for c in notebook["cells"]]).replace("\\n", "\n")
    return re.findall(PRIVATE, re.sub(r'"image/\w+": "[^"]*"', "", text))


def other_pins(path, notebook):
    code = "\n".join("".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code")
    pairs = re.findall(r"\b([A-Za-z][\w.-]*)==(\d[\w.+]*)", code)
    return [f"{n}=={v}" for n, v in pairs if pins().get(canonical(n)) != v]


def long_cells(path, notebook):
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    long = [text[:40] for text in cells if len(text.splitlines()) > 30]
    return long + [line for text in cells for line in text.splitlines() if len(line) > 76]


def too_large(path, notebook):
    return ["over 200 kB"] if len(json.dumps(notebook, indent=1)) > 200_000 else []


def missing_names(path, notebook):
    """Every name that a cell imports from rftkit must exist, and none comes from the commands."""
    faults = []
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        for node in ast.walk(ast.parse(python_of(cell))):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "rftkit":
                module = importlib.import_module(node.module)
                names = [alias.name for alias in node.names]
                faults += [f"{node.module}.{n}" for n in names if not has(module, n)]
                faults += [node.module] * (node.module == "rftkit.cli")
    return faults


def has(module, name):
    if hasattr(module, name):
        return True
    try:
        importlib.import_module(f"{module.__name__}.{name}")
    except ModuleNotFoundError:
        return False
    return True


RULES = [not_valid, not_run_in_order, badge_elsewhere, dead_links, machine_paths, other_pins,
         long_cells, too_large, missing_names]  # fmt: skip


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_keeps_every_rule(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    faults = {rule.__name__: rule(path, notebook) for rule in RULES}
    assert {name: found for name, found in faults.items() if found} == {}


def test_the_readme_names_the_notebooks_that_exist():
    named = re.findall(r"\b\d\d_\w+(?=\.ipynb)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert set(named) == {path.stem for path in NOTEBOOKS}


def code(text):
    return lambda notebook: notebook["cells"][1].update(source=text)


@pytest.mark.parametrize(
    ("rule", "damage"),
    [
        (None, lambda n: None),
        (not_valid, lambda n: n["cells"][1].update(id=n["cells"][2]["id"])),
        (not_valid, lambda n: n["metadata"].update(widgets={})),
        (not_run_in_order, lambda n: n["cells"][2].update(execution_count=None)),
        (badge_elsewhere, lambda n: n["cells"][0].update(source="# 00")),
        (dead_links, lambda n: n["cells"].append(new_markdown_cell("[x](nowhere.ipynb)"))),
        (machine_paths, code("open('/" + "home/ann/x')")),
        (other_pins, code("!pip install torch==1.0")),
        (long_cells, code("x = 1\n" * 31)),
        (too_large, lambda n: n["cells"].append(new_markdown_cell("a" * 200_000))),
        (missing_names, code("from rftkit import no_such_name")),
        (missing_names, code("from rftkit.cli import main")),
    ],
)
def test_each_rule_sees_what_it_is_for(tmp_path, rule, damage):
    path = tmp_path / "00_question.ipynb"
    cells = [
        new_markdown_cell(
            f"# 00\n[![badge](https://example.org/b.svg)]({badge_target(path.name)})"
        ),
        new_code_cell("%matplotlib inline\nfrom rftkit import train", execution_count=1),
        new_code_cell("1 + 1", execution_count=2),
    ]
    notebook = json.loads(json.dumps(new_notebook(cells=cells, metadata={})))
    damage(notebook)
    assert [r for r in RULES if r(path, notebook)] == ([rule] if rule else [])


# --- how they are run ---------------------------------------------------------------------------


def test_cells_after_a_failed_one_are_skipped_and_the_failed_notebook_is_left_as_it_was(tmp_path):
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "notebooks").mkdir()
    good, bad = (tmp_path / "notebooks" / f"{name}.ipynb" for name in ("00_good", "01_bad"))
    for path, texts in ((good, ("1 + 1",)), (bad, ("1 / 0", "2", "3"))):
        nbformat.write(new_notebook(cells=[new_code_cell(text) for text in texts]), path)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "RFTKIT_"))}

    def run(*words):
        command = [sys.executable, *words]
        return subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True)

    answer = run("-m", "pytest", "notebooks", "--nbval-lax", "--nbval-current-env")
    assert "1 failed, 1 passed, 2 skipped" in answer.stdout.splitlines()[-1], answer.stdout
    before = bad.read_text()
    answer = run(str(ROOT / "tools" / "run_notebooks.py"), str(good), str(bad))
    assert answer.returncode == 1 and "ZeroDivisionError" in answer.stdout
    assert bad.read_text() == before
    (cell,) = nbformat.read(good, as_version=4).cells
    assert cell.outputs[0].data["text/plain"] == "2" and cell.execution_count == 1
