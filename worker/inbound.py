"""The receiving half of an endpoint in the I/O thread: messages in, whole frames to mailboxes.

Every message is checked before memory is taken for it: its header, the plan and rank it is for,
its size against what the endpoint may hold. What fails is dropped, counted and logged, never
raised, because a stranger's bytes must not end a run. Knows nothing of what goes out but credits.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

import zmq

from worker.admission import Admission
from worker.limits import Limits
from worker.striping import Assembly, crc_of
from worker.transport import Frame, FrameError, FrameKey, is_beside
from worker.wire import Ack, Header, pack_ack, pack_header, unpack_header
from worker.zmq_plan import ZmqTransport

log = logging.getLogger(__name__)

FrameId = tuple[int, int, int, int, bytes]
"""(run, plan version, sender, frame number, key of the connection)."""

MAX_ASSEMBLIES = 4096
MAX_CONNECTIONS = 65536
"""Connections whose keys are remembered; beyond, all are asked for again."""
MAX_HELD_FRAMES = 65536
LOGGED_DROPS = 20
"""Drops that are logged one by one; later ones are only counted, so that a flood cannot fill a disk."""


class Inbound:
    """Owns nothing but its tables; the endpoint owns the socket. Lives in the I/O thread only."""

    def __init__(self, router: zmq.Socket[bytes], limits: Limits, admission: Admission | None = None) -> None:
        self._router = router
        self._limits = limits
        self._admission = admission
        self._keys: dict[bytes, bytes] = {}
        """By connection, as ZeroMQ proved it."""
        self._open: dict[int, ZmqTransport] = {}
        self._newest = {False: -1, True: -1}
        """The newest version of plans, and of what goes on beside them (`transport.beside`)."""
        self._assemblies: dict[FrameId, Assembly] = {}
        self._held: deque[tuple[int, bytes, Frame]] = deque()
        self._n_bytes = 0  # of assemblies and held frames
        self._return_path: dict[tuple[int, int], tuple[bytes, bytes]] = {}
        """By (plan version, rank): a connection and its key."""
        self.dropped_stale = 0
        self.dropped_corrupt = 0

    # ---- plans come and go

    def open(self, transport: ZmqTransport) -> None:
        """Deliver to `transport` what its plan version says, also what was held; older plans are stale."""
        version = transport.plan_version

        def older(v: int) -> bool:
            return v < version and is_beside(v) == is_beside(version)

        self._open[version] = transport
        self._newest[is_beside(version)] = max(self._newest[is_beside(version)], version)
        self._return_path = {k: v for k, v in self._return_path.items() if not older(k[0])}
        self._forget(older)
        held, self._held = self._held, deque()
        for run, key, frame in held:
            self._n_bytes -= frame.n_bytes
            self._deliver(run, key, frame)

    def close(self, transport: ZmqTransport) -> None:
        if self._open.get(transport.plan_version) is transport:
            del self._open[transport.plan_version]
            self._forget(lambda v: v == transport.plan_version)

    def _forget(self, gone: Callable[[int], bool]) -> None:
        """Drop what is half received for plans that are gone."""
        for frame_id in [i for i in self._assemblies if gone(i[1])]:
            self._n_bytes -= self._assemblies.pop(frame_id).header.payload_bytes

    # ---- messages

    def take(self, most: int) -> None:
        """Take up to `most` messages."""
        for _ in range(most):
            try:
                sender = self._router.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self._take(sender.bytes, self._key_of(sender))

    def _key_of(self, sender: zmq.Frame) -> bytes:
        """The public key of the connection; b"": in the clear."""
        if self._admission is None:
            return b""
        path = sender.bytes
        key = self._keys.get(path)
        if key is None:
            if len(self._keys) >= MAX_CONNECTIONS:
                self._keys.clear()
            key = self._keys[path] = str(sender.get("User-Id")).encode()
        return key

    def _take(self, sender: bytes, key: bytes) -> None:
        r = self._router
        try:
            if self._admission is not None and not self._admission.admits(key):
                raise FrameError("found a connection whose key is no member's any more")
            if not r.getsockopt(zmq.RCVMORE):
                raise FrameError("found a message without a header")
            header = unpack_header(r.recv(), self._limits.frame_bytes)
        except FrameError as error:
            self._skip()
            self._corrupt(self._source_of(sender), error)
            return
        if header.key.kind == "probe":
            self._skip()
            self._echo(sender, header)
            return
        try:
            self._chunk(sender, key, header)
        except FrameError as error:
            self._skip()
            self._corrupt(header.key.src, error)

    def _chunk(self, sender: bytes, key: bytes, header: Header) -> None:
        version, src = header.plan_version, header.key.src
        transport = self._open.get(version)
        if transport is None and version <= self._newest[is_beside(version)]:
            self._skip()
            self._stale(src)
            return
        if transport is not None:
            self._check_address(transport, header.run, header.dst, src, key)
        self._return_path[version, src] = sender, key
        frame_id = (header.run, version, src, header.frame, key)
        assembly = self._assemblies.get(frame_id) or self._begin(frame_id, header)
        pieces = assembly.room(header)
        if pieces is None:
            raise FrameError(f"{header.key}: found the chunk at {header.offset} twice, or of another frame")
        try:
            self._read(header, pieces)
        except FrameError:
            self._n_bytes -= self._assemblies.pop(frame_id).header.payload_bytes
            raise
        if assembly.done(header):
            del self._assemblies[frame_id]
            self._n_bytes -= header.payload_bytes
            self._deliver(header.run, key, assembly.frame())

    def _begin(self, frame_id: FrameId, header: Header) -> Assembly:
        n = header.payload_bytes
        if self._n_bytes + n > self._limits.inbound_bytes or len(self._assemblies) >= MAX_ASSEMBLIES:
            raise FrameError(
                f"{header.key} of {n} bytes finds {self._n_bytes} bytes in {len(self._assemblies)} frames "
                f"half received; the endpoint may hold {self._limits.inbound_bytes} bytes in {MAX_ASSEMBLIES}"
            )
        assembly = self._assemblies[frame_id] = Assembly(header)
        self._n_bytes += n
        return assembly

    def _read(self, header: Header, pieces: list[memoryview]) -> None:
        """Receive the rest of the message into `pieces`. Raises FrameError when it is not just that."""
        r = self._router
        for piece in pieces:
            if not r.getsockopt(zmq.RCVMORE):
                raise FrameError(f"{header.key}: truncated, found less than {header.chunk_bytes} bytes")
            n = r.recv_into(piece)
            if n != piece.nbytes:
                raise FrameError(f"{header.key}: found a piece of {n} bytes, required {piece.nbytes}")
        if r.getsockopt(zmq.RCVMORE):
            raise FrameError(f"{header.key}: found more than the {header.chunk_bytes} bytes of its header")
        if header.payload_crc is not None and crc_of(pieces) != header.payload_crc:
            raise FrameError(f"{header.key}: payload is corrupt: its checksum does not match")

    def _skip(self) -> None:
        """Take the rest of the message without keeping it."""
        while self._router.getsockopt(zmq.RCVMORE):
            self._router.recv(copy=False)

    # ---- whole frames

    def _deliver(self, run: int, key: bytes, frame: Frame) -> None:
        transport = self._open.get(frame.plan_version)
        if transport is not None:
            try:
                self._check_address(transport, run, frame.dst, frame.key.src, key)
            except FrameError as error:  # it came before the plan was open, and so was not checked then
                self._corrupt(frame.key.src, error)
                return
            transport.took(frame.key.src, frame.n_bytes)
            transport.mailbox.put(frame)
        elif frame.plan_version <= self._newest[is_beside(frame.plan_version)]:
            self._stale(frame.key.src)
        elif len(self._held) >= MAX_HELD_FRAMES or self._n_bytes + frame.n_bytes > self._limits.inbound_bytes:
            self._corrupt(
                frame.key.src, FrameError(f"no room to hold {frame.key} for plan {frame.plan_version}")
            )
        else:
            self._held.append((run, key, frame))
            self._n_bytes += frame.n_bytes

    def _check_address(self, transport: ZmqTransport, run: int, dst: int, src: int, key: bytes) -> None:
        if run != transport.run:
            raise FrameError(f"found a frame of run {run:x}, required {transport.run:x}")
        if dst != transport.rank or src not in transport.peers:
            raise FrameError(f"found a frame from rank {src} to rank {dst}; this is rank {transport.rank}")
        if transport.peers[src].curve_public_key != key:
            raise FrameError(f"found a frame in the name of rank {src} over a connection of another's key")

    # ---- what goes back

    def send_credits(self) -> None:
        """Give back the credit that consumers released, on the connection their frames came by."""
        for version, transport in self._open.items():
            for (src, kind), n_bytes in transport.take_credits().items():
                self._credit(
                    Ack(transport.run, version, transport.rank, kind, n_bytes),
                    src,
                    transport.peers[src].curve_public_key,
                )

    def _credit(self, ack: Ack, src: int, key: bytes) -> None:
        path, by = self._return_path.get((ack.plan_version, src), (b"", b""))
        if path and by == key:
            self._router.send_multipart([path, pack_ack(ack)], zmq.NOBLOCK)

    def _echo(self, sender: bytes, probe: Header) -> None:
        key = FrameKey("echo", probe.key.step, probe.key.mb, 0, probe.key.tag)
        echo = Header(probe.run, 0, key, 0, "", "", (), (), frame=probe.frame)
        self._router.send_multipart([sender, pack_header(echo)], zmq.NOBLOCK)

    # ---- what is dropped

    def _source_of(self, sender: bytes) -> int:
        """The rank that a connection's earlier frames named; -1: none yet."""
        return next((src for (_, src), (path, _) in self._return_path.items() if path == sender), -1)

    def _stale(self, src: int) -> None:
        self.dropped_stale += 1
        if transport := self._open.get(self._newest[False]):
            transport.dropped(src, stale=True)

    def _corrupt(self, src: int, error: FrameError) -> None:
        self.dropped_corrupt += 1
        if transport := self._open.get(self._newest[False]):
            transport.dropped(src if src in transport.peers else -1, stale=False)
        if self.dropped_corrupt <= LOGGED_DROPS:
            who = f"rank {src}" if src >= 0 else "an unknown sender"
            log.warning("dropped a frame from %s: %s", who, error)
