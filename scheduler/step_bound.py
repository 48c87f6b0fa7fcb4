"""A lower bound on the step time of a shape: what no placement, cut or order of it can stay below.

The busiest replica takes at least M/R micro-batches. A stage that computes them waits first for one to
reach it, over links at best like the fastest there are. Then its replicas exchange gradients, each
device at best with its R - 1 nearest; or, if that is longer, its last gradient goes back to the first
stage, whose replicas exchange theirs. Over all cuts the least of the slowest stage, by dynamic
programming, with every layer on the device that is fastest for it. And all devices together
cannot do the batch's work faster than their speeds add up to.
"""

from __future__ import annotations

import numpy as np

from scheduler.compiled import compiled
from scheduler.step_case import Case
from scheduler.step_kernels import NORM_BYTES, Floats, Prices


def lower_bounds_s(cases: list[Case]) -> list[float]:
    """The bound of each case. What depends on links alone is computed once for all that share prices."""
    nearest: dict[int, tuple[Floats, Floats]] = {}
    bounds = []
    for case in cases:
        key = id(case.prices)
        if key not in nearest:
            most = max(c.n_replicas for c in cases if c.prices is case.prices)
            nearest[key] = _nearest(case.prices, most)
        bounds.append(_bound(case, *nearest[key]))
    return bounds


def lower_bound_s(case: Case) -> float:
    """Seconds that no layout of the case can stay below."""
    return lower_bounds_s([case])[0]


def _nearest(prices: Prices, n_replicas: int) -> tuple[Floats, Floats]:
    """[R]: the least any device pays for its r nearest peers: summed latency, and summed seconds a byte.

    Each by itself, so that together they bound every size of shard.
    """
    n = len(prices.latency_s)
    most = min(n_replicas, n)
    out = []
    for m, invert in ((prices.latency_s, False), (prices.bandwidth_Bps, True)):
        least = np.full(most, np.inf)
        for d in range(n):
            row = np.delete(m[d], d)
            row = 1.0 / row if invert else row
            row = np.sort(row)[: most - 1]
            least = np.minimum(least, np.concatenate([[0.0], np.cumsum(row)]))
        out.append(least)
    return out[0], out[1]


def _bound(case: Case, latency_s: Floats, seconds_a_byte: Floats) -> float:
    p, s, r = case.prices, case.n_stages, case.n_replicas
    work_s = np.diff(p.forward_s, axis=1) + np.diff(p.backward_s, axis=1)
    off = ~np.eye(len(p.latency_s), dtype=bool)
    hop_latency_s, hop_Bps, norm_s = 0.0, np.inf, 0.0
    if s > 1:
        hop_latency_s = float(p.latency_s.min(where=off, initial=np.inf))
        hop_Bps = float(p.bandwidth_Bps.max(where=off, initial=0.0))
        norm_s = hop_latency_s + NORM_BYTES / hop_Bps
    least_s = work_s.min(axis=0)
    into_s = np.diff(p.forward_s, axis=1).min(axis=0)
    exchange = (float(latency_s[r - 1]), float(seconds_a_byte[r - 1]) / r)
    share = -(-case.micro_batches // r)
    chain_s = _least_slowest(
        np.concatenate([[0.0], np.cumsum(into_s)]),
        np.concatenate([[0.0], np.cumsum(least_s)]),
        p.activation_bytes / hop_Bps + hop_latency_s,
        p.gradient_bytes / hop_Bps + hop_latency_s,
        p.reduce_bytes,
        np.array(exchange),
        s,
        share,
    )
    # Every device works off a layer at least `slowness` times as slowly as the fastest does.
    busy = least_s > 0
    slowness = (work_s[:, busy] / least_s[busy]).min(axis=1) if busy.any() else np.ones(len(work_s))
    speeds = float(np.sort(1 / slowness)[::-1][: s * r].sum())
    together_s = case.micro_batches * float(least_s.sum()) / speeds
    return max(chain_s, together_s) + norm_s


@compiled
def _least_slowest(
    into_s: Floats,
    upto_s: Floats,
    down_s: Floats,
    up_s: Floats,
    reduce_bytes: Floats,
    exchange: Floats,
    n_stages: int,
    share: int,
) -> float:
    """Over all cuts, the least of max over stages of (way in + share of the work + the longer way on).

    `into_s` [L + 1] sums the layers' forwards, `upto_s` forwards and backwards; a hop before layer i
    costs down_s[i] there, up_s[i] back.
    """
    n_layers = len(upto_s) - 1
    hop_down_s, hop_up_s = np.inf, np.inf
    for i in range(1, n_layers):
        hop_down_s, hop_up_s = min(hop_down_s, down_s[i]), min(hop_up_s, up_s[i])
    first_s = 2 * (exchange[0] + exchange[1] * reduce_bytes[0, 1])
    best = np.full(n_layers + 1, np.inf)
    best[0] = 0.0
    for s in range(n_stages):
        following = np.full(n_layers + 1, np.inf)
        down, up = (s * hop_down_s, s * hop_up_s) if s else (0.0, 0.0)
        for j in range(s + 1, n_layers - (n_stages - 1 - s) + 1):
            for i in range(s, j):
                own_s = 2 * (exchange[0] + exchange[1] * reduce_bytes[i, j])
                back_s = upto_s[i] - into_s[i] + up + first_s
                stage_s = into_s[i] + down + share * (upto_s[j] - upto_s[i]) + max(own_s, back_s)
                following[j] = min(following[j], max(best[i], stage_s))
        best = following
    return float(best[n_layers])
