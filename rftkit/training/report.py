"""What runs came to: tables and text of every report, and all runs of a folder side by side."""

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from rftkit.environment import machine, versions
from rftkit.evaluation import Interval, SystemResult, clusters_of, paired_record
from rftkit.files import UserError, markdown_table, read_json, shorten, write_json, write_text
from rftkit.graders.grader import Grader, GraderSettings
from rftkit.logs import KEPT_START, alarms_of, best_of, read_lines, validations_of
from rftkit.records import Sample
from rftkit.rows import read_rows, row_ids, sha256_of
from rftkit.task import Task
from rftkit.training.config import RunConfig, config_rows, config_task
from rftkit.training.session import Session
from rftkit.training.store import read_config

CHOSEN_ON_THESE = (
    "Which step is kept was chosen on these rows, so its number is a little too high: report one "
    "from rows that no choice has seen (`rftkit evaluate`)."
)
ADAPTER_CARD = """---
base_model: {base}
library_name: peft
---

A LoRA adapter of {base}, trained by rftkit with the grader "{grader}". It was tried on prompts
like its training rows (sha256 {sha256[training rows]:.12}) alone.

"""


def shared_groups(rows: list[dict], held_out: list[dict], task: Task) -> set[str] | None:
    """Answer groups in both training and held-out rows; None where the task names no group."""
    if task.group_by is None:
        return None
    return set(clusters_of(rows, task)) & set(clusters_of(held_out, task))


def write_report(session: Session, training: dict[str, Any]) -> None:
    """report.json, whose fields are those of every report in the kit, and report.md."""
    config, out, held_out, task = session.config, session.out, session.held_out, session.task
    rows, progress, gate = held_out.rows, session.progress, out / "gate.json"
    shared = shared_groups(session.rows, rows, task)
    common = None if shared is None else len(shared)
    verdict = read_json(gate) if gate.exists() else {"verdict": None, "reference": {}}
    systems, paired = [], []
    if progress.best:
        kept = f"kept, step {progress.best['step']}"
        numbers = {"before training": progress.start_values, kept: progress.best_values}
        systems = [SystemResult(name, len(rows), values) for name, values in numbers.items()]
        paired = [paired_record(*systems[::-1], task.headline, held_out.clusters)]
    report = {
        "task": task.name,
        "base": config.model,
        "grader": task.grader.name,
        "n_cases": len(rows),
        "headline": task.headline if rows else None,
        "clustered_by": task.group_by,
        "sampling": {"samples": config.eval_samples, **held_out.sampling.to_json()},
        "systems": [system.to_json(held_out.clusters) for system in systems],
        "paired": paired,
        "training": training | {"method": config.method, "answer_groups_shared_with_eval": common},
        "gates": {"signal": verdict["verdict"]},
        "grader_maximum": verdict["reference"].get("maximum", task.grader.maximum),
        "notes": [CHOSEN_ON_THESE] * bool(systems)
        + [KEPT_START] * (progress.best.get("step") == 0),
        "seed": config.seed,
        "seconds": training["seconds"],
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions(),
        "sha256": {"adapter": sha256_of(out / "adapter" / "adapter_model.safetensors")}
        | {name: digest for name, (_, digest) in read_json(out / "data.json").items()},
    }
    ended = (
        f"{config.method}: {training['examples']} training rows, {training['steps']} steps, ended "
        f"by {training['stopped']}; {training['peak_rss_mb']} MB at most. The best grade is "
        f"{report['grader_maximum']:g}. The signal gate: {verdict['verdict'] or 'not asked'}."
    )
    text = report_text(report, [*report["notes"], ended])
    write_json(out / "report.json", report)
    write_text(out / "report.md", text)
    write_text(out / "adapter" / "README.md", ADAPTER_CARD.format(**report) + text)


def report_text(report: Mapping[str, Any], sentences: Sequence[str]) -> str:
    """report.md, of a run or a comparison: tables, sentences, and how it was measured."""
    samples, by = report["sampling"]["samples"], report["clustered_by"] or "row"
    parts = [
        f"# {report['task']}: {report['n_cases']} rows, seed {report['seed']}",
        markdown_table(systems_table(report)),
        markdown_table(paired_table(report)),
        *sentences,
        f"{samples} answers per row at T = 1; 95 % intervals clustered by {by}. Measured "
        f"{report['date']}, {report['machine']}, in {report['seconds']:.0f} s.",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def systems_table(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """Table rows: the headline, sampled with an interval and greedy; other metrics' means."""
    systems, headline = report["systems"], report["headline"]
    metrics = {k: None for s in systems for k, v in s.items() if isinstance(v, dict) and "low" in v}
    others = report.get("columns") or [metric for metric in metrics if metric != headline]
    rows = []
    for system in systems:
        sampled = f"{Interval(**system[headline])}{' *' * system.get('ignores_temperature', False)}"
        row = {"system": system["name"], f"{headline} at T = 1": sampled}
        if system["greedy"]:
            row["greedy"] = f"{system['greedy'][headline]:.3f}"
        row |= {name: f"{system[name]['mean']:.3f}" if name in system else "" for name in others}
        if any(other.get("distinct", 1) < 1 for other in systems):
            row["distinct"] = f"{system['distinct']:.2f}"
        if "tokens" in system:
            row["tokens"] = f"{system['tokens']:.0f}" if system["tokens"] else ""
            row["ms"] = f"{1e3 * system['seconds']:.1f}" if system["tokens"] else ""
        rows.append(row)
    return rows


def paired_table(report: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "paired difference": f"{pair['a']} - {pair['b']}",
            "metric": pair["metric"],
            "difference, 95 % interval": paired_text(pair),
            "p": f"{pair['p']:.4f}",
            "visible from": f"{(pair['high'] - pair['low']) / 2:.3f}",
        }
        for pair in report["paired"]
    ]


def paired_text(pair: Mapping[str, Any]) -> str:
    return f"{Interval(pair['difference'], pair['low'], pair['high']):+}"


def regrade(
    source: str | Path,
    grader: Any,
    rows: Iterable[dict] | None = None,
    settings: GraderSettings | None = None,
) -> dict[str, Any]:
    """Grade stored completions by another grader; nothing is sampled.

    `source`: the folder of a run or of an evaluation, or its samples.jsonl; `rows`: what was
    answered, where the folder does not name it. Mean grades `before` and `after`, and shares:
    `changed` of the answers, `best_changed` of the groups (completions to one prompt), `swapped` of
    the pairs in a group that the first grader told apart. `answers`: the samples, graded anew.
    """
    file = Path(source, "samples.jsonl") if Path(source).is_dir() else Path(source)
    answers, rows = read_lines(file), list(rows_behind(file.parent) if rows is None else rows)
    by_id = dict(zip(row_ids(rows), rows))
    if unknown := [record["row_id"] for record in answers if record["row_id"] not in by_id]:
        has = f"{file}: {len(unknown)} answers to rows that are not at hand (first: {unknown[0]})"
        raise UserError(f"{has}: pass them, regrade(…, rows=…)")
    grader = Grader.load(grader, settings or GraderSettings())
    samples = [Sample(**{f.name: record[f.name] for f in fields(Sample)}) for record in answers]
    grades = grader.evaluate_many([by_id[sample.row_id] for sample in samples], samples)
    groups = defaultdict(list)
    for record, grade in zip(answers, grades):
        record |= {"grade_before": record["grade"], "grade": grade.reward}
        record |= {"sub_grades": dict(grade.sub_rewards), "errors": grade.errors}
        if None not in (pair := (record["grade_before"], record["grade"])):
            groups[tuple(map(record.get, ("step", "model", "greedy", "row_id")))].append(pair)
    if not groups:
        raise UserError(f"{file}: no answer has both grades, expected one at least")
    best, order = [], []
    for before, after in (np.array(group).T for group in groups.values()):
        best.append(after.max() > after[before == before.max()].max())
        i, j = np.triu_indices(len(before), 1)
        gaps = (before[i] - before[j]) * (after[i] - after[j])
        order += [*(gaps < 0)[before[i] != before[j]]]
    before, after = np.concatenate([*groups.values()]).T
    return {
        "grader": grader.name,
        "n_answers": len(answers),
        "n_graded": len(before),
        "before": float(before.mean()),
        "after": float(after.mean()),
        "changed": float(np.mean(np.abs(after - before) > 1e-9)),
        "best_changed": float(np.mean(best)),
        "swapped": float(np.mean(order)) if order else 0.0,
        "answers": answers,
    }


def rows_behind(folder: Path) -> list[dict]:
    """All rows of a run's task and config, or those that an evaluation answered."""
    if (folder / "config.json").exists():
        config = read_config(folder)
        task = config_task(config)
        test = task.rows("test") if task.folder and (task.folder / "test.jsonl").exists() else []
        return sum(config_rows(config, task), []) + test
    report = read_json(folder / "report.json") if (folder / "report.json").exists() else {}
    return read_rows(report["rows"]) if "rows" in report else []


def list_runs(folder: Path) -> dict[str, Any]:
    """{"runs": every run under `folder`, "differing": fields of their configs, "unreadable": what
    is wrong with those left out}"""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder, expected one that holds run folders")
    runs, unreadable = [], []
    for place in sorted(path.parent for path in folder.rglob("data.json")):
        try:
            log, ended = read_lines(place / "log.jsonl"), place / "training.json"
            summary = read_json(ended) if ended.exists() else {}
            validations = validations_of(log)
            run = {
                "name": str(place.relative_to(folder)),
                "state": "finished" if summary else "unfinished",
                "steps": len(log),
                "seconds": log[-1]["seconds"] if log else 0.0,
                "start": summary.get("start", {}),
                "best": summary.get("best") or (best_of(validations) if validations else {}),
                "stopped": summary.get("training", {}).get("stopped"),
                "alarms": sorted({alarm["name"] for alarm in alarms_of(log)}),
                "config": dict(read_config(place)),
            }
            runs.append(run)
        except (LookupError, TypeError, AttributeError, ValueError, OSError) as error:
            unreadable.append(f"{place}: {error}")
    differing = [
        name
        for name in RunConfig.model_fields
        if len({json.dumps(run["config"][name], sort_keys=True) for run in runs}) > 1
    ]
    for run in runs:
        run["config"] = {name: run["config"][name] for name in differing}
    return {"runs": runs, "differing": differing, "unreadable": unreadable}


def runs_table(runs: dict[str, Any]) -> list[dict[str, str]]:
    """The runs as records, a column each key: the held-out metric first, then what differs."""
    rows = []
    for run in runs["runs"]:
        best = run["best"]
        interval = Interval(*(best[key] for key in ("mean", "low", "high"))) if best else ""
        row = {
            "run": run["name"],
            "held out": f"{best['metric']} {interval}" if best else "none",
            "at step": str(best.get("step", "")),
            "steps": str(run["steps"]),
            "ended by": str(run["stopped"] or run["state"]),
            "alarms": ", ".join(run["alarms"]) or "none",
        }
        for name, value in run["config"].items():
            text = value.get("name") if name == "grader" and isinstance(value, dict) else value
            row[name] = shorten("none" if text is None else text, 28).replace("|", "/")
        rows.append(row)
    return rows
