"""The relay over real sockets: it joins the right two, passes everything on, and serves nobody else."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest

from protos import orchestrator_pb2 as pb
from protos import relay as relay_module
from protos.relay import DIAL, JOINED, LISTEN, NONCE_BYTES, Relay, answer
from protos.splice import Ends, connect
from worker.transport import Frame, FrameKey, PeerUnreachable
from worker.tunnel import Tunnels
from worker.ways import Ways
from worker.zmq_transport import CurveKeys, DataEndpoint, PeerAddress

KEY = b"k" * 32
A, B = b"a" * 40, b"b" * 40
WAIT_S = 20.0
T = TypeVar("T")


def lives(body: Callable[[Relay, str], Coroutine[Any, Any, None]]) -> None:
    """Run a test beside a relay, with a limit against hanging."""

    async def both() -> None:
        relay = Relay(KEY)
        try:
            await body(relay, await relay.listen("127.0.0.1:0"))
        finally:
            await relay.close()

    asyncio.run(asyncio.wait_for(both(), WAIT_S))


async def hello(address: str, role: bytes, public: bytes, key: bytes = KEY) -> Ends:
    ends = await connect(address)
    ends.writer.write(answer(key, await ends.reader.readexactly(NONCE_BYTES), role, public))
    return ends


async def ended(ends: Ends) -> bool:
    try:
        return await ends.reader.read(1) == b""
    except ConnectionError:
        return True


def test_two_are_joined_and_every_byte_is_passed_on() -> None:
    async def body(relay: Relay, address: str) -> None:
        other = await hello(address, LISTEN, B)
        listener = await hello(address, LISTEN, A)
        dialler = await hello(address, DIAL, A)
        assert await dialler.reader.readexactly(1) == JOINED
        assert await listener.reader.readexactly(1) == JOINED
        data = bytes(range(256)) * 4096
        for one, two in ((dialler, listener), (listener, dialler)):
            one.writer.write(data)
            assert await two.reader.readexactly(len(data)) == data
        assert relay.joined == 1
        assert relay.n_bytes == 2 * len(data)
        dialler.close()
        assert await ended(listener)
        for ends in (other, listener):
            ends.close()

    lives(body)


def test_a_dialler_may_come_first() -> None:
    async def body(_: Relay, address: str) -> None:
        dialler = await hello(address, DIAL, A)
        listener = await hello(address, LISTEN, A)
        assert await dialler.reader.readexactly(1) == JOINED
        for ends in (dialler, listener):
            ends.close()

    lives(body)


def test_a_listener_that_left_is_not_given_to_anybody() -> None:
    async def body(relay: Relay, address: str) -> None:
        gone = await hello(address, LISTEN, A)
        while not relay._waiting:
            await asyncio.sleep(0)
        gone.close()
        while relay._waiting:
            await asyncio.sleep(0.001)
        dialler = await hello(address, DIAL, A)
        listener = await hello(address, LISTEN, A)
        dialler.writer.write(b"x")
        assert await listener.reader.readexactly(2) == JOINED + b"x"
        for ends in (dialler, listener):
            ends.close()

    lives(body)


@pytest.mark.parametrize("role", [DIAL, LISTEN, b"?"])
def test_who_has_not_the_runs_key_or_says_nonsense_is_refused(role: bytes) -> None:
    async def body(relay: Relay, address: str) -> None:
        stranger = await hello(address, role, A, KEY if role == b"?" else b"x" * 32)
        assert await ended(stranger)
        assert relay.refused == 1
        assert relay.joined == 0
        stranger.close()

    lives(body)


def test_what_was_said_once_is_of_no_use_again() -> None:
    """Somebody who reads the network answers with what a member answered: the nonce is another."""

    async def body(_: Relay, address: str) -> None:
        member = await connect(address)
        heard = answer(KEY, await member.reader.readexactly(NONCE_BYTES), DIAL, A)
        thief = await connect(address)
        await thief.reader.readexactly(NONCE_BYTES)
        thief.writer.write(heard)
        assert await ended(thief)
        for ends in (member, thief):
            ends.close()

    lives(body)


def test_a_dialler_that_nobody_waits_for_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "DIAL_S", 0.05)
    monkeypatch.setattr(relay_module, "HELLO_S", 0.05)

    async def body(_: Relay, address: str) -> None:
        dialler = await hello(address, DIAL, A)
        silent = await connect(address)
        await silent.reader.readexactly(NONCE_BYTES)
        assert await ended(dialler)
        assert await ended(silent)
        for ends in (dialler, silent):
            ends.close()

    lives(body)


def test_connections_are_counted_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "MAX_WAITING", 2)

    async def body(relay: Relay, address: str) -> None:
        waiting = [await hello(address, LISTEN, A) for _ in range(3)]
        assert await ended(waiting[0]) or await ended(waiting[1]), "the oldest made way"
        monkeypatch.setattr(relay_module, "MAX_CONNECTIONS", 0)
        late = await connect(address)
        assert await ended(late)
        assert relay.refused == 1
        for ends in (*waiting, late):
            ends.close()

    lives(body)


# ---- with endpoints


@pytest.fixture
def relay() -> Iterator[tuple[Relay, str]]:
    """A relay in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    made = Relay(KEY)
    address = asyncio.run_coroutine_threadsafe(made.listen("127.0.0.1:0"), loop).result(WAIT_S)
    yield made, address
    asyncio.run_coroutine_threadsafe(made.close(), loop).result(WAIT_S)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


class Site:
    """A worker's endpoint behind a NAT: what it advertises leads nowhere."""

    def __init__(self, relay: str) -> None:
        self.keys = CurveKeys.new()
        self.endpoint = DataEndpoint("127.0.0.1:0", 2, self.keys)
        self.tunnels = Tunnels(relay, KEY, self.keys.public, self.endpoint.address)
        self.ways = Ways({}, self.tunnels)
        self.peer = pb.Peer(
            name=repr(self.keys.public), data_address="127.0.0.1:9", curve_public_key=self.keys.public
        )

    def close(self) -> None:
        self.tunnels.close()
        self.endpoint.close()


@pytest.fixture
def sites(relay: tuple[Relay, str]) -> Iterator[list[Site]]:
    made = [Site(relay[1]) for _ in range(2)]
    for site in made:
        site.endpoint.admit([s.keys.public for s in made])
    yield made
    for site in made:
        site.close()


def probe(site: Site) -> Callable[[PeerAddress, float], Any]:
    def measure(at: PeerAddress, timeout_s: float) -> Any:
        return site.endpoint.measure(at, 200_000, 2, 0.3 if at.host_port.endswith(":9") else timeout_s)

    return measure


def test_who_cannot_be_reached_is_measured_and_sent_frames_through_the_relay(
    relay: tuple[Relay, str], sites: list[Site]
) -> None:
    a, b = sites
    for own, other in ((a, b), (b, a)):
        found = own.ways.measured(other.peer, probe(own), WAIT_S)
        assert found.rtt_s > 0
        assert found.bandwidth_striped_Bps > 0
        assert own.ways.is_relayed(other.peer.name)
    opened = [
        own.endpoint.open(1, rank, {1 - rank: own.ways.address(other.peer)}, run="r")
        for rank, (own, other) in enumerate(((a, b), (b, a)))
    ]
    data = bytes(range(256)) * 8192
    opened[0].send(
        Frame(FrameKey("activation", 0, 0, 0), 1, 1, "identity", "uint8", (len(data),), (memoryview(data),))
    )
    got = opened[1].receive(FrameKey("activation", 0, 0, 0), WAIT_S)
    assert b"".join(got.payload) == data
    assert relay[0].n_bytes > len(data)
    for transport in opened:
        transport.close()


def test_who_can_be_reached_is_not_relayed(relay: tuple[Relay, str], sites: list[Site]) -> None:
    a, b = sites
    open_peer = pb.Peer(name="b", data_address=b.endpoint.address, curve_public_key=b.keys.public)
    a.ways.measured(open_peer, probe(a), WAIT_S)
    assert not a.ways.is_relayed("b")
    assert relay[0].joined == 0


def test_the_relay_gives_no_stranger_a_way_in(
    relay: tuple[Relay, str], sites: list[Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the relay's key, as a member that was sent home has; the endpoint does not know its key."""
    monkeypatch.setattr("worker.admission.WAIT_S", 0.0)
    a, _ = sites
    stranger = Site(relay[1])
    try:
        with pytest.raises(PeerUnreachable, match="not through the relay either"):
            stranger.ways.measured(a.peer, probe(stranger), 0.5)
    finally:
        stranger.close()
    deadline = time.monotonic() + WAIT_S
    while not a.endpoint.refused:
        assert time.monotonic() < deadline
        time.sleep(0.005)
