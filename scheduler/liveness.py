"""How long silence may last before it means something. Pure: intervals in, seconds out.

deadline = max(floor, median + k x deviation, times x median, min(longest x LONGEST, ceiling)), where
deviation is the median absolute deviation, scaled by 1.4826 so that it equals the standard deviation of
normal noise: a link that is slow but steady earns a short deadline, one that is erratic a long one. What was
perfectly steady has no deviation at all, so that being late means some times the median at least. The median
does not see a pause that comes once in a while, so the longest interval that is remembered counts too, up to
a ceiling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

MAD_TO_DEVIATION = 1.4826
LONGEST = 1.5
"""How much longer than the longest so far is no pause any more."""
REMEMBERED = 32
"""Intervals that are kept of each worker, and of steps."""


@dataclass(frozen=True, slots=True)
class Patience:
    """When waiting becomes news: the terms of the formula above."""

    k: float
    floor_s: float
    unknown_s: float
    """The deadline until three intervals were seen."""
    times: float = 1.0
    ceiling_s: float = 0.0
    """Of what the longest interval makes of it; 0: it counts for nothing."""

    def deadline_s(self, intervals_s: Sequence[float]) -> float:
        """Seconds to wait, from the intervals observed so far."""
        if len(intervals_s) < 3:
            return max(self.floor_s, self.unknown_s)
        middle = median(intervals_s)
        spread = MAD_TO_DEVIATION * median(abs(x - middle) for x in intervals_s)
        longest = min(LONGEST * max(intervals_s), self.ceiling_s)
        return max(self.floor_s, middle + self.k * spread, self.times * middle, longest)


HEARTBEAT_S = 2.0
SILENCE = Patience(k=8.0, floor_s=2.5 * HEARTBEAT_S, unknown_s=15.0, ceiling_s=15.0)
"""With a worker that beats every HEARTBEAT_S: two beats that do not come, and half of the third, are news."""
STEP = Patience(k=20.0, floor_s=120.0, unknown_s=1800.0, times=3.0)
"""With a step; the first builds kernels and fills caches. Steps of minutes follow their links: one that takes
half as long again is late, not stuck."""


def remember(intervals_s: tuple[float, ...], latest_s: float) -> tuple[float, ...]:
    """The intervals with the latest added, and only as many as are kept."""
    return (*intervals_s, latest_s)[-REMEMBERED:]
