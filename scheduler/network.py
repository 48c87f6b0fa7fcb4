"""What the engine asks of a network: when do these bytes leave, and when are they there?

The engine keeps each link's queue; a network only knows how fast a link is at a moment, so a
recorded trace can stand in for a measured topology. Knows nothing of plans or of tensors.
"""

from __future__ import annotations

from typing import Protocol

from scheduler.topology import Topology


class Network(Protocol):
    """Directed links between devices, by name."""

    def transfer(self, src: str, dst: str, n_bytes: float, start_s: float) -> tuple[float, float]:
        """(last byte left, last byte arrived), in seconds, for a transfer that has the link to itself
        from `start_s` on. Calls for one link come in the order of their start."""


class TopologyNetwork:
    """Links that stay as they were measured: left = start + bytes / bandwidth, arrived = left + latency."""

    def __init__(self, topology: Topology) -> None:
        self._index = {d.name: i for i, d in enumerate(topology.devices)}
        self._latency_s: list[list[float]] = topology.latency_s.tolist()
        self._bandwidth_Bps: list[list[float]] = topology.bandwidth_Bps.tolist()

    def transfer(self, src: str, dst: str, n_bytes: float, start_s: float) -> tuple[float, float]:
        if src == dst:
            return start_s, start_s
        i, j = self._index[src], self._index[dst]
        left_s = start_s + n_bytes / self._bandwidth_Bps[i][j]
        return left_s, left_s + self._latency_s[i][j]


class FreeNetwork:
    """Links that take no time: the schedule's own bubble is all that is left."""

    def transfer(self, src: str, dst: str, n_bytes: float, start_s: float) -> tuple[float, float]:  # noqa: ARG002
        return start_s, start_s
