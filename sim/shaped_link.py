"""One directed link as a queue, a transmitter and a wire: which packets leave it, and when. Pure.

    taken -> queue of a limited number of bytes, the tail is dropped
          -> transmitter, bytes / rate each, one after the other
          -> loss, drawn for each packet
          -> wire: delay, jitter; packets never overtake one another

Time is an argument, chance comes from a generator of its own, conditions are held from one change to
the next. A packet keeps the rate and the delay of the moment it was taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log1p
from random import Random


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a link is for a while."""

    delay_s: float = 0.0
    rate_Bps: float = inf
    jitter_s: float = 0.0
    """Standard deviation of the delay, which is never below 0."""
    loss: float = 0.0
    """Share of packets that are lost."""
    queue_bytes: float = inf
    """What may wait for the transmitter."""


Run = tuple[float, int, int]
"""(when they arrive, first, stop): packets first .. stop of those that were taken together."""


@dataclass(slots=True)
class Count:
    """Packets of a link. taken = delivered + lost + overflowed + those on their way."""

    taken: int = 0
    taken_bytes: int = 0
    delivered: int = 0
    delivered_bytes: int = 0
    lost: int = 0
    """By the link's loss."""
    overflowed: int = 0
    """By a full queue."""


class ShapedLink:
    """A link whose conditions change at given times, ascending; before the first it is as in the first."""

    def __init__(self, changes: Sequence[tuple[float, Conditions]], rng: Random) -> None:
        self._changes, self._rng = changes, rng
        self._next = 1
        self._conditions = changes[0][1]
        self._free_s = 0.0  # when the transmitter has sent all it was given
        self._last_due_s = 0.0
        self._until_loss = self._gap(self._conditions.loss)
        self.count = Count()

    def _held(self, now_s: float) -> Conditions:
        while self._next < len(self._changes) and self._changes[self._next][0] <= now_s:
            before, self._conditions = self._conditions, self._changes[self._next][1]
            self._next += 1
            if self._conditions.loss != before.loss:
                self._until_loss = self._gap(self._conditions.loss)
        return self._conditions

    def _gap(self, loss: float) -> float:
        """How many packets pass before one is lost: geometric, the same as a draw for each."""
        if loss <= 0:
            return inf
        return int(log1p(-self._rng.random()) / log1p(-loss)) if loss < 1 else 0

    def take(self, now_s: float, n: int, full_bytes: int, last_bytes: int) -> list[Run]:
        """Take `n` packets at once, all but the last of `full_bytes`: those that will arrive, in order."""
        c = self._held(now_s)
        count = self.count
        count.taken += n
        total_bytes = full_bytes * (n - 1) + last_bytes
        count.taken_bytes += total_bytes
        start_s = max(now_s, self._free_s)
        if c.rate_Bps == inf:
            kept = n
            self._free_s = start_s
        else:
            # What is being sent has left the queue: an idle transmitter takes the first packet at once.
            waiting_bytes = (start_s - now_s) * c.rate_Bps
            kept = n
            if waiting_bytes + total_bytes > c.queue_bytes:
                idle = 1 if start_s == now_s else 0
                kept = min(n, max(idle, int((c.queue_bytes - waiting_bytes) // full_bytes)))
            count.overflowed += n - kept
            kept_bytes = total_bytes if kept == n else kept * full_bytes
            self._free_s = start_s + kept_bytes / c.rate_Bps
        if not kept:
            return []
        delay_s = c.delay_s
        if c.jitter_s:
            delay_s = max(0.0, self._rng.gauss(delay_s, c.jitter_s))
        due_s = self._last_due_s = max(self._free_s + delay_s, self._last_due_s)
        return [(due_s, first, stop) for first, stop in self._spared(kept, c.loss)]

    def _spared(self, n: int, loss: float) -> list[tuple[int, int]]:
        """The runs of 0 .. n that the link's loss leaves."""
        if self._until_loss >= n:
            self._until_loss -= n
            return [(0, n)]
        runs, first = [], 0
        while first + self._until_loss < n:
            lost = first + int(self._until_loss)
            if lost > first:
                runs.append((first, lost))
            self.count.lost += 1
            first = lost + 1
            self._until_loss = self._gap(loss)
        if first < n:
            runs.append((first, n))
        self._until_loss -= n - first
        return runs
