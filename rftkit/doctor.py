"""What is wrong with a run: a log in, its findings out.

A rule stands in one place: `@rule(what to change)` over a function from the log to the steps where
its fault shows, and the evidence. Its name is the finding's, its docstring says why it matters.

Limits marked A are the healthy ranges and red flags of Axolotl's guide "Training Stability &
Debugging" (docs/training_stability.qmd, table "Key Metrics for RL (GRPO)"); the others are our own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from rftkit.graders.rewards import MAX_LOST_SHARE
from rftkit.logs import GAIN, Log, Points, change, held, moved, read_log

Evidence = tuple[Iterable[int], str]  # steps (none: nothing is wrong), and what was seen there
Check = Callable[[Log], Evidence]
RULES: dict[str, tuple[Check, str]] = {}  # in the order of the findings: gravest first
# In the steps where the grader's program fails, that explains these.
EXPLAINED = ("no_reward_spread", "dead_groups", "loss_zero", "reward_stays_low")


def rule(setting: str) -> Callable[[Check], Check]:
    """setting: what to change, in RunConfig's names, with TRL's own in brackets."""

    def register(check: Check) -> Check:
        RULES[check.__name__] = check, setting
        return check

    return register


@dataclass
class Finding:
    """One fault of a run: the steps where it shows, the numbers, what to change, and why."""

    name: str
    steps: list[int]
    evidence: str
    setting: str
    why: str


@dataclass
class Examination:
    """Notes say what was not judged, and what looks odd and is not."""

    source: str
    steps: int
    findings: list[Finding]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"findings": [vars(f) | {"knob": f.setting} for f in self.findings]}


def examine(source: str | Path | Log) -> Examination:
    """Every finding over a run folder, a log.jsonl or a trainer_state.json, gravest first."""
    log = source if isinstance(source, Log) else read_log(source)
    found: dict[str, Finding] = {}
    for name, (check, setting) in RULES.items():
        steps, evidence = check(log)
        steps = set(steps)
        if name in EXPLAINED and "grader_errors" in found:
            steps -= set(found["grader_errors"].steps)
        if steps:
            found[name] = Finding(name, sorted(steps), evidence, setting, str(check.__doc__))
    notes, losses = list(log.notes), [loss for _, loss in log.points("loss")]
    if log.graded and not log.validations() and "nothing_held_out" not in found:
        notes.append("no validation in this log: a rising reward alone proves no learning")
    if losses and max(map(abs, losses)) < 1e-6 and "loss_zero" not in found:
        notes.append("a loss of zero beside a gradient is normal for GRPO: advantages sum to zero")
    return Examination(log.source, len(log.records), list(found.values()), notes)


def level(points: Points, above=math.inf, below=0.0, also: Iterable[int] = ()) -> Evidence:
    """Values beyond a limit in five of eight steps, and whatever they are in the steps `also`."""
    steps = {*also, *held(points, lambda value: value > above or value < below)}
    values = [value for step, value in points if step in steps] or [0.0]
    limit = below or above
    return steps, f"{min(values):.3g} to {max(values):.3g} in {len(steps)} steps (limit {limit:g})"


@rule("resume from the last whole checkpoint; learning_rate down to a third; bf16, not fp16")
def not_finite(log: Log) -> Evidence:
    """One NaN in a gradient makes every weight NaN: from that step on nothing is a model."""
    alarms = [(r["step"], alarm["name"]) for r in log.records for alarm in r.get("alarms", [])]
    bad = {step: "an alarm" for step, name in alarms if name == "not finite"}
    for name in ("loss", "grad_norm", "kl", "entropy"):
        finite = {step for step, _ in log.points(name)}
        # JSON has no NaN: our log writes null among numbers, and null alone for what it lacks.
        logged = {r["step"] for r in log.records if name in r and (finite or r[name] is not None)}
        bad |= dict.fromkeys(logged - finite, name)
    first = min(bad, default=0)
    return bad, f"NaN or infinite, first at step {first}: {bad.get(first)}"


@rule("`rftkit grade` on that answer (samples.jsonl): look for 0/0 or the mean of nothing")
def reward_not_a_number(log: Log) -> Evidence:
    """One NaN among a group's rewards makes all its advantages NaN, and with them the loss."""
    logged = [(r["step"], r["reward_mean"]) for r in log.records if r.get("reward_mean")]
    return [s for s, reward in logged if not math.isfinite(reward)], "mean reward NaN"


@rule("`rftkit grade` on one of those answers: endpoint, time limit, a field of the formula")
def grader_failures(log: Log) -> Evidence:
    """An answer without a grade teaches nothing, and the gradable ones are a biased sample."""
    lost = dict(log.points("lost"))
    steps = [step for step, share in lost.items() if share > MAX_LOST_SHARE]
    for record in log.records if log.graded else []:
        grades = [record.get("reward_mean", 0), *(record.get("sub_rewards") or {}).values()]
        steps += [record["step"]] if None in grades else []
    return steps, f"no grade, up to {max(lost.values(), default=0):.0%} of a step's answers"


@rule("`rftkit grade` on one answer of these steps, then fix what its traceback names")
def grader_errors(log: Log) -> Evidence:
    """An answer on which the grader's program fails scores 0: the model learns to avoid that."""
    answers_own = ("sample_parse_error", "truncated_observation_error")
    # Half of a batch: of 64 answers 38 to 62 % then fail.
    found = {name: level(points, above=0.4) for name, points in log.series("errors").items()}
    found = {name: e for name, e in found.items() if e[0] and name not in answers_own}
    texts = [f"{name}: share of answers {text}" for name, (_, text) in found.items()]
    return {step for steps, _ in found.values() for step in steps}, "; ".join(texts)


@rule("`rftkit grade` on a right answer and a wrong one: is the right field read?")
def no_reward_spread(log: Log) -> Evidence:
    """Advantages compare scores. Where all are equal, every one is zero."""
    steps = held(log.points("reward_std"), lambda std: std <= 1e-6, least=10, window=10)
    return steps, f"in {len(steps)} steps every answer scored alike"


@rule("easier rows, partial credit, answers_per_prompt [num_generations] or temperature up")
def dead_groups(log: Log) -> Evidence:
    """A group whose answers all score alike has advantage zero: it costs sampling for nothing."""
    points = log.dead_share()
    wholly = [step for step, share in points if share == 1]
    many = len(wholly) >= max(3, 0.2 * len(points))  # every group dead in a fifth of the steps
    steps = {*held(points, lambda share: share >= 0.8), *(wholly if many else ())}  # (A)
    reward = mean([reward for step, reward in log.points("reward_mean") if step in steps] or [0])
    share = f"{len(wholly)} of {len(points)} steps in which every group was dead"
    return steps, f"{share}; mean reward {reward:.2f} (where it is high, the task is learnt)"


@rule("is the adapter trainable, are all completions masked, is beta rounded away?")
def loss_zero(log: Log) -> Evidence:
    """A loss of exactly 0 with no gradient (or beside a KL) never reaches a weight."""
    gradients, drifts = dict(log.points("grad_norm")), dict(log.points("kl"))
    zero = held(log.points("loss"), lambda loss: loss == 0, window=5)
    steps = [s for s in zero if gradients.get(s) == 0 or drifts.get(s, 0.0) > 0.01]
    return steps, f"the loss is exactly 0 in {len(steps)} steps, with no gradient or beside a KL"


@rule("stop, read the best-paid answers, repair the grader, go back to the best validation")
def reward_up_task_down(log: Log) -> Evidence:
    """What it learns pays in training alone: a hole in the grader, or the rows by heart."""
    best, held_out = log.decline()
    later = [(step, reward) for step, reward in log.points("reward_mean") if step > best]
    before, after, _ = change(later)
    steps = [step for step, _ in later if moved(later, +1, GAIN)]
    return steps, f"reward {before:.2f} -> {after:.2f}, while held out {held_out}"


@rule("learning_rate down, prompts_per_step up; is a penalty easier to collect than avoid?")
def reward_falls(log: Log) -> Evidence:
    """The policy is moving away from what it is paid for."""
    points = log.points("reward_mean")
    before, after, _ = change(points)
    steps = [step for step, _ in points[-10:] if moved(points, -1, GAIN)]
    return steps, f"mean reward {before:.2f} at the start, {after:.2f} at the end"


@rule("`rftkit signal` first: partial credit, easier rows, a warm start by SFT, another base")
def reward_stays_low(log: Log) -> Evidence:
    """GRPO reinforces what it finds. What is hardly ever found cannot be reinforced."""
    points = log.points("reward_mean")  # above 0.15 within 20 steps (A), as a mean of five
    rewards = [reward for _, reward in points]
    best = max((mean(rewards[i : i + 5]) for i in range(len(points) - 4)), default=1.0)
    low = best <= 0.15 and points[-1][0] >= 20
    return [step for step, _ in points if low and step <= 20], f"five steps reach {best:.2f}"


@rule("give the form a small weight, report strict and lenient scores side by side")
def format_alone(log: Log) -> Evidence:
    """The model learnt how an answer must look, not how to find it."""
    series = log.series("sub_rewards")
    ends = {name: change(points)[1] for name, points in series.items()}
    gains = {name: ends[name] - change(points)[0] for name, points in series.items()}
    for name in [name for name, points in series.items() if moved(points, +1, 0.1)]:
        others = gains.keys() - {name}
        lenient = [gains[n] for n in others if re.search("lenient|flexible", n, re.IGNORECASE)]
        form = "strict" in name.lower() and lenient and lenient[0] < gains[name] / 2
        if form or others and all(ends[n] <= 0.05 and abs(gains[n]) < GAIN for n in others):
            text = f'"{name}" rose by {gains[name]:.2f}, the other parts by less than half of it'
            return [step for step, _ in series[name]], text
    return (), ""


@rule("keep the best by the held-out metric and stop early: eval_every, patience")
def past_the_peak(log: Log) -> Evidence:
    """The last checkpoint is not the best one: after its peak a run learns its own rows."""
    best, held_out = log.decline()
    steps = [step for step, _ in log.validations() if step > best and not log.best_is_kept]
    return steps, f"best and last validation: {held_out}"


@rule("keep the best checkpoint (load_best_model_at_end); fewer epochs, learning_rate down")
def overfitting(log: Log) -> Evidence:
    """The model learns its rows by heart: what it gains on them, others lose."""
    points, unclear = log.points("eval_loss"), log.graded or log.best_is_kept  # GRPO's says little
    if unclear or not points or not moved(log.points("loss"), -1, GAIN):
        return (), ""
    (at, lowest), (end, last) = min(points, key=lambda point: point[1]), points[-1]
    steps = [step for step, _ in points if step > at and last > 1.05 * lowest]
    return steps, f"validation loss {lowest:.3f} at step {at}, {last:.3f} at step {end}"


@rule("max_completion_tokens [max_completion_length] up, or pay for shorter answers")
def truncation(log: Log) -> Evidence:
    """A completion that is cut usually scores 0: the limit has become part of the task."""
    return level(log.points("truncated"), above=0.3)  # (A)


@rule("read the longest; a loss without length bias (dr_grpo, dapo), a cost a token, beta up")
def length_explosion(log: Log) -> Evidence:
    """Longer without being better: length is being paid for somewhere, or nothing stops it."""
    points = log.points("completion_tokens")
    start, end, _ = change(points)
    far = end >= (4 if log.gained() else 2) * start
    return [step for step, _ in points[-10:] if far], f"{start:.0f} -> {end:.0f} tokens"


@rule("read the shortest; is there a constant answer that pays? beta up, no cost of length")
def length_collapse(log: Log) -> Evidence:
    """Completions lose their reasoning: the reward comes without it, or a penalty bars it."""
    points = log.points("completion_tokens")
    start, end, _ = change(points)
    far = start >= (4 if log.gained() else 2) * end
    return [step for step, _ in points[-10:] if far], f"{start:.0f} -> {end:.0f} tokens"


@rule("temperature up (towards 1), learning_rate down, beta up; start from an adapter before")
def entropy_collapse(log: Log) -> Evidence:
    """A policy that is sure of every token tries nothing new, and its groups die."""
    # Nats a token (A). A has a red flag above 1.0 too; we have none: the embedded mini starts
    # above 1.0 and learns (measured: datasets/recorded_runs/demo.json).
    return level(log.points("entropy"), below=0.05)


@rule("learning_rate down, beta up, and back to the last checkpoint with a KL below 0.5")
def kl_blow_up(log: Log) -> Evidence:
    """The policy has left the model that it started from; what that one could do may be lost."""
    points = log.points("kl")  # nats a token: healthy to 0.5, diverged above 2 (A)
    # No batch of a policy that is still near gives 5. A run that ends above 2 did not come back.
    at_once = 2 if points and points[-1][1] > 2 else 5
    return level(points, above=0.5, also=[step for step, kl in points if kl > at_once])


@rule("look at that step's answers; max_grad_norm at 1 or below, learning_rate down")
def gradient_spike(log: Log) -> Evidence:
    """One batch turned the weights further than many others together."""
    points = log.points("grad_norm")  # healthy to 1, in SFT to 10; red flag above 10 (A)
    if len(points) < 5:
        return (), ""
    limit = max(1.0 if log.graded else 10.0, 10 * median(norm for _, norm in points))
    return level(points, above=10, also=[step for step, norm in points if norm > limit])


@rule("is the adapter trainable, and the one that is trained? learning_rate up, lora_rank up")
def gradient_vanishes(log: Log) -> Evidence:
    """Groups had different rewards, and yet hardly any gradient reached the weights."""
    dead = dict(log.dead_share())
    alive = [(s, norm) for s, norm in log.points("grad_norm") if dead.get(s, 0) < 0.8]
    return level(alive, below=0.001)  # (A)


@rule("fewer updates a batch [num_iterations, steps_per_generation], learning_rate down")
def clip_binds(log: Log) -> Evidence:
    """Many tokens have left the range in which old completions may still teach."""
    return level(log.points("clip_ratio"), above=0.1)  # (A)


@rule("eval_every above 0, on rows of other groups, by a metric that is not the reward")
def nothing_held_out(log: Log) -> Evidence:
    """The reward of the training rows cannot tell learning from gaming, nor the best step."""
    last = log.records[-1]["step"]
    unseen = log.graded and not log.validations() and last > 100  # a public run peaked at 50
    return [record["step"] for record in log.records if unseen], f"{last} steps, no validation"


@rule("one folder a run; after a resume, drop what was logged after the checkpoint")
def steps_out_of_order(log: Log) -> Evidence:
    """Two runs, or a run and its resumption, wrote into one file."""
    steps = [record["step"] for record in log.records]
    bad = [after for before, after in zip(steps, steps[1:]) if after <= before]
    return bad, f"{len(bad)} steps come again or go backwards, the first is {bad[:1]}"
