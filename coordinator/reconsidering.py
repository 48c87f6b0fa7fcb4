"""While a plan runs: whether another is faster, now that devices or links have changed, or others are there.

The shell looks for another plan with what was measured; `scheduler/replan.py` says whether moving pays. It
is asked again and again, because a move must have been worth it several times in a row. It waits for a
step's boundary and goes the way that a recovery goes. Pure.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import median

from .commands import Reconsider
from .drive import proceed
from .events import Observed, Reconsidered
from .following import begin
from .prepare import request_for
from .records import State, Transition, ignored, then

NOTEWORTHY = 1.1
"""What changes by less is noise, and no reason to look for another plan."""


def on_observed(state: State, event: Observed) -> Transition:
    """How devices and links are now, as another watched step says."""
    if event.plan_version != state.plan_version:
        return ignored(state, f"plan {event.plan_version} is over")
    outlook = replace(state.outlook, factors=event.factors, seen=state.outlook.seen + 1)
    return Transition(replace(state, outlook=outlook))


def look(state: State, now: float) -> Transition | None:
    """Have the shell look for a faster plan if there is a reason to, and it is time; else None."""
    o, plan, every_s = state.outlook, state.plan, state.options.reconsider_s
    if not every_s or plan is None or state.phase != "running" or state.draining:
        return None
    busy = o.looking or o.chosen is not None or state.ahead is not None
    busy = busy or any(n in state.leaving for n in state.ranks)
    # Replicas that step alone hold no layer that another could go on with.
    if busy or plan.local_steps or now - o.looked_s < every_s or o.seen <= o.looked_at:
        return None
    standby = set(state.known) - set(state.ranks)
    if not set(state.ranks) <= set(state.known) or not (standby or o.factors.largest > NOTEWORTHY):
        return None
    step_s = median(state.steps_s) if state.steps_s else 0.0
    asked = Reconsider(
        request_for(state, state.known), plan, state.done, state.options.steps, o.streak, step_s
    )
    looking = replace(o, looking=True, looked_s=now, looked_at=o.seen)
    return Transition(replace(state, outlook=looking), (asked,), "looking for a faster plan")


def on_reconsidered(state: State, event: Reconsidered, now: float) -> Transition:
    """Stay, or take the plan: at the next boundary, or once the layers that it needs have travelled."""
    if event.plan_version != state.plan_version or state.plan is None:
        return ignored(state, f"plan {event.plan_version} is over")
    said = replace(state.outlook, looking=False, streak=event.streak, reason=event.reason)
    state = replace(state, outlook=said)
    f = event.following
    if event.plan is not None and f is not None and set(f.participants) <= set(state.known):
        return begin(state, event.plan, f, event.reason, now)
    state = replace(state, outlook=replace(said, chosen=event.plan))
    here = Transition(state, (), event.reason)
    moves = event.plan is not None and state.phase == "running" and not state.draining
    return then(here, proceed(state, now)) if moves else here
