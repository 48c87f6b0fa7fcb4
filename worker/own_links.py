"""The links from this worker to others: measured when it is asked, remembered where they are cut, and
measured anew before a plan uses them again.

Any thread may measure; which links there are to be is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from protos import orchestrator_pb2 as pb
from scheduler.dead_links import Pair
from worker.addresses import PeerAddress
from worker.endpoint import DataEndpoint
from worker.probe import LinkMeasurement
from worker.transport import PeerUnreachable
from worker.ways import Ways

AGAIN_BYTES = 1 << 20
"""Of a probe that tells whether a link that was cut carries anything."""

Failed = Callable[[PeerUnreachable, str, int], None]
"""(why, peer, plan version): a link does not carry what the plan needs; the worker goes on."""


class OwnLinks:
    def __init__(
        self,
        name: str,
        endpoint: DataEndpoint,
        ways: Ways,
        streams: int,
        emit: Callable[[pb.Event], None],
        failed: Failed,
    ) -> None:
        self._name, self._endpoint, self._ways, self._streams = name, endpoint, ways, streams
        self._emit, self._failed = emit, failed
        self._cut: set[str] = set()
        """To whom a link was cut, until it is found to carry something again."""

    def measure(self, command: pb.MeasureLinks) -> None:
        """Tell what each link is, or that it does not answer."""
        links = []
        for peer in command.peers:
            try:
                sample = self._measured(peer, command.probe_bytes, min(command.streams, self._streams))
            except PeerUnreachable as e:
                sample = pb.LinkSample(peer=peer.name, error=str(e))
            links.append(sample)
        self._emit(pb.Event(links_measured=pb.LinksMeasured(links=links)))

    def is_cut(self, peer: str, plan_version: int, at: str, why: str) -> None:
        """What was under way to it in this plan is lost."""
        self._cut.add(peer)
        self._failed(PeerUnreachable(f"the link to {peer} ({at}) is cut: {why}"), peer, plan_version)

    def carry_again(self, peers: Sequence[pb.Peer], used: Collection[Pair], plan_version: int) -> bool:
        """Measure anew the links that were cut and are `used`: those that do not answer directly go through
        the relay from now on. Whether all carry something; else it is told which does not."""
        for peer in peers:
            if peer.name not in self._cut or frozenset((self._name, peer.name)) not in used:
                continue
            try:
                sample = self._measured(peer, AGAIN_BYTES, self._streams)
            except PeerUnreachable as e:
                still = PeerUnreachable(f"the link to {peer.name} is cut still: {e}")
                self._failed(still, peer.name, plan_version)
                return False
            self._cut.discard(peer.name)
            self._emit(pb.Event(links_measured=pb.LinksMeasured(links=[sample])))
        return True

    def _measured(self, peer: pb.Peer, probe_bytes: int, streams: int) -> pb.LinkSample:
        """The link to `peer` as it will be used. Raises PeerUnreachable."""

        def probe(at: PeerAddress, timeout_s: float) -> LinkMeasurement:
            return self._endpoint.measure(at, probe_bytes, streams, timeout_s)

        found = self._ways.measured(peer, probe)
        if not self._ways.is_relayed(peer.name):  # a place at the relay is for who needs it
            self._endpoint.keep_ready(self._ways.address(peer), self._streams)
        return pb.LinkSample(
            peer=peer.name,
            latency_s=found.rtt_s / 2,
            bandwidth_Bps=found.bandwidth_Bps,
            bandwidth_striped_Bps=found.bandwidth_striped_Bps,
            relayed=self._ways.is_relayed(peer.name),
        )
