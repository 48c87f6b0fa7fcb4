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
from functools import cached_property, partial
from math import inf
from typing import TYPE_CHECKING

from scheduler.clock import At, Happening
from scheduler.lane import Lane
from scheduler.limits import Limits, limits_of
from scheduler.network import LinkNow, Links, LinkSource
from scheduler.topology import Topology

if TYPE_CHECKING:
    from scheduler.crowd import Crowd


class FlowNetwork:
    """Links as `source` knows them, sharing what `limits` say. Chance (jitter, losses) is drawn from
    `seed` and each link's name."""

    def __init__(self, source: LinkSource, limits: Limits | None = None, seed: int | str = 0) -> None:
        self._source, self._limits, self._seed = source, limits or Limits(), seed

    def over(self, wrap: Callable[[LinkSource], LinkSource], limits: Limits | None = None) -> FlowNetwork:
        """The same network, its links as `wrap` makes them, sharing `limits` instead if given."""
        return FlowNetwork(wrap(self._source), self._limits if limits is None else limits, self._seed)

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
        self._limits: dict[str, int] = {}
        self._carrying: dict[int, Lane] = {}
        """By slot of the crowd."""
        self._changed: dict[int, None] = {}
        """Limits whose shares have to be worked out again at this moment."""
        self._version = 0
        """Changes whenever the next moment of interest does, which makes an earlier one void."""

    @cached_property
    def _crowd(self) -> Crowd:
        """Of the transfers in flight; imported where there is a lane that is not plain."""
        from scheduler.crowd import Crowd

        return Crowd()

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
        if lane.slot < 0:
            self._begin(lane, now_s)
            self._look_ahead()

    def _new_lane(self, src: str, dst: str, now_s: float) -> Lane:
        passed = self._known_limits.between(src, dst)
        for name, capacity_Bps in passed:
            if name not in self._limits:
                self._limits[name] = self._crowd.limit(capacity_Bps)
        link = self._source.link(src, dst, now_s)
        lane = Lane(src, dst, link, tuple(self._limits[name] for name, _ in passed), self._seed)
        self._lanes[src, dst] = lane
        return lane

    # ---- a transfer's life

    def _begin(self, lane: Lane, now_s: float) -> None:
        if now_s >= lane.link.until_s:
            lane.become(self._source.link(lane.src, lane.dst, now_s))
        self._watch(lane)
        n_bytes, lane.arrived = lane.waiting.popleft()
        cap_Bps = lane.cap_at(now_s)
        lane.slot = self._crowd.enter(lane.limits, cap_Bps, n_bytes, lane.to_loss_bytes, now_s)
        self._carrying[lane.slot] = lane
        self._touch(lane, now_s)

    def _reach(self, slot: int, version: int, now_s: float) -> None:
        """A transfer and perhaps others are at their next moment, unless rates have changed since that was
        worked out."""
        if version != self._version:
            return
        next_s = now_s
        while next_s <= now_s:
            lane = self._carrying[slot]
            if lane.to_loss_bytes == inf or not self._loses(lane, now_s):
                self._leave(lane, now_s)
            slot, next_s = self._crowd.first_due()
        self._look_ahead()

    def _loses(self, lane: Lane, now_s: float) -> bool:
        """Whether a packet is lost now, not the last byte sent; if so, what follows from it."""
        left_bytes, lane.to_loss_bytes = self._crowd.progress(lane.slot, now_s)
        if lane.to_loss_bytes >= left_bytes:
            return False
        for later_s in lane.lose(now_s):
            self._at(later_s, partial(self._change, lane, later_s))
        self._crowd.set_to_loss(lane.slot, lane.to_loss_bytes)
        self._change(lane, now_s)
        return True

    def _leave(self, lane: Lane, now_s: float) -> None:
        lane.to_loss_bytes = self._crowd.leave(lane.slot)
        del self._carrying[lane.slot]
        lane.slot = -1
        self._touch(lane, now_s)
        assert lane.arrived is not None
        self._at(lane.arrival_s(now_s), lane.arrived)
        if lane.waiting:
            self._begin(lane, now_s)

    # ---- rates

    def _touch(self, lane: Lane, now_s: float) -> None:
        """What the lane carries came, went or changed: share anew, once for all of this moment."""
        if lane.limits:
            if not self._changed:
                self._at(now_s, partial(self._share, now_s))
            for limit in lane.limits:
                self._changed[limit] = None

    def _share(self, now_s: float) -> None:
        changed = list(self._changed)
        self._changed.clear()
        self._crowd.share(changed, now_s)
        self._look_ahead()

    def _look_ahead(self) -> None:
        """Be there when something ends or loses a packet next."""
        if self._changed:
            return  # nobody knows before they are shared
        self._version += 1
        slot, next_s = self._crowd.first_due()
        if next_s < inf:
            self._at(next_s, partial(self._reach, slot, self._version, next_s))

    # ---- links change

    def _change(self, lane: Lane, now_s: float) -> None:
        """What the lane carries by itself may be another from now on."""
        if lane.slot >= 0:
            self._crowd.progress(lane.slot, now_s)
            self._crowd.set_cap(lane.slot, lane.cap_at(now_s), now_s)
            self._touch(lane, now_s)
            self._look_ahead()

    def _watch(self, lane: Lane) -> None:
        if not lane.watched and lane.link.until_s < inf:
            lane.watched = True
            self._at(lane.link.until_s, partial(self._expire, lane, lane.link.until_s))

    def _expire(self, lane: Lane, now_s: float) -> None:
        """The link is no longer what it was. One that carries nothing is asked when it is needed."""
        lane.watched = False
        if lane.slot < 0:
            return
        _, lane.to_loss_bytes = self._crowd.progress(lane.slot, now_s)
        lane.become(self._source.link(lane.src, lane.dst, now_s))
        self._crowd.set_to_loss(lane.slot, lane.to_loss_bytes)
        self._watch(lane)
        self._change(lane, now_s)
