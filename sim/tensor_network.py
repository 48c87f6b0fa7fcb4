"""A network over time as tensor groups see it: `t` devices, as they stand, in the place of one.

What a group costs and carries is `scheduler/tensor_parallel.py`'s; here it moves with the trace. What the
group's own devices send each other is priced as the links are when it plans. Knows no plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from scheduler.flows import FlowNetwork
from scheduler.limits import limits_of
from scheduler.network import LinkNow, LinkSource
from scheduler.tensor_parallel import grouped_links
from scheduler.topology import Device, Topology
from sim.network import NetworkOverTime


@dataclass(frozen=True, slots=True)
class TensorNetwork:
    inner: NetworkOverTime
    t: int

    @property
    def devices(self) -> tuple[Device, ...]:
        return self.topology(0.0).devices

    def topology(self, t_s: float) -> Topology:
        return grouped_links(self.inner.topology(t_s), self.t)

    def network(self, t_s: float, streams: int) -> FlowNetwork:
        names = [d.name for d in self.inner.devices]
        members = {names[k]: tuple(names[k : k + self.t]) for k in range(0, len(names), self.t)}
        now = self.topology(t_s)
        limits = limits_of(now.devices, now.egress_Bps)
        return self.inner.network(t_s, streams).over(lambda source: _Counterparts(source, members), limits)

    def next_change_s(self, t_s: float) -> float:
        return self.inner.next_change_s(t_s)


@dataclass(frozen=True, slots=True)
class _Counterparts:
    """The links between devices in the same place of two groups, together: as slow as the slowest."""

    inner: LinkSource
    members: Mapping[str, tuple[str, ...]]

    def link(self, src: str, dst: str, now_s: float) -> LinkNow:
        pairs = zip(self.members[src], self.members[dst], strict=True)
        links = [self.inner.link(a, b, now_s) for a, b in pairs]
        slowest = min(links, key=lambda x: x.bandwidth_Bps)
        return replace(
            slowest,
            latency_s=max(x.latency_s for x in links),
            bandwidth_Bps=len(links) * slowest.bandwidth_Bps,
            until_s=min(x.until_s for x in links),
            jitter_s=max(x.jitter_s for x in links),
            loss=max(x.loss for x in links),
            round_trip_s=max(x.round_trip_s for x in links),
            streams=sum(x.streams for x in links),
        )
