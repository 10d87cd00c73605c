"""The demo for several seeds -> datasets/recorded_runs/demo.json; from it the published results.

    python benchmarks/demo_seeds.py                 # seeds 0, 1, 2, full profile: six minutes
    python benchmarks/demo_seeds.py --cases FILE    # and real cases, with the first seed
    python benchmarks/demo_seeds.py --tables        # only the tables and the picture

A seed that was recorded with the same data and weights is not run again: the command resumes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from page_block import Block, label

from rftkit.demo import PLAN_PATTERN, SYSTEMS, checksums
from rftkit.evaluation import Interval
from rftkit.files import markdown_table, read_json, write_json
from rftkit.logs import validations_of
from rftkit.plots import BLUE, GREY, ORANGE, colour_of, new_figure
from rftkit.task import load_task
from rftkit.training.report import paired_text, systems_table
from rftkit.training.store import read_lines

Record = dict[str, Any]
ROOT = Path(__file__).parents[1]
RECORD = ROOT / "datasets" / "recorded_runs" / "demo.json"
PICTURE = ROOT / "docs" / "results.png"
BLOCK = Block("docs/results.md", "results", "demo_seeds.py")
SUMMARY = Block("README.md", "summary", "demo_seeds.py")
# The README's rows; for the others see docs/results.md.
IN_SHORT = {
    "mini base": "0.9 million parameters, untrained",
    "mini base, few-shot": "untrained, with two right answers in the prompt",
    "mini base, prompted": "untrained; its answers start with the plan that works",
    "SFT mini": "mini base after SFT on the right answers",
    "rejection-sampling SFT mini": "mini base after SFT on its own right answers",
    "RFT mini": "mini base after RFT; kept of seeds 0, 1, 2: step {}",
    "large base": "3.1 million parameters, untrained",
    "large base, prompted": "untrained; its answers start with the plan that works",
    "RFT large": "large base after RFT; kept: step {}",
}


def run(seed: int, cases: str | None) -> Record:
    out = ROOT / "runs" / f"demo-seed-{seed}"
    command = [sys.executable, "-m", "rftkit.cli", "demo", "--seed", str(seed), "--out", str(out)]
    subprocess.run(command + (["--cases", cases] if cases else []), check=True, cwd=ROOT)
    keep = ("step", "reward_mean", "dead_groups", "entropy", "kl", "patterns", "validation")
    log = [{k: line[k] for k in keep if k in line} for line in read_lines(out / "log.jsonl")]
    return read_json(out / "report.json") | {"log": log}


def results_tables(record: Record) -> str:
    """The results as Markdown: systems by seeds, paired differences by seeds, real cases."""
    runs = record["runs"]
    first, seeds = runs[0], [f"seed {run['seed']}" for run in runs]
    systems = []
    for name in SYSTEMS:
        own = [system_of(run, name) for run in runs]
        bold = "**" if name == "RFT mini" else ""
        row = {"top1 at T = 1, 95 % interval": name}
        row |= {s: f"{bold}{Interval(**o['top1'])}{bold}" for s, o in zip(seeds, own)}
        row["greedy"] = " / ".join(f"{o['greedy']['top1']:.3f}" for o in own)
        row["top5"] = " / ".join(f"{o['top5']['mean']:.3f}" for o in own)
        passed = [o["pass@8"]["mean"] for o in own if "pass@8" in o]
        row["pass@8"] = " / ".join(f"{share:.3f}" for share in passed)
        row["distinct"] = " / ".join(f"{o['distinct']:.2f}" for o in own)
        tokens, seconds = (np.mean([o[key] for o in own]) for key in ("tokens", "seconds"))
        row["tokens"] = f"{tokens:.0f}" if tokens else ""
        row["ms"] = f"{1e3 * seconds:.1f}" if tokens else ""
        systems.append(row)
    paired = [
        {"paired difference": f"{pairs[0]['a']} - {pairs[0]['b']}", "metric": pairs[0]["metric"]}
        | dict(zip(seeds, map(paired_text, pairs)))
        for pairs in zip(*(run["paired"] for run in runs))
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
    ]
    for real in [run["real_cases"] for run in runs if "real_cases" in run][:1]:
        lost = "; ".join(f"{count} {reason}" for reason, count in real["lost"].items())
        splits = ", ".join(
            f"{count} cases of {name} genes" for name, count in real["splits"].items()
        )
        alone = real["test_genes_alone"]
        names = ("RFT mini", "mini base", "overlap")
        unseen = "; ".join(f"{name} {Interval(**alone['top1'][name])}" for name in names)
        parts.append(
            "Real published cases in the world's 200 terms (seed 0, the same command with "
            f"`--cases FILE`): {real['kept']} of {real['read']} kept, {real['genes']} genes "
            f"({splits}); lost: {lost}. On the "
            f"{alone['n']} cases of test genes alone, top1: {unseen}."
        )
        parts.append(markdown_table(systems_table({"headline": "top1"} | real)))
    return "\n\n".join(parts)


def summary_table(record: Record) -> str:
    """The README's rows, the range over the seeds, and what RFT did to pass@8."""
    rows, runs = [], record["runs"]
    kept = {"RFT mini": [run["training"]["best"]["step"] for run in runs]}
    kept["RFT large"] = [run["rivals"]["RFT large"]["best_step"] for run in runs]
    for name, text in IN_SHORT.items():
        own = [system_of(run, name) for run in runs]
        passed = [system["pass@8"]["mean"] for system in own if "pass@8" in system]
        rows.append(
            {
                "system": name,
                "what it is": text.format(", ".join(map(str, kept.get(name, ())))),
                "top1, sampled": span([system["top1"]["mean"] for system in own]),
                "top1, greedy": span([system["greedy"]["top1"] for system in own]),
                "top5": span([system["top5"]["mean"] for system in own]),
                "pass@8": span(passed) if passed else "",
                "distinct genes": span([system["distinct"] for system in own]),
            }
        )
    shown = {row["system"]: row for row in rows}
    before, after = shown["mini base"], shown["RFT mini"]
    return markdown_table(rows) + (
        f"\n\nRFT moved pass@8 to pass@1: one of eight answers of mini base was right in "
        f"{before['pass@8']} of the cases, a single one in {before['top1, sampled']}; a single one "
        f"of RFT mini is in {after['top1, sampled']}."
    )


def span(values: list[float]) -> str:
    return " to ".join(sorted({f"{f(values):.3f}" for f in (min, max)}))


def system_of(report: Record, name: str) -> Record:
    return next(system for system in report["systems"] if system["name"] == name)


def results_figure(record: Record) -> Figure:
    """The picture: every system of every seed, and RFT's way there over its steps."""
    figure, (left, right) = new_figure(9.5, 4.2, columns=2, width_ratios=[1.15, 1])
    runs = record["runs"]
    for number, run in enumerate(runs):
        for place, name in enumerate(reversed(SYSTEMS)):
            value, y = system_of(run, name)["top1"], place + 0.22 * (1 - number)
            left.plot([value["low"], value["high"]], [y, y], color=colour_of(name), lw=1.5)
            left.plot(value["mean"], y, "o", color=colour_of(name), ms=4)
        points = validations_of(run["log"], run["training"]["start"])
        steps, means = [v["step"] for v in points], [v["mean"] for v in points]
        plans = [v["patterns"][PLAN_PATTERN] for v in points]
        right.plot(steps, means, "o-", ms=3, color=ORANGE, label="right in first place")
        right.plot(steps, plans, ":", color=BLUE, label="diagnoses first")
    left.set_yticks(range(len(SYSTEMS)), reversed(SYSTEMS))
    left.set(xlim=(0, 1), xlabel="top1 at T = 1 on genes never trained on, 95 %")
    seeds = ", ".join(str(run["seed"]) for run in runs)
    left.set_title(f"{runs[0]['n_cases']} cases, seeds {seeds}", fontsize=10)
    start = runs[0]["training"]["start"]["mean"]
    base = right.axhline(start, color=GREY, lw=1, ls="--", label="base")
    right.set(
        ylim=(0, 1.02), xlabel="RFT step (64 answers each)", ylabel="share of held-out answers"
    )
    right.set_title("the plan that works is found and reinforced", fontsize=10)
    right.legend(handles=[*right.lines[:2], base], fontsize=8, frameon=False, loc=(0.58, 0.28))
    return figure


def fingerprint(record: Record) -> str:
    """What a picture of this record bears in its metadata."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parse.add_argument("--cases", help="phenopackets, for the first seed")
    parse.add_argument("--tables", action="store_true", help="tables and picture alone")
    given = parse.parse_args()
    record = read_json(RECORD) if RECORD.exists() else {"runs": []}
    sums = checksums(load_task("gene_ranking"))
    known = {r["seed"]: r for r in record["runs"] if r["sha256"] == sums}
    for seed in [] if given.tables else given.seeds:
        if seed not in known:
            known[seed] = run(seed, given.cases if seed == given.seeds[0] else None)
        runs = [known[seed] for seed in sorted(known)]
        record = label("python benchmarks/demo_seeds.py", []) | {"date": known[seed]["date"]}
        record |= {"sha256": sums, "runs": runs}
        write_json(RECORD, record)
    results_figure(record).savefig(PICTURE, dpi=110, metadata={"Description": fingerprint(record)})
    BLOCK.write(results_tables(record))
    SUMMARY.write(summary_table(record))


if __name__ == "__main__":
    main()
