"""Which devices a coordinator can count on at a moment: they have come, not left, and are in reach."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf

from scheduler.topology import Device
from sim.faults import Faults, Partition


def there_at_first(
    devices: Sequence[Device], faults: Faults, start_s: float, measure_s: float = 0.0
) -> list[str]:
    """Who can be planned with when the run begins; nobody plans round a partition."""
    region = {d.name: d.region for d in devices}
    return Presence(region, replace(faults, partitions=()), "", measure_s).at(start_s)


class Presence:
    """`region`: by device. A device whose first move is to come was not there before it; who comes counts
    once it is profiled and its links are measured, `measure_s` later.

    The coordinator stands in one region, `coordinator`; a partition takes away who is on its other side.
    """

    def __init__(
        self, region: Mapping[str, str], faults: Faults, coordinator: str, measure_s: float = 0.0
    ) -> None:
        self._region, self._partitions, self._coordinator = dict(region), faults.partitions, coordinator
        self._moves: dict[str, list[tuple[float, bool]]] = {name: [] for name in region}
        self._at_first: dict[str, bool] = {}
        for at_s, name, comes in faults.moves:
            moves = self._moves[name]
            self._at_first.setdefault(name, not comes)
            if comes:
                moves.append((at_s + measure_s, True))
            elif moves and moves[-1][1] and moves[-1][0] > at_s:
                moves.pop()  # gone before it was measured
            else:
                moves.append((at_s, False))

    def at(self, t_s: float) -> list[str]:
        """Who is there at `t_s`, in the order of the devices."""
        return [n for n in self._region if self._has_come(n, t_s) and not self._is_cut_off(n, t_s)]

    def _has_come(self, name: str, t_s: float) -> bool:
        moves = self._moves[name]
        i = bisect_right([at_s for at_s, _ in moves], t_s)
        return moves[i - 1][1] if i else self._at_first.get(name, True)

    def _is_cut_off(self, name: str, t_s: float) -> bool:
        return any(p.from_s <= t_s < p.until_s and self.loses(p, name) for p in self._partitions)

    def loses(self, partition: Partition, name: str) -> bool:
        """Whether `partition` stands between the coordinator and a device."""
        return partition.cuts(self._region[name], self._coordinator)

    def came_back(self, name: str, left_s: float, now_s: float) -> bool:
        """Whether a device that left at `left_s` has come again by now."""
        return any(comes and left_s < at_s <= now_s for at_s, comes in self._moves[name])

    def left_between(self, name: str, from_s: float, until_s: float) -> bool:
        """Whether a device left, or was cut off, at some time of from_s < t <= until_s."""
        left = any(not comes and from_s < at_s <= until_s for at_s, comes in self._moves[name])
        cut = (p for p in self._partitions if from_s < p.from_s <= until_s and self.loses(p, name))
        return left or any(cut)

    def next_arrival_s(self, t_s: float) -> float:
        """When somebody comes or a partition ends, after `t_s`; inf: never."""
        moments = [at_s for moves in self._moves.values() for at_s, comes in moves if comes]
        moments += [p.until_s for p in self._partitions]
        return min((t for t in moments if t > t_s), default=inf)
