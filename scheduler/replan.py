"""Whether a run that has a plan should take another, now that devices or links were measured anew.

Both plans are priced with the same measurements. Moving costs time now and saves some every step, so it
must pay for itself before the run ends; and measurements are noisy, so it must look worth it by a margin
and several times in a row. Makes no plan and moves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

from scheduler.cost import step_time_s
from scheduler.moving import MovingCost, moving_cost
from scheduler.plan import Plan
from scheduler.profile import DeviceProfile, ModelProfile
from scheduler.topology import Topology
from scheduler.units import count, duration


@dataclass(frozen=True, slots=True)
class Patience:
    """How much better, and how often in a row, another plan must look."""

    margin: float = 0.2
    """Share of the running step that must be saved. If every rate and time is off by at most e either way, a
    plan that is really no better looks at most 1 - (1 - e)^2 faster: 19 % for e = 10 %."""
    persistence: int = 3
    """Measurements in a row that must say so: a link that stutters once moves nothing."""
    restart_s: float = 5.0
    """Seconds to stop, build the stages anew and connect."""
    steps_redone: float = 1.0
    """Steps that are under way when the run moves and begin again; 0 where it moves between steps."""

    def __post_init__(self) -> None:
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin: found {self.margin}, required 0 or more and less than 1")
        if self.persistence < 1:
            raise ValueError(f"persistence: found {self.persistence}, required 1 or more")


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known now: of the layers, of the devices that are there, and of their links."""

    model: ModelProfile
    devices: Sequence[DeviceProfile]
    topology: Topology


@dataclass(frozen=True, slots=True)
class Stay:
    """Go on as before. `streak`: how many measurements in a row spoke for moving, for the next call."""

    streak: int
    reason: str


@dataclass(frozen=True, slots=True)
class Move:
    """Take `plan`. From `pays_at_step` on (steps done), the run is further than it would be without."""

    plan: Plan
    cost: MovingCost
    saves_s: float
    """Seconds a step; infinite if the running plan cannot go on."""
    pays_at_step: int
    reason: str


def reconsider(
    running: Plan,
    candidate: Plan,
    now: Measured,
    step: int,
    steps: int,
    streak: int = 0,
    patience: Patience | None = None,
) -> Stay | Move:
    """Whether to leave `running` for `candidate` after `step` of `steps` steps; `streak`: the last answer's.

    Moving costs the layers' way over the links, the restart, and the steps that begin again. A plan
    whose device is gone cannot stay: then there is neither margin nor patience.
    """
    patience = patience or Patience()
    gone = sorted({running.device(r) for r in range(running.n_ranks)} - {p.device for p in now.devices})
    candidate_s = _step_s(candidate, now)
    again_s = patience.restart_s + patience.steps_redone * candidate_s
    cost = moving_cost(running, candidate, now.model, now.topology, again_s)
    if gone:
        reason = f"{', '.join(gone)} is gone" if len(gone) == 1 else f"{', '.join(gone)} are gone"
        return Move(candidate, cost, float("inf"), step, f"{reason}; {cost.sentence()}.")
    running_s = _step_s(running, now)
    saves_s = running_s - candidate_s
    share = f"{duration(candidate_s)} a step instead of {duration(running_s)}"
    if _same_work(running, candidate):
        return Stay(0, f"No other plan is known to be faster than {duration(running_s)} a step.")
    if saves_s <= 0:
        return Stay(0, f"The other plan would take {share}.")
    if saves_s < patience.margin * running_s:
        asked = f"less than the {patience.margin:.0%} that is asked for"
        return Stay(0, f"The other plan would take {share}: {saves_s / running_s:.0%} faster, {asked}.")
    pays_at = step + ceil(cost.seconds / saves_s)
    if pays_at > steps:
        left = count(steps - step, "step")
        return Stay(
            0, f"The other plan would take {share}, but {cost.sentence()}: not paid for in the {left} left."
        )
    streak += 1
    if streak < patience.persistence:
        times = f"{streak} of {patience.persistence} times in a row"
        return Stay(streak, f"The other plan would take {share}; seen {times}.")
    reason = f"{share}, seen {count(streak, 'time')} in a row; {cost.sentence()}, paid for at step {pays_at}."
    return Move(candidate, cost, saves_s, pays_at, reason)


def _step_s(plan: Plan, now: Measured) -> float:
    return step_time_s(plan, now.model, now.devices, now.topology)


def _same_work(a: Plan, b: Plan) -> bool:
    """Whether both have every device do the same."""
    return replace(a, version=b.version, predicted_step_s=b.predicted_step_s, reasons=b.reasons) == b
