"""While layers travel beside the steps: they begin to, come nearer, or it is given up and they travel at the
boundary.

What is followed is never needed: whatever goes wrong here ends the following and nothing else, and a plan
that was chosen is taken as if nothing had been tried. What happens once all are there is `meeting.py`'s.
Pure.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from statistics import median

from scheduler.following import Following
from scheduler.moving import TIMES_AS_LONG, transfer_deadline_s
from scheduler.plan import Plan

from .ahead import Ahead
from .commands import Follow, Meet, Order, Unfollow
from .events import Followed
from .records import State, Transition, ignored, put

MOST_MISSING = 2
"""Committed steps that a follower may lack where all meet: none for twice the steps that catching up should
take, then one, then two. What is missing is waited for while the run stands still."""
LEAST_MEETING_S = 15.0
"""The run stands still for the last steps of those who follow at least so long, before it does without."""
PLANS_APART = 1 << 16
"""Followings of one plan are numbered within so many, so that numbers rise whoever counts them."""


def begin(state: State, plan: Plan, following: Following, why: str, now: float) -> Transition:
    """Have the followers of `plan` follow, while the running plan goes on."""
    assert state.plan is not None
    version = state.plan.version * PLANS_APART + state.follows + 1
    ahead = Ahead(version, plan, why, following, state.done, now)
    peers = tuple(state.members[n].peer for n in following.participants)
    order = Follow(version, state.plan.version, peers, following.feeds)
    orders = tuple(Order(n, order) for n in following.participants)
    return Transition(replace(state, ahead=ahead, follows=state.follows + 1), orders, why)


def on_followed(state: State, event: Followed, now: float) -> Transition:
    """A follower has come further, or somebody cannot go on. Once all are near, they are to meet."""
    ahead = state.ahead
    if ahead is None or event.version != ahead.version or event.worker not in ahead.following.participants:
        return ignored(state, f"{event.worker} follows what nobody follows any more")
    if event.error:
        return at_the_boundary(state, f"{event.worker}: {event.error}")
    ahead = replace(ahead, at=put(ahead.at, event.worker, event.step))
    state = replace(state, ahead=ahead)
    missing = min(MOST_MISSING, max(0, (state.done - ahead.began) // ahead.following.steps - 1))
    near = all(ahead.at.get(n, -1) >= state.done - missing for n in ahead.following.followers)
    if ahead.meeting or not near or state.phase not in ("running", "evaluating", "saving"):
        return Transition(state)
    if state.granted >= state.options.steps:
        return unfollowed(state, "the run ends before it would pay to take the layers")
    orders = tuple(Order(n, Meet(ahead.version, state.granted)) for n in ahead.following.participants)
    meets = replace(ahead, meeting=state.granted, since_s=now)
    reason = f"who follows has caught up; all meet at step {state.granted}"
    return Transition(replace(state, ahead=meets), orders, reason)


def too_late(state: State, now: float) -> Transition | None:
    """Give up what takes far longer than it should, or None."""
    ahead = state.ahead
    if ahead is None or state.phase != "running":
        return None
    f = ahead.following
    if ahead.meeting:
        limit_s = max(LEAST_MEETING_S, TIMES_AS_LONG * f.pause_s)
        what = "their last steps"
        if state.done < ahead.meeting:
            return None
    else:
        step_s = median(state.steps_s) if state.steps_s else 0.0
        limit_s = transfer_deadline_s(f.steps * step_s + f.loading_s)
        what = "the layers"
    if now - ahead.since_s <= limit_s:
        return None
    return at_the_boundary(state, f"{what} were not there after {limit_s:.0f} s")


def at_the_boundary(state: State, reason: str) -> Transition:
    """End the following; its plan is taken where the granted steps end, with the layers travelling then."""
    assert state.ahead is not None
    chosen, why = state.ahead.plan, state.ahead.why
    ended = unfollowed(state, f"the layers travel at the boundary after all: {reason}")
    outlook = replace(ended.state.outlook, chosen=chosen, reason=f"{why} But {ended.reason}.")
    return replace(ended, state=replace(ended.state, outlook=outlook))


def unfollowed(state: State, reason: str, keep: Collection[str] = ()) -> Transition:
    """End the following, if there is one, but for those to `keep`, who are told by a plan."""
    if state.ahead is None:
        return Transition(state)
    version = state.ahead.version
    orders = tuple(
        Order(n, Unfollow(version))
        for n in state.ahead.following.participants
        if n in state.members and n not in keep
    )
    return Transition(replace(state, ahead=None), orders, reason)
