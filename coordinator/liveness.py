"""How long silence may last before it means something. Pure: intervals in, seconds out.

deadline = max(floor, median + k x deviation), where deviation is the median absolute
deviation, scaled by 1.4826 so that it equals the standard deviation of normal noise: a link
that is slow but steady earns a short deadline, one that is erratic a long one.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

MAD_TO_DEVIATION = 1.4826
REMEMBERED = 32
"""Intervals that are kept of each worker, and of steps."""


def deadline_s(intervals_s: Sequence[float], *, k: float, floor_s: float, unknown_s: float) -> float:
    """Seconds to wait, from the intervals observed so far; `unknown_s` until there are three."""
    if len(intervals_s) < 3:
        return max(floor_s, unknown_s)
    middle = median(intervals_s)
    spread = MAD_TO_DEVIATION * median(abs(x - middle) for x in intervals_s)
    return max(floor_s, middle + k * spread)


def remember(intervals_s: tuple[float, ...], latest_s: float) -> tuple[float, ...]:
    """The intervals with the latest added, and only as many as are kept."""
    return (*intervals_s, latest_s)[-REMEMBERED:]
