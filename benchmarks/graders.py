"""How fast graders are -> datasets/recorded_runs/graders.json.

    python benchmarks/graders.py [--json] [--grades N] [--out FILE]

string_check, rank         grades a second in this process
fuzzy_match                time of a grade / time of calling rapidfuzz bare, on about 150 characters
python, trivial or numpy   sandboxed grades a second, on all workers
warm over fresh            the trivial grade / the same with a new interpreter each
rank share of a step       time to grade 64 completions / time of one recorded step of the demo

Each is the best of five rounds: other work on the machine can only slow one down. Exit code 1: a
goal was missed; it is named.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from page_block import label
from rapidfuzz import fuzz, utils

from rftkit.files import dataset, read_json, write_json
from rftkit.graders.grader import Grader
from rftkit.graders.presets import preset
from rftkit.sandbox import runner, server
from rftkit.sandbox.isolation import Limits

RIGHT = (
    "A seizure disorder of early childhood. It begins with long seizures in fever, and later other "
    "kinds come, while the child's development slows down."
)
TEXT = (
    "An epilepsy that begins in early childhood. Fever brings on the first seizures, which are "
    "long; other kinds follow, and the child learns more slowly."
)
ITEM = {"reference_gene": "SCN1A", "answer": RIGHT}
ANSWER = '<think>fever, seizures</think>{"genes": ["KCNQ2", "SCN1A", "CDKL5", "STXBP1", "ARX"]}'
TRIVIAL = "def grade(sample, item):\n    return 1.0\n"
NUMPY = "import numpy as np\ndef grade(sample, item):\n    return float(np.mean([0.5, 1.0]))\n"
GOALS = {  # name -> (at least or at most, figure)
    "string_check_per_second": ("at least", 50_000),
    "rank_per_second": ("at least", 50_000),
    "fuzzy_match_over_bare": ("at most", 1.5),
    "python_trivial_per_second": ("at least", 800),
    "python_numpy_per_second": ("at least", 400),
    "warm_over_fresh_interpreter": ("at least", 30),
    "rank_share_of_a_step": ("at most", 0.01),
}


def speeds(actions: dict[str, Callable[[], object]], count: int) -> dict[str, float]:
    """Calls a second in each action's fastest round of `count` calls."""
    best = dict.fromkeys(actions, 0.0)
    for _ in range(5):
        for name, action in actions.items():
            start = time.perf_counter()
            for _ in range(count):
                action()
            best[name] = max(best[name], count / (time.perf_counter() - start))
    return best


def in_process(count: int) -> dict[str, float]:
    check, rank, fuzzy = (Grader.load(preset(n)) for n in ("exact_match", "rank", "fuzzy"))
    actions = {
        "check": lambda: check.grade(ITEM, RIGHT),
        "rank": lambda: rank.grade(ITEM, ANSWER),
        "fuzzy": lambda: fuzzy.grade(ITEM, TEXT),
        "bare": lambda: fuzz.WRatio(TEXT, RIGHT, processor=utils.default_process) / 100,
    }
    rate = speeds(actions, count)
    return {
        "string_check_per_second": rate["check"],
        "rank_per_second": rate["rank"],
        "fuzzy_match_over_bare": rate["bare"] / rate["fuzzy"],
    }


def sandboxed(count: int) -> dict[str, float]:
    """Python graders: a server that forks, and a new interpreter for each grade."""
    run, sample = runner.python_runner(allow_weak_isolation=True), {"output_text": ANSWER}
    content = {"source": TRIVIAL, "sample": sample, "item": ITEM}
    request = bytes(server.NONCE_BYTES) + json.dumps(content).encode()
    few = 4 + count // 50
    with ThreadPoolExecutor(runner.default_workers()) as pool:

        def grades(number: int, grade: Callable[[int], object]) -> None:
            list(pool.map(grade, range(number)))

        actions = {
            "trivial": lambda: grades(count, lambda _: run(TRIVIAL, sample, ITEM)),
            "numpy": lambda: grades(count, lambda _: run(NUMPY, sample, ITEM)),
            "fresh": lambda: grades(few, lambda _: runner.ask_alone(request, Limits())),
        }
        rate = speeds(actions, 1)  # its first round also starts the servers
    return {
        "python_trivial_per_second": rate["trivial"] * count,
        "python_numpy_per_second": rate["numpy"] * count,
        "fresh_interpreter_per_second": rate["fresh"] * few,
        "warm_over_fresh_interpreter": rate["trivial"] * count / rate["fresh"] / few,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the record as one JSON object")
    parser.add_argument("--grades", type=int, default=1000, help="sandboxed grades a round")
    parser.add_argument("--out", type=Path, default=dataset("recorded_runs") / "graders.json")
    given = parser.parse_args()
    before = os.getloadavg()[0]
    figures = in_process(20 * given.grades) | sandboxed(given.grades)
    demo = read_json(dataset("recorded_runs") / "demo.json")
    steps = [run["training"]["seconds"] / run["training"]["steps"] for run in demo["runs"]]
    figures["step_seconds"] = statistics.median(steps)
    figures["rank_share_of_a_step"] = 64 / figures["rank_per_second"] / figures["step_seconds"]
    missed = [
        f"{name}: {figures[name]:,.4g}, goal {side} {goal:,}"
        for name, (side, goal) in GOALS.items()
        if (figures[name] < goal) == (side == "at least")
    ]
    record = label("python benchmarks/graders.py", []) | {
        "isolation": runner.report().to_json(),
        "workers": runner.default_workers(),
        "grades_a_round": given.grades,
        "load_average": {"before": before, "after": os.getloadavg()[0]},
        "figures": figures,
        "missed": missed,
    }
    write_json(given.out, record)
    for name, value in {} if given.json else figures.items():
        print(f"{name:34}{value:>14,.4g}   {' '.join(map(str, GOALS.get(name, ())))}")
    print(json.dumps(record, indent=2) if given.json else "\n".join(missed))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
