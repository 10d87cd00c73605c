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

from rftkit.evaluation import Interval, clusters_of
from rftkit.files import UserError
from rftkit.policy import Policy
from rftkit.records import SamplingConfig
from rftkit.rows import row_ids
from rftkit.signal.checks import (
    Reference,
    TemplateLook,
    check_reference,
    look_at_template,
    why_constant,
    why_not_verifiable,
)
from rftkit.signal.numbers import Drawn, Finding, Question, Signal, more_rows, take_numbers
from rftkit.task import Task

# ------------------------------------------------------------------------------------------
# from rftkit.signal.verdict:
# What the gate hands back: a verdict, the findings behind it, and all numbers they rest on.


# ------------------------------------------------------------------------------------------
# from rftkit.signal.verdict:
# The names of the findings with what to turn, the thresholds, and what collects findings.
#
# A share is bad when its whole 95 % interval lies beyond the threshold, and open when the threshold
# lies inside it.

# Quoted: Axolotl, docs/training_stability (zero-spread groups under 0.8, clipped under 0.3).
MOST_DEAD, MOST_CUT = 0.8, 0.3
SOME_CUT = 0.05  # share of cut answers from which the 95 % quantile of the lengths is unknown
MOST_UNREADABLE = 0.5  # ours: beyond half, most of what the model hears is about form
LOW_TEMPERATURE = 0.5  # ours: below it most answers are the likeliest one and its neighbours
HOPELESS = 20  # ours, times the gate's budget: who would need more samples needs another task
FEW_ROWS = 24  # OpenAI's guide: start with several dozen rows; two are the fewest that may mean
MOST_LOST = 0.05  # as in training, where more grades lost in one step end the run

# Causes before what follows from them: each name, and what to turn.
FINDINGS = {
    "no verifiable answer": "ask for something that a rule can check (which of these facts does "
    "the text state? what is the total?), or take another method: SFT on good examples, or "
    "preference learning where people can only say which of two answers is better",
    "chat template broken": "tokenizer.chat_template: take the template of this very model",
    "end token missing": "tokenizer.eos_token or generation_config.eos_token_id: name the token "
    "that closes an answer in the chat template",
    "grader fails": "grader: `rftkit grade` on one of the shown samples says what failed",
    "inverted reward": "grader: turn its sign (1 - x), its operation (eq, ne) or the formula round",
    "reference cannot score": "grader or rows: mend them until every row's own answer scores the "
    "maximum (spelling, upper and lower case, the path in the output, the weights' sum)",
    "constant reward": "grader: compare the answer with the row's own field; `rftkit grade` on a "
    "right and a wrong answer must give two numbers",
    "blind grader": "grader: let it compare the answer with the row, not only look at its form",
    "limit too short": "max_completion_tokens",
    "unreadable answers": "say the form in the prompt with an example, or start from an adapter "
    "that SFT taught the form (a few dozen rows; init_adapter)",
    "task too easy": "rows: harder ones, or a grader that asks for more; or be content and stop",
    "task impossible": "easier rows first, partial credit in the grader, an SFT warm start "
    "(init_adapter) or a stronger model; more answers_per_prompt helps where some are right",
    "too little exploration": "temperature: 1.0 lets answers differ; or init_adapter: an adapter "
    "may have lost its variety",
    "no spread": "more answers_per_prompt, partial credit in the grader, or rows of middling "
    "difficulty (neither always nor never solved)",
    "too few rows": "rows: add some, a few dozen to start with; or read the run as a test of the "
    "machinery, and evaluate on rows that it has not seen",
    "format alone": "teach the form first (an example in the prompt, a short SFT), or give it less "
    "weight in the grader",
}
GRADER_FAULTS = {
    "grader fails",
    "inverted reward",
    "constant reward",
    "blind grader",
    "reference cannot score",
}


class Judge:
    """Collects findings about one signal."""

    def __init__(self, signal: Signal):
        self.signal = signal
        self.findings: list[Finding] = []
        self.missing_rows = 0

    def add(self, name: str, evidence: str, knob: str = "", level: str = "fix") -> None:
        self.findings.append(Finding(name, evidence, knob or FINDINGS[name], level))

    def too_high(self, share: Interval, most: float) -> str:
        """ "fix", "open" or "" for a share that should not be above `most`."""
        if share.low > most:
            return "fix"
        return "open" if share.high > most else ""

    def hold(self, name: str, share: Interval, most: float, evidence: str, knob: str = "") -> bool:
        """Hold a share against its threshold; True where it is not good."""
        level = self.too_high(share, most)
        if not level:
            return False
        if level == "open":
            rows = more_rows(share, most, self.signal.rows)
            self.missing_rows = max(self.missing_rows, rows)
            evidence += f"; {most:.0%} lies inside the interval, so it cannot be told yet"
        self.add(name, evidence, knob, level)
        return True


# ------------------------------------------------------------------------------------------
# from rftkit.signal.verdict:
# The three questions to ask of a task before RFT: is it hard, verifiable, are labels scarce?
#
# As far as they can be measured they are answered; the rest is said to be the reader's to know.

HARD = "Is it hard for this model, and worth thinking about?"
VERIFIABLE = "Is a right answer recognised as right, by a rule?"
SCARCE = "Are labels scarce?"
MANY_LABELS = 1_000  # ours: with more rows than this, SFT on the answers is the first thing to try
MOST_RIGHT = 0.9  # ours: above it little is left to gain


def ask_questions(
    signal: Signal,
    reference: Reference | None,
    task: Task | None,
    rows: Sequence[dict[str, Any]],
    why_not: str | None = None,
) -> list[Question]:
    """why_not   why no program can tell a right answer, where that is so"""
    return [hard(signal), verifiable(reference, why_not), scarce(task, rows)]


def hard(signal: Signal) -> Question:
    """Only from below: a model that is nearly always right has nothing to learn here."""
    if not signal.pass_at:
        return Question(HARD, "not measured", "nothing was drawn, or nothing could be graded")
    solved = signal.pass_at[1]
    answer = (
        "no" if solved.low > MOST_RIGHT else "yes" if solved.high < MOST_RIGHT else "not measured"
    )
    ever = 1 - len(signal.never) / max(signal.rows, 1)
    evidence = f"one answer is right in {solved}; {ever:.0%} of the rows were solved at least once"
    return Question(HARD, answer, evidence)


def verifiable(reference: Reference | None, why_not: str | None) -> Question:
    if why_not:
        return Question(VERIFIABLE, "no", why_not)
    if reference is None or reference.check.status == "not checked":
        return Question(VERIFIABLE, "not measured", "no answer_template: no answer is known right")
    right = f"{reference.check.rows - len(reference.check.failures)} of {reference.check.rows}"
    evidence = f"{right} right answers score {reference.maximum:g}"
    if reference.swapped is not None:
        evidence += f"; other rows' answers score {reference.swapped:.2f} on average"
    return Question(VERIFIABLE, "yes" if reference.sound else "no", evidence)


def scarce(task: Task | None, rows: Sequence[dict[str, Any]]) -> Question:
    """Counts what is here; whether more could be had is the reader's to know."""
    few = len(rows) <= MANY_LABELS
    evidence = f"{len(rows):,} rows"
    if task is not None and task.group_by is not None:
        evidence += f", {len(set(clusters_of(list(rows), task))):,} different {task.group_by}"
    if not few:
        evidence += ": so many labels are worth an SFT on the answers first, as a rival"
    return Question(SCARCE, "yes" if few else "no", evidence)


# ------------------------------------------------------------------------------------------
# from rftkit.signal.verdict:
# The findings: what the numbers say about the answers, the grader, the groups and the rows.

MISSHAPEN = (
    "answer_template: write it in the form that the grader reads (the same keys and lists); or "
    "the grader's path, if that is what is wrong"
)


def judge_answers(judge: Judge, reference: Reference, look: TemplateLook) -> bool:
    """Template, end token, limit, form. True where the answers say nothing about ability."""
    signal = judge.signal
    is_cut = judge.too_high(signal.cut, MOST_CUT) == "fix"
    garbled = is_cut or judge.too_high(signal.unreadable, MOST_UNREADABLE) == "fix"
    probe = signal.lengths.get("probe")
    limit = signal.lengths["limit"]
    evidence = cut_evidence(signal)
    endless = probe is not None and probe["ended"] <= probe["answers"] / 2
    if look.odd and garbled:
        stages = ", ".join(f"{name} {share:.0%}" for name, share in signal.stages.items())
        judge.add("chat template broken", f"{'; '.join(look.odd)}; and the answers: {stages}")
        return True
    if is_cut and (look.no_end or endless):
        why = f"{look.no_end}; " if look.no_end else ""
        judge.add("end token missing", why + evidence)
        if look.no_end and endless:
            return True  # else answers that are merely long look the same, or do end
    knob = FINDINGS["limit too short"]
    if probe:
        room = "more than" if endless else "about"
        knob += f": {limit} -> {room} {room_for(probe['p95'])}, the p95 of the probe and a little"
    short = judge.hold("limit too short", signal.cut, MOST_CUT, evidence, knob)
    stages = {name: share for name, share in signal.stages.items() if name != "readable"}
    told = ", ".join(f"{name} {share:.0%}" for name, share in stages.items())
    # The answer_template says where an answer stands; one in the wrong form finds none.
    bad_form = not reference.misshapen and judge.hold(
        "unreadable answers",
        signal.unreadable,
        MOST_UNREADABLE,
        f"{signal.unreadable} of the answers ended but could not be read ({told})",
    )
    return (short or bad_form) and garbled


def cut_evidence(signal: Signal) -> str:
    """How many answers the limit cuts, and how long they would have been."""
    evidence = f"{signal.cut} of the answers are cut at {signal.lengths['limit']} tokens"
    if probe := signal.lengths.get("probe"):
        evidence += (
            f"; of {probe['answers']} drawn with {probe['room']} tokens {probe['ended']} ended by "
            f"themselves (p95: {probe['p95']:.0f} tokens)"
        )
    return evidence


def room_for(tokens: float) -> int:
    """A limit a tenth above this length, in steps of 16."""
    return int(-(-1.1 * tokens // 16) * 16)


def judge_grader(judge: Judge, reference: Reference) -> None:
    """What the grader says about answers known to be right and wrong, and about the samples."""
    signal = judge.signal
    if signal.lost_grades > MOST_LOST:
        errors = sorted({e for group in signal.drawn for s in group for e in s.errors})
        judge.add(
            "grader fails",
            f"{signal.lost_grades:.0%} of the grades were lost to the grader's own faults "
            f"({', '.join(errors) or 'no reason given'})",
        )
    known = ""
    if reference.right is not None:
        known = f"right answers score {reference.right:.2f} on average"
        if reference.swapped is not None:
            known += f", other rows' answers {reference.swapped:.2f}"
        if reference.worse:
            known += f", worse_answers {', '.join(f'{w:.2f}' for w in reference.worse)}"
    if reference.inverted:
        judge.add("inverted reward", known)
        return
    alike = signal.distinct_rewards == 1
    if alike and (reference.right is None or reference.blind):
        value = f"all {signal.samples} sampled answers score {signal.reward.mean:.2f}"
        also = "; without an answer_template a task that is too hard looks the same"
        judge.add("constant reward", f"{value}; {known}" if known else value + also)
        if signal.reward.mean > 0:
            return  # that the right answer does not score the maximum either follows from it
    elif reference.blind and reference.check.passed:
        judge.add("blind grader", known)
    if reference.check.status == "failed":
        failures = reference.check.failures
        first = failures[0]
        scored = "nothing" if first["reward"] is None else f"{first['reward']:.2f}"
        # A part that found nothing explains a reward of 0; beside a higher one it is no reason.
        why = f" ({first['reason'][:120]})" if first["reason"] and not first["reward"] else ""
        judge.add(
            "reference cannot score",
            f"on {len(failures)} of {reference.check.rows} rows the right answer does not score "
            f"{reference.maximum:g}: row {first['row_id']}, {str(first['answer'])[:80]!r} scored "
            f"{scored}{why}" + (f"; {known}" if reference.misshapen else ""),
            MISSHAPEN if reference.misshapen else "",
        )


def judge_spread(judge: Judge) -> None:
    """Do the answers of a group earn different rewards, and why not?"""
    signal = judge.signal
    if GRADER_FAULTS & {finding.name for finding in judge.findings}:
        return  # then the rewards say nothing about the task
    solved = signal.pass_at[1]
    dead = (
        f"{signal.dead_ability} of the groups of {signal.group} show no spread among readable "
        f"answers; pass@1 {solved}"
    )
    if signal.group in signal.pass_at:
        dead += f", pass@{signal.group} {signal.pass_at[signal.group]}"
    # `too easy` is an interval of its own, held from below: all of it above MOST_RIGHT.
    if judge.too_high(solved, MOST_RIGHT) == "fix":
        always = f"{len(signal.always)} of {signal.rows} rows are always solved"
        judge.add("task too easy", f"pass@1 {solved}; {always}")
        return
    kinds = signal.dead_kinds
    kind = max(kinds, key=kinds.get) if kinds else "alike"
    name = {
        "always right": "task too easy",
        "never right": "task impossible",
        "repeated": "too little exploration",
        "alike": "no spread",
    }[kind]
    if name != "task too easy" and signal.temperature < LOW_TEMPERATURE:
        name = "too little exploration"  # what the model could do has not been seen
    if name == "too little exploration":
        dead += (
            f"; two answers to a row are the same text in {signal.repeated:.0%} of the cases, at "
            f"temperature {signal.temperature:g}"
        )
    if name == "task impossible":
        dead += f"; {len(signal.never)} of {signal.rows} rows are never solved"
    judge.hold(name, signal.dead_ability, MOST_DEAD, dead)
    able, all_in_all = (
        judge.too_high(share, MOST_DEAD) for share in (signal.dead_ability, signal.dead_groups)
    )
    if able == "fix" and not all_in_all:
        judge.add(
            "format alone",
            f"{signal.dead_groups} of the groups have no spread, but {signal.dead_ability} none "
            f"among readable answers: {signal.format_share:.0%} of the spread is form",
        )


def judge_rows(judge: Judge, rows: int) -> None:
    """One row has a spread like any other, and yet there is nothing to be learnt from it alone."""
    if rows == 1:
        judge.add(
            "too few rows",
            "the training file holds one row: a spread within its group can be learnt from, but "
            "nothing can be compared across rows, and its answer will be learned by heart",
            level="open",
        )


# ------------------------------------------------------------------------------------------
# from rftkit.signal.verdict:
# From findings to a verdict.
#
# One bad share means fix; none bad and one open means undecided (findings.py says what that is).


def decide(
    signal: Signal,
    reference: Reference,
    look: TemplateLook,
    task: Task | None = None,
    rows: Sequence[dict[str, Any]] = (),
) -> Signal:
    """Fill verdict, reason, findings, questions and notes of a signal with its numbers."""
    judge = Judge(signal)
    signal.reference = signal.reference or reference.to_json()
    if signal.samples:
        garbage = judge_answers(judge, reference, look)
        judge_grader(judge, reference)
        if not garbage and signal.dead_ability is not None:
            judge_spread(judge)
            judge_rows(judge, len(rows))
    else:
        if look.faults:
            judge.add("chat template broken", "; ".join(look.faults))
        judge_grader(judge, reference)
    order = list(FINDINGS)
    signal.findings = sorted(judge.findings, key=lambda f: (f.level != "fix", order.index(f.name)))
    signal.notes = take_notes(signal, reference, look)
    if task is not None:
        signal.questions = ask_questions(signal, reference, task, rows)
    few = 1 < len(rows) < FEW_ROWS
    if few and signal.samples:
        signal.notes.append(
            f"{len(rows)} rows: fewer than the {FEW_ROWS} that RFT is usually started with; they "
            "will soon be learned by heart, so look at held-out rows often (eval_every)"
        )
    conclude(signal, judge.missing_rows, len(rows))
    return signal


def refuse(
    why: str, policy: str, seed: int, budget: int, rows: int, constant: str | None = None
) -> Signal:
    """The result for a task whose answers nothing can verify; nothing was drawn.

    constant   what was seen of a grader that gives every answer the same, where it does
    """
    signal = Signal("", "", policy=policy, seed=seed, budget=budget)
    name = "no verifiable answer"
    signal.findings = [Finding(name, why, FINDINGS[name])]
    if constant:
        alike = "constant reward"
        signal.findings.append(Finding(alike, constant, FINDINGS[alike]))
    signal.questions = ask_questions(signal, None, None, [{}] * rows, why)
    conclude(signal, 0, rows)
    return signal


def conclude(signal: Signal, missing_rows: int, rows: int) -> None:
    """The verdict and its sentence."""
    fixes = [f.name for f in signal.findings if f.level == "fix"]
    signal.more_samples, signal.missing_rows = None, missing_rows
    if fixes:
        signal.verdict = "fix"
        signal.reason = f"mend first: {fixes[0]}"
        if len(fixes) > 1:
            signal.reason += f" (and see whether {', '.join(fixes[1:])} went with it)"
    elif signal.findings:
        signal.verdict = "undecided"
        signal.reason = why_undecided(signal, missing_rows, rows - signal.rows)
    else:
        signal.verdict = "go"
        signal.reason = (
            f"{1 - signal.dead_groups.mean:.0%} of the groups have a spread to learn from"
        )


def why_undecided(signal: Signal, missing_rows: int, left: int) -> str:
    """What would settle it; fills more_samples where that is more answers to rows that are there.

    missing_rows  about how many more rows are needed; 0 where the finding is not about numbers
    left          rows of the file that were not drawn
    """
    about_rows = [f.evidence for f in signal.findings if f.name == "too few rows"]
    if about_rows or not missing_rows:
        return (about_rows or [signal.findings[0].evidence])[0]
    too_few = f"{signal.samples} samples are too few"
    most = HOPELESS * signal.budget
    if missing_rows * (signal.group or signal.answers) > most:
        return (
            f"{too_few}: to settle it would take more than {most:,} more ({HOPELESS} times what "
            "the gate may draw), so near to the limit does it lie. Treat it as a fix: give partial "
            "credit, or take easier rows or more answers_per_prompt, so that more groups have a "
            "spread"
        )
    if missing_rows > left:
        return (
            f"{too_few}: it would take about {missing_rows * signal.answers:,} more, to about "
            f"{missing_rows:,} more rows, and the file has {left} left. Add rows; or raise "
            "answers_per_prompt, so that fewer groups are dead; or train and watch the share of "
            "dead groups"
        )
    signal.more_samples = missing_rows * signal.answers
    return f"{too_few}: about {signal.more_samples:,} more would settle it"


def take_notes(signal: Signal, reference: Reference, look: TemplateLook) -> list[str]:
    """What could not be checked, and what is odd without being a fault."""
    notes = []
    if reference.check.status == "not checked":
        notes.append("no answer_template: whether a right answer scores the maximum is not checked")
    elif reference.swapped is None and reference.right is not None:
        notes.append("all drawn rows have the same right answer: a model need not read the prompt")
    if not look.checked:
        notes.append("the chat template is applied elsewhere (endpoint): not checked")
    if "chat template broken" not in signal.names():
        notes += look.odd
    if look.no_end and "end token missing" not in signal.names():
        notes.append(look.no_end)
    if signal.samples and signal.cut.mean > SOME_CUT and "limit too short" not in signal.names():
        notes.append(f"{cut_evidence(signal)}: a longer limit may be all that some of them lack")
    if signal.samples and 0 < signal.lost_grades <= MOST_LOST:
        notes.append(f"{signal.lost_grades:.1%} of the grades were lost to the grader's own faults")
    return notes


# ------------------------------------------------------------------------------------------
# from rftkit.signal.verdict:
# Draw answers of the policy that will be trained, and measure what training would see in them.
#
#     signal = measure_signal(policy, task, rows, answers=8, max_completion_tokens=64)
#     signal.verdict, signal.names()
#
# Left out: whether training helps. The gate sees that rewards differ within groups, and what makes
# them differ; what the model learns from that is measured on held-out rows, after.

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
