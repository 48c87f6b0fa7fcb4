"""A network that plans run on over time: measured once, or recorded and moving.

Turns what a trace says, and what it leaves open (`Conventions`), into the engine's network and the
planner's topology of a moment. Knows devices and links; no plan, no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf, isnan, nan
from typing import Literal, Protocol

import numpy as np

from scheduler.flows import FlowNetwork, TopologyNetwork
from scheduler.limits import limits_of
from scheduler.network import LinkNow
from scheduler.topology import Device, Matrix, Topology
from scheduler.trace import LinkState, Sampler, Trace, TraceError

MIN_RTT_S = 1e-5
"""Below this a window limits nothing that matters, and a recorded 0 is a clock's resolution."""


class NetworkOverTime(Protocol):
    """Devices and the links between them at any moment of a run."""

    @property
    def devices(self) -> tuple[Device, ...]: ...

    def topology(self, t_s: float) -> Topology:
        """The links as they are at `t_s`, for whoever plans then."""

    def network(self, t_s: float, streams: int) -> FlowNetwork:
        """The links from `t_s` on, each of `streams` flows (0: as many as fill it), for the engine."""

    def next_change_s(self, t_s: float) -> float:
        """When links are next other than at `t_s`; t_s itself where chance plays a part."""


@dataclass(frozen=True, slots=True)
class StillNetwork:
    """Links that stay as they are."""

    still: Topology

    @property
    def devices(self) -> tuple[Device, ...]:
        return self.still.devices

    def topology(self, t_s: float) -> Topology:  # noqa: ARG002
        return self.still

    def network(self, t_s: float, streams: int) -> FlowNetwork:  # noqa: ARG002
        return TopologyNetwork(self.still, streams)

    def next_change_s(self, t_s: float) -> float:  # noqa: ARG002
        return inf


@dataclass(frozen=True, slots=True)
class Conventions:
    """How a trace's figures are read, and what is taken where it has none.

    A link carries min(cap, streams x flow). A trace of single flows gives the flow; the cap is `cap_Bps`
    or, where nobody knows it, what the one flow was seen to carry. A trace of whole links gives the cap;
    the flow is window / round trip, or all of it without a window.
    """

    delay: Literal["", "paper", "physical"] = ""
    """One-way delay by name (`scheduler.trace.CONVENTIONS`); '': as the trace's own factor says."""
    cap_Bps: float = 0.0
    """What a link carries at most, however many flows; 0: unknown."""
    window_bytes: float = 0.0
    """Of one TCP flow; 0: flows have no window."""
    seed: int = 0
    """Of jitter and losses."""


def devices_of(trace: Trace) -> tuple[Device, ...]:
    """Each node's devices: `Oregon-0`, `Oregon-1`, …, or `Oregon` where there is one; region = the node."""
    return tuple(
        Device(f"{n.name}-{i}" if n.n_devices > 1 else n.name, region=n.name)
        for n in trace.nodes.values()
        for i in range(n.n_devices)
    )


@dataclass(frozen=True, slots=True)
class _Flow:
    """A link by the conventions: what it carries at most, and what one flow does."""

    cap_Bps: float
    flow_Bps: float

    def carries(self, streams: int) -> float:
        return min(self.cap_Bps, streams * self.flow_Bps) if streams else self.cap_Bps


class TraceNetwork:
    """`trace` with `devices` on it, each at the node that its region names.

    Raises TraceError when a device stands nowhere, when a link that is needed is not in the trace, and when
    a figure is unknown that no convention replaces.
    """

    def __init__(
        self,
        trace: Trace,
        devices: tuple[Device, ...] = (),
        conventions: Conventions = Conventions(),
        egress_Bps: Mapping[str, float] | None = None,
    ) -> None:
        self.trace = trace.under(conventions.delay) if conventions.delay else trace
        self.devices = devices or devices_of(trace)
        self._conventions = conventions
        self._egress_Bps = dict(egress_Bps or {})
        self._single = "single" in trace.about.bw_kind.lower()
        self._node = {d.name: d.region for d in self.devices}
        lost = [
            f"{d.name} (region {d.region or 'unknown'})" for d in self.devices if d.region not in trace.nodes
        ]
        if lost:
            raise TraceError(
                f"{trace.name}: found devices at no node of it: {', '.join(lost)}; "
                f"required regions among: {', '.join(trace.nodes)}"
            )
        if not trace.links and len(self.devices) > 1:
            raise TraceError(f"{trace.name}: found no link, required one for every pair of places")
        places = list(dict.fromkeys(self._node.values()))
        for a in places:
            for b in places:
                if a != b and (a, b) not in trace.links:
                    raise TraceError(
                        f"{trace.name}: found no link {a} -> {b}, required one: its devices talk"
                    )
        self._sampler = Sampler(self.trace) if trace.links else None
        self._changes_s = trace.change_times_s() if trace.links else np.zeros(0)
        self._chancy = any(
            (link.jitter_s > 0).any() or (link.loss > 0).any() for link in trace.links.values()
        )
        self._limits = limits_of(self.devices, self._egress_Bps)

    # ---- for planners

    def topology(self, t_s: float) -> Topology:
        """All links at `t_s`; the two matrices of bandwidth are cap and flow."""
        if self._sampler is None:
            return Topology(self.devices, np.zeros((1, 1)), np.ones((1, 1)))
        nodes = self._sampler.names
        place = {name: k for k, name in enumerate(nodes)}
        at = np.array([place[d.region] for d in self.devices])
        n = len(nodes)
        latency_s, cap_Bps, flow_Bps = np.zeros((n, n)), np.ones((n, n)), np.ones((n, n))
        now = self._sampler.at(t_s)
        used = sorted(set(at.tolist()))
        crowded = {k for k in used if (at == k).sum() > 1}
        for i in used:
            for j in used:
                if i == j and i not in crowded:
                    continue
                where = (nodes[i], nodes[j])
                latency_s[i, j] = self._delay_s(where, float(now.one_way_s[i, j]), t_s)
                link = self._flow(where, float(now.rtt_s[i, j]), float(now.bandwidth_Bps[i, j]), t_s)
                cap_Bps[i, j], flow_Bps[i, j] = link.cap_Bps, link.flow_Bps
        cells = np.ix_(at, at)
        flows: Matrix | None = flow_Bps[cells] if (flow_Bps < cap_Bps).any() else None
        return Topology(self.devices, latency_s[cells], cap_Bps[cells], flows, self._egress_Bps)

    def _delay_s(self, where: tuple[str, str], one_way_s: float, t_s: float) -> float:
        if isnan(one_way_s):
            raise TraceError(
                f"{self.trace.name}: {where[0]} -> {where[1]} at {t_s:g} s: found no delay, required one "
                "(rtt_ms, and one_way_factor or a convention; intra_node for devices of one place)"
            )
        return one_way_s

    def _flow(self, where: tuple[str, str], rtt_s: float, recorded_Bps: float, t_s: float) -> _Flow:
        c = self._conventions
        window_Bps = c.window_bytes / max(rtt_s, MIN_RTT_S) if c.window_bytes and not isnan(rtt_s) else inf
        if isnan(recorded_Bps):
            cap_Bps = c.cap_Bps or window_Bps
            if cap_Bps == inf:
                raise TraceError(
                    f"{self.trace.name}: {where[0]} -> {where[1]} at {t_s:g} s: found no bandwidth; "
                    "required one, or a window (--window-bytes) or a cap (--cap-mbps) to take instead"
                )
            return _Flow(cap_Bps, min(cap_Bps, window_Bps))
        if self._single and where[0] != where[1]:
            cap_Bps = max(c.cap_Bps, recorded_Bps)
            return _Flow(cap_Bps, recorded_Bps)
        cap_Bps = min(recorded_Bps, c.cap_Bps or inf)
        return _Flow(cap_Bps, min(cap_Bps, window_Bps))

    # ---- for the engine

    def network(self, t_s: float, streams: int) -> FlowNetwork:
        seed = f"{self._conventions.seed} {t_s}"  # every step has luck of its own
        return FlowNetwork(_Links(self, t_s, streams), self._limits, seed)

    def next_change_s(self, t_s: float) -> float:
        if self._chancy:
            return t_s
        following = int(np.searchsorted(self._changes_s, t_s, side="right"))
        return float(self._changes_s[following]) if following < len(self._changes_s) else inf

    def link(self, src: str, dst: str, t_s: float, streams: int) -> LinkNow:
        """The link between two devices at `t_s` of the trace; `until_s` counts on the trace's clock."""
        where = self._node[src], self._node[dst]
        state, until_s = self._within() if where[0] == where[1] else self._between(where, t_s)
        rtt_s, one_way_s, recorded_Bps = (
            nan if x is None else x for x in (state.rtt_s, state.one_way_s, state.bandwidth_Bps)
        )
        return LinkNow(
            self._delay_s(where, one_way_s, t_s),
            self._flow(where, rtt_s, recorded_Bps, t_s).carries(streams),
            until_s,
            state.jitter_s or 0.0,
            state.loss or 0.0,
            rtt_s,
            max(1, streams),
        )

    def _between(self, where: tuple[str, str], t_s: float) -> tuple[LinkState, float]:
        times_s = self.trace.links[where].times_s
        following = self.trace.links[where].index_at(t_s) + 1
        until_s = float(times_s[following]) if following < len(times_s) else inf
        return self.trace.at(t_s, *where), until_s

    def _within(self) -> tuple[LinkState, float]:
        about = self.trace.about
        known = about.within_rtt_s is not None and about.one_way_factor is not None
        one_way_s = about.within_rtt_s * about.one_way_factor if known else None  # type: ignore[operator]
        return LinkState(about.within_rtt_s, one_way_s, about.within_bandwidth_Bps), inf


@dataclass(frozen=True, slots=True)
class _Links:
    """A traced network as the engine's source of links, its clock at 0 when the trace's is at `start_s`."""

    traced: TraceNetwork
    start_s: float
    streams: int

    def link(self, src: str, dst: str, now_s: float) -> LinkNow:
        link = self.traced.link(src, dst, self.start_s + now_s, self.streams)
        return replace(link, until_s=link.until_s - self.start_s)
