"""How fast a device computes over time: stragglers and slowdowns as factors that hold until the next."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isfinite


class SpeedError(ValueError):
    """A speed that cannot be: says what was found and what is required."""


@dataclass(frozen=True, slots=True)
class Speed:
    """`factors[i]` from `times_s[i]` on (and the first before it): 1 is the profiled speed, 0.5 half of
    it, 0 a standstill that ends at the next time."""

    times_s: tuple[float, ...]
    factors: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.times_s) != len(self.factors) or not self.times_s:
            raise SpeedError(
                f"found {len(self.times_s)} times, {len(self.factors)} factors; required equally many, some"
            )
        if any(not isfinite(t) for t in self.times_s) or any(a >= b for a, b in pairwise(self.times_s)):
            raise SpeedError(f"found times {self.times_s}, required finite ones that ascend")
        if any(not (isfinite(f) and f >= 0) for f in self.factors):
            raise SpeedError(f"found factors {self.factors}, required finite ones of 0 or more")
        if self.factors[-1] == 0:
            raise SpeedError("found the last factor 0, required more: the device would never end its work")

    def shifted(self, by_s: float) -> Speed:
        """The same speeds on a clock that began `by_s` later."""
        return Speed(tuple(t - by_s for t in self.times_s), self.factors)

    def end_s(self, start_s: float, work_s: float) -> float:
        """When `work_s` seconds of work (at the profiled speed) begun at `start_s` are done."""
        i = max(bisect_right(self.times_s, start_s) - 1, 0)
        now_s = start_s
        while True:
            until_s = self.times_s[i + 1] if i + 1 < len(self.times_s) else inf
            factor = self.factors[i]
            if factor > 0 and now_s + work_s / factor <= until_s:
                return now_s + work_s / factor
            work_s = max(0.0, work_s - (until_s - now_s) * factor)
            now_s, i = until_s, i + 1

    def work_s(self, start_s: float, end_s: float) -> float:
        """Seconds of work, at the profiled speed, that get done from `start_s` to `end_s`."""
        i = max(bisect_right(self.times_s, start_s) - 1, 0)
        done_s = 0.0
        while i + 1 < len(self.times_s) and self.times_s[i + 1] < end_s:
            done_s += (self.times_s[i + 1] - start_s) * self.factors[i]
            start_s, i = self.times_s[i + 1], i + 1
        return done_s + (end_s - start_s) * self.factors[i]
