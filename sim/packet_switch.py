"""An IP switch in user space: takes packets from TUN devices and gives them to others, through links.

Real TCP runs over it, so slow start, congestion control and recovery are the kernel's own. One
thread: it sleeps until a packet comes or one is due. A frame of several joined packets is delayed
as one, by the time that all of them take. Knows no trace and no namespace: devices are
descriptors, links are `ShapedLink`s, and other descriptors may be watched beside them.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Protocol

from sim.segments import FRAME_BYTES, parse, part
from sim.shaped_link import ShapedLink

FRAMES_A_TURN = 32
"""Frames read from a device before the others and the due ones have their turn."""
EARLY_S = 50e-6
"""A packet due within this is given at once: the kernel's timers are not finer."""


class Watched(Protocol):
    """Something else that lives in the switch's thread."""

    def wanted(self) -> tuple[list[int], list[int]]:
        """Descriptors to be read from, and to be written to, when that is possible."""

    def ready(self, readable: set[int], writable: set[int]) -> None:
        """Some of them can be."""


@dataclass(slots=True)
class Refused:
    """Packets that no link took or no device accepted."""

    not_ipv4: int = 0
    no_such_address: int = 0
    not_accepted: int = 0
    """By the receiving device: it is down, or its namespace has ended."""


class PacketSwitch:
    """`tuns[i]` is the device of `addresses[i]` (4 bytes); `links[i, j]` carries what i sends to j."""

    def __init__(
        self,
        tuns: Sequence[int],
        addresses: Sequence[bytes],
        links: Mapping[tuple[int, int], ShapedLink],
        clock: Callable[[], float] = time.monotonic,
        write: Callable[[int, bytes], int] = os.write,
    ) -> None:
        self._tuns = list(tuns)
        self._place = {address: i for i, address in enumerate(addresses)}
        self._links = dict(links)
        self._clock, self._write = clock, write
        self._waiting: list[tuple[float, int, int, ShapedLink, int, int, bytes]] = []
        """(due, number, device, link, packets, their bytes, frame), a heap; numbers keep the order of what is
        due together."""
        self._number = 0
        self.refused = Refused()

    @property
    def on_the_way(self) -> int:
        """Packets that have been taken and not given yet."""
        return sum(entry[4] for entry in self._waiting)

    def take(self, src: int, frame: bytes, now_s: float) -> None:
        """Put one frame that device `src` sent on its link."""
        packet = parse(frame)
        if packet is None:
            self.refused.not_ipv4 += 1
            return
        dst = self._place.get(packet.destination, src)
        if dst == src:
            self.refused.no_such_address += packet.n
            return
        link = self._links[src, dst]
        for due_s, first, stop in link.take(now_s, packet.n, packet.full_bytes, packet.last_bytes):
            self._number += 1
            n_bytes = packet.bytes_of(first, stop)
            frame = part(packet, first, stop)
            heappush(
                self._waiting, (due_s, self._number, self._tuns[dst], link, stop - first, n_bytes, frame)
            )

    def give(self, now_s: float) -> None:
        """Hand over every frame that is due at `now_s`."""
        waiting = self._waiting
        while waiting and waiting[0][0] <= now_s:
            _, _, tun, link, n, n_bytes, frame = heappop(waiting)
            try:
                self._write(tun, frame)
            except OSError:
                self.refused.not_accepted += n
                continue
            link.count.delivered += n
            link.count.delivered_bytes += n_bytes

    def run(self, stopped: Callable[[], bool], watched: Sequence[Watched] = ()) -> None:
        """Switch until `stopped`, which is asked after every wake-up: let signals wake something watched."""
        devices = {tun: i for i, tun in enumerate(self._tuns)}
        while not stopped():
            now_s = self._clock()
            self.give(now_s + EARLY_S)
            wait_s = max(0.0, self._waiting[0][0] - now_s) if self._waiting else None
            reads, writes = list(devices), []
            for other in watched:
                its_reads, its_writes = other.wanted()
                reads += its_reads
                writes += its_writes
            readable, writable, _ = select.select(reads, writes, [], wait_s)
            others = set(readable) - devices.keys()
            for fd in readable:
                if fd in devices:
                    self._read(devices[fd], fd)
            if others or writable:
                for other in watched:
                    other.ready(others, set(writable))

    def _read(self, src: int, tun: int) -> None:
        for _ in range(FRAMES_A_TURN):
            try:
                frame = os.read(tun, FRAME_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EBADFD, errno.EIO):  # the device has gone, or is down
                    return
                raise
            self.take(src, frame, self._clock())
