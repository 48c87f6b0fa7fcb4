"""In which order devices follow one another, so that neighbours in a pipeline are near.

Knows the topology only; how many stages and replicas are cut from the order is the planner's matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from scheduler.topology import Matrix, Topology


def region_order(topology: Topology, names: Sequence[str], boundary_bytes: float) -> tuple[str, ...]:
    """`names` with every region's devices together and near regions after one another.

    A device of unknown region is a region of its own. Regions are chained to the nearest not yet
    visited, beginning where that chain is shortest; the distance of two regions is the mean time
    of `boundary_bytes` there and back. Within a region: by host, then by name.
    """
    index = {d.name: i for i, d in enumerate(topology.devices)}
    regions: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda n: (topology.devices[index[n]].host, n)):
        device = topology.devices[index[name]]
        regions.setdefault(device.region or f"\0{name}", []).append(name)
    keys = sorted(regions, key=lambda k: regions[k][0])
    time_s = topology.latency_s + boundary_bytes / topology.bandwidth_Bps
    n = len(keys)
    distance_s = np.zeros((n, n))
    for a in range(n):
        for b in range(a + 1, n):
            ix = np.ix_([index[x] for x in regions[keys[a]]], [index[x] for x in regions[keys[b]]])
            distance_s[a, b] = distance_s[b, a] = float((time_s[ix] + time_s.T[ix]).mean())
    return tuple(name for i in _shortest_chain(distance_s) for name in regions[keys[i]])


def _shortest_chain(distance: Matrix) -> list[int]:
    """The shortest nearest-neighbour chain over all starts; the first of equal ones."""
    chains = [_chain(distance, start) for start in range(len(distance))]
    return min(chains, key=lambda c: sum(float(distance[a, b]) for a, b in pairwise(c)))


def _chain(distance: Matrix, start: int) -> list[int]:
    chain, left = [start], set(range(len(distance))) - {start}
    while left:
        nearest = min(left, key=lambda i: (float(distance[chain[-1], i]), i))
        chain.append(nearest)
        left.remove(nearest)
    return chain


def pipelines_in_order(order: Sequence[str], n_stages: int, n_replicas: int) -> tuple[tuple[str, ...], ...]:
    """[replica][stage]: each pipeline is a run of neighbours; its replicas may be far."""
    return tuple(tuple(order[r * n_stages : (r + 1) * n_stages]) for r in range(n_replicas))
