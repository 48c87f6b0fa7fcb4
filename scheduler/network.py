"""What the engine asks of a network: take these bytes, and say when they are there.

A network is a description and can be replayed over any number of times; `open` gives the state of
one replay. Knows nothing of plans or of tensors; how links share what is between them is `flows.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Protocol

from scheduler.clock import At, Happening


class Links(Protocol):
    """The links of one replay."""

    def send(self, src: str, dst: str, n_bytes: float, now_s: float, arrived: Happening) -> None:
        """Hand over `n_bytes` at `now_s`; `arrived` happens when the last byte is there.

        A directed link carries its transfers one after the other, first come, first served.
        """


class Network(Protocol):
    """Directed links between devices, by name."""

    def open(self, at: At) -> Links:
        """The links with nothing on them; `at` lets something happen at a moment."""


@dataclass(frozen=True, slots=True)
class LinkNow:
    """A directed link as it is until `until_s`."""

    latency_s: float
    """One way."""
    bandwidth_Bps: float
    """What its streams carry together when it has everything to itself."""
    until_s: float = inf
    jitter_s: float = 0.0
    """Standard deviation of the latency from one transfer to the next."""
    loss: float = 0.0
    """Share of its packets that get lost."""
    round_trip_s: float = 0.0
    """What the loss of a packet costs."""
    streams: int = 1
    """How many flows a transfer is striped over; a loss slows one of them."""


class LinkSource(Protocol):
    """What is known of links: a measured topology, or a recorded trace from some moment on."""

    def link(self, src: str, dst: str, now_s: float) -> LinkNow:
        """The link at `now_s` after the beginning of the replay."""


class FreeNetwork:
    """Links that take no time: the schedule's own bubble is all that is left."""

    def open(self, at: At) -> Links:
        return _FreeLinks(at)


class _FreeLinks:
    def __init__(self, at: At) -> None:
        self._at = at

    def send(self, src: str, dst: str, n_bytes: float, now_s: float, arrived: Happening) -> None:  # noqa: ARG002
        self._at(now_s, arrived)
