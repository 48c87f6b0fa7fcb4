"""The sending half of a transport in the I/O thread: streams of each link, and whose turn it is.

Kinds take turns chunk by chunk, so a small activation does not wait for a large shard before it.
A chunk goes to the next stream that takes it: each stream holds only a few messages that TCP has
not taken yet, so the fastest stream carries the most. Knows nothing of what comes in but credits.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import zmq

from worker.ready_links import ReadyLinks, Streams
from worker.striping import Message
from worker.transport import FrameError
from worker.wire import unpack_ack
from worker.zmq_plan import ZmqTransport

log = logging.getLogger(__name__)

TURN_MESSAGES = 64
"""Messages sent on one link before the others, and what comes in, have their turn."""


class _Link:
    """The streams to one peer, and the frames that are on their way out."""

    def __init__(self, rank: int, streams: Streams) -> None:
        self.rank = rank
        self.streams = streams
        self.watch, self.sockets = streams.watch, streams.sockets
        self.active: dict[str, Iterator[Message]] = {}
        self.turn: deque[str] = deque()
        self.waiting: Message | None = None  # taken from its frame, and no stream had room
        self.next_stream = 0
        self.polls_out = False

    def forget(self) -> None:
        """Nothing that waits here goes out any more."""
        self.active.clear()
        self.turn.clear()
        self.waiting = None

    def offer(self, message: Message) -> bool:
        """Give the message to a stream. False when every stream is full."""
        n = len(self.sockets)
        for i in range(n):
            stream = (self.next_stream + i) % n
            try:
                self.sockets[stream].send_multipart(message, zmq.NOBLOCK, copy=True)
            except zmq.Again:
                continue
            self.next_stream = (stream + 1) % n
            return True
        return False


class Outbound:
    """Every link of one transport. Lives in the I/O thread only."""

    def __init__(self, transport: ZmqTransport, links: ReadyLinks, poller: zmq.Poller) -> None:
        self._transport = transport
        self._poller = poller
        self._links: dict[int, _Link] = {}
        try:
            for rank, peer in transport.peers.items():
                link = self._links[rank] = _Link(rank, links.take(peer, transport.streams))
                for s in link.sockets:
                    self._poller.register(s, zmq.POLLIN)
        except Exception:
            self.close(0.0)
            raise

    @property
    def wait_ms(self) -> int | None:
        """How soon `turn` wants to be called; None: when something happens."""
        return min((w for x in self._links.values() if (w := x.watch.wait_ms) is not None), default=None)

    def turn(self, ready: Mapping[Any, int], now_s: float) -> None:
        """Take the credits that came, send what they and the streams allow, tell of links that are cut."""
        for link in self._links.values():
            for s in link.sockets:
                if ready.get(s, 0) & zmq.POLLIN:
                    self._take_credits(s)
            if self._transport.aborted:
                link.forget()
            self._pump(link)
            reason = link.watch.turn(ready, now_s, self._transport.under_way(link.rank))
            if reason:
                self._transport.link_cut(link.rank, reason)

    def _take_credits(self, s: zmq.Socket[bytes]) -> None:
        t = self._transport
        while True:
            try:
                data = b"".join(s.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return
            try:
                ack = unpack_ack(data)
            except FrameError as error:
                log.warning("dropped a credit: %s", error)
                t.dropped(-1, stale=False)
                continue
            if ack.plan_version == t.plan_version and ack.run == t.run:
                t.acknowledged(ack.rank, ack.kind, ack.n_bytes)

    def _pump(self, link: _Link) -> None:
        blocked = True  # by full streams, or by this turn's end: either way, poll for room and come back
        for _ in range(TURN_MESSAGES):
            if link.waiting is None:
                link.waiting = self._next(link)
            if link.waiting is None:
                blocked = False
                break
            if not link.offer(link.waiting):
                break
            link.waiting = None
        if blocked != link.polls_out:
            link.polls_out = blocked
            for s in link.sockets:
                self._poller.modify(s, zmq.POLLIN | (zmq.POLLOUT if blocked else 0))

    def _next(self, link: _Link) -> Message | None:
        """The next message, kind by kind in turn. A frame that is all out makes way for its kind's next."""
        self._fill(link)
        while link.turn:
            kind = link.turn[0]
            message = next(link.active[kind], None)
            if message is not None:
                link.turn.rotate(-1)
                return message
            link.turn.popleft()
            del link.active[kind]
            self._transport.left(1)
            self._fill(link)
        return None

    def _fill(self, link: _Link) -> None:
        for kind, messages in self._transport.next_frames(link.rank, link.active):
            link.active[kind] = messages
            link.turn.append(kind)

    def close(self, linger_s: float) -> None:
        """Close the sockets; what they hold may still leave for `linger_s`."""
        for link in self._links.values():
            for s in link.sockets:
                self._poller.unregister(s)
            link.streams.close(round(linger_s * 1000))
        self._links.clear()
