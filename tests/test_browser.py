"""Notebooks in a real JupyterLab in a real browser (`make test-browser`, part of `make prove`).

Named, like all tests here, after the failure. Screenshots stay in runs/browser/: look at them.
"""

from __future__ import annotations

import json
import re

import nbformat
import pytest
from browser_lab import NotebookPage, browser, jupyterlab, lacking, without_outputs
from nbformat.v4 import new_code_cell, new_notebook
from project_files import ROOT

pytestmark = [
    pytest.mark.prove,
    pytest.mark.browser,
    pytest.mark.skipif(lacking() != "", reason=lacking()),
]

PICTURES = ROOT / "runs" / "browser"
REWARD = re.compile(r"reward\s+([\d.]+)")

# A run of six steps whose dashboard is redrawn after each; smoke size whatever notebook 05 says.
DASHBOARD_CELL = """\
from rftkit.dashboard import TrainingDashboard
from rftkit.training import RunConfig, train

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
            window.seen.push([last.alt, last.src.length, last.src.slice(-4000)]);
    }).observe(document.body, {childList: true, subtree: true, attributes: true});
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the notebooks, their outputs taken out."""
    made = tmp_path_factory.mktemp("browser") / "notebooks"
    made.mkdir()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        without_outputs(path, made / path.name)
    dashboard = new_notebook(cells=[new_code_cell(DASHBOARD_CELL)])
    dashboard.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(dashboard, made / "dashboard.ipynb")
    return made


@pytest.fixture(scope="module")
def open_notebook(folder):
    """open_notebook("02") -> NotebookPage; closed, with lab and browser, at the end."""
    with jupyterlab(folder) as address, browser() as started:

        def opened(start: str) -> NotebookPage:
            (path,) = folder.glob(f"{start}*.ipynb")
            return NotebookPage(started, address, path, PICTURES)

        yield opened


def reward_shown(lab) -> float:
    return float(REWARD.search(lab.locator("pre").inner_text())[1])


def test_the_grader_lab_is_drawn_and_dead(open_notebook):
    """All cells of 02; then the slider, the typed answer and the chosen row change the grade."""
    page = open_notebook("02")
    page.run_all()
    page.wait_until_run()
    lab = page.cell("grader_lab(task").locator(".jp-OutputArea")
    lab.locator("pre").wait_for()
    lab.scroll_into_view_if_needed()
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

    track = lab.locator(".noUi-target").bounding_box()
    middle = track["y"] + track["height"] / 2
    grip = handle.bounding_box()
    page.page.mouse.move(grip["x"] + grip["width"] / 2, grip["y"] + grip["height"] / 2)
    page.page.mouse.down()
    page.page.mouse.move(track["x"] + track["width"], middle, steps=8)
    page.page.mouse.up()
    page.expect_text(lab.locator("pre"), "reward      1.00")
    assert "1 * second" in editor.input_value()

    before = lab.locator("pre").inner_text()
    lab.locator("select").nth(0).select_option(index=1)
    page.expect_other_text(lab.locator("pre"), before)
    assert json.loads(typed.input_value())["genes"][0] != right and reward_shown(lab) == 1.0
    editor.fill("{")
    editor.blur()
    page.expect_text(lab.locator("pre"), "no grade: grader: not JSON")
    page.picture("3-broken-grader", lab)
    assert page.errors == []
    page.close()


@pytest.mark.parametrize("start", ["03", "05"])
def test_a_notebook_stops_or_draws_nothing_in_a_browser(open_notebook, start):
    page = open_notebook(start)
    page.run_all()
    page.wait_until_run()
    drawn = page.page.locator(".jp-Notebook .jp-OutputArea-output img")
    sizes = drawn.evaluate_all("pictures => pictures.map(p => [p.naturalWidth, p.alt])")
    assert sizes and all(width > 100 for width, _ in sizes)
    for number in range(drawn.count()):
        page.picture(f"figure-{number + 1}", drawn.nth(number))
    boards = [alt for _, alt in sizes if alt.startswith("step ")]
    assert len(boards) == {"03": 0, "05": 1}[start], f"the live views that stand there: {boards}"
    page.picture("end")
    assert page.errors == []
    page.close()


def test_the_training_dashboard_is_not_redrawn_in_place(open_notebook):
    page = open_notebook("dashboard")
    page.page.evaluate(WATCH)
    page.run_all()
    picture = page.page.locator('.jp-OutputArea-output img[alt^="step "]')
    picture.wait_for(timeout=600_000)
    page.picture("1-running")
    page.wait_until_run()
    seen = page.page.evaluate("window.seen")
    assert len(seen) >= 2, f"drawn once: {seen}"
    assert re.match(r"step [1-5]/6, \d+:\d\d left", seen[0][0])
    assert seen[-1][0].startswith("step 6/6") and "held-out" in seen[-1][0]
    assert len({data for _, _, data in seen}) == len(seen), "the text changed, the picture did not"
    assert page.page.evaluate("window.most") == picture.count() == 1, "drawn below itself"
    assert picture.evaluate("p => p.complete && p.naturalWidth") >= 700
    drawn = page.page.locator('img[alt^="step "]')
    output = page.page.locator(".jp-OutputArea-output").filter(has=drawn)
    assert "best of the newest answers, grade" in output.inner_text()
    page.picture("2-end")
    assert page.errors == []
    page.close()
