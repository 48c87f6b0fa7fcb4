"""Processor sharing: computations on one host's cores, each of one thread. Knows only work and time."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from scheduler.speed import Speed


class SharedCores:
    """k computations at once each progress at min(1, cores / k), times the host's speed of the moment.

    All progress alike, so one shared measure of progress is kept (seconds that each has had
    since the beginning), and a computation ends when that reaches its own mark.
    """

    def __init__(self, cores: int, speed: Speed | None = None) -> None:
        if cores < 1:
            raise ValueError(f"found {cores} cores to share, required at least 1")
        self._cores, self._speed = cores, speed
        self._running: list[tuple[float, int, Callable[[], None]]] = []
        self._progress_s = 0.0
        self._as_of_s = 0.0
        self.version = 0
        """Changes whenever a computation starts or ends, which makes an older `next_end_s` void."""

    def start(self, now_s: float, seconds: float, done: Callable[[], None]) -> None:
        """Begin `seconds` of work; `done` is what `finish` will return for it."""
        self._progress_to(now_s)
        self.version += 1
        heapq.heappush(self._running, (self._progress_s + seconds, self.version, done))

    def next_end_s(self) -> float | None:
        """When the next computation ends if none starts before; None if none runs."""
        if not self._running:
            return None
        alone_s = max(0.0, self._running[0][0] - self._progress_s) / self._rate()
        return self._as_of_s + alone_s if self._speed is None else self._speed.end_s(self._as_of_s, alone_s)

    def finish(self, now_s: float) -> Callable[[], None]:
        """End the next computation, at its time."""
        self._progress_s, _, done = heapq.heappop(self._running)
        self._as_of_s = now_s
        self.version += 1
        return done

    def _progress_to(self, now_s: float) -> None:
        if self._running:
            passed_s = (
                now_s - self._as_of_s if self._speed is None else self._speed.work_s(self._as_of_s, now_s)
            )
            self._progress_s += passed_s * self._rate()
        self._as_of_s = now_s

    def _rate(self) -> float:
        return min(1.0, self._cores / len(self._running))
