"""Addresses and keys of the data plane, as text and bytes. Opens nothing."""

from __future__ import annotations

from dataclasses import dataclass

import zmq

from protos.address import split_host_port

DEAD_LINK_S = 15
"""Seconds of silence, in which TCP had something to hear, that end a connection."""


@dataclass(frozen=True, slots=True)
class CurveKeys:
    """A CURVE key pair, each half as 40 bytes of Z85."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"CurveKeys(public={self.public!r}, secret=...)"  # logs must not hold it

    @classmethod
    def new(cls) -> CurveKeys:
        return cls(*zmq.curve_keypair())


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Where a peer's tensors arrive: "host:port", and its public key (b"": in the clear)."""

    host_port: str
    curve_public_key: bytes = b""


def bind_text(host_port: str) -> str:
    """ZeroMQ's form of an address. Raises ValueError."""
    host, port = split_host_port(host_port)
    return f"tcp://{host}:{port or '*'}"


def keep_alive(s: zmq.Socket[bytes]) -> None:
    """End connections of `s` over which nothing is heard for DEAD_LINK_S, idle or with bytes unacknowledged.

    It is the kernels that answer, so neither a busy worker nor a slow link is mistaken for a dead one.
    """
    s.setsockopt(zmq.TCP_KEEPALIVE, 1)
    s.setsockopt(zmq.TCP_KEEPALIVE_IDLE, DEAD_LINK_S // 3)
    s.setsockopt(zmq.TCP_KEEPALIVE_INTVL, DEAD_LINK_S // 3)
    s.setsockopt(zmq.TCP_KEEPALIVE_CNT, 2)
    s.setsockopt(zmq.TCP_MAXRT, 1000 * DEAD_LINK_S)


def dealer(
    context: zmq.Context[zmq.Socket[bytes]], peer: PeerAddress, keys: CurveKeys | None, hwm: int
) -> zmq.Socket[bytes]:
    """A socket that connects to `peer`, for the calling thread, with at most `hwm` unsent messages.

    Raises ValueError for an address that cannot be, or when only one of the two ends has keys.
    """
    if (keys is None) != (not peer.curve_public_key):
        have, lack = ("this worker", peer.host_port) if keys else (peer.host_port, "this worker")
        raise ValueError(f"{have} has CURVE keys and {lack} has none; give both or neither")
    host, port = split_host_port(peer.host_port)
    s = context.socket(zmq.DEALER)
    s.setsockopt(zmq.LINGER, 0)
    s.setsockopt(zmq.SNDHWM, hwm)
    s.setsockopt(zmq.RCVHWM, 0)  # credits and echoes only
    s.setsockopt(zmq.MAXMSGSIZE, 1 << 16)
    keep_alive(s)
    s.setsockopt(zmq.RECONNECT_IVL, 50)
    s.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
    if keys is not None:
        s.setsockopt(zmq.CURVE_SERVERKEY, peer.curve_public_key)
        s.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
        s.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
    if host.startswith("["):
        s.setsockopt(zmq.IPV6, 1)
    s.connect(f"tcp://{host}:{port}")
    return s
