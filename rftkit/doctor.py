"""What is wrong with a run: a log in, its findings out.

A rule stands in one place: `@rule(what to change)` over a function from the log to the steps where
its fault shows, and the evidence. Its name is the finding's; its docstring says why it matters, and
after "Limit:" at which number it speaks and where that comes from. Axolotl's are healthy ranges and
red flags of its guide "Training Stability & Debugging" (docs/training_stability.qmd); rldoctor's
simulated runs are those of github.com/junglezke/rldoctor.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from rftkit.graders.rewards import MAX_LOST_SHARE
from rftkit.logs import GAIN, Log, Points, alarms_of, change, held, moved, notes_of_run, read_log

Evidence = tuple[Iterable[int], str]  # steps (none: nothing is wrong), and what was seen there
Check = Callable[[Log], Evidence]
RULES: dict[str, tuple[Check, str]] = {}  # in the order of the findings: gravest first
# Parts of a reward that pay for how an answer looks.
FORM = re.compile("form|tag|xml|json|style|length|schema|syntax|think", re.IGNORECASE)
# In the steps where the grader's program fails, that explains these.
EXPLAINED = ("dead_groups", "reward_stays_low")


def rule(setting: str) -> Callable[[Check], Check]:
    """setting: what to change, in RunConfig's names, with TRL's own in brackets."""

    def register(check: Check) -> Check:
        RULES[check.__name__] = check, setting
        return check

    return register


@dataclass
class Finding:
    """One fault of a run: its steps, the numbers, what to change, why, the limit and its source."""

    name: str
    steps: list[int]
    evidence: str
    setting: str
    why: str
    limit: str


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
    """Every finding over a run folder or a log that `read_log` reads, gravest first."""
    log = source if isinstance(source, Log) else read_log(source)
    findings: dict[str, Finding] = {}
    for name, (check, setting) in RULES.items():
        steps, evidence = check(log)
        steps = set(steps)
        if name in EXPLAINED and "grader_errors" in findings:
            steps -= set(findings["grader_errors"].steps)
        if steps:
            why, _, limit = " ".join(str(check.__doc__).split()).partition(" Limit: ")
            findings[name] = Finding(name, sorted(steps), evidence, setting, why, limit)
    notes = log.notes + notes_of_run(Path(log.source).parent)
    losses = [loss for _, loss in log.points("loss")]
    if log.graded and not log.validations() and "nothing_held_out" not in findings:
        notes.append("no validation in this log: a rising reward alone proves no learning")
    has_gradient = any(norm for _, norm in log.points("grad_norm"))
    if losses and max(map(abs, losses)) < 1e-6 and has_gradient:
        notes.append("a loss of zero beside a gradient is normal for GRPO: advantages sum to zero")
    return Examination(log.source, len(log.records), list(findings.values()), notes)


def level(points: Points, above=math.inf, below=0.0, also: Iterable[int] = ()) -> Evidence:
    """Values beyond a limit in five of eight steps, and whatever they are in the steps `also`."""
    steps = {*also, *held(points, lambda value: value > above or value < below)}
    values = [value for step, value in points if step in steps] or [0.0]
    limit = below or above
    return steps, f"{min(values):.3g} to {max(values):.3g} in {len(steps)} steps (limit {limit:g})"


@rule("resume from the last whole checkpoint; learning_rate down to a third; bf16, not fp16")
def not_finite(log: Log) -> Evidence:
    """One NaN in a gradient makes every weight NaN: from that step on nothing is a model."""
    alarms = alarms_of(log.records)
    bad = {alarm["step"]: "an alarm" for alarm in alarms if alarm["name"] == "not finite"}
    for name in ("loss", "grad_norm", "kl", "entropy"):
        finite = {step for step, _ in log.points(name)}
        # JSON has no NaN: our log writes null among numbers, and null alone for what it lacks.
        logged = {r["step"] for r in log.records if name in r and (finite or r[name] is not None)}
        bad |= dict.fromkeys(logged - finite, name)
    first = min(bad, default=0)
    return bad, f"NaN or infinite, first at step {first}: {bad.get(first)}"


@rule("`rftkit grade` on one of those answers: endpoint, time limit, 0/0, a field of the formula")
def grader_failures(log: Log) -> Evidence:
    """An answer without a grade teaches nothing, and a NaN spoils its whole group's advantages.
    Limit: 5 % of a step's answers, ours: reward_function stops a run there too."""
    lost = dict(log.points("lost"))
    steps = [step for step, share in lost.items() if share > MAX_LOST_SHARE]
    for record in log.records if log.graded else []:
        grades = [record.get("reward_mean", 0), *(record.get("sub_rewards") or {}).values()]
        numbers = [grade for grade in grades if grade is not None and math.isfinite(grade)]
        steps += [record["step"]] if len(numbers) < len(grades) else []
    return steps, f"no grade or NaN, up to {max(lost.values(), default=0):.0%} of a step's answers"


@rule("`rftkit grade` on one answer of these steps, then fix what its traceback names")
def grader_errors(log: Log) -> Evidence:
    """An answer on which the grader's program fails scores 0: the model learns to avoid that.
    Limit: 40 % of the answers, ours: where half fail, 38 to 62 % of a batch of 64 do."""
    steps, texts = set(), []
    for name, points in log.series("errors").items():
        bad, text = level(points, above=0.4)
        if bad and name not in ("sample_parse_error", "truncated_observation_error"):
            steps |= bad
            texts.append(f"{name}: share of answers {text}")
    return steps, "; ".join(texts)


@rule(
    "is the right field graded (`rftkit grade`)? Then easier rows, partial credit, "
    "answers_per_prompt [num_generations] or temperature up"
)
def dead_groups(log: Log) -> Evidence:
    """A group whose answers all score alike has advantage zero: it costs sampling for nothing.
    Limit: 0.8 of the groups (Axolotl), or every group dead in a fifth of the steps (ours)."""
    points = log.dead_share()
    wholly = [step for step, share in points if share == 1]
    many = len(wholly) >= max(3, 0.2 * len(points))
    steps = {*held(points, lambda share: share >= 0.8), *(wholly if many else ())}
    reward = mean([reward for step, reward in log.points("reward_mean") if step in steps] or [0])
    share = f"{len(wholly)} of {len(points)} steps in which every group was dead"
    return steps, f"{share}; mean reward {reward:.2f} (where it is high, the task is learnt)"


@rule("stop, read the best-paid answers, repair the grader, go back to the best validation")
def reward_up_task_down(log: Log) -> Evidence:
    """What it learns pays in training alone: a hole in the grader, or the rows by heart.
    Limit: reward up by 0.02 and three standard errors; validation as in past the peak; ours."""
    best, held_out = log.decline()
    later = [(step, reward) for step, reward in log.points("reward_mean") if step > best]
    before, after, _ = change(later)
    steps = [step for step, _ in later if moved(later, +1, GAIN)]
    return steps, f"reward {before:.2f} -> {after:.2f}, while held out {held_out}"


@rule("learning_rate down, prompts_per_step up; is a penalty easier to collect than avoid?")
def reward_falls(log: Log) -> Evidence:
    """The policy is moving away from what it is paid for.
    Limit: 0.02 and three standard errors between the first and the last ten steps, ours."""
    points = log.points("reward_mean")
    before, after, _ = change(points)
    steps = [step for step, _ in points[-10:] if moved(points, -1, GAIN)]
    return steps, f"mean reward {before:.2f} at the start, {after:.2f} at the end"


@rule("`rftkit signal` first: partial credit, easier rows, a warm start by SFT, another base")
def reward_stays_low(log: Log) -> Evidence:
    """GRPO reinforces what it finds. What is hardly ever found cannot be reinforced.
    Limit: above 0.15 within 20 steps (Axolotl), as a mean of five."""
    points = log.points("reward_mean")
    rewards = [reward for _, reward in points]
    best = max((mean(rewards[i : i + 5]) for i in range(len(points) - 4)), default=1.0)
    low = best <= 0.15 and points[-1][0] >= 20
    return [step for step, _ in points if low and step <= 20], f"five steps reach {best:.2f}"


@rule("give the form a small weight, report strict and lenient scores side by side")
def format_alone(log: Log) -> Evidence:
    """The model learnt how an answer must look, not how to find it.
    Limit: a tenth of its rise for the task, or at most 0.05, ours (rldoctor's: 4 %, sound 78)."""
    series = log.series("sub_rewards")
    ends = {name: change(points)[1] for name, points in series.items()}
    gains = {name: ends[name] - change(points)[0] for name, points in series.items()}
    for name in [name for name, points in series.items() if moved(points, +1, 0.1)]:
        others = [n for n in gains if n != name and not FORM.search(n)]
        lenient = [gains[n] for n in others if re.search("lenient|flexible", n, re.IGNORECASE)]
        strict = "strict" in name.lower() and lenient and lenient[0] < gains[name] / 2
        owns = FORM.search(name) and all(gains[n] < gains[name] / 10 for n in others)
        low = all(ends[n] <= 0.05 and abs(gains[n]) < GAIN for n in others)
        if strict or others and (owns or low):
            texts = [f'"{n}" by {gains[n]:.2f}' for n in (name, *others)]
            return [step for step, _ in series[name]], f"from start to end rose {', '.join(texts)}"
    return (), ""


@rule("stop here and keep the best step; harder rows, learning_rate up, or another base to go on")
def plateau(log: Log) -> Evidence:
    """The run rose and then stood still: the steps since then cost time and teach nothing.
    Limit: last of four quarters within a tenth of the rise, ours (rldoctor's: 3 %, sound 26)."""
    points = log.points("reward_mean")
    late, (start, end, _) = points[len(points) // 2 :], change(points)
    before, after, error = change(late, len(late) // 2)
    flat = abs(after - before) + 3 * error < (end - start) / 10
    still = flat and len(points) >= 100 and moved(points, +1, GAIN)
    return [step for step, _ in late if still], f"reward {start:.2f} -> {before:.2f} -> {after:.2f}"


@rule("keep the best by the held-out metric and stop early: eval_every, patience")
def past_the_peak(log: Log) -> Evidence:
    """The last checkpoint is not the best one: after its peak a run learns its own rows.
    Limit: below the best validation's interval (without one: by 10 %), ours."""
    best, held_out = log.decline()
    steps = [v["step"] for v in log.validations() if v["step"] > best and not log.best_is_kept]
    return steps, f"best and last validation: {held_out}"


@rule("keep the best checkpoint (load_best_model_at_end); fewer epochs, learning_rate down")
def overfitting(log: Log) -> Evidence:
    """The model learns its rows by heart: what it gains on them, others lose.
    Limit: validation loss 5 % above its lowest while the training loss falls, ours."""
    points, unclear = log.points("eval_loss"), log.graded or log.best_is_kept  # GRPO's says little
    if unclear or not points or not moved(log.points("loss"), -1, GAIN):
        return (), ""
    (at, lowest), (end, last) = min(points, key=lambda point: point[1]), points[-1]
    steps = [step for step, _ in points if step > at and last > 1.05 * lowest]
    return steps, f"validation loss {lowest:.3f} at step {at}, {last:.3f} at step {end}"


@rule("max_completion_tokens [max_completion_length] up, or pay for shorter answers")
def truncation(log: Log) -> Evidence:
    """A completion that is cut scores 0: the limit has become part of the task.
    Limit: 0.3 of the completions, in five of eight steps (Axolotl)."""
    return level(log.points("truncated"), above=0.3)


@rule("read the longest; a loss without length bias (dr_grpo, dapo), a cost a token, beta up")
def length_explosion(log: Log) -> Evidence:
    """Longer without being better: length is being paid for somewhere, or nothing stops it.
    Limit: twice, with a gain four times, ours; by half for a quarter of it held out, rldoctor's."""
    points = log.points("completion_tokens")
    start, end, _ = change(points)
    unpaid = moved(points, +1, start / 2) and log.held_out_gain() < (end / max(start, 1) - 1) / 4
    far = end >= (4 if log.gained() else 2) * start
    gain = f", held-out gain {log.held_out_gain():.0%}" if unpaid else ""
    steps = [step for step, _ in points[-10:] if far or unpaid]
    return steps, f"{start:.0f} -> {end:.0f} tokens{gain}"


@rule("read the shortest; is there a constant answer that pays? beta up, no cost of length")
def length_collapse(log: Log) -> Evidence:
    """Completions lose their reasoning: the reward comes without it, or a penalty bars it.
    Limit: half as long (with a gain: a quarter), ours."""
    points = log.points("completion_tokens")
    start, end, _ = change(points)
    far = start >= (4 if log.gained() else 2) * end
    return [step for step, _ in points[-10:] if far], f"{start:.0f} -> {end:.0f} tokens"


@rule("temperature up (towards 1), learning_rate down, beta up; start from an adapter before")
def entropy_collapse(log: Log) -> Evidence:
    """A policy that is sure of every token tries nothing new, and its groups die.
    Limit: 0.05 nats a token (Axolotl). Above its red flag of 1.0 our recorded runs learn."""
    return level(log.points("entropy"), below=0.05)


@rule("learning_rate down, beta up, and back to the last checkpoint with a KL below 0.5")
def kl_blow_up(log: Log) -> Evidence:
    """The policy has left the model that it started from; what that one could do may be lost.
    Limit: 0.5 nats a token, at the end 2 (Axolotl), 5 in one step (ours: none that is near)."""
    points = log.points("kl")
    at_once = 2 if points and points[-1][1] > 2 else 5
    return level(points, above=0.5, also=[step for step, kl in points if kl > at_once])


@rule("look at that step's answers; max_grad_norm at 1 or below, learning_rate down")
def gradient_spike(log: Log) -> Evidence:
    """One batch turned the weights further than many others together.
    Limit: 10 in five of eight steps, or once 1, in SFT 10 (Axolotl), and ten medians (ours)."""
    points = log.points("grad_norm")
    if len(points) < 5:
        return (), ""
    limit = max(1.0 if log.graded else 10.0, 10 * median(norm for _, norm in points))
    return level(points, above=10, also=[step for step, norm in points if norm > limit])


@rule("is the adapter trained, are completions masked? learning_rate up, lora_rank up")
def gradient_vanishes(log: Log) -> Evidence:
    """Groups had different rewards, and yet hardly any gradient reached the weights.
    Limit: 0.001 in five of eight steps (Axolotl)."""
    dead = dict(log.dead_share())
    alive = [(s, norm) for s, norm in log.points("grad_norm") if dead.get(s, 0) < 0.8]
    return level(alive, below=0.001)


@rule("eval_every above 0, on rows of other groups, by a metric that is not the reward")
def nothing_held_out(log: Log) -> Evidence:
    """The reward of the training rows cannot tell learning from gaming, nor the best step.
    Limit: 100 steps, ours: a public run was past its best at step 50."""
    last = max((record["step"] for record in log.records), default=0)
    unseen = log.graded and not log.validations() and last > 100
    return [record["step"] for record in log.records if unseen], f"{last} steps, no validation"


@rule("one folder a run; after a resume, drop what was logged after the checkpoint")
def steps_out_of_order(log: Log) -> Evidence:
    """Two runs, or a run and its resumption, wrote into one file."""
    steps = [record["step"] for record in log.records]
    bad = [after for before, after in zip(steps, steps[1:]) if after <= before]
    return bad, f"{len(bad)} steps come again or go backwards, the first is {bad[:1]}"
