"""Connections that wait for a plan: taken once, whole, with as many streams as asked for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import zmq

from worker.addresses import CurveKeys, PeerAddress
from worker.ready_links import MOST_STREAMS, ReadyLinks
from worker.transport import Frame, FrameKey
from worker.zmq_transport import DataEndpoint


@contextmanager
def ready_links() -> Iterator[tuple[ReadyLinks, zmq.Context[zmq.Socket[bytes]], zmq.Poller]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    poller = zmq.Poller()
    links = ReadyLinks(context, poller, None)
    try:
        yield links, context, poller
    finally:
        links.close()
        context.destroy(0)


def turned_until(links: ReadyLinks, poller: zmq.Poller, done: object) -> None:
    assert callable(done)
    while not done():
        links.turn(dict(poller.poll(50)), time.monotonic())


def test_a_link_is_taken_once() -> None:
    with ready_links() as (links, _, _):
        peer = PeerAddress("127.0.0.1:1")
        links.keep(peer, 2)
        first = links.take(peer, 2)
        second = links.take(peer, 2)
        assert len(first.sockets) == len(second.sockets) == 2
        assert not set(first.sockets) & set(second.sockets)
        first.close()
        second.close()


def test_a_plan_of_more_streams_gets_a_link_of_its_own() -> None:
    with ready_links() as (links, _, _):
        peer = PeerAddress("127.0.0.1:1")
        links.keep(peer, 1)
        taken = links.take(peer, 4)
        assert len(taken.sockets) == 4
        taken.close()


def test_links_to_who_has_gone_go_and_are_not_kept_again() -> None:
    with ready_links() as (links, _, poller):
        peers = [PeerAddress("127.0.0.1:1", key) for key in (b"", b"gone")]
        links.keep(peers[0], 2)
        assert len(poller.sockets) == 2
        links.admit(frozenset())
        assert poller.sockets == []
        links.keep(peers[0], 2)
        assert poller.sockets == []


def test_there_is_an_end_to_what_is_kept() -> None:
    with ready_links() as (links, _, poller):
        for i in range(MOST_STREAMS):
            links.keep(PeerAddress(f"127.0.0.1:{i + 1}"), 2)
        assert len(poller.sockets) == MOST_STREAMS
        taken = links.take(PeerAddress(f"127.0.0.1:{MOST_STREAMS}"), 2)
        assert len(taken.sockets) == 2
        taken.close()


def test_a_link_that_broke_is_not_handed_out() -> None:
    with ready_links() as (links, context, poller):
        router = context.socket(zmq.ROUTER)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        peer = PeerAddress(f"127.0.0.1:{port}")
        links.keep(peer, 1)
        kept = links._links[peer]
        kept.sockets[0].send(b"hello")
        assert router.recv_multipart()[-1] == b"hello"
        router.close(0)
        turned_until(links, poller, lambda: not kept.watch.whole)
        taken = links.take(peer, 1)
        assert taken is not kept
        assert taken.watch.whole
        taken.close()


@pytest.mark.parametrize("admitted", [True, False])
def test_the_next_plan_goes_over_the_connection_that_is_ready(admitted: bool) -> None:
    """Its frames come over it, and a stranger's connection is of no more use for having been there before."""
    keys = [CurveKeys.new(), CurveKeys.new()]
    ends = [DataEndpoint("127.0.0.1:0", streams=1, keys=k) for k in keys]
    try:
        at = [PeerAddress(e.address, k.public) for e, k in zip(ends, keys, strict=True)]
        ends[0].admit([keys[1].public])
        ends[1].admit([keys[0].public])
        ends[0].keep_ready(at[1], 1)
        ends[0].measure(at[1], 1000)  # by now the other has been opened, too
        if not admitted:
            ends[1].admit([])
        plan = [e.open(1, i, {1 - i: at[1 - i]}, reach_timeout_s=None) for i, e in enumerate(ends)]
        key = FrameKey("activation", 0, 0, 0)
        plan[0].send(Frame(key, 1, 1, "identity", "uint8", (3,), [memoryview(b"abc")]))
        if admitted:
            assert b"".join(plan[1].receive(key, 30.0).payload) == b"abc"
        else:
            while ends[1].dropped[1] == 0:
                time.sleep(0.01)
            assert not plan[1].ready(key)
    finally:
        for e in ends:
            e.close()
