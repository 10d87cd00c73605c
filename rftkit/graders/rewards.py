"""A grader as a reward function of TRL's GRPOTrainer (1.14.2)."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from rftkit.graders.answer import Grade, GraderFailure, sample_from_completion
from rftkit.records import Sample

if TYPE_CHECKING:
    from rftkit.graders.grader import Grader


# What TRL hands to a reward function beside the dataset's own columns.
TRL_ARGUMENTS = ("completion_ids", "trainer_state", "log_extra", "log_metric", "environments")
MAX_LOST_SHARE = 0.05
_names_in_use: dict[str, str] = {}  # function name -> what the grader is


def reward_function(
    grader: Grader,
    *,
    max_lost_share: float = MAX_LOST_SHARE,
    end_token_ids: Collection[int] | None = None,
    item_column: str | None = None,
    observer: Callable[[list[Sample | dict], list[Grade]], None] | None = None,
) -> Callable[..., list[float | None]]:
    """TRL's signature over a grader: `completions, **columns -> list[float | None]`.

    completions     N texts, or N lists of chat messages
    columns         the dataset's fields, N values each: together they are the N items
    max_lost_share  more grades than this lost to the grader's own faults in one call raise
                    GraderFailure (training turns it into a checkpoint and a stop)
    end_token_ids   with it, an answer whose token ids do not end in one of these was cut at the
                    limit and scores 0; without it, only thinking that never closed shows a cut
                    (and scores 0 then: its output is empty, which a grader may well like)
    item_column     the column that holds each whole item as JSON, where rows differ in their
                    fields or types; the other columns are then not read
    observer        hears the samples and their grades of every call, before the rewards return

    Each completion is graded once. A sample's fault gives 0, the grader's own fault None (TRL
    leaves it out of the group). Logged through TRL's `log_metric`, as means over the call:
    `sub_rewards/VARIABLE`, `grader/sample_faults` and `grader/lost` (shares of the completions),
    and `grader_errors/FIELD` for each kind of error that occurred; through `log_extra` the column
    `grader_errors`.

    >>> from rftkit.graders import exact_match
    >>> function = reward_function(exact_match(reference="answer"))
    >>> function(completions=["4", "5"], answer=["4", "4"])  # a hit and a miss
    [1.0, 0.0]
    """
    grader.check_ready()

    def reward(
        completions: list[Any], prompts: list[Any] | None = None, **columns: Any
    ) -> list[float | None]:
        count = len(completions)
        ends_known = end_token_ids is not None and columns.get("completion_ids") is not None
        cut = _find_cut(columns.get("completion_ids"), end_token_ids, count)
        if item_column is None:
            items = _items_of(columns, count)
        else:
            items = [json.loads(item) for item in columns[item_column]]
        samples = [
            sample_from_completion(
                completion,
                prompts[index] if prompts else None,
                not ends_known,
                **({"finish_reason": "length"} if cut[index] else {}),
            )
            for index, completion in enumerate(completions)
        ]
        grades = grader.evaluate_many(items, samples)
        if observer is not None:
            observer(samples, grades)
        _log(grades, columns.get("log_metric"), columns.get("log_extra"))
        _stop_if_failing(grader.name, grades, max_lost_share)
        return [grade.reward for grade in grades]

    reward.__name__ = reward.__qualname__ = _unique_name(grader)
    return reward


def _items_of(columns: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """N items from the columns; what TRL adds is left out, and a constant serves all."""
    items: list[dict[str, Any]] = [{} for _ in range(count)]
    for key, values in columns.items():
        if key in TRL_ARGUMENTS:
            continue
        per_item = isinstance(values, (list, tuple)) and len(values) == count
        for index, item in enumerate(items):
            item[key] = values[index] if per_item else values
    return items


def _find_cut(
    completion_ids: list[list[int]] | None, end_token_ids: Collection[int] | None, count: int
) -> list[bool]:
    if completion_ids is None or end_token_ids is None:
        return [False] * count
    ends = set(end_token_ids)
    return [not (len(ids) and int(ids[-1]) in ends) for ids in completion_ids]


def _log(
    grades: list[Grade],
    log_metric: Callable[[str, float], None] | None,
    log_extra: Callable[[str, list], None] | None,
) -> None:
    if log_extra is not None:
        log_extra("grader_errors", [", ".join(grade.errors) for grade in grades])
    if log_metric is None or not grades:
        return
    for variable in grades[0].sub_rewards:
        values = [g.sub_rewards[variable] for g in grades if g.sub_rewards[variable] is not None]
        if values:
            log_metric(f"sub_rewards/{variable}", sum(values) / len(values))
    lost = sum(grade.reward is None for grade in grades)
    faulty = sum(any(f.score is not None for _, f in grade.faults) for grade in grades)
    log_metric("grader/sample_faults", faulty / len(grades))
    log_metric("grader/lost", lost / len(grades))
    for name, number in Counter(e for grade in grades for e in grade.errors).items():
        log_metric(f"grader_errors/{name}", number / len(grades))


def _stop_if_failing(name: str, grades: list[Grade], max_lost_share: float) -> None:
    lost = [grade for grade in grades if grade.reward is None]
    if len(lost) > max_lost_share * len(grades):
        reasons = dict.fromkeys(
            fault.detail for g in lost for _, fault in g.faults if fault.score is None
        )
        raise GraderFailure(name, len(lost), len(grades), list(reasons)[:5])


def _unique_name(grader: Grader) -> str:
    """The grader's name as a function name, which TRL uses for its series; a number is added
    where ANOTHER grader of this process has the name (the same one keeps it)."""
    base = re.sub(r"\W+", "_", grader.name).strip("_") or "grader"
    try:
        identity = json.dumps(grader.to_json(), sort_keys=True)
    except Exception:  # a function that cannot be exported is only itself
        identity = f"object {id(grader)}"
    name, number = base, 1
    while _names_in_use.setdefault(name, identity) != identity:
        number += 1
        name = f"{base}_{number}"
    return name
