"""Measuring a link, and asking whether a peer is there: probes that its endpoint echoes.

Runs in the caller's thread with sockets of its own; the other side's I/O thread answers every
probe message with a small echo, in or out of a plan. Refuses to know plans.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import zmq

from worker.addresses import CurveKeys, PeerAddress, dealer
from worker.transport import FrameError, FrameKey, PeerUnreachable
from worker.wire import Header, pack_header, unpack_header

ECHOES = 7
"""Small probes whose median is the round trip."""

PROBE_CHUNK_BYTES = 64 << 10
PROBE_S = 3.0
"""A bandwidth probe ends after this long, however many of its bytes are through."""

SETTLE_SHARE = 0.25
"""The first quarter of a bandwidth probe's time is not counted: TCP opens its window there."""

Context = zmq.Context[zmq.Socket[bytes]]


@dataclass(frozen=True, slots=True)
class LinkMeasurement:
    """Of the directed link to a peer: median round trip, and the rate with one and with all streams."""

    rtt_s: float
    bandwidth_Bps: float
    bandwidth_striped_Bps: float

    @property
    def latency_s(self) -> float:
        """One way, taken as half of the round trip: clocks of two machines do not agree better."""
        return self.rtt_s / 2


def reach(
    context: Context, peers: Mapping[int, PeerAddress], keys: CurveKeys | None, timeout_s: float
) -> None:
    """Ask every peer for an echo, all at once. Raises PeerUnreachable naming those that do not answer."""
    sockets: dict[zmq.Socket[bytes], tuple[int, PeerAddress]] = {}
    try:
        poller = zmq.Poller()
        for rank, peer in peers.items():
            s = dealer(context, peer, keys, 1)
            sockets[s] = (rank, peer)
            poller.register(s, zmq.POLLIN)
            s.send(_probe(0, 0, 0))
        silent = set(sockets)
        deadline = time.monotonic() + timeout_s
        while silent and (left_s := deadline - time.monotonic()) > 0:
            for s, _ in poller.poll(int(left_s * 1000) + 1):
                silent.discard(s)
                poller.unregister(s)
        if silent:
            who = sorted(sockets[s] for s in silent)
            raise _unreachable([f"rank {rank} at {peer.host_port}" for rank, peer in who], timeout_s)
    finally:
        for s in sockets:
            s.close(0)


def _unreachable(who: list[str], timeout_s: float) -> PeerUnreachable:
    return PeerUnreachable(
        f"no answer within {timeout_s:g} s from {', '.join(who)}; required: a worker that listens there "
        "with the key it announced, and no firewall between; else have it --advertise another address"
    )


def measure(
    context: Context,
    peer: PeerAddress,
    keys: CurveKeys | None,
    probe_bytes: int,
    streams: int,
    timeout_s: float,
) -> LinkMeasurement:
    """Measure the link to `peer`: `probe_bytes` over one stream, then as many on each of `streams`.

    Takes at most about 2 x PROBE_S; raises PeerUnreachable when nothing is heard for `timeout_s`.
    """
    if probe_bytes < 1 or streams < 1:
        raise ValueError(f"found {probe_bytes} bytes on {streams} streams, required 1 or more of each")
    sockets = [dealer(context, peer, keys, 4) for _ in range(streams)]
    try:
        probe = _Probe(peer, sockets, timeout_s)
        rtt_s = probe.round_trip_s()
        one_Bps = probe.rate_Bps(sockets[:1], probe_bytes, rtt_s)
        striped_Bps = probe.rate_Bps(sockets, streams * probe_bytes, rtt_s) if streams > 1 else one_Bps
    finally:
        for s in sockets:
            s.close(0)
    return LinkMeasurement(rtt_s, one_Bps, striped_Bps)


class _Probe:
    def __init__(self, peer: PeerAddress, sockets: list[zmq.Socket[bytes]], timeout_s: float) -> None:
        self._peer = peer
        self._sockets = sockets
        self._timeout_s = timeout_s
        self._id = 0

    def round_trip_s(self) -> float:
        """Median of ECHOES small echoes, after one on every stream that opens the connections."""
        for s in self._sockets:
            self._send_small(s)
        for s in self._sockets:
            self._await_echo(s)
        taken = []
        for _ in range(ECHOES):
            start = time.perf_counter()
            self._send_small(self._sockets[0])
            self._await_echo(self._sockets[0])
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)

    def _send_small(self, s: zmq.Socket[bytes]) -> None:
        s.send(_probe(self._id, 0, 0))

    def _await_echo(self, s: zmq.Socket[bytes]) -> None:
        if not s.poll(int(self._timeout_s * 1000)):
            raise _unreachable([self._peer.host_port], self._timeout_s)
        s.recv_multipart()

    def rate_Bps(self, sockets: list[zmq.Socket[bytes]], probe_bytes: int, rtt_s: float) -> float:  # noqa: N802
        """Rate at which echoes of the probe's chunks come back (`steady_Bps`).

        Chunks go to whichever stream has room, as frames do; an echo tells which chunk came.
        """
        self._id += 1
        n_chunks = max(2, -(-probe_bytes // PROBE_CHUNK_BYTES))
        chunk_bytes = -(-probe_bytes // n_chunks)
        payload = bytes(chunk_bytes)
        poller = zmq.Poller()
        for s in sockets:
            poller.register(s, zmq.POLLIN | zmq.POLLOUT)
        sent, start_s = 0, time.perf_counter()
        heard_s: list[float] = []
        while len(heard_s) < n_chunks:
            events = poller.poll(int(self._timeout_s * 1000))
            if not events:
                raise _unreachable([self._peer.host_port], self._timeout_s)
            for s, event in events:
                if event & zmq.POLLOUT and sent < n_chunks:
                    s.send_multipart([_probe(self._id, sent, chunk_bytes), payload])
                    sent += 1
                    if sent == n_chunks:
                        for other in sockets:
                            poller.modify(other, zmq.POLLIN)
                if event & zmq.POLLIN and self._is_mine(s.recv_multipart()):
                    heard_s.append(time.perf_counter())
            if time.perf_counter() > start_s + PROBE_S and len(heard_s) > 1:
                break
        return steady_Bps(heard_s, chunk_bytes, start_s + rtt_s)

    def _is_mine(self, message: list[bytes]) -> bool:
        """Whether an echo answers this probe and not an earlier one that was cut short."""
        try:
            return unpack_header(message[-1], 1).key.step == self._id
        except FrameError:
            return False


def steady_Bps(heard_s: Sequence[float], chunk_bytes: int, begin_s: float) -> float:  # noqa: N802
    """Bytes a second of chunks that were heard at `heard_s`, the first of which could have been at `begin_s`,
    without the time in which the link settles.

    Chunks of several streams come in bursts, so what is counted begins behind the last one heard while the
    link settled, or, where none was, with the probe itself.
    """
    begin_s, last_s = min(begin_s, heard_s[0]), heard_s[-1]
    settled_s = begin_s + SETTLE_SHARE * (last_s - begin_s)
    early = sum(1 for t in heard_s if t <= settled_s and t < last_s)
    since_s = heard_s[early - 1] if early else begin_s
    return (len(heard_s) - early) * chunk_bytes / max(last_s - since_s, 1e-9)


def _probe(number: int, chunk: int, n_bytes: int) -> bytes:
    key = FrameKey("probe", number, 0, 0, chunk)
    return pack_header(Header(0, 0, key, 0, "", "", (), (n_bytes,) if n_bytes else (), chunk_bytes=n_bytes))
