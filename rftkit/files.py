"""Where the kit's own files lie, and how small files are read and written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class UserError(ValueError):
    """Something the user can fix: the command line prints it without a traceback.

    Write it as `place: what is there, expected what: what to do next`.
    """

    exit_code = 1


def datasets_folder() -> Path:
    """The folder that holds one folder a task, and `recorded_runs/`.

    Raises UserError where neither the wheel's copy nor a checkout's folder is there.
    """
    return _find_datasets(Path(__file__).resolve().parent)


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


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text with "\\n" line ends; the old file stays whole until the new one is."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".writing")
    with open(beside, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def write_json(path: str | Path, record: Any) -> None:
    """One JSON object, indented by two; NaN and infinity are refused (they are not JSON)."""
    write_text(path, json.dumps(record, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


MODELS = Path(__file__).parent / "models"


def embedded_model(name: str) -> Path:
    """The folder of an embedded model: "mini" or "large"."""
    folder = MODELS / name
    if not (folder / "config.json").exists():
        here = sorted(p.name for p in MODELS.glob("*") if (p / "config.json").exists())
        raise UserError(
            f'model: "embedded:{name}", expected one of {", ".join(here) or "none (not built)"}: '
            "see rftkit/embedded/models"
        )
    return folder


def model_gates(names: Iterable[str] = ("mini", "large")) -> dict[str, Any]:
    """The gates that each embedded base passed, from the record beside its weights."""
    found = {}
    for name in names:
        path = embedded_model(name) / "gates.json"
        if path.exists():
            found[name] = {
                gate["name"]: {k: gate[k] for k in ("value", "expected", "passed")}
                for gate in json.loads(path.read_text())["gates"]
            }
    return found


def read_json(path: str | Path) -> Any:
    """The content of a JSON file. Raises UserError with place and cause where it is none."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): correct the path") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}: save it as UTF-8") from None
    except json.JSONDecodeError as error:
        place = f"{path}:{error.lineno}:{error.colno}"
        raise UserError(f"{place}: not JSON ({error.msg}): correct it") from None
