"""Steps that are watched while a plan runs: their spans, rank by rank, until they say how things are now.

What they say is `scheduler/observed.py`'s; this waits for the last rank of a step, and keeps few steps open.
"""

from __future__ import annotations

from scheduler.observed import Observed
from scheduler.plan import Plan
from scheduler.timeline import Span
from scheduler.topology import Topology

from . import events as e

MAX_OPEN_STEPS = 32
"""Steps that wait for their last rank; the oldest makes way."""


class Watching:
    """What is seen of one plan. `topology`: what it was made with."""

    def __init__(self, plan: Plan, topology: Topology) -> None:
        self._plan, self._topology = plan, topology
        self._open: dict[int, dict[int, tuple[Span, ...]]] = {}
        self._observed = Observed()

    def add(self, step: int, rank: int, spans: tuple[Span, ...]) -> e.Observed | None:
        """One rank's spans; with the last rank's, how devices and links are now."""
        told = self._open.setdefault(step, {})
        told[rank] = spans
        if len(told) < self._plan.n_ranks:
            while len(self._open) > MAX_OPEN_STEPS:
                del self._open[min(self._open)]
            return None
        del self._open[step]
        self._observed = self._observed.add(self._plan, (s for own in told.values() for s in own))
        return e.Observed(self._plan.version, self._observed.factors(self._plan, self._topology))
