"""The signal gate: before training, is there anything to learn from?

    signal = measure_signal(policy, task, rows, answers=8, max_completion_tokens=64)
    print(signal.text())

A finding is a number or check with its evidence and what to change. A share is bad where its whole
95 % interval lies above its threshold ("fix"), and open where the threshold lies inside.

Left out: whether training helps. Only held-out rows show that, after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rftkit.evaluation import Groups, Interval
from rftkit.files import UserError
from rftkit.policy import Policy
from rftkit.records import SamplingConfig
from rftkit.rows import row_ids
from rftkit.signal import checks
from rftkit.signal.checks import Reference, TemplateCheck
from rftkit.signal.numbers import length_quantiles, more_rows, take_numbers
from rftkit.signal.record import Finding, Question, Signal, shown
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


# Axolotl, docs/training_stability: dead groups under 0.8, truncated answers under 0.3.
MOST_DEAD, MOST_CUT = 0.8, 0.3
MOST_UNREADABLE = 0.5  # ours: above it most of what the reward says is about form
MOST_RIGHT = 0.9  # ours: above it little is left to gain
MOST_REPEATED = 0.5  # ours: above it most answers to a row are one text
MOST_LOST = 0.05  # as in training, where more grades lost in one step end the run

READ_THE_ROW = "grader: compare the answer with the row's own field, not only its form"
VERIFIABLE = "the task: ask for what a rule can check; or the method: SFT, preference learning"


def above(share: Interval | None, most: float) -> bool:
    """Is a share bad: its whole 95 % interval above the threshold?"""
    return share is not None and share.low > most


class Findings:
    """What stands in the way, causes first; what a cause explains is not named beside it."""

    def __init__(self, signal: Signal, reference: Reference, template: TemplateCheck):
        self.signal, self.reference, self.template = signal, reference, template
        self.found: list[Finding] = []
        probe = signal.lengths.get("probe")
        self.endless = probe is not None and probe["ended"] <= probe["answers"] / 2
        self.is_cut = above(signal.cut, MOST_CUT)
        self.garbled = self.is_cut or above(signal.unreadable, MOST_UNREADABLE)
        explained = self.read_template()
        template_findings = len(self.found)
        self.read_grader()
        sound = len(self.found) == template_findings  # else rewards say nothing about the task
        if not explained:
            self.read_answers()
        if sound and not self.garbled and signal.dead_ability is not None:
            self.read_spread()
        self.found.sort(key=lambda finding: finding.level != "fix")

    def add(
        self, name: str, evidence: str, setting: str, share: Interval | None = None, most: float = 0
    ) -> None:
        """Add a fault; or what a share says that is bad above `most`, and open around it."""
        finding = Finding(name, evidence, setting)
        if share is not None and not above(share, most):
            if share.high <= most:
                return
            finding.level, finding.missing_rows = "open", more_rows(share, most, self.signal.rows)
            finding.evidence += f"; {most:.0%} lies inside the interval, so it is not certain yet"
        self.found.append(finding)

    def read_template(self) -> bool:
        """Is the question read, and do answers end? True where this explains the answers."""
        faults, odd = self.template.faults, self.template.odd
        if faults or (odd and self.garbled):
            evidence = "; ".join(faults or [*odd, f"the answers: {shown(self.signal.stages)}"])
            setting = "tokenizer.chat_template: take the template of this very model"
            self.add("chat template broken", evidence, setting)
            return True
        if self.is_cut and self.endless:
            setting = "tokenizer.eos_token or generation_config.eos_token_id: what closes an answer"
            self.add("end token missing", self.signal.cut_text(), setting)
        return False

    def read_grader(self) -> None:
        """What does the grader give to answers known to be right and wrong, and to the samples?"""
        signal, reference, check = self.signal, self.reference, self.reference.check
        if signal.lost_grades > MOST_LOST:
            errors = sorted({e for group in signal.drawn for s in group for e in s.errors})
            evidence = f"{signal.lost_grades:.0%} of the grades were lost: {', '.join(errors)}"
            setting = "grader: `rftkit grade` on one of the shown samples says what failed"
            self.add("grader fails", evidence, setting)
        if reference.inverted:
            setting = "grader: its sign (1 - x), its operation (eq, ne) or the formula"
            self.add("inverted reward", str(reference), setting)
            return
        constant = signal.distinct_rewards == 1 and (reference.right is None or reference.blind)
        if check.failures and not (constant and signal.reward.mean > 0):
            first = check.failures[0]
            why = "" if first["reward"] else f" ({first['reason'][:120]})"
            evidence = (
                f"{len(check.failures)} of {check.rows} right answers do not score "
                f"{reference.maximum:g}: row {first['row_id']}, {str(first['answer'])[:80]!r} "
                f"scored {shown(first['reward'])}{why}; {reference}"
            )
            setting = "grader or rows: until every row's own answer scores the maximum"
            self.add("reference cannot score", evidence, setting)
        if constant:
            evidence = f"all {signal.samples} sampled answers score {signal.reward.mean:.2f}"
            self.add("constant reward", f"{evidence}; {reference}", READ_THE_ROW)
        elif reference.blind and check.status == "passed":
            self.add("blind grader", str(reference), READ_THE_ROW)

    def read_answers(self) -> None:
        """Do answers fit into the limit, and can they be read?"""
        signal, setting = self.signal, "max_completion_tokens"
        if probe := signal.lengths.get("probe"):
            room = -(-1.1 * probe["p95"] // 16) * 16  # a tenth more, in steps of 16
            more = "more than" if self.endless else "about"
            limit = signal.lengths["limit"]
            setting += f": {limit} -> {more} {room:.0f}, the p95 of the probe and a little"
        self.add("limit too short", signal.cut_text(), setting, signal.cut, MOST_CUT)
        evidence = f"{signal.unreadable} ended, but cannot be read: {shown(signal.stages)}"
        setting = "the prompt: show the form by an example; or init_adapter: SFT on some dozen rows"
        self.add("unreadable answers", evidence, setting, signal.unreadable, MOST_UNREADABLE)

    def read_spread(self) -> None:
        """Do the answers of a group earn different rewards, and why not?"""
        signal, dead = self.signal, self.signal.dead_ability
        evidence = (
            f"{dead} of the groups of {signal.group} give readable answers one reward; pass@1 "
            f"{signal.pass_at[1]}; of {signal.rows} rows {len(signal.never)} are never solved, "
            f"{len(signal.always)} always; two answers to a row are one text in "
            f"{signal.repeated:.0%} of the cases, at temperature {signal.temperature:g}"
        )
        if above(signal.pass_at[1], MOST_RIGHT):
            setting = "rows: harder ones, or a grader that asks for more; or stop"
            self.add("task too easy", evidence, setting)
        elif len(signal.always) > len(signal.never):
            setting = "rows: harder ones, or a grader that gives partial credit"
            self.add("task too easy", evidence, setting, dead, MOST_DEAD)
        elif signal.repeated > MOST_REPEATED:
            setting = "temperature: 1.0 lets answers differ"
            self.add("too little exploration", evidence, setting, dead, MOST_DEAD)
        else:
            setting = "easier rows, partial credit, a warm start by SFT (init_adapter)"
            self.add("task impossible", evidence, setting, dead, MOST_DEAD)
