"""One worker's part in what is followed: begun and ended by number, told and compared in messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from protos import orchestrator_pb2 as pb
from tests.worker.pipelines import Rank, fresh_layers, make_job, make_plan, make_ranks
from tests.worker.test_following import same, until
from worker.addresses import PeerAddress
from worker.ahead import Ahead
from worker.held_layers import HeldLayer
from worker.memory_transport import MemoryHub, MemoryTransport
from worker.transport import PeerUnreachable, Transport

JOB = make_job("llama")
LAYERS = (3, 4)


class Told:
    """Two workers, what they say, and the stage that one of them runs."""

    def __init__(self, unreachable: bool = False) -> None:
        hub = MemoryHub()

        def open_(version: int, rank: int, peers: Mapping[int, PeerAddress]) -> Transport:
            assert sorted(peers) == [1 - rank]
            if unreachable:
                raise PeerUnreachable("nobody answers")
            return MemoryTransport(hub, rank, version)

        self.events: dict[str, list[pb.Event]] = {"donor": [], "newcomer": []}
        self.workers = {
            name: Ahead(
                name,
                open_,
                lambda _: PeerAddress("nowhere:1"),
                lambda i: fresh_layers(JOB, i, i + 1)[0],
                JOB.optimizer,
                events.append,
            )
            for name, events in self.events.items()
        }
        (self.rank,) = make_ranks(JOB, make_plan(JOB, 1, (4,)))

    def begin(self, version: int) -> None:
        feed = pb.Feed(donor="donor", follower="newcomer", layers=LAYERS, rate_Bps=1e9)
        peers = [pb.Peer(name=n) for n in self.workers]
        for worker in self.workers.values():
            worker.begin(pb.Follow(version=version, plan_version=1, peers=peers, feeds=[feed]))

    def steps(self, steps: range) -> None:
        donor = self.workers["donor"]

        def stepping(step: int, lr: float, frozen: int | None) -> None:
            donor.take(step, self.rank.stage, self.rank.optimizer, 0, lr, frozen)

        self.rank.context = replace(self.rank.context, stepping=stepping)
        for step in steps:
            Rank.run_step(self.rank, step)
            until(lambda: not any(feed.waiting_bytes for feed in donor._feeds))

    def now(self, i: int) -> HeldLayer:
        return HeldLayer(self.rank.stage.layers[i].state_dict(), self.rank.optimizer.layer_state(i))

    def said(self, name: str, kind: str) -> list[pb.Event]:
        return [e for e in self.events[name] if e.WhichOneof("body") == kind]

    def end(self) -> None:
        for worker in self.workers.values():
            worker.end()


def test_both_say_what_the_layers_are_where_they_meet_and_the_newcomer_has_them() -> None:
    t = Told()
    t.begin(5)
    t.steps(range(6))
    for worker in t.workers.values():
        worker.meet(pb.Meet(version=4, step=6), t.now)  # of another following: nobody's
        worker.meet(pb.Meet(version=5, step=6), t.now)
    until(lambda: bool(t.said("newcomer", "met")))
    (given,), (has,) = t.said("donor", "met"), t.said("newcomer", "met")
    assert given.met == has.met
    assert [(x.layer, len(x.sha256)) for x in has.met.layers] == [(3, 32), (4, 32)]
    assert t.said("newcomer", "followed")[-1].followed.step == 6
    newcomer = t.workers["newcomer"]
    assert newcomer.followed(5) == {}
    layers = newcomer.followed(6)
    assert sorted(layers) == list(LAYERS)
    assert all(same(layers[i], t.now(i)) for i in LAYERS)
    t.end()
    assert newcomer.followed(6) == {}, "what was followed is forgotten"
    assert all(same(layers[i], t.now(i)) for i in LAYERS), "unless somebody has taken it"


def test_what_was_ended_before_it_was_begun_does_not_begin() -> None:
    t = Told()
    for worker in t.workers.values():
        worker.end(7)
    t.begin(7)
    t.steps(range(2))
    assert t.events == {"donor": [], "newcomer": []}
    t.begin(8)
    t.workers["newcomer"].end(7)  # comes late, and is of the one before
    t.steps(range(2, 6))
    until(lambda: bool(t.said("newcomer", "followed")))
    t.end()


def test_who_cannot_be_reached_is_told_of_and_nothing_else_happens() -> None:
    t = Told(unreachable=True)
    t.begin(1)
    t.steps(range(2))
    for name in t.workers:
        (event,) = t.events[name]
        assert (event.followed.version, event.followed.error) == (1, "PeerUnreachable: nobody answers")
    t.end()
