"""Our local search: many placements walk at once, each swap judged by the change of the whole objective.

A walker is a placement with its stages in an order. A move exchanges two devices of two stages,
or the places of two stages; only the two groups' exchanges and the (at most four) hops beside
them change. A move is first priced with a lower bound on those hops, and only what the bound
does not rule out is priced exactly, so most moves cost no matching at all. Walkers accept by
Metropolis' rule: every improvement, and a loss x with chance exp(-x / temperature).

Chance comes from the generator that is handed in; there is no clock.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from scheduler.dtfm import DtfmObjective, Floats, Groups
from scheduler.matching import EXACT_TOUR, open_tour

_REORDER_BATCHED = 9
"""Stages up to which every walker's order is made best now and then; beyond, only those asked for."""


class Walkers:
    """A batch of placements [B, S, R] with their prices, kept up to date move by move."""

    def __init__(self, objective: DtfmObjective, groups: Groups, rng: np.random.Generator):
        self.objective = objective
        self.rng = rng
        self.groups = groups.copy()
        self.evaluations = 0
        self._price()
        self.best_groups = self.groups.copy()
        self.best_s = self.costs_s.copy()

    def _price(self) -> None:
        """Everything from scratch, stages in the order they have."""
        b, s, r = self.groups.shape
        self.exchange_s: Floats = self.objective.data_parallel_s(self.groups)
        self.path_s: Floats = np.zeros((b, max(s - 1, 0)))
        if s > 1:
            ends = self.groups[:, :-1].reshape(-1, r), self.groups[:, 1:].reshape(-1, r)
            self.path_s = self.objective.hop_s(*ends).reshape(b, s - 1)
        self.costs_s: Floats = self.exchange_s.max(axis=1) + 2 * self.path_s.sum(axis=1)
        self.evaluations += b

    def reorder(self, which: NDArray[np.int64] | None = None) -> None:
        """Give the walkers in `which` (default: all) the best order of their stages."""
        which = np.arange(len(self.groups)) if which is None else which
        for k, hops in zip(which, self.objective.hops_s(self.groups[which]), strict=True):
            self.groups[k] = self.groups[k][open_tour(hops)[1]]
        self._price()
        self._remember()

    def _remember(self) -> None:
        better = self.costs_s < self.best_s
        self.best_s[better] = self.costs_s[better]
        self.best_groups[better] = self.groups[better]

    def walk(self, n_moves: int, hot_s: float, cold_s: float) -> None:
        """`n_moves` proposals for each walker, the temperature falling geometrically from hot to cold."""
        if self.objective.n_stages < 2:
            return
        for temperature in np.geomspace(hot_s, cold_s, n_moves):
            self._step(float(temperature))

    def _step(self, temperature_s: float) -> None:
        rng, (b, s, r) = self.rng, self.groups.shape
        every = np.arange(b)
        i = np.asarray(rng.integers(s, size=b), dtype=np.int64)
        j = (i + 1 + rng.integers(s - 1, size=b)) % s
        p, q = rng.integers(r, size=b), rng.integers(r, size=b)
        whole = rng.random(b) < 0.1  # exchange the stages' places instead of two devices
        allowed = self.costs_s - temperature_s * np.log(rng.random(b))
        self.evaluations += b
        a_group, b_group = self.groups[every, i], self.groups[every, j]
        a_new, b_new = a_group.copy(), b_group.copy()
        a_new[every, p], b_new[every, q] = b_group[every, q], a_group[every, p]
        a_new[whole], b_new[whole] = b_group[whole], a_group[whole]
        exchange = self.exchange_s.copy()
        exchange[every, i] = self.objective.data_parallel_s(a_new)
        exchange[every, j] = self.objective.data_parallel_s(b_new)
        slowest = exchange.max(axis=1)
        kept = self.path_s.copy()
        hops = _touched(i, j, s)
        for h in range(4):
            kept[every[hops[h] >= 0], hops[h][hops[h] >= 0]] = 0.0
        base = slowest + 2 * kept.sum(axis=1)
        alive = np.flatnonzero(base <= allowed)
        if not len(alive):
            return
        new = self.groups[alive]
        new[np.arange(len(alive)), i[alive]] = a_new[alive]
        new[np.arange(len(alive)), j[alive]] = b_new[alive]
        touched = hops[:, alive]
        tail, head, owner, edge = _ends(new, touched)
        bound = np.bincount(owner, self.objective.hop_bound_s(tail, head), minlength=len(alive))
        promising = base[alive] + 2 * bound <= allowed[alive]
        of_promising = promising[owner]
        exact = np.zeros(len(owner))
        exact[of_promising] = self.objective.hop_s(tail[of_promising], head[of_promising])
        cost = base[alive] + 2 * np.bincount(owner, exact, minlength=len(alive))
        accepted = promising & (cost <= allowed[alive])
        winners = alive[accepted]
        if not len(winners):
            return
        self.groups[winners] = new[accepted]
        self.exchange_s[winners] = exchange[winners]
        of_accepted = accepted[owner]
        self.path_s[alive[owner[of_accepted]], edge[of_accepted]] = exact[of_accepted]
        self.costs_s[winners] = cost[accepted]
        self._remember()


def _touched(i: NDArray[np.int64], j: NDArray[np.int64], n_stages: int) -> NDArray[np.int64]:
    """The hops beside stages i and j, each once: [4, B], -1 for none. Hop h joins stages h and h + 1."""
    low, high = np.minimum(i, j), np.maximum(i, j)
    hops = np.stack([low - 1, low, high - 1, high])
    hops[2][high - 1 == low] = -1
    hops[3][high == n_stages - 1] = -1
    return hops


def _ends(
    groups: Groups, hops: NDArray[np.int64]
) -> tuple[Groups, Groups, NDArray[np.int64], NDArray[np.int64]]:
    """Of every hop that is one: its two groups [K, R], whose it is [K], and its index [K]."""
    _, owner = np.nonzero(hops >= 0)
    edge = hops[hops >= 0]
    return groups[owner, edge], groups[owner, edge + 1], owner, edge


def neighbours(objective: DtfmObjective, groups: Groups) -> Iterator[Groups]:
    """All placements one swap of devices away, without those that only exchange interchangeable devices.

    In batches [B, S, R], one for each pair of stages.
    """
    s = len(groups)
    kinds = objective.kinds
    for a in range(s):
        for b in range(a + 1, s):
            _, p = np.unique(kinds[groups[a]], return_index=True)
            _, q = np.unique(kinds[groups[b]], return_index=True)
            pp, qq = (m.ravel() for m in np.meshgrid(p, q, indexing="ij"))
            differ = kinds[groups[a, pp]] != kinds[groups[b, qq]]
            pp, qq = pp[differ], qq[differ]
            out = np.repeat(groups[None], len(pp), axis=0)
            at = np.arange(len(pp))
            out[at, a, pp], out[at, b, qq] = groups[b, qq], groups[a, pp]
            if len(out):
                yield out


def polish(
    objective: DtfmObjective, groups: Groups, cost_s: float, max_evaluations: int
) -> tuple[Groups, float, int]:
    """Descend while some swap of two devices lowers the whole objective, stages reordered each time.

    Returns the placement, its cost and the evaluations used. Stops short at `max_evaluations`.
    """
    used = 0
    improved = True
    while improved and used < max_evaluations:
        improved = False
        for batch in neighbours(objective, groups):
            exact = objective.n_stages <= EXACT_TOUR and objective.n_stages <= _REORDER_BATCHED
            costs = objective.costs_s(batch) if exact else objective.costs_in_order_s(batch)
            used += len(batch)
            best = int(costs.argmin())
            if costs[best] < cost_s * (1 - 1e-12):
                groups, cost_s, improved = batch[best], float(costs[best]), True
            if used >= max_evaluations:
                break
    return groups, cost_s, used
