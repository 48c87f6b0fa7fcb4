"""Spot checks: now and then a stage's work on one micro-batch is done a second time by its other replicas.

    rank before  --- what it sent to the checked rank, and the gradient it got back --->  checkers
    rank behind  --- what it got from the checked rank, and the gradient it sent back -->  checkers

The checked rank is not told and its word is not asked for: its neighbours tell the checkers what went in and
what came out, over their own links, and each checker computes the same from its own weights and says how far
off the result is. Two checkers where there are three replicas or more, so that a majority decides; with two
replicas one checks the other, and who of them is wrong is told only by a second disagreement with somebody
else. Which micro-batch, stage and replica it is, is drawn from a key that only the coordinator has, and is
told with the commit before the step.

What is compared is what crosses the stage's boundaries: a last stage by its input's gradient, a first one by
its activation. Not compared: the gradients of weights, whose sum of all micro-batches is what travels.

Pure: draws, judges and prices; computes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import inf, isfinite
from typing import Literal

from scheduler.plan import Plan
from scheduler.plan_codecs import IDENTITY
from scheduler.profile import DeviceProfile, ModelProfile
from scheduler.topology import Topology
from scheduler.units import count, duration, size

MOST_CHECKERS = 2
"""Two and the checked rank make a majority."""


@dataclass(frozen=True, slots=True)
class SpotCheck:
    """In `step`, micro-batch `micro_batch` of `replica` (numbered within it) is computed again by the ranks
    `checkers`, which hold replicas of `stage`."""

    step: int
    stage: int
    replica: int
    micro_batch: int
    checkers: tuple[int, ...]

    def checked(self, plan: Plan) -> int:
        """The rank that is checked."""
        return plan.rank(self.replica, self.stage)

    def told(self, plan: Plan) -> tuple[int, ...]:
        """The ranks that have a part in it: the checkers, and whoever is before and behind."""
        beside = [s for s in (self.stage - 1, self.stage + 1) if 0 <= s < plan.n_stages]
        return tuple(sorted({*self.checkers, *(plan.rank(self.replica, s) for s in beside)}))


def why_none(plan: Plan) -> str:
    """'' or why nothing can be checked under `plan`."""
    if reason := _why_no_other(plan):
        return reason
    if not checkable(plan):
        return "every boundary is compressed, and what a codec makes of a tensor its own end alone knows"
    return ""


def _why_no_other(plan: Plan) -> str:
    """'' or why nobody could do a stage's work a second time and hold it against what others saw."""
    if plan.local_steps:
        return "replicas that step alone have weights of their own"
    if plan.split == "sequence":
        return "replicas that share every sequence compute none of it twice"
    if plan.n_replicas < 2:
        return "no stage has a second replica"
    if plan.n_stages < 2:
        return "with one stage nothing crosses a boundary"
    return ""


def checkable(plan: Plan) -> tuple[tuple[int, int], ...]:
    """The (replica, stage) whose boundaries are not compressed: their neighbours saw what they saw."""
    if _why_no_other(plan):
        return ()
    return tuple(
        (replica, stage)
        for replica, stage in product(range(plan.n_replicas), range(plan.n_stages))
        if all(_plain(plan, replica, b) for b in (stage - 1, stage) if 0 <= b < plan.n_stages - 1)
    )


def _plain(plan: Plan, replica: int, boundary: int) -> bool:
    kinds = ("activation", "gradient")
    return all(plan.codecs.of_boundary(kind, replica, boundary) == IDENTITY for kind in kinds)


def draw(plan: Plan, step: int, every: int, key: bytes) -> SpotCheck | None:
    """What is checked in `step`, or None: every `every` steps (0: never) something is, if anything can be.

    The same for the same key, plan and step, and not to be foreseen without the key.
    """
    if not every or step % every:
        return None
    cells = checkable(plan)
    if not cells:
        return None
    replica, stage = cells[_number(key, step, "cell") % len(cells)]
    others = [r for r in plan.group(stage) if plan.replica_of(r) != replica]
    others.sort(key=lambda r: _number(key, step, f"checker {r}"))
    micro_batch = _number(key, step, "micro-batch") % plan.micro_batches[replica]
    return SpotCheck(step, stage, replica, micro_batch, tuple(sorted(others[:MOST_CHECKERS])))


def _number(key: bytes, step: int, what: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{step} {what}".encode(), key=key, digest_size=8).digest(), "big")


def told_by(plan: Plan, rank: int) -> tuple[int, ...]:
    """The ranks with which `rank` may exchange what a check needs: those of the stages before and behind."""
    if not checkable(plan):
        return ()
    beside = [s for s in (plan.stage_of(rank) - 1, plan.stage_of(rank) + 1) if 0 <= s < plan.n_stages]
    return tuple(sorted(r for s in beside for r in plan.group(s)))


# ---- what comes of it

Partners = Mapping[str, frozenset[str]]
"""By worker, with whom it disagreed while nobody could say which of the two was wrong."""


@dataclass(frozen=True, slots=True)
class CheckVerdict:
    """agree: the step stands. at fault: a majority says so, or a second partner does. suspected: one of two,
    and the step is done again without this one, which is not held against it."""

    kind: Literal["agree", "at fault", "suspected"]
    ranks: tuple[int, ...] = ()
    reason: str = ""
    partners: Partners = field(default_factory=dict)


def judge_check(
    check: SpotCheck,
    plan: Plan,
    errors: Mapping[int, float],
    tolerance: float,
    workers: tuple[str, ...],
    partners: Partners,
) -> CheckVerdict:
    """What the checkers' `errors` (relative, by rank) say; `workers` by rank. A checker that told none has
    checked nothing.

    Of three the one that the two others contradict is at fault: the checked rank if both checkers are off,
    the checker that is alone in being off if the other is not.
    """
    said = {r: e if isfinite(e) and e >= 0.0 else inf for r, e in errors.items() if r in check.checkers}
    off = tuple(r for r, e in sorted(said.items()) if e > tolerance)
    if not off:
        return CheckVerdict("agree", partners=partners)
    checked = check.checked(plan)
    what = (
        f"spot check of stage {check.stage}, replica {check.replica} (rank {checked}), micro-batch"
        f" {check.micro_batch}: "
    ) + ", ".join(f"rank {r} finds it off by {said[r]:.2g}" for r in off)
    what += f" (tolerance {tolerance:g})"
    if len(said) > 1:
        alone = off[0] if len(off) == 1 else checked
        return CheckVerdict("at fault", (alone,), f"{what}; rank {alone} is alone with it", partners)
    return _between_two(checked, off[0], what, workers, partners)


def _between_two(
    checked: int, checker: int, what: str, workers: tuple[str, ...], partners: Partners
) -> CheckVerdict:
    """One word against another: whoever has disagreed with somebody else before is at fault."""
    a, b = workers[checked], workers[checker]
    seen = {**partners, a: partners.get(a, frozenset()) | {b}, b: partners.get(b, frozenset()) | {a}}
    found = tuple(r for r, w in ((checked, a), (checker, b)) if len(seen[w]) > 1)
    if len(found) == 1:
        left = {w: p for w, p in seen.items() if w != workers[found[0]]}
        reason = f"{what}; rank {found[0]} has disagreed with {len(seen[workers[found[0]]])} others"
        return CheckVerdict("at fault", found, reason, left)
    reason = f"{what}; nobody can say which of the two is wrong"
    return CheckVerdict("suspected", (checked,), reason, seen)


# ---- what it costs


def price(
    plan: Plan, model: ModelProfile, profiles: Sequence[DeviceProfile], topology: Topology, every: int
) -> str:
    """What checks every `every` steps cost, at most, in a sentence. `model` and `profiles`: as measured."""
    if reason := why_none(plan):
        return f"No spot checks: {reason}."
    ratio = plan.micro_batch / model.micro_batch
    scaled, by_name = model.scaled(plan.micro_batch), {p.device: p.scaled(ratio) for p in profiles}
    most_bytes, most_s = 0, 0.0
    for replica, stage in checkable(plan):
        start, stop = plan.partition[stage]
        sends = [
            (plan.device(plan.rank(replica, beside)), 2 * scaled.layers[layer].boundary_bytes)
            for beside, layer in ((stage - 1, start - 1), (stage + 1, stop - 1))
            if 0 <= beside < plan.n_stages
        ]
        others = [plan.device(r) for r in plan.group(stage) if plan.replica_of(r) != replica]
        checkers = min(len(others), MOST_CHECKERS)
        most_bytes = max(most_bytes, checkers * sum(n for _, n in sends))
        for name in others:
            here, profile = topology.index(name), by_name[name]
            compute_s = sum(profile.forward_s[start:stop]) + sum(profile.backward_s[start:stop])
            come_s = max(topology.transfer_s(topology.index(src), here, n) for src, n in sends)
            most_s = max(most_s, compute_s + come_s)
    share = most_s / (every * plan.predicted_step_s) if plan.predicted_step_s > 0 else 0.0
    return (
        f"Every {count(every, 'step')} one micro-batch of one stage is computed again elsewhere: at most"
        f" {size(most_bytes)} more on the links and {duration(most_s)} more in that step, {share:.2%} of"
        " the time."
    )
