"""Compare systems on the same rows, prompts and seeds. `rftkit evaluate` runs compare_models."""

import importlib
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from rftkit import evaluation, files, loading
from rftkit.check import check_rows
from rftkit.console import GRADER, Reporter, SandboxFlag, WeakIsolationFlag, argument, option
from rftkit.contract import ROW_FILES
from rftkit.environment import machine, peak_memory_mb, versions
from rftkit.evaluation import Groups, MetricFunction, SystemResult, clusters_of, count_answers
from rftkit.files import UserError, markdown_table, plural, read_json
from rftkit.graders.answer import Context
from rftkit.graders.functions import importing
from rftkit.graders.grader import GraderSettings
from rftkit.loading import called, check_weights, is_embedded, load_tokenizer, model_folder
from rftkit.logs import notes_of_run, read_lines
from rftkit.policy import LocalPolicy, Policy, Prompt, load_policy, run_folder
from rftkit.records import Sample, SamplingConfig
from rftkit.rows import messages_key, read_rows, row_ids, sha256_of, write_rows
from rftkit.signal.checks import prompt_notes
from rftkit.signal.verdict import EMBEDDED_TOKENS, OTHER_TOKENS
from rftkit.task import Task, load_task
from rftkit.training.config import config_rows, config_task
from rftkit.training.plan import check_context
from rftkit.training.report import report_text, shared_groups
from rftkit.training.store import append_samples, is_begun, read_config

Rows = list[dict[str, Any]]
CHUNK = 64  # rows that are answered and graded before their answers are written
COPIES = {"exact_copies": "duplicate across the split"}  # name in the report: kind in the check
COPIES |= {"near_copies": "near-duplicate across the split"}
# Errors of an endpoint that come with every request.
UNREACHABLE = ("APIConnection", "Authentication", "PermissionDenied", "NotFound")


@dataclass
class Bench:
    """Evaluates systems on the same rows and seeds. samples: answers per row for the headline."""

    task: Task
    rows: Rows
    sampling: SamplingConfig
    samples: int
    reporter: Reporter
    functions: Mapping[str, MetricFunction] = field(default_factory=dict)  # custom metrics
    settings: dict[str, Any] = field(default_factory=dict)  # for load_policy
    results: dict[str, SystemResult] = field(default_factory=dict)
    kept: Path | None = None  # samples.jsonl: answers that stand there are not asked for again

    @property
    def headline(self) -> str:
        return next(iter(self.functions), self.task.headline)

    def add(
        self, name: str, policy: Policy, tries: int = 0, prefill: str = "", examples: Sequence = ()
    ) -> SystemResult:
        """Evaluate a system. tries: the k of pass@k; examples: messages before each question."""
        work = len(self.rows) * (max(self.samples, tries) + 1)
        self.reporter.stage(f"evaluating {name}", work)
        sampling = replace(self.sampling, prefill=prefill)
        more = {"extra_samples": tries, "progress": self.reporter.work, "functions": self.functions}
        task, rows = self.task, self.rows
        if examples:
            rows = [row | {"messages": [*examples, *row["messages"]]} for row in rows]
        if self.kept:
            policy = Kept(policy, name, task, rows, self.kept)
        result = evaluation.evaluate(policy, task, rows, sampling, self.samples, name, **more)
        self.results[name], value = result, result.values[self.headline].mean()
        self.reporter.say(f"{name}: {self.headline} {value:.3f} at T = 1")
        return result

    def to_json(self, names: Iterable[str], pairs: Iterable[tuple]) -> dict[str, Any]:
        """The common part of report.json. pairs: (later system, earlier system, metric, greedy)"""
        clusters, results = clusters_of(self.rows, self.task), self.results
        systems = [results[name] for name in names]
        return {
            "task": self.task.name,
            "n_cases": len(self.rows),
            "headline": self.headline,
            "clustered_by": self.task.group_by,
            "sampling": {"samples": self.samples, **self.sampling.to_json()},
            "systems": [s.to_json(clusters) | count_answers(s, self.task) for s in systems],
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


class Kept:
    """A policy whose answers are graded and appended to a file; what stands there is only read."""

    def __init__(self, policy: Policy, name: str, task: Task, rows: Rows, file: Path):
        self.policy, self.name, self.task, self.rows, self.file = policy, name, task, rows, file
        self.known: dict[tuple[str, bool], list[Sample]] = defaultdict(list)
        for record in read_lines(file):
            greedy = record.pop("greedy")
            if record["model"] == name:
                self.known[record["row_id"], greedy].append(Sample(**record))

    def sample(self, prompts: list, n: int, config: SamplingConfig, progress: Any = None) -> Groups:
        ids = row_ids(self.rows)
        missing = [i for i, row_id in enumerate(ids) if not self.known[row_id, config.greedy]]
        if progress:
            progress((len(ids) - len(missing)) * n)
        for start in range(0, len(missing), CHUNK):
            places = missing[start : start + CHUNK]
            asked = [Prompt(self.rows[i], i) for i in places]
            drawn = self.policy.sample(asked, n, config, progress)
            self.task.grade([self.rows[i] for i in places], drawn)
            for i, group in zip(places, drawn):
                for sample in group:
                    sample.model = self.name
                self.known[ids[i], config.greedy] = group
            append_samples(self.file, sum(drawn, []), greedy=config.greedy)
        return [self.known[row_id, config.greedy] for row_id in ids]


def resumed(out: Path, asked: dict[str, Any]) -> int:
    """How many answers of an earlier call, stopped or not, stay in samples.jsonl: if it asked for
    the same, those of rows whose answers are all there and graded. The others go."""
    file, answers = out / "samples.jsonl", []
    if (out / "asked.json").exists() and read_json(out / "asked.json") == asked:
        groups = defaultdict(list)
        for line in read_lines(file):
            if line["grade"] is not None:
                groups[line["model"], line["row_id"], line["greedy"]].append(line)
        n = asked["samples"]
        answers = sum((g for g in groups.values() if len(g) == (1 if g[0]["greedy"] else n)), [])
    write_rows(file, answers)
    files.write_json(out / "asked.json", asked)
    return len(answers)


def write_report(report: dict[str, Any], sentences: Sequence[str], out: Path) -> None:
    """Write report.json, report.md and table.png."""
    from rftkit.plots import table_figure

    files.write_json(out / "report.json", report)
    files.write_text(out / "report.md", report_text(report, sentences))
    table_figure(report, report["headline"]).savefig(out / "table.png")


@dataclass
class Comparison:
    """The options of `rftkit evaluate`, one field each."""

    rows: Annotated[Path, argument("ROWS", "Rows as for `check`, or a task with test rows.")]
    models: Annotated[list[str], option("M", "A model; repeat to compare several.", "--model")]
    out: Annotated[Path, option("DIR", "Folder for the report.")]
    grader: Annotated[str | None, option("G", f"{GRADER} Default: the task's.")] = None
    samples: Annotated[int, option("N", "Answers per row at T = 1.", min=1)] = 2
    seed: Annotated[int, option("S", "Sampling seed.", min=0)] = 0
    metrics: Annotated[list[str] | None, option("M:F", "Your module:function.", "--metric")] = None
    task: Annotated[str | None, option("T", "Default: the run's, or next to ROWS.")] = None
    group_by: Annotated[str | None, option("KEY", "Cluster intervals by this key.")] = None
    max_tokens: Annotated[int | None, option("N", "Default: the run's, or 1024.", min=1)] = None
    allow_weak_isolation: WeakIsolationFlag = False
    sandbox: SandboxFlag = False


def compare_models(options: Comparison, reporter: Reporter | None = None) -> dict[str, Any]:
    """Evaluate every model, write the report to `out`, return report.json's object."""
    start, out = time.perf_counter(), options.out
    rows_file, bench = open_bench(options, reporter or Reporter(quiet=True))
    folders, notes, training = {}, [], {}
    for model in options.models:  # all of them before the first is sampled
        own_folders, own_notes = check_model(model, bench)
        folders |= own_folders
        notes += [f"{model}: {note}" for note in own_notes]
        training[model] = training_record(model, bench)
    if is_begun(out):
        raise UserError(f"--out {out}: contains a training run: choose another folder")
    grader = json.dumps(bench.task.grader.record, sort_keys=True)
    sums = {"grader": sha256(grader.encode()).hexdigest()}
    sums[rows_file.name] = sha256_of(rows_file / "state.json" if rows_file.is_dir() else rows_file)
    for name, folder in folders.items():
        for file in Path(folder).glob("*model.safetensors"):
            sums[name] = sha256_of(file)
    asked = {"sha256": sums, "samples": bench.samples, "sampling": bench.sampling.to_json()}
    if answers := resumed(out, asked):
        bench.reporter.say(f"{out}: goes on after {plural(answers, 'answer')}")
    bench.kept = out / "samples.jsonl"
    for model in options.models:
        policy = load_policy(model, settings=bench.settings)
        result = bench.add(model, policy)
        if all(sample.finish_reason == "error" for group in result.samples for sample in group):
            cause = ", ".join(result.samples[0][0].errors)
            raise UserError(f"--model {model}: all answers failed ({cause}): read the cause")
        if refused := getattr(policy, "refused", set()) & {"temperature", "top_p", "seed"}:
            notes.append(f"{model}: takes no {', '.join(sorted(refused))}: it samples its own way")
    report = make_report(bench, training, notes) | {"rows": str(rows_file)}
    report["sha256"] = sums
    report["seconds"] = round(time.perf_counter() - start, 1)
    tables = [markdown_table(table(report)) for table in (gain_table, length_table)]
    write_report(report, [*filter(None, tables), *report["notes"]], out)
    return report


def check_model(model: str, bench: Bench) -> tuple[dict[str, str], list[str]]:
    """Return ({name in the report: folder of its base or adapter}, notes). Raises UserError if it
    cannot answer the rows, before any model is loaded; asks an endpoint for one answer."""
    from transformers import AutoConfig

    prompts = list(map(Prompt, bench.rows))
    if model.startswith("endpoint:"):
        [[sample]] = load_policy(model).sample(prompts[:1], 1, bench.sampling)
        if "".join(sample.errors).startswith(UNREACHABLE):
            cause = f"no answer ({sample.errors[0]})"
            raise UserError(f"--model {model}: {cause}: check OPENAI_BASE_URL, key and name")
        return {}, []
    base, adapter = model_folder(model)
    folders = {called(base): base, model: adapter} if adapter else {model: base}
    try:
        for folder in folders.values():
            check_weights(folder)
        policy = LocalPolicy(None, load_tokenizer(base, adapter), model)
        policy.chat_template_kwargs = bench.settings.get("chat_template_kwargs") or {}
        architecture = AutoConfig.from_pretrained(**loading.hub_place(base)).get_text_config()
        context = getattr(architecture, "max_position_embeddings", None)
        check_context(max(map(len, policy.encode(prompts)), default=0), context, base)
    except (OSError, ValueError) as error:
        raise UserError(f"--model {model}: {str(error).strip().splitlines()[0]}") from None
    kept = notes_of_run(Path(adapter).parent) if adapter else []
    return folders, prompt_notes(policy, bench.rows) + kept


def open_bench(options: Comparison, reporter: Reporter) -> tuple[Path, Bench]:
    """Return (rows file, bench). Reads and checks every input; loads no model."""
    path, name = options.rows, options.task
    run = next(filter(None, map(run_folder, options.models)), None)
    if not (path.is_file() or path.suffix in ROW_FILES or (path / "state.json").exists()):
        name = name or path
        path = load_task(path).folder / "test.jsonl"
    elif name is None:
        name = next((f for f in (run, path.parent) if f and (f / "task.json").exists()), None)
        if run and name == run:
            reporter.say(f"task and grader: those of {run}")
    if name is None and options.grader is None:
        raise UserError(f"--grader: missing, and no task.json is next to {path}: pass a grader")
    own = {"grader": options.grader, "maximum": None} if options.grader else {}
    weak, sandbox = options.allow_weak_isolation, options.sandbox
    own["settings"] = GraderSettings(allow_weak_isolation=weak, sandbox=sandbox)
    task = Task(path.stem, **own) if name is None else replace(load_task(name), **own)
    task.group_by = options.group_by or task.group_by
    rows = read_rows(path)
    row_ids(rows)  # raises on a duplicate id
    task.grader.check_ready()
    task.grader.check_rows(rows)
    needed = {task.group_by, task.answer_path[1] if task.answer_template else None} - {None}
    for number, row in enumerate(rows, 1):
        for key in needed - row.keys():
            raise UserError(f'{path}:{number}: no "{key}": correct the row, --group-by or --task')
    functions = {name: load_metric(name) for name in options.metrics or ()}
    limit = options.max_tokens or token_limit(options.models, run)
    sampling = SamplingConfig(max_new_tokens=limit, seed=options.seed)
    settings = read_json(run / "config.json") if run else {}
    return path, Bench(task, rows, sampling, options.samples, reporter, functions, settings)


def token_limit(models: Sequence[str], run: Path | None) -> int:
    """One limit for all models, so that only the models differ: the run's, or by their kind."""
    if run and (run / "plan.json").exists():
        return read_json(run / "plan.json")["max_completion_tokens"]
    embedded = all(is_embedded(model_folder(model)[0]) for model in models)
    return EMBEDDED_TOKENS if embedded else OTHER_TOKENS


def load_metric(name: str) -> MetricFunction:
    """A metric of your own from "module:function": (sample, item) -> number, where `sample` holds
    all of a line of samples.jsonl. It runs IN THIS PROCESS with all your rights."""
    module, _, function = name.partition(":")
    with importing(Path(), f"--metric {name}"):
        metric = getattr(importlib.import_module(module), function)

    def value(row: dict[str, Any], sample: Sample) -> float:
        number = metric(sample.to_json() | Context(row, sample).as_dict(), row)
        if not math.isfinite(number):
            raise UserError(f"--metric {name}: {number} for row {sample.row_id}: return a number")
        return number

    return value


def training_record(model: str, bench: Bench) -> dict[str, Any]:
    """Training details from a tuned model's run folder, {} without one; None: no rows are found."""
    run = run_folder(model)
    if not run or not (run / "training.json").exists():
        return {}
    training, config = read_json(run / "training.json")["training"], read_config(run)
    record = {key: training.get(key) for key in ("examples", "steps", "seconds", "peak_rss_mb")}
    record |= {"method": config.method, "answer_groups_shared_with_eval": None}
    train_rows = []  # they were passed in memory, or their files are not on this machine
    with suppress(UserError):
        train_rows, _ = config_rows(config, config_task(config))
    if train_rows:
        shared = shared_groups(train_rows, bench.rows, bench.task)
        if shared is None:  # no group key: compare prompts
            shared = set(map(messages_key, train_rows)) & set(map(messages_key, bench.rows))
        record["shared"] = shared
        record["answer_groups_shared_with_eval"] = len(shared)
        counts = check_rows(train_rows, bench.rows).counts
        record |= {name: counts.get(kind, 0) for name, kind in COPIES.items()}
        record["copies"] = record["exact_copies"] + record["near_copies"]
    return record


def make_report(bench: Bench, training: dict[str, dict], notes: list[str]) -> dict[str, Any]:
    """The content of report.json. training: {model: its training record, maybe empty}"""
    custom = [(name, False) for name in bench.functions if name != bench.headline]
    compared = [(bench.headline, False), (bench.headline, True), *custom]
    systems = combinations(bench.results, 2)
    pairs = [(b, a, metric, greedy) for a, b in systems for metric, greedy in compared]
    report = bench.to_json(bench.results, pairs) | {"gains": [], "training": {}, "notes": notes}
    (base, *others), clusters = bench.results.values(), clusters_of(bench.rows, bench.task)
    if bench.task.answer_template:
        parts = partial(evaluation.gain_parts, bench.task, bench.rows, base)
        report["gains"] = [{"a": o.name, "b": base.name} | parts(o) for o in others]
    for system in report["systems"]:
        headline = bench.results[system["name"]].values[bench.headline]
        system["by_length"] = evaluation.by_length(bench.rows, headline)
        if record := training.get(system["name"]):
            system["training"] = record
            seen = np.isin(clusters, [*record.pop("shared", ())])
            for name, own in (("seen", seen), ("unseen", ~seen)):
                if seen.any() and own.any():
                    mean = round(float(headline[own].mean()), 4)
                    system[name] = {"n": int(own.sum()), bench.headline: mean}
            report["training"] = {"model": system["name"], **record}  # keeps the last model's
        report["notes"] += warnings(system, bench.sampling.max_new_tokens)
    embedded = [n.removeprefix("embedded:") for n in bench.results if n.startswith("embedded:")]
    return report | {"gates": files.model_gates(embedded)}


def gain_table(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """See evaluation.gain_parts."""
    rows = []
    for gain in report["gains"]:
        parts = {part: f"{value:+.3f}" for part, value in gain.items() if part not in "ab"}
        rows.append({"systems": f"{gain['a']} - {gain['b']}"} | parts)
    return rows


def length_table(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """See evaluation.by_length."""
    text, by = "{}: {mean:.3f} ({n} rows)".format, f"{report['headline']} by the number of"
    return [
        {"system": s["name"], by: key, "mean": ", ".join(text(n, **p) for n, p in parts.items())}
        for s in report["systems"]
        for key, parts in s["by_length"].items()
    ]


def warnings(system: Mapping[str, Any], limit: int) -> list[str]:
    """Caveats about one system's numbers, one sentence each."""
    of = f"of {system['answers']} answers"
    missing = system["failed"] + system["ungraded"]
    training = system.get("training", {})
    shared = training.get("answer_groups_shared_with_eval")
    exact, near = (training.get(name, 0) for name in COPIES)
    notes = {
        f"{missing} {of} failed or got no grade and count as 0: run it again": missing,
        f"the python grader failed on {system['grader_errors']} {of}, which count as 0: run "
        "`rftkit grade` on one of them to see the traceback": system["grader_errors"],
        f"{system['truncated']:.0%} of its answers were truncated at {limit} tokens: raise "
        "--max-tokens": system["truncated"] > 0.01,
        "its answers at T = 1 (*) all equal the greedy ones: this endpoint ignores temperature, so "
        "compare its greedy column": system["ignores_temperature"],
        f"{shared} answer groups of these rows were in its training rows, so its results are not "
        "held-out: evaluate on other rows": shared,
        f"{exact} of these rows equal and {near} nearly equal a training row: leave them out": exact
        + near,
    }
    return [f"{system['name']}: {note}" for note, applies in notes.items() if applies]
