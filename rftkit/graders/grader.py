"""A grader turns a row and a model's answer into a number, usually between 0 and 1.

    grader = Grader.load("grader.json")              # or a dict, a preset, a function: see load
    report = grader.run(item, sample)                # a dict in the format of graders/run
    reward, sub_rewards = grader.grade(item, sample)

`item` is a row of the JSONL; `sample` is a Sample, text or a dict (see Context). Several threads
may call one grader.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rftkit.files import UserError, plural, read_json, say_once, shorten
from rftkit.graders import answer, functions, scorers
from rftkit.graders.answer import Answer, Context, Fault, Grade, Scorer, grader_fault, sample_fault
from rftkit.graders.judge import JudgeSettings, compile_model_grader
from rftkit.graders.presets import PRESETS, preset
from rftkit.graders.spec import texts_of, validate_spec
from rftkit.rows import Row, own_id


@dataclass(frozen=True)
class GraderSettings:
    """Settings outside the grader JSON. Allow weak isolation only for python graders that you have
    read: they then run even on a machine that cannot block their access to files and network."""

    judge: JudgeSettings | None = None  # default: from OPENAI_BASE_URL, OPENAI_API_KEY
    embedder: scorers.Embedder | None = None  # texts -> vectors, for the metric "cosine"
    python_runner: scorers.Runner | None = None  # default: rftkit.sandbox's
    allow_weak_isolation: bool = False
    sandbox: bool = False  # for Python functions of yours too, which run in this process otherwise


@dataclass(eq=False, repr=False)
class Grader:
    """A grader of any type. Create it with `Grader.load` or `@grader`."""

    name: str
    type: str
    parts: dict[str, Scorer]  # {variable: scorer} of a multi grader, else {"": scorer}
    to_json: Callable[[], dict[str, Any]]  # OpenAI's grader JSON; UserError if there is none
    formula: scorers.Formula | None = None
    item_paths: list[answer.TemplatePath] = field(default_factory=list)  # row fields that it reads
    notes: list[str] = field(default_factory=list)  # warnings from loading
    maximum: float = 1.0  # the best grade
    function: dict[str, Any] | None = None  # what a run keeps of a Python function
    settings: GraderSettings = GraderSettings()
    schema: dict[str, Any] | None = None  # of a response_format: other answers earn 0
    warned: bool = False  # about a reward outside 0 to the maximum

    @classmethod
    def load(cls, source: GraderLike, settings: GraderSettings | None = None) -> Grader:
        """Load OpenAI's grader JSON (a dict, its text, its file), a preset by name, a Python
        function of a signature in functions.py, or "file.py:function" ("file.py" is enough where it
        holds one). UserError lists every fault with its path in the JSON."""
        if isinstance(source, Grader):
            as_it_is = settings is None or settings == source.settings
            if as_it_is or (source.type == "function" and not settings.sandbox):
                return source
            return replace(cls.load(source.record, settings), maximum=source.maximum)
        settings = settings or GraderSettings()
        if functions.is_function(source) and not settings.sandbox:
            record = functions.describe(source)  # of a file, all of it
            loaded = functions.load(source, record["name"])
            made = loaded if isinstance(loaded, Grader) else grader(loaded)
            made.function = record
            rights = "runs in this process with all your rights: --sandbox (sandbox=True) boxes it"
            say_once(f"grader {made.name} {rights}")
            return made
        value, place = read_grader(source)
        spec, notes = validate_spec(value, place, settings.embedder is not None)
        maximum = spec.pop("maximum", spec.get("range", (0, 1))[1])
        parts = spec["graders"] if spec["type"] == "multi" else {"": spec}
        texts = [text for part in parts.values() for _, text in texts_of(part)]
        paths = [path for text in texts for path in answer.Template(text).paths]
        return cls(
            spec["name"],
            spec["type"],
            {variable: _compile(part, settings) for variable, part in parts.items()},
            lambda: copy.deepcopy(spec),
            scorers.Formula(spec["calculate_output"]) if spec["type"] == "multi" else None,
            list({path.text: path for path in paths if path.namespace == "item"}.values()),
            notes,
            float(maximum),
            value if value.get("type") == "function" else None,
            settings,
        )

    @property
    def record(self) -> dict[str, Any]:
        """What a run keeps of it: its JSON, or a function's source and hash."""
        return self.function or self.to_json()

    def learn_maximum(self, rewards: Iterable[float | None]) -> None:
        """Right answers earned these: the best grade is no less."""
        self.maximum = max([self.maximum, *(r for r in rewards if r is not None)])

    @property
    def workers(self) -> int:
        """How many grades to compute in parallel."""
        return max(scorer.workers for scorer in self.parts.values())

    def run(self, item: dict[str, Any] | None, sample: Answer) -> dict[str, Any]:
        """Grade one answer; return a dict in the format of OpenAI's graders/run."""
        return self.evaluate(item, sample).to_json()

    def grade(
        self, item: dict[str, Any] | None, sample: Answer
    ) -> tuple[float | None, dict[str, float | None]]:
        """Grade one answer; return (reward, sub_rewards). reward is None if the grader failed."""
        grade = self.evaluate(item, sample)
        return grade.reward, grade.sub_rewards

    def evaluate(self, item: dict[str, Any] | None, sample: Answer) -> Grade:
        """Grade one answer. If the sample is at fault, the sub-grader counts as 0 in the formula.
        If a sub-grader itself fails, the reward is None, unless the formula does not use it.
        A list that ends before one of a formula's places is short, and no parse error."""
        start, context = time.perf_counter(), Context(item, sample)
        values: dict[str, float | None] = {}
        faults: list[Fault] = []
        if context.finish_reason == "length":
            detail = "the answer was truncated at its token limit"
            faults.append(sample_fault("truncated_observation_error", detail))
        elif context.finish_reason == "error":
            faults.append(grader_fault("other_error", "there is no answer: the endpoint failed"))
        elif self.schema and (fault := answer.schema_fault(context, self.schema)):
            faults.append(fault)
        if faults:
            reward = faults[0].score
            values = dict.fromkeys(self.parts, reward)
        else:
            for variable, scorer in self.parts.items():
                try:
                    values[variable] = scorer.score(context)
                except UserError:  # the setup is wrong, not this grade
                    raise
                except Exception as error:  # one failed grade must not end the run
                    if not isinstance(error, Fault):
                        error = grader_fault("other_error", f"{type(error).__name__}: {error}")
                    error.variable, values[variable] = variable, error.score
                    if not (self.formula and isinstance(error, answer.ListEnds)):
                        faults.append(error)
            reward = None if self.formula else values[""]
            if self.formula and None not in map(values.get, self.formula.variables):
                try:
                    reward = self.formula.evaluate(values)
                except scorers.FormulaError as error:
                    faults.append(grader_fault("formula_parse_error", f"calculate_output: {error}"))
        if reward is not None and not 0.0 <= reward <= self.maximum and not self.warned:
            self.warned = True
            outside = f"returned {reward:g}, outside 0 to {self.maximum:g}: used unchanged"
            state = "state its best grade (RunConfig: grader_maximum, Task and JSON: maximum)"
            warnings.warn(f"grader {self.name!r} {outside}; {state}", stacklevel=3)
        sub_rewards, seconds = values if self.formula else {}, time.perf_counter() - start
        metadata = (self.name, self.type, seconds, context.usage, context.unclosed)
        return Grade(reward, sub_rewards, faults, *metadata)

    def evaluate_many(self, items: Sequence[Row], samples: Sequence[Answer]) -> list[Grade]:
        """Grade every pair and keep the order; judges and sandboxes run in parallel."""
        pairs = list(zip(items, samples, strict=True))
        if self.workers == 1 or len(pairs) < 2:
            return [self.evaluate(*pair) for pair in pairs]
        with ThreadPoolExecutor(min(self.workers, len(pairs))) as pool:
            return list(pool.map(lambda pair: self.evaluate(*pair), pairs))

    def check_ready(self) -> None:
        """Raise UserError if this grader cannot run here (no endpoint, no isolation, no corpus)."""
        for scorer in self.parts.values():
            scorer.check_ready()

    def check_rows(self, rows: Iterable[dict[str, Any]]) -> None:
        """Raise UserError that lists rows without a field that the grader's templates use."""
        faults = []
        for number, row in enumerate(rows, start=1):
            for path in self.item_paths:
                try:
                    path.resolve(Context(row, ""))
                except Fault as fault:
                    faults.append(f"\n  row {own_id(row) or number}: {fault.detail}")
        if faults:
            error = f"{plural(len(faults), 'field')} missing: correct the rows or the template"
            raise UserError(f"grader {self.name!r}: {error}{''.join(faults[:5])}")


def _compile(spec: dict[str, Any], settings: GraderSettings) -> Scorer:
    if spec["type"] == "string_check":
        return scorers.compile_string_check(spec)
    if spec["type"] == "text_similarity":
        return scorers.compile_text_similarity(spec, settings.embedder)
    if spec["type"] == "python":
        return scorers.compile_python(spec, settings.python_runner, settings.allow_weak_isolation)
    return compile_model_grader(spec, settings.judge or JudgeSettings())


def is_best(reward: float | None, maximum: float) -> bool:
    """True if the reward equals the maximum, up to rounding in a formula."""
    return reward is not None and math.isclose(reward, maximum, rel_tol=1e-9, abs_tol=1e-9)


GraderLike = Grader | dict[str, Any] | str | Path | Callable  # what people have: see Grader.load


def read_grader(source: GraderLike) -> tuple[Any, str]:
    """(the grader's JSON value, which is not validated; where it came from, for error messages). Of
    a function it is what a run keeps: nothing is run. UserError if the source cannot be read."""
    if isinstance(source, (Grader, dict)):
        return source if isinstance(source, dict) else source.record, "grader"
    if not isinstance(source, (str, Path)) and not callable(source):
        raise UserError(f"grader: {shorten(source)}, expected JSON, its file or a function")
    if functions.is_function(source):
        return functions.describe(source), shorten(str(source), 200)
    if source in PRESETS and not Path(source).exists():
        return preset(source), "grader"
    is_text = str(source).lstrip()[:1] in ("{", "[")
    return read_json(source), "grader" if is_text else shorten(str(source), 200)


def grader(function: Callable | None = None, *, name: str | None = None, maximum: float = 1) -> Any:
    """Turn your own function, of a signature in functions.py, into a Grader.

    It runs IN THIS PROCESS with all your rights, without isolation: use it only for your own code.
    `sample` has the keys output_text, output_json (None if it is not JSON), output_tools, choices.
    As with python graders, an exception or a value other than a finite number scores 0; where a
    reward function of TRL gives None, there is no grade.

    >>> @grader
    ... def short(sample, item):
    ...     return 1.0 if len(sample["output_text"]) < 10 else 0.0
    >>> short.grade({}, "yes")
    (1.0, {})
    """
    if function is None:
        return partial(grader, name=name, maximum=maximum)
    record = functions.describe(function)
    call = functions.CALLS[record["signature"]]

    def score(context: Context) -> float:
        try:
            value = call(function, context.as_dict(), context.item)
        except UserError:  # the setup is wrong, not this answer
            raise
        except Exception as error:  # scored as OpenAI scores a failed python grader
            raise sample_fault(answer.PROGRAM_FAILED, f"{type(error).__name__}: {error}") from None
        if value is None and call is functions.call_trl:
            raise grader_fault("other_error", f"{record['name']} gave None")
        return scorers.as_score(value)

    made = Grader(
        name or record["name"],
        "function",
        {"": Scorer(score)},
        lambda: functions.python_spec(made.function),
        maximum=maximum,
        function=record,
    )
    return made
