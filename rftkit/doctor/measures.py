"""What the rules are made of: stretches of steps, changes beyond noise, series of a log."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import mean, variance
from typing import Any

from rftkit.doctor.logs import Log, is_number

IN_A_ROW = 5  # steps in a row make a state; fewer are weather
SURE = 3  # a change counts from so many standard errors
MOVED = 0.02  # and from this size on: grades go from 0 to 1

Points = list[tuple[int, float]]  # (step, value)


def in_a_row(points: Points, bad: Callable[[float], bool], least: int = IN_A_ROW) -> list[int]:
    """The steps of every stretch of at least `least` bad values (all of them, in a shorter log)."""
    found: list[int] = []
    stretch: list[int] = []
    for step, value in points:
        stretch = [*stretch, step] if bad(value) else []
        if len(stretch) == min(least, len(points)):
            found += stretch
        elif len(stretch) > least:
            found.append(step)
    return found


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
    for record in log.records:
        for name, value in (record.get("sub_rewards") or {}).items():
            if is_number(value) and math.isfinite(value):
                found.setdefault(name, []).append((record["step"], float(value)))
    return found


def look_text(step: int, look: dict[str, Any]) -> str:
    interval = f" [{look['low']:.3f}, {look['high']:.3f}]" if "low" in look else ""
    return f"{look.get('metric', 'the metric')} {look['mean']:.3f}{interval} at step {step}"
