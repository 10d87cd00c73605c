"""What the tests of the project as a whole share: its files, its pins, its address."""

import re
import shutil
import subprocess
import tomllib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ADDRESS = PROJECT["project"]["urls"]["Repository"].removeprefix("https://github.com/")


@cache
def project_files() -> tuple[Path, ...]:
    """Every file that git holds or would add; in a copy without git, all that is not built."""
    asked = ["git", "ls-files", "-coz", "--exclude-standard"]
    listed = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and (ROOT / ".git").exists():
        files = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        built = r"(^|/)(\.venv|build|dist|runs|wheelhouse|\w*_cache|\S*__pycache__|\S*checkpoints)/"
        files = [p for p in ROOT.rglob("*") if not re.search(built, str(p.relative_to(ROOT)))]
    return tuple(sorted(path for path in files if path.is_file()))


def copy_project(to: Path) -> None:
    for path in project_files():
        place = to / path.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)


def canonical(name: str) -> str:
    """Package names as the registry compares them: unsloth_zoo is unsloth-zoo."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    """constraints.txt: canonical name -> version."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonical(name): version for name, version in pairs}
