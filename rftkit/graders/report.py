"""What can go wrong with a grade, and the report that says so (shape: OpenAI's graders/run).

Two kinds of fault are kept apart, because training must treat them differently:

- the SAMPLE's fault (not JSON, truncated, a path that is not there): the grade is 0;
- the GRADER's own fault (endpoint down, formula divides by zero): there is no grade (None).
  TRL leaves a None out of its group; a 0 would teach the model from a broken scale.

The names of the error fields are OpenAI's (`openai.types.fine_tuning.alpha.GraderRunResponse`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

# A python grader's own program failed on a sample, which scores 0 for it.
PROGRAM_FAILED = "python_grader_runtime_error"
# Field -> the field that carries its text, where the API has one.
ERROR_FIELDS: dict[str, str | None] = {
    "formula_parse_error": None,
    "sample_parse_error": None,
    "truncated_observation_error": None,
    "unresponsive_reward_error": None,
    "invalid_variable_error": None,
    "other_error": None,
    "python_grader_server_error": "python_grader_server_error_type",
    PROGRAM_FAILED: "python_grader_runtime_error_details",
    "model_grader_server_error": "model_grader_server_error_details",
    "model_grader_refusal_error": None,
    "model_grader_parse_error": None,
}


class Fault(Exception):
    """Why one grade went wrong.

    field   one of ERROR_FIELDS
    detail  one plain sentence
    score   what the grade becomes: 0.0 (the sample's fault) or None (the grader's own)
    """

    def __init__(self, field: str, detail: str, score: float | None):
        super().__init__(detail)
        self.field, self.detail, self.score = field, detail, score


def sample_fault(field: str, detail: str) -> Fault:
    """The sample is to blame: it scores 0, and the fault is counted."""
    return Fault(field, detail, 0.0)


def grader_fault(field: str, detail: str) -> Fault:
    """The grader's machinery is to blame: no score at all, and the fault is counted."""
    return Fault(field, detail, None)


class GraderFailure(Exception):
    """Too many grades of one step were lost to the grader's own faults: stop with a checkpoint.

    lost, total  grades without a score, and all grades of the step
    reasons      up to five different details
    """

    def __init__(self, name: str, lost: int, total: int, reasons: list[str]):
        super().__init__(
            f"grader {name!r} failed on {lost} of {total} answers of one step, which is too many "
            f"to go on (the answers are not to blame): {'; '.join(reasons)}"
        )
        self.name, self.lost, self.total, self.reasons = name, lost, total, reasons


class Grade(NamedTuple):
    """One grade: the reward (None: the grader itself failed), a number for each sub-grader, and
    what went wrong as pairs of (sub-grader's variable, or "" for the whole; fault)."""

    reward: float | None
    sub_rewards: dict[str, float | None]
    faults: tuple[tuple[str, Fault], ...] = ()

    @property
    def errors(self) -> list[str]:
        """The names of the error fields, each once: what `Sample.errors` holds."""
        return list(dict.fromkeys(fault.field for _, fault in self.faults))


@dataclass
class GraderReport:
    """The answer of graders/run; `to_json()` has exactly its shape.

    reward          None (null) where the grader itself failed; the API has no word for that
    explanations    one sentence a fault, ours; not part of the API's shape
    execution_time  seconds
    """

    name: str
    type: str
    reward: float | None
    sub_rewards: dict[str, float | None] = field(default_factory=dict)
    errors: dict[str, Any] = field(default_factory=dict)
    execution_time: float = 0.0
    token_usage: dict[str, dict[str, int]] = field(default_factory=dict)
    explanations: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The object of graders/run. `token_usage` is the total, as the `openai` package types
        it; the split is in `model_grader_token_usage_per_model`."""
        total = sum(usage.get("total_tokens", 0) for usage in self.token_usage.values())
        return {
            "reward": self.reward,
            "sub_rewards": dict(self.sub_rewards),
            "metadata": {
                "name": self.name,
                "type": self.type,
                "errors": dict(self.errors),
                "execution_time": self.execution_time,
                "scores": dict(self.sub_rewards),
                "token_usage": total if self.token_usage else None,
                "sampled_model_name": next(iter(self.token_usage), None),
            },
            "model_grader_token_usage_per_model": {
                model: dict(usage) for model, usage in self.token_usage.items()
            },
        }


def error_object(faults: tuple[tuple[str, Fault], ...]) -> dict[str, Any]:
    """All error fields, false where nothing happened, the detail fields null."""
    errors: dict[str, Any] = {}
    for name, detail_name in ERROR_FIELDS.items():
        errors[name] = False
        if detail_name:
            errors[detail_name] = None
    for variable, fault in faults:
        errors[fault.field] = True
        detail_name = ERROR_FIELDS[fault.field]
        if detail_name:
            detail = f"{variable}: {fault.detail}" if variable else fault.detail
            errors[detail_name] = "\n".join(filter(None, [errors[detail_name], detail]))
    return errors
