"""Every model on the same rows, prompts and seeds, then one report."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from rftkit.comparison.inputs import Inputs, read_inputs
from rftkit.comparison.report import REPORT_FILES, make_report, sample_lines, write_report
from rftkit.data.errors import UserError
from rftkit.data.records import SamplingConfig
from rftkit.data.rows import messages_digest
from rftkit.data.writing import write_text
from rftkit.embedded import MODELS
from rftkit.evaluation import SystemResult, clusters_of, evaluate
from rftkit.policy import LocalPolicy, check_weights, load_policy, model_folder
from rftkit.training.config import config_rows, config_task
from rftkit.training.folder import is_begun, read_config
from rftkit.training.record import append_lines

EMBEDDED_TOKENS, OTHER_TOKENS = 64, 1_024  # the longest answer where none was asked for


class Reporter(Protocol):
    """Hears what happens: rftkit.console.ConsoleReporter, or nobody."""

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
