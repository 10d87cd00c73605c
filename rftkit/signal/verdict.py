"""From numbers to findings, from findings to a verdict.

A share is bad when its whole 95 % interval lies beyond the threshold, and open when the threshold
lies inside it. One bad share means fix; none bad and one open means undecided.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rftkit.evaluation import Interval
from rftkit.signal.estimators import more_rows
from rftkit.signal.questions import MOST_RIGHT, ask_questions
from rftkit.signal.record import Finding, Signal
from rftkit.signal.task_checks import Reference
from rftkit.signal.template import TemplateLook
from rftkit.task import Task

# Quoted: Axolotl, docs/training_stability (zero-spread groups under 0.8, clipped under 0.3).
MOST_DEAD, MOST_CUT = 0.8, 0.3
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
        garbage = judge_answers(judge, look)
        judge_grader(judge, reference)
        if not garbage and signal.dead_ability is not None:
            judge_spread(judge)
            judge_rows(judge, len(rows))
    else:
        for fault in look.faults:
            judge.add("chat template broken", fault)
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


def refuse(why: str, policy: str, seed: int, budget: int, rows: int) -> Signal:
    """The result for a task whose answers nothing can verify; nothing was drawn."""
    signal = Signal("", "", policy=policy, seed=seed, budget=budget)
    name = "no verifiable answer"
    signal.findings = [Finding(name, why, FINDINGS[name])]
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
    if missing_rows * (signal.group or signal.answers) > HOPELESS * signal.budget:
        return (
            f"{too_few}, and so would be {HOPELESS} times what the gate may draw: it lies too near "
            "the limit to be told from it. Treat it as a fix: give partial credit, or take easier "
            "rows or more answers_per_prompt, so that more groups have a spread"
        )
    if missing_rows > left:
        return (
            f"{too_few}: it would take about {missing_rows:,} more rows, and the file has {left} "
            "left. Add rows; or raise answers_per_prompt, so that fewer groups are dead; or train "
            "and watch the share of dead groups"
        )
    signal.more_samples = missing_rows * signal.answers
    return f"{too_few}: about {signal.more_samples:,} more would settle it"


# --- the findings --------------------------------------------------------------------------------


def judge_answers(judge: Judge, look: TemplateLook) -> bool:
    """Template, end token, limit, form. True where the answers say nothing about ability."""
    signal = judge.signal
    is_cut = judge.too_high(signal.cut, MOST_CUT) == "fix"
    garbled = is_cut or judge.too_high(signal.unreadable, MOST_UNREADABLE) == "fix"
    probe = signal.lengths.get("probe")
    limit = signal.lengths["limit"]
    evidence = f"{signal.cut} of the answers are cut at {limit} tokens"
    endless = probe is not None and probe["ended"] <= probe["answers"] / 2
    if probe:
        evidence += (
            f"; of {probe['answers']} drawn with {probe['room']} tokens {probe['ended']} ended by "
            f"themselves (p95: {probe['p95']:.0f} tokens)"
        )
    if look.odd and garbled:
        stages = ", ".join(f"{name} {share:.0%}" for name, share in signal.stages.items())
        judge.add("chat template broken", f"{'; '.join(look.odd)}; and the answers: {stages}")
        return True
    if is_cut and (look.no_end or endless):
        why = f"{look.no_end}; " if look.no_end else ""
        judge.add("end token missing", why + evidence)
        return True
    knob = FINDINGS["limit too short"]
    if probe:
        knob += f": {limit} -> about {room_for(probe['p95'])}, the p95 of the probe and a little"
    short = judge.hold("limit too short", signal.cut, MOST_CUT, evidence, knob)
    stages = {name: share for name, share in signal.stages.items() if name != "readable"}
    told = ", ".join(f"{name} {share:.0%}" for name, share in stages.items())
    bad_form = judge.hold(
        "unreadable answers",
        signal.unreadable,
        MOST_UNREADABLE,
        f"{signal.unreadable} of the answers ended but could not be read ({told})",
    )
    return (short or bad_form) and garbled


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
            f"{scored}{why}",
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
    if signal.samples and 0 < signal.lost_grades <= MOST_LOST:
        notes.append(f"{signal.lost_grades:.1%} of the grades were lost to the grader's own faults")
    return notes
