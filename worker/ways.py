"""How each peer is reached from here: by a route of ours, at its own address, or through the relay.

The relay is for peers that did not answer directly when the link was measured; the measurement is made again
through it, and its tensors take the same way. Nothing is priced here: a link costs what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from protos import orchestrator_pb2 as pb
from worker.addresses import PeerAddress
from worker.probe import LinkMeasurement
from worker.transport import PeerUnreachable
from worker.tunnel import Tunnels

DIRECT_S = 5.0
"""How long a direct answer is waited for when there is a relay to turn to."""


class Ways:
    """`routes`: "host:port" by peer, in place of what it advertises. `tunnels` None: there is no relay."""

    def __init__(self, routes: Mapping[str, str], tunnels: Tunnels | None = None) -> None:
        self._routes, self._tunnels = routes, tunnels
        self._relayed: set[str] = set()

    def is_relayed(self, name: str) -> bool:
        return name in self._relayed

    def address(self, peer: pb.Peer) -> PeerAddress:
        """Where frames for the peer are sent to."""
        if peer.name in self._relayed and self._tunnels is not None:
            return PeerAddress(self._tunnels.port_to(peer.curve_public_key), peer.curve_public_key)
        return PeerAddress(self._routes.get(peer.name, peer.data_address), peer.curve_public_key)

    def measured(
        self, peer: pb.Peer, measure: Callable[[PeerAddress, float], LinkMeasurement], timeout_s: float = 10.0
    ) -> LinkMeasurement:
        """The link as it will be used: directly if the peer answers, else through the relay.

        `measure` is given an address and how long to wait. Raises PeerUnreachable, with both reasons.
        """
        self._relayed.discard(peer.name)
        if self._tunnels is None or not peer.curve_public_key:
            return measure(self.address(peer), timeout_s)
        try:
            return measure(self.address(peer), min(DIRECT_S, timeout_s))
        except PeerUnreachable as direct:
            self._relayed.add(peer.name)
            try:
                return measure(self.address(peer), timeout_s)
            except PeerUnreachable as relayed:
                self._relayed.discard(peer.name)
                raise PeerUnreachable(f"{direct}; and not through the relay either: {relayed}") from None
