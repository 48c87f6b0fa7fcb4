"""What goes wrong in a simulated run, as data: said one by one, or drawn from a rate.

    Faults().fail_at(rank=3, step=7).leave("Tokyo-1", at_s=300)

What follows from a fault is the run's matter (`run.py`). A partition is a network whose links stand still.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from scheduler.network import LinkNow, LinkSource
from scheduler.speed import Speed


@dataclass(frozen=True, slots=True)
class Partition:
    """`regions` and everybody else do not reach each other from `from_s` to `until_s`."""

    regions: frozenset[str]
    from_s: float
    until_s: float

    def cuts(self, a: str, b: str) -> bool:
        return (a in self.regions) != (b in self.regions)


@dataclass(frozen=True, slots=True)
class Slowdown:
    device: str
    factor: float
    from_s: float
    until_s: float


@dataclass(frozen=True, slots=True)
class Faults:
    """All that goes wrong, in seconds of the network's clock."""

    crashes: frozenset[tuple[int, int]] = frozenset()
    """(rank, step): its device's process dies in the middle of that step, the first time it is run."""
    moves: tuple[tuple[float, str, bool], ...] = ()
    """(when, device, whether it comes), ascending. Whose first move is to come is not there before."""
    partitions: tuple[Partition, ...] = ()
    slowdowns: tuple[Slowdown, ...] = ()

    def fail_at(self, rank: int, step: int) -> Faults:
        return replace(self, crashes=self.crashes | {(rank, step)})

    def leave(self, device: str, at_s: float) -> Faults:
        return replace(self, moves=tuple(sorted((*self.moves, (at_s, device, False)))))

    def join(self, device: str, at_s: float) -> Faults:
        return replace(self, moves=tuple(sorted((*self.moves, (at_s, device, True)))))

    def partition(self, regions: Sequence[str], from_s: float, until_s: float) -> Faults:
        return replace(self, partitions=(*self.partitions, Partition(frozenset(regions), from_s, until_s)))

    def slow(self, device: str, factor: float, from_s: float, until_s: float) -> Faults:
        return replace(self, slowdowns=(*self.slowdowns, Slowdown(device, factor, from_s, until_s)))

    def speeds(self) -> dict[str, Speed]:
        """Of every device that is slow at some time; where slowdowns overlap their factors multiply."""
        found = {}
        for device in dict.fromkeys(s.device for s in self.slowdowns):
            own = [s for s in self.slowdowns if s.device == device]
            times = sorted({0.0, *(t for s in own for t in (s.from_s, s.until_s) if t < inf)})
            factors = [float(np.prod([s.factor for s in own if s.from_s <= t < s.until_s])) for t in times]
            found[device] = Speed(tuple(times), tuple(factors))
        return found


@dataclass(frozen=True, slots=True)
class Rate:
    """Each device leaves after a time of mean `between_s` and comes back after one of mean `away_s`, again
    and again, both exponential. Those `away_at_first` begin by coming."""

    between_s: float
    away_s: float
    away_at_first: frozenset[str] = frozenset()

    def drawn(self, devices: Sequence[str], horizon_s: float, rng: np.random.Generator) -> Faults:
        """What happens until `horizon_s`, and whatever ends what has begun by then. A longer horizon adds to
        it and changes nothing before: every device has draws of its own."""
        moves = []
        for device, own in zip(devices, rng.spawn(len(devices)), strict=True):
            t, there = 0.0, device not in self.away_at_first
            if there:
                t = own.exponential(self.between_s)
            while t < horizon_s or not there:
                if there:
                    moves.append((t, device, False))
                t += own.exponential(self.away_s)
                moves.append((t, device, True))
                t, there = t + own.exponential(self.between_s), True
        return Faults(moves=tuple(sorted(moves)))


@dataclass(frozen=True, slots=True)
class CutLinks:
    """`inner` with partitions on it; its clock is at 0 when the run's is at `start_s`. A link that is cut
    carries nothing until it is whole again."""

    inner: LinkSource
    region: dict[str, str]
    partitions: tuple[Partition, ...]
    start_s: float

    def link(self, src: str, dst: str, now_s: float) -> LinkNow:
        link = self.inner.link(src, dst, now_s)
        t = self.start_s + now_s
        for p in self.partitions:
            if not p.cuts(self.region.get(src, ""), self.region.get(dst, "")) or p.until_s <= t:
                continue
            if p.from_s <= t:
                link = replace(link, bandwidth_Bps=0.0, until_s=min(link.until_s, p.until_s - self.start_s))
            else:
                link = replace(link, until_s=min(link.until_s, p.from_s - self.start_s))
        return link
