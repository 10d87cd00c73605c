"""For a workshop: is this laptop ready, and which exercises passed?"""

import re
import shlex
import shutil
import socket
from importlib import import_module
from pathlib import Path

from rftkit.environment import versions, wrong_packages
from rftkit.files import PACKAGE, UserError, fetched_folder, read_json
from rftkit.policy import load_policy
from rftkit.records import SamplingConfig
from rftkit.sandbox import runner
from rftkit.task import load_task

PASSED = re.compile(r'print\("(\w+: passed)"\)')  # how the check of an exercise ends
PORT = 8888  # the one that JupyterLab tries first
NEEDED_GB = 2  # a kernel takes 1 (with a real model 5), JupyterLab and a browser the rest


def progress(folder: Path) -> dict[str, dict[str, bool]]:
    """{notebook: {exercise: passed}} of the notebooks in a folder or in its notebooks/, as saved.

    An exercise passed if its check cell printed so when it last ran: nothing else is recorded.
    Raises UserError where there is no notebook."""
    paths = sorted(folder.glob("*.ipynb")) or sorted(folder.glob("notebooks/*.ipynb"))
    if not paths:
        raise UserError(f"{folder}: no notebook, expected *.ipynb: name the folder that has them")
    found: dict[str, dict[str, bool]] = {path.stem: {} for path in paths}
    for path in paths:
        for cell in read_json(path)["cells"]:
            printed = "".join("".join(output.get("text", "")) for output in cell.get("outputs", []))
            for line in PASSED.findall("".join(cell["source"])):
                found[path.stem][line.partition(":")[0]] = line in printed.splitlines()
    return found


def checkout_pins() -> dict[str, str]:
    """{package: version} of the checkout's constraints.txt, {} without one."""
    file = PACKAGE.parent / "constraints.txt"
    pins = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return dict(pin.split("==") for pin in pins if "==" in pin and "#" not in pin)


def ready() -> str:
    """What this laptop has for a workshop, in one line. Raises UserError with the first fault and
    what repairs it. Loads the embedded mini, which answers once."""
    if wrong := wrong_packages(checkout_pins()):
        raise UserError(f"packages: pip install {' '.join(map(shlex.quote, wrong))}")
    import psutil  # comes with JupyterLab's kernel

    for name in ("jupyterlab", "ipywidgets", "torch"):
        try:
            import_module(name)
        except (ImportError, OSError) as error:
            raise UserError(f"{name}: {error}: pip install --force-reinstall {name}") from None
    free = {"memory": psutil.virtual_memory().available, "disk": shutil.disk_usage(".").free}
    for name, number in free.items():
        if number < NEEDED_GB * 1e9:
            found = f"{number / 1e9:.1f} GB free, expected {NEEDED_GB}"
            raise UserError(f"{name}: {found}: close programs, or delete runs/")
    if strong := runner.report().strong:
        outcome = runner.python_runner()("def grade(sample, item):\n    return 1", {}, {})
        if outcome.value != 1:
            raise UserError(f"sandbox: {outcome.runtime_error or outcome.server_error}")
    task = load_task("gene_ranking")
    row = task.rows("test")[0]
    [[sample]] = load_policy("embedded:mini").sample([row["messages"]], 1, SamplingConfig(0))
    task.grade([row], [[sample]])
    if not sample.grade:
        raise UserError("embedded:mini: no list of genes: `git checkout rftkit/models datasets`")
    with socket.socket() as probe:
        taken = probe.connect_ex(("127.0.0.1", PORT)) == 0
    smollm2 = fetched_folder("smollm2").exists()
    parts = [
        f"Python {versions()['python']}, packages, tasks, mini",
        "sandbox" if strong else "no sandbox (Linux has one; 09 goes without)",
        f"port {PORT} taken (JupyterLab takes the next)" if taken else f"port {PORT} free",
        *(f"{number / 1e9:.0f} GB of {name}" for name, number in free.items()),
        "smollm2" if smollm2 else "smollm2 not fetched (`rftkit fetch smollm2`)",
    ]
    return "; ".join(parts)
