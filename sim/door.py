"""A door out of a namespace: connections to a port of its loopback are carried to the same port of ours.

So programs inside reach one server of this machine, unshaped, and nothing else. Lives in the
switch's thread (`packet_switch.Watched`); bytes that one side does not take yet are held up to a
limit, then the other side is not read. Knows nothing of what is said.
"""

from __future__ import annotations

import socket
from contextlib import suppress

HELD_BYTES = 1 << 18
READ_BYTES = 1 << 16


class _Half:
    """What comes from one socket and goes to the other."""

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self.source, self.sink = source, sink
        self.held = bytearray()
        self.ended = False
        self.broken = False
        """One of the two was reset, or could not be connected to: the other has to go as well."""

    @property
    def done(self) -> bool:
        return self.ended and not self.held

    def read(self) -> None:
        try:
            data = self.source.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self.broken = True
            return
        self.held += data
        self.ended = not data
        self.write()

    def write(self) -> None:
        try:
            if self.held:
                del self.held[: self.sink.send(self.held)]
        except BlockingIOError:
            return
        except OSError:
            self.broken = True
            return
        if self.done:
            with suppress(OSError):
                self.sink.shutdown(socket.SHUT_WR)


class Door:
    """Listeners inside namespaces, and the address on this side that all of them lead to."""

    def __init__(self, listeners: list[socket.socket], target: tuple[str, int]) -> None:
        self._target = target
        self._listeners = {listener.fileno(): listener for listener in listeners}
        for listener in listeners:
            listener.setblocking(False)
        self._halves: list[tuple[_Half, _Half]] = []

    def wanted(self) -> tuple[list[int], list[int]]:
        reads, writes = list(self._listeners), []
        for pair in self._halves:
            for half in pair:
                if not half.ended and len(half.held) < HELD_BYTES:
                    reads.append(half.source.fileno())
                if half.held:
                    writes.append(half.sink.fileno())
        return reads, writes

    def ready(self, readable: set[int], writable: set[int]) -> None:
        for pair in self._halves:
            for half in pair:
                if half.held and half.sink.fileno() in writable:
                    half.write()
                if not half.ended and half.source.fileno() in readable:
                    half.read()
        for pair in [p for p in self._halves if all(h.done for h in p) or any(h.broken for h in p)]:
            self._halves.remove(pair)
            _close(pair)
        for fd in readable & self._listeners.keys():
            self._accept(self._listeners[fd])

    def _accept(self, listener: socket.socket) -> None:
        try:
            inside, _ = listener.accept()
        except OSError:
            return  # it went away again
        outside = socket.socket()
        for end in (inside, outside):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        outside.connect_ex(self._target)  # a refusal shows when it is read: then both are closed
        self._halves.append((_Half(inside, outside), _Half(outside, inside)))

    def close(self) -> None:
        for pair in self._halves:
            _close(pair)
        self._halves.clear()


def _close(pair: tuple[_Half, _Half]) -> None:
    for half in pair:
        half.source.close()
