"""Frames over ZeroMQ: several TCP streams a link, credits for each kind of frame, optional CURVE.

`DataEndpoint` owns the sockets and one I/O thread, and outlives plans, because a worker's
address is announced before any plan exists. `open` gives the transport of one plan. Knows
nothing of what a frame is for.

    worker -- DEALER x streams --> peer's ROUTER     data, pings, probes
    worker <-- same connections -- peer's ROUTER     acknowledgements, pongs

A frame is cut into chunks that are dealt to the streams in turn, because one TCP flow on a long
link carries at most window / round trip. A (peer, kind) pair may have a fixed number of
bytes on the way that the receiver has not acknowledged, and the receiver stops acknowledging when a
stage does not take what has come. The kinds have separate credit, so that a flood of one cannot hold
back another.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace

import zmq

from worker.inbox import Inbox
from worker.outbox import Queued
from worker.transport import Frame, FrameError, FrameKey, LinkStats, TransportStats
from worker.wire import MAX_FRAME_BYTES, header_of, pack
from worker.zmq_io import TensorIo
from worker.zmq_links import Context, CurveKeys, LinkMeasurement, PeerAddress, Socket, measure

__all__ = ["CurveKeys", "DataEndpoint", "LinkMeasurement", "PeerAddress", "ZmqTransport"]

QUEUE_BYTES = 512 << 20
"""What may wait for credit for one (peer, kind) before `send` blocks."""


class ZmqTransport:
    """One rank's end of one plan, over the endpoint it was opened on."""

    def __init__(
        self, endpoint: DataEndpoint, plan_version: int, rank: int, peers: Mapping[int, PeerAddress]
    ) -> None:
        self.plan_version = plan_version
        self.rank = rank
        self.peers = dict(peers)
        self.inbox = Inbox(plan_version, lambda frame: endpoint.call(lambda io: io.taken(frame)))
        self.queued = Queued(QUEUE_BYTES)
        self.links: dict[int, LinkStats] = {r: LinkStats() for r in peers}
        self._endpoint = endpoint

    def send(self, frame: Frame) -> None:
        """Raises TransportAborted, FrameError for a rank that is no peer or a frame beyond the cap."""
        if frame.dst not in self.peers:
            raise FrameError(f"found a frame for rank {frame.dst}, which is no peer of rank {self.rank}")
        if frame.n_bytes > MAX_FRAME_BYTES:
            raise FrameError(f"found a frame of {frame.n_bytes} bytes, required at most {MAX_FRAME_BYTES}")
        pack(header_of(frame, 0, 0))  # what no header can carry fails here, at its sender
        self.queued.add((frame.dst, frame.key.kind), frame.n_bytes)
        self._endpoint.call(lambda io: io.enqueue(self, frame))

    def receive(self, key: FrameKey, timeout_s: float) -> Frame:
        return self.inbox.take(key, timeout_s)

    def ready(self, key: FrameKey) -> bool:
        return self.inbox.has(key)

    def abort(self, reason: str) -> None:
        self.inbox.abort(reason)
        self.queued.abort(reason)

    def stats(self) -> TransportStats:
        return TransportStats({rank: replace(s) for rank, s in self.links.items()})

    def close(self) -> None:
        """Idempotent; unsent frames are dropped."""
        self.abort("the transport is closed")
        self._endpoint.call(lambda io: io.forget(self))


class DataEndpoint:
    """The address where a worker's tensors arrive, and the one thread that serves its sockets."""

    def __init__(self, bind: str, streams: int = 2, keys: CurveKeys | None = None) -> None:
        """`bind` HOST:PORT, port 0 for a free one. Raises OSError-like zmq.ZMQError when it is taken."""
        self.keys = keys
        self._context: Context = zmq.Context()
        router = self._context.socket(zmq.ROUTER)
        self._secure_server(router)
        router.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.ROUTER_HANDOVER, 1)
        host, _, port = bind.rpartition(":")
        try:
            bound = int(port) or router.bind_to_random_port(f"tcp://{host}")
            if int(port):
                router.bind(f"tcp://{bind}")
        except zmq.ZMQError:
            router.close()
            self._context.term()
            raise
        self.address = f"{host}:{bound}"
        self._calls: queue.SimpleQueue[Callable[[TensorIo], None] | None] = queue.SimpleQueue()
        pair = f"inproc://wake-{id(self)}"
        self._wake_lock = threading.Lock()
        near, far = self._context.socket(zmq.PAIR), self._context.socket(zmq.PAIR)
        near.bind(pair)
        far.connect(pair)
        self._wake = near
        self._io = TensorIo(self._context, router, far, self._calls, streams, keys)
        self._thread = threading.Thread(target=self._io.run, name="tensors", daemon=True)
        self._thread.start()

    def _secure_server(self, socket: Socket) -> None:
        if self.keys is not None:
            socket.curve_server = True
            socket.curve_publickey, socket.curve_secretkey = self.keys.public, self.keys.secret

    def call(self, what: Callable[[TensorIo], None] | None) -> None:
        """Have the I/O thread do something; sockets belong to it alone."""
        self._calls.put(what)
        with self._wake_lock:
            if not self._wake.closed:
                self._wake.send(b"", zmq.DONTWAIT)

    def open(self, plan_version: int, rank: int, peers: Mapping[int, PeerAddress]) -> ZmqTransport:
        """The transport of one plan; frames that came for it before are delivered at once."""
        transport = ZmqTransport(self, plan_version, rank, peers)
        done = threading.Event()

        def adopt(io: TensorIo) -> None:
            io.adopt(transport)
            done.set()

        self.call(adopt)
        done.wait()
        return transport

    def measure(
        self, peer: PeerAddress, probe_bytes: int, streams: int = 0, timeout_s: float = 20.0
    ) -> LinkMeasurement:
        """Time the link to `peer` with one stream and with `streams` (0: as many as frames use).

        Blocks; the sockets are its own, so that any thread may call it. Raises PeerUnreachable.
        """
        return measure(self._context, peer, self.keys, streams or self._io.streams, probe_bytes, timeout_s)

    def close(self) -> None:
        """End the thread and close every socket. Idempotent."""
        if self._wake.closed:
            return
        self.call(None)
        self._thread.join()
        with self._wake_lock:
            self._wake.close()
        self._context.term()
