"""What a worker gives and follows of layers beside its plan: between others than the plan's ranks, and none
of its steps wait for it.

Begun and ended by the coordinator. Any thread may end it; what fails here is told and costs the run nothing
but that layers travel later. Knows what is to be followed because it is told.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress

from protos import orchestrator_pb2 as pb
from scheduler.job import OptimizerSpec
from worker.addresses import PeerAddress
from worker.feed import Feed, Pace
from worker.follow_items import digest_of
from worker.follower import Follower
from worker.held_layers import HeldLayer
from worker.model import Layer
from worker.optimizer import StageOptimizer
from worker.stage import Stage
from worker.transport import Transport, TransportError, beside

Open = Callable[[int, int, Mapping[int, PeerAddress]], Transport]
"""(version, own rank, the others' addresses by rank) -> a transport."""


class Ahead:
    """One worker's part in one following at a time."""

    def __init__(
        self,
        name: str,
        open_: Open,
        address: Callable[[pb.Peer], PeerAddress],
        build: Callable[[int], Layer],
        spec: OptimizerSpec,
        emit: Callable[[pb.Event], None],
    ) -> None:
        self._name, self._open, self._address = name, open_, address
        self._build, self._spec, self._emit = build, spec, emit
        self._changing = threading.Lock()
        self._version = self._ended = 0
        self._transport: Transport | None = None
        self._feeds: list[Feed] = []
        self._follower: Follower | None = None

    def begin(self, follow: pb.Follow) -> None:
        """Give, and follow, in the place of what went on before; not if this was ended before it was
        begun."""
        self.end(follow.version - 1)
        names = [p.name for p in follow.peers]
        ranks = {name: r for r, name in enumerate(names)}
        me = ranks[self._name]
        mine = [f for f in follow.feeds if self._name in (f.donor, f.follower)]
        others = {ranks[n] for f in mine for n in (f.donor, f.follower)} - {me}
        addresses = {r: self._address(follow.peers[r]) for r in sorted(others)}
        with self._changing:
            if follow.version <= self._ended:
                return
            version = beside(follow.version)
            try:
                transport = self._open(version, me, addresses)
            except TransportError as error:
                self._failed(follow.version, error)
                return
            self._version, self._transport = follow.version, transport

            def failed(error: Exception) -> None:
                self._failed(follow.version, error)

            self._feeds = [
                Feed(transport, version, me, ranks[f.follower], f.layers, Pace(f.rate_Bps), failed)
                for f in mine
                if f.donor == self._name
            ]
            of = {ranks[f.donor]: list(f.layers) for f in mine if f.follower == self._name}
            if of:
                self._follower = Follower(
                    transport, of, self._build, self._spec, self._reached(follow.version),
                    self._met(follow.version), failed,
                )  # fmt: skip

    def take(
        self,
        step: int,
        stage: Stage,
        optimizer: StageOptimizer,
        first_layer: int,
        lr: float,
        frozen_after: int | None,
    ) -> None:
        """A committed step, before weights change: hand over what others follow of the stage."""
        for feed in self._feeds:
            feed.take(step, stage, optimizer, first_layer, lr, frozen_after)

    def meet(self, meet: pb.Meet, layer: Callable[[int], HeldLayer] | None) -> None:
        """No step follows. `layer(i)`: the model's i-th as it is now; None: this worker runs no stage."""
        with self._changing:
            if meet.version != self._version:
                return
            feeds, follower = self._feeds, self._follower
        for feed in feeds:
            feed.hurry()
        if feeds and layer is not None:
            given = sorted({i for feed in feeds for i in feed.layers})
            self._met(meet.version)(meet.step, {i: digest_of(layer(i)) for i in given})
        if follower is not None:
            follower.meet(meet.step)

    def followed(self, step: int) -> dict[int, HeldLayer]:
        """The layers that were followed, if they all stand at `step`."""
        with self._changing:
            return self._follower.at(step) if self._follower is not None else {}

    def end(self, version: int | None = None) -> None:
        """End the following of this version or an earlier one, also if it is yet to begin; None: whichever
        goes on."""
        with self._changing:
            version = self._version if version is None else version
            self._ended = max(self._ended, version)
            if self._transport is None or self._version > version:
                return
            transport, feeds, follower = self._transport, self._feeds, self._follower
            self._transport, self._feeds, self._follower = None, [], None
        transport.abort("nobody follows any more")
        for feed in feeds:
            feed.close()
        if follower is not None:
            follower.close()
        transport.close()

    def _reached(self, version: int) -> Callable[[int], None]:
        return lambda step: self._emit(pb.Event(followed=pb.Followed(version=version, step=step)))

    def _met(self, version: int) -> Callable[[int, Mapping[int, bytes]], None]:
        def met(step: int, digests: Mapping[int, bytes]) -> None:
            layers = [pb.LayerDigest(layer=i, sha256=d) for i, d in digests.items()]
            self._emit(pb.Event(met=pb.Met(version=version, step=step, layers=layers)))

        return met

    def _failed(self, version: int, error: Exception) -> None:
        reason = f"{type(error).__name__}: {error}"
        with suppress(RuntimeError):  # the worker itself is ending
            self._emit(pb.Event(followed=pb.Followed(version=version, error=reason)))
