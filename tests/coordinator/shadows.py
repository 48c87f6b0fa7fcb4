"""What the workers of a `World` give and follow beside its plans: layers are the steps they have seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from coordinator import commands as c
from coordinator import events as e
from scheduler.following import Feed, Following
from scheduler.layer_sources import holdings_of
from scheduler.plan import Plan

Has = Mapping[str, Mapping[int, int]]
"""By worker: layer -> the steps it has seen."""


def a_following(running: Plan, plan: Plan) -> Following | None:
    """Every layer that lacks, from the first who holds it; None: none does."""
    holders = holdings_of(running, 0, running.devices)
    feeds: dict[tuple[str, str], tuple[int, ...]] = {}
    for rank in range(plan.n_ranks):
        name = plan.device(rank)
        for layer in range(*plan.partition[plan.stage_of(rank)]):
            donors = sorted(n for n, h in holders.items() if layer in h.layers)
            if name not in donors:
                feeds[donors[0], name] = (*feeds.get((donors[0], name), ()), layer)
    found = tuple(Feed(a, b, layers, 1e6) for (a, b), layers in feeds.items())
    return Following(found, 3, 0.5, 1.5, "they travel beside the steps") if found else None


class Shadows:
    def __init__(self) -> None:
        self.follow: dict[str, c.Follow] = {}
        self.has: dict[str, dict[int, int]] = {}
        self.slow: set[str] = set()
        """Followers that get nothing."""
        self.spoiled: set[str] = set()
        """Followers that compute otherwise than their donors."""
        self._told: dict[str, int] = {}
        self._meets: dict[str, c.Meet] = {}
        self._ended: dict[str, int] = {}

    def begin(self, worker: str, body: c.Follow) -> None:
        self.end(worker)
        if body.version > self._ended.get(worker, 0):
            self.follow[worker], self.has[worker] = body, {}

    def meet(self, worker: str, body: c.Meet) -> None:
        if worker in self.follow and self.follow[worker].version == body.version:
            self._meets[worker] = body

    def end(self, worker: str, version: int = 0) -> None:
        """What it was told of this version or an earlier one; 0: whatever goes on."""
        self._ended[worker] = max(self._ended.get(worker, 0), version)
        if worker in self.follow and (not version or self.follow[worker].version <= version):
            for of in (self.follow, self.has, self._told, self._meets):
                of.pop(worker, None)

    def at(self, worker: str, step: int) -> dict[int, int]:
        """The layers that it follows, if all have seen just so many steps."""
        has = self.has.get(worker, {})
        return dict(has) if all(n == step for n in has.values()) else {}

    def events(self, has: Has) -> Iterator[e.Event]:
        """What has come further is told."""
        for worker, body in list(self.follow.items()):
            given = [x for f in body.feeds if f.donor == worker for x in f.layers]
            mine = [f for f in body.feeds if f.follower == worker and worker not in self.slow]
            for f in mine:
                if f.donor in self.follow and self.follow[f.donor].version == body.version:
                    self.has[worker] |= {x: has[f.donor][x] for x in f.layers if x in has[f.donor]}
            own, wanted = self.has[worker], {x for f in mine for x in f.layers}
            if wanted and set(own) == wanted and min(own.values()) > self._told.get(worker, -1):
                self._told[worker] = min(own.values())
                yield e.Followed(worker, body.version, self._told[worker])
            if (meet := self._meets.get(worker)) is None:
                continue
            gives = all(has[worker].get(x) == meet.step for x in given)
            follows = set(own) == wanted and all(n == meet.step for n in own.values())
            if gives and follows:
                del self._meets[worker]
                flaw = b"!" if worker in self.spoiled else b" "
                digests = {x: b"%31d " % (x + 100 * meet.step) for x in given}
                digests |= {x: b"%31d" % (x + 100 * meet.step) + flaw for x in own}
                yield e.Met(worker, body.version, meet.step, digests)
