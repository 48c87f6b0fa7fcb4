"""DT-FM's objective over a large network: blocks of near devices are placed first, as if each were one.

A block holds replicas of one stage, side by side; its copies of a pipeline follow each other from block to
block. So the objective of blocks is the objective of the devices, but for links within a block of several
regions and for unequal links of one region. In the end structured placements that no blocks express are
looked at, too, and devices move, priced as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from scheduler.alike import kinds_of
from scheduler.dtfm import DtfmObjective, Groups
from scheduler.encoding import Stages, dealt, near_order
from scheduler.matching import open_tour
from scheduler.refine import Walkers
from scheduler.search import MapIslands, SearchOptions, SearchResult, search
from scheduler.topology import TopologyError

MOST = 192
"""Devices that are searched one by one; as many blocks at most."""
AT_ONCE = 512
"""Devices that are searched one by one where no blocks can be made, which takes minutes."""
MOVED = 3000
"""Moves tried in the end; of more than `AT_ONCE` devices so many times fewer: their matchings are dearer."""
WALKERS = 4
HOT, COLD = 0.01, 3e-4
"""First and last temperature of these, as shares of the cost."""


class BlockObjective(DtfmObjective):
    """The objective over blocks [B, fold] of a large network's devices: each holds replicas of one stage."""

    def __init__(self, large: DtfmObjective, blocks: NDArray[np.int64]):
        fold, at = blocks.shape[1], np.ix_(blocks[:, 0], blocks[:, 0])
        self.volumes = large.volumes
        exchange_s = fold * large.exchange_s[at]
        within = large.exchange_s[blocks[:, :, None], blocks[:, None, :]].sum(axis=2).max(axis=1)
        np.fill_diagonal(exchange_s, within)  # a device's exchange with its own block
        shape = (large.n_stages, large.n_replicas // fold)
        self._price(shape, exchange_s, np.ascontiguousarray(large.transfer_s[at]))

    @cached_property
    def kinds(self) -> NDArray[np.int64]:
        return kinds_of([self.exchange_s, self.transfer_s], self.exchange_s.diagonal()[:, None])


def search_any(
    objective: DtfmObjective,
    places: Stages,
    seed: int = 0,
    options: SearchOptions | None = None,
    map_islands: MapIslands = map,
    should_stop: Callable[[], bool] = lambda: False,
    floor_s: float = 0.0,
    most: int = MOST,
) -> SearchResult:
    """`search`, and of more than `most` devices in blocks. TopologyError where they are too many for a search
    and their shape leaves no blocks."""
    fold = _fold(objective, most)
    if fold == 1:
        return search(objective, places, seed, options, map_islands, should_stop, floor_s)
    blocks = _blocks(objective, places, fold)
    small = BlockObjective(objective, blocks)
    found = search(small, places[blocks[:, 0]], seed, options, map_islands, should_stop, floor_s)
    s, r = objective.n_stages, objective.n_replicas
    named = dealt(objective, places)
    groups = np.stack([blocks[found.placement.groups].reshape(s, r), *named.values()])
    groups[1:] = [_in_order(objective, g) for g in groups[1:]]
    costs_s = objective.costs_in_order_s(groups)
    few = np.argsort(costs_s, kind="stable")[:WALKERS]
    walkers = Walkers(objective, groups[few], np.random.default_rng((seed, fold)))
    if not should_stop():
        best_s = float(walkers.best_s.min())
        n_moves = MOVED * AT_ONCE // max(AT_ONCE, objective.n_devices)
        walkers.walk(n_moves, HOT * best_s, COLD * best_s)
    best = walkers.best_groups[int(walkers.best_s.argmin())]
    placement = objective.place(best, keep_order=True)
    judged = found.evaluations + len(groups) + walkers.evaluations
    seeds_s = dict(zip(named, costs_s[1:].tolist(), strict=True))
    curve = (*found.curve, (judged, placement.cost_s))
    method = "evolution"  # of the blocks; nothing is said of the devices
    return replace(
        found, placement=placement, evaluations=judged, seeds_s=seeds_s, curve=curve, method=method
    )


def _in_order(objective: DtfmObjective, groups: Groups) -> Groups:
    """The stages in the best order by bounds of their hops, which are exact between regions of like links."""
    i, j = np.nonzero(~np.eye(len(groups), dtype=bool))
    hops = np.zeros((len(groups), len(groups)))
    for k in range(0, len(i), 256):
        part = slice(k, k + 256)
        hops[i[part], j[part]] = objective.hop_bound_s(groups[i[part]], groups[j[part]])
    return groups[open_tour(hops)[1]]


def _fold(objective: DtfmObjective, most: int) -> int:
    """Devices a block: the fewest that leave at most `most` blocks and two or more in a group."""
    n, r = objective.n_devices, objective.n_replicas
    if n <= most:
        return 1
    able = [k for k in range(2, r // 2 + 1) if r % k == 0]
    fold = next((k for k in able if n <= most * k), able[-1] if able else 1)
    if n > AT_ONCE * fold:
        raise TopologyError(
            f"found {objective.n_stages} stages x {r} replicas for {n} devices, too many to place one by one "
            f"and, in blocks of {fold}, still too many; required a number of replicas with a divisor of at "
            f"least {-(-n // AT_ONCE)} below itself (--stages, --replicas), or --objective step_time"
        )
    return fold


def _blocks(objective: DtfmObjective, places: Stages, fold: int) -> NDArray[np.int64]:
    """[B, fold], every device in one: region by region, then what regions have left over."""
    row = near_order(objective.transfer_s, places)
    regions = [row[places[row] == p] for p in dict.fromkeys(places[row].tolist())]
    whole = [x[: len(x) // fold * fold] for x in regions]
    left = [x[len(x) // fold * fold :] for x in regions]
    return np.concatenate([*whole, *left]).reshape(-1, fold)
