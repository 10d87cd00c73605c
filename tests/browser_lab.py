"""A real JupyterLab and a real Chromium for tests/test_browser.py.

Chromium is the system's own (Debian: the package `chromium`); Playwright is handed its path and
downloads no browser. Every wait is for a condition, with a limit that a busy machine keeps.
"""

from __future__ import annotations

import contextlib
import importlib.util
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
from project_files import ROOT

START_SECONDS = 180  # JupyterLab on a busy machine
CELL_SECONDS = 1800  # all cells of a notebook in the smoke profile
WIDGET_SECONDS = 120  # a widget's answer from a busy kernel
ERROR = '.jp-Notebook [data-mime-type="application/vnd.jupyter.error"]'


def chromium() -> str | None:
    """The path of the system's Chromium; RFTKIT_CHROMIUM names another one."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("RFTKIT_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


def lacking() -> str:
    """What this machine lacks for these tests and how to get it, or ""."""
    wanted = []
    if chromium() is None:
        wanted.append("a chromium (Debian: apt-get install chromium)")
    if importlib.util.find_spec("playwright") is None:
        wanted.append('playwright (pip install -c constraints.txt -e ".[browser]")')
    return f"browser: this machine lacks {', '.join(wanted)}" if wanted else ""


@contextlib.contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """JupyterLab on `folder`, with settings of its own and this checkout's rftkit; -> its address.

    It listens on this machine alone, therefore without a token.
    """
    own = folder.parent / "jupyter"
    quiet = own / "settings" / "@jupyterlab" / "apputils-extension"
    quiet.mkdir(parents=True)
    settings = {"fetchNews": "false", "checkForUpdates": False}
    (quiet / "notification.jupyterlab-settings").write_text(json.dumps(settings))
    folders = {"CONFIG_DIR": "config", "DATA_DIR": "data", "RUNTIME_DIR": "runtime"}
    environment = os.environ | {f"JUPYTER_{k}": str(own / v) for k, v in folders.items()}
    environment |= {
        "IPYTHONDIR": str(own / "ipython"),
        "JUPYTERLAB_SETTINGS_DIR": str(own / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(own / "workspaces"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "HF_HUB_OFFLINE": "1",
        "RFTKIT_PROFILE": "smoke",
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--ip=127.0.0.1", f"--port={port}"]
    command += [
        "--no-browser",
        "--allow-root",
        "--IdentityProvider.token=",
        "--ServerApp.port_retries=0",
    ]
    command += [f"--ServerApp.root_dir={folder}"]
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
    with open(own / "server.log", "w") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            while not is_up(f"{address}/api/status"):
                assert server.poll() is None, (own / "server.log").read_text()[-3000:]
                assert time.monotonic() < end, "JupyterLab did not start"
                time.sleep(0.2)
            yield address
        finally:
            server.terminate()  # it ends its kernels first
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(60)
            server.kill()


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


def without_outputs(source: Path, target: Path) -> None:
    """A copy of a notebook in which everything that is seen was made in the browser."""
    notebook = nbformat.read(source, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, target)


class NotebookPage:
    """One notebook in its own window of JupyterLab, driven as a person does: menus, keys, mouse."""

    def __init__(self, browser, address: str, notebook: Path, pictures: Path):
        self.name, self.pictures = notebook.name, pictures
        cells = nbformat.read(notebook, as_version=4).cells
        self.code_cells = sum(cell.cell_type == "code" for cell in cells)
        self.errors: list[str] = []
        self.page = browser.new_page(viewport={"width": 1400, "height": 1300})
        self.page.set_default_timeout(WIDGET_SECONDS * 1000)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(f"{address}/lab/tree/{self.name}?reset")
        self.cells = self.page.locator(".jp-Notebook .jp-CodeCell")
        self.cells.first.wait_for()
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
            timeout=CELL_SECONDS * 1000,
            polling=500,
        )
        problems = self.page.locator(ERROR)
        if problems.count():
            self.picture("failed", problems.first)
            raise AssertionError(f"{self.name}: {problems.first.inner_text()[-2000:]}")

    def cell(self, text: str):
        """The code cell whose source holds that text."""
        return self.cells.filter(has=self.page.locator(".jp-InputArea", has_text=text))

    def expect_text(self, place, text: str) -> None:
        from playwright.sync_api import expect

        expect(place).to_contain_text(text, timeout=WIDGET_SECONDS * 1000)

    def expect_attribute(self, place, name: str, start: str) -> None:
        from playwright.sync_api import expect

        begins = re.compile("^" + re.escape(start))
        expect(place).to_have_attribute(name, begins, timeout=WIDGET_SECONDS * 1000)

    def picture(self, name: str, part=None) -> None:
        """A screenshot of the window, or of a part that is scrolled to first."""
        self.pictures.mkdir(parents=True, exist_ok=True)
        if part:
            part.scroll_into_view_if_needed()
        (part or self.page).screenshot(path=self.pictures / f"{Path(self.name).stem}-{name}.png")

    def close(self) -> None:
        """With its kernel, whose memory the next notebook may need."""
        self.menu("Kernel", "Shut Down Kernel")
        self.page.locator("#jp-main-statusbar").get_by_text("No Kernel").wait_for()
        self.page.close()
        assert self.errors == []
