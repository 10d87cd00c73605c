"""The demo for several seeds -> datasets/recorded_runs/demo.json; from it the README's results.

    python benchmarks/demo_seeds.py                 # seeds 0, 1, 2, full profile: six minutes
    python benchmarks/demo_seeds.py --cases FILE    # and real cases, with the first seed
    python benchmarks/demo_seeds.py --readme        # only the README's table and picture

A seed that was already recorded with the same data and weights is not run again, so the same
command resumes an interrupted run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from readme_block import write_block

from rftkit.compare import paired_text, systems_table
from rftkit.demo import PLAN_PATTERN, SYSTEMS, checksums
from rftkit.environment import machine, versions
from rftkit.evaluation import Interval
from rftkit.files import markdown_table, read_json, write_json
from rftkit.task import load_task
from rftkit.training.store import read_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = dict[str, Any]
ROOT = Path(__file__).parents[1]
RECORD = ROOT / "datasets" / "recorded_runs" / "demo.json"
PICTURE, PICTURE_DPI = ROOT / "docs" / "results.png", 110
COMMAND = "python benchmarks/demo_seeds.py"
BLOCK = ("results", "demo_seeds.py")  # its place in README.md


def run(seed: int, cases: str | None) -> Record:
    out = ROOT / "runs" / f"demo-seed-{seed}"
    command = [sys.executable, "-m", "rftkit.cli", "demo", "--seed", str(seed), "--out", str(out)]
    subprocess.run(command + (["--cases", cases] if cases else []), check=True, cwd=ROOT)
    keep = ("step", "reward_mean", "dead_groups", "entropy", "kl", "patterns", "validation")
    log = [{k: line[k] for k in keep if k in line} for line in read_lines(out / "log.jsonl")]
    return read_json(out / "report.json") | {"log": log}


def readme_tables(record: Record) -> str:
    """The results as Markdown: systems by seeds, paired differences by seeds, real cases."""
    runs = record["runs"]
    first, seeds = runs[0], [f"seed {run['seed']}" for run in runs]
    systems = []
    for name in SYSTEMS:
        found = [system_of(run, name) for run in runs]
        bold = "**" if name == "RFT mini" else ""
        tops = [f"{bold}{Interval(**system['top1'])}{bold}" for system in found]
        systems.append(
            {"top1 at T = 1, 95 % interval": name}
            | dict(zip(seeds, tops))
            | {"greedy": " / ".join(f"{s['greedy']['top1']:.3f}" for s in found)}
            | {"top5": " / ".join(f"{s['top5']['mean']:.3f}" for s in found)}
        )
    by_seed = zip(*([pair for pair in run["paired"] if pair["metric"] == "top1"] for run in runs))
    paired = [
        {"paired difference in top1": f"{pairs[0]['a']} - {pairs[0]['b']}"}
        | dict(zip(seeds, map(paired_text, pairs)))
        for pairs in by_seed
    ]
    training = ", ".join(f"{run['training']['seconds']:.0f}" for run in runs)
    whole = ", ".join(f"{run['seconds']:.0f}" for run in runs)
    memory = max(run["training"]["peak_rss_mb"] or 0 for run in runs)
    parts = [
        markdown_table(systems),
        markdown_table(paired),
        f"Measured with `{record['command']}` on {record['machine']}, {record['date']}: "
        f"{first['n_cases']} test cases of 90 genes, {first['sampling']['samples']} samples a "
        f"case, intervals clustered by gene. RFT took {training} s, the whole command {whole} s, "
        f"peak memory {memory / 1000:.1f} GB.",
        overlap_place(runs),
    ]
    real = next((run["real_cases"] for run in runs if "real_cases" in run), None)
    return "\n\n".join(parts + (real_parts(real) if real else []))


def system_of(report: Record, name: str) -> Record:
    return next(system for system in report["systems"] if system["name"] == name)


def overlap_place(runs: list[Record]) -> str:
    """Where the row that reads the annotation stands beside RFT mini, seed by seed."""
    tops = [[system_of(run, n)["top1"]["mean"] for n in ("overlap", "RFT mini")] for run in runs]
    above, count = sum(overlap > rft for overlap, rft in tops), len(runs)
    places = {0: "below RFT mini in every seed", count: "above RFT mini in every seed"}
    place = places.get(above, f"above RFT mini in {above} of {count} seeds")
    return f"On these simulated cases overlap stands {place}."


def real_parts(real: Record) -> list[str]:
    lost = "; ".join(f"{count} {reason}" for reason, count in real["lost"].items())
    splits = ", ".join(f"{count} cases of {name} genes" for name, count in real["splits"].items())
    alone = real["test_genes_alone"]
    names = ("RFT mini", "mini base", "overlap")
    unseen = "; ".join(f"{name} {Interval(**alone['top1'][name])}" for name in names)
    return [
        f"Real published cases in the world's 200 terms (seed 0, `--cases`): {real['kept']} of "
        f"{real['read']} kept, {real['genes']} genes ({splits}); lost: {lost}. On the "
        f"{alone['n']} cases of test genes alone, top1: {unseen}.",
        markdown_table(systems_table({"headline": "top1"} | real)),
    ]


def results_figure(record: Record) -> Figure:
    """The README's picture: every system of every seed, and RFT's way there over its steps."""
    from rftkit.plots import BLUE, GREY, ORANGE, colour_of, new_figure

    figure, (left, right) = new_figure(9.5, 3.4, columns=2, width_ratios=[1.15, 1])
    runs = record["runs"]
    for number, run in enumerate(runs):
        for place, name in enumerate(reversed(SYSTEMS)):
            value, y = system_of(run, name)["top1"], place + 0.22 * (1 - number)
            left.plot([value["low"], value["high"]], [y, y], color=colour_of(name), lw=1.5)
            left.plot(value["mean"], y, "o", color=colour_of(name), ms=4)
        points = [(0, run["training"]["start"])]
        points += [(r["step"], r["validation"]) for r in run["log"] if "validation" in r]
        steps = [step for step, _ in points]
        right.plot(steps, [v["mean"] for _, v in points], "o-", ms=3, color=ORANGE,
                   label=None if number else "right in first place")  # fmt: skip
        right.plot(steps, [v["patterns"][PLAN_PATTERN] for _, v in points], ":", color=BLUE,
                   label=None if number else "diagnoses first")  # fmt: skip
    left.set_yticks(range(len(SYSTEMS)), reversed(SYSTEMS))
    left.set_xlim(0, 1)
    left.set_xlabel("top1 at T = 1 on genes never trained on, 95 %")
    seeds = ", ".join(str(run["seed"]) for run in runs)
    left.set_title(f"{runs[0]['n_cases']} cases, seeds {seeds}", fontsize=10)
    right.axhline(runs[0]["training"]["start"]["mean"], color=GREY, lw=1, ls="--", label="base")
    right.set_ylim(0, 1.02)
    right.set_xlabel("RFT step (64 answers each)")
    right.set_ylabel("share of held-out answers")
    right.set_title("the plan that works is found and reinforced", fontsize=10)
    right.legend(fontsize=8, frameon=False, loc=(0.58, 0.28))
    return figure


def fingerprint(record: Record) -> str:
    """What a picture of this record bears in its metadata."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def write_readme(record: Record) -> None:
    """The tables into README.md, and the picture that stands above them."""
    drawn_from = {"Description": fingerprint(record)}
    results_figure(record).savefig(PICTURE, dpi=PICTURE_DPI, metadata=drawn_from)
    write_block(*BLOCK, readme_tables(record))


def main() -> None:
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parse.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parse.add_argument("--cases", help="phenopackets, for the first seed")
    parse.add_argument("--readme", action="store_true", help="write the README's table alone")
    given = parse.parse_args()
    record = read_json(RECORD) if RECORD.exists() else {"runs": []}
    sums = checksums(load_task("gene_ranking"))
    known = {r["seed"]: r for r in record["runs"] if r["sha256"] == sums}
    for seed in [] if given.readme else given.seeds:
        if seed not in known:
            known[seed] = run(seed, given.cases if seed == given.seeds[0] else None)
        origin = {"command": COMMAND, "machine": machine(), "date": known[seed]["date"]}
        runs = [known[seed] for seed in sorted(known)]
        record = origin | {"versions": versions(), "sha256": sums, "runs": runs}
        write_json(RECORD, record)
    write_readme(record)


if __name__ == "__main__":
    main()
