"""Notebooks in a real JupyterLab in a real browser (`make test-browser`, part of `make prove`).

Screenshots stay in runs/browser/: look at them.
"""

from __future__ import annotations

import json
import re

import nbformat
import pytest
from browser_lab import NotebookPage, chromium, jupyterlab, lacking, without_outputs
from nbformat.v4 import new_code_cell, new_notebook
from project_files import ROOT

pytestmark = [
    pytest.mark.prove,
    pytest.mark.browser,
    pytest.mark.skipif(lacking() != "", reason=lacking()),
]

# A run of six steps whose dashboard is redrawn after each; smoke size whatever notebook 05 says.
DASHBOARD_CELL = """\
from rftkit import RunConfig, train
from rftkit.dashboard import TrainingDashboard

config = RunConfig(
    model="embedded:mini", task="gene_ranking", prompts_per_step=4,
    answers_per_prompt=4, steps=6, eval_every=2, eval_rows=12, gate="off",
)
run = train(config, "run", observers=[TrainingDashboard()])
"""

# Kept by the page itself: what the dashboard's picture said at each redrawing, and how many
# pictures stood there at once.
WATCH = """() => {
    window.seen = []; window.most = 0;
    new MutationObserver(() => {
        const pictures = document.querySelectorAll('.jp-OutputArea-output img[alt^="step "]');
        window.most = Math.max(window.most, pictures.length);
        const last = pictures[pictures.length - 1];
        if (last && (!window.seen.length || window.seen.at(-1)[0] !== last.alt))
            window.seen.push([last.alt, last.src.slice(-4000)]);
    }).observe(document.body, {childList: true, subtree: true, attributes: true});
}"""


@pytest.fixture(scope="module")
def open_notebook(tmp_path_factory):
    """open_notebook("02") -> NotebookPage of a copy without outputs."""
    from playwright.sync_api import sync_playwright

    folder = tmp_path_factory.mktemp("browser") / "notebooks"
    folder.mkdir()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        without_outputs(path, folder / path.name)
    dashboard = new_notebook(cells=[new_code_cell(DASHBOARD_CELL)])
    dashboard.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(dashboard, folder / "dashboard.ipynb")
    with jupyterlab(folder) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), timeout=120_000)

        def opened(start: str) -> NotebookPage:
            (path,) = folder.glob(f"{start}*.ipynb")
            return NotebookPage(browser, address, path, ROOT / "runs" / "browser")

        yield opened
        browser.close()


def reward_shown(lab) -> float:
    return float(re.search(r"reward\s+([\d.]+)", lab.locator("pre").inner_text())[1])


def test_typed_answer_slider_and_row_change_the_grade_in_the_grader_lab(open_notebook):
    page = open_notebook("02")
    page.run_all()
    lab = page.cell("grader_lab(task").locator(".jp-OutputArea")
    lab.locator("pre").wait_for()
    page.picture("1-lab", lab)
    typed, editor = lab.locator("textarea").nth(0), lab.locator("textarea").nth(1)
    right = json.loads(typed.input_value())["genes"][0]
    assert reward_shown(lab) == 1.0

    typed.fill(json.dumps({"genes": ["A", right]}))
    typed.blur()
    page.expect_text(lab.locator("pre"), "reward      0.73")

    lab.locator("select").nth(2).select_option(label="… * second")
    handle = lab.locator(".noUi-handle")
    page.expect_attribute(handle, "aria-valuenow", "0.7")
    handle.focus()
    for _ in range(10):
        handle.press("ArrowLeft")
    page.expect_attribute(handle, "aria-valuenow", "0.2")
    page.expect_text(lab.locator("pre"), "reward      0.28")
    assert "0.2 * second" in editor.input_value()
    page.picture("2-slider-moved", lab)

    lab.locator("select").nth(0).select_option(index=1)
    page.expect_text(lab.locator("pre"), "reward      1.00")
    assert json.loads(typed.input_value())["genes"][0] != right
    editor.fill("{")
    editor.blur()
    page.expect_text(lab.locator("pre"), "no grade")
    page.picture("3-broken-grader", lab)
    page.close()


@pytest.mark.parametrize(("start", "dashboards"), [("03", 0), ("05", 1)])
def test_a_notebook_runs_to_its_end_and_draws(open_notebook, start, dashboards):
    page = open_notebook(start)
    page.run_all()
    drawn = page.page.locator(".jp-Notebook .jp-OutputArea-output img")
    sizes = drawn.evaluate_all("pictures => pictures.map(p => [p.naturalWidth, p.alt])")
    assert sizes and all(width > 100 for width, _ in sizes)
    assert sum(alt.startswith("step ") for _, alt in sizes) == dashboards
    page.picture("end")
    page.close()


def test_the_training_dashboard_is_redrawn_in_place(open_notebook):
    page = open_notebook("dashboard")
    page.page.evaluate(WATCH)
    page.run_all()
    seen = page.page.evaluate("window.seen")
    assert len(seen) >= 2, f"drawn once: {seen}"
    assert re.match(r"step [1-5]/6, \d+:\d\d left", seen[0][0])
    assert seen[-1][0].startswith("step 6/6")
    assert len({data for _, data in seen}) == len(seen), "the text changed, the picture did not"
    picture = page.page.locator('.jp-OutputArea-output img[alt^="step "]')
    assert page.page.evaluate("window.most") == picture.count() == 1, "drawn below itself"
    page.picture("end")
    page.close()
