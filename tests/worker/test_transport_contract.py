"""One contract, every transport: what a rank may rely on, whoever carries its frames."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import pytest

from worker.limits import Limits
from worker.memory_transport import MemoryHub, MemoryTransport
from worker.transport import (
    Frame,
    FrameError,
    FrameKey,
    LinkStats,
    Transport,
    TransportAborted,
    TransportTimeout,
    beside,
)
from worker.zmq_transport import CurveKeys, DataEndpoint, PeerAddress

Open = Callable[[int, int], list[Transport]]
"""(ranks, plan version) -> a transport for each."""
WAIT_S = 20.0
SMALL = Limits(
    credit_bytes=105_000, queue_bytes=210_000, frame_bytes=1_000_000, chunk_bytes=8_000, payload_crc=True
)
"""Caps that a test reaches quickly: five frames of 20 kB on the way, ten more in the queue."""


def until(what: Callable[[], bool]) -> None:
    """Wait for `what`; fails when it does not come."""
    deadline = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


class Zmq:
    """Endpoints on loopback that outlive the plans opened on them."""

    def __init__(self, streams: int, curve: bool, limits: Limits) -> None:
        self.streams, self.curve, self.limits = streams, curve, limits
        self.endpoints: list[DataEndpoint] = []

    def open_rank(self, rank: int, version: int, ranks: int = 2) -> Transport:
        while len(self.endpoints) < ranks:
            keys = CurveKeys.new() if self.curve else None
            self.endpoints.append(DataEndpoint("127.0.0.1:0", self.streams, keys, self.limits))
        keys_of_all = [e.keys.public for e in self.endpoints if e.keys]
        for e in self.endpoints:
            e.admit(keys_of_all)
        peers = {
            r: PeerAddress(e.address, e.keys.public if e.keys else b"") for r, e in enumerate(self.endpoints)
        }
        return self.endpoints[rank].open(version, rank, {p: a for p, a in peers.items() if p != rank})


class Memory:
    """A hub that outlives the plans opened on it."""

    def __init__(self, limits: Limits) -> None:
        self.hub = MemoryHub(limits)
        self.endpoints: list[DataEndpoint] = []

    def open_rank(self, rank: int, version: int, ranks: int = 2) -> Transport:  # noqa: ARG002
        return MemoryTransport(self.hub, rank, version)


class Fabric(Protocol):
    endpoints: list[DataEndpoint]

    def open_rank(self, rank: int, version: int, ranks: int = 2) -> Transport: ...


KINDS_OF_FABRIC = ("memory", "zmq-1", "zmq-4", "zmq-curve")


def make_fabric(name: str, limits: Limits) -> Fabric:
    if name == "memory":
        return Memory(limits)
    return Zmq(4 if name == "zmq-4" else 1, name == "zmq-curve", limits)


@pytest.fixture(params=KINDS_OF_FABRIC)
def fabric(request: pytest.FixtureRequest) -> Iterator[Callable[..., Fabric]]:
    """Makes a fabric with given limits and closes what was opened on it."""
    made: list[Fabric] = []

    def make(limits: Limits = SMALL) -> Fabric:
        made.append(make_fabric(request.param, limits))
        return made[-1]

    yield make
    for f in made:
        for e in f.endpoints:
            e.close()


@pytest.fixture(params=KINDS_OF_FABRIC)
def open_all(request: pytest.FixtureRequest) -> Iterator[Open]:
    made = make_fabric(request.param, Limits())
    opened: list[Transport] = []

    def open_ranks(ranks: int, version: int) -> list[Transport]:
        opened.extend(made.open_rank(r, version, ranks) for r in range(ranks))
        return opened[-ranks:]

    yield open_ranks
    for t in opened:
        t.close()
    for e in made.endpoints:
        e.close()


def frame(
    src: int, dst: int, data: bytes | bytearray, *, mb: int = 0, kind: str = "activation", version: int = 1
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
    a, b = open_all(2, 1)
    with pytest.raises(
        TransportTimeout, match=r"gradient \(step 7, micro-batch 2, tag 0\) from rank 0.*none came"
    ):
        b.receive(FrameKey("gradient", 7, 2, 0), 0.05)
    a.send(frame(0, 1, b"other", mb=3))
    b.receive(FrameKey("activation", 0, 3, 0), WAIT_S)
    a.send(frame(0, 1, b"other", mb=4))
    a.send(frame(0, 1, b"other", mb=5))
    until(lambda: b.ready(FrameKey("activation", 0, 5, 0)))
    with pytest.raises(TransportTimeout, match=r"other frames of it wait, the first activation \(step 0"):
        b.receive(FrameKey("gradient", 7, 2, 0), 0.05)


def test_a_frame_of_an_older_plan_is_dropped_and_counted(fabric: Callable[..., Fabric]) -> None:
    f = fabric()
    old, new = f.open_rank(0, 1), f.open_rank(1, 2)
    old.send(frame(0, 1, b"old", version=1))
    until(lambda: new.stats().links.get(0, LinkStats()).dropped_stale == 1)
    old.close()
    f.open_rank(0, 2).send(frame(0, 1, b"new", version=2))
    assert got(new.receive(FrameKey("activation", 0, 0, 0), WAIT_S)) == b"new"
    assert new.stats().links[0].dropped_stale == 1


def test_what_goes_on_beside_a_plan_and_the_plan_make_each_other_not_stale(
    fabric: Callable[..., Fabric],
) -> None:
    f = fabric()
    plans = [f.open_rank(rank, 5) for rank in (0, 1)]
    asides = [f.open_rank(rank, beside(3)) for rank in (0, 1)]
    key = FrameKey("activation", 0, 0, 0)
    plans[0].send(frame(0, 1, b"of plan 5", version=5))
    assert got(plans[1].receive(key, WAIT_S)) == b"of plan 5"
    asides[0].send(frame(0, 1, b"beside it", version=beside(3)))
    later = [f.open_rank(rank, 6) for rank in (0, 1)]
    asides[0].send(frame(0, 1, b"and the next", mb=1, version=beside(3)))
    later[0].send(frame(0, 1, b"of plan 6", version=6))
    assert got(asides[1].receive(key, WAIT_S)) == b"beside it"
    assert got(asides[1].receive(FrameKey("activation", 0, 1, 0), WAIT_S)) == b"and the next"
    assert got(later[1].receive(key, WAIT_S)) == b"of plan 6"
    for t in (*plans, *asides, *later):
        t.close()


def test_frames_of_a_plan_that_is_not_open_yet_are_held(fabric: Callable[..., Fabric]) -> None:
    f = fabric()
    old, early = f.open_rank(1, 1), f.open_rank(0, 2)
    for mb in range(5):
        early.send(frame(0, 1, bytes([mb]) * 100, mb=mb, version=2))
    old.close()
    late = f.open_rank(1, 2)
    for mb in range(5):
        assert got(late.receive(FrameKey("activation", 0, mb, 0), WAIT_S)) == bytes([mb]) * 100


def test_frames_that_are_not_this_ranks_to_send_are_refused(open_all: Open) -> None:
    a, _ = open_all(2, 2)
    for wrong, why in (
        (frame(1, 0, b"x", version=2), "required sender 0"),
        (frame(0, 0, b"x", version=2), "another rank"),
        (frame(0, 1, b"x", version=1), "found plan version 1, required 2"),
        (frame(0, 1, b"x", version=2, kind="rumour"), "found 'rumour'"),
    ):
        with pytest.raises(FrameError, match=why):
            a.send(wrong)
    assert a.stats().links.get(1, LinkStats()).frames == 0


def test_a_frame_above_the_cap_is_refused_and_one_above_the_credit_travels_alone(
    fabric: Callable[..., Fabric],
) -> None:
    f = fabric()
    a, b = f.open_rank(0, 1), f.open_rank(1, 1)
    with pytest.raises(FrameError, match="required at most 1000000"):
        a.send(frame(0, 1, bytes(1_000_001)))
    a.send(frame(0, 1, bytes([0]) * 500_000, mb=0))  # above the credit: on its way, alone
    for mb in range(3):
        a.send(frame(0, 1, bytes([mb + 1]) * 500_000, mb=mb + 1))  # above the queue's cap: waits there, alone
        assert got(b.receive(FrameKey("activation", 0, mb, 0), WAIT_S)) == bytes([mb]) * 500_000


def test_a_full_queue_blocks_its_own_kind_only_and_goes_on_when_frames_are_taken(
    fabric: Callable[..., Fabric],
) -> None:
    f = fabric()
    a, b = f.open_rank(0, 1), f.open_rank(1, 1)
    n, sent = 40, []

    def flood() -> None:
        for mb in range(n):
            a.send(frame(0, 1, bytes([mb]) * 20_000, mb=mb))
            sent.append(mb)

    flooding = threading.Thread(target=flood, daemon=True)
    flooding.start()
    until(lambda: b.ready(FrameKey("activation", 0, 4, 0)))  # credit: 5 of them; then the queue: 10 more
    assert not b.ready(FrameKey("activation", 0, n - 1, 0))
    a.send(frame(0, 1, b"through", kind="gradient"))
    assert got(b.receive(FrameKey("gradient", 0, 0, 0), WAIT_S)) == b"through"
    assert flooding.is_alive()
    assert len(sent) <= 16
    for mb in range(n):
        assert got(b.receive(FrameKey("activation", 0, mb, 0), WAIT_S)) == bytes([mb]) * 20_000
    flooding.join(WAIT_S)
    assert len(sent) == n


def test_a_receiver_that_wants_the_last_frame_first_is_no_deadlock(fabric: Callable[..., Fabric]) -> None:
    f = fabric()
    a, b = f.open_rank(0, 1), f.open_rank(1, 1)
    n = 300

    def flood() -> None:
        for mb in range(n):
            a.send(frame(0, 1, bytes([mb % 256]) * 5_000, mb=mb))

    flooding = threading.Thread(target=flood, daemon=True)
    flooding.start()
    for mb in reversed(range(n)):
        assert got(b.receive(FrameKey("activation", 0, mb, 0), WAIT_S)) == bytes([mb % 256]) * 5_000
    flooding.join(WAIT_S)
    assert not flooding.is_alive()


def test_abort_wakes_a_blocked_sender(fabric: Callable[..., Fabric]) -> None:
    f = fabric()
    a, b = f.open_rank(0, 1), f.open_rank(1, 1)
    raised: list[str] = []

    def flood() -> None:
        try:
            for mb in range(1000):
                a.send(frame(0, 1, bytes(20_000), mb=mb))
        except TransportAborted as e:
            raised.append(str(e))

    flooding = threading.Thread(target=flood, daemon=True)
    flooding.start()
    until(lambda: b.ready(FrameKey("activation", 0, 4, 0)))
    a.abort("a new plan came")
    flooding.join(WAIT_S)
    assert raised == ["a new plan came"]


def test_what_was_sent_arrives_although_the_sender_closes(open_all: Open) -> None:
    a, b = open_all(2, 1)
    a.send(frame(0, 1, b"last words" * 200_000))
    a.close()
    assert got(b.receive(FrameKey("activation", 0, 0, 0), WAIT_S)) == b"last words" * 200_000


def test_a_received_payload_is_the_receivers_to_change(open_all: Open) -> None:
    a, b = open_all(2, 1)
    mine = bytearray(b"12345678")
    a.send(frame(0, 1, mine))
    arrived = b.receive(FrameKey("activation", 0, 0, 0), WAIT_S)
    arrived.payload[0][:4] = b"...."
    assert mine == b"12345678"
    assert got(arrived) == b"....5678"


def test_bytes_are_counted_at_both_ends(open_all: Open) -> None:
    a, b = open_all(2, 1)
    a.send(frame(0, 1, bytes(5000)))
    b.receive(FrameKey("activation", 0, 0, 0), WAIT_S)
    assert 5000 <= a.stats().links[1].sent_bytes <= 5500  # a wire's headers count too
    assert a.stats().links[1].frames == 1
    assert b.stats().links[0].received_bytes == 5000


def test_close_twice_is_no_error(open_all: Open) -> None:
    a, _ = open_all(2, 1)
    a.close()
    a.close()
