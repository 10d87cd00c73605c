"""A real JupyterLab and a real Chromium, for tests/test_browser.py: started, driven, ended.

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
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
from project_files import ROOT

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
START_SECONDS = 180  # JupyterLab on a busy machine
CELL_SECONDS = 1800  # all cells of a notebook in the smoke profile, on a busy machine
WIDGET_SECONDS = 120  # a widget's answer from a busy kernel
ERROR = '.jp-Notebook [data-mime-type="application/vnd.jupyter.error"]'
WINDOW = {"width": 1400, "height": 1300}


def chromium() -> str | None:
    """The path of the system's Chromium; RFTKIT_CHROMIUM names another one."""
    named = os.environ.get("RFTKIT_CHROMIUM")
    return named or next(filter(None, map(shutil.which, BROWSERS)), None)


def lacking() -> str:
    """What this machine lacks for these tests and how to get it, or ""."""
    wanted = []
    if chromium() is None:
        wanted.append("a chromium (Debian: apt-get install chromium)")
    if importlib.util.find_spec("playwright") is None:
        wanted.append('playwright (pip install -c constraints.txt -e ".[browser]")')
    if not Path("/proc/self/cwd").exists():
        wanted.append("Linux (/proc, to be sure that every process is ended)")
    return f"browser: this machine lacks {', '.join(wanted)}" if wanted else ""


# --- JupyterLab --------------------------------------------------------------------------------


def until(condition: Callable[[], object], seconds: float, what: str) -> object:
    """The first true value of condition(); TimeoutError says what did not come."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.1)
    return value


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


def processes_in(folder: Path) -> list[int]:
    """Whoever works in that folder: the server, its kernels, what those started."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (place / "cwd").resolve().is_relative_to(folder):
                found.append(int(place.name))
    return [pid for pid in found if pid != os.getpid()]


def end_all_in(folder: Path) -> list[int]:
    """Kill what is left there by its ids; -> those that did not go within ten seconds."""
    for pid in processes_in(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        until(lambda: not processes_in(folder), 10, "the end of the kernels")
    return processes_in(folder)


@contextlib.contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """JupyterLab on `folder`, with settings of its own; -> its address.

    It listens on this machine alone, therefore without a token. Kernels run the smoke profile and
    this checkout's rftkit. At the end the server, every kernel and their children are gone.
    """
    own = folder.parent / "jupyter"
    quiet = own / "settings" / "@jupyterlab" / "apputils-extension"
    quiet.mkdir(parents=True)
    settings = {"fetchNews": "false", "checkForUpdates": False}
    (quiet / "notification.jupyterlab-settings").write_text(json.dumps(settings))
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "IPYTHONDIR": str(own / "ipython"),
        "JUPYTERLAB_SETTINGS_DIR": str(own / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(own / "workspaces"),
        "JUPYTER_CONFIG_DIR": str(own / "config"),
        "JUPYTER_DATA_DIR": str(own / "data"),
        "JUPYTER_RUNTIME_DIR": str(own / "runtime"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "RFTKIT_PROFILE": "smoke",
    }
    port = free_port()
    words = ["--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0", "--no-browser"]
    words += ["--allow-root", "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}"]
    command = [sys.executable, "-m", "jupyterlab", *words]
    if setpriv := shutil.which("setpriv"):  # it ends too if this test is killed
        command = [setpriv, "--pdeathsig", "TERM", *command]
    with open(own / "server.log", "w") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        address = f"http://127.0.0.1:{port}"
        try:
            ready = lambda: server.poll() is not None or answers(f"{address}/api/status")  # noqa: E731
            until(ready, START_SECONDS, "JupyterLab's start")
            if server.poll() is not None:
                raise RuntimeError(f"JupyterLab ended: {(own / 'server.log').read_text()[-3000:]}")
            yield address
        finally:
            server.terminate()  # it ends its kernels first
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(60)
            server.kill()
            server.wait()
            left = end_all_in(folder)
    assert left == [], f"processes that JupyterLab started are still there: {left}"


def without_outputs(source: Path, target: Path) -> Path:
    """A copy of a notebook in which everything that is seen was made in the browser."""
    notebook = nbformat.read(source, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, target)
    return target


# --- a page ------------------------------------------------------------------------------------


@contextlib.contextmanager
def browser() -> Iterator[object]:
    """A headless Chromium; closed whatever happens."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), timeout=120_000)
        try:
            yield started
        finally:
            started.close()


class NotebookPage:
    """One notebook in its own window of JupyterLab, driven as a person does: menus, keys, mouse."""

    def __init__(self, browser: object, address: str, notebook: Path, pictures: Path):
        self.name, self.pictures = notebook.name, pictures
        cells = nbformat.read(notebook, as_version=4).cells
        self.code_cells = sum(cell.cell_type == "code" for cell in cells)
        self.errors: list[str] = []
        self.page = browser.new_page(viewport=WINDOW)
        self.page.set_default_timeout(120_000)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(f"{address}/lab/tree/{self.name}?reset")
        self.cells = self.page.locator(".jp-Notebook .jp-CodeCell")
        self.cells.first.wait_for()
        # Run All before the kernel is there opens a question. The notebook's own indicator says
        # idle already then; the status bar says "No Kernel | Initializing".
        self.page.locator("#jp-main-statusbar").get_by_text("(ipykernel) | Idle").wait_for()

    def menu(self, menu: str, entry: str) -> None:
        self.page.get_by_role("menuitem", name=menu, exact=True).click()
        self.page.get_by_role("menuitem", name=entry, exact=True).click()

    def run_all(self) -> None:
        self.menu("Run", "Run All Cells")

    def wait_until_run(self) -> None:
        """Until every code cell has a number. The cell that failed is named."""
        done = f"""() => {{
            const prompts = [...document.querySelectorAll('.jp-Notebook .jp-InputPrompt')];
            const counted = prompts.filter(prompt => /\\[\\d+\\]/.test(prompt.textContent));
            return document.querySelector(`{ERROR}`) || counted.length === {self.code_cells};
        }}"""
        self.page.wait_for_function(done, timeout=CELL_SECONDS * 1000, polling=500)
        problems = self.page.locator(ERROR)
        if problems.count():
            self.picture("failed", problems.first)
            raise AssertionError(f"{self.name}: {problems.first.inner_text()[-2000:]}")

    def cell(self, text: str) -> object:
        """The code cell whose source holds that text."""
        found = self.cells.filter(has=self.page.locator(".jp-InputArea", has_text=text))
        assert found.count() == 1, f"{self.name}: {found.count()} cells with {text!r}"
        return found

    def expect_text(self, place: object, text: str) -> None:
        """Wait until that text stands there."""
        from playwright.sync_api import expect

        expect(place).to_contain_text(text, timeout=WIDGET_SECONDS * 1000)

    def expect_other_text(self, place: object, text: str) -> None:
        from playwright.sync_api import expect

        expect(place).not_to_have_text(text, timeout=WIDGET_SECONDS * 1000)

    def expect_attribute(self, place: object, name: str, start: str) -> None:
        """Wait until the attribute starts with that."""
        from playwright.sync_api import expect

        begin = re.compile("^" + re.escape(start))
        expect(place).to_have_attribute(name, begin, timeout=WIDGET_SECONDS * 1000)

    def picture(self, name: str, what: object = None) -> Path:
        """A screenshot of the window, or of a part that is scrolled to first."""
        place = self.pictures / f"{Path(self.name).stem}-{name}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        if what:
            self.settle(what)
        (what or self.page).screenshot(path=place)
        return place

    def settle(self, what: object) -> None:
        """Scroll there and wait until it stays: cells above get their true height only now."""
        boxes: list[dict] = []

        def stays() -> bool:
            what.scroll_into_view_if_needed()
            boxes.append(what.bounding_box())
            return len(boxes) > 5 and all(box == boxes[-1] for box in boxes[-5:])

        until(stays, WIDGET_SECONDS, f"{self.name}: a part that stays where it is")

    def close(self) -> None:
        """With its kernel, whose memory the next notebook may need."""
        self.menu("Kernel", "Shut Down Kernel")
        self.page.locator("#jp-main-statusbar").get_by_text("No Kernel").wait_for()
        self.page.close()
