"""Where arrived frames wait for the one who asks for them by key. Shared by every transport.

Knows nothing of how frames come; wakes whoever waits when a frame, or the plan's end, comes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from worker.transport import Frame, FrameKey, TransportAborted, TransportTimeout


class Inbox:
    """Frames of one plan version, by key. Each frame is taken once; any thread may put or take."""

    def __init__(self, plan_version: int, on_taken: Callable[[Frame], None] | None = None) -> None:
        self.plan_version = plan_version
        self.stale = 0
        self._frames: dict[FrameKey, Frame] = {}
        self._changed = threading.Condition()
        self._reason: str | None = None
        self._on_taken = on_taken

    def put(self, frame: Frame) -> bool:
        """Keep the frame; False (and counted) when it belongs to another plan."""
        with self._changed:
            if frame.plan_version != self.plan_version:
                self.stale += 1
                return False
            self._frames[frame.key] = replace(frame, arrived_s=time.monotonic())
            self._changed.notify_all()
            return True

    def has(self, key: FrameKey) -> bool:
        with self._changed:
            return key in self._frames

    def take(self, key: FrameKey, timeout_s: float) -> Frame:
        """Wait for the frame. Raises TransportAborted, TransportTimeout."""
        with self._changed:
            self._changed.wait_for(lambda: key in self._frames or self._reason is not None, timeout_s)
            if self._reason is not None:
                raise TransportAborted(self._reason)
            frame = self._frames.pop(key, None)
        if frame is None:
            raise TransportTimeout(
                f"no {key.kind} of step {key.step}, micro-batch {key.mb}, came from rank {key.src} "
                f"within {timeout_s:g} s"
            )
        if self._on_taken is not None:
            self._on_taken(frame)
        return frame

    def abort(self, reason: str) -> None:
        """Wake everyone; the first reason stays."""
        with self._changed:
            self._reason = self._reason or reason
            self._changed.notify_all()

    def check(self) -> None:
        """Raise TransportAborted if the plan was ended."""
        if self._reason is not None:
            raise TransportAborted(self._reason)
