"""Connections to peers that no plan uses yet, so that the first frame of the next need not wait for them.

ZeroMQ's handshake with CURVE takes four round trips, half a second on a link of 120 ms: a fifth of what a
newcomer's layers of 20 MB take at 80 Mbit/s. So to every peer whose link was measured, and to every peer of a
plan that has ended, a connection is kept. A plan takes it for its own; it is never older than the last plan
with that peer, because what cut that plan may have spoiled it. Lives in the I/O thread; carries nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import zmq

from worker.addresses import CurveKeys, PeerAddress, dealer
from worker.link_watch import LinkWatch

STREAM_MESSAGES = 4
"""Messages a stream holds before TCP has taken them."""
MOST_STREAMS = 64
"""Kept in all: beyond, a plan opens its own."""


@dataclass(frozen=True, slots=True)
class Streams:
    """One link's sockets, one for each stream, and whoever watches them."""

    sockets: list[zmq.Socket[bytes]]
    watch: LinkWatch

    def close(self, linger_ms: int = 0) -> None:
        """What the sockets hold may still leave for `linger_ms`."""
        self.watch.close()
        for s in self.sockets:
            s.close(linger_ms)


class ReadyLinks:
    """At most one link to each peer."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], poller: zmq.Poller, keys: CurveKeys | None
    ) -> None:
        self._context, self._poller, self._keys = context, poller, keys
        self._links: dict[PeerAddress, Streams] = {}
        self._admitted: frozenset[bytes] | None = None

    def connect(self, peer: PeerAddress, streams: int) -> Streams:
        """A new link. Raises ValueError for an address that cannot be."""
        sockets = [dealer(self._context, peer, self._keys, STREAM_MESSAGES) for _ in range(streams)]
        return Streams(sockets, LinkWatch(sockets, self._poller))

    def keep(self, peer: PeerAddress, streams: int) -> None:
        """Have a new link to `peer` ready, in the place of an older one, unless it has gone."""
        self._drop(peer)
        if self._admitted is not None and peer.curve_public_key not in self._admitted:
            return
        if sum(len(x.sockets) for x in self._links.values()) + streams <= MOST_STREAMS:
            self._links[peer] = self.connect(peer, streams)

    def take(self, peer: PeerAddress, streams: int) -> Streams:
        """The link to `peer` that is ready, or a new one; the caller's from now on."""
        found = self._links.pop(peer, None)
        if found is not None and len(found.sockets) == streams and found.watch.whole:
            return found
        if found is not None:
            found.close()
        return self.connect(peer, streams)

    def admit(self, keys: frozenset[bytes]) -> None:
        """Whose key is not among these has gone. Before the first word of them nobody has."""
        self._admitted = keys
        for peer in [p for p in self._links if p.curve_public_key not in keys]:
            self._drop(peer)

    @property
    def wait_ms(self) -> int | None:
        """How soon `turn` wants to be called; None: when something happens."""
        return min((w for x in self._links.values() if (w := x.watch.wait_ms) is not None), default=None)

    def turn(self, ready: Mapping[Any, int], now_s: float) -> None:
        """Forget links that broke and do not come back."""
        for peer, link in list(self._links.items()):
            if link.watch.turn(ready, now_s, under_way=False):
                self._drop(peer)

    def _drop(self, peer: PeerAddress) -> None:
        link = self._links.pop(peer, None)
        if link is not None:
            link.close()

    def close(self) -> None:
        for peer in list(self._links):
            self._drop(peer)
