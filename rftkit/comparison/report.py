"""A comparison's report: report.json's record, the same in words, the picture, the answers."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from rftkit.comparison.inputs import Inputs
from rftkit.data.records import SamplingConfig
from rftkit.data.rows import digest_of, sha256_of
from rftkit.data.writing import write_json, write_text
from rftkit.embedded import MODELS, model_gates
from rftkit.environment import machine, peak_memory_mb, versions
from rftkit.evaluation import SystemResult, clusters_of, paired_record
from rftkit.graders.report import PROGRAM_FAILED
from rftkit.plots import BLUE, GREEN, ORANGE, save_figure, table_figure
from rftkit.policy import model_folder

REPORT_FILES = ("report.json", "report.md", "table.png", "samples.jsonl")


def make_report(
    inputs: Inputs,
    results: Sequence[SystemResult],
    config: SamplingConfig,
    samples: int,
    trained: Mapping[str, dict[str, Any] | None],
) -> dict[str, Any]:
    """report.json's record; `trained` holds the training record of each model that has one."""
    clusters = clusters_of(inputs.rows, inputs.task)
    systems = []
    for result in results:
        record = result.to_json(clusters) | lost_answers(result)
        training = trained.get(result.name)
        systems.append(record | ({"training": training} if training else {}))
    last = next((r for r in reversed(systems) if "training" in r), None)
    return {
        "task": inputs.task.name,
        "rows": str(inputs.place),
        "n_cases": len(inputs.rows),
        "headline": inputs.headline,
        "clustered_by": inputs.task.group_by,
        "sampling": {"samples": samples, **config.to_json()},
        "systems": systems,
        "paired": [
            paired_record(later, earlier, metric, clusters, greedy)
            for earlier, later in combinations(results, 2)
            for metric, greedy in compared_metrics(inputs)
        ],
        # of the last model that a run made; every such model's own stands under `systems`
        "training": {"model": last["name"], **last["training"]} if last else {},
        "gates": model_gates(embedded_names(r.name for r in results)),
        "notes": warnings(systems, config),
        "peak_rss_mb": peak_memory_mb(),
        "seed": config.seed,
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions(),
        "sha256": checksums(inputs, [result.name for result in results]),
    }


def compared_metrics(inputs: Inputs) -> list[tuple[str, bool]]:
    """(metric, greedy): the headline sampled and greedy, then the other metrics of your own."""
    own = [name for name in inputs.functions if name != inputs.headline]
    return [(inputs.headline, False), (inputs.headline, True), *((name, False) for name in own)]


def lost_answers(result: SystemResult) -> dict[str, Any]:
    """How many answers: drawn; cut at the limit (a share); never came; met grading machinery that
    failed; met a python grader whose own program failed."""
    drawn = [s for group in (*result.samples, *result.greedy_samples) for s in group]
    cut = sum(sample.finish_reason == "length" for sample in drawn)
    failed = sum(sample.finish_reason == "error" for sample in drawn)
    ungraded = sum(sample.grade is None for sample in drawn) - failed
    share = round(cut / len(drawn), 4)
    found = {"answers": len(drawn), "truncated": share, "failed": failed, "ungraded": ungraded}
    return found | {"grader_errors": sum(PROGRAM_FAILED in sample.errors for sample in drawn)}


def warnings(systems: Sequence[dict[str, Any]], config: SamplingConfig) -> list[str]:
    """What a reader of the table must know, one sentence each; empty where all went well."""
    found = []
    for system in systems:
        name, n = system["name"], system["answers"]
        for count, what in (
            (system["failed"], "never came"),
            (system["ungraded"], "could not be graded"),
        ):
            if count:
                found.append(f"{name}: {count} of {n} answers {what} and count as 0: run it again")
        if system["grader_errors"]:
            found.append(
                f"{name}: on {system['grader_errors']} of {n} answers the grader's own program "
                "failed, which counts as 0: `rftkit grade` on one of them shows its traceback"
            )
        if system["truncated"] > 0.01:
            found.append(
                f"{name}: {system['truncated']:.0%} of its answers were cut at "
                f"{config.max_new_tokens} tokens: --max-tokens raises the limit"
            )
        shared = system.get("training", {}).get("answer_groups_shared_with_eval")
        if shared:
            found.append(
                f"{name}: {shared} answer groups of these rows stand in its training rows, so its "
                "numbers are no held-out numbers: evaluate on other rows"
            )
    return found


def embedded_names(models: Any) -> list[str]:
    prefix = "embedded:"
    return [name.removeprefix(prefix) for name in models if name.startswith(prefix)]


def checksums(inputs: Inputs, models: Sequence[str]) -> dict[str, str]:
    """sha256 of the rows and of each local model's weights; a digest of the grader's JSON."""
    found = {
        inputs.place.name: sha256_of(inputs.place),
        "grader": digest_of(inputs.task.grader_spec).hex(),
    }
    for model in models:
        if model.startswith("endpoint:"):
            continue
        base, adapter = model_folder(model)
        label = f"embedded:{Path(base).name}" if Path(base).parent == MODELS else base
        for name, folder, file in (
            (label, base, "model.safetensors"),
            (model, adapter, "adapter_model.safetensors"),
        ):
            if folder and (Path(folder) / file).exists():
                found[name] = sha256_of(Path(folder) / file)
    return found


def sample_lines(result: SystemResult) -> list[dict[str, Any]]:
    """Lines of samples.jsonl; `greedy` tells the two ways of drawing apart."""
    return [
        sample.to_json() | {"greedy": greedy}
        for groups, greedy in ((result.samples, False), (result.greedy_samples, True))
        for group in groups
        for sample in group
    ]


def write_report(report: dict[str, Any], out: Path) -> None:
    write_json(out / "report.json", report)
    write_text(out / "report.md", comparison_text(report))
    methods = {s["name"]: s.get("training", {}).get("method") for s in report["systems"]}
    colours = {name: {"grpo": ORANGE, "sft": GREEN}.get(how, BLUE) for name, how in methods.items()}
    save_figure(table_figure(report, report["headline"], colours), out / "table.png")


# --- in words ----------------------------------------------------------------------------------


def cell(value: dict[str, float]) -> str:
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def paired_table(paired: list[dict[str, Any]]) -> list[str]:
    lines = ["| paired difference | metric | difference, 95 % interval |", "|---|---|---|"]
    for pair in paired:
        found = f"{pair['difference']:+.3f} [{pair['low']:+.3f}, {pair['high']:+.3f}]"
        lines.append(f"| {pair['a']} - {pair['b']} | {pair['metric']} | {found} |")
    return lines


def metrics_of(report: dict[str, Any]) -> list[str]:
    """The metrics of a report, its headline first."""
    first = report["systems"][0]
    measured = [key for key, value in first.items() if isinstance(value, dict) and "low" in value]
    return [report["headline"], *(name for name in measured if name != report["headline"])]


def comparison_table(report: dict[str, Any]) -> list[str]:
    """Markdown rows: the headline with its interval and greedy, the other metrics' means."""
    head, *others = metrics_of(report)
    columns = ["system", f"{head} at T = 1", "greedy", *others]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for system in report["systems"]:
        cells = [system["name"], cell(system[head]), f"{system['greedy'][head]:.3f}"]
        cells += [f"{system[name]['mean']:.3f}" for name in others]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def comparison_text(report: dict[str, Any]) -> str:
    """report.md: the table, the paired differences, what to mind, where it was measured."""
    by = report["clustered_by"]
    lines = [
        f"# {report['task']}: {report['n_cases']} rows, seed {report['seed']}",
        "",
        *comparison_table(report),
        "",
    ]
    if report["paired"]:
        lines += [*paired_table(report["paired"]), ""]
        lines += [
            "A paired difference compares two systems row by row, so it is sharper than their "
            "intervals side by side: above zero throughout, the first is better on such rows.",
            "",
        ]
    lines += [f"- {note}" for note in report["notes"]] + [""] * bool(report["notes"])
    lines.append(
        f"{report['sampling']['samples']} answers a row at T = 1, at most "
        f"{report['sampling']['max_new_tokens']} tokens; mean over rows of the mean over a row's "
        f"answers, with 95 % bootstrap intervals clustered by {by or 'row'}; greedy: the likeliest "
        f"answer. Measured {report['date']}, {report['machine']}, in {report['seconds']:.0f} s. "
        f"Rows: {json.dumps(report['rows'])}."
    )
    return "\n".join(lines) + "\n"
