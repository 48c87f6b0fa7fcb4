"""What ends a step before its time: a crash, a device that leaves, a partition, a step that takes too long.

How long is too long is the coordinator's own formula (`scheduler/liveness.py`). Decides nothing of what
follows (`scheduler/recovery.py` does).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from scheduler.liveness import HEARTBEAT_S, SILENCE, STEP
from scheduler.plan import Plan
from scheduler.units import duration
from sim.faults import Faults
from sim.presence import Presence


@dataclass(frozen=True, slots=True)
class Loss:
    at_s: float
    why: str
    crashed: str = ""
    """The device whose process died, though the device is there."""
    stalled: bool = False
    """Nobody is gone: the coordinator gives the run up, to be resumed by hand."""


@dataclass(frozen=True, slots=True)
class Step:
    """The one that begins at `now_s`, would take `took_s`, and is the `number`-th; `before_s`: what the ones
    before it took."""

    plan: Plan
    number: int
    now_s: float
    took_s: float
    before_s: Sequence[float]


def first_loss(
    step: Step, faults: Faults, crashes: Collection[tuple[int, int]], presence: Presence
) -> Loss | None:
    """What ends the step first, if anything does. `crashes`: (rank, step) still to come."""
    plan, end_s, losses = step.plan, step.now_s + step.took_s, []
    held = plan.devices
    for rank in range(plan.n_ranks):
        if (rank, step.number) in crashes:
            name = plan.device(rank)
            why = f"{name} is lost: its connection ended (crashed)"
            losses.append(Loss(step.now_s + step.took_s / 2, why, crashed=name))
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
    if step.took_s > limit_s:
        why = f"step {step.number} is not done after {duration(limit_s)}"
        losses.append(Loss(step.now_s + limit_s, why, stalled=True))
    return min(losses, key=lambda x: x.at_s, default=None)
