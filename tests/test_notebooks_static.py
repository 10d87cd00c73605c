"""The ways a notebook rots that show without running it. The rules are in notebook_rules.py."""

from __future__ import annotations

import json
import re

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from notebook_rules import NOTEBOOKS, RULES, Notebook
from project_files import ROOT, address, badge_target, pins
from run_notebooks import fewer_colours, normalise


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_rotted(path, rule):
    assert rule(Notebook.read(path)) == []


def test_readme_names_other_notebooks_than_there_are():
    """Also the guard for an empty folder: with no notebook there, README may name none."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    named = set(re.findall(r"\b\d\d_\w+(?=\.ipynb)", text))
    assert named == {path.stem for path in NOTEBOOKS}


def test_a_badge_in_readme_leads_elsewhere():
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    badges = re.findall(r"https://colab\.research\.google\.com/github/[^\s)]+", text)
    assert set(badges) <= {badge_target(path.name) for path in NOTEBOOKS}


# --- the rules themselves: one good notebook, and for each rule a broken one ----------------------


def made_up(path):
    """A small notebook without a fault."""
    badge = f"[![Open In Colab](https://example.org/badge.svg)]({badge_target(path.name)})"
    cells = [
        new_markdown_cell(f"# 00 · Question\n{badge}\n[the next](next.ipynb)"),
        new_code_cell(
            "import rftkit.rows as rows\n"
            "from rftkit.data import Sample, files\n"
            "%matplotlib inline\n"
            f"!pip install torch=={pins()['torch']}\n"
            "rows.read_rows; files.dataset",
            execution_count=1,
        ),
        new_code_cell("1 + 1", execution_count=2),
    ]
    path.with_name("next.ipynb").touch()
    return new_notebook(cells=cells, metadata={})


def faults(notebook, path):
    path.write_text(json.dumps(notebook), encoding="utf-8")  # nbformat would mend it
    read = Notebook.read(path)
    return {rule.__name__: found for rule in RULES if (found := rule(read))}


def test_a_good_notebook_is_refused(tmp_path):
    path = tmp_path / "00_question.ipynb"
    assert faults(made_up(path), path) == {}


def code(text):
    return lambda notebook: notebook.cells[1].update(source=text)


def markdown(text):
    return lambda notebook: notebook.cells.append(new_markdown_cell(text))


@pytest.mark.parametrize(
    ("rule", "damage"),
    [
        ("not_valid", lambda n: n.cells[1].update(id=n.cells[2].id)),
        ("not_valid", lambda n: n.cells[1].pop("id")),
        ("not_valid", lambda n: n.cells[1].pop("outputs")),
        ("not_run_in_order", lambda n: n.cells[2].update(execution_count=3)),
        ("not_run_in_order", lambda n: n.cells[2].update(execution_count=None)),
        ("badge_elsewhere", lambda n: n.cells[0].update(source="# 00\n[x](next.ipynb)")),
        ("badge_elsewhere", markdown(f"[b]({badge_target('01_other.ipynb')})")),
        ("badge_elsewhere", code("!pip install git+https://" + "github.com/someone/copy")),
        ("dead_links", markdown("[x](nowhere.ipynb)")),
        ("dead_links", markdown('<img src="nowhere.png">')),
        ("private_things", code("open('/" + "home/ann/x')")),
        ("private_things", code("token = 'hf" + "_" + "a" * 34 + "'")),
        ("private_things", code("!pip install --index" + "-url https://example.org torch")),
        ("widget_state", lambda n: n.metadata.update(widgets={})),
        ("other_pins", code("!pip install torch==1.0")),
        ("other_pins", code("!pip install unheard-of==1.0")),
        ("long_cells", code("x = 1\n" * 31)),
        ("long_cells", code("x = '" + "a" * 80 + "'")),
        ("too_large", markdown("a" * 200_000)),
        ("missing_names", code("from rftkit.data import NoSuchThing")),
        ("missing_names", code("from rftkit.no_such_part import x")),
        ("missing_names", code("import rftkit.no_such_part")),
        ("missing_names", code("import rftkit.rows as rows\nrows.no_such_function()")),
        ("missing_names", code("import rftkit\nrftkit.data.no_such_name")),
        ("missing_names", code("from rftkit.data import files\nfiles.no_such_function")),
        ("missing_names", code("def broken(:")),
    ],
)
def test_a_rule_does_not_see_what_it_is_for(tmp_path, rule, damage):
    path = tmp_path / "00_question.ipynb"
    notebook = made_up(path)
    damage(notebook)
    assert rule in faults(notebook, path)


def test_normalising_leaves_what_changes_from_run_to_run(tmp_path):
    path = tmp_path / "00_question.ipynb"
    notebook = made_up(path)
    notebook.metadata = {
        "widgets": {"state": {}},
        "kernelspec": {"name": "python3", "display_name": "ann's", "language": "python"},
        "language_info": {"name": "python", "version": "3.11.7"},
    }
    notebook.cells[1].execution_count = 7
    notebook.cells[1].metadata["execution"] = {"iopub.execute_input": "2026-11-21T10:00:00Z"}
    notebook.cells[1].outputs = [
        new_output("execute_result", {"text/plain": "1"}, execution_count=7)
    ]
    notebook.cells.append(new_code_cell(""))
    normalise(notebook)
    assert faults(notebook, path) == {}
    assert [cell.get("execution_count") for cell in notebook.cells] == [None, 1, 2]
    assert notebook.cells[1].outputs[0].execution_count == 1
    text = path.read_text()
    assert "3.11.7" not in text and "ann's" not in text and "2026-11-21" not in text


def test_a_picture_is_kept_as_large_as_drawn_or_loses_its_look():
    import base64
    import io

    from matplotlib.figure import Figure
    from PIL import Image, ImageChops, ImageStat

    figure = Figure(figsize=(6, 3), dpi=80)
    axes = figure.subplots()
    for line in range(6):
        axes.fill_between([0, 1], [line, 0], [line + 1, 1], alpha=0.2)
        axes.plot([0, 1], [line, 1], label=f"line {line}")
    axes.legend()
    drawn = io.BytesIO()
    figure.savefig(drawn)
    before = base64.b64encode(drawn.getvalue()).decode()
    after = fewer_colours(before)
    assert len(after) < len(before) / 2
    assert fewer_colours(after) == after
    one, two = (
        Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB") for png in (before, after)
    )
    assert one.size == two.size
    assert max(ImageStat.Stat(ImageChops.difference(one, two)).mean) < 1  # of 255


def test_the_badge_is_not_derived_from_pyproject():
    assert badge_target("a.ipynb").endswith(f"/{address()}/blob/main/notebooks/a.ipynb")
