"""One contract, every transport: what a rank may rely on, whoever carries its frames."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from worker.memory_transport import MemoryHub, MemoryTransport
from worker.transport import Frame, FrameKey, Transport, TransportAborted, TransportTimeout
from worker.zmq_transport import CurveKeys, DataEndpoint, PeerAddress

Open = Callable[[int, int], list[Transport]]
"""(ranks, plan version) -> a transport for each."""
WAIT_S = 20.0


class Zmq:
    """Endpoints on loopback that outlive the plans opened on them."""

    def __init__(self, streams: int, curve: bool) -> None:
        self.streams, self.curve = streams, curve
        self.endpoints: list[DataEndpoint] = []

    def open(self, ranks: int, version: int) -> list[Transport]:
        while len(self.endpoints) < ranks:
            keys = CurveKeys.new() if self.curve else None
            self.endpoints.append(DataEndpoint("127.0.0.1:0", self.streams, keys))
        peers = {
            r: PeerAddress(e.address, e.keys.public if e.keys else b"") for r, e in enumerate(self.endpoints)
        }
        return [
            e.open(version, r, {p: a for p, a in peers.items() if p != r})
            for r, e in enumerate(self.endpoints[:ranks])
        ]


def open_memory(ranks: int, version: int) -> list[Transport]:
    hub = MemoryHub()
    return [MemoryTransport(hub, r, version) for r in range(ranks)]


@pytest.fixture(params=["memory", "zmq-1", "zmq-4", "zmq-curve"])
def open_all(request: pytest.FixtureRequest) -> Iterator[Open]:
    opened: list[Transport] = []
    if request.param == "memory":
        make: Open = open_memory
        endpoints: list[DataEndpoint] = []
    else:
        zmq = Zmq(4 if request.param == "zmq-4" else 1, request.param == "zmq-curve")
        make, endpoints = zmq.open, zmq.endpoints

    def remember(ranks: int, version: int) -> list[Transport]:
        transports = make(ranks, version)
        opened.extend(transports)
        return transports

    yield remember
    for t in opened:
        t.close()
    for e in endpoints:
        e.close()


def frame(
    src: int, dst: int, data: bytes, *, mb: int = 0, kind: str = "activation", version: int = 1
) -> Frame:
    key = FrameKey(kind, 0, mb, src)
    return Frame(key, dst, version, "identity", "uint8", (len(data),), (memoryview(data),))


def got(f: Frame) -> bytes:
    return b"".join(f.payload)


@pytest.mark.parametrize("size", [0, 1, 1000, (1 << 20) - 1, 1 << 20, (3 << 20) + 17])
def test_bytes_arrive_as_they_were_sent(open_all: Open, size: int) -> None:
    a, b = open_all(2, 1)
    data = bytes(range(256)) * (size // 256 + 1)
    a.send(frame(0, 1, data[:size]))
    arrived = b.receive(FrameKey("activation", 0, 0, 0), WAIT_S)
    assert got(arrived) == data[:size]
    assert (arrived.shape, arrived.dtype, arrived.codec) == ((size,), "uint8", "identity")


def test_a_payload_in_parts_arrives_whole(open_all: Open) -> None:
    a, b = open_all(2, 1)
    parts = (b"values" * 300_000, b"", b"scales")
    key = FrameKey("gradient", 3, 1, 0, tag=9)
    a.send(Frame(key, 1, 1, "k", "uint8", (2, 3), tuple(memoryview(p) for p in parts), buffer_version=5))
    arrived = b.receive(key, WAIT_S)
    assert got(arrived) == b"".join(parts)
    assert arrived.buffer_version == 5


def test_frames_are_found_by_key_in_any_order(open_all: Open) -> None:
    a, b = open_all(2, 1)
    for mb in range(8):
        a.send(frame(0, 1, bytes([mb]) * (10 if mb % 2 else 2_000_000), mb=mb))
    for mb in reversed(range(8)):
        assert got(b.receive(FrameKey("activation", 0, mb, 0), WAIT_S))[0] == mb


def test_all_pairs_talk_at_once(open_all: Open) -> None:
    ranks = 4
    transports = open_all(ranks, 1)
    failures: list[Exception] = []

    def talk(me: int) -> None:
        try:
            for peer in range(ranks):
                if peer != me:
                    transports[me].send(frame(me, peer, bytes([me]) * 100_000))
            for peer in range(ranks):
                if peer != me:
                    assert got(transports[me].receive(FrameKey("activation", 0, 0, peer), WAIT_S))[0] == peer
        except Exception as e:
            failures.append(e)

    threads = [threading.Thread(target=talk, args=(r,)) for r in range(ranks)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


def test_floods_of_two_kinds_in_both_directions_end(open_all: Open) -> None:
    transports = open_all(2, 1)

    def flood(me: int) -> None:
        for mb in range(12):
            transports[me].send(frame(me, 1 - me, bytes(1 << 20), mb=mb))
            transports[me].send(frame(me, 1 - me, bytes(1 << 20), mb=mb, kind="gradient"))
        for mb in range(12):
            transports[me].receive(FrameKey("gradient", 0, mb, 1 - me), WAIT_S)
            transports[me].receive(FrameKey("activation", 0, mb, 1 - me), WAIT_S)

    threads = [threading.Thread(target=flood, args=(r,), daemon=True) for r in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(WAIT_S)
    assert not any(t.is_alive() for t in threads)


def test_abort_wakes_who_waits_and_says_why(open_all: Open) -> None:
    a, _ = open_all(2, 1)
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            a.receive(FrameKey("activation", 0, 0, 1), WAIT_S)
        except TransportAborted as e:
            raised.append(e)

    waiting = threading.Thread(target=wait)
    waiting.start()
    a.abort("worker w3 is lost")
    waiting.join(WAIT_S)
    assert "w3 is lost" in str(raised[0])
    with pytest.raises(TransportAborted, match="w3 is lost"):
        a.send(frame(0, 1, b"late"))


def test_a_missing_frame_is_named(open_all: Open) -> None:
    _, b = open_all(2, 1)
    with pytest.raises(TransportTimeout, match=r"gradient of step 7, micro-batch 2, came from rank 0"):
        b.receive(FrameKey("gradient", 7, 2, 0), 0.05)


def test_a_frame_of_another_plan_is_dropped_and_counted(open_all: Open) -> None:
    a, b = open_all(2, 2)
    a.send(frame(0, 1, b"old", version=1))
    a.send(frame(0, 1, b"new", mb=1, version=2))
    assert got(b.receive(FrameKey("activation", 0, 1, 0), WAIT_S)) == b"new"
    assert not b.ready(FrameKey("activation", 0, 0, 0))
    assert sum(s.dropped_stale for s in b.stats().links.values()) == 1


def test_bytes_are_counted_at_both_ends(open_all: Open) -> None:
    a, b = open_all(2, 1)
    a.send(frame(0, 1, bytes(5000)))
    b.receive(FrameKey("activation", 0, 0, 0), WAIT_S)
    assert a.stats().links[1].sent_bytes == 5000
    assert b.stats().links[0].received_bytes == 5000


def test_close_twice_is_no_error(open_all: Open) -> None:
    a, _ = open_all(2, 1)
    a.close()
    a.close()
