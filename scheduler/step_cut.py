"""Layers cut into the stages of a placement, compiled: the exact cut for the slowest stage.

Knows compute and memory; links, exchanges and schedules are none of its business.
"""

from __future__ import annotations

import numpy as np

from scheduler.compiled import compiled
from scheduler.step_kernels import Layout, Prices, Tables


@compiled
def cut_layers(prices: Prices, tables: Tables, layout: Layout) -> bool:
    """Cut the layers anew: least slowest stage (seconds x share), then most even, within memory.

    Exact by dynamic programming over (stages, layers). False, and nothing changed, if no cut fits.
    """
    cells, shares, in_flight = layout.cells, layout.shares, tables.in_flight
    forward, backward, memory = prices.forward_s, prices.backward_s, prices.memory_bytes
    fixed, saved = prices.fixed_bytes, prices.saved_bytes
    n_replicas, n_stages = cells.shape
    n_layers = prices.forward_s.shape[1] - 1
    cost = np.full((n_stages, n_layers + 1, n_layers + 1), np.inf)
    for s in range(n_stages):
        for i in range(s, n_layers):
            for j in range(i + 1, n_layers - (n_stages - 1 - s) + 1):
                slowest = 0.0
                for r in range(n_replicas):
                    d = cells[r, s]
                    needed = fixed[i, j]
                    needed += in_flight[shares[r], s] * saved[i, j]
                    if needed > memory[d]:
                        slowest = np.inf
                        break
                    seconds = forward[d, j] - forward[d, i]
                    seconds += backward[d, j] - backward[d, i]
                    slowest = max(slowest, seconds * shares[r])
                cost[s, i, j] = slowest
    within = np.inf
    choice = np.zeros((n_stages, n_layers + 1), dtype=np.int64)
    for even in range(2):
        best = cost[0, 0].copy()
        if even:
            for j in range(n_layers + 1):
                best[j] = best[j] * best[j] if best[j] <= within else np.inf
        for s in range(1, n_stages):
            following = np.full(n_layers + 1, np.inf)
            for j in range(s + 1, n_layers + 1):
                for i in range(s, j):
                    paid = cost[s, i, j]
                    if even:
                        paid = best[i] + paid * paid if paid <= within else np.inf
                    else:
                        paid = max(best[i], paid)
                    if paid < following[j]:
                        following[j] = paid
                        choice[s, j] = i
            best = following
        if not np.isfinite(best[n_layers]):
            return False
        within = best[n_layers] * (1 + 1e-12)
    at = n_layers
    for s in range(n_stages - 1, -1, -1):
        layout.cut[s + 1] = at
        at = choice[s, at] if s else 0
    layout.cut[0] = 0
    return True
