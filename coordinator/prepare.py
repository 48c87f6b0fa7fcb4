"""From the first worker to a loaded plan: gather, profile, measure links, plan, load.

The phase is computed from what is known (`advance`), not stepped through: when a worker comes
or goes, what it adds or takes away decides what is to be done next, and measurements of those
that stayed are kept. Measurements that would disturb each other never run at once: a host
does one thing at a time. Pure, as all of the state machine.
"""

from __future__ import annotations

from dataclasses import replace

from scheduler.exit_codes import ExitCode
from scheduler.profile import ModelProfile
from scheduler.visits import Visits

from .commands import Command, MakePlan, MeasureLinks, Order, Profile, TakePlan
from .events import LinksMeasured, PlanFailed, Planned, Profiled, Ready
from .records import (
    PREPARING,
    State,
    Transition,
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
    """The next thing that lacks: workers, then profiles, then links, then a plan."""
    team = state.connected
    need = state.options.min_workers
    if len(team) < need:
        return step_to(state, f"have {len(team)} of {need} workers", phase="gathering")
    unprofiled = [n for n in team if n not in state.profiles]
    if unprofiled:
        return _profile(state, unprofiled)
    trouble = disagreement(state, team)
    if trouble:
        return fail(state, ExitCode.WORKERS_DISAGREE, trouble)
    unmeasured = [(a, b) for a in team for b in team if a != b and (a, b) not in state.links]
    if unmeasured:
        return _measure(state, unmeasured)
    return _plan(state, team)


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
    version = state.plan_version + 1
    o = state.options
    visits = Visits(state.profiles[team[0]].n_samples, o.steps * o.global_batch)
    command = MakePlan(
        version=version,
        model=ModelProfile(state.layers, o.micro_batch, o.sequence_length, visits=visits),
        devices=tuple(state.members[n].device for n in team),
        profiles=tuple(state.profiles[n].profile for n in team),
        links=tuple((a, state.links[a, b]) for a in team for b in team if a != b),
    )
    reason = f"all of {len(team)} workers are profiled and their links measured"
    return step_to(state, reason, command, phase="planning", plan_version=version, team=team)


# ---- answers


def _idle(state: State, worker: str) -> State:
    """`worker` has answered: its measurement occupies no host any more."""
    member = replace(state.members[worker], occupies=())
    return replace(state, members=put(state.members, worker, member))


def on_profiled(state: State, event: Profiled) -> Transition:
    if state.phase not in PREPARING:
        return ignored(state, f"{event.worker} sent a profile that nobody waits for")
    state = replace(_idle(state, event.worker), profiles=put(state.profiles, event.worker, event))
    if event.n_samples < 1:
        return fail(state, ExitCode.DATA, f"{event.worker} found no training sample in the job's data")
    return then(Transition(state, (), f"{event.worker} is profiled"), advance(state))


def on_links(state: State, event: LinksMeasured) -> Transition:
    if state.phase not in PREPARING:
        return ignored(state, f"{event.worker} sent links that nobody waits for")
    state = _idle(state, event.worker)
    links = dict(state.links)
    for sample in event.links:
        if sample.peer not in state.members:
            continue  # it left meanwhile
        if sample.error:
            return fail(state, ExitCode.PEER_UNREACHABLE, f"{event.worker} -> {sample.peer}: {sample.error}")
        links[event.worker, sample.peer] = sample
    state = replace(state, links=frozen(links))
    return then(Transition(state, (), f"{event.worker} measured {len(event.links)} links"), advance(state))


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
    peers = tuple(state.members[n].peer for n in ranks)
    r = state.restore
    order = TakePlan(plan, peers, r.step if r else None, r.files if r else ())
    return step_to(
        state,
        f"plan {plan.version}: {plan.n_stages} stages x {plan.n_replicas} replicas",
        *(Order(n, order) for n in ranks),
        phase="loading",
        ready=frozenset(),
    )


def on_plan_failed(state: State, event: PlanFailed) -> Transition:
    if state.phase != "planning" or event.version != state.plan_version:
        return ignored(state, f"the failure of plan {event.version} came too late")
    return fail(state, ExitCode.NO_PLAN, event.reason)


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
