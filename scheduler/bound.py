"""A lower bound on DT-FM's objective: how much a better placement could still gain at most.

Two parts hold alone: a device exchanges gradients with R - 1 others, at best with its nearest;
a device outside the last stage sends to somebody, at best to its nearest. Together they hold
each other up, which the bound uses. Take a threshold t and the components of the graph of links
that carry activations within t. Along f hops within t in a path of S stages there are S - f
unbroken runs of stages, and within a run all groups have equally many devices of each component
(their pipelines stay inside). So the longest run, of L >= S / (S - f) stages, has at most
size / L devices of a component in a group: whoever wants fast hops must exchange gradients
between components. The least over f of both parts is a bound, for every t; the greatest over t
is reported.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from scheduler.dtfm import DtfmObjective, Floats

_THRESHOLDS = 24
"""How many thresholds are tried, spread evenly over the distinct transfer times."""
_MANY = 128
"""Of more kinds of devices that many times fewer thresholds: a bound is worth no minutes."""


def lower_bound_s(objective: DtfmObjective) -> float:
    """Seconds that no placement of this objective's shape can stay below."""
    s, r, n = objective.n_stages, objective.n_replicas, objective.n_devices
    off = ~np.eye(n, dtype=bool)
    exchange_s = float(_nearest_exchange(objective, np.zeros(n, dtype=np.int64), n).max())
    if s == 1:
        return exchange_s
    nearest = np.sort(np.where(off, objective.transfer_s, np.inf).min(axis=1))
    hops = nearest[r - 1 :: r][: s - 1]  # groups of like devices, the worst of all in the last stage
    best = exchange_s + 2 * float(hops.sum())
    distinct = np.unique(objective.transfer_s[off])
    n_thresholds = max(2, _THRESHOLDS * _MANY // max(_MANY, int(objective.kinds.max()) + 1))
    picks: list[int] = (
        np.unique(np.linspace(0, len(distinct) - 2, n_thresholds).astype(int)).tolist()
        if len(distinct) > 1
        else []
    )
    for k in picks:
        best = max(best, _bound_at(objective, distinct[k], distinct[k + 1], hops, exchange_s))
    return best


def _bound_at(
    objective: DtfmObjective, within: float, beyond: float, hops: Floats, exchange_s: float
) -> float:
    s, r = objective.n_stages, objective.n_replicas
    _, component = connected_components(objective.transfer_s <= within, directed=True, connection="weak")
    sizes = np.bincount(component)
    totals = []
    per_length: dict[int, Floats] = {}
    for fast in range(s):
        length = -(-s // (s - fast))
        if length not in per_length:
            per_length[length] = np.sort(_nearest_exchange(objective, component, sizes // length))
        # The longest run holds length * r devices: the slowest of them is at least this slow.
        exchange = max(exchange_s, float(per_length[length][length * r - 1]))
        path = float(hops[:fast].sum()) + float(np.maximum(hops[fast:], beyond).sum())
        totals.append(exchange + 2 * path)
    return min(totals)


def _nearest_exchange(
    objective: DtfmObjective, component: NDArray[np.integer], cap: int | NDArray[np.int64]
) -> Floats:
    """[d]: d's exchange with its R - 1 nearest, at most `cap` devices (d among them) of a component.

    Infinite where there are not so many. Of interchangeable devices one is asked.
    """
    r = objective.n_replicas
    caps = np.broadcast_to(cap, int(component.max()) + 1)
    _, one_of_each, kind = np.unique(objective.kinds, return_index=True, return_inverse=True)
    out = np.zeros(len(one_of_each))
    for k, d in enumerate(one_of_each.tolist()):
        order = np.argsort(objective.exchange_s[d], kind="stable")
        order = order[order != d]
        mine = component[order]
        by_component = np.argsort(mine, kind="stable")  # rank of each device within its component
        starts = np.searchsorted(mine[by_component], mine[by_component])
        rank = np.empty(len(order), dtype=np.int64)
        rank[by_component] = np.arange(len(order)) - starts
        room = caps[mine] - (mine == component[d])
        allowed = objective.exchange_s[d, order[rank < room]]
        short = len(allowed) < r - 1 or caps[component[d]] < 1
        out[k] = np.inf if short else allowed[: r - 1].sum()
    return out[kind]
