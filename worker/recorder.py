"""What one step of one rank did when, and how many bytes it sent. Reads the clock it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import sqrt

from scheduler.link_use import LinkUse
from scheduler.timeline import Span, SpanKind


@dataclass(slots=True)
class Traffic:
    """One kind of frame with one peer in a step, at this end of the link, as it is counted."""

    codec: str = ""
    sent_bytes: int = 0
    raw_bytes: int = 0
    encode_s: float = 0.0
    decode_s: float = 0.0
    error_squares: float = 0.0
    """Squares of what the codec changed, summed, and of the values; both 0 where it was not measured."""
    value_squares: float = 0.0
    resends: int = 0


class Recorder:
    """Spans, in seconds since the recorder was made, and the use of links."""

    def __init__(self, rank: int, clock: Callable[[], float], measures_errors: bool = False) -> None:
        self.measures_errors = measures_errors
        """Whether to look what codecs change, which takes about as long again as encoding."""
        self.spans: list[Span] = []
        self.late_s = 0.0
        """Time in which the rank waited for a tensor that had arrived."""
        self._links: dict[tuple[str, int], Traffic] = {}
        """By (kind, peer)."""
        self._rank, self._clock, self._start_s = rank, clock, clock()

    def link(self, kind: str, peer: int) -> Traffic:
        """The counters of what goes to `peer`, or comes from it, as `kind`."""
        return self._links.setdefault((kind, peer), Traffic())

    @property
    def links(self) -> tuple[LinkUse, ...]:
        """What was counted, by kind and peer."""
        return tuple(
            LinkUse(
                self._rank,
                peer,
                kind,
                t.codec,
                t.sent_bytes,
                t.raw_bytes,
                t.encode_s,
                t.decode_s,
                sqrt(t.error_squares / t.value_squares) if t.value_squares else 0.0,
                t.resends,
            )
            for (kind, peer), t in sorted(self._links.items())
        )

    @property
    def sent_bytes(self) -> int:
        return sum(link.sent_bytes for link in self._links.values())

    @property
    def raw_bytes(self) -> int:
        """What was sent, before the codecs."""
        return sum(link.raw_bytes for link in self._links.values())

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
