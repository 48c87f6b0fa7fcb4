"""Who may connect, over real sockets: members with their own keys, and nobody else, however valid a key."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import zmq

from worker import admission
from worker.transport import Frame, FrameKey, PeerUnreachable, TransportTimeout
from worker.zmq_transport import CurveKeys, DataEndpoint, PeerAddress

WAIT_S = 20.0


@pytest.fixture
def endpoint() -> Iterator[Callable[[], DataEndpoint]]:
    made: list[DataEndpoint] = []

    def make() -> DataEndpoint:
        made.append(DataEndpoint("127.0.0.1:0", 1, CurveKeys.new()))
        return made[-1]

    yield make
    for e in made:
        e.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger is refused soon instead of after ten seconds."""
    monkeypatch.setattr(admission, "WAIT_S", 0.0)


def at(e: DataEndpoint) -> PeerAddress:
    assert e.keys is not None
    return PeerAddress(e.address, e.keys.public)


def key_of(e: DataEndpoint) -> bytes:
    assert e.keys is not None
    return e.keys.public


def frame(src: int, data: bytes) -> Frame:
    return Frame(
        FrameKey("activation", 0, 0, src), 0, 1, "identity", "uint8", (len(data),), (memoryview(data),)
    )


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def test_members_reach_each_other(endpoint: Callable[[], DataEndpoint]) -> None:
    a, b = endpoint(), endpoint()
    for e in (a, b):
        e.admit([key_of(a), key_of(b)])
    a.reach({1: at(b)}, WAIT_S)
    assert b.measure(at(a), 1000).rtt_s > 0
    assert (a.refused, b.refused) == (0, 0)


@pytest.mark.usefixtures("impatient")
def test_a_stranger_with_a_valid_key_of_its_own_is_refused(endpoint: Callable[[], DataEndpoint]) -> None:
    """It knows the address and the public key, as anybody may; what it lacks is to be a member."""
    member, stranger = endpoint(), endpoint()
    member.admit([key_of(member)])
    with pytest.raises(PeerUnreachable, match="no answer"):
        stranger.reach({0: at(member)}, 0.5)
    until(lambda: member.refused > 0)
    with pytest.raises(PeerUnreachable):
        stranger.measure(at(member), 1000, timeout_s=0.3)
    assert member.dropped == (0, 0), "nothing of it came as far as a frame"


@pytest.mark.usefixtures("impatient")
def test_nobody_comes_in_before_anybody_is_named(endpoint: Callable[[], DataEndpoint]) -> None:
    a, b = endpoint(), endpoint()
    with pytest.raises(PeerUnreachable):
        b.reach({0: at(a)}, 0.3)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("mechanism", ["none", "plain"])
def test_a_socket_without_encryption_gets_nothing(
    endpoint: Callable[[], DataEndpoint], mechanism: str
) -> None:
    member = endpoint()
    member.admit([key_of(member)])
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context.socket(zmq.DEALER) as s:
        s.setsockopt(zmq.LINGER, 0)
        if mechanism == "plain":
            s.setsockopt(zmq.PLAIN_USERNAME, b"u")
            s.setsockopt(zmq.PLAIN_PASSWORD, b"p")
        s.connect(f"tcp://{member.address}")
        s.send(b"ISTH")
        assert s.poll(300) == 0
    context.term()
    assert member.dropped == (0, 0)


def test_who_connects_before_it_is_named_is_let_in_when_it_is(endpoint: Callable[[], DataEndpoint]) -> None:
    """The coordinator's word to two workers does not arrive at the same moment."""
    a, b = endpoint(), endpoint()
    peer = b.open(1, 1, {0: at(a)}, run="r", reach_timeout_s=None)
    peer.send(frame(1, b"early"))
    until(lambda: a._admission is not None and a._admission.wait_ms is not None)  # it waits at the door
    a.admit([key_of(b)])
    host = a.open(1, 0, {1: at(b)}, run="r", reach_timeout_s=None)
    assert b"".join(host.receive(FrameKey("activation", 0, 0, 1), WAIT_S).payload) == b"early"


def test_a_member_cannot_speak_in_anothers_name(endpoint: Callable[[], DataEndpoint]) -> None:
    """Rank 2 is a member with a key of its own, and sends as if it were rank 1."""
    a, b, liar = endpoint(), endpoint(), endpoint()
    a.admit([key_of(b), key_of(liar)])
    host = a.open(1, 0, {1: at(b), 2: at(liar)}, run="r", reach_timeout_s=None)
    false = liar.open(1, 1, {0: at(a)}, run="r", reach_timeout_s=None)
    false.send(frame(1, b"false"))
    until(lambda: a.dropped[1] == 1)
    true = b.open(1, 1, {0: at(a)}, run="r", reach_timeout_s=None)
    true.send(frame(1, b"true!"))
    assert b"".join(host.receive(FrameKey("activation", 0, 0, 1), WAIT_S).payload) == b"true!"


def test_a_false_frame_that_came_before_the_plan_is_dropped_too(endpoint: Callable[[], DataEndpoint]) -> None:
    a, b, liar = endpoint(), endpoint(), endpoint()
    a.admit([key_of(b), key_of(liar)])
    false = liar.open(1, 1, {0: at(a)}, run="r", reach_timeout_s=None)
    false.send(frame(1, b"false"))
    until(lambda: a._inbound._n_bytes == 5)
    host = a.open(1, 0, {1: at(b)}, run="r", reach_timeout_s=None)
    assert a.dropped[1] == 1
    with pytest.raises(TransportTimeout):
        host.receive(FrameKey("activation", 0, 0, 1), 0.0)


def test_who_is_no_member_any_more_is_not_heard(endpoint: Callable[[], DataEndpoint]) -> None:
    """Its connection is open; what comes over it is dropped from then on."""
    a, b = endpoint(), endpoint()
    a.admit([key_of(b)])
    b.reach({0: at(a)}, WAIT_S)
    peer = b.open(1, 1, {0: at(a)}, run="r")
    host = a.open(1, 0, {1: at(b)}, run="r", reach_timeout_s=None)
    peer.send(frame(1, b"first"))
    host.receive(FrameKey("activation", 0, 0, 1), WAIT_S)
    a.admit([])
    peer.send(frame(1, b"again"))
    until(lambda: a.dropped[1] == 1)


def test_a_crowd_at_the_door_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who have waited longest are refused when too many wait."""
    monkeypatch.setattr(admission, "MAX_WAITING", 3)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    door = admission.Admission(context)
    with context.socket(zmq.DEALER) as asks:
        asks.setsockopt(zmq.LINGER, 0)
        asks.connect(admission.ADDRESS)
        for i in range(5):
            ask = [b"", b"1.0", str(i).encode(), b"isthmus", b"127.0.0.1", b"", b"CURVE", bytes([i]) * 32]
            asks.send_multipart(ask)
        until(lambda: bool(door.socket.poll(1000)))
        door.turn(0.0)
        assert [asks.recv_multipart()[2:4] for _ in range(2)] == [[b"0", b"400"], [b"1", b"400"]]
        door.turn(admission.WAIT_S)
        assert [asks.recv_multipart()[2:4] for _ in range(3)] == [[b"%d" % i, b"400"] for i in (2, 3, 4)]
    assert door.refused == 5
    assert door.wait_ms is None
    door.close()
    context.term()
