"""examine(): a log in, its findings out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, median, variance
from typing import Any

from rftkit.files import UserError, printable

# ------------------------------------------------------------------------------------------
# from rftkit.doctor.knobs:
# What each fault means, and the knob to turn: the words beside a rule's numbers.
#
# Fields in the knobs are RunConfig's; TRL's own name stands in brackets where it differs.

# fault -> (why it matters, the knob)
KNOBS = {
    "not_finite": (
        "One NaN in a gradient makes every weight NaN: from that step on nothing is a model.",
        "Go back to the last whole checkpoint; learning_rate down to a third; bf16 or fp32, not "
        "fp16; then look at that step's batch for an empty or endless answer.",
    ),
    "reward_not_a_number": (
        "One NaN among a group's rewards makes all its advantages NaN, and with them the loss.",
        "Find the answer (samples.jsonl) and run `rftkit grade` on it: look for 0/0, an empty "
        "mean or a logarithm of 0 in the grader. A bad answer is 0, a machine's failure null.",
    ),
    "grader_failures": (
        "An answer that the grader could not grade teaches nothing, and a sample of the gradable "
        "is a biased one.",
        "Run `rftkit grade` on one of those answers: endpoint, time limit, a field that the "
        "formula names. A machine's failure must be null, a bad answer 0.",
    ),
    "grader_errors": (
        "An answer on which the grader's own program fails scores 0 like a wrong one: the model "
        "learns what does not crash the grader, or nothing.",
        "Run `rftkit grade` on one answer of these steps (samples.jsonl) and read the traceback; "
        "then let the grader give 0 itself to an answer that it cannot read.",
    ),
    "no_reward_spread": (
        "Advantages compare scores. Where all are equal, every one is zero.",
        "Grade the right answer and a wrong one by hand (`rftkit grade`): they must differ. A "
        "constant usually means an output that cannot be parsed, or a grader that reads the wrong "
        "field.",
    ),
    "dead_groups": (
        "A group whose answers all score alike has advantage zero: it costs sampling and teaches "
        "nothing.",
        "Reward low there: easier rows, partial credit in the grader, answers_per_prompt "
        "[num_generations] up, temperature up, more prompts_per_step. Reward high there: the task "
        "is learnt; harder rows, or stop.",
    ),
    "loss_zero": (
        "A loss of exactly 0 with no gradient (or with a KL that is not 0) never reaches a weight.",
        "Is the adapter trainable (print_trainable_parameters)? Are all completions masked "
        "[mask_truncated_completions], all rewards None, is beta so small that it is rounded away?",
    ),
    "reward_stays_low": (
        "GRPO reinforces what it finds. What is hardly ever found cannot be reinforced.",
        "`rftkit signal` before the next run: is the base ever right in k tries? Then partial "
        "credit, easier rows first, a warm start by SFT, or a stronger base.",
    ),
    "reward_falls": (
        "The policy is moving away from what it is paid for.",
        "learning_rate down, prompts_per_step up (one prompt a step is mostly noise), and read "
        "the newest answers: is a penalty in the reward easier to collect than to avoid?",
    ),
    "reward_up_task_down": (
        "The policy has found something that the grader pays for and the task does not want.",
        "Stop. Take the checkpoint of the best held-out look. Read the answers with the highest "
        "reward, repair the grader against them, then train again (init_adapter).",
    ),
    "past_the_peak": (
        "The last checkpoint is not the best one: after its peak a run learns its own rows.",
        "Keep the best by the held-out metric and stop early: eval_every, patience.",
    ),
    "overfitting": (
        "The model learns its rows by heart: what it gains on them, others lose.",
        "Take the checkpoint of the lowest held-out loss (load_best_model_at_end); fewer epochs, "
        "more rows, lora_rank and learning_rate down.",
    ),
    "format_alone": (
        "The model learnt how an answer must look, not how to find it.",
        "Give the form a small weight, report strict and lenient scores side by side, and check "
        "by `rftkit signal` that the base is ever right.",
    ),
    "truncation": (
        "An answer that is cut usually scores 0: the limit has become part of the task.",
        "max_completion_tokens [max_completion_length] up, to the 95th percentile of the base's "
        "own lengths at least; or pay for shorter answers.",
    ),
    "length_explosion": (
        "Longer without being better: length is being paid for somewhere, or nothing stops it.",
        "Read the longest answers. A loss without length bias (dr_grpo, dapo), a small cost a "
        "token in the grader, beta up.",
    ),
    "length_collapse": (
        "Answers lose their reasoning: the reward comes without it, or a penalty drives it out.",
        "Read the shortest answers. Is there a constant answer that pays? Take out what punishes "
        "length, beta up, go back to a checkpoint before.",
    ),
    "entropy_collapse": (
        "A policy that is sure of every token tries nothing new, and its groups die.",
        "temperature up (towards 1), learning_rate down, beta up; epsilon_high above epsilon lets "
        "rare tokens grow. A collapsed adapter does not recover: start from one before.",
    ),
    "kl_blow_up": (
        "The policy has left the model that it started from; what that one could do may be lost.",
        "learning_rate down, beta up, and back to the last checkpoint with a KL below 0.5.",
    ),
    "gradient_spike": (
        "One batch turned the weights further than many others together.",
        "Look at that step's answers; keep max_grad_norm at 1 or below, learning_rate down, "
        "prompts_per_step up.",
    ),
    "gradient_vanishes": (
        "Groups had a spread, and yet hardly any gradient arrived at the weights.",
        "Is the adapter trainable, and is it the one that is trained? learning_rate up, lora_rank "
        "up; with bf16 weights, keep the adapter in fp32.",
    ),
    "clip_binds": (
        "Many tokens have left the range in which old answers may still teach.",
        "Fewer updates on one batch [num_iterations, steps_per_generation], learning_rate down.",
    ),
    "nothing_held_out": (
        "Reward is measured on the rows that are trained on, by the grader that is optimised: it "
        "cannot tell learning from gaming, nor the best step from the last.",
        "eval_every above 0, on rows whose groups are not trained on, by a metric that is not the "
        "reward.",
    ),
    "steps_out_of_order": (
        "Two runs, or a run and its resumption, wrote into one file.",
        "One folder a run; after a resume, drop what was logged after the checkpoint.",
    ),
}


# ------------------------------------------------------------------------------------------
# from rftkit.doctor.logs:
# Logs, whoever wrote them, as one record a step under our names.

# Our names (the fields of log.jsonl), and what TRL, older TRL and Unsloth call the same.
NAMES = {
    "reward_mean": ("reward",),
    "reward_std": ("reward_std",),
    "dead_groups": ("frac_reward_zero_std",),
    "completion_tokens": ("completions/mean_length", "completion_length"),
    "truncated": ("completions/clipped_ratio",),
    "clip_ratio": ("clip_ratio/region_mean", "clip_ratio"),
    "lost": ("grader/lost",),
    **{name: (name,) for name in ("entropy", "kl", "grad_norm", "loss", "eval_loss")},
}
LARGEST = 3.4e38  # of a weight or gradient in fp32 or bf16: beyond it training itself has infinity
NO_NUMBERS = {"nan", "inf", "infinity"}  # as text, whatever the case and sign
NO_TASK_METRIC = {"runtime", "samples_per_second", "steps_per_second", "num_tokens", "reward"}


@dataclass
class Log:
    """A run's records, in the order in which they were written.

    best_is_kept   the run hands back its best checkpoint, not its last
    lost           step -> share of the step's answers that the grader could not grade
    notes          what was left out in reading
    """

    source: str
    records: list[dict[str, Any]]
    best_is_kept: bool = False
    lost: dict[int, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def points(self, name: str) -> list[tuple[int, float]]:
        """(step, value) wherever the log holds a finite number of this name."""
        found = [(r["step"], finite(r.get(name))) for r in self.records]
        return [(step, value) for step, value in found if value is not None]

    def looks(self) -> list[tuple[int, dict[str, Any]]]:
        """(step, validation) of every held-out look that has a mean; its interval, where it has
        one whole, under `low` and `high`."""
        found = [(r["step"], clean_look(r.get("validation"))) for r in self.records]
        return [(step, look) for step, look in found if look]

    def parts(self, name: str) -> list[tuple[int, dict[str, Any]]]:
        """(step, object) wherever the log holds an object of this name: sub_rewards, errors."""
        found = [(r["step"], r.get(name)) for r in self.records]
        return [(step, value) for step, value in found if isinstance(value, dict)]

    def alarms(self) -> list[tuple[int, str]]:
        """(step, name) of every alarm that our watchdogs wrote into the log."""
        told = [(r["step"], r.get("alarms")) for r in self.records]
        return [
            (step, alarm["name"])
            for step, alarms in told
            if isinstance(alarms, list)
            for alarm in alarms
            if isinstance(alarm, dict) and isinstance(alarm.get("name"), str)
        ]

    @property
    def graded(self) -> bool:
        """Answers are sampled and graded (GRPO); an SFT log holds neither number anywhere."""
        return bool(self.points("reward_mean") or self.points("dead_groups"))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def finite(value: Any) -> float | None:
    """A logged value as a number; None, which counts as missing, for all that is none: NaN, text,
    and what lies beyond LARGEST."""
    return float(value) if is_number(value) and abs(value) <= LARGEST else None


def is_nan_or_infinite(value: Any) -> bool:
    """NaN or infinite: as a number, or as the text that some trainers write for it."""
    if isinstance(value, str):
        return value.strip().lstrip("+-").lower() in NO_NUMBERS
    return is_number(value) and finite(value) is None


def clean_look(validation: Any) -> dict[str, Any] | None:
    """A held-out look's metric, mean and interval; None without a mean."""
    if not isinstance(validation, dict) or finite(validation.get("mean")) is None:
        return None
    metric = validation.get("metric")
    look = {"metric": metric if isinstance(metric, str) else "the metric"}
    look["mean"] = finite(validation["mean"])
    interval = {name: finite(validation.get(name)) for name in ("low", "high")}
    return look if None in interval.values() else look | interval


def read_log(path: str | Path) -> Log:
    """A run folder (ours, or a trainer's output folder), a log.jsonl or a trainer_state.json.

    Raises UserError for a path that is not there, or a file that is broken, empty or no log. A
    torn last line of a log.jsonl is left out, which the log's notes say.
    """
    path = Path(path)
    if path.is_dir():
        return read_folder(path)
    try:
        content = path.read_bytes()
        whole, note = (content, None) if path.suffix == ".json" else without_torn_end(content)
        text = whole.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{path}: cannot be read ({reason}), expected a run folder, a log.jsonl or a "
            "trainer_state.json: correct the path"
        ) from None
    # Only a line feed ends a line: U+2028 and its like may stand in a name.
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"{path}: empty, expected one object a step: did the run take a step?")
    if path.suffix == ".json":
        return read_trainer_state(path, text)
    records = [read_line(path, number, line) for number, line in lines]
    return Log(str(path), records, notes=[note] if note else [])


def without_torn_end(content: bytes) -> tuple[bytes, str | None]:
    """(a log.jsonl's whole lines, a note where the last one is torn): its line feed is written
    last. A torn line that stands alone is kept, to be named as what it is."""
    whole, feed, last = content.rpartition(b"\n")
    try:
        json.loads(last.strip() or b"{}")
    except (ValueError, RecursionError):
        if whole.strip():
            number = whole.count(b"\n") + 2
            return whole + feed, (
                f"the last line (line {number}) is torn and was left out: the run died in it, or "
                "is still writing; the same `rftkit train` goes on from its last checkpoint"
            )
    return content, None


def read_folder(folder: Path) -> Log:
    states = folder.glob("checkpoint-*/trainer_state.json")
    newest = sorted(states, key=checkpoint_number)[::-1]
    tried = [folder / "log.jsonl", folder / "trainer_state.json", *newest]
    found = next((path for path in tried if path.is_file()), None)
    if found is None:
        raise UserError(
            f"{folder}: no log in this folder, expected log.jsonl or trainer_state.json: name a "
            "run folder, or the log itself"
        )
    log = read_log(found)
    if found.name == "log.jsonl":
        log.lost = lost_answers(folder / "samples.jsonl")
        log.best_is_kept = (folder / "training.json").exists()
    return log


def checkpoint_number(state: Path) -> int:
    """The step in the folder's name; -1 for checkpoint-best and the like."""
    number = state.parent.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def read_line(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}:{number}: not whole JSON ({error}), expected one object a step: a line is "
            "torn where a run died; delete that line"
        ) from None
    if not isinstance(record, dict) or not is_step(record.get("step")):
        raise UserError(
            f'{path}:{number}: without a whole number "step", expected a step\'s log object: '
            "name the run's log.jsonl"
        )
    return record


def is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**15


def lost_answers(samples: Path) -> dict[int, float]:
    """From samples.jsonl: step -> share of its answers without a grade, where there are any."""
    counts: dict[int, list[int]] = {}
    try:
        with open(samples, encoding="utf-8") as lines:
            for line in lines:
                sample = json.loads(line)
                if not is_step(sample["step"]):
                    raise TypeError("a step is a whole number")
                count = counts.setdefault(sample["step"], [0, 0])
                count[0] += sample["grade"] is None
                count[1] += 1
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass  # not there, or still being written: the log alone is judged then
    return {step: lost / drawn for step, (lost, drawn) in counts.items() if lost}


# --- TRL's and Unsloth's trainer_state.json -----------------------------------------------------


def read_trainer_state(path: Path, text: str) -> Log:
    try:
        state = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: not whole JSON ({error}), expected TRL's trainer_state.json: it is torn; "
            "take the one of the checkpoint before"
        ) from None
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise UserError(
            f"{path}: without a list log_history, expected TRL's trainer_state.json: it stands in "
            "each checkpoint folder"
        )
    records: dict[int, dict[str, Any]] = {}
    for entry in history:
        found = renamed(entry)
        if found and is_step(entry.get("step")):
            records.setdefault(entry["step"], {"step": entry["step"]}).update(found)
    if not records:
        raise UserError(f"{path}: log_history holds no step, expected some: set logging_steps=1")
    return Log(str(path), list(records.values()), state.get("best_model_checkpoint") is not None)


def renamed(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of log_history under our names; {} for the summary at the end."""
    found: dict[str, Any] = {}
    for ours, theirs in NAMES.items():
        for name in theirs:
            if name in entry:
                found.setdefault(ours, entry[name])
    parts = {
        key.split("/")[1].strip(): value
        for key, value in entry.items()
        if key.startswith("rewards/") and not key.endswith("std")
    }
    if parts:
        found["sub_rewards"] = parts
    errors = {
        key.removeprefix("grader_errors/"): value
        for key, value in entry.items()
        if key.startswith("grader_errors/")
    }
    if errors:
        found["errors"] = errors
    held_out = {
        key.removeprefix("eval_"): value
        for key, value in entry.items()
        if key.startswith("eval_") and "/" not in key and finite(value) is not None
    }
    # A metric of the task's own before the reward, which is what is trained on.
    others = {name for group in NAMES.values() for name in group} | set(NAMES) | NO_TASK_METRIC
    for metric in [*(name for name in held_out if name not in others), "reward"]:
        if metric in held_out:
            found["validation"] = {"metric": metric, "mean": held_out[metric]}
            break
    return found


# ------------------------------------------------------------------------------------------
# from rftkit.doctor.measures:
# What the rules are made of: stretches of steps, changes beyond noise, series of a log.

# So many of so many steps make a state; fewer are weather. More than half, so that a good step now
# and then does not hide a bad level; and few enough for a short run, or the end of a long one.
IN_A_ROW, WINDOW = 5, 8
SURE = 3  # a change counts from so many standard errors
# Errors by which the grader says that an ANSWER is at fault: not JSON, or cut at the limit.
ANSWERS_OWN_ERRORS = {"sample_parse_error", "truncated_observation_error"}
MOVED = 0.02  # and from this size on: grades go from 0 to 1

Points = list[tuple[int, float]]  # (step, value)


def held(
    points: Points, bad: Callable[[float], bool], least: int = IN_A_ROW, window: int = WINDOW
) -> list[int]:
    """The bad steps of every `window` steps of which at least `least` are bad (of a log with fewer
    than `least` steps: all)."""
    least = min(least, len(points))
    wrong = [bad(value) for _, value in points]
    found: set[int] = set()
    for end in range(1, len(points) + 1):
        inside = [place for place in range(max(0, end - window), end) if wrong[place]]
        if len(inside) >= least:
            found.update(inside)
    return [points[place][0] for place in sorted(found)]


def in_a_row(points: Points, bad: Callable[[float], bool], least: int = IN_A_ROW) -> list[int]:
    """The same without a good step in between: for what is stuck, not merely too high."""
    return held(points, bad, least, window=least)


def worst(points: Points, steps: list[int]) -> float:
    """The highest value at these steps."""
    inside = set(steps)
    return max(value for step, value in points if step in inside)


def best_stretch(points: Points, width: int = IN_A_ROW) -> float:
    """The highest mean of `width` values in a row (of all, in a shorter log)."""
    values = [value for _, value in points]
    starts = range(max(1, len(values) - width + 1))
    return max(mean(values[start : start + width]) for start in starts)


def change(points: Points) -> tuple[float, float, float] | None:
    """(mean at the start, mean at the end, standard error of their difference); None: too short."""
    width = min(10, len(points) // 3)
    if width < 3:
        return None
    first, last = ([v for _, v in part] for part in (points[:width], points[-width:]))
    return mean(first), mean(last), math.sqrt((variance(first) + variance(last)) / width)


def moved(points: Points, direction: int, least: float = MOVED) -> bool:
    """Did the values rise (+1) or fall (-1), by more than `least` and by more than noise?"""
    found = change(points)
    if found is None:
        return False
    before, after, error = found
    return direction * (after - before) > max(least, SURE * error)


def gained(log: Log) -> bool:
    """Did the run get better: by its held-out looks where there are any, else by its reward?"""
    looks = log.looks()
    if len(looks) > 1:
        first, last = looks[0][1], looks[-1][1]
        return last.get("low", last["mean"]) > first["mean"]
    return moved(log.points("reward_mean"), +1)


def fell(best: dict[str, Any], last: dict[str, Any]) -> bool:
    """Is a look below the best one's interval; without an interval, by more than a twentieth?"""
    return last["mean"] < best.get("low", 0.95 * best["mean"])


def dead_share(log: Log) -> Points:
    """Share of dead groups; where a log lacks it, a step without any spread tells as much."""
    told = log.points("dead_groups")
    return told or [(s, float(v <= 1e-6)) for s, v in log.points("reward_std")]


def sub_series(log: Log) -> dict[str, Points]:
    """Each part of the reward as a series of its own."""
    found: dict[str, Points] = {}
    for step, parts in log.parts("sub_rewards"):
        for name, value in parts.items():
            if (number := finite(value)) is not None:
                found.setdefault(name, []).append((step, number))
    return found


def error_series(log: Log) -> dict[str, Points]:
    """Share of the answers with each grading error that the grader, not the answer, may be to
    blame for; 0 in a step whose log names no errors."""
    names = {name for _, errors in log.parts("errors") for name in errors} - ANSWERS_OWN_ERRORS
    steps = log.parts("errors")
    return {
        name: [(step, finite(errors.get(name)) or 0.0) for step, errors in steps]
        for name in sorted(names)
    }


def look_text(step: int, look: dict[str, Any]) -> str:
    interval = f" [{look['low']:.3f}, {look['high']:.3f}]" if "low" in look else ""
    return f"{look['metric']} {look['mean']:.3f}{interval} at step {step}"


# ------------------------------------------------------------------------------------------
# from rftkit.doctor.rules:
# One rule a fault. A rule yields (steps, evidence) where it finds its fault in a log.
#
# Limits marked A are the healthy ranges and red flags of Axolotl's guide "Training Stability &
# Debugging" (docs/training_stability.qmd, table "Key Metrics for RL (GRPO)"). Those marked O are
# our
# own, for what that table does not name or names with one kind of model in mind.

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


# ------------------------------------------------------------------------------------------
# from rftkit.doctor.examination:
# examine(): a log in, its findings out.


@dataclass
class Finding:
    """One fault: the steps where it shows, the numbers, the knob to turn, and why it matters."""

    name: str
    steps: list[int]
    evidence: str
    knob: str
    why: str


@dataclass
class Examination:
    """What `rftkit doctor --json` prints. Notes say what was not judged, and what looks odd and
    is not."""

    source: str
    steps: int
    findings: list[Finding]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(path: str | Path) -> Examination:
    """Every finding over a run folder, a log.jsonl or a trainer_state.json, gravest first.

    Raises UserError for a path that is not there, or a file that is broken, empty or no log.
    """
    return examine_log(read_log(path))


def examine_log(log: Log) -> Examination:
    """The same over a log that was read before."""
    findings = []
    for name, rule in RULES.items():
        why, knob = KNOBS[name]
        findings += [Finding(name, steps, printable(t), knob, why) for steps, t in rule(log)]
    findings = without_effects(findings)
    names, notes = {finding.name for finding in findings}, list(log.notes)
    if log.graded and not log.looks() and "nothing_held_out" not in names:
        notes.append("no held-out look in this log: a rising reward alone proves no learning")
    losses = log.points("loss")
    if losses and all(abs(loss) < 1e-6 for _, loss in losses) and "loss_zero" not in names:
        notes.append(
            "the loss is zero and the gradient is not: normal for GRPO with one update a batch, "
            "where a group's advantages sum to zero"
        )
    return Examination(log.source, len(log.records), findings, notes)


def without_effects(findings: list[Finding]) -> list[Finding]:
    """Leave out what another finding explains in the same steps, and say so there."""
    kept = list(findings)
    for cause in findings:
        there = set(cause.steps)
        effects = [
            finding
            for finding in kept
            if finding.name in EXPLAINED.get(cause.name, ())
            and len(there.intersection(finding.steps)) >= SAME_STEPS * len(finding.steps)
        ]
        if effects:
            names = ", ".join(finding.name.replace("_", " ") for finding in effects)
            cause.evidence += f"; explains what shows in the same steps: {names}"
            kept = [finding for finding in kept if finding not in effects]
    return kept
