"""A door between two listeners on loopback, turned by hand: bytes both ways, ends, refusals."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator

import pytest

from sim.door import HELD_BYTES, Door


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as s:
        s.settimeout(20)
        yield s


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as s:
        yield s


@pytest.fixture
def door(server: socket.socket, listener: socket.socket) -> Iterator[Door]:
    opened = Door([listener], server.getsockname())
    yield opened
    opened.close()


def turn(door: Door, until: Callable[[], bool]) -> None:
    """Do what the switch's thread does, until something is so."""
    while not until():
        reads, writes = door.wanted()
        readable, writable, _ = select.select(reads, writes, [], 20)
        assert readable or writable, "nothing happened for 20 s"
        door.ready(set(readable), set(writable))


def test_bytes_pass_both_ways_and_an_end_is_passed_on(
    door: Door, server: socket.socket, listener: socket.socket
) -> None:
    with socket.create_connection(listener.getsockname()) as client:
        client.settimeout(20)
        client.sendall(b"ping" * 1000)
        client.shutdown(socket.SHUT_WR)
        turn(door, lambda: bool(select.select([server], [], [], 0)[0]))
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(20)
            got = bytearray()
            ended = False

            def read_all() -> bool:
                nonlocal ended
                while select.select([accepted], [], [], 0)[0] and not ended:
                    data = accepted.recv(1 << 16)
                    got.extend(data)
                    ended = not data
                return ended

            turn(door, read_all)
            assert got == b"ping" * 1000
            accepted.sendall(b"pong")
            accepted.shutdown(socket.SHUT_WR)
            turn(door, lambda: len(door.wanted()[0]) == 1)
            assert client.recv(100) == b"pong"
            assert client.recv(100) == b""


def test_a_side_that_does_not_read_holds_the_other_back(
    door: Door, server: socket.socket, listener: socket.socket
) -> None:
    with socket.create_connection(listener.getsockname()) as client:
        turn(door, lambda: bool(select.select([server], [], [], 0)[0]))
        accepted, _ = server.accept()
        with accepted:
            client.setblocking(False)
            sent = 0

            def pour() -> bool:
                nonlocal sent
                try:
                    while True:
                        sent += client.send(bytes(1 << 16))
                except BlockingIOError:
                    reads, _ = door.wanted()
                    return len(reads) == 2  # the listener and the way back: the client is not read

            turn(door, pour)
            accepted.settimeout(20)
            got = 0

            def drained() -> bool:
                nonlocal got
                while select.select([accepted], [], [], 0)[0]:
                    got += len(accepted.recv(1 << 20))
                return got == sent

            turn(door, drained)
            assert sent > HELD_BYTES


def test_nobody_behind_the_door_closes_it_on_whoever_comes(listener: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = gone.getsockname()
    door = Door([listener], address)
    with socket.create_connection(listener.getsockname()) as client:
        client.settimeout(20)
        turn(door, lambda: bool(select.select([client], [], [], 0)[0]))
        assert client.recv(10) == b""
    assert len(door.wanted()[0]) == 1
