"""Recorded numbers in 06_evaluate: nbval compares what is drawn from them with what is committed.

In lax mode nbval compares the cells with the tag `nbval-check-output` and no others. Which cells
must carry it is read from the syntax tree: those that use the record, or a name made from it.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

from notebook_rules import NOTEBOOKS, Notebook, python_of

TAG, RECORD = "nbval-check-output", "recorded"


@dataclass
class Cell:
    """A code cell: the names that it takes from earlier cells, and those that it sets."""

    id: str
    compared: bool
    takes: set[str]
    sets: set[str]
    outputs: list


def code_cells() -> list[Cell]:
    [path] = [path for path in NOTEBOOKS if path.stem == "06_evaluate"]
    found = []
    for _, cell in Notebook.read(path).cells("code"):
        tree = ast.parse(python_of(cell))
        local = {
            name
            for node in ast.walk(tree)
            if isinstance(node, ast.GeneratorExp | ast.ListComp | ast.SetComp | ast.DictComp)
            for made in node.generators
            for name in names(made.target, ast.Store)
        }
        local |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        functions = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
        sets = (names(tree, ast.Store) - local) | functions
        takes = names(tree, ast.Load) - sets - local
        compared = TAG in cell["metadata"].get("tags", [])
        found.append(Cell(cell["id"], compared, takes, sets, cell["outputs"]))
    return found


def names(tree: ast.AST, context: type) -> set[str]:
    found = [n for n in ast.walk(tree) if isinstance(n, ast.Name)]
    return {n.id for n in found if isinstance(n.ctx, context)}


def test_a_recorded_number_is_not_compared():
    from_record, drawn = set(), []
    for cell in code_cells():
        if RECORD in cell.sets or cell.takes & from_record:
            drawn.append(cell)
            from_record |= cell.sets
        else:
            from_record -= cell.sets
    assert [cell.id for cell in drawn if not cell.compared] == []
    assert sum(bool(cell.outputs) for cell in drawn) >= 6, "nothing there to compare with"


def test_a_number_that_changes_from_run_to_run_is_compared():
    """A compared cell takes the record and what was made of it, and nothing that was measured."""
    live: set[str] = set()
    for cell in code_cells():
        if cell.compared:
            assert not cell.takes & live, f"{cell.id} takes {sorted(cell.takes & live)}"
            live -= cell.sets
        elif cell.id not in ("setup", "interval"):
            live |= cell.sets
