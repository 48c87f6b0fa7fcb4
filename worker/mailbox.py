"""Frames that came, looked up by key; who waits for one is woken when it is there.

Knows nothing of how frames travel. It decides when a frame's credit goes back to its sender:

- when the frame is consumed, so that a receiver that computes holds at most the credit; or
- when somebody waits for a frame of the same sender and kind that has not come. That frame is
  queued behind the ones held here (frames may be consumed in another order than they were
  sent), so to withhold the credit then would be a deadlock. Memory above the credit is taken
  only in that case, and only until the awaited frame arrives.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace

from worker.limits import cost_bytes
from worker.transport import Frame, FrameKey, TransportAborted, TransportTimeout

LaneKey = tuple[int, str]
"""(sender, kind)."""

Grant = Callable[[int, str, int], None]
"""(sender, kind, bytes): give credit back. Called without any lock of the mailbox."""


class Mailbox:
    """Thread-safe. `grant` is told of every byte of credit exactly once."""

    def __init__(self, grant: Grant) -> None:
        self._grant = grant
        self._changed = threading.Condition()
        self._frames: dict[FrameKey, deque[Frame]] = {}
        self._withheld: dict[LaneKey, dict[FrameKey, int]] = {}
        self._waiting: Counter[LaneKey] = Counter()
        self._reason: str | None = None
        self.n_bytes = 0
        """Payload bytes that wait here."""

    def put(self, frame: Frame) -> None:
        """Take a frame in; after an abort it is forgotten."""
        key, lane, cost = frame.key, (frame.key.src, frame.key.kind), cost_bytes(frame)
        with self._changed:
            if self._reason is not None:
                return
            arrived = replace(frame, arrived_s=time.monotonic())
            self._frames.setdefault(key, deque()).append(arrived)
            self.n_bytes += frame.n_bytes
            starving = self._waiting[lane] > 0
            if not starving:
                held = self._withheld.setdefault(lane, {})
                held[key] = held.get(key, 0) + cost
            self._changed.notify_all()
        if starving:
            self._grant(*lane, cost)

    def receive(self, key: FrameKey, timeout_s: float) -> Frame:
        """Wait for the frame and take it. Raises TransportAborted, TransportTimeout."""
        deadline = time.monotonic() + timeout_s
        lane = (key.src, key.kind)
        with self._changed:
            frame, cost = self._take(key)
            if frame is None:
                self._waiting[lane] += 1
                cost = sum(self._withheld.pop(lane, {}).values())
        if cost:
            self._grant(*lane, cost)
        if frame is not None:
            return frame
        with self._changed:
            try:
                while True:
                    frame, cost = self._take(key)
                    if frame is not None:
                        break
                    left_s = deadline - time.monotonic()
                    if left_s <= 0:
                        raise TransportTimeout(self._timeout_text(key, timeout_s))
                    self._changed.wait(left_s)
            finally:
                self._waiting[lane] -= 1
        if cost:
            self._grant(*lane, cost)
        return frame

    def _take(self, key: FrameKey) -> tuple[Frame | None, int]:
        """(the frame, the credit that goes back with it). Called under the lock."""
        if self._reason is not None:
            raise TransportAborted(self._reason)
        frames = self._frames.get(key)
        if not frames:
            return None, 0
        frame = frames.popleft()
        self.n_bytes -= frame.n_bytes
        held = self._withheld.get((key.src, key.kind), {})
        if frames:
            cost = min(held.get(key, 0), cost_bytes(frame))
            if cost:
                held[key] -= cost
        else:
            del self._frames[key]
            cost = held.pop(key, 0)
        return frame, cost

    def _timeout_text(self, key: FrameKey, timeout_s: float) -> str:
        others = sorted(
            (k for k in self._frames if k.src == key.src), key=lambda k: (k.kind, k.step, k.mb, k.tag)
        )
        there = (
            f"{len(others)} other frames of it wait, the first {name(others[0])}" if others else "none came"
        )
        return f"waited {timeout_s:g} s for {name(key)} from rank {key.src}; of that rank {there}"

    def ready(self, key: FrameKey) -> bool:
        with self._changed:
            return bool(self._frames.get(key))

    def abort(self, reason: str) -> None:
        """Wake every waiting call and forget the frames. The first reason stays."""
        with self._changed:
            if self._reason is None:
                self._reason = reason
            self._frames.clear()
            self._withheld.clear()
            self.n_bytes = 0
            self._changed.notify_all()


def name(key: FrameKey) -> str:
    """`activation (step 3, micro-batch 1, tag 0)`."""
    return f"{key.kind} (step {key.step}, micro-batch {key.mb}, tag {key.tag})"
