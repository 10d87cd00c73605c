"""Imports run downward only: each part of rftkit imports from the parts named before it.

Read from the syntax tree, so an import inside a function counts as one at the top.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The order of the whole package: a part is a module or a folder of rftkit/.
ORDER = (
    "environment console data sandbox graders task genes embedded policy evaluation signal "
    "training doctor job distill plots dashboard widgets checks demo cli"
).split()

MODULES = sorted((ROOT / "rftkit").rglob("*.py"))


def module_name(path: Path, root: Path) -> str:
    """rftkit/data/rows.py -> rftkit.data.rows; a folder's __init__.py is the folder itself."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# Commands that must live inside a part but use what is built on it: their `main` may look up later
# parts by name (importlib). The module itself, as something to import, may not.
COMMANDS = {"rftkit.embedded.gates"}


def without_main(tree: ast.Module) -> ast.Module:
    """The module without its function `main`: what is left when it is imported, not run."""
    kept = [n for n in tree.body if not (isinstance(n, ast.FunctionDef) and n.name == "main")]
    return ast.Module(body=kept, type_ignores=[])


def imported_names(tree: ast.AST, module: str, is_package: bool) -> list[tuple[int, str]]:
    """(line, full name) of everything that is imported, wherever in the file."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # relative: from .rows import x
                up = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join(up + ([node.module] if node.module else []))
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func
            name = getattr(function, "attr", getattr(function, "id", ""))
            if name in ("import_module", "__import__"):
                found.append((node.lineno, str(node.args[0].value)))
    return found


def order_faults(path: Path, root: Path = ROOT) -> list[str]:
    """Every import of `path` that breaks the order, one line each."""
    module = module_name(path, root)
    place = path.relative_to(root)
    part = module.split(".")[1] if "." in module else None
    if part is not None and part not in ORDER:
        return [f"{place}: {part} is no part of the package's order: add it to ORDER, or move it"]
    faults = []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if module in COMMANDS:
        tree = without_main(tree)
    for line, name in imported_names(tree, module, path.name == "__init__.py"):
        pieces = name.split(".")
        if pieces[0] != "rftkit" or len(pieces) == 1:
            continue
        target = pieces[1]
        if target not in ORDER:
            if (root / "rftkit" / target).is_dir() or (root / "rftkit" / f"{target}.py").is_file():
                faults.append(f"{place}:{line}: imports {name}, which is not in ORDER")
            continue  # a name of rftkit/__init__.py, such as __version__
        if part is None:
            faults.append(f"{place}:{line}: imports {name}, but every part loads this file first")
        elif ORDER.index(target) > ORDER.index(part):
            faults.append(f"{place}:{line}: {part} imports {name}, which comes later in the order")
    return faults


@pytest.mark.parametrize("path", MODULES, ids=lambda p: module_name(p, ROOT))
def test_a_module_imports_upward(path):
    assert order_faults(path) == []


def test_the_package_is_not_where_this_test_looks():
    assert {"rftkit.cli", "rftkit.data.records", "rftkit.embedded"} <= {
        module_name(path, ROOT) for path in MODULES
    }


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("data/rows.py", "from rftkit.graders import Grader", "data imports rftkit.graders"),
        ("data/rows.py", "import rftkit.cli", "data imports rftkit.cli"),
        ("data/rows.py", "from rftkit import policy", "data imports rftkit.policy"),
        ("data/rows.py", "def f():\n    from rftkit.task import Task", ":2: data imports"),
        ("data/rows.py", "from ..task import Task", "data imports rftkit.task"),
        ("data/__init__.py", "from ..task import Task", "data imports rftkit.task"),
        ("data/rows.py", "from .. import task", "data imports rftkit.task"),
        ("data/rows.py", "import importlib\nimportlib.import_module('rftkit.cli')", ":2: data"),
        ("data/rows.py", "if 1:\n    try:\n        import rftkit.demo\n    except E: pass", ":3:"),
        ("embedded/gates.py", "from rftkit.policy import load_policy", "embedded imports"),
        ("embedded/pretrain.py", "from rftkit.training import train", "embedded imports"),
        ("__init__.py", "from rftkit.data import Sample", "every part loads this file first"),
        ("extras.py", "", "no part of the package's order"),
        ("cli.py", "from rftkit.extras import x", "not in ORDER"),
    ],
)
def test_a_broken_order_is_not_noticed(tmp_path, file, source, expected):
    for name in (file, "extras.py"):
        (tmp_path / "rftkit" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "rftkit" / name).write_text("")
    path = tmp_path / "rftkit" / file
    path.write_text(source)
    faults = order_faults(path, tmp_path)
    assert len(faults) == 1 and expected in faults[0]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("cli.py", "from rftkit import __version__\nfrom rftkit.data import rows"),
        ("data/rows.py", "from rftkit.data.errors import UserError\nfrom .files import dataset"),
        ("data/__init__.py", "from .files import dataset\nfrom . import rows\nimport datasets"),
        ("training.py", "import trl\ndef f():\n    from rftkit.policy import decode"),
    ],
)
def test_a_good_order_is_refused(tmp_path, file, source):
    path = tmp_path / "rftkit" / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert order_faults(path, tmp_path) == []
