"""How long a GRPO step takes, several ways side by side -> datasets/recorded_runs/step_time.json.

    python benchmarks/step_time.py             # the ratios, and where the time goes
    python benchmarks/step_time.py --curves    # do the ways learn the same? three seeds
    python benchmarks/step_time.py --cost      # seconds against group size, length and model size
    python benchmarks/step_time.py --tables    # measure nothing, write docs/results.md's table anew

grpo_ways.py says what the ways are. Each has a process of its own; they take turns step by step, in
an order that is shuffled every time, so that a busy machine delays all of them alike. The ratio of
a round is that of its seconds; quoted is the median over the rounds, with the range. Processor
seconds are recorded, too: on a machine that does other work they say more.

With --json the last line is one object. A part that is run again replaces itself in the record.
Exit code 0: measured; 1: a way failed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo_ways import run_way
from page_block import Block, label

from rftkit.evaluation import bootstrap
from rftkit.files import markdown_table, read_json, write_json, write_text
from rftkit.policy import load_policy
from rftkit.task import load_task
from rftkit.training.config import RunConfig

BLOCK = Block("docs/results.md", "speed", "step_time.py")
RECORD = Path(__file__).resolve().parents[1] / "datasets" / "recorded_runs" / "step_time.json"
LENGTHS = {"demo": None, "140+8": (140, 8), "300+60": (300, 60)}  # prompt and completion tokens
PARTS = ("sampling", "grading", "reference", "forward", "backward", "optimizer")
GROUPS, TOKENS = (4, 8, 16), (16, 32, 64)  # of --cost; while one varies, the other is the middle
TITLES = {
    "trl_defaults": "TRL + PEFT, TRL's defaults",
    "trl": "TRL + PEFT, rftkit's settings",
    "copied": "rftkit, prompts copied",
    "rftkit": "**rftkit**, prompts shared",
    "floor": "`rftkit/loop.py`, the floor",
}
Reports = dict[str, list[dict[str, Any]]]  # each way's steps; Turns.pause has their fields


class WayFailed(Exception):
    """A way ended by an error of its own."""


def settings(steps: int, learning_rate: float = 1e-9, **other: Any) -> RunConfig:
    """The demo's, without validation and gate. By default nothing is learned: a way whose
    completions grew longer would have more to do."""
    given = dict(model="embedded:mini", engine="transformers", task="gene_ranking", eval_every=0)
    given |= dict(gate="off", watchdog_steps=steps + 2, learning_rate=learning_rate)
    given |= dict(max_completion_tokens=64)
    # One step more than are taken: the last one of a run writes a checkpoint more.
    return RunConfig(steps=steps + 1, **(given | other))


def take_turns(
    config: RunConfig, ways: Sequence[str], threads: int, exact: bool = False
) -> Reports:
    """Every step but the config's last, way by way in a new order each time. Each way's first step
    warms up; it is not timed."""
    context = multiprocessing.get_context("forkserver")
    early = ["trl.trainer.grpo_trainer", "peft", "grpo_ways"]
    context.set_forkserver_preload([] if "unsloth" in ways else early)  # which must be the first
    children, processes = {}, []
    with tempfile.TemporaryDirectory(prefix="rftkit-step-time-") as folder:
        try:
            for way in ways:
                children[way], there = context.Pipe()
                (Path(folder) / way).mkdir()
                given = (way, config, Path(folder) / way, threads, exact, there)
                processes.append(context.Process(target=run_way, args=given, daemon=True))
                processes[-1].start()
                there.close()
            reports = {way: [report(child)] for way, child in children.items()}
            for _ in range(config.steps - 2):
                for way in random.sample(list(ways), len(ways)):
                    children[way].send("go")
                    reports[way].append(report(children[way]))
            return reports
        finally:
            for process in processes:
                process.kill()
                process.join()


def report(child: Any) -> dict[str, Any]:
    try:
        numbers = child.recv()
    except EOFError:
        numbers = {"error": "the process of a way was killed"}
    if "error" in numbers:
        raise WayFailed(numbers["error"])
    return numbers


def measure_ratios(given: argparse.Namespace) -> dict[str, Any]:
    """{"lengths": {"demo": {"ways", "ratios"}, …}}"""
    lengths = {}
    for name in given.lengths:
        size = {}
        with tempfile.TemporaryDirectory(prefix="rftkit-long-") as folder:
            if LENGTHS[name]:
                task = long_task(Path(folder) / "task", LENGTHS[name][0])
                size = dict(task=str(task), max_completion_tokens=LENGTHS[name][1])
            config = settings(given.rounds * given.steps + 1, **size)
            reports = take_turns(config, list(TITLES), given.threads, exact=bool(size))
        timed = {way: steps[1:] for way, steps in reports.items()}
        ratios = {
            f"ratio_to_{way}": ratio(timed["rftkit"], timed[way], given.steps) for way in TITLES
        }
        ways = {way: summary(steps) for way, steps in timed.items()}
        lengths[name] = {"ways": ways, "ratios": ratios}
        print(f"{name}: measured", file=sys.stderr, flush=True)
    return {"rounds": given.rounds, "steps_a_round": given.steps, "lengths": lengths}


def long_task(folder: Path, tokens: int) -> Path:
    """A copy of gene_ranking whose training prompts are `tokens` long, by saying things again."""
    task, policy = load_task("gene_ranking"), load_policy("embedded:mini")
    rows = task.rows("train")
    for row in rows:
        frame, last = len(policy.encode([row["messages"]])[0]), row["messages"][-1]
        ids = policy.tokenizer(last["content"], add_special_tokens=False).input_ids
        last["content"] = policy.tokenizer.decode((ids * tokens)[: tokens - frame + len(ids)])
    shutil.copytree(task.folder, folder)
    write_text(folder / "train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return folder


def summary(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """What a way's steps took: medians, and mean milliseconds by part, `other` being the rest."""
    means = {p: 1000 * statistics.mean(s["parts"].get(p, 0.0) for s in steps) for p in PARTS}
    means["other"] = 1000 * statistics.mean(s["seconds"] for s in steps) - sum(means.values())
    return {
        "seconds_a_step": round(statistics.median(s["seconds"] for s in steps), 4),
        "cpu_seconds_a_step": round(statistics.median(s["cpu_seconds"] for s in steps), 4),
        "milliseconds": {name: round(value, 1) for name, value in means.items()},
        "completion_tokens": round(statistics.mean(s["completion_tokens"] for s in steps), 1),
        "peak_rss_mb": max(s["peak_rss_mb"] for s in steps),
        "peak_gpu_mb": max(s.get("peak_gpu_mb", 0.0) for s in steps),
    }


def ratio(ours: list[dict], theirs: list[dict], size: int) -> dict[str, float]:
    """Of the seconds of rounds of `size` steps: median, low, high; `cpu`: of processor seconds."""

    def ratios(clock: str) -> list[float]:
        a, b = ([step[clock] for step in steps] for steps in (ours, theirs))
        return [sum(a[i : i + size]) / sum(b[i : i + size]) for i in range(0, len(a), size)]

    wall, cpu = ratios("seconds"), statistics.median(ratios("cpu_seconds"))
    found = {"median": statistics.median(wall), "low": min(wall), "high": max(wall), "cpu": cpu}
    return {name: round(value, 3) for name, value in found.items()}


def measure_curves(given: argparse.Namespace) -> dict[str, Any]:
    """Mean training reward in quarters of the run, with 95 % intervals over steps and seeds."""
    rewards: dict[str, list[list[float]]] = {way: [] for way in TITLES}
    for seed in range(3):
        config = settings(given.steps, seed=seed, learning_rate=3e-3, beta=0.01)
        for way, steps in take_turns(config, list(TITLES), given.threads).items():
            rewards[way].append([round(step["reward_mean"], 4) for step in steps])
        print(f"seed {seed}: measured", file=sys.stderr, flush=True)
    width = given.steps // 4
    quarters: dict[str, list[dict]] = {way: [] for way in TITLES}
    for way, start in [(way, q * width) for way in TITLES for q in range(4)]:
        values = [reward for run in rewards[way] for reward in run[start : start + width]]
        quarters[way].append(bootstrap(values, range(len(values))).to_json())
    return {"seeds": 3, "steps": given.steps, "rewards": rewards, "quarters": quarters}


def measure_cost(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds a step of rftkit, and of TRL with its settings; every completion has the limit's
    length."""
    middle = {"answers_per_prompt": GROUPS[1], "completion_tokens": TOKENS[1]}
    sizes = dict.fromkeys([(g, TOKENS[1]) for g in GROUPS] + [(GROUPS[1], t) for t in TOKENS])
    points, parameters = [], {}
    for model in ("embedded:mini", "embedded:large"):
        parameters[model] = sum(p.numel() for p in load_policy(model).model.parameters())
        for group, tokens in sizes:
            size = dict(model=model, answers_per_prompt=group, max_completion_tokens=tokens)
            reports = take_turns(
                settings(given.steps + 1, **size), ["rftkit", "trl"], given.threads, exact=True
            )
            for way, steps in reports.items():
                point = {"way": way, "model": model, "answers_per_prompt": group}
                points.append(point | summary(steps[1:]) | {"completion_tokens": tokens})
            print(f"{model}, {group} completions of {tokens} tokens", file=sys.stderr, flush=True)
    return {"steps": given.steps, "middle": middle, "parameters": parameters, "points": points}


def last_line(found: dict[str, Any]) -> dict[str, Any]:
    """The object that --json prints of the ratios, which are those of the first length."""
    shared, copied = {}, {}
    for name, length in found["lengths"].items():
        times = {way: round(1000 * v["seconds_a_step"], 1) for way, v in length["ways"].items()}
        copy = times.pop("copied")
        shared[name], copied[name] = times, times | {"rftkit": copy}
    ratios = next(iter(found["lengths"].values()))["ratios"]
    medians = {name: value["median"] for name, value in ratios.items()}
    return medians | {"spread": ratios, "shared": shared, "copied": copied}


def speed_table(record: dict[str, Any]) -> str:
    """For docs/results.md: what a step takes, at which lengths, and that all ways learn."""
    ratios, curves = record["ratios"], record["curves"]
    demo, *long = ratios["lengths"]
    rows = []
    for way, title in TITLES.items():
        found = ratios["lengths"][demo]["ways"][way]
        row = {"8 prompts x 8 completions": title}
        row["ms a step"] = f"{1000 * found['seconds_a_step']:.0f}"
        row["peak MB"] = f"{found['peak_rss_mb']:.0f}"
        for name in (demo, *long):
            value = ratios["lengths"][name]["ratios"][f"ratio_to_{way}"]
            heading = f"at {name} tokens" if name in long else "rftkit takes"
            row[heading] = "{median:.2f} ({low:.2f} to {high:.2f})".format(**value)
        quarter = curves["quarters"][way][-1]
        row["reward, last quarter"] = "{mean:.2f} [{low:.2f}, {high:.2f}]".format(**quarter)
        rows.append(row)
    text = (
        f"Measured with `{ratios['command']}` on {ratios['machine']}, {ratios['date']}. *ms a "
        "step*: the median. *rftkit takes*: its seconds over that way's in the same round, median "
        f"of {ratios['rounds']} rounds (lowest to highest). *at 140+8 tokens*: the same with "
        f"prompts of 140 tokens and completions of 8. The last column with `{curves['command']}`, "
        f"{curves['date']}: mean training reward of the last quarter of {curves['steps']} steps, "
        f"{curves['seeds']} seeds, 95 % interval over steps and seeds."
    )
    return f"{markdown_table(rows)}\n\n{text}"


def main(arguments: list[str]) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--curves", action="store_true", help="learning curves instead of ratios")
    parser.add_argument("--cost", action="store_true", help="cost by size instead of ratios")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, help="a round (5); --curves: a run (24); --cost: 3")
    parser.add_argument("--lengths", nargs="+", choices=LENGTHS, default=list(LENGTHS))
    parser.add_argument("--threads", type=int, default=2, help="of torch, in each process")
    parser.add_argument("--out", type=Path, default=RECORD, help="where the record goes")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--tables", action="store_true", help="write docs/results.md alone")
    given = parser.parse_args(arguments)
    record = read_json(given.out) if given.out.exists() else {}
    if not given.tables:
        part = "cost" if given.cost else "curves" if given.curves else "ratios"
        measure, steps = {
            "ratios": (measure_ratios, 5), "curves": (measure_curves, 24), "cost": (measure_cost, 3)
        }[part]  # fmt: skip
        given.steps = given.steps or steps
        random.seed(0)
        try:
            found = measure(given)
        except WayFailed as failure:
            print(failure, file=sys.stderr)
            return 1
        how = label("python benchmarks/step_time.py", arguments) | {"threads": given.threads}
        record |= {part: how | found}
        write_json(given.out, record)
        print(f"written: {given.out}", file=sys.stderr)
        if given.json:
            print(json.dumps(last_line(found) if part == "ratios" else found))
    if given.out.resolve() == RECORD and {"ratios", "curves"} <= record.keys():
        BLOCK.write(speed_table(record))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
