"""Makes a plan from measurements: the shape, placement, cut and setting with the shortest predicted step.

The front of the search (`plan_search.py`) and of its reasons (`plan_reasons.py`). Decides only;
measuring and carrying out are the shells' matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from scheduler.cost import profiles_by_name, step_time_s
from scheduler.describe import describe as describe
from scheduler.job import JobSpec
from scheduler.partition import DoesNotFit
from scheduler.plan import Plan, PlanError, split_micro_batches, stage_of_layers
from scheduler.plan_codecs import PlanCodecs
from scheduler.profile import DeviceProfile, ModelProfile
from scheduler.remembered import remembering, without_choosing_it
from scheduler.split_choice import Searched, search_splits
from scheduler.topology import Topology
from scheduler.units import count

if TYPE_CHECKING:  # the search is compiled: whoever only reads plans does not wait for it
    from scheduler.plan_search import Chosen, Ways
    from scheduler.step_case import Found
    from scheduler.step_search import MapTasks, StepSearchOptions

__all__ = [
    "DoesNotFit",
    "Placed",
    "Placing",
    "PlanError",
    "describe",
    "make_plan",
    "plan_for",
    "search_for",
    "split_micro_batches",
    "stage_of_layers",
]

QUICK_ACTIONS = 4e8
"""What a coordinator's plan may cost: a second or two."""


def make_plan(
    job: JobSpec,
    model: ModelProfile,
    devices: Sequence[DeviceProfile],
    topology: Topology,
    version: int,
) -> Plan:
    """The plan with the shortest predicted step among those the job allows, with the codecs it asks for.

    `auto` tries every stages x replicas of all or fewer of `devices`; a given parallelism chooses the
    best devices for it. The job's seed and the measurements alone decide: not their order.
    Raises PlanError when devices, layers or micro-batches are too few, DoesNotFit for memory.
    """
    from scheduler.step_search import StepSearchOptions

    options = StepSearchOptions(actions=QUICK_ACTIONS)
    return explained(search_for(job, model, devices, topology, version, options))


def explained(searched: Searched) -> Plan:
    """The chosen plan with its codecs and its reasons."""
    from scheduler.plan_reasons import reasons

    ways, chosen, why = searched
    plan = _relaxed(ways, chosen.found, chosen.plan)
    shape, *others = reasons(ways, replace(chosen, plan=plan))
    return replace(plan, reasons=(shape, *filter(None, (why,)), *others, *plan.reasons))


def _relaxed(ways: Ways, found: Found, plan: Plan) -> Plan:
    """The plan without the compression that `auto` does not need, timed by the engine."""
    from scheduler.plan_search import taking_part
    from scheduler.relax_codecs import open_places, relaxed, twin_judge

    places = open_places(plan, ways.codecs(found.case), found.case.pricing.names)
    if not places:
        return plan
    there = taking_part(ways.topology, plan)
    used = {name for row in plan.placement for name in row}
    devices = [p for p in ways.devices if p.device in used]

    def engine_s(codecs: PlanCodecs) -> float:
        return step_time_s(replace(plan, codecs=codecs), ways.model, devices, there)

    judge, exact = twin_judge(plan, ways.model, devices, there, places)
    return relaxed(plan, places, judge, exact, engine_s)


def search_for(
    job: JobSpec,
    model: ModelProfile,
    devices: Sequence[DeviceProfile],
    topology: Topology,
    version: int,
    options: StepSearchOptions,
    map_tasks: MapTasks = map,
    should_stop: Callable[[], bool] = lambda: False,
) -> Searched:
    """`make_plan` with the effort chosen, and everything that the plan was chosen from. Where what replicas
    share is open, each of the two searches has that effort."""
    _require_inputs(job, model, devices, topology)
    ordered = tuple(sorted(devices, key=lambda p: p.device))
    links = _ordered(topology, ordered)

    def search(sharing: JobSpec) -> tuple[Ways, Chosen]:
        return _search(sharing, model, ordered, links, version, options, map_tasks, should_stop)

    return search_splits(job, search)


def _search(
    job: JobSpec,
    model: ModelProfile,
    ordered: tuple[DeviceProfile, ...],
    links: Topology,
    version: int,
    options: StepSearchOptions,
    map_tasks: MapTasks,
    should_stop: Callable[[], bool],
) -> tuple[Ways, Chosen]:
    """The plan of a job that says what replicas share."""
    from scheduler.plan_search import Ways, search_plan

    ways = Ways(job, remembering(job, model, links), ordered, links)
    wanted = _wanted(job, model, len(ordered))
    plain = without_choosing_it(job, model)
    if plain is None:
        return ways, _sized(ways, search_plan(ways, wanted, version, options, map_tasks, should_stop))
    # Another codec makes another landscape, where a search may end worse: it begins where one ends without.
    fewer = Ways(job, remembering(job, plain, links), ordered, links)
    known = search_plan(fewer, wanted, version, options, map_tasks, should_stop)
    try:
        chosen = search_plan(ways, wanted, version, options, map_tasks, should_stop, (fewer, known))
    except DoesNotFit:  # buffers want memory, too
        return fewer, _sized(fewer, known)
    bound_s = min(chosen.bound_s, known.bound_s)
    if known.plan.predicted_step_s < chosen.plan.predicted_step_s:
        return fewer, _sized(fewer, replace(known, bound_s=bound_s))
    return ways, _sized(ways, replace(chosen, bound_s=bound_s))


def _sized(ways: Ways, chosen: Chosen) -> Chosen:
    """With shards of sequences, where replicas share them, as long as suits the devices."""
    return replace(chosen, plan=_with_sizes(ways, chosen.plan))


def _with_sizes(ways: Ways, plan: Plan) -> Plan:
    from scheduler.plan_search import taking_part
    from scheduler.recovery import sized
    from scheduler.replan import Measured

    return sized(plan, Measured(ways.model, ways.devices, taking_part(ways.topology, plan)))


def _wanted(job: JobSpec, model: ModelProfile, n_devices: int) -> list[tuple[int, int]]:
    """The (stages, replicas) to search. PlanError where there is none."""
    from scheduler.plan_search import shapes

    if job.asked_shape is None:
        found = shapes(n_devices, len(model.layers), job.most_replicas)
        if job.split == "sequence":
            found = [(s, r) for s, r in found if r > 1]
        if not found:
            raise PlanError("found 1 device, required 2 at least to share sequences; let more join")
        return found
    stages, replicas = job.asked_shape
    required = stages * replicas
    if n_devices < required:
        raise PlanError(
            f"found {count(n_devices, 'device')}, required {required} for {stages} stages x "
            f"{replicas} replicas; let {required - n_devices} more join or set parallelism: auto"
        )
    _require_shape(job, model, stages, replicas)
    return [(stages, replicas)]


def _ordered(topology: Topology, devices: Sequence[DeviceProfile]) -> Topology:
    """The devices that take part, in the profiles' order, so that nobody's order decides anything."""
    index = {d.name: i for i, d in enumerate(topology.devices)}
    at = [index[p.device] for p in devices]
    return topology if at == list(range(len(topology))) else topology.subset(at)


def plan_for(
    placement: tuple[tuple[str, ...], ...],
    job: JobSpec,
    model: ModelProfile,
    devices: Sequence[DeviceProfile],
    topology: Topology,
    version: int,
) -> Plan:
    """`placement`, decided by somebody else, as a plan: layers cut and knobs turned as `make_plan` would.
    Raises what `make_plan` raises."""
    return Placing(job, model, devices, topology).placed(placement).plan(version)


@dataclass(frozen=True, slots=True)
class Placed:
    """A placement with layers cut and knobs turned, timed by the engine's twin; a plan when asked for."""

    ways: Ways
    found: Found

    @property
    def step_s(self) -> float:
        """Predicted; the engine's too if `exact`, else an estimate."""
        return self.found.step_s

    @property
    def exact(self) -> bool:
        return self.found.case.pricing.exact

    def plan(self, version: int) -> Plan:
        """Timed by the engine."""
        setting = self.ways.setting(self.found.case)
        why = (f"Run so because {setting.reason}.",) if setting.reason else ()
        plan = _with_sizes(self.ways, self.ways.plan(self.found, version))
        return _relaxed(self.ways, self.found, replace(plan, reasons=why))


class Placing:
    """Placements decided by somebody else, for one job on one network: priced once, and of many the engine
    need time the best alone. Raises what `make_plan` raises."""

    def __init__(
        self, job: JobSpec, model: ModelProfile, devices: Sequence[DeviceProfile], topology: Topology
    ) -> None:
        from scheduler.plan_search import Ways

        _require_inputs(job, model, devices, topology)
        links = _ordered(topology, devices)
        self._ways = Ways(job, remembering(job, model, links), tuple(devices), links)
        self._index = {p.device: i for i, p in enumerate(devices)}

    def placed(self, placement: tuple[tuple[str, ...], ...]) -> Placed:
        """[replica][stage] of devices' names, cut and tuned."""
        n_stages, n_replicas = len(placement[0]), len(placement)
        _require_shape(self._ways.job, self._ways.model, n_stages, n_replicas)
        cells = np.array([[self._index[name] for name in pipeline] for pipeline in placement], dtype=np.int64)
        found = self._ways.tuned(n_stages, n_replicas, cells, "a placement decided elsewhere")
        if isinstance(found, DoesNotFit):
            raise found
        return Placed(self._ways, found)


def _require_inputs(
    job: JobSpec, model: ModelProfile, devices: Sequence[DeviceProfile], topology: Topology
) -> None:
    if not devices:
        raise PlanError("found no device, required at least 1; let a worker join")
    if len(model.layers) != job.n_layers:
        raise PlanError(f"found profiles of {len(model.layers)} layers, required {job.n_layers} for this job")
    profiles_by_name(model, devices)
    known = {d.name for d in topology.devices}
    strangers = sorted(p.device for p in devices if p.device not in known)
    if strangers:
        raise PlanError(
            f"found profiles of {', '.join(strangers)}, which no link was measured to; measure links"
        )
    size = job.profiled_micro_batch
    if job.global_batch % size:
        raise PlanError(f"found global_batch {job.global_batch}, required a multiple of micro_batch {size}")


def _require_shape(job: JobSpec, model: ModelProfile, stages: int, replicas: int) -> None:
    if stages > len(model.layers):
        raise PlanError(f"found {stages} stages, required at most {len(model.layers)}: one layer a stage")
    most = job.most_replicas
    if replicas > most:
        each = "position" if job.split == "sequence" else "micro-batch"
        raise PlanError(f"found {replicas} replicas, required at most {most}: one {each} a replica")
