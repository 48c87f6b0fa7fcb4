"""How the search writes a placement down, and the structured placements that it starts from.

An individual is a partition: `stage[d]` for every device d, each stage equally often; the stages'
numbers are their order. Knows the objective's matrices, and regions only as labels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from scheduler.dtfm import DtfmObjective, Floats, Groups
from scheduler.matching import open_tour
from scheduler.topology import Topology

Stages = NDArray[np.int64]
"""[devices]: the stage of each device."""


def to_groups(stage: Stages, n_stages: int) -> Groups:
    """[S, R] of device indices, ascending within a stage. The stages must be balanced."""
    return np.argsort(stage, kind="stable").reshape(n_stages, -1)


def to_stages(groups: Groups) -> Stages:
    """The inverse of `to_groups`, up to the order within stages."""
    stage = np.empty(groups.size, dtype=np.int64)
    stage[groups.ravel()] = np.repeat(np.arange(len(groups)), groups.shape[1])
    return stage


def signature(objective: DtfmObjective, groups: Groups) -> tuple[tuple[int, ...], ...]:
    """Equal for placements that differ only in interchangeable devices or (symmetric links) direction."""
    rows = tuple(tuple(sorted(objective.kinds[g].tolist())) for g in groups)
    return min(rows, rows[::-1]) if objective.symmetric else rows


def balance(stage: Stages, n_stages: int, rng: np.random.Generator) -> Stages:
    """Move randomly chosen devices from stages with too many to those with too few."""
    stage = stage.copy()
    size = len(stage) // n_stages
    count = np.bincount(stage, minlength=n_stages)
    spare = [
        d for s in np.flatnonzero(count > size) for d in rng.permutation(np.flatnonzero(stage == s))[size:]
    ]
    gaps = np.repeat(np.arange(n_stages), np.maximum(size - count, 0))
    stage[spare] = rng.permutation(gaps)
    return stage


def crossover(one: Stages, other: Stages, n_stages: int, rng: np.random.Generator) -> Stages:
    """A balanced child: some neighbouring stages as `one` has them, the other devices as `other` has them.

    `other`'s stages are first renumbered to overlap `one`'s most, since equal groups may carry
    different numbers; devices that find their stage full go to the stages with room.
    """
    overlap = np.zeros((n_stages, n_stages))
    np.add.at(overlap, (other, one), 1)
    _, renumbered = linear_sum_assignment(-overlap)
    child = renumbered[other]
    if n_stages > 1:
        first = int(rng.integers(n_stages))
        length = 1 + int(rng.integers(n_stages - 1))
        taken = np.isin(one, (first + np.arange(length)) % n_stages)
        clash = ~taken & np.isin(child, one[taken])
        child[taken] = one[taken]
        free = np.setdiff1d(np.arange(n_stages), one[taken])
        child[clash] = rng.choice(free, size=int(clash.sum()))
    return balance(child, n_stages, rng)


def random_groups(objective: DtfmObjective, count: int, rng: np.random.Generator) -> Groups:
    """`count` placements drawn uniformly: [count, S, R]."""
    n, s, r = objective.n_devices, objective.n_stages, objective.n_replicas
    return rng.permuted(np.tile(np.arange(n), (count, 1)), axis=1).reshape(count, s, r)


def places_of(topology: Topology, objective: DtfmObjective) -> NDArray[np.int64]:
    """[d]: a number for each device's region; where none is named, interchangeable devices share one."""
    regions = [d.region for d in topology.devices]
    if not any(regions):
        return objective.kinds
    known = {name: k for k, name in enumerate(dict.fromkeys(regions))}
    return np.array([known[name] for name in regions], dtype=np.int64)


def near_order(pair_s: Floats, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """The devices, place by place, the places along a short tour of their mean costs."""
    n_places = int(places.max()) + 1
    member = (places[:, None] == np.arange(n_places)).astype(float)
    size = member.sum(axis=0)
    mean = member.T @ pair_s @ member / np.outer(size, size)
    if n_places == 1 or n_places == len(places):
        return np.array(open_tour(pair_s)[1]) if len(places) <= 128 else np.arange(len(places))
    order: list[int] = []
    for place in open_tour(mean + mean.T)[1]:
        order += np.flatnonzero(places == place).tolist()
    return np.array(order)


def structured(objective: DtfmObjective, places: NDArray[np.int64]) -> dict[str, Groups]:
    """Named placements that follow the network's structure: `dealt` and the greedy one."""
    return {**dealt(objective, places), "greedy": greedy(objective)}


def dealt(objective: DtfmObjective, places: NDArray[np.int64]) -> dict[str, Groups]:
    """Named placements whose stages are dealt from a row of devices.

    Devices stand in a row, near ones together; the row is cut into m cells of whole stages, and each
    cell's devices are dealt to its stages in turn. m = stages: replicas side by side, inside a
    region where it is large enough. m = 1: every pipeline is a run of the row, inside a region.
    Between: mixtures by neighbouring regions. Twice: near by the one matrix and by the other.
    """
    s, r = objective.n_stages, objective.n_replicas
    found: dict[str, Groups] = {}
    for by, pair_s in (("exchange", objective.exchange_s), ("transfer", objective.transfer_s)):
        row = near_order(pair_s, places)
        for m in (m for m in range(1, s + 1) if s % m == 0):
            per = s // m
            cells = row.reshape(m, r, per).transpose(0, 2, 1).reshape(s, r)
            name = {1: "pipelines inside a region", s: "replicas inside a region"}.get(
                m, f"{m} mixtures of regions"
            )
            found[f"{name}, near by {by}"] = cells
    return found


def greedy(objective: DtfmObjective) -> Groups:
    """Stage after stage: begin with the device that is farthest from all others, add whoever costs least.

    A newcomer's price is the group's exchange with it; the stages' order is the best one.
    """
    s, r = objective.n_stages, objective.n_replicas
    exchange = objective.exchange_s
    free = np.ones(objective.n_devices, dtype=bool)
    groups = np.empty((s, r), dtype=np.int64)
    for k in range(s):
        left = np.flatnonzero(free)
        start = int(left[exchange[np.ix_(left, left)].sum(axis=1).argmax()])
        group = np.array([start])
        free[start] = False
        for _ in range(r - 1):
            left = np.flatnonzero(free)
            own = exchange[np.ix_(left, group)].sum(axis=1)
            theirs = (
                exchange[np.ix_(group, group)].sum(axis=1)[:, None] + exchange[np.ix_(group, left)]
            ).max(axis=0)
            best = int(left[np.maximum(own, theirs).argmin()])
            group = np.append(group, best)
            free[best] = False
        groups[k] = group
    return groups
