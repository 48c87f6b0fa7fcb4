"""Simulated time: happenings in the order of their moments, those of one moment in the order of asking.

Knows nothing of what happens.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

Happening = Callable[[], None]
At = Callable[[float, Happening], None]
"""(moment in s, what happens then)."""


class Clock:
    """`at` asks for something to happen, `run` lets everything happen; `now_s` is the moment it does."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._order = 0
        self._events: list[tuple[float, int, Happening]] = []

    def at(self, moment_s: float, happen: Happening) -> None:
        self._order += 1
        heapq.heappush(self._events, (moment_s, self._order, happen))

    def run(self) -> None:
        """Until nothing is left to happen."""
        while self._events:
            self.now_s, _, happen = heapq.heappop(self._events)
            happen()
