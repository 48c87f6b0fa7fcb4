"""One kind of frame from one rank to another: what waits, what is on its way, what may go next.

Pure accounting: no lock, no socket, no clock. Whoever owns a lane guards it.

The rule of credit: bytes are outstanding from the moment a frame may go until the receiver's
side says it was consumed. A frame goes when it fits into the credit, or when nothing is
outstanding, so that one frame above the cap still travels (alone).
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Lane(Generic[T]):
    """A first-in-first-out queue with a byte credit."""

    __slots__ = ("_queue", "credit_bytes", "outstanding_bytes", "queue_bytes", "queued_bytes")

    def __init__(self, credit_bytes: int, queue_bytes: int) -> None:
        self.credit_bytes = credit_bytes
        self.queue_bytes = queue_bytes
        self.queued_bytes = 0
        self.outstanding_bytes = 0
        self._queue: deque[tuple[int, T]] = deque()

    def has_room(self, cost: int) -> bool:
        """Whether a frame may be queued; an empty queue takes any frame."""
        return not self._queue or self.queued_bytes + cost <= self.queue_bytes

    def push(self, cost: int, item: T) -> None:
        self._queue.append((cost, item))
        self.queued_bytes += cost

    def pop(self) -> T | None:
        """The next frame if its credit is there; it counts as outstanding from now on."""
        if not self._queue:
            return None
        cost, item = self._queue[0]
        if self.outstanding_bytes and self.outstanding_bytes + cost > self.credit_bytes:
            return None
        self._queue.popleft()
        self.queued_bytes -= cost
        self.outstanding_bytes += cost
        return item

    def acknowledge(self, cost: int) -> None:
        """The receiver consumed so many bytes. More than was outstanding counts as all of it."""
        self.outstanding_bytes = max(0, self.outstanding_bytes - cost)

    def drain(self) -> list[T]:
        """Everything that waits, without regard to credit."""
        items = [item for _, item in self._queue]
        self.clear()
        return items

    def clear(self) -> None:
        self._queue.clear()
        self.queued_bytes = self.outstanding_bytes = 0

    def __len__(self) -> int:
        return len(self._queue)
