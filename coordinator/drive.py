"""From a loaded plan to the end: grant steps, evaluate and save at boundaries, drain.

`proceed` decides what comes after the steps that are done; how a step is committed is `transaction.py`, how
a checkpoint comes about `saving.py`. Pure.
"""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import median
from typing import Any

from scheduler.layer_sources import holdings_of

from .commands import Evaluate, Order, RecordEval, RunSteps, Save
from .events import Copied, Evaluated
from .meeting import meeting
from .records import Saving, State, Transition, finish, frozen, ignored, put, step_to, then
from .recovering import plan_anew

MAX_AHEAD = 64
WATCH_S = 1.0
RECORD_EVERY = 25
"""At least so many steps are between two that are recorded for whoever looks on; of a long run 100 are."""


def recorded_steps(state: State) -> tuple[int, ...]:
    """Steps whose spans are wanted: an early one of the plan and one in so many, for whoever looks on; one
    two thirds into what is left, and the last, which are compared with the prediction."""
    start, steps = state.first, state.options.steps
    every = max(RECORD_EVERY, steps // 100)
    looked_at = range(state.plan_first + 1, steps, every)
    return tuple(sorted({*looked_at, start + (steps - start) * 2 // 3, steps - 1}))


def _watched_every(state: State) -> int:
    """Of every so many steps one tells its spans: about one in WATCH_S."""
    return max(1, math.ceil(WATCH_S / max(1e-6, median(state.steps_s)))) if state.steps_s else 1


def boundary(state: State) -> int:
    """The next number of steps at which something else is to be done than steps."""
    o = state.options
    ends = [o.steps]
    ends += [(state.done // every + 1) * every for every in (o.eval_every, o.save_every) if every]
    return min(ends)


def _at(done: int, every: int) -> bool:
    return every > 0 and done > 0 and done % every == 0


def proceed(state: State, now: float) -> Transition:
    """What comes after `done` steps: an evaluation, a checkpoint, the end, or more steps."""
    o, done = state.options, state.done
    if state.draining:
        return _proceed_to_end(state, f"draining: {state.draining}")
    if done < o.steps and any(name in state.leaving for name in state.ranks):
        return _hand_over(state, now)
    if done < o.steps and state.outlook.chosen is not None:
        return _move(state, now)
    if done < o.steps and state.ahead is not None and state.ahead.meeting:
        return meeting(state, now)
    at_end = done >= o.steps
    can_evaluate = o.evaluate and state.n_eval_samples > 0
    if state.evaluated_at != done and can_evaluate and (at_end or _at(done, o.eval_every)):
        return step_to(
            state,
            f"evaluating after step {done}",
            *(Order(n, Evaluate(done)) for n in state.ranks),
            phase="evaluating",
            evaluations=frozen({}),
        )
    if done not in (state.saved_at, state.save_failed_at) and (at_end or _at(done, o.save_every)):
        return _save(state)
    if at_end:
        return finish(state, f"all {o.steps} steps are done")
    return _grant(state, now)


def _hand_over(state: State, now: float) -> Transition:
    """Somebody leaves: run what is granted to its end, then plan without it; if all leave, save first."""
    names = [n for n in state.ranks if n in state.leaving]
    reason = f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} to leave"
    if state.done < state.granted:
        return step_to(state, reason, phase="running")
    nobody_stays = all(name in state.leaving for name in state.connected)
    if nobody_stays and state.done not in (0, state.saved_at, state.save_failed_at):
        return _save(state)
    assert state.plan is not None
    held = holdings_of(state.plan, state.done, state.connected)
    return plan_anew(state, held, reason, now)


def _move(state: State, now: float) -> Transition:
    """Another plan is faster: run what is granted to its end, then take it, with everybody's layers there."""
    reason = state.outlook.reason
    if state.done < state.granted:
        return step_to(state, reason, phase="running")
    assert state.plan is not None
    return plan_anew(state, holdings_of(state.plan, state.done, state.connected), reason, now)


def _proceed_to_end(state: State, reason: str) -> Transition:
    if state.done < state.granted:
        return step_to(state, reason, phase="draining")
    if state.saved_at == state.done or state.done == 0:
        return finish(state, reason)
    return _save(state)


def _ahead(state: State) -> int:
    """Steps to grant beyond those committed: enough to cover `ahead_s`, at least two."""
    if not state.steps_s:
        return 2
    step_s = max(1e-6, median(state.steps_s))
    return min(MAX_AHEAD, max(2, math.ceil(state.options.ahead_s / step_s) + 1))


def _grant(state: State, now: float) -> Transition:
    ahead = _ahead(state)
    end = boundary(state)
    resumed = state.phase != "running"
    changes: dict[str, Any] = {"progress_s": now} if resumed else {}
    reason = f"running to step {end}"
    stop = min(end, state.done + ahead)
    if stop <= state.granted or (state.granted - state.done > ahead // 2 and stop < end):
        return step_to(state, reason, phase="running", **changes)
    assert state.plan is not None
    record = tuple(s for s in recorded_steps(state) if state.granted <= s < stop)
    watch = tuple(s for s in range(state.granted, stop) if s % _watched_every(state) == 0)
    copy = _copy(state, stop)
    order = RunSteps(
        state.plan.version, state.granted, stop, record, watch if state.options.reconsider_s else ()
    )
    if copy:
        order = replace(order, copy_step=copy, copy_keeps=state.copied_at)
        changes |= {"copying": copy}
    return step_to(
        state, reason, *(Order(n, order) for n in state.ranks), phase="running", granted=stop, **changes
    )


def _copy(state: State, stop: int) -> int:
    """After how many of the steps to be granted neighbours get copies; 0: not among them."""
    every = state.options.neighbours_every
    due = max(state.granted + 1, state.copied_at + every)
    # One at a time: a worker has room for the last that all have, and for the next.
    wanted = every and state.keepers and not state.copying
    return due if wanted and due <= stop and due < state.options.steps else 0


def on_copied(state: State, event: Copied) -> Transition:
    """The copies count once every keeper has its own: from then on all can go back to that step."""
    if event.plan_version != state.plan_version or event.step != state.copying or not state.copying:
        return ignored(state, f"{event.worker} has copies that nobody waits for")
    assert state.plan is not None
    copied = state.copied | {event.worker}
    if not {k.keeper for k in state.keepers} <= copied:
        return Transition(replace(state, copied=copied))
    own = holdings_of(state.plan, event.step, state.ranks)
    holdings = dict(own)
    for k in state.keepers:
        both = holdings[k.keeper].layers | own[k.holder].layers
        holdings[k.keeper] = replace(holdings[k.keeper], layers=both)
    reason = f"neighbours have the copies of step {event.step}"
    return step_to(state, reason, copies=frozen(holdings), copying=0, copied=frozenset())


# ---- evaluation


def on_evaluated(state: State, event: Evaluated, now: float) -> Transition:
    """The evaluation is done when every rank of the last stage has answered."""
    if state.phase != "evaluating" or event.step != state.done or event.worker not in state.ranks:
        return ignored(state, f"{event.worker} sent an evaluation that nobody waits for")
    plan = state.plan
    assert plan is not None
    state = replace(state, evaluations=put(state.evaluations, event.worker, event))
    last = [plan.device(r) for r in plan.group(plan.n_stages - 1)]
    if not set(last) <= set(state.evaluations):
        return Transition(state, (), f"{event.worker} has evaluated")
    found = [state.evaluations[n] for n in last]
    tokens = sum(e.tokens for e in found)
    state = replace(state, evaluated_at=state.done)
    if tokens == 0:
        return then(Transition(state, (), "the evaluation saw no token"), proceed(state, now))
    loss = sum(e.loss_sum for e in found) / tokens
    state = replace(state, eval_loss=loss if math.isfinite(loss) else None)
    done = Transition(
        state, (RecordEval(state.done, loss, tokens),), f"eval loss {loss:.4f} after step {state.done}"
    )
    return then(done, proceed(state, now))


# ---- checkpoints


def _save(state: State) -> Transition:
    return step_to(
        state,
        f"saving after step {state.done}",
        *(Order(n, Save(state.done)) for n in state.ranks),
        phase="saving",
        saving=Saving(state.done),
    )
