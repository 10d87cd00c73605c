"""The signal gate: before training, is there anything to learn from?

    signal = measure_signal(policy, task, rows, answers=8, max_completion_tokens=64)
    print(signal.text())

Left out: whether training helps. Only held-out rows show that, after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rftkit.evaluation import Groups
from rftkit.files import UserError
from rftkit.policy import Policy
from rftkit.records import SamplingConfig
from rftkit.rows import row_ids
from rftkit.signal import checks
from rftkit.signal.checks import Reference, TemplateCheck
from rftkit.signal.findings import MOST_RIGHT, READ_THE_ROW, VERIFIABLE, Findings
from rftkit.signal.numbers import length_quantiles, take_numbers
from rftkit.signal.record import Finding, Question, Signal
from rftkit.task import Task

Row = dict[str, Any]


FEW_ROWS = 24  # OpenAI's guide: start with several dozen rows
MANY_LABELS = 1_000  # ours: with more rows than this, SFT on the answers is the first thing to try
SOME_CUT = 0.05  # share of cut answers from which the 95 % quantile of the lengths is unknown


def ask_questions(
    signal: Signal, reference: Reference, rows: list[Row], refusal: str = ""
) -> list[Question]:
    """Hard, verifiable, labels scarce? As far as that can be measured."""
    hard, evidence = "not measured", "no graded answers"
    if solved := signal.pass_at.get(1):
        evidence = f"one answer is right in {solved}; {len(signal.never)} rows are never solved"
        if not solved.low <= MOST_RIGHT <= solved.high:
            hard = "yes" if solved.high < MOST_RIGHT else "no"
    verifiable = "yes" if reference.sound and not refusal else "no"
    if reference.check.status == "not checked" and not refusal:
        verifiable = "not measured"
    why = refusal or str(reference) or "no answer_template: no answer is known right"
    return [
        Question("Is it hard for this model, and worth thinking about?", hard, evidence),
        Question("Is a right answer recognised as right, by a rule?", verifiable, why),
        Question(
            "Are labels scarce?", "yes" if len(rows) <= MANY_LABELS else "no", f"{len(rows):,} rows"
        ),
    ]


def judge(signal: Signal, reference: Reference, template: TemplateCheck, rows: list[Row]) -> Signal:
    """Fill findings, questions, notes and verdict of a signal with its numbers."""
    signal.findings = Findings(signal, reference, template).found
    signal.questions = ask_questions(signal, reference, rows)
    names = signal.names()
    signal.notes = [] if "chat template broken" in names else [*template.odd]
    if signal.cut and signal.cut.mean > SOME_CUT and "limit too short" not in names:
        signal.notes.append(f"{signal.cut_text()}: some may lack nothing but a longer limit")
    if len(rows) < FEW_ROWS:
        signal.notes.append(f"{len(rows)} rows, fewer than {FEW_ROWS}: soon learned by heart")
    return conclude(signal, len(rows) - signal.rows)


def conclude(signal: Signal, left: int) -> Signal:
    """Fill verdict, reason and more_samples. left: rows of the file that were not drawn."""
    fixes = [finding.name for finding in signal.findings if finding.level == "fix"]
    signal.more_samples = None
    if fixes:
        signal.verdict, signal.reason = "fix", f"start with {fixes[0]}"
        if fixes[1:]:
            signal.reason += f" (and see whether {', '.join(fixes[1:])} went with it)"
        return signal
    if not signal.findings:
        alive = f"{1 - signal.dead_groups.mean:.0%}"
        signal.verdict, signal.reason = "go", f"{alive} of the groups are alive"
        return signal
    signal.verdict = "undecided"
    rows = max(finding.missing_rows for finding in signal.findings)
    more = rows * signal.answers
    signal.reason = f"{signal.samples} samples are too few: about {more:,} more would settle it"
    if rows <= left:
        signal.more_samples = more
    else:
        signal.reason += f", to {rows:,} more rows, and the file has {left} left: add rows"
    return signal


LEAST_BUDGET = 256  # samples that the gate may always draw
BUDGET_SHARE = 0.05  # of the run's completions, where that is more
PROBES = 16  # answers drawn with more room, where many are cut:
ROOM, LEAST_ROOM = 4, 256  # so many times the limit, and no fewer tokens than that
ROUNDS = 3  # of drawing, before it says undecided


def measure_signal(
    policy: Policy,
    task: Task,
    rows: Sequence[Row],
    *,
    answers: int = 8,
    max_completion_tokens: int = 64,
    temperature: float = 1.0,
    completions: int = 0,
    most: int | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Signal:
    """Is this task, with this grader and this policy, fit for RFT?

    The policy is the one that will be trained; `answers` are a group, what training compares with
    one another. First at most 256 samples are drawn; where the intervals are too wide, as many more
    as should settle it, up to 5 % of the run's `completions`, and no more than `most`.
    """
    if answers < 2 or not rows:
        raise UserError(f"signal: {len(rows)} rows, groups of {answers}, expected 1 and 2 at least")
    rows, ids, grader = list(rows), row_ids(rows), task.grader
    budget = max(int(BUDGET_SHARE * completions), LEAST_BUDGET)
    if most is not None:
        budget = min(budget, max(most, 2 * PROBES))
    signal = Signal(policy=policy.name, seed=seed, budget=budget, group=answers)
    signal.temperature, signal.lengths = temperature, {"limit": max_completion_tokens}
    if refusal := checks.why_not_verifiable(task, rows):
        signal.findings = [Finding("no verifiable answer", refusal, VERIFIABLE)]
        if constant := checks.constant_reward(task, rows):
            evidence = f"right and made-up answers all score {constant:.2f}"
            signal.findings.append(Finding("constant reward", evidence, READ_THE_ROW))
        signal.questions = ask_questions(signal, checks.NOT_CHECKED, rows, refusal)
        return conclude(signal, 0)
    grader.check_rows(rows)
    grader.check_ready()
    order = np.random.default_rng(seed).permutation(len(rows)).tolist()
    count, each = first_draw(len(rows), min(budget, LEAST_BUDGET) - PROBES, answers)
    first = [rows[i] for i in order[:count]]
    reference = checks.check_reference(task, rows, first)
    template = checks.check_template(policy, first)
    signal.reference = reference.to_json()
    if template.faults:  # the model does not read the task: its answers say nothing
        return judge(signal, reference, template, rows)
    settings = SamplingConfig(temperature, max_new_tokens=max_completion_tokens)
    groups: Groups = []
    for _ in range(ROUNDS):
        chosen = order[len(groups) : count]
        # A seed for each round: else its rows meet the random numbers of the first round's.
        settings.seed = seed + 7919 * len(groups)
        groups += draw(policy, [rows[i] for i in chosen], each, settings, progress)
        for i, group in zip(chosen, groups[-len(chosen) :]):
            for sample in group:
                task.grade_sample(rows[i], sample)
                sample.row_id = ids[i]
        drawn = [rows[i] for i in order[:count]]
        take_numbers(signal, task, drawn, groups, reference)
        signal.samples += len(chosen) * each
        if signal.cut.mean > SOME_CUT and "probe" not in signal.lengths:
            probe(signal, policy, drawn[:PROBES], settings, progress)
        judge(signal, reference, template, rows)
        affordable = budget - signal.samples - PROBES * ("probe" not in signal.lengths)
        missing = max((finding.missing_rows for finding in signal.findings), default=0)
        more = min(missing, affordable // each, len(rows) - count)
        if signal.verdict != "undecided" or more < 1:
            break
        count += more
    return signal


def draw(
    policy: Policy, rows: list[Row], each: int, settings: SamplingConfig, progress: Any
) -> Groups:
    """Answers to these rows; UserError where most did not come."""
    options = {"progress": progress} if progress else {}
    groups = policy.sample([row["messages"] for row in rows], each, settings, **options)
    failed = [s for group in groups for s in group if s.finish_reason == "error"]
    if len(failed) > len(groups) * each / 2:
        lost = f"{len(failed)} of {len(groups) * each} answers did not come"
        why = "; ".join(failed[0].errors)
        raise UserError(f"{policy.name}: {lost} ({why}), expected most: fix its endpoint")
    return groups


def probe(
    signal: Signal, policy: Policy, rows: list[Row], settings: SamplingConfig, progress: Any
) -> None:
    """Find out how long answers would be that the limit cuts: draw some with more room."""
    room = max(ROOM * settings.max_new_tokens, LEAST_ROOM)
    settings = replace(settings, max_new_tokens=room)
    groups = draw(policy, rows, max(1, PROBES // len(rows)), settings, progress)
    flat = [sample for group in groups for sample in group]
    ended = sum(sample.finish_reason == "stop" for sample in flat)
    known = {"room": room, "answers": len(flat), "ended": ended}
    signal.lengths["probe"] = length_quantiles(flat) | known
    signal.samples += len(flat)


def first_draw(rows: int, budget: int, answers: int) -> tuple[int, int]:
    """(rows to draw, answers a row): whole groups; with few rows, more answers to each."""
    count = max(1, min(rows, budget // answers))
    return count, budget // count if count == rows else min(answers, budget)
