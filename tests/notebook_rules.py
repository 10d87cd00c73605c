"""What style asks of a notebook, as functions from a notebook to a list of faults.

Each rule is one function `(Notebook) -> list[str]`; an empty list is a good notebook.
`tests/test_notebooks_static.py` runs them over notebooks/, and each over a broken one.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from project_files import ROOT, badge_target, canonical, foreign_addresses, pins

LONGEST_CELL = 30  # lines
LONGEST_LINE = 76  # characters
LARGEST_FILE = 200_000  # bytes

PRIVATE = {
    "an absolute path": r"(?<![\w.~-])/(?:work|root|home|Users|tmp|mnt|private|opt)/[\w.]",
    "a Windows path": r"\b[A-Z]:\\\\?(?:Users|Windows)\b",
    "a token": r"\bhf_[A-Za-z0-9]{30,}|\bsk-[A-Za-z0-9_-]{20,}|\bgh[pousr]_[A-Za-z0-9]{30,}",
    "a package index": r"pypi\.org|pythonhosted\.org|--(?:extra-)?index-url",
}


@dataclass
class Notebook:
    """A notebook as read: its path, its raw text, its JSON."""

    path: Path
    text: str
    content: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Notebook:
        text = path.read_text(encoding="utf-8")
        return cls(path, text, json.loads(text))

    def cells(self, kind: str) -> list[tuple[int, dict[str, Any]]]:
        """(number from 1, cell) of every cell of one kind."""
        every = enumerate(self.content["cells"], start=1)
        return [(number, cell) for number, cell in every if cell["cell_type"] == kind]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def python_of(cell: dict[str, Any]) -> str:
    """A code cell's Python: lines of IPython's own (%magic, !command, help?) become blank."""
    lines = source(cell).splitlines()
    if lines and lines[0].startswith("%%"):
        return ""
    ours = [not re.match(r"\s*[%!]", line) and not line.rstrip().endswith("?") for line in lines]
    blank = [re.match(r"\s*", line).group() + "pass" for line in lines]
    return "\n".join(line if keep else nothing for line, keep, nothing in zip(lines, ours, blank))


# --- the rules ---------------------------------------------------------------------------------


def not_valid(notebook: Notebook) -> list[str]:
    ids = [cell.get("id") for cell in notebook.content["cells"]]
    if None in ids or len(set(ids)) < len(ids):
        return ["cells without an id, or two with the same"]
    try:
        nbformat.validate(nbformat.from_dict(notebook.content))
    except nbformat.ValidationError as error:
        return [str(error).splitlines()[0]]
    return []


def not_run_in_order(notebook: Notebook) -> list[str]:
    counts = [cell["execution_count"] for _, cell in notebook.cells("code")]
    if counts != list(range(1, len(counts) + 1)):
        return [f"execution counts {counts}, expected 1..{len(counts)}: `make notebooks`"]
    return []


def badge_elsewhere(notebook: Notebook) -> list[str]:
    expected = badge_target(notebook.path.name)
    head = source(notebook.content["cells"][0]) if notebook.content["cells"] else ""
    faults = [] if expected in head else [f"first cell: no Colab badge to {expected}"]
    for link in re.findall(
        r"https://colab\.research\.google\.com/github/[^\s)\"\\>]+", notebook.text
    ):
        if not re.fullmatch(re.escape(expected) + r"(?:#\S*)?", link):
            faults.append(f"a badge to {link}, expected {expected}")
    return faults + [f"a link to {link}" for link in foreign_addresses(notebook.text)]


def dead_links(notebook: Notebook) -> list[str]:
    faults = []
    for number, cell in notebook.cells("markdown"):
        text = re.sub(r"```.*?```", "", source(cell), flags=re.DOTALL)
        targets = re.findall(r"\]\(<?([^)\s>]+)", text)
        targets += re.findall(r"(?:src|href)=[\"']([^\"']+)", text)
        for target in targets:
            if re.match(r"[a-z]+:|#", target):
                continue  # another site, or a heading of this notebook
            if not (notebook.path.parent / target.split("#")[0]).exists():
                faults.append(f"cell {number}: a link to {target}, which is not there")
    return faults


def private_things(notebook: Notebook) -> list[str]:
    readable = notebook.text.replace("\\n", "\n").replace('\\"', '"')
    readable = re.sub(r'"image/\w+": "[^"]*"', "", readable)
    return [
        f"{what}: {match.group()!r}"
        for what, pattern in PRIVATE.items()
        for match in re.finditer(pattern, readable)
    ]


def widget_state(notebook: Notebook) -> list[str]:
    return ["metadata.widgets"] if "widgets" in notebook.content["metadata"] else []


def other_pins(notebook: Notebook) -> list[str]:
    pinned, faults = pins(), []
    for number, cell in notebook.cells("code"):
        for name, version in re.findall(r"\b([A-Za-z][\w.-]*)==(\d[\w.+]*)", source(cell)):
            expected = pinned.get(canonical(name))
            if version != expected:
                faults.append(f"cell {number}: {name}=={version}, constraints.txt: {expected}")
    return faults


def long_cells(notebook: Notebook) -> list[str]:
    faults = []
    for number, cell in notebook.cells("code"):
        lines = source(cell).splitlines()
        if len(lines) > LONGEST_CELL:
            faults.append(f"cell {number}: {len(lines)} lines, at most {LONGEST_CELL}")
        faults += [
            f"cell {number}: {len(line)} characters, at most {LONGEST_LINE}: {line[:40]}…"
            for line in lines
            if len(line) > LONGEST_LINE
        ]
    return faults


def too_large(notebook: Notebook) -> list[str]:
    size = len(notebook.text.encode())
    return [f"{size:,} bytes, at most {LARGEST_FILE:,}"] if size > LARGEST_FILE else []


def missing_names(notebook: Notebook) -> list[str]:
    """Every `rftkit.…` name that a cell imports or reaches must exist in the package."""
    modules: dict[str, types.ModuleType] = {}  # the notebook's name for it -> the module
    faults = []
    for number, cell in notebook.cells("code"):
        try:
            tree = ast.parse(python_of(cell))
        except SyntaxError as error:
            faults.append(f"cell {number}: {error.msg}, line {error.lineno}")
            continue
        faults += [f"cell {number}: {fault}" for fault in faulty_imports(tree, modules)]
        faults += [f"cell {number}: {fault}" for fault in faulty_attributes(tree, modules)]
    return faults


def faulty_imports(tree: ast.AST, modules: dict[str, types.ModuleType]) -> list[str]:
    """Import what the tree imports from rftkit; note under which name each module is known."""
    faults = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] != "rftkit":
                    continue
                module = find(alias.name)
                if module is None:
                    faults.append(f"no module {alias.name}")
                elif alias.asname:
                    modules[alias.asname] = module
                else:
                    modules["rftkit"] = importlib.import_module("rftkit")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rftkit":
            module = find(node.module)
            if module is None:
                faults.append(f"no module {node.module}")
                continue
            for alias in node.names:
                found = getattr(module, alias.name, None) or find(f"{node.module}.{alias.name}")
                if found is None and not hasattr(module, alias.name):
                    faults.append(f"no {alias.name} in {node.module}")
                elif isinstance(found, types.ModuleType):
                    modules[alias.asname or alias.name] = found
    return faults


def faulty_attributes(tree: ast.AST, modules: dict[str, types.ModuleType]) -> list[str]:
    """module.name, module.part.name: each step must exist for as long as it is a module."""
    faults = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        names, root = [node.attr], node.value
        while isinstance(root, ast.Attribute):
            names.insert(0, root.attr)
            root = root.value
        if not isinstance(root, ast.Name) or root.id not in modules:
            continue
        here: Any = modules[root.id]
        for name in names:
            if not isinstance(here, types.ModuleType):
                break
            if not hasattr(here, name) and find(f"{here.__name__}.{name}") is None:
                faults.append(f"no {name} in {here.__name__}")
                break
            here = getattr(here, name)
    return faults


def find(module: str) -> types.ModuleType | None:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(error.name + ".")):
            return None
        raise


RULES = [
    not_valid,
    not_run_in_order,
    badge_elsewhere,
    dead_links,
    private_things,
    widget_state,
    other_pins,
    long_cells,
    too_large,
    missing_names,
]

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
