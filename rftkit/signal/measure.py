"""Draw answers of the policy that will be trained, and measure what training would see in them.

    signal = measure_signal(policy, task, rows, answers=8, max_completion_tokens=64)
    signal.verdict, signal.names()

Left out: whether training helps. The gate sees that rewards differ within groups, and what makes
them differ; what the model learns from that is measured on held-out rows, after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rftkit.data.errors import UserError
from rftkit.data.records import SamplingConfig
from rftkit.data.rows import row_ids
from rftkit.policy import Policy
from rftkit.signal.findings import SOME_CUT
from rftkit.signal.numbers import Drawn, take_numbers
from rftkit.signal.record import Signal
from rftkit.signal.task_checks import check_reference, why_constant, why_not_verifiable
from rftkit.signal.template import look_at_template
from rftkit.signal.verdict import decide, refuse
from rftkit.task import Task

LEAST_BUDGET = 256  # samples that the gate may always draw
BUDGET_SHARE = 0.05  # of the run's completions, where that is more
PROBES = 16  # answers drawn with more room, where many are cut:
ROOM, LEAST_ROOM = 4, 256  # so many times the limit, and no fewer tokens than that
LOOKS = 3  # times the gate may draw more, before it says undecided
Progress = Callable[[int], None]


def sample_budget(completions: int) -> int:
    """The most samples the gate may draw for a run of so many completions (0: not known)."""
    return max(int(BUDGET_SHARE * completions), LEAST_BUDGET)


def measure_signal(
    policy: Policy,
    task: Task,
    rows: Sequence[dict[str, Any]],
    *,
    answers: int = 8,
    max_completion_tokens: int = 64,
    temperature: float = 1.0,
    completions: int = 0,
    most: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Signal:
    """The signal gate: is this task, with this grader and this policy, fit for RFT?

    policy                 the one that will be trained, with its adapter if it starts from one
    rows                   the training rows; some are drawn, the choice fixed by the seed
    answers                a group: what training compares with one another, at least 2
    max_completion_tokens, temperature   as in training
    completions            of the whole run: 5 % of them may be spent here, or 256 samples
    most                   draw at most so many, where less should be spent than that
    progress               hears how many answers each batch finished

    Never draws more than sample_budget(completions). First at most 256 samples; where the
    intervals are too wide, as many more as should settle it, while the budget lasts. (Looking more
    than once makes a 95 % interval hold a little less often than that.) A task without a
    verifiable answer is refused before anything is drawn.

    Raises UserError where the grader's JSON is faulty or cannot run here, or a row lacks what it
    reads.
    """
    if answers < 2 or not rows:
        raise UserError(
            f"signal: {len(rows)} rows and groups of {answers}, expected a row and groups of at "
            "least 2: one answer has nothing to be compared with"
        )
    rows, ids = list(rows), row_ids(rows)
    budget = sample_budget(completions)
    if most is not None:
        budget = min(budget, max(most, 2 * PROBES))
    grader = task.grader  # a grader that cannot be used is said before anything is judged by it
    if why := why_not_verifiable(task, rows):
        return refuse(why, policy.name, seed, budget, len(rows), why_constant(task, rows))
    grader.check_rows(rows)
    grader.check_ready()
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    count, each = first_draw(len(rows), min(budget, LEAST_BUDGET) - PROBES, answers)
    reference = check_reference(task, rows, order[:count])
    look = look_at_template(policy, [rows[i] for i in order[:count]])
    if look.faults:  # what the model reads is not the task: its answers say nothing
        return decide(Signal("", "", policy=policy.name, seed=seed, budget=budget), reference, look)
    settings = SamplingConfig(
        temperature=temperature, max_new_tokens=max_completion_tokens, seed=seed
    )
    drawn = Drawn()
    for _ in range(LOOKS):
        chosen = order[len(drawn.rows) : count]
        draw(policy, [rows[i] for i in chosen], [ids[i] for i in chosen], drawn, each, settings,
             progress)  # fmt: skip
        signal = Signal(
            "", "", policy=policy.name, seed=seed, budget=budget, group=answers,
            temperature=temperature,
        )  # fmt: skip
        take_numbers(signal, task, drawn, reference, max_completion_tokens)
        signal = decide(signal, reference, look, task, rows)
        affordable = (budget - signal.samples - PROBES * (not drawn.probe)) // each
        if signal.verdict != "undecided" or min(affordable, len(rows) - count) < 1:
            break
        if not signal.missing_rows:
            break  # not a matter of numbers
        count = min(count + signal.missing_rows, count + affordable, len(rows))
    return signal


def first_draw(rows: int, budget: int, answers: int) -> tuple[int, int]:
    """(rows to draw, answers a row): whole groups; with few rows, more answers to each.

    >>> first_draw(rows=128, budget=240, answers=8), first_draw(rows=12, budget=240, answers=8)
    ((30, 8), (12, 20))
    """
    count = max(1, min(rows, budget // answers))
    return count, budget // count if count == rows else min(answers, budget)


def draw(
    policy: Policy,
    rows: list[dict[str, Any]],
    ids: list[str],
    drawn: Drawn,
    each: int,
    settings: SamplingConfig,
    progress: Progress | None,
) -> None:
    """Add answers to these rows; where many are cut, find out how long they would have been."""
    heard = {"progress": progress} if progress else {}
    prompts = [row["messages"] for row in rows]
    # A seed of its own for each look: else the second look's rows meet the first one's luck.
    look = SamplingConfig(**settings.to_json() | {"seed": settings.seed + 7919 * len(drawn.rows)})
    drawn.groups += policy.sample(prompts, each, look, **heard)
    drawn.rows += rows
    drawn.ids += ids
    flat = [sample for group in drawn.groups for sample in group]
    failed = [sample for sample in flat if sample.finish_reason == "error"]
    if len(failed) > len(flat) / 2:
        raise UserError(
            f"{policy.name}: {len(failed)} of {len(flat)} answers did not come "
            f"({'; '.join(failed[0].errors)}), expected a model that answers: mend its endpoint"
        )
    is_cut = [sample.finish_reason == "length" for sample in flat]
    if drawn.probe or np.mean(is_cut) <= SOME_CUT:
        return
    drawn.probe_room = max(ROOM * settings.max_new_tokens, LEAST_ROOM)
    wide = SamplingConfig(**look.to_json() | {"max_new_tokens": drawn.probe_room})
    some = [row["messages"] for row in drawn.rows[:PROBES]]
    each_probe = max(1, PROBES // len(some))
    drawn.probe = [s for g in policy.sample(some, each_probe, wide, **heard) for s in g]
