"""What can befall this process's own TCP connections, done to the kernel's sockets from within. Linux only.

ZeroMQ and gRPC keep their sockets to themselves, so they are found among the open files. For tests; knows a
connection only by its peer's port: the coordinator's carries the session, all others tensors.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress

_ATTACH_FILTER, _DETACH_FILTER, _MAX_PACING_RATE = 26, 27, 47
_TCP_ESTABLISHED = 1
_NO_ADDRESS = struct.pack("@HH12x", socket.AF_UNSPEC, 0)
_GARBAGE = b"\xa5" * 1024
"""More than the frame whose size the second byte is taken for, so that nobody waits for the rest of it."""


def connections(coordinator_port: int, session: bool) -> Iterator[socket.socket]:
    """Handles of the established ones that are the session's, or that are not; to be closed by the caller,
    which leaves the connection as it is."""
    seen: set[str] = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the listing's own, or closed by now
            what = os.readlink(f"/proc/self/fd/{fd}")
            if what in seen or not what.startswith("socket:"):
                continue  # a handle that was made here may have the listing's own number
            seen.add(what)
            s = socket.socket(fileno=os.dup(int(fd)))
            if _is_wanted(s, coordinator_port, session):
                yield s
            else:
                s.close()


def _is_wanted(s: socket.socket, coordinator_port: int, session: bool) -> bool:
    if s.family not in (socket.AF_INET, socket.AF_INET6) or s.type != socket.SOCK_STREAM:
        return False
    if s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _TCP_ESTABLISHED:
        return False
    port: int = s.getpeername()[1]
    return (port == coordinator_port) == session


def reset(coordinator_port: int, session: bool) -> None:
    """End them with a TCP reset: what was under way in either direction is gone."""
    libc = ctypes.CDLL(None)
    for s in connections(coordinator_port, session):
        with s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            libc.connect(s.fileno(), _NO_ADDRESS, len(_NO_ADDRESS))


def corrupt(coordinator_port: int) -> None:
    """Bytes that nobody sent, somewhere in what is sent."""
    for s in connections(coordinator_port, session=False):
        with s, suppress(OSError):  # full, or closed by now
            s.send(_GARBAGE, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def mute(coordinator_port: int) -> list[socket.socket]:
    """Whatever comes in is dropped before TCP sees it; acknowledgements too. For `unmute`."""
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    program = struct.pack("@HP", 1, ctypes.addressof(drop_all))
    return _set(coordinator_port, _ATTACH_FILTER, program)


def unmute(muted: list[socket.socket]) -> None:
    _let_go(muted, _DETACH_FILTER, 0)


def slow(coordinator_port: int, rate_Bps: int) -> list[socket.socket]:
    """What is sent leaves at this rate, connection by connection. For `as_fast_as_before`."""
    return _set(coordinator_port, _MAX_PACING_RATE, rate_Bps)


def as_fast_as_before(slowed: list[socket.socket]) -> None:
    _let_go(slowed, _MAX_PACING_RATE, -1)


def _set(coordinator_port: int, option: int, value: int | bytes) -> list[socket.socket]:
    """The tensor connections, each with this option of the kernel's."""
    found = list(connections(coordinator_port, session=False))
    for s in found:
        s.setsockopt(socket.SOL_SOCKET, option, value)
    return found


def _let_go(found: list[socket.socket], option: int, value: int) -> None:
    for s in found:
        with s, suppress(OSError):  # closed by now
            s.setsockopt(socket.SOL_SOCKET, option, value)
