"""The thread that owns the data plane's sockets: sends chunks as credit allows, puts arrivals together.

Nobody else touches a socket; others hand it calls. Knows frames and ranks, not what they are for.
"""

from __future__ import annotations

import logging
import queue
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import zmq

from worker.inbox import Inbox
from worker.outbox import Queued
from worker.transport import Frame, FrameError, FrameKey, LinkStats
from worker.wire import Header, Message, header_of, pack, unpack
from worker.zmq_links import CHUNK_BYTES, Context, CurveKeys, PeerAddress, Socket, connect, probe_header

log = logging.getLogger(__name__)

CREDIT_BYTES = 64 << 20
"""What may be on the way to one peer, of one kind, without an acknowledgement: 640 MB/s at 100 ms."""

EARLY_BYTES = 256 << 20
"""Frames for a plan that is not opened here yet; beyond it the oldest are dropped."""


INBOX_BYTES = 256 << 20
"""Arrived and not taken, by (sender, kind); beyond it the sender gets no more credit."""

HELD_BACK = ("activation", "gradient", "eval")
"""Kinds that a stage takes in the order they are sent, so that holding credit back cannot lock it out of
the frame it waits for. The others are bounded by the size of the stage itself."""


class PlanEnd(Protocol):
    """What the thread serves: one rank's end of one plan."""

    plan_version: int
    peers: dict[int, PeerAddress]
    inbox: Inbox
    queued: Queued
    links: dict[int, LinkStats]

    def abort(self, reason: str) -> None: ...


@dataclass(slots=True)
class _Link:
    """The sender's side of one peer: its streams, and what waits for credit, by kind."""

    address: PeerAddress
    sockets: list[Socket]
    waiting: dict[str, deque[tuple[Frame, int]]] = field(default_factory=lambda: defaultdict(deque))
    credit: dict[str, int] = field(default_factory=lambda: defaultdict(lambda: CREDIT_BYTES))
    turn: int = 0


@dataclass(slots=True)
class _Partial:
    buffer: bytearray
    missing: int


class TensorIo:
    """What the I/O thread owns: every socket, what waits for credit, what is half arrived."""

    def __init__(
        self,
        context: Context,
        router: Socket,
        wake: Socket,
        calls: queue.SimpleQueue[Callable[[TensorIo], None] | None],
        streams: int,
        keys: CurveKeys | None,
    ) -> None:
        self.streams = streams
        self._context, self._router, self._wake, self._calls, self._keys = context, router, wake, calls, keys
        self._poller = zmq.Poller()
        self._poller.register(router, zmq.POLLIN)
        self._poller.register(wake, zmq.POLLIN)
        self._transport: PlanEnd | None = None
        self._links: dict[int, _Link] = {}
        self._by_socket: dict[Socket, int] = {}
        self._partial: dict[tuple[int, FrameKey], _Partial] = {}
        self._early: deque[tuple[Header, bytes]] = deque()
        self._early_bytes = 0
        self._arrived_bytes: dict[tuple[int, str], int] = defaultdict(int)
        self._withheld: dict[tuple[int, str], deque[list[bytes]]] = defaultdict(deque)

    def run(self) -> None:
        try:
            while self._serve():
                pass
        finally:
            self._disconnect()
            self._router.close()
            self._wake.close()

    def _serve(self) -> bool:
        for socket, _ in self._poller.poll():
            if socket is self._wake:
                while self._wake.poll(0):
                    self._wake.recv()
            elif socket is self._router:
                self._arrivals()
            elif socket in self._by_socket:
                self._acknowledged(socket)
        while not self._calls.empty():
            call = self._calls.get()
            if call is None:
                return False
            call(self)
        return True

    # ---- plans

    def adopt(self, transport: PlanEnd) -> None:
        """Serve `transport`'s plan from now on; an older one is ended."""
        if self._transport is not None:
            self._transport.abort(f"plan {transport.plan_version} took its place")
        self._disconnect()
        self._transport = transport
        for rank, address in transport.peers.items():
            link = _Link(address, [connect(self._context, address, self._keys) for _ in range(self.streams)])
            self._links[rank] = link
            for s in link.sockets:
                self._by_socket[s] = rank
                self._poller.register(s, zmq.POLLIN)
        early, self._early, self._early_bytes = self._early, deque(), 0
        for header, payload in early:
            self._deliver(header, payload)

    def forget(self, transport: PlanEnd) -> None:
        if self._transport is transport:
            self._transport = None
            self._disconnect()

    def _disconnect(self) -> None:
        for s in self._by_socket:
            self._poller.unregister(s)
            s.close()
        self._by_socket.clear()
        self._links.clear()
        self._partial.clear()
        self._arrived_bytes.clear()
        self._withheld.clear()

    # ---- out

    def enqueue(self, transport: PlanEnd, frame: Frame) -> None:
        if transport is not self._transport:
            transport.queued.sent((frame.dst, frame.key.kind), frame.n_bytes)
            return
        self._links[frame.dst].waiting[frame.key.kind].append((frame, 0))
        stats = transport.links[frame.dst]
        stats.frames += 1
        stats.sent_bytes += frame.n_bytes
        self._push(frame.dst, frame.key.kind)

    def _push(self, rank: int, kind: str) -> None:
        """Send what credit allows; the rest goes when acknowledgements come."""
        link, transport = self._links[rank], self._transport
        assert transport is not None
        waiting = link.waiting[kind]
        while waiting and link.credit[kind] > 0:
            frame, offset = waiting.popleft()
            chunk = min(CHUNK_BYTES, frame.n_bytes - offset)
            socket = link.sockets[link.turn % len(link.sockets)]
            link.turn += 1
            socket.send_multipart(
                [pack(header_of(frame, offset, chunk)), *_slice(frame, offset, chunk)], copy=False
            )
            link.credit[kind] -= max(chunk, 1)
            if offset + chunk < frame.n_bytes:
                waiting.appendleft((frame, offset + chunk))
            else:
                transport.queued.sent((rank, kind), frame.n_bytes)

    def _acknowledged(self, socket: Socket) -> None:
        rank = self._by_socket[socket]
        while socket.poll(0):
            header = unpack(socket.recv_multipart()[0])
            self._links[rank].credit[header.key.kind] += max(header.chunk_bytes, 1)
            self._push(rank, header.key.kind)

    # ---- in

    def _arrivals(self) -> None:
        for _ in range(64):  # then calls and acknowledgements get their turn
            if not self._router.poll(0):
                return
            identity, *parts = self._router.recv_multipart(copy=False)
            try:
                header = unpack(parts[0].buffer)
                payload = memoryview(b"") if len(parts) == 1 else _joined(parts[1:])
                if payload.nbytes != header.chunk_bytes and header.message in (Message.DATA, Message.PROBE):
                    raise FrameError(
                        f"found {payload.nbytes} bytes of payload, required {header.chunk_bytes}"
                    )
            except (FrameError, IndexError) as e:
                log.warning("a damaged frame was dropped: %s", e)
                if self._transport is not None:  # whose it was cannot be known: rank -1
                    self._transport.links.setdefault(-1, LinkStats()).dropped_corrupt += 1
                continue
            self._handle(identity.bytes, header, payload)

    def _handle(self, identity: bytes, header: Header, payload: memoryview) -> None:
        match header.message:
            case Message.PING | Message.PROBE_DONE:
                self._router.send_multipart([identity, probe_header(Message.PONG, 0)])
            case Message.DATA:
                self._acknowledge(identity, header)
                self._deliver(header, payload)
            case _:
                pass

    def _acknowledge(self, identity: bytes, header: Header) -> None:
        """Give the credit back, or hold it while the stage has more of this kind than it takes."""
        at = (header.key.src, header.key.kind)
        ack = [identity, pack(replace(header, message=Message.ACK))]
        if header.key.kind in HELD_BACK and self._arrived_bytes[at] > INBOX_BYTES:
            self._withheld[at].append(ack)
        else:
            self._router.send_multipart(ack)

    def taken(self, frame: Frame) -> None:
        """The stage has taken a frame: credit that was held back goes out."""
        at = (frame.key.src, frame.key.kind)
        self._arrived_bytes[at] -= frame.n_bytes
        while self._withheld[at] and self._arrived_bytes[at] <= INBOX_BYTES:
            self._router.send_multipart(self._withheld[at].popleft())

    def _deliver(self, header: Header, payload: memoryview | bytes) -> None:
        transport = self._transport
        if transport is None or header.plan_version > transport.plan_version:
            self._early_bytes += header.chunk_bytes
            self._early.append((header, bytes(payload)))
            while self._early_bytes > EARLY_BYTES:
                self._early_bytes -= self._early.popleft()[0].chunk_bytes
            return
        stats = transport.links.setdefault(header.key.src, LinkStats())
        if header.plan_version < transport.plan_version:
            stats.dropped_stale += 1
            return
        stats.received_bytes += header.chunk_bytes
        if header.chunk_bytes == header.total_bytes:
            self._arrived(header, memoryview(bytearray(payload)))
            return
        at = (header.key.src, header.key)
        partial = self._partial.get(at)
        if partial is None:
            partial = self._partial[at] = _Partial(bytearray(header.total_bytes), header.total_bytes)
        partial.buffer[header.offset : header.offset + header.chunk_bytes] = payload
        partial.missing -= header.chunk_bytes
        if partial.missing <= 0:
            del self._partial[at]
            self._arrived(header, memoryview(partial.buffer))

    def _arrived(self, header: Header, whole: memoryview) -> None:
        assert self._transport is not None
        self._arrived_bytes[header.key.src, header.key.kind] += header.total_bytes
        self._transport.inbox.put(
            Frame(
                header.key,
                header.dst,
                header.plan_version,
                header.codec,
                header.dtype,
                header.shape,
                (whole,),
                header.buffer_version,
            )
        )


def _joined(parts: list[zmq.Frame]) -> memoryview:
    return parts[0].buffer if len(parts) == 1 else memoryview(b"".join(p.buffer for p in parts))


def _slice(frame: Frame, offset: int, n_bytes: int) -> list[memoryview]:
    """Bytes [offset, offset + n_bytes) of the frame's buffers, without copying them."""
    out, at = [], 0
    for part in frame.payload:
        flat = part.cast("B") if part.nbytes else memoryview(b"")
        first, last = max(offset - at, 0), min(offset + n_bytes - at, flat.nbytes)
        if first < last:
            out.append(flat[first:last])
        at += flat.nbytes
    return out
