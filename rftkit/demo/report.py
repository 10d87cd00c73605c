"""report.json's record, and the files of a finished demo: report, samples, pictures."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from rftkit.data.rows import sha256_of
from rftkit.data.writing import write_json, write_text
from rftkit.demo.settings import REFERENCE_LINES, REFERENCE_SOURCE, RIVALS, SYSTEMS
from rftkit.demo.text import report_text
from rftkit.embedded import embedded_model
from rftkit.environment import machine, peak_memory_mb, versions
from rftkit.evaluation import SystemResult, clusters_of, paired_record
from rftkit.plots import curve_figure, save_figure, table_figure
from rftkit.task import Task
from rftkit.training.record import append_lines

if TYPE_CHECKING:
    from rftkit.demo.run import Demo


def make_report(demo: Demo, clusters: list) -> dict[str, Any]:
    """What the table, the paired differences and the checks of a finished demo say."""
    ordered = [demo.results[name] for name in SYSTEMS]
    rft = demo.results["RFT mini"]
    run = demo.runs["RFT mini"]
    shared = set(clusters_of(demo.train_rows, demo.task)) & set(clusters)
    return {
        "task": demo.task.name,
        "profile": demo.profile,
        "n_cases": len(demo.test_rows),
        "sampling": {"samples": demo.samples, **demo.settings.to_json()},
        "systems": [result.to_json(clusters) for result in ordered],
        "paired": [
            paired_record(rft, demo.results[name], metric, clusters, greedy)
            for name in RIVALS
            for metric, greedy in (("top1", False), ("top1", True), ("top5", False))
        ]
        + [paired_record(demo.results["large base"], demo.results["mini base"], "top1", clusters)],
        "reference_lines": REFERENCE_LINES,
        "reference_source": REFERENCE_SOURCE,
        "training": {
            **run.training,
            "answer_groups_shared_with_eval": len(shared),
            "peak_rss_mb": peak_memory_mb(),
            "start": run.start,
            "best": run.best,
        },
        "rivals": {
            name: {**r.training, "best_step": r.best["step"]}
            for name, r in demo.runs.items()
            if name != "RFT mini"
        },
        "gates": model_gates(),
        "seed": demo.seed,
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions(),
        "sha256": checksums(demo.task),
    }


def write_report(demo: Demo, report: dict[str, Any]) -> None:
    """report.json, report.md, table.png, curve.png and the test lines of samples.jsonl."""
    write_json(demo.out / "report.json", report)
    write_text(demo.out / "report.md", report_text(report))
    save_figure(table_figure(report), demo.out / "table.png")
    run = demo.runs["RFT mini"]
    base = demo.results["mini base"].values["top1"].mean()
    save_figure(curve_figure(run.log, run.start, base), demo.out / "curve.png")
    for result in demo.results.values():
        append_lines(demo.out / "samples.jsonl", lines_of(result))


def model_gates() -> dict[str, Any]:
    """The gates that each embedded base passed, from the record beside its weights."""
    found = {}
    for name in ("mini", "large"):
        path = embedded_model(name) / "gates.json"
        if path.exists():
            found[name] = {
                gate["name"]: {k: gate[k] for k in ("value", "expected", "passed")}
                for gate in json.loads(path.read_text())["gates"]
            }
    return found


def checksums(task: Task) -> dict[str, str]:
    """sha256 of the data and the weights that a report rests on."""
    files = [task.folder / f"{split}.jsonl" for split in ("train", "validation", "test")]
    found = {f"{task.name}/{path.name}": sha256_of(path) for path in files}
    for name in ("mini", "large"):
        found[f"embedded:{name}"] = sha256_of(embedded_model(name) / "model.safetensors")
    return found


def lines_of(result: SystemResult) -> list[dict[str, Any]]:
    groups = [*result.samples, *result.greedy_samples]
    return [sample.to_json() for group in groups for sample in group]
