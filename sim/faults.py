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
    """All that goes wrong, in seconds since the start of the run."""

    crashes: frozenset[tuple[int, int]] = frozenset()
    """(rank, step): its device's process dies in the middle of that step, the first time it is run."""
    moves: tuple[tuple[float, str, bool], ...] = ()
    """(when, device, whether it comes), ascending."""
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


def drawn(
    devices: Sequence[str], between_s: float, away_s: float, horizon_s: float, rng: np.random.Generator
) -> Faults:
    """Each device leaves after a time drawn with mean `between_s` and is back after one with mean `away_s`,
    again and again until `horizon_s`."""
    faults = Faults()
    for device in devices:
        t = rng.exponential(between_s)
        while t < horizon_s:
            back = t + rng.exponential(away_s)
            faults = faults.leave(device, t).join(device, back)
            t = back + rng.exponential(between_s)
    return faults


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
