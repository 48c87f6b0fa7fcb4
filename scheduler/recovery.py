"""How a run goes on when the devices of its plan are not all there any more, or others should take part.

    standing = Standing(running, here, holdings_of(running, done, here), done, steps, saved)
    # `planned`: the planner's plan for those who are here, or why there is none
    match found := recover(standing, planned, measured):
        case GoOn():    # take found.plan; layers come as found.sources says; the next step is found.step
        case Gather():  # wait for more devices: found.reason

Three plans compete: the planner's for those who are here; the running one with spares in the places of the
lost; and the running one with fewer replicas, which moves no layer and keeps the global batch. The one that
ends the run soonest, moving included, is taken; a shape that the job asks for goes before. Where a layer has
no holder left, all go back to the last checkpoint, because layers of different steps do not fit together.

The coordinator and the simulator both ask here. Pure: knows no member, no clock and no message.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from scheduler.cost import stage_memory_bytes, step_time_s
from scheduler.flows import TopologyNetwork
from scheduler.layer_sources import Holding, Sources, layer_sources, loading_s, orphans, travelling
from scheduler.plan import Plan, PlanError
from scheduler.profile import ModelProfile
from scheduler.remembered import kept_bytes
from scheduler.replan import Measured
from scheduler.schedule import in_flight
from scheduler.settings import Setting, priced
from scheduler.shard_sizes import with_best_sizes
from scheduler.topology import Topology
from scheduler.units import count, duration, size

Way = Literal["repair", "fewer replicas", "redistribute", "move"]


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a run stands that cannot go on as it is."""

    running: Plan
    here: tuple[str, ...]
    """Devices that are there, those that stand by included; all of them profiled and measured."""
    holdings: Mapping[str, Holding]
    """Who holds what; `holdings_of` for a plan whose ranks all stand at the same step."""
    step: int
    """Steps that are committed."""
    steps: int
    saved: int | None
    """The step of the last checkpoint; None: there is none, and going back means the beginning."""
    copies: Mapping[str, Holding] = field(default_factory=dict)
    """Who keeps which layers as they were after an earlier step, all after the same; nobody: {}."""
    shape: tuple[int, int] | None = None
    """(stages, replicas) that the job asks for: kept while there are devices for it. None: left open."""

    @property
    def lost(self) -> tuple[str, ...]:
        """Devices of the running plan that are gone, by rank."""
        names = [self.running.device(r) for r in range(self.running.n_ranks)]
        return tuple(n for n in names if n not in self.here)


@dataclass(frozen=True, slots=True)
class GoOn:
    """Take `plan` and go on with `step`. `sources` are of every device of the plan."""

    plan: Plan
    way: Way
    step: int
    """The committed steps; fewer where the run goes back to a checkpoint (0 without one: fresh weights)."""
    sources: Sources
    loading_s: float
    """Predicted, of what travels between devices."""
    reason: str

    @property
    def from_checkpoint(self) -> bool:
        """Whether any layer comes from the checkpoint: then all do."""
        return bool(orphans(self.sources))


@dataclass(frozen=True, slots=True)
class Gather:
    """There is no plan for those who are here: wait for more."""

    reason: str


def recover(standing: Standing, planned: Plan | str, now: Measured, version: int = 0) -> GoOn | Gather:
    """The way to go on that ends the run soonest. `planned`: the planner's plan, or why it has none;
    `version`: of the plan that is made (0: the planned one's, or one after the running one's)."""
    version = version or (planned.version if isinstance(planned, Plan) else standing.running.version + 1)
    here = set(standing.here)
    candidates: list[tuple[Way, Plan]] = []
    if not isinstance(planned, str):
        candidates.append(("redistribute", replace(planned, version=version)))
    candidates += [("repair", p) for p in repaired(standing, now, version)]
    candidates += [("fewer replicas", p) for p in with_fewer_replicas(standing, now, version)]
    able = [(way, p) for way, p in candidates if {p.device(r) for r in range(p.n_ranks)} <= here]
    if not able:
        why = planned if isinstance(planned, str) else "no device of the plan is there"
        return Gather(f"{_gone(standing)}; {count(len(here), 'device')} left: {why}")
    if kept := [(way, p) for way, p in able if (p.n_stages, p.n_replicas) == standing.shape]:
        able = kept
    priced_ways = [_price(standing, way, plan, now) for way, plan in able]
    return min(priced_ways, key=lambda x: x[0])[1]


def _price(standing: Standing, way: Way, plan: Plan, now: Measured) -> tuple[float, GoOn]:
    """(seconds from here to the run's end, the way)."""
    step_s = _step_s(plan, now)
    step, sources = (
        standing.step,
        layer_sources(plan, standing.step, standing.holdings, now.model, now.topology),
    )
    # Replicas that step alone hold no layer that another could go on with.
    lost = tuple(range(len(now.model.layers))) if plan.local_steps else orphans(sources)
    if lost and not plan.local_steps and (copied := _from_copies(standing, plan, now)) is not None:
        step, sources = copied
    elif lost:
        step = standing.saved or 0
        sources = _all_from_checkpoint(sources)
    moving_s = loading_s(sources, now.model, TopologyNetwork(now.topology))
    plan = replace(plan, predicted_step_s=step_s)
    reason = _reason(standing, way, plan, sources, lost, moving_s, now.model, step)
    return moving_s + (standing.steps - step) * step_s, GoOn(plan, way, step, sources, moving_s, reason)


def _from_copies(standing: Standing, plan: Plan, now: Measured) -> tuple[int, Sources] | None:
    """(step, sources) of what neighbours keep, if that is all layers and further than the checkpoint."""
    step = max((h.step for h in standing.copies.values()), default=0)
    if step <= (standing.saved or 0):
        return None
    sources = layer_sources(plan, step, standing.copies, now.model, now.topology)
    return None if orphans(sources) else (step, sources)


def adopt(standing: Standing, plan: Plan, now: Measured, reason: str) -> GoOn:
    """The way to `plan` between two steps, when all layers are there. Raises PlanError if some are not."""
    sources = layer_sources(plan, standing.step, standing.holdings, now.model, now.topology)
    if lost := orphans(sources):
        raise PlanError(f"nobody holds {_layers(lost)} after step {standing.step}")
    moving_s = loading_s(sources, now.model, TopologyNetwork(now.topology))
    plan = replace(plan, predicted_step_s=_step_s(plan, now))
    return GoOn(plan, "move", standing.step, sources, moving_s, reason)


def _all_from_checkpoint(sources: Sources) -> Sources:
    return {name: tuple(replace(s, donors=()) for s in layers) for name, layers in sources.items()}


# ---- plans that stay close to the running one


def repaired(standing: Standing, now: Measured, version: int) -> Iterator[Plan]:
    """The running plan with a spare in the place of each lost device: place by place the one under which the
    step is shortest. As it is if none is lost; nothing if there are too few, or none that a place fits on."""
    lost, names = standing.lost, {standing.running.device(r) for r in range(standing.running.n_ranks)}
    spares = [n for n in standing.here if n not in names]
    if len(spares) < len(lost):
        return
    filled = replace(standing.running, version=version, reasons=())
    for i, place in enumerate(lost):
        # No step can be timed before all places are filled: those that follow are lent whoever is left.
        tried = {}
        for spare in spares:
            rest = (s for s in spares if s != spare)
            tried[spare] = _replaced(filled, {place: spare, **dict(zip(lost[i + 1 :], rest, strict=False))})
        able = [s for s in spares if fits(tried[s], now.model, now.topology)]
        if not able:
            return
        best = min(able, key=lambda s: (_step_s(tried[s], now), s))
        filled = _replaced(filled, {place: best})
        spares.remove(best)
    yield sized(filled, now) if lost else filled


def with_fewer_replicas(standing: Standing, now: Measured, version: int) -> Iterator[Plan]:
    """The running plan with as many replicas as every stage still has holders for, whole pipelines first;
    the global batch is kept and no layer moves. Nothing if a stage has no holder, or memory does not do."""
    running, here = standing.running, set(standing.here)
    rows = list(enumerate(running.placement))
    whole = [r for r, row in rows if set(row) <= here]
    broken = [r for r, row in rows if not set(row) <= here]
    holders = [[running.placement[r][s] for r in broken] for s in range(running.n_stages)]
    joined = list(zip(*([n for n in names if n in here] for names in holders), strict=False))
    pipelines = (*(running.placement[r] for r in whole), *joined)
    if not pipelines or len(pipelines) == running.n_replicas:
        return
    shares = running.shares_of(len(pipelines))
    codecs = running.codecs.of_replicas([*whole, *broken[: len(joined)]])
    plan = replace(
        running,
        version=version,
        placement=pipelines,
        micro_batches=shares,
        shard_sizes=(),
        reasons=(),
        codecs=codecs,
    )
    if fits(plan, now.model, now.topology):
        yield sized(plan, now)


def sized(plan: Plan, now: Measured) -> Plan:
    """The plan with shards of sequences, where there are any, as long as suits its devices."""

    def able(trial: Plan) -> bool:
        return fits(trial, now.model, now.topology)

    return with_best_sizes(plan, now.model, now.devices, now.topology, lambda p: _step_s(p, now), able)


def fits(
    plan: Plan, model: ModelProfile, topology: Topology, more_bytes: Mapping[str, int] | None = None
) -> bool:
    """Whether every stage of `plan` fits in its device's memory; one that is not known is enough.
    `more_bytes`: what devices need beside that."""
    model, _, _ = priced(Setting.of(plan), model, (), topology)
    memory_bytes = {d.name: d.memory_bytes for d in topology.devices}
    for rank in range(plan.n_ranks):
        start, stop = plan.partition[plan.stage_of(rank)]
        has = memory_bytes.get(plan.device(rank), 0)
        own = model.of_replica(plan.replica_of(rank))
        needed = stage_memory_bytes(own, start, stop, in_flight(plan.actions(rank)))
        more = (more_bytes or {}).get(plan.device(rank), 0)
        if has and needed + kept_bytes(plan, rank, model, topology) + more > has:
            return False
    return True


def _step_s(plan: Plan, now: Measured) -> float:
    return step_time_s(plan, now.model, now.devices, now.topology)


def _devices(plan: Plan) -> Sequence[str]:
    return [plan.device(r) for r in range(plan.n_ranks)]


def _replaced(plan: Plan, by: Mapping[str, str]) -> Plan:
    return replace(plan, placement=tuple(tuple(by.get(n, n) for n in row) for row in plan.placement))


# ---- words


def _gone(standing: Standing) -> str:
    lost = standing.lost
    if not lost:
        return "nobody is lost"
    return f"{', '.join(lost)} {'is' if len(lost) == 1 else 'are'} gone"


def _reason(
    standing: Standing,
    way: Way,
    plan: Plan,
    sources: Sources,
    lost_layers: tuple[int, ...],
    moving_s: float,
    model: ModelProfile,
    step: int,
) -> str:
    match way:
        case "repair":
            new = [n for n in _devices(plan) if n not in _devices(standing.running)]
            how = f"{', '.join(new)} {'takes' if len(new) == 1 else 'take'} the place" if new else "as before"
        case "fewer replicas":
            how = f"{count(plan.n_replicas, 'replica')} of {standing.running.n_replicas} take the whole batch"
        case "redistribute":
            how = f"a new plan of {count(plan.n_stages, 'stage')} x {count(plan.n_replicas, 'replica')}"
        case "move":
            raise AssertionError("whoever moves brings the reason along")
    how = f"{_gone(standing)}: {how}, {duration(plan.predicted_step_s)} a step"
    if lost_layers and not orphans(sources):
        again = count(standing.step - step, "step")
        return (
            f"{how}; nobody holds {_layers(lost_layers)}: back to the copies that neighbours keep of step"
            f" {step}, {again} again"
        )
    if lost_layers:
        back = "the checkpoint of step " + str(standing.saved) if standing.saved else "the beginning"
        again = count(standing.step - (standing.saved or 0), "step")
        return f"{how}; nobody holds {_layers(lost_layers)}: back to {back}, {again} again"
    sends = travelling(sources, model)
    if not sends:
        return f"{how}; no layer moves"
    return f"{how}; {size(sum(n for _, _, n in sends))} come from {_donors(sends)} in {duration(moving_s)}"


def _layers(layers: tuple[int, ...]) -> str:
    if len(layers) > 2 and layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]} to {layers[-1]}"
    return f"layer {layers[0]}" if len(layers) == 1 else f"layers {', '.join(map(str, layers))}"


def _donors(sends: Sequence[tuple[str, str, int]]) -> str:
    return ", ".join(sorted({donor for donor, _, _ in sends}))
