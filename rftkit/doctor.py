"""What is wrong with a run: a log in, its findings out.

A rule stands in one place: `@rule(what to change)` over a function that reads the log and returns
the steps where its fault shows, and the evidence. Its name is the finding's name, its docstring
says why the fault matters.

Limits marked A are the healthy ranges and red flags of Axolotl's guide "Training Stability &
Debugging" (docs/training_stability.qmd, table "Key Metrics for RL (GRPO)"). Those marked O are
our own, for what that table does not name or names with one kind of model in mind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, variance
from typing import Any

from rftkit.files import printable
from rftkit.graders.rewards import MAX_LOST_SHARE
from rftkit.logs import GAIN, Log, Points, change, held, moved, number, read_log

DEAD = 0.8  # share of groups whose answers all score alike (A)
KL_FAR, KL_LOST = 0.5, 2.0  # nats a token: healthy to, diverged above (A)
LONGER, FAR_LONGER = 2, 4  # times the length at the start: without a gain, with one (O)

Evidence = tuple[Iterable[int], str]  # steps (none: nothing is wrong), and what was seen there
NOTHING: Evidence = ((), "")


@dataclass
class Finding:
    """One fault of a run: the steps where it shows, the numbers, what to change, and why."""

    name: str
    steps: list[int]
    evidence: str
    setting: str
    why: str

    def to_json(self) -> dict[str, Any]:
        record = dict(vars(self))
        return record | {"knob": record.pop("setting")}


@dataclass
class Examination:
    """Notes say what was not judged, and what looks odd and is not."""

    source: str
    steps: int
    findings: list[Finding]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"findings": [finding.to_json() for finding in self.findings]}


Check = Callable[[Log], Evidence]
RULES: dict[str, tuple[Check, str]] = {}  # in the order of the findings: gravest first


def rule(setting: str) -> Callable[[Check], Check]:
    """setting: what to change, in RunConfig's names, with TRL's own in brackets."""

    def register(check: Check) -> Check:
        RULES[check.__name__] = check, setting
        return check

    return register


def examine(path: str | Path) -> Examination:
    """Every finding over a run folder, a log.jsonl or a trainer_state.json, gravest first.

    Raises UserError for a path that is not there, or a file that is broken, empty or no log.
    """
    return examine_log(read_log(path))


def examine_log(log: Log) -> Examination:
    findings: dict[str, Finding] = {}
    for name, (check, setting) in RULES.items():
        steps, evidence = check(log)
        if "grader_errors" in findings and name in FOLLOWS_FROM_ERRORS:
            steps = set(steps).difference(findings["grader_errors"].steps)
        if steps := sorted(set(steps)):
            why = " ".join(str(check.__doc__).split())
            findings[name] = Finding(name, steps, printable(evidence), setting, why)
    notes, losses = list(log.notes), log.points("loss")
    if log.graded and not log.validations() and "nothing_held_out" not in findings:
        notes.append("no validation in this log: a rising reward alone proves no learning")
    if losses and all(abs(loss) < 1e-6 for _, loss in losses) and "loss_zero" not in findings:
        notes.append(
            "the loss is zero and the gradient is not: normal for GRPO with one update a batch, "
            "where a group's advantages sum to zero"
        )
    return Examination(log.source, len(log.records), list(findings.values()), notes)


# What several rules ask.


def level(
    points: Points,
    what: str,
    above: float = math.inf,
    below: float = -math.inf,
    also: Iterable[int] = (),
) -> Evidence:
    """Values beyond a limit in five of eight steps, and whatever they are in the steps `also`."""
    steps = {*also, *held(points, lambda value: value > above or value < below)}
    values = [value for step, value in points if step in steps]
    span = f"{min(values):.3g} to {max(values):.3g}" if values else ""
    limit = f"limit {above if math.isfinite(above) else below:g}"
    return steps, f"{what} {span} in {len(steps)} of {len(points)} steps ({limit})"


def describe(validations: list[tuple[int, dict[str, Any]]]) -> str:
    return " -> ".join(
        f"{v.get('metric', 'the metric')} {v['mean']:.3f} at step {step}" for step, v in validations
    )


# What makes the rest meaningless.


@rule("resume from the last whole checkpoint; learning_rate down to a third; bf16, not fp16")
def not_finite(log: Log) -> Evidence:
    """One NaN in a gradient makes every weight NaN: from that step on nothing is a model."""
    alarms = [(r["step"], alarm["name"]) for r in log.records for alarm in r.get("alarms", [])]
    bad = {step: "an alarm" for step, name in alarms if name == "not finite"}
    for name in ("loss", "grad_norm", "kl", "entropy"):
        usual = log.points(name)  # JSON has no NaN: our log writes null between numbers
        for record in log.records:
            value = number(record.get(name, 0.0))
            if not math.isfinite(math.nan if value is None and usual else value or 0.0):
                bad.setdefault(record["step"], name)
    first = min(bad, default=0)
    return bad, f"NaN or infinite, first at step {first}: {bad.get(first)}"


@rule("`rftkit grade` on that answer (samples.jsonl): look for 0/0 or the mean of nothing")
def reward_not_a_number(log: Log) -> Evidence:
    """One NaN among a group's rewards makes all its advantages NaN, and with them the loss."""
    rewards = [(r["step"], number(r.get("reward_mean")) or 0.0) for r in log.records]
    steps = [step for step, reward in rewards if not math.isfinite(reward)]
    return steps, f"mean reward NaN or infinite in {len(steps)} of {len(rewards)} steps"


@rule("`rftkit grade` on one of those answers: endpoint, time limit, a field of the formula")
def grader_failures(log: Log) -> Evidence:
    """An answer without a grade teaches nothing, and the gradable ones are a biased sample."""
    without = [
        record["step"]
        for record in log.records
        if log.graded
        and None in (record.get("reward_mean", 0), *record.get("sub_rewards", {}).values())
    ]
    shares = log.lost | dict(log.points("lost"))
    lost = [step for step, share in shares.items() if share > MAX_LOST_SHARE]
    share = f"up to {max(shares.values(), default=0):.0%} of a step's answers without a grade"
    return [*without, *lost], f"a reward or a part of it missing in {len(without)} steps; {share}"


@rule("`rftkit grade` on one answer of these steps, then mend what its traceback names")
def grader_errors(log: Log) -> Evidence:
    """An answer on which the grader's program fails scores 0: the model learns to avoid that."""
    series = log.series("errors")
    for name in ("sample_parse_error", "truncated_observation_error"):
        series.pop(name, None)  # the answer's own fault
    found = [level(p, f"{name}: share of answers", above=0.5) for name, p in series.items()]  # (O)
    bad = [(steps, evidence) for steps, evidence in found if steps]
    return {step for steps, _ in bad for step in steps}, "; ".join(text for _, text in bad)


FOLLOWS_FROM_ERRORS = ("no_reward_spread", "dead_groups", "reward_stays_low", "loss_zero")

# What pays for nothing.


@rule("`rftkit grade` on a right answer and a wrong one: is the right field read?")
def no_reward_spread(log: Log) -> Evidence:
    """Advantages compare scores. Where all are equal, every one is zero."""
    steps = held(log.points("reward_std"), lambda std: std <= 1e-6, least=10, window=10)
    return steps, f"in {len(steps)} steps every answer scored alike"


@rule(
    "reward low there: easier rows, partial credit, answers_per_prompt [num_generations] up, "
    "temperature up; reward high there: the task is learnt, so harder rows, or stop"
)
def dead_groups(log: Log) -> Evidence:
    """A group whose answers all score alike has advantage zero: it costs sampling for nothing."""
    points, rewards = log.dead_share(), dict(log.points("reward_mean"))
    wholly = [step for step, share in points if share == 1]
    many = len(wholly) >= max(3, 0.2 * len(points))  # every group dead in a fifth of the steps (O)
    steps = {*held(points, lambda share: share >= DEAD), *(wholly if many else ())}
    reward = mean([rewards[step] for step in steps if step in rewards] or [0])
    share = f"{len(wholly)} of {len(points)} steps ({len(wholly) / max(1, len(points)):.0%})"
    return steps, f"{share} without one group that had a spread; mean reward there {reward:.2f}"


@rule(
    "is the adapter trainable, are all completions masked [mask_truncated_completions], is "
    "beta rounded away?"
)
def loss_zero(log: Log) -> Evidence:
    """A loss of exactly 0 with no gradient (or beside a KL) never reaches a weight."""
    # Only a gradient that was logged as 0: one that is missing or NaN is not known to be none.
    gradients, drifts = dict(log.points("grad_norm")), dict(log.points("kl"))
    zero = held(log.points("loss"), lambda loss: loss == 0, window=5)
    steps = [s for s in zero if gradients.get(s) == 0 or drifts.get(s, 0.0) > 0.01]
    return steps, f"the loss is exactly 0 in {len(steps)} steps, with no gradient or beside a KL"


# What a run learns instead of the task.


@rule(
    "stop; read the answers with the highest reward, repair the grader against them, train "
    "again from the checkpoint of the best validation (init_adapter)"
)
def reward_up_task_down(log: Log) -> Evidence:
    """The policy has found something that the grader pays for and the task does not want."""
    points, validations = log.points("reward_mean"), log.best_and_last()
    if not validations or not points:
        return NOTHING
    later = [(step, reward) for step, reward in points if step > validations[0][0]]
    before = [reward for _, reward in points[: -len(later) or None]][-10:] or [points[0][1]]
    after = [reward for _, reward in later][-10:]
    noise = math.sqrt(sum(variance(part) / len(part) for part in (before, after) if len(part) > 1))
    if len(after) < 3 or mean(after) - mean(before) <= max(GAIN, 3 * noise):
        return NOTHING
    rewards = f"reward {mean(before):.2f} -> {mean(after):.2f}"
    return [step for step, _ in later], f"{rewards}, while held out {describe(validations)}"


@rule("learning_rate down, prompts_per_step up; is a penalty easier to collect than to avoid?")
def reward_falls(log: Log) -> Evidence:
    """The policy is moving away from what it is paid for."""
    points = log.points("reward_mean")
    before, after, _ = change(points)
    steps = [step for step, _ in points[-10:] if moved(points, -1, GAIN)]
    return steps, f"mean reward {before:.2f} at the start, {after:.2f} at the end"


@rule("`rftkit signal` first: partial credit, easier rows, a warm start by SFT, another base")
def reward_stays_low(log: Log) -> Evidence:
    """GRPO reinforces what it finds. What is hardly ever found cannot be reinforced."""
    # Above 0.15 within 20 steps (A), or at the end, as a mean of five steps.
    points = log.points("reward_mean")
    early = [(step, reward) for step, reward in points if step <= 20]
    rewards = [[reward for _, reward in part] for part in (early, points[-20:])]
    means = [mean(p[i : i + 5]) for p in rewards for i in range(max(1, len(p) - 4)) if p]
    low = bool(early) and points[-1][0] >= 20 and max(means) <= 0.15
    best = f"the best five steps reach a mean reward of {max(means, default=0):.2f}"
    return [step for step, _ in early if low], f"{best}; expected above 0.15 (grades: 0 to 1)"


@rule("give the form a small weight, report strict and lenient scores side by side")
def format_alone(log: Log) -> Evidence:
    """The model learnt how an answer must look, not how to find it."""
    # One part of the reward rises and all others stay at nothing, or strict nears lenient.
    series = log.series("sub_rewards")
    ends = {name: change(points)[1] for name, points in series.items() if len(points) >= 9}
    gains = {name: ends[name] - change(series[name])[0] for name in ends}
    rising = {name: gain for name, gain in gains.items() if moved(series[name], +1, 0.1)}
    for name, gain in rising.items():
        lenient = [g for n, g in gains.items() if "lenient" in n.lower() or "flexible" in n.lower()]
        others = [other for other in ends if other != name]
        alone = others and all(ends[n] <= 0.05 and abs(gains[n]) < GAIN for n in others)
        form = 1 - lenient[0] / gain if lenient and "strict" in name.lower() else 0.0
        if alone or form > 0.5:
            share = f", {form:.0%} of it form (the lenient part rose less)" if form else " alone"
            return [step for step, _ in series[name]], f'"{name}" rose by {gain:.2f}{share}'
    return NOTHING


@rule("keep the best by the held-out metric and stop early: eval_every, patience")
def past_the_peak(log: Log) -> Evidence:
    """The last checkpoint is not the best one: after its peak a run learns its own rows."""
    validations = log.best_and_last()
    if not validations or log.best_is_kept:
        return NOTHING
    steps = [step for step, _ in log.validations() if step > validations[0][0]]
    return steps, f"best and last validation: {describe(validations)}"


@rule(
    "keep the checkpoint of the lowest validation loss (load_best_model_at_end); fewer "
    "epochs, more rows, lora_rank and learning_rate down"
)
def overfitting(log: Log) -> Evidence:
    """The model learns its rows by heart: what it gains on them, others lose."""
    points, losses = log.points("eval_loss"), log.points("loss")
    # The loss of GRPO says nothing of the sort.
    if not points or log.graded or log.best_is_kept or not moved(losses, -1, GAIN):
        return NOTHING
    (at, lowest), (end, last) = min(points, key=lambda point: point[1]), points[-1]
    steps = [step for step, _ in points if step > at and last > 1.05 * lowest]  # (O)
    return steps, f"validation loss {lowest:.3f} at step {at}, {last:.3f} at step {end}"


# Lengths, entropy, KL, gradients.


@rule(
    "max_completion_tokens [max_completion_length] up, to the 95th percentile of the base's "
    "own lengths at least; or pay for shorter answers"
)
def truncation(log: Log) -> Evidence:
    """A completion that is cut usually scores 0: the limit has become part of the task."""
    return level(log.points("truncated"), "share of completions cut", above=0.3)  # (A)


def length_change(log: Log, grew: bool) -> Evidence:
    points = log.points("completion_tokens")
    start, end, _ = change(points)
    times = end / max(start, 1e-9) if grew else start / max(end, 1e-9)
    far = times >= (FAR_LONGER if log.gained() else LONGER)
    return [step for step, _ in points[-10:] if far], f"from {start:.0f} to {end:.0f} tokens"


@rule("read the longest; a loss without length bias (dr_grpo, dapo), a cost a token, beta up")
def length_explosion(log: Log) -> Evidence:
    """Longer without being better: length is being paid for somewhere, or nothing stops it."""
    return length_change(log, grew=True)


@rule("read the shortest; is there a constant answer that pays? beta up, no cost of length")
def length_collapse(log: Log) -> Evidence:
    """Completions lose their reasoning: the reward comes without it, or a penalty drives it out."""
    return length_change(log, grew=False)


@rule("temperature up (towards 1), learning_rate down, beta up; start from an adapter before")
def entropy_collapse(log: Log) -> Evidence:
    """A policy that is sure of every token tries nothing new, and its groups die."""
    # Nats a token: healthy from 0.05 (A). A has a red flag above 1.0 too; we have none: the
    # embedded mini starts above 1.0 and learns (measured: datasets/recorded_runs/demo.json).
    return level(log.points("entropy"), "entropy", below=0.05)


@rule("learning_rate down, beta up, and back to the last checkpoint with a KL below 0.5")
def kl_blow_up(log: Log) -> Evidence:
    """The policy has left the model that it started from; what that one could do may be lost."""
    # One step above ten times the limit is enough (O): no batch of a policy that is still near
    # gives it. A run that ends beyond KL_LOST did not come back.
    points = log.points("kl")
    at_once = KL_LOST if points and points[-1][1] > KL_LOST else 10 * KL_FAR
    return level(points, "KL", above=KL_FAR, also=[s for s, kl in points if kl > at_once])


@rule("look at that step's answers; max_grad_norm at 1 or below, learning_rate down")
def gradient_spike(log: Log) -> Evidence:
    """One batch turned the weights further than many others together."""
    # Norm before clipping: healthy to 1, in SFT to 10; red flag above 10 (A). Below that only a
    # value of ten times the run's median is a spike (O).
    points = log.points("grad_norm")
    if len(points) < 5:
        return NOTHING
    limit = max(1.0 if log.graded else 10.0, 10 * median(norm for _, norm in points))
    spikes = [step for step, norm in points if norm > limit]
    return level(points, "gradient norm", above=10, also=spikes)


@rule("is the adapter trainable, and the one that is trained? learning_rate up, lora_rank up")
def gradient_vanishes(log: Log) -> Evidence:
    """Groups had a spread, and yet hardly any gradient arrived at the weights."""
    dead = dict(log.dead_share())
    points = [(s, norm) for s, norm in log.points("grad_norm") if dead.get(s, 0) < DEAD]
    return level(points, "gradient norm", below=0.001)  # (A)


@rule("fewer updates a batch [num_iterations, steps_per_generation], learning_rate down")
def clip_binds(log: Log) -> Evidence:
    """Many tokens have left the range in which old completions may still teach."""
    return level(log.points("clip_ratio"), "share of tokens that the clip holds", above=0.1)  # (A)


@rule("eval_every above 0, on rows of other groups, by a metric that is not the reward")
def nothing_held_out(log: Log) -> Evidence:
    """The reward of the training rows cannot tell learning from gaming, nor the best step."""
    # From 100 steps on (O): a public run peaked at step 50 of 100.
    last = log.records[-1]["step"]
    unseen = log.graded and not log.validations() and last > 100
    return [record["step"] for record in log.records if unseen], f"{last} steps, no validation"


@rule("one folder a run; after a resume, drop what was logged after the checkpoint")
def steps_out_of_order(log: Log) -> Evidence:
    """Two runs, or a run and its resumption, wrote into one file."""
    steps = [record["step"] for record in log.records]
    bad = [after for before, after in zip(steps, steps[1:]) if after <= before]
    return bad, f"{len(bad)} steps come again or go backwards, the first is {bad[:1]}"
