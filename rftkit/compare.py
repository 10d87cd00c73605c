"""Systems side by side on the same rows, prompts and seeds: a bench, and `rftkit evaluate`."""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

from rftkit import evaluation, files
from rftkit.console import Reporter, WeakIsolationFlag, argument, option
from rftkit.environment import machine, peak_memory_mb, versions
from rftkit.evaluation import Interval, MetricFunction, SystemResult, clusters_of
from rftkit.files import MODELS, UserError, markdown_table, read_json
from rftkit.graders.answer import PROGRAM_FAILED, Context
from rftkit.graders.grader import GraderSettings, read_grader
from rftkit.policy import Policy, check_weights, load_policy, model_folder
from rftkit.records import Sample, SamplingConfig
from rftkit.rows import messages_key, read_rows, row_ids, sha256_of
from rftkit.task import Task, load_task, task_from_json
from rftkit.training.store import append_lines, is_begun, read_config

Rows = list[dict[str, Any]]
SAMPLE_FIELDS = ("reasoning", "finish_reason", "completion_tokens")
EMBEDDED_TOKENS, OTHER_TOKENS = 64, 1_024  # the default limit of an answer


@dataclass
class Bench:
    """Systems on the same rows, prompts and seeds. samples: answers a row for the headline."""

    task: Task
    rows: Rows
    sampling: SamplingConfig
    samples: int
    reporter: Reporter
    functions: Mapping[str, MetricFunction] = field(default_factory=dict)  # metrics of your own
    results: dict[str, SystemResult] = field(default_factory=dict)

    @property
    def headline(self) -> str:
        return next(iter(self.functions), self.task.headline)

    def add(self, name: str, policy: Policy, votes: int = 0, prefill: str = "") -> SystemResult:
        """Evaluate a system. votes: k of maj@k."""
        work = len(self.rows) * (max(self.samples, votes) + 1)
        self.reporter.stage(f"evaluating {name}", work)
        result = self.results[name] = evaluation.evaluate(
            policy,
            self.task,
            self.rows,
            replace(self.sampling, prefill=prefill),
            self.samples,
            name,
            extra_samples=votes,
            progress=self.reporter.work,
            functions=self.functions,
        )
        value = result.values[self.headline].mean()
        self.reporter.say(f"{name}: {self.headline} {value:.3f} at T = 1")
        return result

    def to_json(self, names: Iterable[str], pairs: Iterable[tuple]) -> dict[str, Any]:
        """What every report.json has. pairs: (later system, earlier system, metric, greedy?)"""
        clusters, results = clusters_of(self.rows, self.task), self.results
        return {
            "task": self.task.name,
            "n_cases": len(self.rows),
            "headline": self.headline,
            "clustered_by": self.task.group_by,
            "sampling": {"samples": self.samples, **self.sampling.to_json()},
            "systems": [results[n].to_json(clusters) | count_answers(results[n]) for n in names],
            "paired": [
                evaluation.paired_record(results[a], results[b], metric, clusters, greedy)
                for a, b, metric, greedy in pairs
            ],
            "peak_rss_mb": peak_memory_mb(),
            "seed": self.sampling.seed,
            "machine": machine(),
            "date": time.strftime("%Y-%m-%d"),
            "versions": versions(),
        }


def count_answers(result: SystemResult) -> dict[str, Any]:
    drawn = [s for group in (*result.samples, *result.greedy_samples) for s in group]
    failed = sum(sample.finish_reason == "error" for sample in drawn)
    cut = sum(sample.finish_reason == "length" for sample in drawn)
    return {
        "answers": len(drawn),
        "truncated": round(cut / len(drawn), 4),
        "failed": failed,  # never came
        "ungraded": sum(sample.grade is None for sample in drawn) - failed,
        "grader_errors": sum(PROGRAM_FAILED in sample.errors for sample in drawn),
    }


def append_samples(out: Path, result: SystemResult) -> None:
    """Lines of samples.jsonl; `greedy` tells the two ways of drawing apart."""
    for groups, greedy in ((result.samples, False), (result.greedy_samples, True)):
        lines = [sample.to_json() | {"greedy": greedy} for group in groups for sample in group]
        append_lines(out / "samples.jsonl", lines)


def systems_table(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """Rows of a table: the headline with its interval and greedy, the other metrics' means."""
    systems, headline = report["systems"], report["headline"]
    metrics = {k: None for s in systems for k, v in s.items() if isinstance(v, dict) and "low" in v}
    others = [metric for metric in metrics if metric != headline]
    return [
        {
            "system": system["name"],
            f"{headline} at T = 1": str(Interval(**system[headline])),
            "greedy": f"{system['greedy'][headline]:.3f}",
        }
        | {name: f"{system[name]['mean']:.3f}" if name in system else "" for name in others}
        for system in systems
    ]


def paired_table(report: Mapping[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "paired difference": f"{pair['a']} - {pair['b']}",
            "metric": pair["metric"],
            "difference, 95 % interval": paired_text(pair),
        }
        for pair in report["paired"]
    ]


def paired_text(pair: Mapping[str, Any]) -> str:
    return f"{Interval(pair['difference'], pair['low'], pair['high']):+}"


def write_report(report: dict[str, Any], sentences: Sequence[str], out: Path) -> None:
    """report.json, table.png and report.md: the tables, what they say, where it was measured."""
    from rftkit.plots import table_figure

    samples, by = report["sampling"]["samples"], report["clustered_by"] or "row"
    parts = [
        f"# {report['task']}: {report['n_cases']} rows, seed {report['seed']}",
        markdown_table(systems_table(report)),
        markdown_table(paired_table(report)),
        *sentences,
        f"{samples} answers a row at T = 1; 95 % intervals clustered by {by}. Measured "
        f"{report['date']}, {report['machine']}, in {report['seconds']:.0f} s.",
    ]
    files.write_json(out / "report.json", report)
    files.write_text(out / "report.md", "\n\n".join(filter(None, parts)) + "\n")
    table_figure(report, report["headline"]).savefig(out / "table.png")


@dataclass
class Comparison:
    """Each field is an option of `rftkit evaluate`: a new one is a new line."""

    rows: Annotated[Path, argument("ROWS", "The rows (JSONL), or a task: its test rows.")]
    models: Annotated[list[str], option("M", "A model; give it again to compare.", "--model")]
    out: Annotated[Path, option("DIR", "Where the report goes.")]
    grader: Annotated[str | None, option("G", "Grader JSON, or a preset; else the task's.")] = None
    samples: Annotated[int, option("N", "Answers a row at T = 1.", min=1)] = 2
    seed: Annotated[int, option("S", "Of the sampling.", min=0)] = 0
    metrics: Annotated[list[str] | None, option("MODULE:FUNCTION", "Your own.", "--metric")] = None
    task: Annotated[str | None, option("T", "A task; default: the one beside ROWS.")] = None
    group_by: Annotated[str | None, option("KEY", "Rows of one value are drawn together.")] = None
    max_tokens: Annotated[int | None, option("N", "Default: 64 embedded, else 1024.", min=1)] = None
    batch_size: Annotated[int | None, option("N", "Answers drawn side by side.", min=1)] = None
    allow_weak_isolation: WeakIsolationFlag = False


def compare_models(asked: Comparison, reporter: Reporter | None = None) -> dict[str, Any]:
    """Evaluate every model, write the report to `out`, return report.json's object."""
    began, out = time.perf_counter(), asked.out
    weights = {k: v for model in asked.models for k, v in local_weights(model).items()}
    place, bench = open_bench(asked, reporter or Reporter(quiet=True))
    trained = {model: training_record(model, bench) for model in asked.models}
    if is_begun(out):
        raise UserError(f"--out {out}: holds a training run, expected another folder")
    files.write_text(out / "samples.jsonl", "")
    for model in asked.models:
        policy = load_policy(model)
        if asked.batch_size:
            policy.batch_size = asked.batch_size
        result = bench.add(model, policy)
        if all(sample.finish_reason == "error" for group in result.samples for sample in group):
            cause = ", ".join(result.samples[0][0].errors)
            raise UserError(f"--model {model}: no answer came ({cause}): check address and key")
        append_samples(out, result)
    report = make_report(bench, trained) | {"rows": str(place)}
    report["sha256"] = {
        place.name: sha256_of(place),
        "grader": sha256(json.dumps(bench.task.grader_spec, sort_keys=True).encode()).hexdigest(),
    }
    for name, folder in weights.items():
        for file in folder.glob("*model.safetensors"):
            report["sha256"][name] = sha256_of(file)
    report["seconds"] = round(time.perf_counter() - began, 1)
    write_report(report, report["notes"], out)
    return report


def local_weights(model: str) -> dict[str, Path]:
    """{name in the report: folder} of its adapter and its base; {} for an endpoint."""
    if model.startswith("endpoint:"):
        if not os.environ.keys() & {"OPENAI_BASE_URL", "OPENAI_API_KEY"}:
            raise UserError(f"--model {model}: OPENAI_BASE_URL is not set: set its address there")
        return {}
    base, adapter = (folder and Path(folder) for folder in model_folder(model))
    own_base = f"embedded:{base.name}" if base.parent == MODELS else str(base)
    folders = {own_base: base, model: adapter} if adapter else {model: base}
    for folder in folders.values():
        check_weights(folder)
    return folders


def open_bench(asked: Comparison, reporter: Reporter) -> tuple[Path, Bench]:
    """(the file of the rows, the bench): everything is read and checked, no model is loaded."""
    place, name = asked.rows, asked.task
    if not (place.is_file() or place.suffix == ".jsonl"):
        name = name or place
        place = load_task(place).folder / "test.jsonl"
    elif name is None and (place.parent / "task.json").exists():
        name = place.parent
    if name is None and asked.grader is None:
        raise UserError(f"--grader: missing, and no task.json stands beside {place}: name a grader")
    nameless = {"name": place.stem, "question": "", "grader": {}}
    task = task_from_json(nameless) if name is None else load_task(name)
    spec = read_grader(asked.grader)[0] if asked.grader else task.grader_spec
    settings = GraderSettings(allow_weak_isolation=asked.allow_weak_isolation)
    group_by = asked.group_by or task.group_by
    task = replace(task, grader_spec=spec, settings=settings, group_by=group_by)
    rows = read_rows(place)
    row_ids(rows)  # raises where two share an id
    task.grader.check_ready()
    task.grader.check_rows(rows)
    needed = {group_by, task.answer_path[1] if task.answer_template else None} - {None}
    for number, row in enumerate(rows, 1):
        for key in needed - row.keys():
            raise UserError(f'{place}:{number}: no "{key}", as task {task.name} has: name another')
    functions = {name: load_metric(name) for name in asked.metrics or ()}
    # One limit for all models: what differs between them must be the models alone.
    embedded = all(Path(model_folder(model)[0]).parent == MODELS for model in asked.models)
    limit = asked.max_tokens or (EMBEDDED_TOKENS if embedded else OTHER_TOKENS)
    sampling = SamplingConfig(max_new_tokens=limit, seed=asked.seed)
    return place, Bench(task, rows, sampling, asked.samples, reporter, functions)


def load_metric(name: str) -> MetricFunction:
    """A metric of your own from "module:function", the module found as if `python` were run here.

    The function takes (sample, item), as a python grader does, and returns one number; sample also
    has SAMPLE_FIELDS. It runs IN THIS PROCESS with all your rights: for your own code only.
    """
    module, _, function = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        own = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever a user's module raises when it is imported
        cause = f"cannot be loaded ({error!r})"
        raise UserError(f"--metric {name}: {cause}, expected module:function found here") from None
    finally:
        sys.path.pop(0)

    def value(row: dict[str, Any], sample: Sample) -> float:
        more = {key: getattr(sample, key) for key in SAMPLE_FIELDS}
        number = own(Context(row, sample).as_dict() | more, row)
        if not math.isfinite(number):
            raise UserError(f"--metric {name}: {number} for row {sample.row_id}: return a number")
        return number

    return value


def training_record(model: str, bench: Bench) -> dict[str, Any]:
    """What the run folder of a tuned model says of its training; empty where there is none.
    `answer_groups_shared_with_eval` is None where the run's rows cannot be found from here."""
    from rftkit.training.config import config_rows, config_task
    from rftkit.training.report import shared_groups

    run = Path(model) if (Path(model) / "training.json").exists() else Path(model).parent
    if not (run / "training.json").exists():
        return {}
    training, config = read_json(run / "training.json")["training"], read_config(run)
    kept = {key: training.get(key) for key in ("examples", "steps", "seconds", "peak_rss_mb")}
    kept |= {"method": config.method, "answer_groups_shared_with_eval": None}
    with suppress(UserError):  # the files that the run was trained on are elsewhere
        seen, _ = config_rows(config, config_task(config))
        shared = shared_groups(seen, bench.rows, bench.task)
        if shared is None:  # no group: prompts
            shared = set(map(messages_key, seen)) & set(map(messages_key, bench.rows))
        kept["answer_groups_shared_with_eval"] = len(shared)
    return kept


def make_report(bench: Bench, trained: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """report.json's record; `trained` holds the training record of each model that has one."""
    own = [(name, False) for name in bench.functions if name != bench.headline]
    compared = [(bench.headline, False), (bench.headline, True), *own]
    couples = combinations(bench.results, 2)
    pairs = [(later, earlier, *how) for earlier, later in couples for how in compared]
    report = bench.to_json(bench.results, pairs) | {"training": {}, "notes": []}
    for system in report["systems"]:
        if training := trained.get(system["name"]):
            system["training"] = training
            report["training"] = {"model": system["name"], **training}  # the last model's stays
        report["notes"] += warnings(system, bench.sampling.max_new_tokens)
    embedded = [n.removeprefix("embedded:") for n in bench.results if n.startswith("embedded:")]
    return report | {"gates": files.model_gates(embedded)}


def warnings(system: Mapping[str, Any], limit: int) -> list[str]:
    """What a reader of the table must know, a sentence each."""
    of = f"of {system['answers']} answers"
    missing = system["failed"] + system["ungraded"]
    shared = system.get("training", {}).get("answer_groups_shared_with_eval")
    notes = {
        f"{missing} {of} never came or got no grade, and count as 0: run it again": missing,
        f"on {system['grader_errors']} {of} the grader's own program failed, which counts as 0: "
        "`rftkit grade` on one of them shows its traceback": system["grader_errors"],
        f"{system['truncated']:.0%} of its answers were cut at {limit} tokens: --max-tokens raises "
        "the limit": system["truncated"] > 0.01,
        f"{shared} answer groups of these rows stand in its training rows, so its numbers are no "
        "held-out numbers: evaluate on other rows": shared,
    }
    return [f"{system['name']}: {note}" for note, applies in notes.items() if applies]
