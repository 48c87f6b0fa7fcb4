"""Connections are reset, made of garbage or silent under a transport: what is lost is told, once."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import zmq

from worker import faulty_sockets
from worker.limits import Limits
from worker.link_watch import MEET_S, TURN_MS, LinkWatch
from worker.transport import Frame, FrameKey
from worker.zmq_transport import CurveKeys, DataEndpoint, PeerAddress, ZmqTransport

from .test_transport_contract import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's sockets are Linux's")
NO_SESSION = 0
"""No connection leads to a coordinator here."""


class Pair:
    """Rank 0 and rank 1, whose sockets are this process's only connections."""

    def __init__(self, streams: int) -> None:
        self.ends = [DataEndpoint("127.0.0.1:0", streams, CurveKeys.new(), Limits()) for _ in range(2)]
        keys = [e.keys.public for e in self.ends if e.keys]
        for e in self.ends:
            e.admit(keys)
        self.told: list[tuple[int, str]] = []
        self.ranks = [self._open(rank, keys) for rank in range(2)]

    def _open(self, rank: int, keys: list[bytes]) -> ZmqTransport:
        other = 1 - rank
        peer = PeerAddress(self.ends[other].address, keys[other])
        return self.ends[rank].open(1, rank, {other: peer}, cut=lambda *told: self.told.append(told))

    def send(self, mb: int, n_bytes: int = 1000) -> None:
        """From rank 0 to rank 1."""
        key = FrameKey("activation", 0, mb, 0)
        self.ranks[0].send(Frame(key, 1, 1, "identity", "uint8", (n_bytes,), [memoryview(bytes(n_bytes))]))

    def receive(self, mb: int) -> None:
        self.ranks[1].receive(FrameKey("activation", 0, mb, 0), 20.0)

    def exchanged(self, mb: int) -> None:
        """One frame went through and is acknowledged, so nothing is under way."""
        self.send(mb)
        self.receive(mb)
        until(lambda: not self.ranks[0].under_way(1))


@pytest.fixture(params=[1, 3])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = Pair(request.param)
    yield made
    for e in made.ends:
        e.close()


def test_a_reset_with_a_frame_under_way_is_told_once(pair: Pair) -> None:
    pair.exchanged(0)
    pair.send(1)  # nobody receives it, so it stays under way
    faulty_sockets.reset(NO_SESSION, session=False)
    until(lambda: bool(pair.told))
    assert pair.told == [(1, "a connection broke with frames under way")]


def test_a_frame_behind_a_reset_comes_over_another_connection_or_its_loss_is_told(pair: Pair) -> None:
    pair.exchanged(0)
    faulty_sockets.reset(NO_SESSION, session=False)
    pair.send(1)  # before or after ZeroMQ has noticed
    came = FrameKey("activation", 0, 1, 0)
    until(lambda: bool(pair.told) or pair.ranks[1].ready(came))


def test_bytes_that_nobody_sent_cut_the_link_and_are_never_taken_for_a_frame(pair: Pair) -> None:
    pair.exchanged(0)
    pair.send(1)
    faulty_sockets.corrupt(NO_SESSION)
    until(lambda: bool(pair.told))
    assert pair.told[0][0] in (0, 1)


def test_a_plan_that_is_over_has_no_links_to_tell_of(pair: Pair) -> None:
    pair.exchanged(0)
    pair.send(1)
    pair.ranks[0].abort("the plan is over")
    pair.ranks[1].abort("the plan is over")
    faulty_sockets.reset(NO_SESSION, session=False)
    again = [e.open(2, r, {}) for r, e in enumerate(pair.ends)]
    for t in (*pair.ranks, *again):
        t.close()
    assert pair.told == []


def test_a_connection_that_never_comes_about_is_told_once_frames_have_waited_for_it() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    nobody = context.socket(zmq.DEALER)
    nobody.setsockopt(zmq.LINGER, 0)
    nobody.connect("tcp://127.0.0.1:9")
    watch = LinkWatch([nobody], zmq.Poller())
    try:
        assert watch.turn({}, 0.0, under_way=False) == ""
        assert watch.turn({}, 100.0, under_way=True) == "", "nothing waited for it until now"
        assert watch.wait_ms == TURN_MS
        assert watch.turn({}, 100.0 + MEET_S - 0.1, under_way=True) == ""
        assert watch.turn({}, 100.0 + MEET_S, under_way=True) == "no connection came about within 30 s"
    finally:
        watch.close()
        context.destroy(0)
