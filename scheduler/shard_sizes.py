"""How many positions each shard of the sequences holds, so that all take as long.

With causal attention a later position has more pairs, and devices differ. So shards that are contiguous, as
they must be for keys to pass one way only, are made longer where positions are early or devices fast. The
search knows equal shards alone; of the plan that was found the engine times a few steps towards even work.
Pure; knows no search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from math import inf, sqrt
from typing import NamedTuple

from scheduler.cost import profiles_by_name
from scheduler.plan import Plan
from scheduler.profile import DeviceProfile, ModelProfile
from scheduler.sequence import shard_bounds
from scheduler.settings import Setting, priced
from scheduler.topology import Topology

WAY = (1.0, 0.75, 0.5, 0.25)
"""How far from equal shards to even work; less than all where longer shards do not fit, or wait for keys."""
WORTH = 0.005
"""Share of the step that unequal shards must gain."""


class Work(NamedTuple):
    """What a stage's device would take for all positions, as if none were another's."""

    positions_s: float
    """In proportion to positions."""
    pairs_s: float
    """In proportion to pairs of a position and one before it."""


def with_best_sizes(
    plan: Plan,
    model: ModelProfile,
    devices: Sequence[DeviceProfile],
    topology: Topology,
    step_s: Callable[[Plan], float],
    fits: Callable[[Plan], bool],
) -> Plan:
    """`plan` with the shards under which its step is shortest, of those met that fit; equal ones unless
    others pay. As it is where replicas share the batch. `step_s` times a plan; `predicted_step_s` is set."""
    if plan.sequence_shards == 1:
        return plan
    equal = replace(plan, shard_sizes=())
    equal = replace(equal, predicted_step_s=step_s(equal))
    whole = priced(Setting.of(replace(plan, split="batch", shard_sizes=())), model, devices, topology)
    by_name = profiles_by_name(whole.model, whole.devices)
    works = [
        [_work(by_name[name], *cut) for name, cut in zip(row, plan.partition, strict=True)]
        for row in plan.placement
    ]
    best = equal
    for sizes in dict.fromkeys(_on_the_way(model.sequence_length, works)):
        trial = replace(equal, shard_sizes=sizes)
        if fits(trial):
            trial = replace(trial, predicted_step_s=step_s(trial))
            if trial.predicted_step_s < best.predicted_step_s:
                best = trial
    worth = best.predicted_step_s < equal.predicted_step_s * (1 - WORTH)
    return best if worth else equal


def _work(profile: DeviceProfile, start: int, stop: int) -> Work:
    whole = sum(profile.forward_s[start:stop]) + sum(profile.backward_s[start:stop])
    pairs = sum(profile.forward_pairs_s[start:stop]) + sum(profile.backward_pairs_s[start:stop])
    return Work(max(0.0, whole - pairs), pairs)


def _on_the_way(length: int, works: Sequence[Sequence[Work]]) -> list[tuple[int, ...]]:
    equal = [b / length for _, b in shard_bounds(length, len(works))]
    even = even_ends(works)
    return [sizes_of(length, [e + w * (x - e) for e, x in zip(equal, even, strict=True)]) for w in WAY]


def even_ends(works: Sequence[Sequence[Work]]) -> list[float]:
    """Where each shard ends, as a share of the sequence, so that the slowest stage of each takes as long as
    that of every other. `works`: [shard][stage]."""

    def ends(seconds: float) -> list[float]:
        at, found = 0.0, []
        for shard in works:
            at = min(_reached(at, work, seconds) for work in shard)
            found.append(at)
        return found

    low, high = 0.0, max(work.positions_s + work.pairs_s for shard in works for work in shard)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if ends(middle)[-1] >= 1 else (middle, high)
    return [min(1.0, end) for end in ends(high)[:-1]] + [1.0]


def _reached(start: float, work: Work, seconds: float) -> float:
    """How far somebody gets from `start` in so many seconds: x with a (x - start) + p (x^2 - start^2) = s."""
    a, p = work
    c = seconds + a * start + p * start**2
    below = a + sqrt(a * a + 4 * p * c)
    return 2 * c / below if below > 0 else inf


def sizes_of(length: int, ends: Sequence[float]) -> tuple[int, ...]:
    """Whole positions of shards that end there, one at least each."""
    bounds = [0]
    for k, end in enumerate(ends):
        left = len(ends) - k - 1
        bounds.append(min(max(round(end * length), bounds[-1] + 1), length - left))
    return tuple(b - a for a, b in pairwise(bounds))
