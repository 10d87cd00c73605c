"""Systems side by side on the same rows: what `rftkit evaluate` does.

    report = compare_models("test.jsonl", ["embedded:mini", "runs/first"], "grader.json", "out")

inputs.py   what is evaluated: rows, task, grader, metrics of your own; every mistake said early
run.py      every model on the same rows, prompts and seeds
report.py   report.json's record, report.md, table.png, samples.jsonl
command_line.py  the command
"""

import importlib

_HOMES = {
    "Inputs": "inputs",
    "load_metric": "inputs",
    "read_inputs": "inputs",
    "compare_models": "run",
    "cell": "report",
    "comparison_table": "report",
    "comparison_text": "report",
    "paired_table": "report",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    """Load a name's module when it is first asked for: the command line starts without numpy."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
