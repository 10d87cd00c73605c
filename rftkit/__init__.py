"""rftkit: learn and run Reinforcement Fine-Tuning. See README.md, notebooks/ and docs/api.md."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# The face: each name with the file that defines it, loaded when it is first used.
_HOMES = {
    "Doctor": "training.callback",
    "Grader": "graders.grader",
    "RunConfig": "training.config",
    "Sample": "records",
    "SamplingConfig": "records",
    "Task": "task",
    "UserError": "files",
    "attack": "attacks",
    "bootstrap": "evaluation",
    "check_file": "check",
    "check_rows": "check",
    "dataset": "files",
    "evaluate": "evaluation",
    "examine": "doctor",
    "export": "exporting",
    "grader": "graders.grader",
    "load_policy": "policy",
    "load_run": "training.run",
    "load_task": "task",
    "measure_signal": "signal.verdict",
    "paired_difference": "evaluation",
    "plan": "training.run",
    "preset": "graders.presets",
    "read_rows": "rows",
    "regrade": "training.report",
    "reward_function": "graders.rewards",
    "split_by_group": "rows",
    "train": "training.run",
    "write_rows": "rows",
}
_MODULES = ("doctor", "environment", "loop")
__all__ = [*_HOMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
