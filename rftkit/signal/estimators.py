"""The gate's statistics: pass@k, dead groups, shares with intervals, how many samples are missing.

Each takes one row's counts, because a row may be drawn more often than training will draw it:
n answers are at hand, and the question is what a group of k of them would have looked like.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from rftkit.evaluation import Interval, bootstrap

MISS = 0.025  # one side of a 95 % interval


def pass_at_k(n: int, right: int, k: int) -> float:
    """The chance that k answers, drawn without putting back from n, hold at least one right one.

    1 - C(n - right, k) / C(n, k): unbiased for any n >= k (Chen et al. 2021, "Evaluating Large
    Language Models Trained on Code", section 2.1). The naive 1 - (1 - right/n)^k is too low.

    >>> pass_at_k(n=8, right=1, k=1), pass_at_k(n=8, right=1, k=8)
    (0.125, 1.0)
    """
    if not 0 <= right <= n or not 1 <= k <= n:
        raise ValueError(f"n={n}, right={right}, k={k}: expected 0 <= right <= n and 1 <= k <= n")
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def dead_chance(rewards: Sequence[float], k: int, unread: int = 0) -> float:
    """The chance that k answers of one row, drawn without putting back, show no spread.

    rewards  one number an answer; equal ones (to 9 places) count as the same
    unread   answers beside them that are left out of the comparison (they could not be read): a
             group is dead as well if all that is left of it has one reward, or if nothing is left

    A group of k lies within one value and the unread: C(count + unread, k) ways for each value;
    the groups of unread answers alone would be counted once for every value.

    >>> dead_chance([0, 0, 1, 1], k=2) == 2 / 6
    True
    """
    n = len(rewards) + unread
    k = min(k, n)
    if k == 0:
        return 1.0
    counts = Counter(round(float(reward), 9) for reward in rewards).values()
    ways = sum(math.comb(count + unread, k) for count in counts)
    ways -= (len(counts) - 1) * math.comb(unread, k)
    return ways / math.comb(n, k)


def share_interval(
    values: Sequence[float], clusters: Sequence[Any], trials: int | None = None
) -> Interval:
    """The mean of values in [0, 1], one a row, with its 95 % interval over clusters.

    trials  what counts as independent where nothing varies: the clusters by default (rows differ
            in difficulty), or the number of answers (for what differs from answer to answer)

    The bootstrap cannot see what no row showed: where all values are 0 (or 1) its interval has no
    width, after three rows as after three hundred. Then the exact bound is taken: after n trials
    without the event its share may still be up to 1 - 0.025^(1/n) (Clopper & Pearson, Biometrika
    26:404, 1934).
    """
    interval = bootstrap(values, clusters)
    slack = 1 - MISS ** (1 / (trials or len(set(clusters))))
    if np.allclose(values, 0):
        return Interval(0.0, 0.0, slack)
    if np.allclose(values, 1):
        return Interval(1.0, 1.0 - slack, 1.0)
    return interval


def more_rows(interval: Interval, threshold: float, rows: int, most: int = 100_000) -> int:
    """About how many more rows would put the threshold outside the interval; 0 if it is outside.

    An interval shrinks with the square root of the number of rows (computed: the half-width
    towards the threshold over the distance to it, squared, times the rows).
    """
    if not interval.low <= threshold <= interval.high:
        return 0
    distance = abs(interval.mean - threshold)
    towards = interval.mean - interval.low
    if interval.mean < threshold:
        towards = interval.high - interval.mean
    if distance * distance * (rows + most) <= towards * towards * rows:
        return most
    return max(1, math.ceil(rows * (towards / distance) ** 2) - rows)


def spread_parts(rewards: Sequence[float], readable: Sequence[bool]) -> tuple[float, float]:
    """One group's variance of reward, taken apart: (between, within).

    between  readable answers earn more than unreadable ones: what format alone would teach
    within   readable answers differ among themselves: what ability would teach
    Their sum is the group's variance (law of total variance).
    """
    rewards, readable = np.asarray(rewards, float), np.asarray(readable, bool)
    between = within = 0.0
    for part in (rewards[readable], rewards[~readable]):
        if len(part):
            weight = len(part) / len(rewards)
            between += weight * (part.mean() - rewards.mean()) ** 2
            within += weight * part.var()
    return float(between), float(within)
