"""The engine's timelines on links that share nothing and never change, pinned to the last bit.

Whoever changes the engine for speed or for new networks sees here whether the plain case moved.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from scheduler.engine import Durations, TopologyNetwork, replay
from scheduler.plan import Plan
from scheduler.timeline import Timeline
from scheduler.topology import Device, Topology


def digest(timeline: Timeline) -> str:
    """Of all spans, those of one start and rank in a fixed order."""
    rows = sorted((s.start_s, s.rank, s.end_s, s.kind, s.mb, s.peer, s.n_bytes) for s in timeline.spans)
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]


def unequal(n_stages: int, n_replicas: int, schedule: str, extra: int, cores: bool) -> Timeline:
    """Links and stages that all differ, drawn once from a fixed seed."""
    rng = np.random.default_rng(5)
    n = n_stages * n_replicas
    names = [f"d{i}" for i in range(n)]
    plan = Plan(
        1,
        tuple(tuple(names[r * n_stages : (r + 1) * n_stages]) for r in range(n_replicas)),
        tuple((s, s + 1) for s in range(n_stages)),
        tuple(5 + (r < 1) for r in range(n_replicas)),
        schedule,
        extra,
    )
    d = Durations(
        tuple(rng.uniform(0.1, 0.2, n).tolist()),
        tuple(rng.uniform(0.2, 0.4, n).tolist()),
        tuple(rng.uniform(0.01, 0.02, n).tolist()),
        (*rng.integers(10_000, 20_000, n_stages - 1).tolist(), 0) * n_replicas,
        (0, *rng.integers(10_000, 20_000, n_stages - 1).tolist()) * n_replicas,
        tuple(rng.integers(50_000, 90_000, n_stages).tolist()),
        tied_bytes=7_000,
    )
    if cores:
        d = replace(d, shared_cores=((tuple(range(n // 2)), 2),))
    latency_s, bandwidth_Bps = rng.uniform(0.01, 0.2, (n, n)), rng.uniform(1e5, 1e6, (n, n))
    return replay(
        plan, d, TopologyNetwork(Topology(tuple(Device(x) for x in names), latency_s, bandwidth_Bps))
    )


@pytest.mark.parametrize(
    ("shape", "spans", "expected"),
    [
        ((4, 1, "1f1b", 0, False), 121, "74c3b052cb9e8c24"),
        ((4, 3, "gpipe", 0, False), 338, "c45d06084808a722"),
        ((3, 4, "1f1b", 2, False), 321, "48692275072815e6"),
        ((3, 4, "1f1b", 0, True), 333, "4c3cacd7078317af"),
        ((1, 4, "1f1b", 0, True), 53, "d8dea3ae0ee1acf7"),
    ],
)
def test_plain_links_give_the_same_timeline_to_the_last_bit(
    shape: tuple[int, int, str, int, bool], spans: int, expected: str
) -> None:
    t = unequal(*shape)
    assert (len(t.spans), digest(t)) == (spans, expected)
