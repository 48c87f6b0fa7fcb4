"""Where layers have travelled beside the steps: the run stands still, donors and followers say what they
have, and what is the same to the last bit counts as held when the plan is made for which it was followed.

What differs, or is not there, travels as it would have without all this. Pure.
"""

from __future__ import annotations

from dataclasses import replace

from scheduler.layer_sources import holdings_of, with_followed

from .ahead import Ahead
from .events import Met
from .records import State, Transition, ignored, put, step_to
from .recovering import plan_anew


def on_met(state: State, event: Met, now: float) -> Transition:
    """One of them says what it has; the last one's word begins the plan."""
    ahead = state.ahead
    if ahead is None or event.version != ahead.version or event.worker not in ahead.following.participants:
        return ignored(state, f"{event.worker} met where nobody meets any more")
    if not ahead.meeting or event.step != ahead.meeting:
        return ignored(state, f"{event.worker} met at step {event.step}, not {ahead.meeting}")
    said = {**ahead.met.get(event.worker, {}), **event.digests}  # who gives and follows says it in two words
    state = replace(state, ahead=replace(ahead, met=put(ahead.met, event.worker, said)))
    return meeting(state, now) if state.phase == "running" else Transition(state)


def meeting(state: State, now: float) -> Transition:
    """Run what is granted to its end, wait until all have met, and take the plan."""
    ahead = state.ahead
    assert ahead is not None
    names = ahead.following.participants
    missing = [n for n in names if not ahead.expects(n) <= ahead.met.get(n, {}).keys()]
    if state.done < ahead.meeting or missing:
        reason = f"all meet at step {ahead.meeting}"
        if state.done == ahead.meeting:
            reason = f"waiting for the last steps of {', '.join(missing)}"
        return step_to(state, reason, phase="running")
    return _take(state, ahead, now)


def _take(state: State, ahead: Ahead, now: float) -> Transition:
    assert state.plan is not None
    held = with_followed(holdings_of(state.plan, state.done, state.connected), ahead.same, state.done)
    differs = sorted(
        {layer for f in ahead.following.feeds for layer in f.layers if layer not in held[f.follower].layers}
    )
    reason = ahead.why
    if differs:
        reason += f" Layers {', '.join(map(str, differs))} differ from their donors' and travel now."
    state = replace(state, outlook=replace(state.outlook, chosen=ahead.plan, reason=reason))
    return plan_anew(state, held, reason, now, followed=True)
