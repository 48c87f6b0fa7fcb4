"""A directed link while a step is replayed: what it is now, what it carries, what waits, its losses."""

from __future__ import annotations

from collections import deque
from functools import cached_property
from math import inf
from random import Random

from scheduler.clock import Happening
from scheduler.network import LinkNow

PACKET_BYTES = 1460
"""Payload of a TCP segment on Ethernet; what a loss rate counts."""
RECOVERY_ROUND_TRIPS = 20
"""How long a stream that lost a packet goes on at half its rate. TCP Cubic comes back after
(0.3 window / 0.4)^(1/3) s (RFC 9438, 4.2): 8 s for a window of 1 MB, whatever the round trip; at
loss rates that matter windows are smaller."""


class Lane:
    """A directed link. Its luck is drawn from `seed` and its own name, whatever other links carry."""

    def __init__(self, src: str, dst: str, link: LinkNow, limits: tuple[int, ...], seed: int | str) -> None:
        self.src, self.dst, self.link, self.limits, self._seed = src, dst, link, limits, seed
        self.plain = not limits and link.until_s == inf and not link.jitter_s and not link.loss
        self.free_s = 0.0
        """Of a plain lane: when what was handed over so far has left."""
        self.slot = -1
        """Where the crowd keeps what it carries now, -1: nothing; `arrived` is what then happens."""
        self.arrived: Happening | None = None
        self.waiting: deque[tuple[float, Happening]] = deque()
        self.watched = False
        """Whether somebody comes when `link` ends to be true."""
        self._last_arrival_s = 0.0
        self._stalled_until_s = self._slow_until_s = 0.0
        self.to_loss_bytes = self._draw_loss()
        """Bytes until the next lost packet."""

    @cached_property
    def _random(self) -> Random:
        return Random(f"{self._seed} {self.src} {self.dst}")

    def _draw_loss(self) -> float:
        """Losses strike each packet alike."""
        loss = self.link.loss
        return self._random.expovariate(loss / PACKET_BYTES) if loss > 0 else inf

    def become(self, link: LinkNow) -> None:
        """The link changes; what was sent of the way to the next loss counts only while the rate stays."""
        changed = link.loss != self.link.loss
        self.link = link
        if changed:
            self.to_loss_bytes = self._draw_loss()

    def lose(self, now_s: float) -> tuple[float, float]:
        """A packet is lost; returns when its stream is back at half its rate, and when at all of it."""
        self._stalled_until_s = now_s + self.link.round_trip_s
        self._slow_until_s = self._stalled_until_s + RECOVERY_ROUND_TRIPS * self.link.round_trip_s
        self.to_loss_bytes = self._draw_loss()
        return self._stalled_until_s, self._slow_until_s

    def cap_at(self, now_s: float) -> float:
        """What the link carries at `now_s` by itself."""
        if now_s < self._stalled_until_s:
            return self.link.bandwidth_Bps * (1 - 1 / self.link.streams)
        if now_s < self._slow_until_s:
            return self.link.bandwidth_Bps * (1 - 0.5 / self.link.streams)
        return self.link.bandwidth_Bps

    def arrival_s(self, left_s: float) -> float:
        """When what left at `left_s` is there: never before what left earlier."""
        latency_s = self.link.latency_s
        if self.link.jitter_s > 0:
            latency_s = max(0.0, self._random.gauss(latency_s, self.link.jitter_s))
        self._last_arrival_s = max(left_s + latency_s, self._last_arrival_s)
        return self._last_arrival_s
