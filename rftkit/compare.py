"""`rftkit evaluate`: every model on the same rows, prompts and seeds, then one report.

Whatever can be wrong (rows, grader, metrics, models) is checked before a model is loaded.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

from rftkit.bench import Bench, Rows, append_samples, report_text
from rftkit.console import Reporter, WeakIsolationFlag, argument, option
from rftkit.evaluation import MetricFunction, clusters_of
from rftkit.files import MODELS, UserError, model_gates, read_json, write_json, write_text
from rftkit.graders.answer import Context
from rftkit.graders.grader import GraderSettings, read_grader
from rftkit.policy import LocalPolicy, check_weights, load_policy, model_folder
from rftkit.records import Sample, SamplingConfig
from rftkit.rows import digest_of, messages_digest, read_rows, row_ids, row_ids_note, sha256_of
from rftkit.task import Task, load_task, task_from_json

EMBEDDED_TOKENS, OTHER_TOKENS = 64, 1_024  # the default limit of an answer


@dataclass
class Comparison:
    """What is compared. Each field is an option of `rftkit evaluate`: a new one is a new line."""

    rows: Annotated[Path, argument("ROWS", "The rows (JSONL), or a task: its test rows.")]
    models: Annotated[list[str], option("M", "A model; give it again to compare.", "--model")]
    out: Annotated[Path, option("DIR", "Where the report goes.")]
    grader: Annotated[str | None, option("G", "Grader JSON, or a preset; else the task's.")] = None
    samples: Annotated[int, option("N", "Answers a row at T = 1.", min=1)] = 2
    seed: Annotated[int, option("S", "Of the sampling.", min=0)] = 0
    metrics: Annotated[
        list[str] | None, option("MODULE:FUNCTION", "Your own metric (repeatable).", "--metric")
    ] = None
    task: Annotated[str | None, option("T", "A task; default: the one beside ROWS.")] = None
    group_by: Annotated[str | None, option("KEY", "Rows of one value are drawn together.")] = None
    max_tokens: Annotated[
        int | None, option("N", "Longest answer; default: 64 embedded, else 1,024.", min=1)
    ] = None
    batch_size: Annotated[
        int | None, option("N", "Answers side by side; fewer need less memory.", min=1)
    ] = None
    allow_weak_isolation: WeakIsolationFlag = False


def compare_models(asked: Comparison, reporter: Reporter | None = None) -> dict[str, Any]:
    """Evaluate every model, write the report to `out`, return report.json's object.

    What a finished model answered stays in samples.jsonl, whatever happens to a later one.
    Raises UserError for a mistake in what is asked, and where no answer of a model came at all.
    """
    began, reporter = time.perf_counter(), reporter or Reporter(quiet=True)
    folders = model_folders(asked.models)
    place, bench = open_bench(asked, folders, reporter)
    trained = {model: training_record(model, bench) for model in asked.models}
    open_folder(asked.out)
    reporter.plan(len(folders) * len(bench.rows) * (asked.samples + 1))
    for model in folders:
        policy = load_policy(model)
        if asked.batch_size and isinstance(policy, LocalPolicy):
            policy.batch_size = asked.batch_size
        result = bench.add(model, policy)
        if all(sample.finish_reason == "error" for group in result.samples for sample in group):
            raise UserError(
                f"--model {model}: no answer came ({', '.join(result.samples[0][0].errors)}): "
                "check OPENAI_BASE_URL, OPENAI_API_KEY and the model's name"
            )
        append_samples(asked.out, result)
    report = make_report(bench, trained) | {"rows": str(place)}
    report["sha256"] = {
        place.name: sha256_of(place),
        "grader": digest_of(bench.task.grader_spec).hex(),
        **weights_sums(folders),
    }
    report["seconds"] = round(time.perf_counter() - began, 1)
    write_report(report, asked.out)
    return report


def model_folders(models: Sequence[str]) -> dict[str, list[Path]]:
    """{model: [its base, its adapter]}, [] for an endpoint. UserError for one that is not there."""
    folders: dict[str, list[Path]] = {}
    for model in models:
        if model in folders:
            raise UserError(f"--model: {model} twice, expected each once: remove one")
        if model.startswith("endpoint:"):
            if not (os.environ.get("OPENAI_BASE_URL") or os.environ.get("OPENAI_API_KEY")):
                raise UserError(
                    f"--model {model}: no endpoint, expected its address in OPENAI_BASE_URL: set "
                    "it, for example to http://localhost:8000/v1"
                )
            folders[model] = []
        else:
            folders[model] = [Path(folder) for folder in model_folder(model) if folder]
        for folder in folders[model]:
            check_weights(folder)
    return folders


def open_bench(
    asked: Comparison, folders: Mapping[str, Sequence[Path]], reporter: Reporter
) -> tuple[Path, Bench]:
    """(the file of the rows, the bench): everything is read and checked, no model is loaded."""
    place, task = find_task(asked.rows, asked.task)
    if task is None and asked.grader is None:
        raise UserError(
            f"--grader: missing, and no task.json stands beside {place}: name a grader's JSON, or "
            "a preset (`rftkit graders` lists them)"
        )
    if task is None:
        task = task_from_json({"name": place.stem, "question": "", "grader": {}})
        reporter.say("no task.json, so the grade is the only metric: --task names one")
    changes: dict[str, Any] = {"group_by": asked.group_by or task.group_by}
    if asked.grader is not None:
        changes["grader_spec"], _ = read_grader(asked.grader)
    settings = GraderSettings(allow_weak_isolation=asked.allow_weak_isolation)
    task = replace(task, settings=settings, **changes)
    rows = read_rows(place)
    check_fit(place, rows, task)
    reporter.say(f"task {task.name}, intervals clustered by {task.group_by or 'row'}")
    if row_ids_note(rows):
        reporter.say(row_ids_note(rows))
    functions = {name: load_metric(name) for name in asked.metrics or ()}
    # One limit for all models: what differs between them must be the models alone.
    embedded = all(places and places[0].parent == MODELS for places in folders.values())
    limit = asked.max_tokens or (EMBEDDED_TOKENS if embedded else OTHER_TOKENS)
    sampling = SamplingConfig(max_new_tokens=limit, seed=asked.seed)
    return place, Bench(task, rows, sampling, asked.samples, reporter, functions)


def find_task(rows: Path, task: str | None) -> tuple[Path, Task | None]:
    """(the file of the rows, the task that was named or in whose folder they stand)."""
    named = load_task(task) if task is not None else None
    if not (rows.is_file() or rows.suffix == ".jsonl"):
        own = load_task(rows)
        return own.folder / "test.jsonl", named or own
    if named is None and (rows.parent / "task.json").exists():
        named = load_task(rows.parent)
    return rows, named


def check_fit(place: Path, rows: Rows, task: Task) -> None:
    """Raise UserError where these rows cannot be graded, grouped, or compared with their answer."""
    if not rows:
        raise UserError(f"{place}: no rows, expected at least one")
    row_ids(rows)  # raises where two share an id
    task.grader.check_ready()
    task.grader.check_rows(rows)
    answer = task.answer_path[1] if task.answer_template is not None else None
    for number, row in enumerate(rows, 1):
        for key in filter(None, (task.group_by, answer)):
            if key not in row:
                raise UserError(
                    f'{place}:{number}: no "{key}", expected by task {task.name}: add it, or name '
                    "another --task or --group-by"
                )


def open_folder(out: Path) -> None:
    """Make the folder with an empty samples.jsonl. OSError where nothing can be written there."""
    from rftkit.training.store import is_begun

    if is_begun(out):
        raise UserError(f"--out {out}: holds a training run, expected another folder: name one")
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "samples.jsonl", "")


def load_metric(name: str) -> MetricFunction:
    """A metric of your own from "module:function", the module found as if `python` were run here.

    The function takes (sample, item), as a python grader does, and returns one number, the larger
    the better; sample also has "reasoning", "finish_reason" and "completion_tokens". It runs IN
    THIS PROCESS with all your rights: for your own code only. What is returned raises UserError
    where the function fails or returns anything but a finite number, naming the row.
    """
    module, _, function = name.partition(":")
    if not (module and function):
        raise UserError(f'--metric: "{name}", expected module:function: try my_metrics:length')
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        own = getattr(importlib.import_module(module), function)
        if not callable(own):
            raise TypeError(f"{function} is no function")
    except Exception as error:  # whatever a user's module raises when it is imported
        raise UserError(
            f"--metric {name}: cannot be loaded ({type(error).__name__}: {error}), expected "
            f"{function}(sample, item) in {module}.py here or in an installed module"
        ) from None
    finally:
        sys.path.remove(here)

    def value(row: dict[str, Any], sample: Sample) -> float:
        context = Context(row, sample)
        names = ("reasoning", "finish_reason", "completion_tokens")
        seen = context.as_dict() | {key: getattr(sample, key) for key in names}
        where = f"--metric {name}: row {sample.row_id}, answer of {sample.model}"
        try:
            result = own(seen, context.item)
        except Exception as error:
            raise UserError(f"{where}: {type(error).__name__}: {error}: fix it") from error
        if not isinstance(result, int | float) or not math.isfinite(result):
            raise UserError(f"{where}: {result!r}, expected a finite number")
        return float(result)

    return value


def training_record(model: str, bench: Bench) -> dict[str, Any] | None:
    """What the run folder of a tuned model says of its training; None where there is none.

    `answer_groups_shared_with_eval` counts groups (or, without a group, prompts) of these rows
    that stand in its training rows too: above 0, its numbers here are no held-out numbers. None
    where the run's rows cannot be found from here.
    """
    from rftkit.training.config import config_rows, config_task
    from rftkit.training.store import read_config

    path = Path(model)
    run = next((p for p in (path, path.parent) if (p / "training.json").exists()), None)
    if run is None:
        return None
    record = read_json(run / "training.json")
    training = record.get("training") if isinstance(record, dict) else None
    if not isinstance(training, dict):
        raise UserError(f'{run / "training.json"}: no object "training", expected a run\'s record')

    def marks(rows: Rows) -> set[Any]:
        if bench.task.group_by is None:
            return {messages_digest(row) for row in rows}
        return set(clusters_of(rows, bench.task))

    kept = {key: training.get(key) for key in ("examples", "steps", "seconds", "peak_rss_mb")}
    try:
        config = read_config(run)
        seen, _ = config_rows(config, config_task(config))
        shared = len(marks(seen) & marks(bench.rows))
        return kept | {"method": config.method, "answer_groups_shared_with_eval": shared}
    except UserError:  # the files that the run was trained on are elsewhere
        return kept | {"answer_groups_shared_with_eval": None}


def make_report(bench: Bench, trained: Mapping[str, dict[str, Any] | None]) -> dict[str, Any]:
    """report.json's record; `trained` holds the training record of each model that has one."""
    own = [name for name in bench.functions if name != bench.headline]
    compared = [(bench.headline, False), (bench.headline, True), *((name, False) for name in own)]
    pairs = [
        (later, earlier, metric, greedy)
        for earlier, later in combinations(bench.results, 2)
        for metric, greedy in compared
    ]
    report = bench.to_json(bench.results, pairs) | {"training": {}, "notes": []}
    for system in report["systems"]:
        training = trained.get(system["name"])
        if training:
            system["training"] = training
            report["training"] = {"model": system["name"], **training}  # the last model's stays
        report["notes"] += warnings(system, bench.sampling.max_new_tokens)
    embedded = [n.removeprefix("embedded:") for n in bench.results if n.startswith("embedded:")]
    return report | {"gates": model_gates(embedded)}


def weights_sums(folders: Mapping[str, Sequence[Path]]) -> dict[str, str]:
    """sha256 of each local model's weights and of its adapter's."""
    sums = {}
    for model, places in folders.items():
        for place, file in zip(places, ("model.safetensors", "adapter_model.safetensors")):
            base = f"embedded:{place.name}" if place.parent == MODELS else str(place)
            if (place / file).exists():
                sums[base if file == "model.safetensors" else model] = sha256_of(place / file)
    return sums


def warnings(system: Mapping[str, Any], limit: int) -> list[str]:
    """What a reader of the table must know, a sentence each; empty where all went well."""
    of = f"of {system['answers']} answers"
    shared = system.get("training", {}).get("answer_groups_shared_with_eval")
    notes = {
        f"{system['failed']} {of} never came and count as 0: run it again": system["failed"],
        f"{system['ungraded']} {of} got no grade and count as 0: run it again": system["ungraded"],
        f"on {system['grader_errors']} {of} the grader's own program failed, which counts as 0: "
        "`rftkit grade` on one of them shows its traceback": system["grader_errors"],
        f"{system['truncated']:.0%} of its answers were cut at {limit} tokens: --max-tokens raises "
        "the limit": system["truncated"] > 0.01,
        f"{shared} answer groups of these rows stand in its training rows, so its numbers are no "
        "held-out numbers: evaluate on other rows": shared,
    }
    return [f"{system['name']}: {note}" for note, applies in notes.items() if applies]


def write_report(report: dict[str, Any], out: Path) -> None:
    from rftkit.plots import BLUE, GREEN, ORANGE, save_figure, table_figure

    write_json(out / "report.json", report)
    notes = "\n".join(f"- {note}" for note in report["notes"])
    write_text(out / "report.md", report_text(report, [notes]))
    methods = {s["name"]: s.get("training", {}).get("method") for s in report["systems"]}
    colours = {name: {"grpo": ORANGE, "sft": GREEN}.get(how, BLUE) for name, how in methods.items()}
    save_figure(table_figure(report, report["headline"], colours), out / "table.png")
