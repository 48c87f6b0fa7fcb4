"""Links that carry nothing while both their ends live, and what plans need of them.

A link that was cut DEAD_AFTER times in one step is taken for dead. It is priced as DEAD_LATENCY_S, so that
whoever plans goes around it, and a plan that uses it all the same is none.

Pure: knows plans and devices' names.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

from scheduler.layer_sources import Sources
from scheduler.plan import Plan
from scheduler.spot_checks import told_by

DEAD_AFTER = 3
DEAD_LATENCY_S, DEAD_BPS = 3600.0, 1.0

Pair = frozenset[str]
"""The two ends: what does not come through in one direction is not acknowledged in the other."""


def pairs_used(plan: Plan, tied: bool, checked: bool = False) -> frozenset[Pair]:
    """Between whom frames travel in a step: neighbours in a pipeline, replicas of a stage, with a `tied`
    weight its first and last stage, and with spot checks (`checked`) those who tell each other of others."""
    ranks: set[tuple[int, int]] = set()
    for stage in range(plan.n_stages):
        ranks |= set(combinations(plan.group(stage), 2))
    for replica in range(plan.n_replicas):
        ranks |= {(plan.rank(replica, s), plan.rank(replica, s + 1)) for s in range(plan.n_stages - 1)}
        if tied and plan.n_stages > 1:
            ranks.add((plan.rank(replica, 0), plan.rank(replica, plan.n_stages - 1)))
    if checked:
        ranks |= {(rank, other) for rank in range(plan.n_ranks) for other in told_by(plan, rank)}
    return frozenset(frozenset((plan.device(a), plan.device(b))) for a, b in ranks)


def pairs_moving(sources: Sources) -> frozenset[Pair]:
    """Between whom layers travel before the first step."""
    return frozenset(
        frozenset((donor, name))
        for name, layers in sources.items()
        for s in layers
        for donor in s.donors
        if donor != name
    )


def who_goes(needed: Iterable[Pair], dead: Iterable[Pair]) -> str:
    """'' or, of the ends of dead links that are `needed`, the one that has most dead links."""
    missing = set(needed) & set(dead)
    ends = {name: sum(name in pair for pair in dead) for pair in missing for name in pair}
    return max(ends, key=lambda name: (ends[name], name), default="")
