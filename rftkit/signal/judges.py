"""The findings: what the numbers say about the answers, the grader, the groups and the rows."""

from __future__ import annotations

from rftkit.signal.findings import (
    FINDINGS,
    GRADER_FAULTS,
    LOW_TEMPERATURE,
    MOST_CUT,
    MOST_DEAD,
    MOST_LOST,
    MOST_UNREADABLE,
    Judge,
)
from rftkit.signal.questions import MOST_RIGHT
from rftkit.signal.record import Signal
from rftkit.signal.task_checks import Reference
from rftkit.signal.template import TemplateLook

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
