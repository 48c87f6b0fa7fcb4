"""What ends a step before its time: a crash, a device that leaves, a partition, a step that takes too long.

How long is too long is the coordinator's own formula (`scheduler/liveness.py`), and whose doing it is its own
reasoning (`scheduler/blame.py`). Decides nothing of what follows (`scheduler/recovery.py` does).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from scheduler.blame import culprits
from scheduler.liveness import HEARTBEAT_S, SILENCE, STEP
from scheduler.plan import Plan
from scheduler.timeline import Timeline
from scheduler.units import duration
from sim.faults import Faults
from sim.presence import Presence


@dataclass(frozen=True, slots=True)
class Loss:
    at_s: float
    why: str
    ended: tuple[str, ...] = ()
    """Devices whose process died or was sent away, though the device is there."""
    overdue: bool = False
    """The step did not end; without `ended` its connections are made anew, for nobody hangs."""


@dataclass(frozen=True, slots=True)
class Step:
    """The one that begins at `now_s`, would be `timeline`, and is the `number`-th; `before_s`: what the ones
    before it took; `again`: it did not end the last time."""

    plan: Plan
    number: int
    now_s: float
    timeline: Timeline
    before_s: Sequence[float]
    again: bool = False


def first_loss(
    step: Step, faults: Faults, crashes: Collection[tuple[int, int]], presence: Presence
) -> Loss | None:
    """What ends the step first, if anything does. `crashes`: (rank, step) still to come."""
    plan, took_s, losses = step.plan, step.timeline.duration_s, []
    end_s = step.now_s + took_s
    held = plan.devices
    for rank in range(plan.n_ranks):
        if (rank, step.number) in crashes:
            name = plan.device(rank)
            why = f"{name} is lost: its connection ended (crashed)"
            losses.append(Loss(step.now_s + took_s / 2, why, ended=(name,)))
    for at_s, name, comes in faults.moves:
        left = not comes and name in held and at_s <= end_s
        if left and not presence.came_back(name, at_s, step.now_s):
            losses.append(Loss(max(step.now_s, at_s), f"{name} is lost: it left"))
    silence_s = SILENCE.deadline_s([HEARTBEAT_S] * 3)
    for p in faults.partitions:
        away = [n for n in held if presence.loses(p, n)]
        noticed_s = p.from_s + silence_s
        if away and step.now_s < p.until_s and noticed_s < min(p.until_s, end_s):
            why = f"{away[0]} is lost: no heartbeat for {silence_s:.0f} s (a partition)"
            losses.append(Loss(max(step.now_s, noticed_s), why))
    limit_s = STEP.deadline_s(step.before_s)
    if took_s > limit_s:
        losses.append(_overdue(step, limit_s))
    return min(losses, key=lambda x: x.at_s, default=None)


def _overdue(step: Step, limit_s: float) -> Loss:
    """What the coordinator makes of it by what ranks tell at that moment."""
    plan = step.plan
    late = frozenset(s.rank for s in step.timeline.spans if s.kind in _OWED and s.end_s > limit_s)
    waits_for = {rank: _waits_for(step, rank, limit_s) for rank in range(plan.n_ranks)}
    out = tuple(plan.device(r) for r in culprits(waits_for, late, step.again))
    names = ", ".join(plan.device(r) for r in sorted(late))
    why = f"step {step.number} is not done after {duration(limit_s)}; waiting for {names}"
    return Loss(step.now_s + limit_s, why, ended=out, overdue=True)


_OWED = ("forward", "backward", "reduce")
"""What a rank does before it votes."""


def _waits_for(step: Step, rank: int, t_s: float) -> int | None:
    """The rank whose tensor it waits for at that moment of the step; None: it computes, or is done."""
    for s in step.timeline.spans:
        if s.rank != rank or not s.start_s <= t_s < s.end_s:
            continue
        if s.kind == "wait" and s.peer >= 0:
            return s.peer
        if s.kind == "reduce":
            return s.peer if s.peer >= 0 else _last_of_group(step, rank)
    return None


def _last_of_group(step: Step, rank: int) -> int | None:
    """Who of the others that hold the stage begins to reduce last: everybody needs what that one has. Where
    there are none, a tied weight is exchanged: then of all."""
    begins_s = {s.rank: s.start_s for s in reversed(step.timeline.spans) if s.kind == "reduce"}
    group = step.plan.group(step.plan.stage_of(rank))
    others = [r for r in begins_s if r != rank and (r in group or len(group) == 1)]
    return max(others, key=lambda r: (begins_s[r], r), default=None)
