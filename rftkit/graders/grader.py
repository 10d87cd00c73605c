"""A grader: from what a model said about a row to a number, most often 0 to 1.

    grader = Grader.load("grader.json")              # OpenAI's grader JSON: dict, file or text
    report = grader.run(item, sample)                # a dict, all fields of graders/run
    reward, sub_rewards = grader.grade(item, sample) # the quick way, for many
    trainer = GRPOTrainer(reward_funcs=reward_function(grader), …)

    @grader                                          # a Python function of your own
    def short(sample, item):
        return 1.0 if len(sample["output_text"]) < 10 else 0.0

`item` is a row of the JSONL (a dict); `sample` a Sample, a text (thinking tags are cut off) or a
dict as OpenAI shows it to python graders. A grader may be called from several threads.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
import textwrap
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rftkit.files import UserError, read_text, shorten
from rftkit.graders.answer import (
    ERROR_FIELDS,
    PROGRAM_FAILED,
    Context,
    Fault,
    Grade,
    Scorer,
    compile_template,
    grader_fault,
    sample_fault,
)
from rftkit.graders.formula import FormulaError, parse_formula
from rftkit.graders.presets import PRESETS, preset
from rftkit.graders.python import Runner, as_score, compile_python
from rftkit.graders.similarity import Embedder, compile_string_check, compile_text_similarity
from rftkit.graders.spec import texts_of, validate_spec
from rftkit.records import Sample

if TYPE_CHECKING:
    from rftkit.graders.judge import JudgeSettings

ROWS_SHOWN = 5  # in a message about rows
IN_PROCESS = "runs in this process, with all its rights and without isolation: for your own code"


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
    embedder: Embedder | None = None
    python_runner: Runner | None = None
    allow_weak_isolation: bool = False


class GraderReport(NamedTuple):
    """The answer of graders/run; `explanations` (a sentence a fault) are ours and not in it."""

    reward: float | None
    sub_rewards: dict[str, float | None]
    metadata: dict[str, Any]
    token_usage: dict[str, dict[str, int]]
    explanations: list[str]

    def to_json(self) -> dict[str, Any]:
        return {
            "reward": self.reward,
            "sub_rewards": self.sub_rewards,
            "metadata": self.metadata,
            "model_grader_token_usage_per_model": self.token_usage,
        }


class Grader:
    """One grader, of any kind. Made by `Grader.load` or by `@grader`.

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
        scorers: dict[str, Scorer],
        export: Callable[[], dict[str, Any]],
        *,
        formula: str | None = None,
        texts: Iterable[str] = (),
        notes: Sequence[str] = (),
        maximum: float = 1.0,
    ):
        """`scorers` are {variable: scorer} with a formula over them, or {"": the only one}; `texts`
        are all the templates in them."""
        self.name, self.type, self.notes, self.maximum = name, type, list(notes), maximum
        self.workers = max(scorer.workers for scorer in scorers.values())
        self._scorers, self._export = scorers, export
        self._formula = parse_formula(formula) if formula is not None else None
        paths = [path for text in texts for path in compile_template(text).paths]
        self._item_paths = {path.steps: path for path in paths if path.namespace == "item"}
        self._warned = False

    @classmethod
    def load(
        cls,
        source: dict[str, Any] | str | Path,
        settings: GraderSettings | None = None,
        *,
        job: bool = False,
    ) -> Grader:
        """A grader from OpenAI's grader JSON (see `read_grader`) or the name of a preset.

        In a training `job` the top grader may not be a label_model. Raises UserError naming every
        fault with its path inside the JSON.
        """
        settings = settings or GraderSettings()
        value, place = read_grader(source)
        spec, notes = validate_spec(
            value, place, job=job, has_embedder=settings.embedder is not None
        )
        is_multi = spec["type"] == "multi"
        parts = spec["graders"] if is_multi else {"": spec}
        if any(part["type"] == "python" for part in parts.values()):
            notes = [*notes, "python graders run in isolation (rftkit.sandbox) or not at all"]
        return cls(
            spec["name"],
            spec["type"],
            {variable: _compile(part, settings) for variable, part in parts.items()},
            lambda: copy.deepcopy(spec),
            formula=spec["calculate_output"] if is_multi else None,
            texts=[text for part in parts.values() for _, text in texts_of(part)],
            notes=notes,
            maximum=float(spec.get("range", (0, 1))[1]),
        )

    @property
    def variables(self) -> tuple[str, ...]:
        """The names of a multi grader's sub-rewards."""
        return tuple(self._scorers) if self._formula else ()

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
        errors: dict[str, Any] = {}
        for name, details in ERROR_FIELDS.items():
            texts = [_sentence(*each) for each in grade.faults if each[1].field == name]
            errors[name] = bool(texts)
            if details:
                errors[details] = "\n".join(texts) or None
        metadata = {
            "name": self.name,
            "type": self.type,
            "errors": errors,
            "execution_time": time.perf_counter() - start,
            "scores": dict(grade.sub_rewards),
            "token_usage": sum(usage.get("total_tokens", 0) for usage in context.usage.values())
            if context.usage
            else None,
            "sampled_model_name": next(iter(context.usage), None),
        }
        explanations = [_sentence(variable, fault) for variable, fault in grade.faults]
        if context.unclosed and context.finish_reason != "length":
            explanations.append("<think> was opened and never closed: the output is empty")
        return GraderReport(grade.reward, grade.sub_rewards, metadata, context.usage, explanations)

    def evaluate(self, item: dict[str, Any] | None, sample: Sample | str | dict) -> Grade:
        """One grade as (reward, sub_rewards, faults); `.errors` are the fields for a Sample."""
        return self._grade(Context(item, sample))

    def grade(
        self, item: dict[str, Any] | None, sample: Sample | str | dict
    ) -> tuple[float | None, dict[str, float | None]]:
        """The quick way: (reward, sub_rewards). The reward is None where the grader failed."""
        return self._grade(Context(item, sample))[:2]

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
        for scorer in self._scorers.values():
            scorer.check_ready()

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
                "change the template\n  " + "\n  ".join(faults[:ROWS_SHOWN])
            )

    def _grade(self, context: Context) -> Grade:
        if context.finish_reason == "length":
            why = "the answer was cut at its limit"
            if context.unclosed:
                why += ": its thought was never closed, and the output is empty"
            fault = sample_fault("truncated_observation_error", why)
            return Grade(0.0, dict.fromkeys(self.variables, 0.0), (("", fault),))
        if context.finish_reason == "error":
            fault = grader_fault("other_error", "there is no answer: its endpoint failed")
            return Grade(None, dict.fromkeys(self.variables), (("", fault),))
        grade = self._score(context)
        reward = grade.reward
        if reward is not None and not 0.0 <= reward <= 1.0 and not self._warned:
            self._warned = True
            warnings.warn(
                f"grader {self.name!r} gave {reward:g}, outside 0 to 1: it is used as it is (shown "
                "once); divide in calculate_output if 0 to 1 was meant",
                stacklevel=4,
            )
        return grade

    def _score(self, context: Context) -> Grade:
        """A sub-grader with the sample's fault enters the formula as 0. One without any score (its
        own fault) leaves the whole without a score, unless the formula does not use it."""
        values: dict[str, float | None] = {}
        faults: list[tuple[str, Fault]] = []
        for variable, scorer in self._scorers.items():
            try:
                values[variable] = scorer.score(context)
            except Fault as fault:
                values[variable] = fault.score
                faults.append((variable, fault))
            except UserError:  # the set-up is wrong, not this grade
                raise
            except Exception as error:  # a library that cannot take one text must not end a run
                values[variable] = None
                fault = grader_fault("other_error", f"{type(error).__name__}: {error}")
                faults.append((variable, fault))
        if self._formula is None:
            return Grade(values[""], {}, tuple(faults))
        if any(values[variable] is None for variable in self._formula.variables):
            return Grade(None, values, tuple(faults))
        try:
            return Grade(self._formula.evaluate(values), values, tuple(faults))
        except FormulaError as error:
            fault = grader_fault("formula_parse_error", f"calculate_output: {error}")
            return Grade(None, values, (*faults, ("", fault)))

    def __repr__(self) -> str:
        return f"<Grader {self.name!r} ({self.type})>"


def _compile(spec: dict[str, Any], settings: GraderSettings) -> Scorer:
    if spec["type"] == "string_check":
        return compile_string_check(spec)
    if spec["type"] == "text_similarity":
        return compile_text_similarity(spec, settings.embedder)
    if spec["type"] == "python":
        return compile_python(spec, settings.python_runner, settings.allow_weak_isolation)
    from rftkit.graders.judge import JudgeSettings, compile_model_grader

    return compile_model_grader(spec, settings.judge or JudgeSettings())


def _sentence(variable: str, fault: Fault) -> str:
    return f"{variable}: {fault.detail}" if variable else fault.detail


def row_id(row: dict[str, Any], number: int) -> str:
    """A row's own id (`case_id` or `row_id`), or its number counted from 1."""
    return str(row.get("case_id") or row.get("row_id") or number)


def is_best(reward: float | None, maximum: float) -> bool:
    """Is this the best grade there is, but for rounding in a formula?"""
    return reward is not None and math.isclose(reward, maximum, rel_tol=1e-9, abs_tol=1e-9)


# --- grader JSON, wherever it stands ---


def read_grader(source: dict[str, Any] | str | Path) -> tuple[Any, str]:
    """(the JSON value of a grader, the place it came from, for messages).

    The source is a dict, JSON text (it begins with a brace or bracket), a path, or the name of a
    preset. Raises UserError where it cannot be read; the value is not checked.
    """
    if isinstance(source, dict):
        return source, "grader"
    if not isinstance(source, (str, Path)):
        kind = type(source).__name__
        raise UserError(f"grader: a {kind}, expected a dict, JSON text, a path or a preset's name")
    if isinstance(source, str) and source.lstrip()[:1] in ("{", "["):
        return _parse(source, "grader"), "grader"
    if source in PRESETS and not Path(source).exists():
        return preset(source), "grader"
    place = shorten(str(source), 200)
    return _parse(read_text(source), place), place


def _parse(text: str, place: str) -> Any:
    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise ValueError(f"the key {shorten(twice, 40)!r} stands twice in one object")
        return dict(pairs)

    def refuse_constant(name: str) -> Any:
        raise ValueError(f"{name} is no number of JSON")

    try:
        return json.loads(text, object_pairs_hook=refuse_duplicates, parse_constant=refuse_constant)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{place}:{error.lineno}: not JSON at column {error.colno} ({error.msg}): correct it"
        ) from None
    except (RecursionError, ValueError) as error:  # nested too deep; a number of 5,000 digits
        raise UserError(f"{place}: not a grader's JSON ({shorten(error)}): correct it") from None


# --- Python functions as graders ---


def grader(
    function: Callable[[dict, dict], float] | None = None,
    *,
    name: str | None = None,
    maximum: float = 1.0,
) -> Any:
    """Turn your own function (sample, item) -> number into a Grader.

    It runs IN THIS PROCESS with all your rights, without isolation: for your own code only (the
    grader's `notes` say so too). Text that others wrote goes through `{"type": "python"}`, which
    runs isolated.

    sample  {"output_text", "output_json" (None where it is not JSON), "output_tools", "choices"}
    As for python graders, an exception or anything but a finite number scores 0, and the report
    says what happened. `to_json()` exports it if it uses nothing from outside itself.

    >>> @grader
    ... def short(sample, item):
    ...     return 1.0 if len(sample["output_text"]) < 10 else 0.0
    >>> short.grade({}, "yes")
    (1.0, {})
    """
    if function is None:
        return lambda later: grader(later, name=name, maximum=maximum)
    own_name = getattr(function, "__name__", "grade")
    try:
        inspect.signature(function).bind("sample", "item")
    except TypeError as error:
        raise UserError(
            f"@grader: {own_name!r} cannot be called with (sample, item) ({error}): give it "
            "exactly these two arguments"
        ) from None

    def score(context: Context) -> float:
        try:
            value = function(context.as_dict(), context.item)
        except UserError:  # the set-up is wrong, not this answer
            raise
        except Exception as error:  # as the contract has it for python graders
            detail = f"{type(error).__name__}: {error}"
            raise sample_fault(PROGRAM_FAILED, detail) from None
        return as_score(value)

    return Grader(
        name or own_name,
        "function",
        {"": Scorer(score)},
        lambda: _export_function(function, own_name),
        notes=[f"@grader: {name or own_name!r} {IN_PROCESS}"],
        maximum=maximum,
    )


def _export_function(function: Callable[..., Any], name: str) -> dict[str, Any]:
    """A user's function as a python grader; UserError if its text alone would not run."""
    try:
        outside = inspect.getclosurevars(function)
        source = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError) as error:
        raise UserError(
            f"@grader: the source of {name!r} cannot be found ({error}): define it with def in a "
            "file or a notebook cell"
        ) from None
    borrowed = sorted({*outside.globals, *outside.nonlocals, *outside.unbound})
    if borrowed or not source.lstrip().startswith(("def ", "@")):
        needs = f"uses {', '.join(borrowed)} from outside" if borrowed else "is not a def"
        raise UserError(
            f"@grader: {name!r} {needs}, expected a function that stands alone: import and define "
            "within it what it needs, then export"
        )
    source = source[source.index("def ") :]
    call = f"\n\ndef grade(sample, item):\n    return {name}(sample, item)\n"
    return {"type": "python", "name": name, "source": source + ("" if name == "grade" else call)}
