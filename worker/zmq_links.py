"""Streams to a peer and what they measure: addresses, CURVE keys, round trips, bandwidth.

Used before there is a plan; knows nothing of frames but the header that every message has.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import zmq

from worker.transport import FrameKey, PeerUnreachable
from worker.wire import Header, Message, pack

Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]

CHUNK_BYTES = 1 << 20
PINGS = 5


@dataclass(frozen=True, slots=True)
class CurveKeys:
    """A CURVE key pair in Z85, as zmq.curve_keypair() makes it."""

    public: bytes
    secret: bytes

    @classmethod
    def new(cls) -> CurveKeys:
        return cls(*zmq.curve_keypair())


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where a peer's tensors go; its CURVE key, or b'' where the plan runs without."""

    host_port: str
    curve_public_key: bytes = b""


@dataclass(frozen=True, slots=True)
class LinkMeasurement:
    """Median round trip of small messages; bandwidth with one stream and with all."""

    rtt_s: float
    bandwidth_Bps: float
    bandwidth_striped_Bps: float


def connect(context: Context, peer: PeerAddress, keys: CurveKeys | None) -> Socket:
    """One stream to a peer."""
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, 0)  # the credits bound what is queued, in bytes
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
    if keys is not None:
        socket.curve_serverkey = peer.curve_public_key
        socket.curve_publickey, socket.curve_secretkey = keys.public, keys.secret
    socket.connect(f"tcp://{peer.host_port}")
    return socket


def probe_header(message: Message, n_bytes: int) -> bytes:
    return pack(Header(message, FrameKey("probe", 0, 0, 0), 0, 0, "", "", (), 0, 0, n_bytes, n_bytes))


def _await(socket: Socket, peer: PeerAddress, timeout_s: float) -> None:
    if not socket.poll(int(timeout_s * 1000)):
        raise PeerUnreachable(
            f"{peer.host_port} did not answer within {timeout_s:g} s; open that port on the peer's machine, "
            "or have the peer --advertise an address that can be reached"
        )
    socket.recv_multipart()


def _round_trip(socket: Socket, peer: PeerAddress, timeout_s: float) -> float:
    start = time.perf_counter()
    socket.send_multipart([probe_header(Message.PING, 0)])
    _await(socket, peer, timeout_s)
    return time.perf_counter() - start


def _rate(sockets: list[Socket], peer: PeerAddress, n_bytes: int, rtt_s: float, timeout_s: float) -> float:
    """Bytes a second with the bytes spread over the sockets; the round trip itself is not counted."""
    chunk = bytes(max(1, min(n_bytes // len(sockets), CHUNK_BYTES)))
    chunks = max(1, n_bytes // (len(chunk) * len(sockets)))
    start = time.perf_counter()
    for i in range(chunks):
        for s in sockets:
            message = Message.PROBE_DONE if i == chunks - 1 else Message.PROBE
            s.send_multipart([probe_header(message, len(chunk)), chunk], copy=False)
    for s in sockets:
        _await(s, peer, timeout_s)
    elapsed_s = max(time.perf_counter() - start - rtt_s, 1e-6)
    return len(chunk) * chunks * len(sockets) / elapsed_s


def measure(
    context: Context,
    peer: PeerAddress,
    keys: CurveKeys | None,
    streams: int,
    probe_bytes: int,
    timeout_s: float,
) -> LinkMeasurement:
    """Time the link to `peer`, which answers by itself. Raises PeerUnreachable, naming address and port."""
    sockets: list[Socket] = []
    try:
        sockets = [connect(context, peer, keys) for _ in range(streams)]
        rtts = [_round_trip(sockets[0], peer, timeout_s) for _ in range(PINGS)]
        rtt_s = statistics.median(rtts[1:])  # the first pays for the connection
        for s in sockets[1:]:
            _round_trip(s, peer, timeout_s)
        one = _rate(sockets[:1], peer, probe_bytes, rtt_s, timeout_s)
        striped = _rate(sockets, peer, probe_bytes, rtt_s, timeout_s) if streams > 1 else one
        return LinkMeasurement(rtt_s, one, max(one, striped))
    except zmq.ZMQError as e:
        raise PeerUnreachable(f"{peer.host_port}: {e}") from e
    finally:
        for s in sockets:
            s.close()
