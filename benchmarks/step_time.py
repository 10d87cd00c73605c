"""How long a GRPO step takes, several ways side by side -> datasets/recorded_runs/step_time.json.

    python benchmarks/step_time.py             # the ratios and where the time goes
    python benchmarks/step_time.py --curves    # do they learn the same? three seeds
    python benchmarks/step_time.py --cost      # seconds against group size, length and model size
    python benchmarks/step_time.py --readme    # measure nothing, write README.md's table anew

grpo_ways.py says what the ways are. Each has a process of its own; they take turns step by
step, in an order that is shuffled every time, so that a busy machine delays all of them alike. A
round is five steps a way (rftkit writes one checkpoint in five). The ratio of a round is that of
its seconds; what is quoted is the median over the rounds, and their range beside it. Processor
seconds are recorded too: on a machine that does other work they say more than the clock.

With --json the last line is one object. A part that is run again replaces itself in the record and
leaves the others. Exit code 0: measured; 1: a way failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from grpo_ways import WAYS, run_way
from readme_block import write_block

from rftkit.environment import machine, versions
from rftkit.evaluation import bootstrap, paired_difference
from rftkit.files import write_json
from rftkit.training.config import RunConfig

ROOT = Path(__file__).resolve().parents[1]
BLOCK = ("speed", "step_time.py")  # its place in README.md
RECORD = ROOT / "datasets" / "recorded_runs" / "step_time.json"
OTHERS = [way for way in WAYS if way != "rftkit"]
# Where time is compared, nothing may be learned: a way whose answers grow longer has more to do.
STAYS = 1e-9
COST_SIZES = {"answers_per_prompt": (4, 8, 16), "completion_tokens": (16, 32, 64)}
PARTS = ("sampling", "grading", "reference", "forward", "backward", "optimizer", "records",
         "checkpoint")  # fmt: skip
# Imported once, before the ways part: they share the memory and start in no time.
IMPORTED = ["trl.trainer.grpo_trainer", "peft", "rftkit.training.trainer", "rftkit.training.run"]


class WayFailed(Exception):
    """A way ended by an error of its own."""


# --- processes that take turns -------------------------------------------------------------------


@dataclass
class Child:
    """One way in its process."""

    way: str
    process: Any
    connection: Any

    def report(self) -> dict[str, Any]:
        """The numbers of the step that it is at; grpo_ways.Turns.pause has the fields."""
        try:
            found = self.connection.recv()
        except EOFError:
            found = {"error": f"{self.way}: its process ended, exit code {self.process.exitcode}"}
        if "error" in found:
            raise WayFailed(found["error"])
        return found

    def step(self) -> dict[str, Any]:
        self.connection.send("go")
        return self.report()


@contextlib.contextmanager
def started(
    config: RunConfig, ways: Sequence[str], threads: int, exact: bool = False
) -> Iterator[tuple[dict[str, Child], dict[str, dict]]]:
    """The ways, each after its first step (which warms up and is not timed), and its report."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    children: dict[str, Child] = {}
    with tempfile.TemporaryDirectory(prefix="rftkit-step-time-") as folder:
        try:
            for way in ways:
                here, there = context.Pipe()
                place = Path(folder) / way
                place.mkdir()
                process = context.Process(
                    target=run_way, args=(way, config, place, threads, exact, there), daemon=True
                )
                process.start()
                there.close()
                children[way] = Child(way, process, here)
            yield children, {way: child.report() for way, child in children.items()}
        finally:
            for child in children.values():
                child.process.kill()
                child.process.join()


def settings(steps: int, learning_rate: float = STAYS, **other: Any) -> RunConfig:
    """The demo's settings, without looks at held-out rows and without the signal gate."""
    return RunConfig(
        model="embedded:mini",
        engine="transformers",
        task="gene_ranking",
        learning_rate=learning_rate,
        steps=steps + 1,  # none of them is the last: that one writes a checkpoint more
        eval_every=0,
        gate="off",
        **other,
    )


# --- the ratios ----------------------------------------------------------------------------------


def measure_ratios(config: RunConfig, rounds: int, steps: int, threads: int) -> dict[str, Any]:
    """`rounds` rounds of `steps` steps a way."""
    random.seed(0)
    reports: dict[str, list[list[dict]]] = {way: [] for way in WAYS}
    with started(config, list(WAYS), threads) as (children, _):
        for number in range(rounds):
            for way in WAYS:
                reports[way].append([])
            for _ in range(steps):
                for way in random.sample(list(WAYS), len(WAYS)):
                    reports[way][-1].append(children[way].step())
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    ways = {way: summary([report for turn in reports[way] for report in turn]) for way in WAYS}
    ratios = {
        clock: {f"ratio_to_{way}": ratio(reports["rftkit"], reports[way], clock) for way in OTHERS}
        for clock in ("seconds", "cpu_seconds")
    }
    return {"rounds": rounds, "steps_a_round": steps, "ways": ways, "ratios": ratios}


def summary(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """What a way's steps took: medians, and mean milliseconds by part, `other` being the rest."""
    parts = {
        name: 1000 * statistics.mean(r["parts"].get(name, 0.0) for r in reports) for name in PARTS
    }
    whole = 1000 * statistics.mean(r["seconds"] for r in reports)
    parts["other"] = whole - sum(parts.values())
    return {
        "seconds_a_step": round(statistics.median(r["seconds"] for r in reports), 4),
        "cpu_seconds_a_step": round(statistics.median(r["cpu_seconds"] for r in reports), 4),
        "milliseconds": {name: round(value, 1) for name, value in parts.items()},
        "completion_tokens": round(statistics.mean(r["tokens"] for r in reports), 1),
        "peak_rss_mb": max(r["peak_rss_mb"] or 0.0 for r in reports),
    }


def ratio(ours: list[list[dict]], theirs: list[list[dict]], clock: str) -> dict[str, float]:
    """Of the rounds' seconds: median, lowest and highest."""
    found = [
        sum(r[clock] for r in a) / sum(r[clock] for r in b) for a, b in zip(ours, theirs)
    ]  # fmt: skip
    values = {"median": statistics.median(found), "low": min(found), "high": max(found)}
    return {name: round(value, 3) for name, value in values.items()}


# --- the learning curves -------------------------------------------------------------------------


def measure_curves(seeds: int, steps: int, threads: int) -> dict[str, Any]:
    """Mean training reward, in quarters of the run, with 95 % intervals over steps and seeds.

    The rows of a step are the same in all of them, so the difference to rftkit's is paired.
    """
    ways = [way for way in WAYS if way != "trl_one_pass"]  # trl_defaults in other passes
    rewards: dict[str, list[list[float]]] = {way: [] for way in ways}
    for seed in range(seeds):
        config = settings(steps, seed=seed, learning_rate=3e-3, beta=0.01)
        with started(config, ways, threads) as (children, first):
            for way in ways:
                rewards[way].append([first[way]["reward"]])
            for _ in range(steps - 1):
                for child in children.values():
                    child.connection.send("go")  # nobody is timed here: all at once
                for way, child in children.items():
                    rewards[way][-1].append(child.report()["reward"])
        print(f"seed {seed + 1} of {seeds}", file=sys.stderr, flush=True)
    width = steps // 4
    quarters = [range(steps - (4 - q) * width, steps - (3 - q) * width) for q in range(4)]
    found: dict[str, Any] = {"seeds": seeds, "steps": steps, "learning_rate": 3e-3, "beta": 0.01}
    found["rewards"] = {
        way: [[round(r, 4) for r in run] for run in runs] for way, runs in rewards.items()
    }
    found["quarters"] = {
        way: [bootstrap(*values_of(rewards[way], q)).to_json() for q in quarters] for way in ways
    }
    found["last_half_rftkit_minus"] = {}
    others = [way for way in ways if way != "rftkit"]
    for way in others:
        half = range(steps - 2 * width, steps)
        ours, clusters = values_of(rewards["rftkit"], half)
        difference = paired_difference(ours, values_of(rewards[way], half)[0], clusters)
        found["last_half_rftkit_minus"][way] = difference.to_json()
    found["intervals_overlap"] = all(
        a["low"] <= b["high"] and b["low"] <= a["high"]
        for way in others
        for a, b in zip(found["quarters"]["rftkit"], found["quarters"][way])
    )
    return found


def values_of(runs: list[list[float]], steps: range) -> tuple[list[float], list[int]]:
    """(each seed's reward at each of the steps, a cluster for each)."""
    values = [run[step] for run in runs for step in steps]
    return values, list(range(len(values)))


# --- what a step costs ---------------------------------------------------------------------------


def measure_cost(steps: int, threads: int, sizes: dict[str, Sequence[int]]) -> dict[str, Any]:
    """Seconds a step of rftkit and of TRL with the same settings.

    The end token counts as any other here, so that every answer has exactly the length asked for.
    sizes   {"answers_per_prompt": […], "completion_tokens": […]}; while one varies, the other
            stands at the middle of its list
    """
    groups, lengths = sizes["answers_per_prompt"], sizes["completion_tokens"]
    middle = (groups[len(groups) // 2], lengths[len(lengths) // 2])
    cells = dict.fromkeys([(g, middle[1]) for g in groups] + [(middle[0], t) for t in lengths])
    points = []
    for model in ("embedded:mini", "embedded:large"):
        for group, tokens in cells:
            config = settings(
                steps + 1, answers_per_prompt=group, max_completion_tokens=tokens, model=model
            )
            with started(config, ["rftkit", "trl"], threads, exact=True) as (children, _):
                reports: dict[str, list[dict]] = {way: [] for way in children}
                for _ in range(steps):
                    for way, child in children.items():
                        reports[way].append(child.step())
            for way, found in reports.items():
                said = {round(report["tokens"], 6) for report in found}
                if said != {tokens}:
                    raise WayFailed(f"{way}: answers of {said} tokens, expected {tokens} each")
                point = {"way": way, "model": model, "answers_per_prompt": group}
                points.append(point | summary(found) | {"completion_tokens": tokens})
            print(f"{model}, {group} answers of {tokens} tokens", file=sys.stderr, flush=True)
    parameters = {m: count_parameters(m) for m in ("embedded:mini", "embedded:large")}
    middle_point = dict(zip(("answers_per_prompt", "completion_tokens"), middle))
    return {"steps": steps, "middle": middle_point, "parameters": parameters, "points": points}


def count_parameters(model: str) -> int:
    from safetensors import safe_open

    from rftkit.policy import model_folder

    folder = Path(model_folder(model)[0])
    total = 0
    with safe_open(folder / "model.safetensors", "np") as weights:
        for name in weights.keys():
            size = 1
            for side in weights.get_slice(name).get_shape():
                size *= side
            total += size
    return total


# --- the record ----------------------------------------------------------------------------------


def lines_of(found: dict[str, Any]) -> list[str]:
    """measure_ratios' result as a reader wants it."""
    names = [*PARTS, "other"]
    lines = [f"{'':13}" + "".join(f"{name:>11}" for name in ["ms a step", *names, "peak MB"])]
    for way, values in found["ways"].items():
        cells = [1000 * values["seconds_a_step"], *values["milliseconds"].values()]
        cells.append(values["peak_rss_mb"])
        lines.append(f"{way:13}" + "".join(f"{cell:11.0f}" for cell in cells))
    for clock, ratios in found["ratios"].items():
        for name, value in ratios.items():
            spread = f"{value['low']:.2f} to {value['high']:.2f}"
            lines.append(f"{name} ({clock}): {value['median']:.2f}, rounds {spread}")
    return lines


def last_line(found: dict[str, Any]) -> dict[str, Any]:
    ratios = found["ratios"]["seconds"]
    return {
        **{name: value["median"] for name, value in ratios.items()},
        "spread": {n: {"low": v["low"], "high": v["high"]} for n, v in ratios.items()},
        "cpu": {name: value["median"] for name, value in found["ratios"]["cpu_seconds"].items()},
        "seconds_a_step": {way: v["seconds_a_step"] for way, v in found["ways"].items()},
        "milliseconds": {way: v["milliseconds"] for way, v in found["ways"].items()},
        "peak_rss_mb": {way: v["peak_rss_mb"] for way, v in found["ways"].items()},
    }


# What a reader calls the ways.
TITLES = {
    "trl_defaults": "TRL + PEFT, TRL's defaults",
    "trl_one_pass": "the same, loss in one pass",
    "trl": "TRL + PEFT, rftkit's settings",
    "rftkit": "**rftkit**",
    "floor": "a bare loop in torch, the floor",
}


def readme_table(record: dict[str, Any]) -> str:
    """README.md's block: where a step's time goes, and that all ways learn alike."""
    time, curves = record["ratios"], record["curves"]
    shown = ["sampling", "reference", "forward", "backward"]
    header = ["8 prompts x 8 answers", "ms a step", *shown, "all else", "peak MB", "rftkit takes"]
    header.append("reward, last quarter")
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for way, title in TITLES.items():
        found = time["ways"][way]
        parts = found["milliseconds"]
        rest = sum(parts.values()) - sum(parts[name] for name in shown)
        whole = sum(parts.values())
        cells = [f"{value:.0f}" for value in (whole, *(parts[n] for n in shown), rest)]
        cells.append(f"{found['peak_rss_mb']:.0f}")
        ratio = time["ratios"]["seconds"].get(f"ratio_to_{way}")
        cells.append("{median:.2f} ({low:.2f} to {high:.2f})".format(**ratio) if ratio else "1")
        quarter = curves["quarters"].get(way)
        cells.append("{mean:.2f} [{low:.2f}, {high:.2f}]".format(**quarter[-1]) if quarter else "–")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    lines += ["", (
        f"Measured with `{time['command']}` on {time['machine']}, {time['date']}; mean "
        "milliseconds; *rftkit takes*: its seconds over that way's in the same round, median of "
        f"{time['rounds']} rounds (lowest to highest). The last column with `{curves['command']}`, "
        f"{curves['date']}: mean training reward of steps {curves['steps'] * 3 // 4 + 1} to "
        f"{curves['steps']}, {curves['seeds']} seeds, 95 % interval over steps and seeds."
    )]  # fmt: skip
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parse.add_argument("--curves", action="store_true", help="learning curves instead of ratios")
    parse.add_argument("--cost", action="store_true", help="cost by size instead of ratios")
    parse.add_argument("--rounds", type=int, default=6)
    parse.add_argument("--steps", type=int, help="a round (5); --curves: a run (24); --cost: 3")
    parse.add_argument("--seeds", type=int, default=3, help="--curves: 0, 1, …")
    parse.add_argument("--prompts", type=int, default=8, help="a step; the ratios alone")
    parse.add_argument("--answers", type=int, default=8, help="a prompt; the ratios alone")
    parse.add_argument("--threads", type=int, default=2, help="of torch, in each process")
    parse.add_argument("--out", type=Path, default=RECORD, help="where the record goes")
    parse.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parse.add_argument("--readme", action="store_true", help="write README.md's table alone")
    given = parse.parse_args(arguments)
    if given.readme:
        write_block(*BLOCK, readme_table(json.loads(RECORD.read_text())))
        return 0
    try:
        if given.cost:
            part, steps = "cost", given.steps or 3
            found = measure_cost(steps, given.threads, COST_SIZES)
            said = found
        elif given.curves:
            part, steps = "curves", given.steps or 24
            found = measure_curves(given.seeds, steps, given.threads)
            said = {k: found[k] for k in ("quarters", "last_half_rftkit_minus")}
            said["intervals_overlap"] = found["intervals_overlap"]
        else:
            part, steps = "ratios", given.steps or 5
            config = settings(
                given.rounds * steps + 1,
                prompts_per_step=given.prompts,
                answers_per_prompt=given.answers,
            )
            found = measure_ratios(config, given.rounds, steps, given.threads)
            found["config"], said = config.to_json(), last_line(found)
            print("\n".join(lines_of(found)))
    except WayFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    asked = {"--cost": given.cost, "--curves": given.curves}
    sizes = {"rounds": given.rounds, "prompts": given.prompts, "answers": given.answers}
    words = [word for word, on in asked.items() if on] + [f"--steps {steps}"]
    words += [f"--{n} {v}" for n, v in sizes.items() if part == "ratios"]
    words += [f"--seeds {given.seeds}"] * given.curves + [f"--threads {given.threads}"]
    label = {
        "command": " ".join(["python benchmarks/step_time.py", *words]),
        "machine": machine(),
        "date": date.today().isoformat(),
        "threads": given.threads,
        "versions": versions(),
    }
    record = json.loads(given.out.read_text()) if given.out.exists() else {}
    record |= {part: label | found}
    write_json(given.out, record)
    if given.out.resolve() == RECORD and {"ratios", "curves"} <= record.keys():
        write_block(*BLOCK, readme_table(record))
    print(f"written: {given.out}", file=sys.stderr)
    if given.json:
        print(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
