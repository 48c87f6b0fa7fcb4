"""One rank's end of one plan over ZeroMQ: what a step calls. Its sockets live in the endpoint's thread.

`send` cuts the frame into messages, queues them in the lane of their (peer, kind) and rings the I/O
thread; `receive` waits at the mailbox. Knows no socket itself; `endpoint.py` opens and owns them.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from worker.addresses import PeerAddress
from worker.lane import Lane
from worker.limits import Limits, cost_bytes
from worker.mailbox import Mailbox
from worker.outgoing import check_outgoing
from worker.striping import Message, piece_bytes, split
from worker.transport import Frame, FrameError, FrameKey, LinkStats, TransportAborted, TransportStats
from worker.wire import frame_header, pack_header

LINGER_S = 5.0
"""How long `close` lets frames leave that were already sent."""


def unheard(peer: int, reason: str) -> None:
    """For plans whose links nobody watches."""


class Endpoint(Protocol):
    """What a transport asks of the endpoint that opened it."""

    limits: Limits

    def ring(self) -> None: ...
    def submit(self, work: Callable[[], None]) -> None: ...
    def release(self, transport: ZmqTransport, linger_s: float) -> None: ...


class ZmqTransport:
    """Implements `worker.transport.Transport`; made by `DataEndpoint.open`."""

    def __init__(
        self,
        endpoint: Endpoint,
        run: int,
        plan_version: int,
        rank: int,
        peers: Mapping[int, PeerAddress],
        streams: int,
        cut: Callable[[int, str], None] = unheard,
    ) -> None:
        self.run = run
        self.plan_version = plan_version
        self.rank = rank
        self.peers = dict(peers)
        self.streams = streams
        self.limits = endpoint.limits
        self.mailbox = Mailbox(self._grant)
        self._endpoint = endpoint
        self._cut: Callable[[int, str], None] | None = cut
        self._changed = threading.Condition()
        self._lanes: dict[int, dict[str, Lane[Iterator[Message]]]] = {rank: {} for rank in peers}
        self._in_sockets = 0
        self._credits: dict[tuple[int, str], int] = defaultdict(int)
        self._stats = TransportStats()
        self._reason: str | None = None
        self._closed = False
        self._frame_number = 0

    # ---- the transport's contract

    def send(self, frame: Frame) -> None:
        check_outgoing(frame, self.rank, self.plan_version, self.limits)
        if frame.dst not in self.peers:
            raise FrameError(
                f"rank {frame.dst} is not a peer of plan {self.plan_version}: {sorted(self.peers)}"
            )
        cost = cost_bytes(frame)
        with self._changed:
            lanes = self._lanes[frame.dst]
            lane = lanes.get(frame.key.kind)
            if lane is None:
                lane = lanes[frame.key.kind] = Lane(self.limits.credit_bytes, self.limits.queue_bytes)
            while self._reason is None and not lane.has_room(cost):
                self._changed.wait()
            if self._reason is not None:
                raise TransportAborted(self._reason)
            self._frame_number += 1
            header_bytes = len(pack_header(frame_header(frame, self.run)))  # raises before it is queued
            chunk_bytes = piece_bytes(frame.n_bytes, self.streams, self.limits.chunk_bytes)
            messages = max(1, -(-frame.n_bytes // chunk_bytes))
            lane.push(cost, split(frame, self.run, self._frame_number, chunk_bytes, self.limits.payload_crc))
            link = self.link(frame.dst)
            link.frames += 1
            link.sent_bytes += frame.n_bytes + messages * header_bytes
        self._endpoint.ring()

    def receive(self, key: FrameKey, timeout_s: float) -> Frame:
        return self.mailbox.receive(key, timeout_s)

    def ready(self, key: FrameKey) -> bool:
        return self.mailbox.ready(key)

    def abort(self, reason: str) -> None:
        with self._changed:
            if self._reason is None:
                self._reason = reason
            for lanes in self._lanes.values():
                for lane in lanes.values():
                    lane.clear()
            self._changed.notify_all()
        self.mailbox.abort(reason)

    def stats(self) -> TransportStats:
        with self._changed:
            return self._stats.copy()

    def close(self) -> None:
        """Let what was sent leave (for LINGER_S at most, not at all after an abort), then release all."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            aborted = self._reason is not None
            deadline = time.monotonic() + LINGER_S
            while self._reason is None and self._unsent():
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    break
        self.abort(f"the transport of rank {self.rank} for plan {self.plan_version} was closed")
        self._endpoint.release(self, 0.0 if aborted else LINGER_S)

    def _unsent(self) -> bool:
        return self._in_sockets > 0 or any(
            len(lane) for lanes in self._lanes.values() for lane in lanes.values()
        )

    # ---- for the I/O thread

    @property
    def aborted(self) -> bool:
        return self._reason is not None

    def next_frames(self, peer: int, busy: Mapping[str, object]) -> list[tuple[str, Iterator[Message]]]:
        """The next frame of each kind that is not `busy` and has credit."""
        found = []
        with self._changed:
            for kind, lane in self._lanes[peer].items():
                if kind not in busy and (messages := lane.pop()) is not None:
                    found.append((kind, messages))
            if found:
                self._in_sockets += len(found)
                self._changed.notify_all()
        return found

    def left(self, n_frames: int) -> None:
        """So many frames were handed to the sockets whole."""
        with self._changed:
            self._in_sockets -= n_frames
            self._changed.notify_all()

    def under_way(self, peer: int) -> bool:
        """Whether frames are sent to `peer` that it has not acknowledged."""
        with self._changed:
            return any(lane.outstanding_bytes for lane in self._lanes[peer].values())

    def link_cut(self, peer: int, reason: str) -> None:
        """Tell it once, and not if the plan is over anyway."""
        cut, self._cut = self._cut, None
        if cut is not None and self._reason is None:
            cut(peer, reason)

    def acknowledged(self, peer: int, kind: str, n_bytes: int) -> None:
        with self._changed:
            lane = self._lanes.get(peer, {}).get(kind)
            if lane is not None:
                lane.acknowledge(n_bytes)

    def took(self, src: int, n_bytes: int) -> None:
        with self._changed:
            self.link(src).received_bytes += n_bytes

    def dropped(self, src: int, *, stale: bool) -> None:
        with self._changed:
            if stale:
                self.link(src).dropped_stale += 1
            else:
                self.link(src).dropped_corrupt += 1

    def take_credits(self) -> dict[tuple[int, str], int]:
        """Credit to give back by (sender, kind), once."""
        with self._changed:
            found, self._credits = self._credits, defaultdict(int)
        return found

    def link(self, peer: int) -> LinkStats:
        return self._stats.links.setdefault(peer, LinkStats())

    def _grant(self, src: int, kind: str, n_bytes: int) -> None:
        with self._changed:
            self._credits[src, kind] += n_bytes
        self._endpoint.ring()
