"""Where the kit's own data lies: datasets/ of a checkout, or the copy inside the wheel.

In a checkout `datasets/` stands beside the package. In an installed wheel the same folder is
package data, `rftkit/_datasets/`. Nothing else in the package knows the difference.
"""

from __future__ import annotations

from pathlib import Path

from rftkit.data.errors import UserError


def datasets_folder() -> Path:
    """The folder that holds one folder a task, and `recorded_runs/`.

    Raises UserError where neither the wheel's copy nor a checkout's folder is there.
    """
    return _find_datasets(Path(__file__).resolve().parents[1])


def dataset(name: str) -> Path:
    """The path of one dataset (or of a file in it), for example `dataset("gene_ranking")`.

    Raises UserError that names what there is instead.
    """
    folder = datasets_folder()
    path = folder / name
    if not path.exists():
        there = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
        raise UserError(
            f"{folder}: no dataset {name!r}, expected one of {', '.join(there) or '(none)'}: "
            "correct the name, or give the path of a folder of your own"
        )
    return path


def _find_datasets(package: Path) -> Path:
    """`package` is the folder rftkit/. Look into the wheel's copy first.

    The order matters: beside an installed package stands site-packages/datasets, which is
    Hugging Face's library and not our data. Only a pyproject.toml there makes it a checkout.
    """
    in_wheel, beside = package / "_datasets", package.parent / "datasets"
    if in_wheel.is_dir():
        return in_wheel
    if beside.is_dir() and (package.parent / "pyproject.toml").is_file():
        return beside
    raise UserError(
        f"{package}: its datasets are missing, expected {in_wheel} (installed) or {beside} "
        "(checkout): install rftkit again (`pip install -c constraints.txt .` in the checkout)"
    )
