"""The switch with frames in hand: who gets what, in which order, and what becomes of the rest. No device."""

from __future__ import annotations

import errno
import os
import struct
from random import Random

from sim.packet_switch import PacketSwitch
from sim.segments import HEADER_BYTES
from sim.shaped_link import Conditions, ShapedLink

ADDRESSES = [bytes([10, 99, 0, i + 1]) for i in range(3)]


def packet(dst: bytes, payload: bytes) -> bytes:
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 0, 0, 64, 17, 0, ADDRESSES[0], dst)
    return bytes(HEADER_BYTES) + ip + payload


class World:
    """A switch between three devices that are numbers, and what it wrote to each."""

    def __init__(self, **conditions: float) -> None:
        self.links = {
            (a, b): ShapedLink([(0.0, Conditions(**conditions))], Random(0))
            for a in range(3)
            for b in range(3)
            if a != b
        }
        self.written: list[tuple[int, bytes]] = []
        self.refuses = -1
        self.switch = PacketSwitch([100, 101, 102], ADDRESSES, self.links, write=self.write)

    def write(self, fd: int, frame: bytes) -> int:
        if fd == self.refuses:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.written.append((fd, frame[HEADER_BYTES + 20 :]))
        return len(frame)


def test_packets_reach_their_address_when_they_are_due_and_in_order() -> None:
    world = World(delay_s=0.1)
    for i in range(5):
        world.switch.take(0, packet(ADDRESSES[1 + i % 2], bytes([i])), 0.01 * i)
    world.switch.give(0.0999)
    assert world.written == []
    assert world.switch.on_the_way == 5
    world.switch.give(0.125)
    assert world.written == [(101, b"\0"), (102, b"\1"), (101, b"\2")]
    world.switch.give(9.0)
    assert [p for _, p in world.written] == [bytes([i]) for i in range(5)]
    assert world.switch.on_the_way == 0
    assert world.links[0, 1].count.delivered == 3
    assert world.links[0, 1].count.delivered_bytes == 3 * 21


def test_what_is_due_together_keeps_its_order() -> None:
    world = World()
    for i in range(100):
        world.switch.take(0, packet(ADDRESSES[1], bytes([i])), 1.0)
    world.switch.give(1.0)
    assert [p[0] for _, p in world.written] == list(range(100))


def test_what_goes_nowhere_is_counted() -> None:
    world = World()
    world.switch.take(0, packet(b"\x08\x08\x08\x08", b"out"), 0.0)
    world.switch.take(0, packet(ADDRESSES[0], b"to itself"), 0.0)
    world.switch.take(0, bytes(HEADER_BYTES) + b"\x60" + bytes(60), 0.0)
    world.refuses = 101
    world.switch.take(0, packet(ADDRESSES[1], b"to one that is gone"), 0.0)
    world.switch.give(1.0)
    assert world.written == []
    refused = world.switch.refused
    assert (refused.no_such_address, refused.not_ipv4, refused.not_accepted) == (2, 1, 1)


def test_the_loop_reads_devices_until_it_is_stopped_and_lets_others_watch() -> None:
    ours, theirs = zip(*(os.pipe() for _ in range(2)), strict=True)
    bell, rope = os.pipe()
    os.set_blocking(ours[0], False)
    os.set_blocking(ours[1], False)
    link = ShapedLink([(0.0, Conditions(delay_s=0.001))], Random(0))
    heard: list[bytes] = []

    class Bell:
        def wanted(self) -> tuple[list[int], list[int]]:
            return [bell], []

        def ready(self, readable: set[int], writable: set[int]) -> None:
            assert (readable, writable) == ({bell}, set())
            heard.append(os.read(bell, 10))

    def write(fd: int, frame: bytes) -> int:
        assert fd == ours[1]
        return os.write(rope, frame[HEADER_BYTES + 20 :])  # the packet's arrival rings

    switch = PacketSwitch(ours, ADDRESSES[:2], {(0, 1): link}, write=write)
    os.write(theirs[0], packet(ADDRESSES[1], b"ding"))
    switch.run(lambda: bool(heard), [Bell()])
    assert heard == [b"ding"]
    for fd in (*ours, *theirs, bell, rope):
        os.close(fd)
