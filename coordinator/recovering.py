"""When the plan cannot go on: it is ended at once, those who live keep their layers, and another is made.

What is not committed is forgotten by all, so who lives stands at the last commit: a commit that was written
down was told on every line before anything else could be. How the run goes on is `scheduler/recovery.py`'s
to say. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from scheduler.exit_codes import ExitCode
from scheduler.layer_sources import Holding, holdings_of

from .commands import AbortPlan, Command, DiscardSave, Order
from .following import unfollowed
from .prepare import advance
from .records import PREPARING, State, Transition, fail, frozen, then

RECOVERABLE = frozenset(
    {ExitCode.INTERNAL, ExitCode.DEVICE, ExitCode.WORKER_FAILED, ExitCode.PEER_UNREACHABLE}
)
"""Failures of one worker that another may be spared; data, model and divergence are everybody's."""


def interrupted(state: State, reason: str, now: float) -> Transition:
    """A rank is gone, for this reason, and is no member any more: end the plan, and make another."""
    assert state.plan is not None
    commands: list[Command] = [
        Order(name, AbortPlan(state.plan.version, reason))
        for name in (*state.ranks, *state.guests)
        if name in state.members
    ]
    if state.saving is not None:
        commands.append(DiscardSave(state.saving.step))
    anew = plan_anew(state, _held(state), reason, now)
    return then(Transition(state, tuple(commands)), anew)


def plan_anew(
    state: State, held: Mapping[str, Holding], reason: str, now: float, followed: bool = False
) -> Transition:
    """Another plan for those who are there, who hold these layers; nothing that is granted is left to do.
    `followed`: what was followed is among them; else it is not needed any more."""
    ended = Transition(state) if followed else unfollowed(state, "")
    state = replace(
        ended.state,
        held=frozen(held),
        plan=None,
        team=(),
        ready=frozenset(),
        guests=(),
        granted=state.done,
        votes=frozen({}),
        check=None,
        evaluations=frozen({}),
        saving=None,
        keepers=(),
        copying=0,
        copied=frozenset(),
        steps_s=(),
        interrupted=reason,
        interrupted_s=state.interrupted_s if state.interrupted else now,
        refused=(),
    )
    return then(ended, advance(state))


def _held(state: State) -> Mapping[str, Holding]:
    """Who holds which layers after the steps that are committed."""
    assert state.plan is not None
    ranks = holdings_of(state.plan, state.done, state.connected)
    if state.phase != "loading":
        return ranks
    # Who has loaded has the layers of both plans: old ones are dropped when the first step is granted.
    loaded = {
        name: replace(h, layers=h.layers | (state.held[name].layers if name in state.held else frozenset()))
        for name, h in ranks.items()
        if name in state.ready
    }
    return {**state.held, **loaded}


def waited_enough(state: State, now: float) -> Transition | None:
    """A run that was taken up goes on without those of its workers who are not back in time, or None."""
    if not state.awaited or not state.held or state.phase != "gathering":
        return None
    if now - state.interrupted_s < state.options.await_s:
        return None
    return advance(replace(state, awaited=()))


def given_up(state: State, now: float) -> Transition | None:
    """The end of a run that has waited too long for workers to go on with, or None."""
    waiting = state.interrupted and not state.awaited and state.phase in PREPARING
    if not waiting or state.phase == "planning" or now - state.interrupted_s < state.options.regather_s:
        return None
    why = "" if state.reason in state.interrupted else f"; {state.reason}"
    return fail(state, ExitCode.WORKER_LOST, f"{state.interrupted}{why}{resumable(state)}")


def resumable(state: State) -> str:
    """Where the run can be taken up again, for the reason of its end."""
    saved = state.checkpoint.step if state.checkpoint else 0
    keeps = f"the checkpoint of step {saved} can be resumed" if saved > 0 else "no checkpoint yet"
    return f" ({state.done} steps done); {keeps}"
