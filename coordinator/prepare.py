"""From the first worker to a loaded plan: gather, profile, measure links, plan, load.

The phase is computed from what is known (`advance`), not stepped through: when a worker comes
or goes, what it adds or takes away decides what is to be done next, and measurements of those
that stayed are kept. Measurements that would disturb each other never run at once: a host
does one thing at a time. Pure, as all of the state machine.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

from scheduler.dead_links import DEAD_BPS, DEAD_LATENCY_S, Pair
from scheduler.departures import Departure, Gone
from scheduler.exit_codes import ExitCode
from scheduler.layer_sources import Holding, Sources
from scheduler.neighbours import Keeper
from scheduler.plan import Plan
from scheduler.profile import ModelProfile
from scheduler.recovery import GoOn, Standing
from scheduler.visits import Visits

from .commands import Command, LayerPart, MakePlan, MeasureLinks, Order, Profile, Rewind, Stop, TakePlan
from .events import Holds, LinkSample, LinksMeasured, PlanFailed, Planned, Profiled, Ready
from .following import unfollowed
from .records import (
    PREPARING,
    Outlook,
    State,
    Transition,
    drop,
    fail,
    finish,
    frozen,
    ignored,
    put,
    step_to,
    then,
)

MIN_PROBE_BYTES = 256 << 10
MAX_PROBE_BYTES = 8 << 20


def advance(state: State) -> Transition:
    """The next thing that lacks: workers, then profiles, then links, then a plan.

    A run that was interrupted asks for a plan as soon as it knows anybody, and for another whenever others
    are known: while it is made, what comes to be known of a newcomer alone costs nobody the plan.
    """
    team = tuple(n for n in state.connected if n not in state.leaving)
    if state.connected and not team:
        return _let_go(state)
    if state.ran is not None and not state.awaited and state.known and state.known != state.refused:
        if state.phase == "planning" and state.known == state.team:
            return background(state)
        return _plan(state, state.known)
    need = 1 if state.ran is not None and not state.awaited else state.options.min_workers
    if len(team) < need:
        return step_to(state, f"have {len(team)} of {need} workers", phase="gathering")
    unprofiled = [n for n in team if n not in state.profiles]
    if unprofiled:
        return _profile(state, unprofiled)
    trouble = disagreement(state, team)
    if trouble:
        return fail(state, ExitCode.WORKERS_DISAGREE, trouble)
    there = (*team, *(n for n in state.connected if n in state.leaving and n in state.held))
    unmeasured = [(a, b) for a in there for b in there if a != b and (a, b) not in state.links]
    if unmeasured:
        return _measure(state, unmeasured)
    if team == state.refused:
        return step_to(state, state.reason, phase="gathering")
    away = [n for n in state.awaited if n not in team]
    if away and state.held:  # who is back still has its layers: the others may have theirs
        return step_to(state, f"waiting for {', '.join(away)} to come back", phase="gathering")
    return _plan(state, team)


def _let_go(state: State) -> Transition:
    """All who are here are to leave: nobody is there to take their layers; the next read the checkpoint."""
    stop = Stop(ExitCode.OK, "it left, with all the others")
    orders = (Order(n, stop) for n in state.connected)
    return step_to(state, "all workers leave; waiting for others", *orders, phase="gathering")


def background(state: State) -> Transition:
    """Profile and measure those who stand by, one thing at a time, beside the run: whoever is known can take
    a lost worker's place at once."""
    standby = [n for n in state.connected if n not in state.ranks and n not in state.leaving]
    if _occupied(state):
        return Transition(state)
    for name in standby:
        if name not in state.profiles:
            members = put(state.members, name, replace(state.members[name], occupies=(_host(state, name),)))
            return step_to(
                state, f"{name} stands by and is profiled", Order(name, Profile()), members=members
            )
    for src in state.connected:
        for dst in state.connected:
            new = src != dst and (src in standby or dst in standby) and (src, dst) not in state.links
            if new and {src, dst} <= state.profiles.keys():
                busy = replace(state.members[src], occupies=(_host(state, src), _host(state, dst)))
                order = MeasureLinks(
                    (state.members[dst].peer,), _probe_bytes(state), state.options.probe_streams
                )
                reason = f"the link {src} -> {dst} is measured"
                return step_to(state, reason, Order(src, order), members=put(state.members, src, busy))
    return Transition(state)


def _occupied(state: State) -> set[str]:
    return {host for m in state.members.values() for host in m.occupies}


def _host(state: State, worker: str) -> str:
    return state.members[worker].device.host or worker


def _profile(state: State, unprofiled: list[str]) -> Transition:
    commands: list[Command] = []
    members = state.members
    taken = _occupied(state)
    for name in unprofiled:
        host = _host(state, name)
        if members[name].occupies or host in taken:
            continue
        taken.add(host)
        members = put(members, name, replace(members[name], occupies=(host,)))
        commands.append(Order(name, Profile()))
    reason = (
        f"{len(unprofiled)} of {len(state.connected)} workers are to be profiled, one at a time on a host"
    )
    return step_to(state, reason, *commands, phase="profiling", members=members)


def _measure(state: State, unmeasured: list[tuple[str, str]]) -> Transition:
    commands: list[Command] = []
    members = state.members
    taken = _occupied(state)
    for src, dst in unmeasured:
        hosts = (_host(state, src), _host(state, dst))
        if members[src].occupies or taken.intersection(hosts):
            continue
        taken.update(hosts)
        members = put(members, src, replace(members[src], occupies=hosts))
        order = MeasureLinks((members[dst].peer,), _probe_bytes(state), state.options.probe_streams)
        commands.append(Order(src, order))
    reason = f"{len(unmeasured)} directed links are to be measured"
    return step_to(state, reason, *commands, phase="measuring", members=members)


def _probe_bytes(state: State) -> int:
    """Four boundary tensors: what the step will send, within what a slow link can bear."""
    largest = max((x.boundary_bytes for x in state.layers), default=0)
    return min(MAX_PROBE_BYTES, max(MIN_PROBE_BYTES, 4 * largest))


def disagreement(state: State, team: tuple[str, ...]) -> str:
    """'' or how two workers' data or models differ, naming both."""
    first = state.profiles[team[0]]
    if len(first.layers) != state.options.n_layers:
        return (
            f"{team[0]} builds {len(first.layers)} layers, the job has {state.options.n_layers}; "
            "install the same version of isthmus on coordinator and workers"
        )
    for name in team[1:]:
        other = state.profiles[name]
        if other.data_digest != first.data_digest:
            return (
                f"{name} sees data {other.data_digest[:12]} ({other.n_samples} samples), {team[0]} sees "
                f"{first.data_digest[:12]} ({first.n_samples} samples); all need the same files"
            )
        shape = [(x.name, x.parameter_bytes) for x in other.layers]
        if shape != [(x.name, x.parameter_bytes) for x in first.layers]:
            return f"{name} and {team[0]} build different layers; install the same version of isthmus on both"
    return ""


def _plan(state: State, team: tuple[str, ...]) -> Transition:
    o = state.outlook
    chosen = None
    if o.chosen is not None and set(o.chosen.devices) <= set(team):
        chosen = (o.chosen, o.reason)
    command = replace(
        request_for(state, (*team, *state.donors)), standing=_standing(state, team), chosen=chosen
    )
    reason = o.reason if chosen else f"{len(team)} workers are profiled and their links measured"
    return step_to(
        state,
        reason,
        command,
        phase="planning",
        plan_version=command.version,
        team=team,
        awaited=(),
        outlook=replace(o, chosen=None),
    )


def request_for(state: State, there: tuple[str, ...]) -> MakePlan:
    """For a plan of those who are there, as they were measured, and as running steps say they are now."""
    o, now = state.options, state.outlook.factors
    visits = Visits(state.profiles[there[0]].n_samples, o.steps * o.global_batch, o.steps)
    return MakePlan(
        version=state.plan_version + 1,
        model=ModelProfile(state.layers, o.micro_batch, o.sequence_length, visits=visits),
        devices=tuple(state.members[n].device for n in there),
        profiles=tuple(now.profile(state.profiles[n].profile) for n in there),
        links=tuple((a, state.links[a, b].times(now.link(a, b))) for a in there for b in there if a != b),
    )


def _as_observed(state: State) -> State:
    """What running steps said of devices and links is what they are from here on."""
    now = state.outlook.factors
    return replace(
        state,
        outlook=Outlook(),
        profiles=frozen({n: replace(p, profile=now.profile(p.profile)) for n, p in state.profiles.items()}),
        links=frozen({(a, b): s.times(now.link(a, b)) for (a, b), s in state.links.items()}),
    )


def _standing(state: State, team: tuple[str, ...]) -> Standing | None:
    if state.ran is None:
        return None
    saved = state.checkpoint.step if state.checkpoint else None
    return Standing(state.ran, team, state.held, state.done, state.options.steps, saved, state.copies)


# ---- answers


def _idle(state: State, worker: str) -> State:
    """`worker` has answered: its measurement occupies no host any more."""
    member = replace(state.members[worker], occupies=())
    return replace(state, members=put(state.members, worker, member))


def _has_begun(state: State) -> bool:
    """Whether there is a run that somebody new must not end."""
    return state.ran is not None or state.phase not in PREPARING


def on_profiled(state: State, event: Profiled) -> Transition:
    state = _idle(state, event.worker)
    known = next((n for n in state.profiles if n != event.worker), None)
    state = replace(state, profiles=put(state.profiles, event.worker, event))
    trouble = disagreement(state, (known, event.worker)) if known is not None else ""
    if event.n_samples < 1:
        trouble = f"{event.worker} found no training sample in the job's data"
    if _has_begun(state) and trouble:
        unfit = replace(
            state,
            profiles=drop(state.profiles, event.worker),
            told_off=put(state.told_off, event.worker, Gone(Departure.UNFIT, trouble)),
        )
        return Transition(unfit, (Order(event.worker, Stop(ExitCode.WORKERS_DISAGREE, trouble)),), trouble)
    if event.n_samples < 1:
        return fail(state, ExitCode.DATA, f"{event.worker} found no training sample in the job's data")
    after = advance(state) if state.phase in PREPARING else background(state)
    return then(Transition(state, (), f"{event.worker} is profiled"), after)


def on_holds(state: State, event: Holds) -> Transition:
    """A worker is back with its layers: they count if a plan is still to be made."""
    if state.ran is None or state.phase not in PREPARING:
        return ignored(state, f"{event.worker} still has layers, the run has gone on without")
    holding = Holding(event.step, frozenset(range(event.start, event.stop)))
    reason = f"{event.worker} still has layers {event.start} to {event.stop - 1} after step {event.step}"
    return step_to(state, reason, held=put(state.held, event.worker, holding))


def on_links(state: State, event: LinksMeasured) -> Transition:
    state = _idle(state, event.worker)
    links = dict(state.links)
    for sample in event.links:
        if sample.peer not in state.members:
            continue  # it left meanwhile
        if sample.error and _has_begun(state):
            name = event.worker if event.worker not in (*state.ranks, *state.held) else sample.peer
            why = f"{event.worker} -> {sample.peer}: {sample.error}"
            return Transition(state, (Order(name, Stop(ExitCode.PEER_UNREACHABLE, why)),), why)
        if sample.error:
            return fail(state, ExitCode.PEER_UNREACHABLE, f"{event.worker} -> {sample.peer}: {sample.error}")
        links[event.worker, sample.peer] = sample
        pair = frozenset((event.worker, sample.peer))
        if pair in state.dead:  # it has found another way: the other end's is taken to be as good
            links[sample.peer, event.worker] = replace(sample, peer=event.worker)
            state = replace(state, dead=state.dead - {pair}, team=())
    state = replace(state, links=frozen(links))
    after = advance(state) if state.phase in PREPARING else background(state)
    return then(Transition(state, (), f"{event.worker} measured {len(event.links)} links"), after)


def without_link(state: State, pair: Pair) -> State:
    """The state in which this link, both ways, costs more than any other way."""
    links = dict(state.links)
    for src, dst in permutations(sorted(pair)):
        links[src, dst] = LinkSample(dst, DEAD_LATENCY_S, DEAD_BPS)
    return replace(state, links=frozen(links), dead=state.dead | {pair})


def on_planned(state: State, event: Planned) -> Transition:
    plan = event.plan
    if state.phase != "planning" or plan.version != state.plan_version:
        return ignored(state, f"plan {plan.version} came too late")
    ranks = [plan.device(r) for r in range(plan.n_ranks)]
    strangers = sorted(set(ranks) - set(state.connected))
    if strangers or len(set(ranks)) != len(ranks):
        return fail(
            state, ExitCode.NO_PLAN, f"plan {plan.version} names {strangers or ranks}, not one worker a rank"
        )
    if plan.partition[-1][1] != state.options.n_layers:
        return fail(
            state,
            ExitCode.NO_PLAN,
            f"plan {plan.version} places {plan.partition[-1][1]} layers of {state.options.n_layers}",
        )
    if plan.samples != state.options.global_batch:
        return fail(
            state,
            ExitCode.NO_PLAN,
            f"plan {plan.version} gives out {plan.samples} samples of {state.options.global_batch}",
        )
    state = replace(state, plan=plan)
    if state.options.dry_run:
        return finish(state, "planned; --dry-run asks for no more")
    loading = load(state, plan, event.way, event.keepers, event.copying_s)
    return then(loading, background(loading.state))


def load(
    state: State, plan: Plan, way: GoOn | None, keepers: tuple[Keeper, ...] = (), copying_s: float = 0.0
) -> Transition:
    """Have every rank take `plan`, with its layers from where `way` says (None: the run begins)."""
    commands: list[Command] = []
    state = _as_observed(state)
    from_peers = way is not None and not way.from_checkpoint
    if way is not None and way.step < state.done:
        commands.append(Rewind(way.step, way.reason))
    if way is not None and not from_peers:
        state = back_to_checkpoint(state)
    elif way is not None and way.step < state.done:
        state = back_to_copies(state, way.step)
    sources = way.sources if way is not None and from_peers else {}
    restore = None if from_peers else state.checkpoint
    ranks = [plan.device(r) for r in range(plan.n_ranks)]
    donors = {donor for layers in sources.values() for s in layers for donor in s.donors}
    guests = tuple(sorted(donors - set(ranks)))
    take = TakePlan(
        plan,
        peers=tuple(state.members[n].peer for n in (*ranks, *guests)),
        restore_step=restore.step if restore else None,
        files=restore.files if restore else (),
        step=state.done,
        guests=guests,
        keepers=keepers,
        loading_s=way.loading_s if way is not None else 0.0,
        copying_s=copying_s,
    )
    ended = unfollowed(state, "", keep=(*ranks, *guests))
    state, commands = ended.state, [*commands, *ended.commands]
    for name in (*ranks, *guests):
        order = replace(take, sources=sources.get(name, ()), serves=_served(sources, name))
        commands.append(Order(name, order))
    how = f": {way.reason}" if way is not None else ""
    return step_to(
        state,
        f"plan {plan.version}: {plan.n_stages} stages x {plan.n_replicas} replicas{how}",
        *commands,
        phase="loading",
        plan=plan,
        plan_first=state.done,
        ready=frozenset(),
        guests=guests,
        keepers=keepers,
        refused=(),
    )


def back_to_checkpoint(state: State) -> State:
    """Steps since the last checkpoint count no more, and nobody holds what belongs to it."""
    r = state.checkpoint
    step = r.step if r else 0
    return replace(
        state,
        done=step,
        granted=step,
        saved_at=step if r else -1,
        save_failed_at=-1,
        evaluated_at=step if r else -1,
        loss=r.loss if r else None,
        eval_loss=r.eval_loss if r else None,
        held=frozen({}),
        copies=frozen({}),
    )


def back_to_copies(state: State, step: int) -> State:
    """Steps since the neighbours' copies count no more; what they hold is what the copies are."""
    return replace(
        state,
        done=step,
        granted=step,
        saved_at=min(state.saved_at, step),
        save_failed_at=-1,
        evaluated_at=min(state.evaluated_at, step),
        held=state.copies,
    )


def _served(sources: Sources, donor: str) -> tuple[LayerPart, ...]:
    """What `donor` sends to others, layer by layer."""
    return tuple(
        LayerPart(s.layer, name, s.donors.index(donor), len(s.donors))
        for name, layers in sources.items()
        for s in layers
        if name != donor and donor in s.donors
    )


def on_plan_failed(state: State, event: PlanFailed) -> Transition:
    """A run that has not begun ends; one that was interrupted waits for others to come."""
    if state.phase != "planning" or event.version != state.plan_version:
        return ignored(state, f"the failure of plan {event.version} came too late")
    if not state.ran:
        return fail(state, ExitCode.NO_PLAN, event.reason)
    waiting = step_to(state, event.reason, phase="gathering", refused=state.team, team=())
    return then(waiting, advance(waiting.state))


def on_ready(state: State, event: Ready) -> Transition:
    """Marks the worker ready; the caller starts the steps once all ranks are."""
    if state.phase != "loading" or event.plan_version != state.plan_version:
        return ignored(
            state, f"{event.worker} is ready for plan {event.plan_version}, which is not being loaded"
        )
    if event.worker not in state.ranks:
        return ignored(state, f"{event.worker} has no rank in plan {event.plan_version}")
    ready = state.ready | {event.worker}
    return step_to(state, f"{event.worker} is ready ({len(ready)} of {len(state.ranks)})", ready=ready)
