"""report.json and report.md of a run: what it kept, beside what it began with."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rftkit.data.rows import sha256_of
from rftkit.data.writing import write_json, write_text
from rftkit.environment import machine, versions
from rftkit.evaluation import clusters_of, paired_difference
from rftkit.training.config import RunConfig
from rftkit.training.heldout import LOOK_SEED, HeldOut

START = "before training"
FLATTERS = (
    "Which step is kept was chosen on these rows, so its number flatters a little: report one "
    "from rows that no choice has seen (`rftkit evaluate`)."
)


def run_report(
    out: Path,
    config: RunConfig,
    rows: list[dict[str, Any]],
    training: dict[str, Any],
    watch: HeldOut | None,
) -> dict[str, Any]:
    """report.json's record (the fields are those of every report in the kit).

    rows      that were trained on
    training  of training.json: examples, steps, seconds, peak_rss_mb, stopped, …
    watch     the run's looks at held-out rows; None where there were none
    """
    data = json.loads((out / "data.json").read_text(encoding="utf-8"))
    gate = out / "gate.json"
    verdict = json.loads(gate.read_text(encoding="utf-8"))["verdict"] if gate.exists() else None
    weights = out / "adapter" / "adapter_model.safetensors"
    report = {
        "task": watch.task.name if watch else config.task,
        "n_cases": len(watch.rows) if watch else 0,
        "headline": watch.task.headline if watch else None,
        "sampling": {
            "samples": config.eval_samples,
            "temperature": 1.0,
            "max_new_tokens": config.max_completion_tokens,
            "seed": LOOK_SEED,
        },
        "systems": [],
        "paired": [],
        "training": training
        | {
            "method": config.method,
            "answer_groups_shared_with_eval": shared_groups(rows, watch) if watch else None,
        },
        "gates": {"signal": verdict},
        "notes": [FLATTERS] if watch and watch.best else [],
        "seed": config.seed,
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions(),
        "sha256": {"adapter": sha256_of(weights)} | {k: v[1] for k, v in data.items()},
    }
    if watch and watch.start:
        report["systems"].append(system(START, watch.start))
    if watch and watch.best:
        kept = f"kept, step {watch.best['step']}"
        report["systems"].append(system(kept, watch.best))
        if watch.start_values and watch.best_values:
            difference = paired_difference(
                watch.best_values["metric"],
                watch.start_values["metric"],
                clusters_of(watch.rows, watch.task),
            )
            found = {"difference": round(difference.mean, 4)}
            found |= {"low": round(difference.low, 4), "high": round(difference.high, 4)}
            report["paired"] = [{"a": kept, "b": START, "metric": watch.task.headline} | found]
    return report


def shared_groups(rows: list[dict[str, Any]], watch: HeldOut) -> int | None:
    """Answer groups in both training and held-out rows; None where the task names no group."""
    if watch.task.group_by is None:
        return None
    return len(set(clusters_of(rows, watch.task)) & set(clusters_of(watch.rows, watch.task)))


def system(name: str, look: dict[str, Any]) -> dict[str, Any]:
    """A look at held-out rows as a line of the report; looks sample, so nothing is greedy."""
    value = {key: look[key] for key in ("mean", "low", "high")}
    return {"name": name, "n": look["n"], look["metric"]: value, "greedy": {}} | {
        "mean_grade": look["grade"]
    }


def report_text(report: dict[str, Any]) -> str:
    """report.md"""
    training, metric = report["training"], report["headline"]
    gate = report["gates"]["signal"] or "not asked"
    lines = [f"# {report['task']}: {training['method']}, seed {report['seed']}", ""]
    if report["systems"]:
        lines += [f"| held-out rows: {report['n_cases']} | {metric} at T = 1 | mean grade |"]
        lines += ["|---|---|---|"]
    for row in report["systems"]:
        value = row[metric]
        cell = f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
        lines.append(f"| {row['name']} | {cell} | {row['mean_grade']:.3f} |")
    for pair in report["paired"]:
        found = f"{pair['difference']:+.3f} [{pair['low']:+.3f}, {pair['high']:+.3f}]"
        lines += ["", f"{pair['a']} - {pair['b']}: {found} in {pair['metric']}, row by row."]
    for note in report["notes"]:
        lines += ["", note]
    lines += [
        "",
        f"{training['examples']} rows, {training['steps']} steps, ended by {training['stopped']}; "
        f"{training['seconds']:.0f} s, {training['peak_rss_mb']:.0f} MB at most, on "
        f"{report['machine']}, {report['date']}. The signal gate: {gate}.",
        "",
    ]
    return "\n".join(lines)


def write_report(out: Path, report: dict[str, Any]) -> None:
    write_json(out / "report.json", report)
    write_text(out / "report.md", report_text(report))
