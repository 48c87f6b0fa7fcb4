"""A lower bound on the step time of a shape: what no placement, cut or order of it can stay below.

The busiest replica takes at least M/R micro-batches. A stage that computes them waits first for one to
reach it, over links at best like the fastest there are. Then its replicas exchange gradients, each
device at best with its R - 1 nearest; or, if that is longer, its last gradient goes back to the first
stage, whose replicas exchange theirs. Over all cuts the least of the slowest stage, by dynamic
programming, with every layer on the device that is fastest for it. And all devices together
cannot do the batch's work faster than their speeds add up to.

Where hosts' cores are shared a device is taken to compute alone, and all together as fast as their
cores; a link is taken to have its device's card and its region's way out to itself.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from scheduler.compiled import compiled
from scheduler.step_case import Case
from scheduler.step_kernels import NORM_BYTES, Floats, Prices


class _Grounds(NamedTuple):
    """What the bounds of all cases with the same prices share."""

    peers_latency_s: Floats
    """[R]: the least that any device pays for its r nearest peers: summed latency; and summed seconds a byte.
    Each by itself, so that together they bound every size of shard."""
    peers_s_a_byte: Floats
    hop_latency_s: float
    hop_Bps: float
    into_s: Floats
    """[L]: each layer's forward on the device that is fastest for it; and forward with backward."""
    least_s: Floats
    speeds: Floats
    """[N], fastest first: how fast a device works off the batch at most, in parts of those fastest ones."""
    together: float
    """The speeds of all devices at once, which share their hosts' cores."""


def lower_bounds_s(cases: list[Case]) -> list[float]:
    """The bound of each case. What does not depend on the shape is computed once for shared prices."""
    known: dict[int, _Grounds] = {}
    bounds = []
    for case in cases:
        key = id(case.prices)
        if key not in known:
            most = max(c.n_replicas for c in cases if c.prices is case.prices)
            known[key] = _grounds(case.prices, case.pricing.crowd, most)
        bounds.append(_bound(case, known[key]))
    return bounds


def lower_bound_s(case: Case) -> float:
    """Seconds that no layout of the case can stay below."""
    return lower_bounds_s([case])[0]


def _grounds(p: Prices, crowd: Floats, n_replicas: int) -> _Grounds:
    n = len(p.latency_s)
    most = min(n_replicas, n)
    peers_s, a_byte_s = np.full(most, np.inf), np.full(most, np.inf)
    hop_latency_s, hop_Bps = np.inf, 0.0
    for d in range(n):
        latency_s, bandwidth_Bps = np.delete(p.latency_s[d], d), np.delete(p.bandwidth_Bps[d], d)
        hop_latency_s = min(hop_latency_s, float(latency_s.min(initial=np.inf)))
        hop_Bps = max(hop_Bps, float(bandwidth_Bps.max(initial=0.0)))
        for least, row in ((peers_s, latency_s), (a_byte_s, 1.0 / bandwidth_Bps)):
            sums = np.concatenate([[0.0], np.cumsum(np.sort(row)[: most - 1])])
            np.minimum(least, sums, out=least)
    alone_s = np.diff(p.forward_s, axis=1) / crowd[:, None]
    into_s = alone_s.min(axis=0)
    work_s = alone_s + np.diff(p.backward_s, axis=1) / crowd[:, None]
    least_s = work_s.min(axis=0)
    busy = least_s > 0
    slowness = (work_s[:, busy] / least_s[busy]).min(axis=1) if busy.any() else np.ones(n)
    speeds, together = np.sort(1 / slowness)[::-1], float((1 / (slowness * crowd)).sum())
    return _Grounds(peers_s, a_byte_s, hop_latency_s, hop_Bps, into_s, least_s, speeds, together)


def _bound(case: Case, g: _Grounds) -> float:
    p, s, r = case.prices, case.n_stages, case.n_replicas
    hop_latency_s, hop_Bps = (g.hop_latency_s, g.hop_Bps) if s > 1 else (0.0, np.inf)
    chain_s = _least_slowest(
        np.concatenate([[0.0], np.cumsum(g.into_s)]),
        np.concatenate([[0.0], np.cumsum(g.least_s)]),
        p.activation_bytes.min(axis=0) / hop_Bps + hop_latency_s,
        p.gradient_bytes.min(axis=0) / hop_Bps + hop_latency_s,
        p.reduce_bytes.min(axis=0),
        # An exchange beside the step bounds nothing behind its backwards.
        np.array([g.peers_latency_s[r - 1], g.peers_s_a_byte[r - 1] / r]) * (1 - p.beside),
        s,
        -(-case.micro_batches // r),
    )
    together_s = case.micro_batches * float(g.least_s.sum()) / min(float(g.speeds[: s * r].sum()), g.together)
    return max(chain_s, together_s) + hop_latency_s + NORM_BYTES / hop_Bps


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
