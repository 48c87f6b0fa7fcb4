"""Transfers as fluids: each link a queue, rates shared max-min fairly where links meet, all over time.

The model:

- A directed link carries one transfer at a time, at most at its bandwidth of the moment (for a link
  of several streams min(bandwidth, streams x window / round trip), which its source works out).
- Transfers in flight share the network cards of the hosts they leave and enter, and the way out of
  the region they leave (`limits.py`), max-min fairly. Rates are worked out anew when a transfer
  starts or ends or its link changes, for the transfers that this can touch and no others.
- The last byte is there one latency after it left, give or take the link's jitter, never before what
  was sent earlier over the same link.
- A lost packet takes one stream of the link out for a round trip and leaves it at half its rate for
  RECOVERY_ROUND_TRIPS more; a loss in that time begins it anew.

A link that shares nothing and never changes needs none of this, and takes
start + bytes / bandwidth + latency exactly. Knows nothing of plans.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf

from scheduler.clock import At, Happening
from scheduler.fair_share import Limit, affected, max_min
from scheduler.lane import Lane, Transfer
from scheduler.limits import Limits, limits_of
from scheduler.network import LinkNow, Links, LinkSource
from scheduler.topology import Topology


class FlowNetwork:
    """Links as `source` knows them, sharing what `limits` say. Chance (jitter, losses) is drawn from
    `seed` and each link's name."""

    def __init__(self, source: LinkSource, limits: Limits | None = None, seed: int | str = 0) -> None:
        self._source, self._limits, self._seed = source, limits or Limits(), seed

    def over(self, wrap: Callable[[LinkSource], LinkSource]) -> FlowNetwork:
        """The same network, its links as `wrap` makes them."""
        return FlowNetwork(wrap(self._source), self._limits, self._seed)

    def open(self, at: At) -> Links:
        return _FlowLinks(self._source, self._limits, self._seed, at)


class TopologyNetwork(FlowNetwork):
    """Links that stay as they were measured, each of `streams` flows, and the cards their devices share."""

    def __init__(self, topology: Topology, streams: int = 0) -> None:
        striped = topology.striped(streams) if streams else topology
        super().__init__(_Measured(striped), limits_of(topology.devices, topology.egress_Bps))


class _Measured:
    """A topology as a source of links."""

    def __init__(self, topology: Topology) -> None:
        self._index = {d.name: i for i, d in enumerate(topology.devices)}
        self._latency_s: list[list[float]] = topology.latency_s.tolist()
        self._bandwidth_Bps: list[list[float]] = topology.bandwidth_Bps.tolist()

    def link(self, src: str, dst: str, now_s: float) -> LinkNow:  # noqa: ARG002
        i, j = self._index[src], self._index[dst]
        return LinkNow(self._latency_s[i][j], self._bandwidth_Bps[i][j])


class _FlowLinks:
    """The links of one replay."""

    def __init__(self, source: LinkSource, limits: Limits, seed: int | str, at: At) -> None:
        self._source, self._known_limits, self._seed, self._at = source, limits, seed, at
        self._lanes: dict[tuple[str, str], Lane] = {}
        self._limits: dict[str, Limit] = {}
        self._changed: dict[Limit, None] = {}
        """Limits whose shares have to be worked out again at this moment."""

    def send(self, src: str, dst: str, n_bytes: float, now_s: float, arrived: Happening) -> None:
        if src == dst:
            self._at(now_s, arrived)
            return
        lane = self._lanes.get((src, dst)) or self._new_lane(src, dst, now_s)
        if lane.plain:
            lane.free_s = max(now_s, lane.free_s) + n_bytes / lane.link.bandwidth_Bps
            self._at(lane.free_s + lane.link.latency_s, arrived)
            return
        lane.waiting.append((n_bytes, arrived))
        if lane.transfer is None:
            self._begin(lane, now_s)

    def _new_lane(self, src: str, dst: str, now_s: float) -> Lane:
        passed = self._known_limits.between(src, dst)
        limits = tuple(self._limits.setdefault(name, Limit(capacity)) for name, capacity in passed)
        link = self._source.link(src, dst, now_s)
        lane = Lane(src, dst, link, limits, self._seed)
        self._lanes[src, dst] = lane
        return lane

    # ---- a transfer's life

    def _begin(self, lane: Lane, now_s: float) -> None:
        if now_s >= lane.link.until_s:
            lane.become(self._source.link(lane.src, lane.dst, now_s))
        self._watch(lane)
        n_bytes, arrived = lane.waiting.popleft()
        lane.transfer = Transfer(lane, n_bytes, now_s, arrived)
        lane.transfer.enter()
        self._touch(lane.transfer, now_s)

    def _reach(self, transfer: Transfer, version: int, now_s: float) -> None:
        """The transfer is at its next moment, unless its rate has changed since that was worked out."""
        if version != transfer.version:
            return
        loses = transfer.loses_next
        transfer.progress(now_s)
        if loses:
            lane = transfer.lane
            for later_s in lane.lose(now_s):
                self._at(later_s, partial(self._change, lane, later_s))
            self._change(lane, now_s)
            self._look_ahead(transfer)
        else:
            self._leave(transfer, now_s)

    def _leave(self, transfer: Transfer, now_s: float) -> None:
        lane = transfer.lane
        transfer.version += 1
        transfer.leave()
        lane.transfer = None
        if transfer.limits:
            self._touch(transfer, now_s)
        self._at(lane.arrival_s(now_s), transfer.arrived)
        if lane.waiting:
            self._begin(lane, now_s)

    # ---- rates

    def _touch(self, transfer: Transfer, now_s: float) -> None:
        """The transfer came, went or changed: work out what follows, once for all of this moment."""
        if not transfer.limits:
            self._set_rate(transfer, transfer.cap_Bps, now_s)
            return
        if not self._changed:
            self._at(now_s, partial(self._share, now_s))
        self._changed.update(dict.fromkeys(transfer.limits))

    def _share(self, now_s: float) -> None:
        shares, binding = affected(self._changed)
        self._changed.clear()
        for share, rate_Bps in zip(shares, max_min(shares, binding), strict=True):
            assert isinstance(share, Transfer)
            self._set_rate(share, rate_Bps, now_s)

    def _set_rate(self, transfer: Transfer, rate_Bps: float, now_s: float) -> None:
        if rate_Bps != transfer.rate_Bps:
            transfer.progress(now_s)
            transfer.rate_Bps = rate_Bps
            self._look_ahead(transfer)

    def _look_ahead(self, transfer: Transfer) -> None:
        transfer.version += 1
        next_s = transfer.next_s()
        if next_s < inf:
            self._at(next_s, partial(self._reach, transfer, transfer.version, next_s))

    # ---- links change

    def _change(self, lane: Lane, now_s: float) -> None:
        """What the lane carries by itself may be another from now on."""
        transfer = lane.transfer
        if transfer is not None:
            transfer.progress(now_s)
            transfer.cap_Bps = lane.cap_at(now_s)
            self._touch(transfer, now_s)

    def _watch(self, lane: Lane) -> None:
        if not lane.watched and lane.link.until_s < inf:
            lane.watched = True
            self._at(lane.link.until_s, partial(self._expire, lane, lane.link.until_s))

    def _expire(self, lane: Lane, now_s: float) -> None:
        """The link is no longer what it was. One that carries nothing is asked when it is needed."""
        lane.watched = False
        if lane.transfer is None:
            return
        lane.transfer.progress(now_s)
        lane.become(self._source.link(lane.src, lane.dst, now_s))
        self._watch(lane)
        self._change(lane, now_s)
        self._look_ahead(lane.transfer)
