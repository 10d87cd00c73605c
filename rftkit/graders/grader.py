"""A grader: from what a model said about a row to a number, most often 0 to 1.

    grader = Grader.load("grader.json")              # OpenAI's grader JSON: dict, file or text
    report = grader.run(item, sample)                # a dict, all fields of graders/run
    reward, sub_rewards = grader.grade(item, sample) # the quick way, for many
    trainer = GRPOTrainer(reward_funcs=reward_function(grader), …)

`item` is a row of the JSONL (a dict); `sample` a Sample, a text (thinking tags are cut off) or a
dict as OpenAI shows it to python graders. A grader may be called from several threads.
"""

from __future__ import annotations

import copy
import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rftkit.files import UserError
from rftkit.graders.answer import (
    Context,
    Fault,
    Grade,
    GraderReport,
    Template,
    compile_template,
    error_object,
    grader_fault,
    sample_fault,
)
from rftkit.graders.formula import FormulaError, parse_formula
from rftkit.graders.python import Runner, compile_python, require_loading, require_runner
from rftkit.graders.similarity import compile_string_check
from rftkit.graders.spec import read_spec, validate_spec
from rftkit.records import Sample

if TYPE_CHECKING:
    from rftkit.graders.judge import JudgeSettings

# ------------------------------------------------------------------------------------------
# from rftkit.graders.multi:
# `multi`: several graders, and a formula over their grades.

Scorer = Callable[[Context], float]


def as_fault(error: Exception) -> Fault:
    """What an exception of a scorer means. A bug below becomes `other_error`: a library that
    cannot take one text must not end a run. A UserError passes: the set-up is wrong, not this
    grade."""
    if isinstance(error, UserError):
        raise error
    if isinstance(error, Fault):
        return error
    return grader_fault("other_error", f"{type(error).__name__}: {error}")


def compile_single(score: Scorer) -> Callable[[Context], Grade]:
    """An evaluation that consists of one score."""

    def evaluate(context: Context) -> Grade:
        try:
            return Grade(score(context), {})
        except Exception as error:
            fault = as_fault(error)
            return Grade(fault.score, {}, (("", fault),))

    return evaluate


def compile_multi(scorers: Mapping[str, Scorer], formula_text: str) -> Callable[[Context], Grade]:
    """An evaluation of several scores and the formula over them.

    A sub-grader with the sample's fault enters the formula as 0. One without any score (its own
    fault) leaves the whole without a score, unless the formula does not use it.
    """
    formula = parse_formula(formula_text)
    parts = tuple(scorers.items())

    def evaluate(context: Context) -> Grade:
        values: dict[str, float | None] = {}
        faults: list[tuple[str, Fault]] = []
        for variable, score in parts:
            try:
                values[variable] = score(context)
            except Exception as error:
                fault = as_fault(error)
                values[variable] = fault.score
                faults.append((variable, fault))
        if any(f.score is None and variable in formula.variables for variable, f in faults):
            return Grade(None, values, tuple(faults))
        try:
            return Grade(formula.evaluate(values), values, tuple(faults))
        except FormulaError as error:
            fault = grader_fault("formula_parse_error", f"calculate_output: {error}")
            return Grade(None, values, (*faults, ("", fault)))

    return evaluate


# ------------------------------------------------------------------------------------------
# from rftkit.graders.core:
# A grader: from what a model said about a row to a number, most often 0 to 1.
#
#     grader = Grader.load("grader.json")              # OpenAI's grader JSON: dict, file or text
#     report = grader.run(item, sample)                # a dict, all fields of graders/run
#     reward, sub_rewards = grader.grade(item, sample) # the quick way, for many
#     trainer = GRPOTrainer(reward_funcs=reward_function(grader), …)
#
# `item` is a row of the JSONL (a dict); `sample` a Sample, a text (thinking tags are cut off) or a
# dict as OpenAI shows it to python graders. A grader may be called from several threads.

ROWS_SHOWN = 5  # in a message about rows


@dataclass(frozen=True)
class GraderSettings:
    """What graders use beside their JSON. One object may serve several graders.

    judge          how score_model and label_model reach their model; None: the environment's
                   OPENAI_BASE_URL and OPENAI_API_KEY
    embedder       for the metric "cosine": texts -> vectors
    python_runner  what runs python graders in isolation; None: rftkit.sandbox
    allow_weak_isolation
                   run python graders even on a machine that cannot keep them from files and
                   network (a line says so): for texts you wrote or have read yourself
    """

    judge: JudgeSettings | None = None
    embedder: Callable[[list[str]], Sequence[Sequence[float]]] | None = None
    python_runner: Runner | None = None
    allow_weak_isolation: bool = False


class Grader:
    """One grader, of any kind. Made by `Grader.load`, by `rftkit.graders.presets` or by `@grader`.

    name      for reports and series
    type      "string_check", "multi", … or "function" for a Python function of the user's own
    notes     what was tolerated while loading, one sentence each
    maximum   the best grade that there is (the upper end of a score_model's range, else 1)
    workers   how many grades may usefully run at once (asking a judge means waiting; a check is
              pure computation: 1)
    """

    def __init__(
        self,
        name: str,
        type: str,
        evaluate: Callable[[Context], Grade],
        export: Callable[[], dict[str, Any]],
        *,
        variables: Sequence[str] = (),
        item_templates: Sequence[Template] = (),
        check_ready: Callable[[], None] = lambda: None,
        notes: Sequence[str] = (),
        maximum: float = 1.0,
        workers: int = 1,
    ):
        self.name, self.type = name, type
        self.variables = tuple(variables)
        self.notes, self.maximum, self.workers = list(notes), maximum, workers
        self._evaluate, self._export = evaluate, export
        self._check_ready = check_ready
        paths = [path for template in item_templates for path in template.paths]
        self._item_paths = {path.text: path for path in paths if path.namespace == "item"}
        self._warned = False

    @classmethod
    def load(
        cls,
        source: dict[str, Any] | str | Path,
        settings: GraderSettings | None = None,
        *,
        job: bool = False,
    ) -> Grader:
        """A grader from OpenAI's grader JSON: a dict, a path, or JSON text.

        job  it is the top grader of a training job (label_model is refused there)

        Raises UserError naming every fault with its path inside the JSON.
        """
        settings = settings or GraderSettings()
        value, place = read_spec(source)
        spec, notes = validate_spec(
            value, place, job=job, has_embedder=settings.embedder is not None
        )
        if spec["type"] == "python" or any(
            part["type"] == "python" for part in spec.get("graders", {}).values()
        ):
            notes = [*notes, "python graders run in isolation (rftkit.sandbox) or not at all"]
        return build(spec, notes, settings)

    def to_json(self) -> dict[str, Any]:
        """The grader as OpenAI's grader JSON; UserError where it cannot be written as such."""
        return self._export()

    def run(self, item: dict[str, Any] | None, sample: Sample | str | dict) -> dict[str, Any]:
        """One grade as the object that OpenAI's graders/run answers with, all error fields in it.
        `reward` is None (null) where the grader itself failed."""
        return self.report(item, sample).to_json()

    def report(self, item: dict[str, Any] | None, sample: Sample | str | dict) -> GraderReport:
        """The same as an object, with a sentence for each fault in `explanations`."""
        start = time.perf_counter()
        context = Context(item, sample)
        grade = self._grade(context)
        return GraderReport(
            name=self.name,
            type=self.type,
            reward=grade.reward,
            sub_rewards=grade.sub_rewards,
            errors=error_object(grade.faults),
            execution_time=time.perf_counter() - start,
            token_usage=context.usage,
            explanations=_explain(context, grade),
        )

    def evaluate(self, item: dict[str, Any] | None, sample: Sample | str | dict) -> Grade:
        """One grade as (reward, sub_rewards, faults); `.errors` are the fields for a Sample."""
        return self._grade(Context(item, sample))

    def grade(
        self, item: dict[str, Any] | None, sample: Sample | str | dict
    ) -> tuple[float | None, dict[str, float | None]]:
        """The quick way: (reward, sub_rewards). The reward is None where the grader failed."""
        grade = self._grade(Context(item, sample))
        return grade.reward, grade.sub_rewards

    def evaluate_many(
        self, items: Sequence[dict[str, Any]], samples: Sequence[Sample | str | dict]
    ) -> list[Grade]:
        """One Grade for each pair, in order; judges and sandboxes are asked side by side."""
        if len(items) != len(samples):
            raise ValueError(f"{len(items)} items and {len(samples)} samples, expected as many")
        if self.workers == 1 or len(items) < 2:
            return [self.evaluate(item, sample) for item, sample in zip(items, samples)]
        pool = ThreadPoolExecutor(min(self.workers, len(items)))
        try:
            return list(pool.map(self.evaluate, items, samples))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def check_ready(self) -> None:
        """Raise UserError if this grader cannot run here (no endpoint, no isolation, no corpus)."""
        self._check_ready()

    def check_rows(self, rows: Iterable[dict[str, Any]]) -> None:
        """Raise UserError naming rows that lack a field which the grader's templates ask for."""
        faults = []
        for number, row in enumerate(rows, start=1):
            for path in self._item_paths.values():
                try:
                    path.resolve(Context(row, ""))
                except Fault as fault:
                    faults.append(f"row {row_id(row, number)}: {fault.detail}")
        if faults:
            more = f" (and {len(faults) - ROWS_SHOWN} more)" if len(faults) > ROWS_SHOWN else ""
            raise UserError(
                f"grader {self.name!r} cannot grade these rows{more}: give every row the field, or "
                f"change the template\n  " + "\n  ".join(faults[:ROWS_SHOWN])
            )

    def _grade(self, context: Context) -> Grade:
        finished = context.finish_reason
        if finished == "length":
            why = "the answer was cut at its limit"
            if context.unclosed:
                why += ": its thought was never closed, and the output is empty"
            fault = sample_fault("truncated_observation_error", why)
            return Grade(0.0, dict.fromkeys(self.variables, 0.0), (("", fault),))
        if finished == "error":
            fault = grader_fault("other_error", "there is no answer: its endpoint failed")
            return Grade(None, dict.fromkeys(self.variables), (("", fault),))
        grade = self._evaluate(context)
        reward = grade.reward
        if reward is not None and not 0.0 <= reward <= 1.0 and not self._warned:
            self._warned = True
            warnings.warn(
                f"grader {self.name!r} gave {reward:g}, outside 0 to 1: it is used as it is (said "
                f"once); divide in calculate_output if 0 to 1 was meant",
                stacklevel=4,
            )
        return grade

    def __repr__(self) -> str:
        return f"<Grader {self.name!r} ({self.type})>"


def _explain(context: Context, grade: Grade) -> list[str]:
    """A sentence for each fault, and one for a thought that never closed."""
    said = [
        f"{variable}: {fault.detail}" if variable else fault.detail
        for variable, fault in grade.faults
    ]
    if context.unclosed and context.finish_reason != "length":
        said.append("the thought was opened by <think> and never closed: the output is empty")
    return said


def row_id(row: dict[str, Any], number: int) -> str:
    """A row's own id (`case_id` or `row_id`), or its number counted from 1."""
    return str(row.get("case_id") or row.get("row_id") or number)


def build(
    spec: dict[str, Any],
    notes: Sequence[str] = (),
    settings: GraderSettings | None = None,
) -> Grader:
    """A grader for a checked spec in its plain form."""
    settings = settings or GraderSettings()
    parts = spec["graders"] if spec["type"] == "multi" else {"": spec}
    scorers, readiness, workers = {}, [], 1
    for variable, part in parts.items():
        if part["type"] == "python":
            score, ready, wanted = _compile_python(part, settings)
        else:
            score, ready, wanted = _compile(part, settings)
        scorers[variable] = score
        readiness.append(ready)
        workers = max(workers, wanted)

    def check_ready() -> None:
        for ready in readiness:
            ready()

    if spec["type"] == "multi":
        evaluate = compile_multi(scorers, spec["calculate_output"])
        variables = tuple(scorers)
    else:
        evaluate, variables = compile_single(scorers[""]), ()
    is_score = spec["type"] == "score_model"
    return Grader(
        spec["name"],
        spec["type"],
        evaluate,
        lambda: copy.deepcopy(spec),
        variables=variables,
        item_templates=[t for part in parts.values() for t in _templates(part)],
        check_ready=check_ready,
        notes=notes,
        maximum=float((spec.get("range") or [0, 1])[1]) if is_score else 1.0,
        workers=workers,
    )


def _compile_python(
    spec: dict[str, Any], settings: GraderSettings
) -> tuple[Scorer, Callable[[], None], int]:
    """As `_compile`, for a python grader."""
    from rftkit.sandbox.runner import default_workers

    runner, allow_weak_isolation = settings.python_runner, settings.allow_weak_isolation

    def check_ready() -> None:
        require_loading(spec, require_runner(runner, spec["name"], allow_weak_isolation))

    workers = getattr(runner, "workers", None) or default_workers()
    return compile_python(spec, runner, allow_weak_isolation), check_ready, workers


def _compile(
    spec: dict[str, Any], settings: GraderSettings
) -> tuple[Scorer, Callable[[], None], int]:
    """(scorer, what raises UserError if it cannot run here, useful number of workers)."""
    kind = spec["type"]
    if kind == "string_check":
        return compile_string_check(spec), lambda: None, 1
    if kind == "text_similarity":
        from rftkit.graders.similarity import compile_text_similarity, require_metric

        metric = spec["evaluation_metric"]
        return compile_text_similarity(spec, settings.embedder), lambda: require_metric(metric), 1
    from rftkit.graders.judge import JudgeSettings, compile_model_grader

    judge = settings.judge or JudgeSettings()
    return compile_model_grader(spec, judge), judge.check_ready, judge.concurrency


def _templates(node: Any) -> list[Template]:
    """The templates of one spec: what stands under input and reference."""
    texts: list[str] = []

    def collect(value: Any) -> None:
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, dict):
            for child in value.values():
                collect(child)
        elif isinstance(value, list):
            for child in value:
                collect(child)

    for key in ("input", "reference"):
        collect(node.get(key))
    return [compile_template(text) for text in texts]


def is_best(reward: float | None, maximum: float) -> bool:
    """Is this the best grade there is, but for rounding in a formula?"""
    return reward is not None and math.isclose(reward, maximum, rel_tol=1e-9, abs_tol=1e-9)


def read_grader(place: str) -> Any:
    try:
        return json.loads(Path(place).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f'"grader": {place} cannot be read ({error}), expected a grader\'s JSON or a file with '
            "it: `rftkit validate-grader` checks one"
        ) from None
