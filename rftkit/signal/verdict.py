"""The signal gate: before training, is there anything to learn from?

    signal = measure_signal(policy, task, rows, answers=8, max_completion_tokens=64)
    print(signal.text())

A share is bad where its whole 95 % interval lies above its threshold ("fix"), and open where the
threshold lies inside. Left out: whether training helps. Only held-out rows show that, after.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from rftkit.evaluation import Groups
from rftkit.files import UserError
from rftkit.loading import is_embedded
from rftkit.policy import LocalPolicy, Policy, Prompt
from rftkit.records import SamplingConfig
from rftkit.rows import Row, Source, read_rows, row_ids
from rftkit.signal import checks
from rftkit.signal.numbers import Finding, Question, Signal, quantiles, shown, take_numbers
from rftkit.task import Task

FEW_ROWS = 24  # OpenAI's guide: start with several dozen rows
MANY_LABELS = 1_000  # ours: with more rows than this, SFT on the answers is the first thing to try
SOME_CUT = 0.05  # share of cut answers from which the 95 % quantile of the lengths is unknown
LEAST_BUDGET = 256  # samples that the gate may always draw
BUDGET_SHARE = 0.05  # of the run's completions, where that is more
PROBES = 16  # answers drawn with more room, where many are cut:
ROOM, LEAST_ROOM = 4, 256  # so many times the limit, and no fewer tokens than that
ROUNDS = 3  # of drawing, before it says undecided
EMBEDDED_TOKENS, OTHER_TOKENS = 64, 1_024  # max_completion_tokens of what is not measured
# Axolotl, docs/training_stability: dead groups under 0.8, truncated answers under 0.3.
MOST_DEAD, MOST_CUT = 0.8, 0.3
MOST_UNREADABLE = 0.5  # ours: above it most of what the reward says is about form
MOST_RIGHT = 0.9  # ours: above it little is left to gain
MOST_REPEATED = 0.5  # ours: above it most answers to a row are one text
MOST_LOST = 0.05  # as in training, where more grades lost in one step end the run

OWN_TEMPLATE = "tokenizer.chat_template: take the template of this very model"
READ_THE_ROW = "grader: compare the answer with the row's own field, not only its form"
CANNOT_READ = "no fault in the grader, but this model cannot read the rows"
READS_THEM = "model: one that read such text, such as SmolLM2 or Qwen3"
OPINION = "the grader is a judge's opinion, which nothing here can verify: give an answer_template"
VERIFIABLE = "the task: ask for what a rule can check; or the method: SFT, preference learning"


def conclude(signal: Signal, findings: list[Finding], rows: list[Row], refusal: str = "") -> Signal:
    """Fill findings, questions, notes, verdict and reason. rows: of the file."""
    signal.findings, signal.notes, signal.more_samples = findings, [*signal.prompt_notes], None
    signal.questions = ask_questions(signal, len(rows), refusal)
    if signal.cut and signal.cut.mean > SOME_CUT and "limit too short" not in signal.names():
        signal.notes.append(f"{signal.cut_text()}: some may lack nothing but a longer limit")
    if len(rows) < FEW_ROWS:
        signal.notes.append(f"{len(rows)} rows, fewer than {FEW_ROWS}: soon learned by heart")
    fixes = [finding.name for finding in findings if finding.level == "fix"]
    if fixes:
        also = f" (and see whether {', '.join(fixes[1:])} went with it)" if fixes[1:] else ""
        signal.verdict, signal.reason = "fix", f"start with {fixes[0]}{also}"
    elif not findings:
        signal.verdict = "go"
        signal.reason = f"{1 - signal.dead_groups.mean:.0%} of the groups are alive"
    elif not signal.missing_rows:
        signal.verdict, signal.reason = "undecided", CANNOT_READ
    else:
        missing, left = signal.missing_rows, len(rows) - signal.rows
        more = missing * signal.answers
        signal.verdict = "undecided"
        signal.reason = f"{signal.samples} samples are too few: about {more:,} more would settle it"
        if missing <= left:
            signal.more_samples = more
        else:
            signal.reason += f", to {missing:,} more rows, and the file has {left} left: add rows"
    return signal


def ask_questions(signal: Signal, rows: int, refusal: str) -> list[Question]:
    """Hard, verifiable, labels scarce? As far as that can be measured."""
    hard, evidence = "not measured", "no graded answers"
    if solved := signal.pass_at.get(1):
        evidence = f"one answer is right, by {signal.metric}, in {solved}; "
        evidence += f"{len(signal.never)} rows are never solved"
        if not solved.low <= MOST_RIGHT <= solved.high:
            hard = "yes" if solved.high < MOST_RIGHT else "no"
    verifiable = "yes" if signal.reference.sound else "no"
    if not refusal and not signal.reference.check.rows:
        verifiable = "not measured"
    why = refusal or str(signal.reference) or "no answer_template: no answer is known right"
    scarce = "yes" if rows <= MANY_LABELS else "no"
    return [
        Question("Is it hard for this model, and worth thinking about?", hard, evidence),
        Question("Is a right answer recognised as right, by a rule?", verifiable, why),
        Question("Are labels scarce?", scarce, f"{rows:,} rows"),
    ]


def measure_signal(
    policy: Policy,
    task: Task,
    rows: Source,
    *,
    answers: int = 8,
    max_completion_tokens: int | None = None,
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
    max_completion_tokens: None for that of completion_limit.
    """
    rows = read_rows(rows)
    if answers < 2 or not rows:
        raise UserError(f"signal: {len(rows)} rows, groups of {answers}, expected 1 and 2 at least")
    # Stage 1: what no answer of the model has to be drawn for.
    rows = [{"row_id": row_id} | row for row, row_id in zip(rows, row_ids(rows))]
    budget = max(int(BUDGET_SHARE * completions), LEAST_BUDGET)
    budget = min(budget, max(most or budget, 2 * PROBES))
    signal = Signal(policy.name, seed, budget, answers, temperature)
    is_local = isinstance(policy, LocalPolicy)  # of others it is not known what their models read
    if is_local:
        signal.prompt_notes = checks.prompt_notes(policy, rows)
        signal.unknown_words = checks.unknown_words(policy.tokenizer, rows)
    if refusal := checks.why_not_verifiable(task, rows):
        findings = [Finding("no verifiable answer", refusal, VERIFIABLE)]
        if constant := checks.constant_reward(task, rows):
            evidence = f"right and made-up answers all score {constant:.2f}"
            findings.append(Finding("constant reward", evidence, READ_THE_ROW))
        return conclude(signal, findings, rows, refusal)
    if task.grader.type.endswith("_model") and not task.answer_template:
        signal.prompt_notes.append(OPINION)
    task.grader.check_rows(rows)
    task.grader.check_ready()
    shuffled = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    # Whole groups; with few rows, more answers to each.
    first = min(budget, LEAST_BUDGET) - PROBES
    count = max(1, min(len(rows), first // answers))
    each = first // count if count == len(rows) else min(answers, first)
    signal.reference = checks.check_reference(task, rows, shuffled[:count])
    if is_local and (faults := checks.check_template(policy, shuffled[:count])):
        broken = Finding("chat template broken", "; ".join(faults), OWN_TEMPLATE)
        return conclude(signal, [broken, *grader_findings(signal)], rows)
    # Stage 2: draw, measure, judge; and again where that settles nothing.
    limit = max_completion_tokens
    if limit is None:
        limit, why = completion_limit(policy, rows, OTHER_TOKENS, temperature, seed)
        signal.prompt_notes.append(why)
    signal.lengths = {"limit": limit}
    signal.unended = checks.unended(policy, rows[0]) if is_local else ""
    settings = SamplingConfig(temperature, max_new_tokens=limit)
    sample = partial(policy.sample, progress=progress) if progress else policy.sample
    groups: Groups = []
    for _ in range(ROUNDS):
        # A seed for each round: else its rows meet the random numbers of the first round's.
        settings.seed = seed + 7919 * len(groups)
        new = shuffled[len(groups) : count]
        answered = draw(sample, new, each, settings)
        task.grade(new, answered)
        groups += answered
        take_numbers(signal, task, shuffled[:count], groups)
        signal.samples += len(new) * each
        if signal.cut.mean > SOME_CUT and "probe" not in signal.lengths:
            probe(signal, sample, shuffled[: min(count, PROBES)], settings)
        conclude(signal, find_causes(signal), rows)
        affordable = budget - signal.samples - PROBES * ("probe" not in signal.lengths)
        more = min(signal.missing_rows, affordable // each, len(rows) - count)
        if signal.verdict != "undecided" or more < 1:
            break
        count += more
    return signal


def draw(sample: Callable, rows: list[Row], each: int, settings: SamplingConfig) -> Groups:
    """Answers to these rows; UserError where most did not come."""
    groups = sample(list(map(Prompt, rows)), each, settings)
    failed = [s for group in groups for s in group if s.finish_reason == "error"]
    if len(failed) > len(groups) * each / 2:
        lost = f"{len(failed)} of {len(groups) * each} answers did not come"
        raise UserError(f"signal: {lost} ({'; '.join(failed[0].errors)}): fix the model's endpoint")
    return groups


def probe(signal: Signal, sample: Callable, rows: list[Row], settings: SamplingConfig) -> None:
    """Find out how long answers would be that the limit cuts: draw some with more room."""
    room = max(ROOM * settings.max_new_tokens, LEAST_ROOM)
    settings = replace(settings, max_new_tokens=room)
    drawn = sum(draw(sample, rows, max(1, PROBES // len(rows)), settings), [])
    ended = sum(sample.finish_reason == "stop" for sample in drawn)
    known = {"room": room, "answers": len(drawn), "ended": ended}
    signal.lengths["probe"] = quantiles(drawn) | known
    signal.samples += len(drawn)


def roomy(p95: float) -> int:
    """A tenth more, in steps of 16."""
    return int(-(-1.1 * p95 // 16)) * 16


def completion_limit(
    policy: Policy, rows: Sequence[Row], most: int, temperature: float, seed: int
) -> tuple[int, str]:
    """(max_completion_tokens for this model, a sentence): the p95 of its own completions."""
    if is_embedded(getattr(getattr(policy, "model", None), "name_or_path", "")):
        return EMBEDDED_TOKENS, f"max_completion_tokens {EMBEDDED_TOKENS}: it is an embedded model"
    rows = rows[:: -(-len(rows) // PROBES)]
    settings = SamplingConfig(temperature, max_new_tokens=most, seed=seed)
    drawn = sum(draw(policy.sample, rows, -(-PROBES // len(rows)), settings), [])
    p95 = quantiles(drawn)["p95"]
    limit = min(roomy(p95), most)
    why = f"the p95 of {len(drawn)} of the model's completions is {p95:.0f} tokens"
    return limit, f"max_completion_tokens {limit}: {why}"


def find_causes(signal: Signal) -> list[Finding]:
    """What stands in the way, causes first; what a cause explains is not named beside it."""
    findings, answers = grader_findings(signal), answer_findings(signal)
    # A grader's fault or garbled answers explain what the rewards say.
    clear = all(finding.level != "fix" for finding in findings + answers)
    if clear and signal.dead_ability is not None:
        answers += spread_findings(signal)
    if answers and signal.unknown_words > checks.MANY_UNKNOWN:
        evidence = f"{signal.unknown_words:.0%} of the words are unknown to {signal.policy}: its "
        evidence += "answers say nothing about the task"
        answers = [Finding("model cannot read the rows", evidence, READS_THEM, level="open")]
    return sorted(findings + answers, key=lambda finding: finding.level != "fix")


def grader_findings(signal: Signal) -> list[Finding]:
    """What does the grader give to answers known to be right and wrong, and to the samples?"""
    reference, check, findings = signal.reference, signal.reference.check, []
    if signal.lost_grades > MOST_LOST:
        errors = sorted({e for group in signal.drawn for s in group for e in s.errors})
        evidence = f"{signal.lost_grades:.0%} of the grades were lost: {', '.join(errors)}"
        setting = "grader: `rftkit grade` on one of the shown samples says what failed"
        findings.append(Finding("grader fails", evidence, setting))
    if reference.inverted:
        setting = "grader: its sign (1 - x), its operation (eq, ne) or the formula"
        return [*findings, Finding("inverted reward", str(reference), setting)]
    unread = signal.unknown_words > checks.MANY_UNKNOWN  # then the answers say nothing of a grader
    untested = reference.right is None and not unread
    constant = signal.distinct_rewards == 1 and (untested or reference.blind)
    if check.failures and not (constant and signal.reward.mean > 0):
        first = check.failures[0]
        why = "" if first["reward"] else f" ({first['reason'][:120]})"
        evidence = (
            f"{len(check.failures)} of {check.rows} right answers do not score "
            f"{reference.maximum:g}: row {first['row_id']}, {str(first['answer'])[:80]!r} "
            f"scored {shown(first['reward'])}{why}; {reference}"
        )
        setting = "grader, rows or its best grade (grader_maximum): right answers must earn that"
        findings.append(Finding("reference cannot score", evidence, setting))
    if constant:
        evidence = f"all {signal.samples} sampled answers score {signal.reward.mean:.2f}"
        evidence = "; ".join(filter(None, [evidence, str(reference)]))
        findings.append(Finding("constant reward", evidence, READ_THE_ROW))
    elif reference.blind and not check.failures:
        findings.append(Finding("blind grader", str(reference), READ_THE_ROW))
    return findings


def answer_findings(signal: Signal) -> list[Finding]:
    """Do answers end, do they fit into the limit, and can they be read?"""
    findings, limit = [], f"max_completion_tokens: {signal.lengths['limit']}"
    if probe := signal.lengths.get("probe"):
        more = "more than" if probe["p95"] >= probe["room"] else "about"
        limit += f" -> {more} {roomy(probe['p95'])}, the probe's p95 and a tenth"
        limit += "; or a prompt that asks for shorter answers"
    if signal.cut.low > MOST_CUT and signal.endless and signal.unended:
        end = "tokenizer.eos_token or generation_config.eos_token_id: "
        end += f"{signal.unended} closes an answer"
        findings.append(Finding("end token missing", signal.cut_text(), end))
    cut = Finding("limit too short", signal.cut_text(), limit)
    evidence = f"{signal.unreadable} ended, but cannot be read: {shown(signal.stages)}"
    example = "the prompt: show the form by an example; or init_adapter: SFT on some dozen rows"
    unreadable = Finding("unreadable answers", evidence, example)
    findings += signal.of_share(signal.cut, MOST_CUT, cut)
    return findings + signal.of_share(signal.unreadable, MOST_UNREADABLE, unreadable)


def spread_findings(signal: Signal) -> list[Finding]:
    """Do the answers of a group earn different rewards, and why not?"""
    evidence = (
        f"{signal.dead_ability} of the groups of {signal.group} give readable answers one reward; "
        f"pass@1 by {signal.metric} {signal.pass_at[1]}; of {signal.rows} rows {len(signal.never)} "
        f"are never solved, {len(signal.always)} always; two answers to a row are one text in "
        f"{signal.repeated:.0%} of the cases, at temperature {signal.temperature:g}"
    )
    if signal.pass_at[1].low > MOST_RIGHT:
        setting = "rows: harder ones, or a grader that asks for more; or stop"
        return [Finding("task too easy", evidence, setting)]
    if len(signal.always) > len(signal.never):
        name, setting = "task too easy", "rows: harder ones, or a grader that gives partial credit"
    elif signal.repeated > MOST_REPEATED:
        name, setting = "too little exploration", "temperature: 1.0 lets answers differ"
    else:
        name = "task impossible"
        setting = "easier rows, partial credit, a warm start by SFT (init_adapter)"
    finding = Finding(name, evidence, setting)
    return signal.of_share(signal.dead_ability, MOST_DEAD, finding)
