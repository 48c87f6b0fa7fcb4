"""What transfers of several links share: network cards of hosts, ways out of regions. Data, no time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from scheduler.topology import Device


@dataclass(frozen=True, slots=True)
class Limits:
    """Hosts and regions by device; capacities in bytes a second by host or region. What is not named
    has no limit."""

    host: dict[str, str] = field(default_factory=dict)
    """Device -> its host, by default itself; transfers within a host pass no network card."""
    region: dict[str, str] = field(default_factory=dict)
    uplink_Bps: dict[str, float] = field(default_factory=dict)
    """Of a host's network card, all its devices together."""
    downlink_Bps: dict[str, float] = field(default_factory=dict)
    egress_Bps: dict[str, float] = field(default_factory=dict)
    """Of everything that leaves a region for another."""

    def between(self, src: str, dst: str) -> tuple[tuple[str, float], ...]:
        """(name, capacity) of every limit that a transfer from `src` to `dst` passes."""
        a, b = self.host.get(src, src), self.host.get(dst, dst)
        if a == b:
            return ()
        passed = []
        if a in self.uplink_Bps:
            passed.append((f"up {a}", self.uplink_Bps[a]))
        if b in self.downlink_Bps:
            passed.append((f"down {b}", self.downlink_Bps[b]))
        region = self.region.get(src, "")
        if region in self.egress_Bps and region != self.region.get(dst, ""):
            passed.append((f"out of {region}", self.egress_Bps[region]))
        return tuple(passed)


def limits_of(devices: Sequence[Device], egress_Bps: Mapping[str, float]) -> Limits:
    """The cards that `devices` name, and the ways out of regions. Devices of one host share one card;
    where they disagree about it, the least is the safe reading."""
    uplink: dict[str, float] = {}
    downlink: dict[str, float] = {}
    for d in devices:
        for card, value in ((uplink, d.uplink_Bps), (downlink, d.downlink_Bps)):
            if value > 0:
                card[d.host or d.name] = min(value, card.get(d.host or d.name, inf))
    return Limits(
        {d.name: d.host or d.name for d in devices},
        {d.name: d.region for d in devices},
        uplink,
        downlink,
        dict(egress_Bps),
    )
