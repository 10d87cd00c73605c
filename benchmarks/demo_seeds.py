"""The demo for several seeds -> datasets/recorded_runs/demo.json; from it the README's results.

    python benchmarks/demo_seeds.py                 # seeds 0, 1, 2, full profile: six minutes
    python benchmarks/demo_seeds.py --cases FILE    # and real cases, with seed 0
    python benchmarks/demo_seeds.py --readme        # only the README's table and picture

A seed that was already recorded with the same data and weights is not run again, so a run that was
interrupted goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from readme_block import write_block

from rftkit.demo import SYSTEMS, checksums
from rftkit.environment import machine, versions
from rftkit.files import write_json
from rftkit.task import load_task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "datasets" / "recorded_runs" / "demo.json"
PICTURE, PICTURE_DPI = ROOT / "docs" / "results.png", 110
BEST_PATTERN = "diagnose first"
COMMAND = "python benchmarks/demo_seeds.py"
BLOCK = ("results", "demo_seeds.py")  # its place in README.md


def run(seed: int, cases: str | None) -> dict:
    out = ROOT / "runs" / f"demo-seed-{seed}"
    command = [sys.executable, "-m", "rftkit.cli", "demo", "--seed", str(seed), "--out", str(out)]
    subprocess.run(command + (["--cases", cases] if cases else []), check=True, cwd=ROOT)
    report = json.loads((out / "report.json").read_text())
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    keep = ("step", "reward_mean", "dead_groups", "entropy", "kl", "patterns", "validation")
    return report | {"log": [{k: line[k] for k in keep if k in line} for line in log]}


def interval(value: dict[str, float]) -> str:
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def readme_tables(record: dict) -> str:
    """The results as Markdown: systems by seeds, then the paired differences by seeds."""
    runs = record["runs"]
    seeds = " | ".join(f"seed {r['seed']}" for r in runs)
    lines = [
        f"| top1 at T = 1, 95 % interval | {seeds} | greedy | top5 |",
        "|---|" + "---|" * (len(runs) + 2),
    ]
    for name in SYSTEMS:
        found = [next(s for s in r["systems"] if s["name"] == name) for r in runs]
        greedy = " / ".join(f"{s['greedy']['top1']:.3f}" for s in found)
        top5 = " / ".join(f"{s['top5']['mean']:.3f}" for s in found)
        bold = "**" if name == "RFT mini" else ""
        cells = " | ".join(f"{bold}{interval(s['top1'])}{bold}" for s in found)
        lines.append(f"| {name} | {cells} | {greedy} | {top5} |")
    lines += ["", f"| paired difference in top1 | {seeds} |", "|---|" + "---|" * len(runs)]
    for first in runs[0]["paired"]:
        if first["metric"] != "top1":
            continue
        same = [
            next(p for p in r["paired"] if (p["a"], p["b"], p["metric"]) ==
                 (first["a"], first["b"], "top1"))
            for r in runs
        ]  # fmt: skip
        cells = " | ".join(
            f"{p['difference']:+.3f} [{p['low']:+.3f}, {p['high']:+.3f}]" for p in same
        )
        lines.append(f"| {first['a']} - {first['b']} | {cells} |")
    training = ", ".join(f"{r['training']['seconds']:.0f}" for r in runs)
    whole = ", ".join(f"{r['seconds']:.0f}" for r in runs)
    memory = max(r["training"]["peak_rss_mb"] or 0 for r in runs)
    lines += [
        "",
        f"Measured with `{record['command']}` on {record['machine']}, {record['date']}: "
        f"{runs[0]['n_cases']} test cases of 90 genes, {runs[0]['sampling']['samples']} samples a "
        f"case, intervals clustered by gene. RFT took {training} s, the whole command {whole} s, "
        f"peak memory {memory / 1000:.1f} GB.",
        "",
        overlap_place(runs),
    ]
    real = next((r["real_cases"] for r in runs if "real_cases" in r), None)
    if real:
        found = {s["name"]: s for s in real["systems"]}
        lines += [
            "",
            real_sentence(real),
            "",
            "| real cases | top1 | greedy | top5 |",
            "|---|---|---|---|",
        ]
        for name in SYSTEMS:
            system = found[name]
            lines.append(
                f"| {name} | {interval(system['top1'])} | {system['greedy']['top1']:.3f} | "
                f"{system['top5']['mean']:.3f} |"
            )
    return "\n".join(lines)


def overlap_place(runs: list[dict]) -> str:
    """Where the row that reads the annotation stands beside RFT mini, seed by seed."""
    top = [{s["name"]: s["top1"]["mean"] for s in r["systems"]} for r in runs]
    above = sum(t["overlap"] > t["RFT mini"] for t in top)
    where = "On these simulated cases overlap stands"
    if above in (0, len(runs)):
        return f"{where} {'above' if above else 'below'} RFT mini in every seed."
    return f"{where} above RFT mini in {above} of {len(runs)} seeds."


def real_sentence(real: dict) -> str:
    lost = "; ".join(f"{count} {reason}" for reason, count in real["lost"].items())
    splits = ", ".join(f"{count} cases of {name} genes" for name, count in real["splits"].items())
    alone = real["test_genes_alone"]
    unseen = "; ".join(
        f"{name} {interval(alone['top1'][name])}"
        for name in ("RFT mini", "mini base", "overlap")
        if name in alone["top1"]
    )
    return (
        f"Real published cases told in the world's 200 terms (seed 0, `--cases`): {real['kept']} "
        f"of {real['read']} kept, {real['genes']} genes ({splits}); lost: {lost}. On the "
        f"{alone['n']} cases of test genes alone, top1: {unseen}."
    )


def results_figure(record: dict) -> Figure:
    """The README's picture: every system of every seed, and RFT's way there over its steps."""
    from matplotlib.figure import Figure

    from rftkit.plots import BLUE, GREY, ORANGE, colour_of

    figure = Figure(figsize=(9.5, 3.4), dpi=PICTURE_DPI, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
    runs = record["runs"]
    for place, name in enumerate(reversed(SYSTEMS)):
        for number, run in enumerate(runs):
            value = next(s for s in run["systems"] if s["name"] == name)["top1"]
            y = place + 0.22 * (1 - number)
            left.plot([value["low"], value["high"]], [y, y], color=colour_of(name), lw=1.5)
            left.plot(value["mean"], y, "o", color=colour_of(name), ms=4)
    left.set_yticks(range(len(SYSTEMS)), reversed(SYSTEMS))
    left.set_xlim(0, 1)
    left.set_xlabel("top1 at T = 1 on genes never trained on, 95 %")
    left.set_title(f"{runs[0]['n_cases']} cases, seeds {seeds_of(runs)}", fontsize=10)
    for number, run in enumerate(runs):
        looks = [(0, run["training"]["start"])]
        looks += [(r["step"], r["validation"]) for r in run["log"] if "validation" in r]
        steps = [step for step, _ in looks]
        right.plot(steps, [look["mean"] for _, look in looks], "o-", ms=3, color=ORANGE,
                   label=None if number else "right in first place")  # fmt: skip
        shares = [look["patterns"][BEST_PATTERN] for _, look in looks]
        right.plot(steps, shares, ":", color=BLUE, label=None if number else "diagnoses first")
    right.axhline(runs[0]["training"]["start"]["mean"], color=GREY, lw=1, ls="--", label="base")
    right.set_ylim(0, 1.02)
    right.set_xlabel("RFT step (64 answers each)")
    right.set_ylabel("share of held-out answers")
    right.set_title("the plan that works is found and reinforced", fontsize=10)
    right.legend(fontsize=8, frameon=False, loc=(0.58, 0.28))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def seeds_of(runs: list[dict]) -> str:
    return ", ".join(str(run["seed"]) for run in runs)


def fingerprint(record: dict) -> str:
    """What a picture of this record bears in its metadata."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def write_readme(record: dict) -> None:
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
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {"runs": []}
    if not given.readme:
        now = checksums(load_task("gene_ranking"))
        known = {r["seed"]: r for r in record["runs"] if r["sha256"] == now}
        for seed in given.seeds:
            if seed not in known:
                known[seed] = run(seed, given.cases if seed == given.seeds[0] else None)
            record = {
                "command": COMMAND,
                "machine": machine(),
                "date": known[seed]["date"],
                "versions": versions(),
                "sha256": now,
                "runs": [known[s] for s in sorted(known)],
            }
            write_json(RECORD, record)
    write_readme(record)


if __name__ == "__main__":
    main()
