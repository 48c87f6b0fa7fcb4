"""What one step of one rank did when, and how many bytes it sent. Reads the clock it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from scheduler.timeline import Span, SpanKind


class Recorder:
    """Spans, in seconds since the recorder was made."""

    def __init__(self, rank: int, clock: Callable[[], float]) -> None:
        self.spans: list[Span] = []
        self.late_s = 0.0
        """Time in which the rank waited for a tensor that had arrived."""
        self.sent_bytes = 0
        self.raw_bytes = 0
        """What was sent, before the codec."""
        self._rank, self._clock, self._start_s = rank, clock, clock()

    def now_s(self) -> float:
        return self._clock() - self._start_s

    def at_s(self, clock_s: float) -> float:
        """A reading of the clock, as seconds since the start."""
        return clock_s - self._start_s

    def add(self, kind: SpanKind, start_s: float, mb: int = -1, peer: int = -1, n_bytes: int = 0) -> None:
        """A span from `start_s` until now."""
        self.spans.append(Span(self._rank, kind, start_s, self.now_s(), mb, peer, n_bytes))

    @contextmanager
    def span(self, kind: SpanKind, mb: int = -1, peer: int = -1, n_bytes: int = 0) -> Iterator[None]:
        """The time of the block, if it ends well."""
        start_s = self.now_s()
        yield
        self.add(kind, start_s, mb, peer, n_bytes)
