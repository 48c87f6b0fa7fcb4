"""The in-memory transport: ranks of one process, with the semantics of a network but none of it.

Shipped, not only for tests: several workers in one process (threads) can train over it. Payloads
are copied on delivery, so that a receiver may write to them, as with frames off a wire.
"""

from __future__ import annotations

import threading
from collections import defaultdict

from worker.lane import Lane
from worker.limits import Limits, cost_bytes
from worker.mailbox import Mailbox
from worker.outgoing import check_outgoing
from worker.transport import Frame, FrameKey, LinkStats, TransportAborted, TransportStats, is_beside

Place = tuple[int, bool]
"""A rank, of a plan or of what goes on beside it."""


def _place(rank: int, version: int) -> Place:
    return rank, is_beside(version)


class MemoryHub:
    """Connects the ranks of one process. A frame for a plan that its destination has not opened yet
    is held; one for an older plan is dropped and counted there."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.lock = threading.RLock()
        self._open: dict[Place, MemoryTransport] = {}
        self._held: dict[Place, list[tuple[MemoryTransport, Frame]]] = defaultdict(list)

    def attach(self, transport: MemoryTransport) -> None:
        with self.lock:
            place = _place(transport.rank, transport.plan_version)
            self._open[place] = transport
            for sender, frame in self._held.pop(place, []):
                self.deliver(sender, frame)

    def detach(self, transport: MemoryTransport) -> None:
        with self.lock:
            place = _place(transport.rank, transport.plan_version)
            if self._open.get(place) is transport:
                del self._open[place]

    def deliver(self, sender: MemoryTransport, frame: Frame) -> None:
        with self.lock:
            place = _place(frame.dst, frame.plan_version)
            to = self._open.get(place)
            if to is None or to.plan_version < frame.plan_version:
                self._held[place].append((sender, frame))
            elif to.plan_version > frame.plan_version:
                to.link(frame.key.src).dropped_stale += 1
                sender.credit(frame.dst, frame.key.kind, cost_bytes(frame))
            else:
                to.take(frame)

    def credit(self, plan_version: int, sender: int, receiver: int, kind: str, cost: int) -> None:
        with self.lock:
            back = self._open.get(_place(sender, plan_version))
            if back is not None and back.plan_version == plan_version:
                back.credit(receiver, kind, cost)


class MemoryTransport:
    """One rank's end of a MemoryHub, for one plan. Implements `worker.transport.Transport`."""

    def __init__(self, hub: MemoryHub, rank: int, plan_version: int) -> None:
        self.rank = rank
        self.plan_version = plan_version
        self._hub = hub
        self._room = threading.Condition(hub.lock)
        self._lanes: dict[tuple[int, str], Lane[Frame]] = {}
        self._pumping: Lane[Frame] | None = None
        self._stats = TransportStats()
        self._reason: str | None = None
        self._mailbox = Mailbox(
            lambda src, kind, cost: hub.credit(plan_version, src, rank, kind, cost)
        )  # fmt: skip
        hub.attach(self)

    def send(self, frame: Frame) -> None:
        check_outgoing(frame, self.rank, self.plan_version, self._hub.limits)
        cost, lane_key = cost_bytes(frame), (frame.dst, frame.key.kind)
        limits = self._hub.limits
        with self._room:
            lane = self._lanes.setdefault(lane_key, Lane(limits.credit_bytes, limits.queue_bytes))
            while self._reason is None and not lane.has_room(cost):
                self._room.wait()
            if self._reason is not None:
                raise TransportAborted(self._reason)
            lane.push(cost, frame)
            link = self.link(frame.dst)
            link.frames += 1
            link.sent_bytes += frame.n_bytes
            self._pump(lane)

    def _pump(self, lane: Lane[Frame]) -> None:
        if lane is self._pumping:
            return  # a delivery below gave credit back at once; the loop of the outer call goes on
        before, self._pumping = self._pumping, lane
        while (frame := lane.pop()) is not None:
            self._hub.deliver(self, frame)
            self._room.notify_all()
        self._pumping = before

    def credit(self, receiver: int, kind: str, cost: int) -> None:
        """The receiver consumed a frame: what waited for the credit may go."""
        with self._room:
            lane = self._lanes.get((receiver, kind))
            if lane is not None and self._reason is None:
                lane.acknowledge(cost)
                self._pump(lane)

    def take(self, frame: Frame) -> None:
        """A frame of this plan came for this rank."""
        self.link(frame.key.src).received_bytes += frame.n_bytes
        payload = tuple(memoryview(bytearray(p)) for p in frame.payload)
        self._mailbox.put(
            Frame(frame.key, frame.dst, frame.plan_version, frame.codec, frame.dtype, frame.shape, payload,
                  frame.buffer_version)
        )  # fmt: skip

    def link(self, peer: int) -> LinkStats:
        return self._stats.links.setdefault(peer, LinkStats())

    def receive(self, key: FrameKey, timeout_s: float) -> Frame:
        return self._mailbox.receive(key, timeout_s)

    def ready(self, key: FrameKey) -> bool:
        return self._mailbox.ready(key)

    def abort(self, reason: str) -> None:
        with self._room:
            if self._reason is None:
                self._reason = reason
            for lane in self._lanes.values():
                lane.clear()
            self._room.notify_all()
        self._mailbox.abort(reason)

    def stats(self) -> TransportStats:
        with self._room:
            return self._stats.copy()

    def close(self) -> None:
        with self._room:
            for lane in self._lanes.values():  # sent is sent: what waits for credit still arrives
                for frame in lane.drain():
                    self._hub.deliver(self, frame)
        self.abort(f"the transport of rank {self.rank} for plan {self.plan_version} was closed")
        self._hub.detach(self)
