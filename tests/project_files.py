"""What the tests of the project as a whole share: its files, its pins, its address."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILT = {".git", ".venv", "__pycache__", "build", "dist", "runs", "wheelhouse", "site"}
BUILT_ENDINGS = (".egg-info", "_cache", ".ipynb_checkpoints")


@cache
def project_files(root: Path = ROOT) -> tuple[Path, ...]:
    """Every file that git holds or would add; in a copy without git, all that is not built."""
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=root, capture_output=True, text=True
    )
    if listed.returncode == 0 and (root / ".git").exists():
        files = [root / name for name in listed.stdout.split("\0") if name]
    else:
        files = []
        for folder, inner, names in os.walk(root):
            inner[:] = [d for d in inner if d not in BUILT and not d.endswith(BUILT_ENDINGS)]
            files += [Path(folder) / name for name in names]
    return tuple(sorted(f for f in files if f.is_file()))


def pyproject(root: Path = ROOT) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def canonical(name: str) -> str:
    """Package names as the registry compares them: unsloth_zoo is unsloth-zoo."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(root: Path = ROOT) -> dict[str, str]:
    """constraints.txt: canonical name -> version."""
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonical(name): version for name, version in pairs}


def address(root: Path = ROOT) -> str:
    """OWNER/NAME of the repository, from its one home in pyproject.toml."""
    url = pyproject(root)["project"]["urls"]["Repository"]
    return re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+)", url).group(1)


def badge_target(notebook: str, root: Path = ROOT) -> str:
    """Where the Colab badge of notebooks/NOTEBOOK leads."""
    start = "https://colab.research.google.com/github"
    return f"{start}/{address(root)}/blob/main/notebooks/{notebook}"


def foreign_addresses(text: str, root: Path = ROOT) -> list[str]:
    """Links that open or install a notebook's repository, but not the one pyproject names.

    A link to another project's page is fine; a Colab badge, a raw file and a `git+https` install
    are this project's own, and so is anything that carries its name.
    """
    ours = address(root)
    name = ours.split("/")[1]
    found = []
    for match in re.finditer(
        r"(?P<start>colab\.research\.google\.com/github|raw\.githubusercontent\.com|"
        r"(?:git\+https://)?github\.com)/(?P<repo>[\w.-]+/[\w-]+)",
        text,
    ):
        start, repo = match["start"], match["repo"]
        own = start.startswith(("colab", "raw", "git+")) or repo.split("/")[1] == name
        if own and repo != ours:
            found.append(match.group())
    return found
