"""A grader as a reward function of TRL's GRPOTrainer (1.14.2)."""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

from rftkit.graders.answer import Grade
from rftkit.graders.grader import Grader, GraderLike
from rftkit.records import UNCLOSED, Sample

# What TRL hands to a reward function beside the dataset's own columns.
TRL_ARGUMENTS = ("completion_ids", "trainer_state", "log_extra", "log_metric", "environments")
MAX_LOST_SHARE = 0.05


class GraderFailure(Exception):
    """Too many grades of one step were lost to the grader's own faults."""

    def __init__(self, name: str, lost: int, total: int, reasons: list[str]):
        what = f"grader {name!r} failed on {lost} of {total} answers of one step"
        super().__init__(f"{what}, and they are not to blame: {'; '.join(reasons)}")


def reward_function(
    grader: GraderLike,
    *,
    max_lost_share: float = MAX_LOST_SHARE,
    end_token_ids: Collection[int] | None = None,
    item_column: str | None = None,
    observer: Callable[[list[Sample], list[Grade]], None] | None = None,
) -> Callable[..., list[float | None]]:
    """TRL's signature over a grader: `completions, **columns -> list[float | None]`.

    Each completion (a text, or a list of chat messages) is graded once. A sample's fault gives 0,
    the grader's own None; more than `max_lost_share` of the latter in a call raise GraderFailure.
    An answer that does not end in one of `end_token_ids` was cut at the limit and scores 0; without
    them only thinking that never closed shows a cut. `item_column` holds each whole item as JSON;
    otherwise all columns together are the items. The observer gets every call's samples and grades.

    >>> from rftkit.graders.presets import preset
    >>> function = reward_function(Grader.load(preset("exact_match", reference="answer")))
    >>> function(completions=["4", "5"], answer=["4", "4"])  # a hit and a miss
    [1.0, 0.0]
    """
    grader = Grader.load(grader)
    grader.check_ready()

    def reward(
        completions: list[Any], prompts: list[Any] | None = None, **columns: Any
    ) -> list[float | None]:
        token_ids = columns.get("completion_ids") if end_token_ids is not None else None
        own = {key: values for key, values in columns.items() if key not in TRL_ARGUMENTS}
        items, samples = [], []
        for index, completion in enumerate(completions):
            item = {key: values[index] for key, values in own.items()}
            items.append(json.loads(item[item_column]) if item_column else item)
            prompt = prompts[index] if prompts else None
            sample = _read(completion, prompt, items[-1].get("tools"))
            cut = sample.parse_stage == UNCLOSED
            if token_ids is not None:
                cut = not token_ids[index] or int(token_ids[index][-1]) not in end_token_ids
            sample.finish_reason = "length" if cut else "stop"
            samples.append(sample)
        grades = grader.evaluate_many(items, samples)
        if observer is not None:
            observer(samples, grades)
        for name, value in _metrics(grades).items() if "log_metric" in columns else ():
            columns["log_metric"](name, value)
        if "log_extra" in columns:
            columns["log_extra"]("grader_errors", [", ".join(grade.errors) for grade in grades])
        lost = [grade for grade in grades if grade.reward is None]
        if len(lost) > max_lost_share * len(grades):
            faults = [fault for grade in lost for fault in grade.faults if fault.score is None]
            reasons = list(dict.fromkeys(fault.detail for fault in faults))[:5]
            raise GraderFailure(grader.name, len(lost), len(grades), reasons)
        return [grade.reward for grade in grades]

    reward.__name__ = re.sub(r"\W+", "_", grader.name).strip("_") or "grader"  # TRL's series
    return reward


def _read(completion: Any, prompt: Any, tools: Any) -> Sample:
    """The sample of a text, or of chat messages, whose last assistant message counts. Where a plain
    prompt ends in `<think>` the completion is read as if it began there."""
    if isinstance(completion, str):
        opened = isinstance(prompt, str) and prompt.rstrip().endswith("<think>")
        return Sample.from_text("<think>" + completion if opened else completion, tools)
    assistant = [message for message in completion if message["role"] == "assistant"]
    calls = [call for message in assistant for call in message.get("tool_calls") or []]
    text = assistant[-1].get("content") or "" if assistant else ""
    return Sample.from_text(text, tools, output_tools=calls)


def _metrics(grades: list[Grade]) -> dict[str, float]:
    """One call's means, under the names of TRL's series, logged through its `log_metric`."""
    metrics = {}
    for variable in grades[0].sub_rewards:
        values = [g.sub_rewards[variable] for g in grades if g.sub_rewards[variable] is not None]
        if values:
            metrics[f"sub_rewards/{variable}"] = sum(values) / len(values)
    faulty = sum(any(fault.score is not None for fault in grade.faults) for grade in grades)
    lost = sum(grade.reward is None for grade in grades)
    counts = {"grader/sample_faults": faulty, "grader/lost": lost}
    counts |= Counter(f"grader_errors/{name}" for grade in grades for name in grade.errors)
    return metrics | {name: count / len(grades) for name, count in counts.items()}
