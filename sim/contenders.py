"""Plans to be compared: ours, and what others would do with the same job on the same network.

Each contender is a name, how it came to its placement, and a plan or the reason why it has none. All get
the same cut of layers, the same knobs and the same engine, so that placement and shape are what differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from scheduler import tensor_parallel
from scheduler.baselines import data_innermost, pipeline_innermost
from scheduler.choose_codecs import link_codecs
from scheduler.cost import durations, stage_memory
from scheduler.dtfm import DtfmObjective, Volumes
from scheduler.dtfm_search import dtfm_search
from scheduler.encoding import Stages
from scheduler.job import JobSpec, resolve_model
from scheduler.link_codecs import codecs_of_cells
from scheduler.placement import pipelines_in_order, region_order
from scheduler.plan import Plan, PlanError
from scheduler.planner import Placed, Placing, make_plan, split_micro_batches
from scheduler.profile import DeviceProfile
from scheduler.topology import Topology
from scheduler.units import size
from sim.replay import Work

NAMES = ("ours", "dtfm", "random", "region", "megatron", "zero")
Placement = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Contender:
    name: str
    note: str
    plan: Plan | None
    work: Work
    """What its step has to do, where that is not what everybody else's has."""
    why_not: str = ""
    tensor: int = 1
    """Devices that hold each stage together, one after the other as they stand; the plan names the first."""


@dataclass(frozen=True, slots=True)
class Field:
    """What all contenders are given. `shape`: (stages, replicas) of those that do not choose one."""

    job: JobSpec
    work: Work
    topology: Topology
    shape: tuple[int, int]
    seed: int = 0
    random_draws: int = 5
    dtfm_trials: int = 400
    """Placements that DT-FM's search tries after its first hundred; the paper's search tries 4,900."""

    def plan(self, placement: Placement) -> Plan:
        return self.placing().placed(placement).plan(1)

    def placing(self) -> Placing:
        return Placing(self.job, self.work.model, self.work.profiles, self.topology)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(d.name for d in self.topology.devices)


def shape_for(n_devices: int, stages: int | None, replicas: int | None) -> tuple[int, int]:
    """(stages, replicas) as given, or the squarest of all devices, stages first. PlanError if they are more
    than there are devices."""
    if stages and replicas:
        if stages * replicas > n_devices:
            raise PlanError(
                f"found {stages} stages x {replicas} replicas, required at most {n_devices} devices"
            )
        return stages, replicas
    least = max(r for r in range(1, n_devices + 1) if n_devices % r == 0 and r * r <= n_devices)
    return n_devices // least, least


def contend(name: str, field: Field) -> Contender:
    """One of NAMES. A contender that has no plan says why; nothing is raised for it."""
    found: dict[str, Callable[[Field], Contender]] = {
        "ours": _ours,
        "dtfm": _dtfm,
        "random": _random,
        "region": _region,
        "megatron": _megatron,
        "zero": _zero,
    }
    try:
        return found[name](field)
    except PlanError as e:
        return Contender(name, "", None, field.work, str(e))


def _ours(f: Field) -> Contender:
    w = f.work
    plan = make_plan(f.job, w.model, w.profiles, f.topology, 1)
    return Contender("ours", "shape, placement, cut and knobs by predicted step time", plan, w)


def _dtfm(f: Field) -> Contender:
    stages, replicas = f.shape
    objective = _objective(f)
    rng = np.random.default_rng(f.seed)
    groups = dtfm_search(objective, rng, min(100, f.dtfm_trials), f.dtfm_trials)
    placed = objective.place(groups).stages
    placement = tuple(tuple(f.names[placed[s][r]] for s in range(stages)) for r in range(replicas))
    note = f"DT-FM's objective and search, {f.dtfm_trials:,} trials (the paper: 4,900)"
    return Contender("dtfm", note, f.plan(placement), f.work)


def _objective(f: Field) -> DtfmObjective:
    """DT-FM's volumes from the cut that region order gets: a stage's gradients, a pipeline's boundary."""
    stages, replicas = f.shape
    order = f.names[: stages * replicas]
    plan = f.plan(pipelines_in_order(order, stages, replicas))
    d = durations(plan, f.work.model, f.work.profiles, f.topology)
    a_pipeline = max(d.activation_bytes, default=0) * max(plan.micro_batches)
    there = f.topology.subset(range(stages * replicas))
    return DtfmObjective(there, stages, replicas, Volumes(max(d.reduce_bytes), a_pipeline))


def _random(f: Field) -> Contender:
    """The median of several draws."""
    stages, replicas = f.shape
    rng = np.random.default_rng(f.seed)
    tried, placing = [], f.placing()
    for _ in range(f.random_draws):
        drawn = [f.names[k] for k in rng.permutation(len(f.names))[: stages * replicas]]
        tried.append(_timed(placing.placed(pipelines_in_order(drawn, stages, replicas))))
    middle = sorted(tried, key=lambda t: t.step_s)[len(tried) // 2].plan()
    return Contender("random", f"the median of {f.random_draws} draws", middle, f.work)


def _region(f: Field) -> Contender:
    stages, replicas = f.shape
    boundary_bytes = max(x.boundary_bytes for x in f.work.model.layers)
    order = region_order(f.topology, f.names, boundary_bytes)[: stages * replicas]
    plan = f.plan(pipelines_in_order(order, stages, replicas))
    return Contender("region", "pipelines of neighbours, by region", plan, f.work)


def _megatron(f: Field) -> Contender:
    """The best of a grid of data, pipeline and tensor degrees, devices as they stand in either order, tensor
    groups innermost (`scheduler/tensor_parallel.py`)."""
    found: list[tuple[_Timed, Work, int]] = []
    errors: list[PlanError] = []
    for t in (t for t in range(1, tensor_parallel.MOST + 1) if _can_share(f, t)):
        try:
            field = _grouped(f, t)
        except PlanError as e:
            errors.append(e)
            continue
        if _least_s(field) >= min((timed.step_s for timed, _, _ in found), default=inf):
            continue
        n, placing = len(field.names), field.placing()
        for stages in (s for s in range(1, n + 1) if n % s == 0):
            objective = DtfmObjective(field.topology, stages, n // stages, Volumes())
            for order in (data_innermost, pipeline_innermost):
                try:
                    timed = _timed(placing.placed(_placement(order(objective), field.names)))
                    found.append((timed, field.work, t))
                except PlanError as e:
                    errors.append(e)
    if not found:
        raise errors[0]
    timed, work, t = min(found, key=lambda x: x[0].step_s)
    note = "best of a grid of data, pipeline and tensor degrees (tensor to 8), devices as they stand"
    return Contender("megatron", note, timed.plan(), work, tensor=t)


@dataclass(frozen=True, slots=True)
class _Timed:
    """One of several placements, with the engine's step time."""

    step_s: float
    plan: Callable[[], Plan]


def _timed(tried: Placed) -> _Timed:
    """By the engine's twin where that is the engine; a plan is then made of the one that is chosen alone."""
    if tried.exact:
        return _Timed(tried.step_s, lambda: tried.plan(1))
    plan = tried.plan(1)
    return _Timed(plan.predicted_step_s, lambda: plan)


def _can_share(f: Field, t: int) -> bool:
    """Whether `t` devices can hold a layer together: its heads come out even, and so do the devices."""
    heads = resolve_model(f.job.shape).heads
    return len(f.names) % t == 0 and heads is not None and heads % t == 0


def _grouped(f: Field, t: int) -> Field:
    """Tensor groups of `t` in the place of devices."""
    topology = tensor_parallel.grouped_links(f.topology, t)
    profiles = tensor_parallel.grouped_profiles(f.work.model, f.work.profiles, f.topology, t)
    return replace(f, work=replace(f.work, profiles=profiles), topology=topology)


def _least_s(f: Field) -> float:
    """No step is shorter: all micro-batches through the fastest devices, without a bubble or a link. 0 where
    the job leaves their size open."""
    if f.job.micro_batch == "auto":
        return 0.0
    a_pass_s = min(sum(p.forward_s) + sum(p.backward_s) for p in f.work.profiles)
    return f.job.micro_batches * a_pass_s / len(f.names)


def _placement(stages: Stages, names: Sequence[str]) -> Placement:
    """[S, R] of indices -> [replica][stage] of names."""
    return tuple(tuple(names[int(d)] for d in row) for row in stages.T)


def _zero(f: Field) -> Contender:
    """Data parallelism alone, optimizer state and gradients sharded over all devices (ZeRO stage 2,
    Rajbhandari et al. 2020): as many bytes as a plain all-reduce, a share of the optimizer's work each."""
    n, w = len(f.names), f.work
    micro_batches = f.job.global_batch // f.job.profiled_micro_batch
    if micro_batches < n:
        raise PlanError(f"found {micro_batches} micro-batches, required {n}: one for each device")
    layers = len(w.model.layers)
    everybody = np.arange(n, dtype=np.int64)[:, None]
    plan = Plan(
        1, tuple((name,) for name in f.names), ((0, layers),), split_micro_batches(micro_batches, n), "1f1b",
        recompute=True, micro_batch=f.job.profiled_micro_batch,
        codecs=codecs_of_cells(link_codecs(f.job, w.model, w.profiles, f.topology), everybody, n),
    )  # fmt: skip
    memory = stage_memory(replace(w.model, recompute=True), 0, layers)
    sharded_bytes = memory.state_bytes + memory.parameter_bytes  # state and gradients
    needed = memory.total_bytes(1) - sharded_bytes + sharded_bytes / n
    short = [d for d in f.topology.devices if d.memory_bytes and d.memory_bytes < needed]
    if short:
        raise PlanError(
            f"{short[0].name} has {size(short[0].memory_bytes)}, required {size(needed)}: "
            "every device holds all parameters"
        )
    sharded = tuple(_sharing(p, n) for p in w.profiles)
    note = "data parallel alone, state sharded, forwards recomputed"
    return Contender("zero", note, plan, replace(w, profiles=sharded))


def _sharing(profile: DeviceProfile, n: int) -> DeviceProfile:
    return replace(profile, optimizer_s=tuple(s / n for s in profile.optimizer_s))
