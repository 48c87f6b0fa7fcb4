"""Networks and an independent, slow pricing of placements, shared by the tests of the search."""

from __future__ import annotations

from itertools import combinations, pairwise, permutations

import numpy as np

from scheduler.topology import Device, Topology


def network(kind: str, n: int, rng: np.random.Generator) -> Topology:
    """uniform | clustered | random | asymmetric."""
    regions = ["" for _ in range(n)]
    if kind == "uniform":
        latency, gbit = np.full((n, n), 0.05), np.full((n, n), 1.0)
    elif kind == "clustered":
        at = rng.integers(3, size=n)
        same = at[:, None] == at[None]
        between_s, between_gbit = (np.triu(rng.uniform(a, b, (3, 3))) for a, b in ((0.02, 0.2), (0.3, 1.2)))
        between_s, between_gbit = (m + np.triu(m, 1).T for m in (between_s, between_gbit))
        latency = np.where(same, 0.005, between_s[np.ix_(at, at)])
        gbit = np.where(same, 2.0, between_gbit[np.ix_(at, at)])
        regions = [f"region{k}" for k in at]
    else:
        latency, gbit = rng.uniform(0.001, 0.2, (n, n)), rng.uniform(0.2, 5, (n, n))
        if kind == "random":
            latency, gbit = (np.triu(m) + np.triu(m, 1).T for m in (latency, gbit))
    devices = tuple(Device(f"d{i}", region=regions[i]) for i in range(n))
    return Topology(devices, latency, gbit * 1e9 / 8)


def price(topology: Topology, stages: list[list[int]], c_dp: float, c_pp: float) -> float:
    """The objective of explicit stages in replica order, by loops over its definition."""
    a, b = topology.latency_s, topology.bandwidth_Bps
    r = len(stages[0])
    dp = max(sum(2 * (a[d, e] + c_dp / (r * b[d, e])) for e in g if e != d) for g in stages for d in g)
    pp = sum(max(a[d, e] + c_pp / b[d, e] for d, e in zip(x, y, strict=True)) for x, y in pairwise(stages))
    return float(dp + 2 * pp)


def optimum(topology: Topology, n_stages: int, c_dp: float, c_pp: float) -> float:
    """The least cost over every assignment of devices to stages, replicas matched by brute force."""
    n = len(topology)
    r = n // n_stages
    a, b = topology.latency_s, topology.bandwidth_Bps
    groups = list(combinations(range(n), r))
    dp = {g: max(sum(2 * (a[d, e] + c_dp / (r * b[d, e])) for e in g if e != d) for d in g) for g in groups}
    hop: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {}
    best = np.inf

    def extend(path: list[tuple[int, ...]], dp_s: float, pp_s: float) -> None:
        nonlocal best
        if dp_s + 2 * pp_s >= best:
            return
        used = {d for g in path for d in g}
        if len(used) == n:
            best = dp_s + 2 * pp_s
            return
        for g in groups:
            if used.isdisjoint(g):
                step = 0.0
                if path:
                    key = (path[-1], g)
                    if key not in hop:
                        hop[key] = min(
                            max(a[d, e] + c_pp / b[d, e] for d, e in zip(path[-1], p, strict=True))
                            for p in permutations(g)
                        )
                    step = hop[key]
                extend([*path, g], max(dp_s, dp[g]), pp_s + step)

    extend([], 0.0, 0.0)
    return float(best)
