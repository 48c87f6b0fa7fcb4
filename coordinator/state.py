"""The run as a state machine: `handle(state, event, now)` -> next state, commands, reason.

Pure: time is an argument, nothing is read or sent here, so every history can be replayed. This
module knows who is a member; what the members are to do is `prepare.py` (up to a loaded plan)
and `drive.py` (steps, evaluation, checkpoints, the end).

    gathering -> profiling -> measuring -> planning -> loading -> running <-> evaluating, saving
                                                                  running -> draining -> saving
    a rank leaves, its step done -> planning: it hands its layers over
    a rank is lost, running or after -> planning, or gathering first: who lives keeps its layers
    any -> finished | failed
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from scheduler.bad_numbers import STRIKES
from scheduler.dead_links import DEAD_AFTER, pairs_moving, pairs_used, who_goes
from scheduler.departures import Departure, Gone
from scheduler.exit_codes import ExitCode
from scheduler.liveness import remember

from .commands import Command, Evict, Order, RecordConduct, Refuse, Stop
from .drive import on_copied, on_evaluated, proceed
from .events import (
    Connected,
    Copied,
    Disconnected,
    Drain,
    Evaluated,
    Event,
    Failed,
    Followed,
    Heartbeat,
    Holds,
    Join,
    LayerStored,
    Leaving,
    LinksMeasured,
    ManifestWritten,
    Met,
    Observed,
    Overslept,
    PlanFailed,
    Planned,
    Profiled,
    Ready,
    Reconsidered,
    Saved,
    SaveFailed,
    StepVote,
    Tick,
)
from .following import on_followed, too_late, unfollowed
from .meeting import on_met
from .numbers import BadNumbers, bad_numbers
from .prepare import (
    advance,
    background,
    on_holds,
    on_links,
    on_plan_failed,
    on_planned,
    on_profiled,
    on_ready,
    without_link,
)
from .reconsidering import look, on_observed, on_reconsidered
from .records import (
    OVER,
    PREPARING,
    Member,
    Options,
    Restore,
    State,
    TakenUp,
    Transition,
    drop,
    fail,
    finish,
    frozen,
    identity,
    ignored,
    put,
    step_to,
    then,
)
from .recovering import RECOVERABLE, given_up, interrupted, waited_enough
from .saving import on_manifest, on_save_failed, on_saved, on_stored
from .transaction import Overdue, on_step_vote, overdue

MAX_DEPARTED = 256
"""Departures that are remembered, so that a worker that comes and goes does not grow the state."""

MAX_CUTS = 5
"""Times that links may break in one step before one who tells it is done without."""


def start(
    options: Options,
    restore: Restore | None = None,
    taken_up: TakenUp | None = None,
    plan_version: int = 0,
) -> State:
    """The state of a run that nobody has joined yet; with `restore`, one that continues after its step.

    `taken_up`: where it stood when its coordinator ended, in case its workers did not. `plan_version`: of the
    last plan there was; workers take no older ones.
    """
    if taken_up is not None:
        state = replace(start(options, restore, None, plan_version), first=taken_up.done, done=taken_up.done)
        plan = taken_up.plan
        return replace(
            state,
            granted=taken_up.done,
            grad_norm=taken_up.grad_norm,
            ran=plan,
            awaited=tuple(plan.device(r) for r in range(plan.n_ranks)),
            interrupted="the coordinator was started again",
        )
    if restore is None:
        return State(options, plan_version=plan_version)
    return State(
        options,
        plan_version=plan_version,
        first=restore.step,
        checkpoint=restore,
        done=restore.step,
        granted=restore.step,
        saved_at=restore.step,
        evaluated_at=restore.step,
        loss=restore.loss,
        eval_loss=restore.eval_loss,
    )


def handle(state: State, event: Event, now: float) -> Transition:
    """What `event` at time `now` (seconds, any origin, never backwards) makes of `state`.

    Never raises for what a worker may send: an event that does not fit is ignored with a reason.
    """
    match event:
        case Join():
            return _join(state, event, now)
        case Tick():
            return _tick(state, now)
        case Overslept():
            return _overslept(state, event)
        case Drain():
            return _drain(state, event, now)
        case LayerStored():
            return on_stored(state, event)
        case SaveFailed():
            return on_save_failed(state, event, now)
        case ManifestWritten():
            return on_manifest(state, event, now)
        case Planned():
            return _planned(state, event, now)
        case PlanFailed():
            return on_plan_failed(state, event)
        case Observed():
            return on_observed(state, event)
        case Reconsidered():
            return on_reconsidered(state, event, now)
        case _:
            return _from_worker(state, event, now)


WorkerEvent = (
    Connected
    | Disconnected
    | Heartbeat
    | Leaving
    | Failed
    | Profiled
    | LinksMeasured
    | Ready
    | StepVote
    | Holds
    | Copied
    | Followed
    | Met
    | Saved
    | Evaluated
)


def _from_worker(state: State, event: WorkerEvent, now: float) -> Transition:
    name = event.worker
    if name not in state.members:
        return ignored(state, f"{name} is not a member")
    match event:
        case Connected():
            return _connected(state, name, now)
        case Disconnected():
            left = state.leaving.get(name)
            if left is not None:
                return _lost(state, name, Gone(left.code, f"it left ({left.reason})"), now)
            gone = Gone(Departure.CONNECTION, f"its connection ended ({event.reason})")
            return _lost(state, name, state.told_off.get(name, gone), now)
        case Leaving():
            return _leaving(state, event, now)
        case _:
            pass
    state = _seen(state, event, now)
    if state.phase in OVER:
        return ignored(state, "the run is over")
    match event:
        case Heartbeat():
            return Transition(state)
        case Failed():
            return _failed(state, event, now)
        case Profiled():
            return on_profiled(state, event)
        case LinksMeasured():
            return on_links(state, event)
        case Ready():
            return _ready(state, event, now)
        case Holds():
            return on_holds(state, event)
        case StepVote():
            bad = bad_numbers(state, event)
            return on_step_vote(state, event, now) if bad is None else _do_again(state, bad, now)
        case Copied():
            return on_copied(state, event)
        case Followed():
            return _goes_on(on_followed(state, event, now), now)
        case Met():
            return on_met(state, event, now)
        case Saved():
            return on_saved(state, event, now)
        case Evaluated():
            return on_evaluated(state, event, now)
        case _:
            assert_never(event)


# ---- coming


def _join(state: State, event: Join, now: float) -> Transition:
    name = event.device.name
    if state.phase in OVER:
        reason = f"the run is over: {state.reason}"
        return Transition(state, (Refuse(ExitCode.RUN_OVER, reason),), reason)
    known = state.members.get(name)
    if known is not None and (known.incarnation != event.incarnation or known.connected):
        reason = (
            f"a worker named {name!r} is a member already; give this one another --name, or stop the other"
        )
        return Transition(state, (Refuse(ExitCode.NAME_TAKEN, reason),), reason)
    member = Member(event.device, event.incarnation, event.session, event.peer, seen_s=now)
    if identity(member) in state.quarantined:
        reason = f"{name} is in quarantine: its numbers were bad {STRIKES} times"
        return Transition(state, (Refuse(ExitCode.QUARANTINED, reason),), reason)
    state = replace(state, members=put(state.members, name, member), departed=drop(state.departed, name))
    return Transition(state, (), f"{name} joined")


def _connected(state: State, name: str, now: float) -> Transition:
    member = replace(state.members[name], connected=True, seen_s=now)
    since_s = now if state.awaited and not state.interrupted_s else state.interrupted_s
    state = replace(state, members=put(state.members, name, member), interrupted_s=since_s)
    here = Transition(state, (), f"{name} is connected")
    if state.phase in ("gathering", "profiling", "measuring"):
        return then(here, advance(state))
    if state.phase in OVER or state.phase == "planning":
        return here
    return then(here, background(state))


def _seen(state: State, event: WorkerEvent, now: float) -> State:
    member = replace(state.members[event.worker], seen_s=now)
    if isinstance(event, Heartbeat):
        beats = member.beats_s if member.beat_s is None else remember(member.beats_s, now - member.beat_s)
        member = replace(member, beat_s=now, beats_s=beats, waits_for=event.waits_for)
    return replace(state, members=put(state.members, event.worker, member))


# ---- going


def _forget(state: State, name: str, gone: Gone) -> State:
    """The state without the member and what was measured with it."""
    departed = dict(state.departed)
    departed[name] = gone
    while len(departed) > MAX_DEPARTED:
        del departed[next(iter(departed))]
    return replace(
        state,
        members=drop(state.members, name),
        departed=frozen(departed),
        profiles=drop(state.profiles, name),
        links=frozen({pair: s for pair, s in state.links.items() if name not in pair}),
        held=drop(state.held, name),
        copies=drop(state.copies, name),
        leaving=drop(state.leaving, name),
        told_off=drop(state.told_off, name),
        dead=frozenset(pair for pair in state.dead if name not in pair),
    )


def _leaving(state: State, event: Leaving, now: float) -> Transition:
    """A member is told to go: with a rank it finishes what is granted, and hands its layers over first."""
    name = event.worker
    state = replace(state, leaving=put(state.leaving, name, Gone(event.code, event.reason)))
    reason = f"{name} is to leave ({event.reason})"
    if state.phase not in OVER and (name in state.held or name in (*state.ranks, *state.guests)):
        here = Transition(state, (), f"{reason}: once its step is done and its layers are handed over")
        if state.phase in PREPARING:
            return then(here, advance(replace(state, team=())))
        return then(here, proceed(state, now)) if state.phase == "running" else here
    here = Transition(state, (Order(name, Stop(ExitCode.OK, "it left, as it was told to")),), reason)
    if state.phase in PREPARING:
        return then(here, advance(replace(state, team=())))
    return here


def _lost(state: State, name: str, why: Gone, now: float) -> Transition:
    """A member is gone. While a plan is made the run gathers again; with a rank, the plan is interrupted."""
    over = state.phase in OVER
    reason = f"{name} has left: the run is over" if over else f"{name} is lost: {why.reason}"
    code = Departure.RELEASED if over else why.code
    took_part = name in (*state.ranks, *(state.guests if state.phase == "loading" else ()))
    state = _forget(state, name, Gone(code, reason))
    gone = Transition(state, (Evict(name, reason, code),), reason)
    if over:
        return gone
    if state.phase in PREPARING:
        return then(gone, advance(replace(state, team=())))
    if took_part:
        return then(gone, interrupted(state, reason, now))
    if state.ahead is not None and name in state.ahead.following.participants:
        gone = then(gone, unfollowed(state, f"nobody follows without {name}"))
    return then(gone, background(gone.state))


def _do_again(state: State, bad: BadNumbers, now: float) -> Transition:
    """Forget the step, and do it again: as it was, or without those whose numbers are bad."""
    decision = bad.decision
    reason = f"step {state.done}: {decision.reason}"
    state = replace(state, conduct=bad.conduct, repeated=state.done)
    records: tuple[Command, ...] = ()
    if bad.said is not None:
        verdict, record = bad.said
        state = replace(state, partners=frozen(verdict.partners), checked=reason)
        records = (record,)
    if decision.action == "quarantine":
        out = {identity(state.members[name]) for name in decision.workers}
        state = replace(state, quarantined=state.quarantined | out)
    if decision.action == "repeat":
        return interrupted(state, reason, now)
    result = Transition(state, (*records, RecordConduct(state.conduct, state.quarantined, reason)))
    for name in decision.workers:
        stays_out = identity(result.state.members[name]) in state.quarantined
        code = Departure.QUARANTINED if stays_out else bad.code
        result = then(result, _lost(result.state, name, Gone(code, reason), now))
    return result


def _link_cut(state: State, event: Failed, reason: str, now: float) -> Transition:
    """What was under way between two ranks is lost, and both are there: the step is done again over new
    connections. A link that is cut again and again in one step is planned around; who tells of ever other
    ones in one step has a way out that is no use, and goes."""
    name = event.worker
    if state.plan is None or name not in (*state.ranks, *state.guests):
        return ignored(state, f"{reason} (it has no rank)")
    if event.plan_version and event.plan_version != state.plan_version:
        return ignored(state, f"{reason} (under plan {event.plan_version}, which is over)")
    step, times = state.cut
    pairs = state.cut_pairs if step == state.done else frozen({})
    times = times + 1 if step == state.done else 1
    if event.peer in state.members and event.peer != name:
        pair = frozenset((name, event.peer))
        pairs = put(pairs, pair, pairs.get(pair, 0) + 1)
        if pairs[pair] >= DEAD_AFTER:
            state = without_link(replace(state, cut=(state.done, 0), cut_pairs=drop(pairs, pair)), pair)
            why = f"{reason}, {DEAD_AFTER} times in one step: it is taken for dead, and planned around"
            return then(Transition(state, (), why), interrupted(state, why, now))
    state = replace(state, cut=(state.done, times), cut_pairs=pairs)
    if times > MAX_CUTS:
        return _lost(state, name, Gone(Departure.FAILED, f"{reason}, {times} times in one step"), now)
    return then(Transition(state, (), reason), interrupted(state, reason, now))


def _planned(state: State, event: Planned, now: float) -> Transition:
    """Take the plan, unless it needs a link that is dead: then one of its ends hands its layers over and
    goes; at once, if that would take the link, too."""
    needed = pairs_used(event.plan, any(x.tied_to for x in state.layers), state.options.checks_every > 0)
    if event.way is not None:
        needed |= pairs_moving(event.way.sources)
    name = who_goes(needed, state.dead)
    if state.phase != "planning" or event.plan.version != state.plan_version or name not in state.members:
        return on_planned(state, event)
    others = sorted(n for pair in needed & state.dead if name in pair for n in pair if n != name)
    why = f"its link to {', '.join(others)} is dead, and there is no plan without it"
    gone = Gone(Departure.FAILED, why)
    if name in state.leaving or name not in state.held:
        return _lost(state, name, gone, now)
    state = replace(state, leaving=put(state.leaving, name, gone), team=())
    return then(Transition(state, (), f"{name} is to leave: {why}"), advance(state))


def _failed(state: State, event: Failed, now: float) -> Transition:
    reason = f"{event.worker} failed: {event.reason}"
    if not event.fatal and event.code is ExitCode.PEER_UNREACHABLE:
        return _link_cut(state, event, reason, now)
    saving = state.saving
    owes = saving is not None and event.worker in state.ranks and event.worker not in saving.said
    if saving is not None and (event.code is ExitCode.CHECKPOINT_WRITE or (owes and not event.fatal)):
        # Whatever kept it from saving, it will not answer Saved: waiting on would never end.
        return on_save_failed(state, SaveFailed(saving.step, reason), now)
    if not event.fatal:
        return Transition(state, (), f"{reason} (it goes on)")
    beginning = state.ran is None and (state.phase in PREPARING or event.worker in state.ranks)
    if beginning or (event.worker in state.ranks and event.code not in RECOVERABLE):
        return fail(state, event.code, reason)
    return _lost(state, event.worker, Gone(Departure.FAILED, event.reason), now)


def _overslept(state: State, event: Overslept) -> Transition:
    """The coordinator itself stood still: what came meanwhile is yet to be read, and nobody was silent."""
    members = {name: replace(m, seen_s=m.seen_s + event.seconds) for name, m in state.members.items()}
    reason = f"the coordinator stood still for {event.seconds:.1f} s"
    return step_to(state, reason, members=frozen(members), progress_s=state.progress_s + event.seconds)


def _tick(state: State, now: float) -> Transition:
    """Finds members that are silent for too long, and a step that takes too long."""
    result = Transition(state)
    if state.phase in OVER:
        return result
    for name, member in state.members.items():
        limit = state.options.silence.deadline_s(member.beats_s)
        silent = now - member.seen_s
        if silent > limit and result.state.phase not in OVER:
            why = f"no heartbeat for {silent:.1f} s (limit {limit:.1f} s)"
            result = then(result, _lost(result.state, name, Gone(Departure.SILENT, why), now))
    if (late := overdue(result.state, now)) is not None:
        return then(result, _without(result.state, late, now))
    ended = too_late(result.state, now)
    more = _goes_on(ended, now) if ended else given_up(result.state, now) or waited_enough(result.state, now)
    more = more or look(result.state, now)
    return then(result, more) if more else result


def _goes_on(ended: Transition, now: float) -> Transition:
    """With what follows at once where layers are not to travel beside the steps any more."""
    chosen = ended.state.ahead is None and ended.state.outlook.chosen is not None
    return then(ended, proceed(ended.state, now)) if chosen and ended.state.phase == "running" else ended


def _without(state: State, late: Overdue, now: float) -> Transition:
    """Forget the step that does not end, and do it again without whoever keeps it from ending."""
    again = state.overdue_at == state.done
    if again and not late.workers:
        return fail(state, ExitCode.STALLED, f"{late.reason}, for the second time")
    state = replace(state, overdue_at=state.done)
    if not late.workers:
        return interrupted(state, f"{late.reason}; it is done again over new connections", now)
    result = Transition(state)
    for name in late.workers:
        result = then(result, _lost(result.state, name, Gone(Departure.OVERDUE, late.reason), now))
    return result


# ---- loading done, draining


def _ready(state: State, event: Ready, now: float) -> Transition:
    result = on_ready(state, event)
    after = result.state
    if after.phase == "loading" and after.ranks and after.ready == frozenset(after.ranks):
        gone = [n for n in after.leaving if n in after.members and n not in after.ranks]
        orders = tuple(Order(n, Stop(ExitCode.OK, "it left, its layers are handed over")) for n in gone)
        after = replace(after, ran=after.plan, held=frozen({}), guests=(), interrupted="")
        return then(then(result, Transition(after, orders)), proceed(after, now))
    return result


def _drain(state: State, event: Drain, now: float) -> Transition:
    if state.phase in OVER:
        return ignored(state, "the run is over already")
    if event.now:
        return fail(state, ExitCode.INTERRUPTED, f"stopped: {event.reason}")
    if state.draining:
        return ignored(state, f"already draining: {state.draining}")
    state = replace(state, draining=event.reason)
    if state.ran is not None and state.phase in PREPARING and not state.connected:
        return finish(
            state, f"drained while no worker was there: {event.reason}; step {state.saved_at} is saved"
        )
    if state.ran is not None and (state.phase in PREPARING or state.phase == "loading"):
        return Transition(state, (), f"draining once the run goes on: {event.reason}")
    if state.phase in PREPARING or state.phase == "loading":
        return finish(state, f"drained before a step was run: {event.reason}")
    if state.phase in ("evaluating", "saving"):
        return Transition(state, (), f"draining after {state.phase}: {event.reason}")
    return proceed(state, now)


def commands_of(transition: Transition, kind: type[Command]) -> list[Command]:
    """The commands of one kind, for the shell and for tests."""
    return [c for c in transition.commands if isinstance(c, kind)]
