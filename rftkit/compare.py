"""Every model on the same rows, prompts and seeds, then one report."""

from __future__ import annotations

import errno
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

from rftkit.environment import machine, peak_memory_mb, versions
from rftkit.evaluation import MetricFunction, SystemResult, clusters_of, evaluate, paired_record
from rftkit.files import MODELS, UserError, dataset, model_gates, write_json, write_text
from rftkit.graders.answer import PROGRAM_FAILED, Context
from rftkit.graders.grader import GraderSettings, read_grader
from rftkit.graders.presets import SHELF, shelf_json
from rftkit.plots import BLUE, GREEN, ORANGE, save_figure, table_figure
from rftkit.policy import LocalPolicy, check_weights, load_policy, model_folder
from rftkit.records import Sample, SamplingConfig
from rftkit.rows import digest_of, messages_digest, read_rows, row_ids, row_ids_note, sha256_of
from rftkit.task import Task, load_task, task_from_json
from rftkit.training.config import config_rows, config_task
from rftkit.training.store import append_lines, is_begun, read_config

# ------------------------------------------------------------------------------------------
# from rftkit.comparison.inputs:
# What is evaluated: the rows, the task they belong to, the grader, metrics of your own.
#
# Everything that can be wrong is said here, before a model is loaded.


@dataclass
class Inputs:
    """Rows with the task that says how to grade and measure them.

    place      the file of the rows
    functions  metrics of your own, by the name under which they stand in the report
    headline   the metric that the picture and the paired differences show first
    notes      what was decided for the user, each a sentence
    """

    place: Path
    rows: list[dict[str, Any]]
    task: Task
    functions: dict[str, MetricFunction] = field(default_factory=dict)
    headline: str = "grade"
    notes: list[str] = field(default_factory=list)


def read_inputs(
    rows: str | Path,
    grader: str | Path | None = None,
    metrics: Sequence[str] = (),
    task: str | Path | None = None,
    group_by: str | None = None,
    allow_weak_isolation: bool = False,
) -> Inputs:
    """Read and check what is evaluated.

    rows      a JSONL file; or a task (a folder, or a name under datasets/), meaning its test rows
    grader    a file with grader JSON, or the name of one on the shelf; by default the task's
    metrics   "module:function" each, see load_metric
    task      a task folder or name, by default the one in whose folder the rows stand: it says
              where the answer stands, what intervals are clustered by, which thinking patterns
    group_by  instead of the task's
    allow_weak_isolation  of python graders, see GraderSettings

    Raises UserError for anything missing, unreadable, or unfit for these rows.
    """
    place, found = find_task(rows, task)
    notes = []
    if found is None:
        if grader is None:
            raise UserError(
                f"--grader: missing, and no task.json stands beside {place}, expected one of the "
                "two: name a grader's JSON or `rftkit graders` for those on the shelf"
            )
        found = task_from_json({"name": place.stem, "question": "", "grader": {}})
        notes.append(
            "no task.json beside the rows, so the grade is the metric, and nothing says where the "
            "answer stands (top1 would need it): --task names one"
        )
    else:
        notes.append(f"task {found.name}: metrics {', '.join(found.metrics)}")
    changes: dict[str, Any] = {
        "settings": GraderSettings(allow_weak_isolation=allow_weak_isolation)
    }
    if grader is not None:
        changes["grader_spec"] = grader_spec(grader)
    if group_by is not None:
        changes["group_by"] = group_by
    found = replace(found, **changes)
    loaded = read_rows(place)
    check_fit(place, loaded, found)
    clusters = f"by {found.group_by}" if found.group_by else "by row (--group-by names a key)"
    notes += [f"intervals are clustered {clusters}", *filter(None, [row_ids_note(loaded)])]
    functions = {name: load_metric(name) for name in metrics}
    headline = next(iter(functions), found.headline)
    return Inputs(place, loaded, found, functions, headline, notes)


def find_task(rows: str | Path, task: str | Path | None) -> tuple[Path, Task | None]:
    """(the file of the rows, the task that was named or in whose folder they stand)."""
    place = Path(rows)
    named = load_task(task) if task is not None else None
    if place.is_dir() or (not place.exists() and is_dataset(str(rows))):
        own = load_task(rows)
        return own.folder / "test.jsonl", named or own
    if named is None and (place.parent / "task.json").exists():
        named = load_task(place.parent)
    return place, named


def is_dataset(name: str) -> bool:
    try:
        return (dataset(name) / "task.json").exists()
    except UserError:
        return False


def grader_spec(grader: str | Path) -> dict[str, Any]:
    """Grader JSON from a file, or from the shelf by its name."""
    if not Path(grader).exists() and str(grader) in SHELF:
        return shelf_json(str(grader))
    return read_grader(str(grader))


def check_fit(place: Path, rows: list[dict[str, Any]], task: Task) -> None:
    """Raise UserError where these rows cannot be graded, grouped, or compared with their answer."""
    if not rows:
        raise UserError(f"{place}: no rows, expected at least one")
    row_ids(rows)  # raises where two share an id
    task.grader.check_ready()
    task.grader.check_rows(rows)
    needed = [task.group_by] if task.group_by else []
    if task.answer_template is not None:
        needed.append(task.answer_path[1])
    for key in needed:
        lacking = [number for number, row in enumerate(rows, 1) if key not in row]
        if lacking:
            raise UserError(
                f'{place}:{lacking[0]}: without "{key}" ({len(lacking)} of {len(rows)} rows), '
                f"expected by task {task.name}: fill it in, or name another --task or --group-by"
            )


def load_metric(name: str) -> MetricFunction:
    """A metric of your own from "module:function", the module found as if `python` were run here.

    The function takes (sample, item), as a python grader does, and returns one number, the larger
    the better. sample: {"output_text", "output_json" (None where it is not JSON), "output_tools",
    "choices"} and beside these "reasoning", "finish_reason", "completion_tokens"; item: the row.
    It runs IN THIS PROCESS with all your rights: for your own code only.

    Raises UserError for a name that cannot be loaded; calling what is returned raises UserError
    where the function fails or returns anything but a finite number, naming the row.
    """
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise UserError(
            f'--metric: "{name}", expected module:function, such as my_metrics:first_letter for '
            "the function first_letter of my_metrics.py in this folder"
        )
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever a user's module raises when it is imported
        raise UserError(
            f"--metric {name}: cannot be loaded ({type(error).__name__}: {error}), expected a "
            f"function {function}(sample, item) in {module}.py here, or in an installed module"
        ) from None
    finally:
        sys.path.remove(here)
    if not callable(found):
        kind = type(found).__name__
        raise UserError(f"--metric {name}: a {kind}, expected a function of (sample, item)")
    return checked_metric(name, found)


def checked_metric(name: str, function: Callable[[dict, dict], float]) -> MetricFunction:
    """`function` as (row, Sample) -> a finite number."""

    def value(row: dict[str, Any], sample: Sample) -> float:
        context = Context(row, sample)
        seen = context.as_dict() | {
            "reasoning": sample.reasoning,
            "finish_reason": sample.finish_reason,
            "completion_tokens": sample.completion_tokens,
        }
        where = f"--metric {name}: row {sample.row_id}, answer of {sample.model}"
        try:
            result = function(seen, context.item)
        except Exception as error:
            raise UserError(
                f"{where}: {type(error).__name__}: {error}, expected a number: mend the function"
            ) from error
        if not isinstance(result, int | float) or not math.isfinite(result):
            raise UserError(f"{where}: {result!r}, expected a finite number")
        return float(result)

    return value


# ------------------------------------------------------------------------------------------
# from rftkit.comparison.report:
# A comparison's report: report.json's record, the same in words, the picture, the answers.

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


# ------------------------------------------------------------------------------------------
# from rftkit.comparison.run:
# Every model on the same rows, prompts and seeds, then one report.

EMBEDDED_TOKENS, OTHER_TOKENS = 64, 1_024  # the longest answer where none was asked for


class Reporter(Protocol):
    """Hears what happens: rftkit.cli.ConsoleReporter, or nobody."""

    def say(self, text: str = "") -> None: ...
    def plan(self, work: float) -> None: ...
    def stage(self, name: str) -> None: ...
    def advance(self, work: float) -> None: ...


def compare_models(
    rows: str | Path,
    models: Sequence[str],
    grader: str | Path | None,
    out: str | Path,
    samples: int = 2,
    seed: int = 0,
    metrics: Sequence[str] = (),
    task: str | Path | None = None,
    group_by: str | None = None,
    max_tokens: int | None = None,
    batch_size: int | None = None,
    reporter: Reporter | None = None,
    allow_weak_isolation: bool = False,
) -> dict[str, Any]:
    """Evaluate every model and write report.json, report.md, table.png, samples.jsonl to `out`.

    models      "embedded:mini", a folder, a run or its adapter, a hub name, "endpoint:NAME"
    samples     answers a row at T = 1; a greedy one is drawn beside them
    max_tokens  the longest answer; by default 64 for the embedded models, else 1,024
    batch_size  answers drawn side by side by a local model; by default the policy's own
    For the rest see read_inputs. Returns report.json's object. What a finished model answered
    stays in samples.jsonl, whatever happens to a later one.

    Raises UserError for a mistake in any of these, and where no answer of a model came at all.
    """
    began = time.perf_counter()
    out = Path(out)
    inputs = read_inputs(rows, grader, metrics, task, group_by, allow_weak_isolation)
    check_models(models, samples)
    config = SamplingConfig(max_new_tokens=max_tokens or longest_answer(models), seed=seed)
    trained = {model: training_record(model, inputs) for model in models}
    open_folder(out)
    say = reporter.say if reporter else lambda text="": None
    for note in inputs.notes:
        say(note)
    if reporter:
        reporter.plan(len(models) * len(inputs.rows) * (samples + 1))
    results = []
    for number, model in enumerate(models, 1):
        if reporter:
            reporter.stage(f"{model} ({number}/{len(models)})")
        result = evaluate_one(model, inputs, config, samples, batch_size, reporter)
        append_lines(out / "samples.jsonl", sample_lines(result))
        results.append(result)
        value = result.values[inputs.headline].mean()
        say(f"{model}: {inputs.headline} {value:.3f} at T = 1")
    report = make_report(inputs, results, config, samples, trained)
    report["seconds"] = round(time.perf_counter() - began, 1)
    write_report(report, out)
    return report


def check_models(models: Sequence[str], samples: int) -> None:
    """Raise UserError for a list that cannot be evaluated, before anything is loaded."""
    if not models:
        raise UserError("--model: none, expected at least one: try --model embedded:mini")
    twice = sorted({model for model in models if list(models).count(model) > 1})
    if twice:
        raise UserError(f"--model: {', '.join(twice)} twice, expected each once: remove one")
    if samples < 1:
        raise UserError(f"samples: {samples}, expected a whole number from 1")
    for model in models:
        if not model.startswith("endpoint:"):
            for folder in filter(None, model_folder(model)):
                check_weights(folder)
        elif not (os.environ.get("OPENAI_BASE_URL") or os.environ.get("OPENAI_API_KEY")):
            raise UserError(
                f"--model {model}: neither OPENAI_BASE_URL nor OPENAI_API_KEY is set, expected the "
                "endpoint's address, such as OPENAI_BASE_URL=http://localhost:8000/v1"
            )


def open_folder(out: Path) -> None:
    """Make the report's folder with an empty samples.jsonl, before hours of sampling have nowhere
    to go. UserError where nothing can be written, or a run would be written over."""
    try:
        if is_begun(out):
            raise UserError(
                f"{out}: a run stands here, expected a folder of its own for the evaluation (it "
                f"would write over the run's samples): try --out {out / 'evaluation'}"
            )
        out.mkdir(parents=True, exist_ok=True)
        for name in REPORT_FILES:
            if (out / name).is_dir():
                raise IsADirectoryError(errno.EISDIR, f"{name} is a folder")
        write_text(out / "samples.jsonl", "")
    except OSError as error:
        raise UserError(
            f"--out {out}: the report cannot be written there ({error.strerror}), expected a "
            "folder, or a place where one can be made: name another"
        ) from None


def longest_answer(models: Sequence[str]) -> int:
    """One limit for all models: what differs between them must be the models alone."""
    local = [model for model in models if not model.startswith("endpoint:")]
    embedded = [Path(model_folder(model)[0]).parent == MODELS for model in local]
    return EMBEDDED_TOKENS if len(local) == len(models) and all(embedded) else OTHER_TOKENS


def evaluate_one(
    model: str,
    inputs: Inputs,
    config: SamplingConfig,
    samples: int,
    batch_size: int | None,
    reporter: Reporter | None,
) -> SystemResult:
    """One model's answers, graded and measured."""
    policy = load_policy(model)
    if batch_size and isinstance(policy, LocalPolicy):
        policy.batch_size = batch_size
    result = evaluate(
        policy,
        inputs.task,
        inputs.rows,
        config,
        samples,
        name=model,
        progress=reporter.advance if reporter else None,
        functions=inputs.functions,
    )
    drawn = [sample for group in result.samples for sample in group]
    if all(sample.finish_reason == "error" for sample in drawn):
        first = next((text for sample in drawn for text in sample.errors), "no reason given")
        raise UserError(
            f"--model {model}: none of {len(drawn)} answers came ({first}), expected an "
            "OpenAI-compatible endpoint: check OPENAI_BASE_URL, OPENAI_API_KEY and the name"
        )
    return result


def training_record(model: str, inputs: Inputs) -> dict[str, Any] | None:
    """What the run folder of a tuned model says of its training; None where there is none.

    `answer_groups_shared_with_eval` counts groups (or, without a group, prompts) of these rows
    that stand in its training rows too: above 0, its numbers here are no held-out numbers. None
    where the run's rows cannot be found from here.
    """
    path = Path(model)
    run = next((p for p in (path, path.parent) if (p / "training.json").exists()), None)
    if run is None:
        return None
    try:
        record = json.loads((run / "training.json").read_text(encoding="utf-8"))
        known = record.get("training", {}) | {}  # fails where either is no object
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"{run / 'training.json'}: cannot be read ({type(error).__name__}: {error}), expected "
            "a finished run's record: mend it, or copy the adapter elsewhere and name that folder"
        ) from None
    found = {key: known.get(key) for key in ("examples", "steps", "seconds", "peak_rss_mb")}
    try:
        config = read_config(run)
        found["method"] = config.method
        seen, _ = config_rows(config, config_task(config))
        shared = marks(seen, inputs) & marks(inputs.rows, inputs)
        found["answer_groups_shared_with_eval"] = len(shared)
    except UserError:  # the files that the run was trained on are elsewhere
        found["answer_groups_shared_with_eval"] = None
    return found


def marks(rows: list[dict[str, Any]], inputs: Inputs) -> set[Any]:
    """What no evaluated row may share with a training row: the group, else the prompt."""
    if inputs.task.group_by is None:
        return {messages_digest(row) for row in rows}
    return set(clusters_of(rows, inputs.task))
