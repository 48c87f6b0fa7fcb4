"""Who may connect to a worker's data address: only keys that the coordinator named (ZeroMQ's ZAP, RFC 27).

The socket asks about each connection before it is taken. A key that is not known may be that of a member
whom the coordinator has announced to others first, so the answer waits for WAIT_S: ZeroMQ never tries again
after a refusal. Few wait at a time; a stranger costs one place in that line. Lives in the I/O thread; `admit`
may be called from any. Time is an argument.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import zmq
from zmq.utils import z85

log = logging.getLogger(__name__)

ADDRESS = "inproc://zeromq.zap.01"
DOMAIN = b"isthmus"
WAIT_S = 10.0
MAX_WAITING = 256
LOGGED_REFUSALS = 20
_VERSION = b"1.0"


@dataclass(frozen=True, slots=True)
class _Asked:
    path: bytes
    request: bytes
    address: bytes
    key: bytes
    since_s: float


class Admission:
    """Answers for every CURVE socket of one context that is in DOMAIN."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.socket = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(ADDRESS)
        self.refused = 0
        self._admitted: frozenset[bytes] = frozenset()
        self._waiting: deque[_Asked] = deque()

    def admit(self, keys: Iterable[bytes]) -> None:
        """These and no others, from now on."""
        self._admitted = frozenset(keys)

    def admits(self, key: bytes) -> bool:
        return key in self._admitted

    @property
    def wait_ms(self) -> int | None:
        """How long the I/O thread may sleep; None: as long as it likes."""
        return 250 if self._waiting else None

    def turn(self, now_s: float) -> None:
        """Take what was asked, answer what can be answered."""
        while True:
            try:
                parts = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            self._take(parts, now_s)
        waiting, self._waiting = self._waiting, deque()
        for asked in waiting:
            if self.admits(asked.key):
                self._answer(asked, b"200")
            elif now_s - asked.since_s >= WAIT_S:
                self._refuse(asked)
            else:
                self._waiting.append(asked)

    def _take(self, parts: list[bytes], now_s: float) -> None:
        if len(parts) != 9 or parts[2] != _VERSION or parts[7] != b"CURVE" or len(parts[8]) != 32:
            return  # ZeroMQ itself sends these; another mechanism finds no answer and times out
        asked = _Asked(parts[0], parts[3], parts[5], z85.encode(parts[8]), now_s)
        if len(self._waiting) >= MAX_WAITING:
            self._refuse(self._waiting.popleft())
        self._waiting.append(asked)

    def _refuse(self, asked: _Asked) -> None:
        self.refused += 1
        if self.refused <= LOGGED_REFUSALS:
            where = asked.address.decode(errors="replace")
            log.warning("refused a connection from %s: its key is no member's of this run", where)
        self._answer(asked, b"400")

    def _answer(self, asked: _Asked, code: bytes) -> None:
        user = asked.key if code == b"200" else b""
        parts = [asked.path, b"", _VERSION, asked.request, code, b"", user, b""]
        self.socket.send_multipart(parts, zmq.NOBLOCK)

    def close(self) -> None:
        self.socket.close(0)
