"""Notebooks in a real JupyterLab and the system's Chromium (`make test-browser`, `make prove`).

Every wait is for a condition, with a limit that a busy machine keeps. Screenshots stay in
runs/browser/: look at them.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from project_files import ROOT

try:
    from playwright.sync_api import expect, sync_playwright
except ImportError:
    expect = None

CHROMIUM = os.environ.get("RFTKIT_CHROMIUM") or shutil.which("chromium") or shutil.which("chrome")
LACKING = "needs Chromium (Debian: apt-get install chromium) and pip install -e .[browser]"
pytestmark = [
    pytest.mark.prove,
    pytest.mark.browser,
    pytest.mark.skipif(expect is None or CHROMIUM is None, reason=LACKING),
]
START_SECONDS, WIDGET_SECONDS, CELLS_SECONDS = 180, 120, 1800
ERROR = '.jp-Notebook [data-mime-type="application/vnd.jupyter.error"]'

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


@contextlib.contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """JupyterLab on `folder`, with settings of its own and this checkout's rftkit; -> its address.
    It listens on this machine alone, therefore without a token."""
    own = folder.parent / "jupyter"
    quiet = own / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    quiet.mkdir(parents=True)
    settings = {"fetchNews": "false", "checkForUpdates": False}
    (quiet / "notification.jupyterlab-settings").write_text(json.dumps(settings))
    folders = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RFTKIT_PROFILE": "smoke"}
    environment |= dict.fromkeys(folders, str(own))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--no-browser", "--allow-root", "--IdentityProvider.token="]
    command += ["--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder}"]
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
    with open(own / "server.log", "w") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            while not answers(f"{address}/api/status"):
                assert server.poll() is None, (own / "server.log").read_text()[-3000:]
                assert time.monotonic() < end, "JupyterLab did not start"
                time.sleep(0.2)
            yield address
        finally:
            server.terminate()  # it ends its kernels first
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(60)
            server.kill()


def answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as reply:
        return reply.status == 200
    return False


class NotebookPage:
    """One notebook in its own window of JupyterLab, driven as a person does: menus, keys, mouse."""

    def __init__(self, browser, address: str, notebook: Path):
        self.name = notebook.stem
        cells = nbformat.read(notebook, as_version=4).cells
        self.code_cells = sum(cell.cell_type == "code" for cell in cells)
        self.errors: list[str] = []
        self.page = browser.new_page(viewport={"width": 1400, "height": 1300})
        self.page.set_default_timeout(WIDGET_SECONDS * 1000)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(f"{address}/lab/tree/{notebook.name}?reset")
        # Run All before the kernel is there opens a question; the status bar knows when it is.
        self.page.locator("#jp-main-statusbar").get_by_text("(ipykernel) | Idle").wait_for()

    def menu(self, menu: str, entry: str) -> None:
        self.page.get_by_role("menuitem", name=menu, exact=True).click()
        self.page.get_by_role("menuitem", name=entry, exact=True).click()

    def run_all(self) -> None:
        """Run all cells and wait until each has a number. The cell that failed is named."""
        self.menu("Run", "Run All Cells")
        self.page.wait_for_function(
            f"""() => {{
            const prompts = [...document.querySelectorAll('.jp-Notebook .jp-InputPrompt')];
            const counted = prompts.filter(prompt => /\\[\\d+\\]/.test(prompt.textContent));
            return document.querySelector(`{ERROR}`) || counted.length === {self.code_cells};
            }}""",
            timeout=CELLS_SECONDS * 1000,
            polling=500,
        )
        problems = self.page.locator(ERROR)
        assert not problems.count(), f"{self.name}: {problems.first.inner_text()[-2000:]}"

    def picture(self, name: str, part=None) -> None:
        """A screenshot of the window, or of a part that is scrolled to first."""
        if part:
            part.scroll_into_view_if_needed()
        path = ROOT / "runs" / "browser" / f"{self.name}-{name}.png"
        (part or self.page).screenshot(path=path)

    def close(self) -> None:
        """With its kernel, whose memory the next notebook may need."""
        self.picture("end")
        self.menu("Kernel", "Shut Down Kernel")
        self.page.locator("#jp-main-statusbar").get_by_text("No Kernel").wait_for()
        self.page.close()
        assert self.errors == []


@pytest.fixture(scope="module")
def open_notebook(tmp_path_factory):
    """open_notebook("02") -> NotebookPage of a copy without outputs."""
    folder = tmp_path_factory.mktemp("browser") / "notebooks"
    folder.mkdir()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        notebook = nbformat.read(path, 4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, folder / path.name)
    expect.set_options(timeout=WIDGET_SECONDS * 1000)
    with jupyterlab(folder) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, timeout=120_000)
        yield lambda start: NotebookPage(browser, address, next(folder.glob(f"{start}*.ipynb")))
        browser.close()


def test_typed_answer_slider_and_row_change_the_grade_in_the_grader_lab(open_notebook):
    page = open_notebook("02")
    page.run_all()
    lab = page.page.locator(".jp-CodeCell", has_text="grader_lab(task").locator(".jp-OutputArea")
    shown, typed, editor = lab.locator("pre"), *lab.locator("textarea").all()
    expect(shown).to_contain_text("reward      1.00")
    page.picture("1-lab", lab)
    right = json.loads(typed.input_value())["genes"][0]

    typed.fill(json.dumps({"genes": ["A", right]}))
    typed.blur()
    expect(shown).to_contain_text("reward      0.73")

    lab.locator("select").nth(2).select_option(label="… * second")
    handle = lab.locator(".noUi-handle")
    expect(handle).to_have_attribute("aria-valuenow", re.compile(r"0\.7"))
    handle.focus()
    for _ in range(10):
        handle.press("ArrowLeft")
    expect(handle).to_have_attribute("aria-valuenow", re.compile(r"0\.2"))
    expect(shown).to_contain_text("reward      0.28")
    assert "0.2 * second" in editor.input_value()
    page.picture("2-slider-moved", lab)

    lab.locator("select").nth(0).select_option(index=1)
    expect(shown).to_contain_text("reward      1.00")
    assert json.loads(typed.input_value())["genes"][0] != right
    editor.fill("{")
    editor.blur()
    expect(shown).to_contain_text("no grade")
    page.close()


@pytest.mark.parametrize(("start", "dashboards"), [("03", 0), ("05", 1)])
def test_a_notebook_runs_and_draws_and_redraws_its_dashboard_in_place(
    open_notebook, start, dashboards
):
    page = open_notebook(start)
    page.page.evaluate(WATCH)
    page.run_all()
    drawn = page.page.locator(".jp-Notebook .jp-OutputArea-output img")
    sizes = drawn.evaluate_all("pictures => pictures.map(p => [p.naturalWidth, p.alt])")
    assert sizes and all(width > 100 for width, _ in sizes)
    assert sum(alt.startswith("step ") for _, alt in sizes) == dashboards
    assert page.page.evaluate("window.most") == dashboards, "drawn below itself"
    if dashboards:
        seen = page.page.evaluate("window.seen")
        assert re.match(r"step [1-5]/6, 0:\d\d:\d\d left", seen[0][0]), seen
        assert seen[-1][0].startswith("step 6/6")
        pictures = {text.partition(",")[0]: data for text, data in seen}  # the last of each step
        assert len({*pictures.values()}) == len(pictures) >= 2, "the text changed, not the picture"
    page.close()
