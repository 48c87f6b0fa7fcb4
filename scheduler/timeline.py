"""Spans and timelines: what happened when, whether on a real clock or a simulated one.

Worker and simulator write the same thing, so predicted and measured can be subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SpanKind = Literal[
    "forward", "backward", "wait", "send", "reduce", "optimizer", "encode", "decode"
]


@dataclass(frozen=True, slots=True)
class Span:
    """One timed action of one rank. `wait`: the rank is idle until an input is there.

    `send` spans run on the link beside compute: from the hand-over to the last byte's arrival
    (simulator) or leaving (worker). Times count from the start of the step.
    """

    rank: int
    kind: SpanKind
    start_s: float
    end_s: float
    mb: int = -1
    peer: int = -1
    n_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Timeline:
    """All spans of one step over `n_ranks` ranks."""

    n_ranks: int
    spans: tuple[Span, ...]

    @property
    def duration_s(self) -> float:
        """From 0 to the end of the last span."""
        return max((s.end_s for s in self.spans), default=0.0)
