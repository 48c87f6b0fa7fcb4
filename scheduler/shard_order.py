"""Which pipeline of a plan holds which shard of the sequences, when that is all that is left open.

The search takes every shard to be a mean one and pipelines to be interchangeable; but later shards have more
pairs of positions, and keys pass from each to the next alone. So pipelines of the plan that was found are put
in order: the engine times it, and two change places as long as that gains. Pure; knows no price.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

from scheduler.plan import Plan

MOST_TIMED = 60
"""Orders that are timed."""
WORTH = 1e-9
"""Share of the step that two pipelines change places for."""


def in_best_order(plan: Plan, step_s: Callable[[Plan], float]) -> Plan:
    """The plan with its pipelines in the best order met; `step_s` times one."""
    best, best_s, timed = plan, step_s(plan), 1
    improved = plan.n_replicas > 1
    while improved:
        improved = False
        for a, b in combinations(range(plan.n_replicas), 2):
            if timed == MOST_TIMED:
                return best
            order = list(range(plan.n_replicas))
            order[a], order[b] = b, a
            trial = reordered(best, order)
            trial_s = step_s(trial)
            timed += 1
            if trial_s < best_s * (1 - WORTH):
                best, best_s, improved = trial, trial_s, True
    return best


def reordered(plan: Plan, order: list[int]) -> Plan:
    """The plan whose pipeline r is this one's `order[r]`, its codecs with it."""
    rows = tuple(plan.placement[r] for r in order)
    shares = tuple(plan.micro_batches[r] for r in order)
    return replace(plan, placement=rows, micro_batches=shares, codecs=plan.codecs.of_replicas(order))
