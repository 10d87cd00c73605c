"""How fast graders are, as ratios within one run -> datasets/recorded_runs/graders.json.

    python benchmarks/graders.py [--json] [--grades N] [--out FILE]

string_check, rank      grades a second in this process
fuzzy_match             time of a grade / time of calling rapidfuzz bare, on two sentences of about
                        150 characters, and on a third of that (the difference is a fixed few
                        microseconds, so short texts show it most)
python, trivial         sandboxed grades a second (a fork each), one server a core
python, numpy           the same with numpy imported and used by the grader
fresh interpreter       the same trivial grade with a new interpreter each, the sandbox's fallback;
                        and a bare `python -c pass`, an interpreter that does nothing
rank in a step          time to grade 64 completions / time of one recorded GRPO step of the demo

Each is the best of some rounds, which take turns: other work on the machine can only slow a round
down. The load average before and after stands in the record; on a busy machine the sandboxed
figures are low, and the ratios are what counts. Exit code 1: a goal was missed; it is named.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

from rftkit.environment import machine, versions
from rftkit.files import write_json
from rftkit.graders.grader import Grader
from rftkit.graders.presets import preset
from rftkit.sandbox import process, runner
from rftkit.sandbox.isolation import Limits
from rftkit.sandbox.runner import default_workers, python_runner, report

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "datasets" / "recorded_runs" / "graders.json"
ROUNDS = 5
ITEM = {
    "reference_gene": "SCN1A",
    "answer": "A seizure disorder of early childhood. It begins with long seizures in fever, and "
    "later other kinds come, while the child's development slows down.",
}
ANSWER = '<think>fever, seizures</think>{"genes": ["KCNQ2", "SCN1A", "CDKL5", "STXBP1", "ARX"]}'
TEXT = (
    "An epilepsy that begins in early childhood. Fever brings on the first seizures, which are "
    "long; other kinds follow, and the child learns more slowly."
)
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


def best_times(actions: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Seconds of each action's fastest round; the actions take turns."""
    times = dict.fromkeys(actions, float("inf"))
    for _ in range(ROUNDS):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            times[name] = min(times[name], time.perf_counter() - start)
    return times


def repeat(action: Callable[[], Any], count: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(count):
            action()

    return run


def in_process(count: int) -> dict[str, float]:
    """Graders that are pure computation, one thread."""
    from rapidfuzz import fuzz, utils

    texts = {"input": "{{sample.output_text}}", "reference": "{{item.answer}}"}
    check = Grader.load({"type": "string_check", "name": "check", **texts, "operation": "eq"})
    fuzzy = Grader.load(
        {"type": "text_similarity", "name": "f", **texts, "evaluation_metric": "fuzzy_match"}
    )
    rank = Grader.load(preset("rank"))
    genes, right = ANSWER.partition("</think>")[2], ITEM["answer"]
    short = TEXT[:50], {"answer": right[:50]}

    def bare(text: str, answer: str) -> float:
        return fuzz.WRatio(text, answer, processor=utils.default_process) / 100

    assert rank.grade(ITEM, ANSWER)[0] == 0.7 and check.grade(ITEM, right)[0] == 1.0
    assert fuzzy.grade(ITEM, TEXT)[0] == bare(TEXT, right)
    actions = {
        "string_check": lambda: check.grade(ITEM, right),
        "rank": lambda: rank.grade(ITEM, genes),
        "rank_of_a_completion": lambda: rank.grade(ITEM, ANSWER),
        "fuzzy": lambda: fuzzy.grade(ITEM, TEXT),
        "bare": lambda: bare(TEXT, right),
        "fuzzy_short": lambda: fuzzy.grade(short[1], short[0]),
        "bare_short": lambda: bare(short[0], short[1]["answer"]),
    }
    seconds = best_times({name: repeat(action, count) for name, action in actions.items()})
    figures = {f"{name}_per_second": count / seconds[name] for name in list(actions)[:3]}
    for end in ("", "_short"):
        figures[f"fuzzy_match_over_bare{end}"] = seconds[f"fuzzy{end}"] / seconds[f"bare{end}"]
    return figures


def sandboxed(count: int) -> dict[str, float]:
    """Python graders: servers that fork, and a new interpreter for each grade."""
    workers = default_workers()
    few = max(workers, count // 50)
    run = python_runner(allow_weak_isolation=True)
    sample = {"output_text": ANSWER}
    _, request = runner.make_request(TRIVIAL, {"sample": sample, "item": ITEM})
    nothing = [sys.executable, "-I", "-S", "-c", "pass"]
    with ThreadPoolExecutor(workers) as pool:

        def grade(source: str, number: int) -> None:
            outcomes = pool.map(lambda _: run(source, sample, ITEM), range(number))
            assert all(outcome.value is not None for outcome in outcomes)

        for source in (TRIVIAL, NUMPY):
            grade(source, 8 * workers)  # starts the servers
        start_anew = lambda _: process.ask_alone(request, Limits())  # noqa: E731
        start_only = lambda _: subprocess.run(nothing, check=True)  # noqa: E731
        seconds = best_times(
            {
                "python_trivial": lambda: grade(TRIVIAL, count),
                "python_numpy": lambda: grade(NUMPY, count),
                "fresh_interpreter": lambda: list(pool.map(start_anew, range(few))),
                "bare_interpreter": lambda: list(pool.map(start_only, range(few))),
            }
        )
    figures = {
        f"{name}_per_second": (count if name.startswith("python") else few) / taken
        for name, taken in seconds.items()
    }
    warm = figures["python_trivial_per_second"]
    figures["warm_over_fresh_interpreter"] = warm / figures["fresh_interpreter_per_second"]
    figures["warm_over_bare_interpreter"] = warm / figures["bare_interpreter_per_second"]
    return figures


def share_of_a_step(rank_per_second: float) -> dict[str, float]:
    """The rank grader's part of a training step; the step's length is the recorded demo's."""
    record = json.loads((ROOT / "datasets" / "recorded_runs" / "demo.json").read_text())
    seconds = [run["training"]["seconds"] / run["training"]["steps"] for run in record["runs"]]
    step = statistics.median(seconds)
    return {"step_seconds": step, "rank_share_of_a_step": 64 / rank_per_second / step}


def missed(figures: dict[str, float]) -> list[str]:
    """The goals that this run did not reach, one sentence each."""
    found = []
    for name, (side, goal) in GOALS.items():
        value = figures[name]
        if value < goal if side == "at least" else value > goal:
            found.append(f"{name}: {value:,.4g}, goal {side} {goal:,}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the record as one JSON object")
    parser.add_argument("--grades", type=int, default=1000, help="sandboxed grades a round")
    parser.add_argument("--out", type=Path, default=RECORD)
    chosen = parser.parse_args()
    before = os.getloadavg()[0]
    figures = in_process(20 * chosen.grades) | sandboxed(chosen.grades)
    figures |= share_of_a_step(figures["rank_of_a_completion_per_second"])
    record = {
        "command": "python benchmarks/graders.py",
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "isolation": report().to_json(),
        "workers": default_workers(),
        "grades_a_round": chosen.grades,
        "load_average": {"before": before, "after": os.getloadavg()[0]},
        "figures": figures,
        "missed": missed(figures),
    }
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(chosen.out, record)
    if chosen.json:
        print(json.dumps(record, indent=2))
        return int(bool(record["missed"]))
    for name, value in figures.items():
        side, goal = GOALS.get(name, ("", ""))
        print(f"{name:34}{value:>14,.4g}   {side} {goal}")
    print(f"load average {before:.1f} before, {record['load_average']['after']:.1f} after")
    for line in record["missed"]:
        print(f"missed: {line}")
    return int(bool(record["missed"]))


if __name__ == "__main__":
    sys.exit(main())
