"""Whether a link's connections hold: what was on its way over one that broke is lost, and nobody resends it.

ZeroMQ connects again by itself and says nothing of the frames that went under, for which the receiver would
wait in vain. So every stream is watched: a connection that ends while frames or credits are under way, or
that does not come back, cuts the link for this plan. TCP notices a peer that has gone silent
(`addresses.py`).
Lives in the I/O thread; knows no plan and no coordinator.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

NEWS_S = 0.5
"""What the coordinator may need to say that the peer itself is gone, which ends the plan anyway."""
RETURN_S = 5.0
"""How long a connection that carried nothing may take to come back. After bytes that are no ZeroMQ it never
does."""
MEET_S = 30.0
"""How long a connection with frames for it may take to come about."""
TURN_MS = 250
_EVENTS = zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED


class LinkWatch:
    """The streams of one link."""

    def __init__(self, sockets: Iterable[zmq.Socket[bytes]], poller: zmq.Poller) -> None:
        self._poller = poller
        self._sockets = list(sockets)
        self._monitors = [s.get_monitor_socket(_EVENTS) for s in self._sockets]
        self._down_s: dict[int, float] = {}
        """By stream: since when it has no connection."""
        self._unmet = set(range(len(self._sockets)))
        """Streams that have had no connection yet."""
        self._owed_s: float | None = None
        """Since when they have kept frames waiting."""
        self._lost_s: float | None = None
        """When something under way was lost."""
        for m in self._monitors:
            poller.register(m, zmq.POLLIN)

    @property
    def wait_ms(self) -> int | None:
        """How soon `turn` wants to be called; None: when something happens."""
        waits = self._down_s or self._lost_s is not None or self._owed_s is not None
        return TURN_MS if waits else None

    @property
    def whole(self) -> bool:
        """Whether no connection is known to be broken."""
        return not self._down_s

    def turn(self, ready: Mapping[Any, int], now_s: float, under_way: bool) -> str:
        """'' or how the link is cut. `under_way`: frames are sent and not acknowledged."""
        for i, monitor in enumerate(self._monitors):
            if ready.get(monitor, 0) & zmq.POLLIN:
                self._take(i, monitor, now_s, under_way)
        if not (self._unmet and under_way):
            self._owed_s = None
        elif self._owed_s is None:
            self._owed_s = now_s
        elif now_s - self._owed_s >= MEET_S:
            return f"no connection came about within {MEET_S:g} s"
        if self._lost_s is not None and now_s - self._lost_s >= NEWS_S:
            return "a connection broke with frames under way"
        if self._down_s and now_s - min(self._down_s.values()) >= RETURN_S:
            return f"a connection broke and did not come back within {RETURN_S:g} s"
        return ""

    def _take(self, i: int, monitor: zmq.Socket[bytes], now_s: float, under_way: bool) -> None:
        while True:
            try:
                event = recv_monitor_message(monitor, zmq.NOBLOCK)["event"]
            except zmq.Again:
                return
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._down_s.pop(i, None)
                self._unmet.discard(i)
            elif event == zmq.EVENT_DISCONNECTED:
                self._down_s.setdefault(i, now_s)
                if under_way and self._lost_s is None:
                    self._lost_s = now_s

    def close(self) -> None:
        """Before the streams are closed."""
        for s, monitor in zip(self._sockets, self._monitors, strict=True):
            with suppress(KeyError):
                self._poller.unregister(monitor)
            s.disable_monitor()
            monitor.close(0)
