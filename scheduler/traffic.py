"""What a step moves between which ranks, in bytes, as the plan says it: no clock, no network."""

from __future__ import annotations

from collections import defaultdict

from scheduler.durations import Durations
from scheduler.engine import NORM_BYTES
from scheduler.plan import Plan

Traffic = dict[tuple[int, int], float]
"""(source rank, destination rank) -> bytes in one step."""


def traffic(plan: Plan, durations: Durations) -> Traffic:
    """Activations and gradients over stage boundaries, keys and their gradients between shards of sequences,
    shards of weights' gradients between replicas (sent to be summed, and sent back), tied embeddings, norms.
    What the engine moves is exactly this."""
    moved: Traffic = defaultdict(float)
    last = plan.n_stages - 1
    for replica, micro_batches in enumerate(plan.micro_batches):
        ranks = [plan.rank(replica, s) for s in range(plan.n_stages)]
        for s in range(last):
            near, far = ranks[s], ranks[s + 1]
            moved[near, far] += micro_batches * durations.activation_bytes[near]
            moved[far, near] += micro_batches * durations.gradient_bytes[far]
        if last > 0 and durations.tied_bytes:
            moved[ranks[0], ranks[last]] += durations.tied_bytes
            moved[ranks[last], ranks[0]] += durations.tied_bytes
        if durations.rows is not None and replica + 1 < plan.n_replicas:
            forwards = micro_batches * (2 if durations.rows.again else 1)
            for s, near in enumerate(ranks):
                far, n_bytes = plan.rank(replica + 1, s), durations.rows.handed_on_bytes(s, replica)
                moved[near, far] += forwards * n_bytes
                moved[far, near] += micro_batches * n_bytes
        for a in ranks:
            for b in ranks:
                if a != b:
                    moved[a, b] += NORM_BYTES
    for s in range(plan.n_stages):
        group = plan.group(s)
        for a in group:
            for b in group:
                if a != b:
                    moved[a, b] += 2 * durations.reduce_bytes[s] / len(group)
    return dict(moved)
