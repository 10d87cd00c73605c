"""What the rules are made of: stretches of steps, changes beyond noise, series of a log."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import mean, variance
from typing import Any

from rftkit.doctor.logs import Log, finite

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
