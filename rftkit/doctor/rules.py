"""One rule a fault. A rule yields (steps, evidence) where it finds its fault in a log.

Limits marked A are the healthy ranges and red flags of Axolotl's guide "Training Stability &
Debugging" (docs/training_stability.qmd, table "Key Metrics for RL (GRPO)"). Those marked O are our
own, for what that table does not name or names with one kind of model in mind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from statistics import mean, median, variance

from rftkit.doctor.logs import Log, is_nan_or_infinite
from rftkit.doctor.measures import (
    IN_A_ROW,
    MOVED,
    SURE,
    WINDOW,
    best_stretch,
    change,
    dead_share,
    error_series,
    fell,
    gained,
    held,
    in_a_row,
    look_text,
    moved,
    sub_series,
    worst,
)

REWARD_SOON, SOON = 0.15, 20  # a mean reward above it within so many steps (A)
MOSTLY_ERRORS = 0.5  # share of a step's answers with one and the same grading error (O)
DEAD = 0.8  # share of groups whose answers all score alike (A)
WASTED = 0.2  # share of steps in which every single group is dead (O)
CUT, MOSTLY_CUT = 0.3, 0.8  # share of completions cut at the limit (A)
# Nats a token (A). A has an upper end too: healthy to 0.5, red flag above 1.0. We have none: the
# embedded mini starts above 1.0 and learns (measured: datasets/recorded_runs/demo.json, its log).
ENTROPY_LOW, ENTROPY_GONE = 0.05, 0.01
KL_FAR, KL_LOST = 0.5, 2.0  # nats a token (A)
KL_AT_ONCE = 10 * KL_FAR  # one step is enough: no batch of a policy that is still near gives it (O)
# Norm before clipping (A): healthy 0.001 to 1, in SFT to 10; red flag above 10. Between 1 and 10 a
# value is a spike only where it is also SPIKE times the run's median (O).
GRADIENT_SMALL, GRADIENT_LARGE, SPIKE = 0.001, 10.0, 10
CLIPPED = 0.1  # share of tokens that the clip holds (A)
LONGER, FAR_LONGER = 2, 4  # times the length at the start: without a gain, with one (O)
OVERFIT = 1.05  # times its lowest value, the held-out loss at the end (O)
UNSEEN_STEPS = 100  # steps without a held-out look (O): a public run peaked at step 50 of 100

Found = Iterator[tuple[list[int], str]]


def not_finite(log: Log) -> Found:
    """NaN or infinite, or None where the other steps have a number: JSON has no NaN."""
    names = ("loss", "grad_norm", "kl", "entropy")
    usual = {name for name in names if log.points(name)}
    bad = []
    for record in log.records:
        for name in names:
            value = record.get(name, 0.0)
            if value is None and name in usual or is_nan_or_infinite(value):
                bad.append((record["step"], name))
    # What our watchdog saw in the gradients of a step that it skipped.
    bad += [(step, "an alarm") for step, alarm in log.alarms() if alarm == "not finite"]
    if bad:
        bad.sort(key=lambda found: found[0])
        first = ", ".join(name for step, name in bad if step == bad[0][0])
        evidence = f"NaN or infinite, first at step {bad[0][0]}: {first}"
        yield sorted({step for step, _ in bad}), evidence


def reward_not_a_number(log: Log) -> Found:
    steps = [r["step"] for r in log.records if is_nan_or_infinite(r.get("reward_mean"))]
    if steps:
        yield steps, f"mean reward NaN or infinite in {len(steps)} of {len(log.records)} steps"


def grader_failures(log: Log) -> Found:
    from rftkit.graders.rewards import MAX_LOST_SHARE

    if not log.graded:
        return
    known = {step for step, _ in log.points("reward_mean")}
    known |= {step for steps, _ in reward_not_a_number(log) for step in steps}
    silent = [r["step"] for r in log.records if "reward_mean" in r and r["step"] not in known]
    partly = [step for step, parts in log.parts("sub_rewards") if None in parts.values()]
    shares = log.lost | dict(log.points("lost"))
    lost = [step for step, share in shares.items() if share > MAX_LOST_SHARE]
    said = [f"no reward at all in {len(silent)} of {len(log.records)} steps"] if silent else []
    said += [f"a sub-grader without a number in {len(partly)} steps"] if partly else []
    if lost:
        share, limit = max(shares.values()), f"{MAX_LOST_SHARE:.0%}"
        said.append(f"up to {share:.0%} of a step's answers without a grade (limit {limit})")
    if said:
        yield sorted({*silent, *partly, *lost}), "; ".join(said)


def grader_errors(log: Log) -> Found:
    """The grader's own program fails on most answers: each of them scores 0, whatever it says."""
    series = error_series(log)
    failing = {
        name: steps
        for name, points in series.items()
        if (steps := held(points, lambda share: share > MOSTLY_ERRORS))
    }
    if failing:
        told = []
        for name, steps in failing.items():
            shares = [share for step, share in series[name] if step in set(steps)]
            told.append(f"{name} on {mean(shares):.0%} of the answers of {len(steps)} steps")
        yield (
            sorted({step for steps in failing.values() for step in steps}),
            f"{'; '.join(told)} (limit: {MOSTLY_ERRORS:.0%} in {IN_A_ROW} of {WINDOW} steps)",
        )


def no_reward_spread(log: Log) -> Found:
    steps = in_a_row(log.points("reward_std"), lambda v: v <= 1e-6, 2 * IN_A_ROW)
    if steps:
        rewards = dict(log.points("reward_mean"))
        level = mean(rewards.get(step, 0.0) for step in steps)
        yield steps, f"in {len(steps)} steps every answer scored alike, {level:.2f} on average"


def dead_groups(log: Log) -> Found:
    points, rewards = dead_share(log), dict(log.points("reward_mean"))
    wholly = [step for step, share in points if share == 1]
    steps = held(points, lambda share: share >= DEAD)
    if len(wholly) >= max(3, WASTED * len(points)):
        steps = sorted({*steps, *wholly})
    if steps:
        there = [rewards[step] for step in steps if step in rewards]
        level = f", at a mean reward of {mean(there):.2f}" if there else ""
        share, dead = len(wholly) / len(points), mean(v for _, v in points)
        yield (
            steps,
            f"{len(wholly)} of {len(points)} steps ({share:.0%}) without one group that had a "
            f"spread; {dead:.0%} of all groups dead{level}",
        )


def loss_zero(log: Log) -> Found:
    gradients, drifts = dict(log.points("grad_norm")), dict(log.points("kl"))
    zero = in_a_row(log.points("loss"), lambda loss: loss == 0)
    # Only a gradient that was logged as 0: one that is missing or NaN is not known to be none.
    still = [step for step in zero if gradients.get(step) == 0]
    steps = [step for step in zero if step in still or drifts.get(step, 0.0) > 0.01]
    if steps:
        beside = "and no gradient" if still else "while the KL is not: its term does not arrive"
        yield steps, f"the loss is exactly 0 in {len(steps)} steps, {beside}"


def reward_up_task_down(log: Log) -> Found:
    looks, points = log.looks(), log.points("reward_mean")
    if len(looks) < 2 or not points:
        return
    (at, best), (end, last) = max(looks, key=lambda look: look[1]["mean"]), looks[-1]
    before = [v for s, v in points if s <= at][-10:] or [points[0][1]]
    after = [v for s, v in points if s > at][-10:]
    if len(after) < 3 or not fell(best, last):
        return
    noise = math.sqrt(sum(variance(p) / len(p) for p in (before, after) if len(p) > 1))
    if mean(after) - mean(before) > max(MOVED, SURE * noise):
        evidence = (
            f"reward {mean(before):.2f} -> {mean(after):.2f}, while held-out "
            f"{look_text(at, best)} -> {look_text(end, last)}"
        )
        yield [s for s, _ in points if s > at], evidence


def reward_falls(log: Log) -> Found:
    points = log.points("reward_mean")
    if moved(points, -1):
        before, after, _ = change(points)
        evidence = f"mean reward {before:.2f} at the start, {after:.2f} at the end"
        yield [s for s, _ in points[-10:]], evidence


def reward_stays_low(log: Log) -> Found:
    points = log.points("reward_mean")
    early = [(s, v) for s, v in points if s <= SOON]
    if not early or points[-1][0] < SOON:
        return
    soon, late = best_stretch(early), best_stretch(points[-SOON:])
    if max(soon, late) <= REWARD_SOON:
        yield (
            [s for s, _ in early],
            f"the best {IN_A_ROW} steps in a row reach a mean reward of {soon:.2f} within {SOON} "
            f"steps, of {late:.2f} at the end; expected above {REWARD_SOON} (grades: 0 to 1)",
        )


def format_alone(log: Log) -> Found:
    """One part of the reward rises and all others stay at nothing, or strict nears lenient."""
    series = sub_series(log)
    changes = {name: found for name, points in series.items() if (found := change(points))}
    if len(changes) < 2:
        return
    gains = {name: after - before for name, (before, after, _) in changes.items()}
    top = max(gains, key=gains.__getitem__)
    steps = [step for step, _ in series[top]]
    others = [
        changes[name][1] <= 0.05 and abs(gains[name]) < MOVED for name in gains.keys() - {top}
    ]
    if moved(series[top], +1, 0.1) and all(others):
        yield steps, f'"{top}" rose by {gains[top]:.2f}, every other part of the reward stayed at 0'
    strict = next((name for name in gains if "strict" in name.lower()), None)
    lenient = next((n for n in gains if "lenient" in n.lower() or "flexible" in n.lower()), None)
    if strict and lenient and moved(series[strict], +1, 0.1):
        form = 1 - gains[lenient] / gains[strict]
        if form > 0.5:
            yield (
                steps,
                f'"{strict}" rose by {gains[strict]:.2f}, "{lenient}" by {gains[lenient]:.2f}: '
                f"{form:.0%} of the gain is form",
            )


def past_the_peak(log: Log) -> Found:
    looks = log.looks()
    if len(looks) < 2 or log.best_is_kept:
        return
    (at, best), (end, last) = max(looks, key=lambda look: look[1]["mean"]), looks[-1]
    if fell(best, last):
        evidence = f"best {look_text(at, best)}; last {look_text(end, last)}"
        yield [s for s, _ in looks if s > at], evidence


def overfitting(log: Log) -> Found:
    points, losses = log.points("eval_loss"), log.points("loss")
    # The loss of GRPO says nothing of the sort.
    if len(points) < 2 or log.graded or log.best_is_kept or not moved(losses, -1):
        return
    (at, lowest), (end, last) = min(points, key=lambda point: point[1]), points[-1]
    if last > OVERFIT * lowest:
        before, after, _ = change(losses)
        evidence = f"held-out loss {lowest:.3f} at step {at}, {last:.3f} at step {end}, while the "
        evidence += f"training loss went from {before:.3f} to {after:.3f}"
        yield [step for step, _ in points if step > at], evidence


def truncation(log: Log) -> Found:
    points = log.points("truncated")
    steps = held(points, lambda share: share > CUT)
    if steps:
        share = worst(points, steps)
        most = "; most answers never end" if share > MOSTLY_CUT else ""
        yield steps, f"up to {share:.0%} of a step's answers cut at the limit (to {CUT:.0%}){most}"


def length_explosion(log: Log) -> Found:
    found = change(log.points("completion_tokens"))
    if found and found[1] >= (FAR_LONGER if gained(log) else LONGER) * found[0]:
        yield last_steps(log), f"answers grew from {found[0]:.0f} to {found[1]:.0f} tokens"


def length_collapse(log: Log) -> Found:
    found = change(log.points("completion_tokens"))
    if found and found[0] >= (FAR_LONGER if gained(log) else LONGER) * found[1]:
        yield last_steps(log), f"answers shrank from {found[0]:.0f} to {found[1]:.0f} tokens"


def last_steps(log: Log) -> list[int]:
    return [step for step, _ in log.points("completion_tokens")[-10:]]


def entropy_collapse(log: Log) -> Found:
    points = log.points("entropy")
    steps = held(points, lambda v: v < ENTROPY_LOW)
    if steps:
        lowest = min(v for s, v in points if s in set(steps))
        yield (
            steps,
            f"entropy {points[0][1]:.2f} at the start, down to {lowest:.3f} nats a token (healthy "
            f"from {ENTROPY_LOW}, collapsed below {ENTROPY_GONE})",
        )


def kl_blow_up(log: Log) -> Found:
    points = log.points("kl")
    steps = held(points, lambda v: v > KL_FAR)
    steps = {*steps, *(s for s, v in points if v > KL_AT_ONCE)}
    if points and points[-1][1] > KL_LOST:  # a run that ended there did not come back
        steps |= {s for s, v in points if v > KL_LOST}
    if steps:
        far = worst(points, list(steps))
        limits = f"healthy to {KL_FAR}, diverged above {KL_LOST}"
        yield sorted(steps), f"KL up to {far:.2g} nats a token ({limits})"


def gradient_spike(log: Log) -> Found:
    points = log.points("grad_norm")
    if len(points) < IN_A_ROW:
        return
    usual = median(v for _, v in points)
    limit = max(1.0 if log.graded else 10.0, SPIKE * usual)
    steps = {s for s, v in points if v > limit}
    steps |= set(held(points, lambda v: v > GRADIENT_LARGE))
    if steps:
        highest = worst(points, list(steps))
        yield sorted(steps), f"gradient norm up to {highest:.3g}, the run's median {usual:.3g}"


def gradient_vanishes(log: Log) -> Found:
    dead = dict(dead_share(log))
    points = [(s, v) for s, v in log.points("grad_norm") if dead.get(s, 0) < DEAD]
    steps = held(points, lambda v: v < GRADIENT_SMALL)
    if steps:
        evidence = f"gradient norm at most {worst(points, steps):.1e} although groups had a spread"
        yield steps, evidence


def clip_binds(log: Log) -> Found:
    points = log.points("clip_ratio")
    steps = held(points, lambda share: share > CLIPPED)
    if steps:
        share = worst(points, steps)
        yield steps, f"the clip holds up to {share:.0%} of a step's tokens (to {CLIPPED:.0%})"


def nothing_held_out(log: Log) -> Found:
    last = log.records[-1]["step"]
    if log.graded and not log.looks() and last > UNSEEN_STEPS:
        yield [r["step"] for r in log.records], f"{last} steps, not one look at held-out rows"


def steps_out_of_order(log: Log) -> Found:
    steps = [record["step"] for record in log.records]
    bad = [after for before, after in zip(steps, steps[1:]) if after <= before]
    if bad:
        yield bad, f"{len(bad)} steps come again or go backwards, the first is {bad[0]}"


# What a grader that fails on most answers explains, where it shows in the same steps.
EXPLAINED = {"grader_errors": ("no_reward_spread", "dead_groups", "reward_stays_low", "loss_zero")}
SAME_STEPS = 0.8  # share of the effect's steps in which the cause shows (O)

# The gravest first: what makes the rest meaningless, then what pays for nothing, then the rest.
RULES: dict[str, Callable[[Log], Found]] = {
    rule.__name__: rule
    for rule in (
        *(not_finite, reward_not_a_number, grader_failures, grader_errors),
        *(no_reward_spread, dead_groups, loss_zero),
        *(
            reward_up_task_down,
            reward_falls,
            reward_stays_low,
            format_alone,
            past_the_peak,
            overfitting,
        ),
        *(truncation, length_explosion, length_collapse, entropy_collapse, kl_blow_up),
        *(gradient_spike, gradient_vanishes, clip_binds, nothing_held_out, steps_out_of_order),
    )
}
