"""Back-pressure on the sender's side: bytes handed over and not yet on the wire.

Knows no sockets; blocks whoever hands over more than the cap, and lets go when a plan ends.
"""

from __future__ import annotations

import threading
from collections import defaultdict

from worker.transport import TransportAborted


class Queued:
    """Bytes by (peer, kind). A frame larger than the cap passes alone."""

    def __init__(self, cap_bytes: int) -> None:
        self._cap = cap_bytes
        self._bytes: dict[tuple[int, str], int] = defaultdict(int)
        self._changed = threading.Condition()
        self.aborted: str | None = None

    def add(self, key: tuple[int, str], n: int) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: self.aborted is not None or self._bytes[key] == 0 or self._bytes[key] + n <= self._cap
            )
            if self.aborted is not None:
                raise TransportAborted(self.aborted)
            self._bytes[key] += n

    def sent(self, key: tuple[int, str], n: int) -> None:
        with self._changed:
            self._bytes[key] -= n
            self._changed.notify_all()

    def abort(self, reason: str) -> None:
        with self._changed:
            self.aborted = self.aborted or reason
            self._changed.notify_all()
