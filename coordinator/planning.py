"""Measurements -> the planner's inputs -> a plan. The one place of the coordinator that builds a topology.

Runs in a thread of its own (a search takes seconds); touches nothing but its arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from scheduler.cost import predict
from scheduler.following import Following, following
from scheduler.job import JobSpec
from scheduler.neighbours import Keeper, arrange, copying_s, price
from scheduler.plan import Plan, PlanError
from scheduler.planner import describe as describe_plan
from scheduler.planner import make_plan
from scheduler.recovery import Gather, GoOn, Standing, adopt, recover
from scheduler.replan import Measured, Move, Patience, Stay, reconsider
from scheduler.spot_checks import price as checks_price
from scheduler.timeline import Timeline
from scheduler.topology import Topology

from .commands import MakePlan, Reconsider

HERE_BPS = 1e15
"""The diagonal of the bandwidth matrix, which nobody reads: a device reaches itself at once."""


@dataclass(frozen=True, slots=True)
class Planning:
    """A plan and what it was made from, so that it can be described and its step replayed."""

    request: MakePlan
    topology: Topology
    plan: Plan
    predicted: Timeline
    """The engine's timeline of one step, to lay beside the measured one."""
    way: GoOn | None = None
    """How an interrupted run goes on with the plan; None: the run begins with it."""
    keepers: tuple[Keeper, ...] = ()
    """Who keeps copies for whom, if the job wants any."""
    copying_s: float = 0.0
    """How long a set of copies takes."""


Planner = Callable[[JobSpec, MakePlan], Planning]


def topology_of(request: MakePlan) -> Topology:
    """The measured links as matrices, in the order of the request's devices: what all streams of a link
    carried together, and what one of its flows did. Raises TopologyError."""
    n = len(request.devices)
    index = {d.name: i for i, d in enumerate(request.devices)}
    latency_s = np.zeros((n, n))
    bandwidth_Bps, flow_Bps = (np.full((n, n), HERE_BPS) for _ in range(2))
    for src, link in request.links:
        latency_s[index[src], index[link.peer]] = link.latency_s
        bandwidth_Bps[index[src], index[link.peer]] = link.bandwidth_Bps
        flow_Bps[index[src], index[link.peer]] = link.flow_Bps or link.bandwidth_Bps
    return Topology(request.devices, latency_s, bandwidth_Bps, flow_Bps)


def _in_precision(job: JobSpec, request: MakePlan) -> MakePlan:
    """What was measured, with boundaries as wide as the job's values."""
    value_bytes = 2 if job.precision == "bf16" else 4
    return replace(request, model=replace(request.model, value_bytes=value_bytes))


def make(job: JobSpec, request: MakePlan) -> Planning:
    """Plan with the core's planner. Raises ValueError (its subclasses) with why no plan fits."""
    request = _in_precision(job, request)
    topology = topology_of(request)
    plan = make_plan(job, request.model, request.profiles, topology, request.version)
    return Planning(request, topology, plan, predict(plan, request.model, request.profiles, topology))


def go_on(job: JobSpec, request: MakePlan, standing: Standing, planner: Planner) -> Planning:
    """The plan by which an interrupted run goes on: `planner`'s, or one that stays close to the one that ran.

    Raises PlanError with why the run has to wait for others.
    """
    request = _in_precision(job, request)
    topology = topology_of(request)
    measured = Measured(request.model, request.profiles, topology)
    found = _chosen(request, standing, measured)
    if found is None:
        try:
            planned: Plan | str = planner(job, _of_those_who_stay(request, standing)).plan
        except ValueError as error:
            planned = str(error)
        if job.asked_shape is not None:
            standing = replace(standing, shape=job.asked_shape)
        found = recover(standing, planned, measured, request.version)
    if isinstance(found, Gather):
        raise PlanError(found.reason)
    predicted = predict(found.plan, request.model, request.profiles, topology)
    plan = replace(found.plan, reasons=(found.reason, *found.plan.reasons))
    return Planning(request, topology, plan, predicted, replace(found, plan=plan))


def _chosen(request: MakePlan, standing: Standing, measured: Measured) -> GoOn | Gather | None:
    """The way to the plan that was chosen while another ran; None: there is none, or it cannot be had."""
    if request.chosen is None:
        return None
    plan, reason = request.chosen
    try:
        return adopt(standing, replace(plan, version=request.version), measured, reason)
    except ValueError:
        return None


BETWEEN_STEPS = Patience(steps_redone=0.0)
"""How much faster another plan must look, when a move waits for a step's end."""


def look(
    job: JobSpec, asked: Reconsider, planner: Planner, patience: Patience = BETWEEN_STEPS
) -> Stay | Move:
    """Whether the run should leave its plan for the one that `planner` would make now, between two steps."""
    request = _in_precision(job, asked.request)
    measured = Measured(request.model, request.profiles, topology_of(request))
    try:
        candidate = planner(job, request).plan
    except ValueError as error:
        return Stay(0, f"There is no other plan: {error}")
    return reconsider(asked.running, candidate, measured, asked.step, asked.steps, asked.streak, patience)


def following_to(job: JobSpec, asked: Reconsider, plan: Plan) -> tuple[Following | None, str]:
    """How the layers that `plan` needs travel beside the running one's steps, if they do; and how they
    travel, in words."""
    request = _in_precision(job, asked.request)
    measured = Measured(request.model, request.profiles, topology_of(request))
    step_s = asked.step_s or asked.running.predicted_step_s
    found = following(asked.running, plan, measured, asked.step, asked.steps, step_s)
    says = found if isinstance(found, str) else found.reason
    return None if isinstance(found, str) else found, f"{says[:1].upper()}{says[1:]}."


def with_keepers(job: JobSpec, planning: Planning) -> Planning:
    """With who keeps copies for whom, and among the plan's reasons what they cost, if the job wants any.

    Raises PlanError where there is no room for them, and the run has not begun.
    """
    every, plan = job.checkpoint.neighbours_every, planning.plan
    if not every or plan.local_steps:  # replicas that step alone have no state that others could go on with
        return planning
    model, topology = planning.request.model, planning.topology
    arranged = arrange(plan, model, topology)
    found = arranged.keepers
    if arranged.lacks:
        if planning.way is None:
            raise PlanError(arranged.lacks)
        found = ()  # a run that was interrupted rather goes on
        says = f"No copies: {arranged.lacks}."
    else:
        says = price(found, topology, every, plan.predicted_step_s)
    return replace(_saying(planning, says), keepers=found, copying_s=copying_s(found, topology))


def with_checks(job: JobSpec, planning: Planning) -> Planning:
    """With what spot checks cost among the plan's reasons, if the job wants any."""
    if not job.checks.every:
        return planning
    r, plan = planning.request, planning.plan
    return _saying(planning, checks_price(plan, r.model, r.profiles, planning.topology, job.checks.every))


def _saying(planning: Planning, says: str) -> Planning:
    """With one reason more, in the plan and in the way on that it is part of."""
    plan = replace(planning.plan, reasons=(*planning.plan.reasons, says))
    way = replace(planning.way, plan=plan) if planning.way is not None else None
    return replace(planning, plan=plan, way=way)


def _of_those_who_stay(request: MakePlan, standing: Standing) -> MakePlan:
    stay = set(standing.here)
    return replace(
        request,
        devices=tuple(d for d in request.devices if d.name in stay),
        profiles=tuple(p for p in request.profiles if p.device in stay),
        links=tuple((a, x) for a, x in request.links if a in stay and x.peer in stay),
    )


def given(plan: Plan) -> Planner:
    """A planner that takes `plan`, decided by somebody else, and prices it with what was measured."""

    def planner(job: JobSpec, request: MakePlan) -> Planning:
        request = _in_precision(job, request)
        known = [d.name for d in request.devices]
        strange = sorted({plan.device(r) for r in range(plan.n_ranks)} - set(known))
        if strange:
            raise PlanError(
                f"the plan that was given needs {', '.join(strange)}; found the workers {', '.join(known)}"
            )
        asked = replace(
            plan, version=request.version, micro_batch=plan.micro_batch or job.profiled_micro_batch
        )
        if asked.samples != job.global_batch or asked.partition[-1][1] != job.n_layers:
            raise PlanError(
                f"the plan that was given takes {asked.samples} samples a step and has "
                f"{asked.partition[-1][1]} layers; the job requires {job.global_batch} and {job.n_layers}"
            )
        topology = topology_of(request)
        predicted = predict(asked, request.model, request.profiles, topology)
        priced = replace(asked, predicted_step_s=predicted.duration_s, reasons=("The plan was given.",))
        return Planning(request, topology, priced, predicted)

    return planner


def describe(planning: Planning) -> str:
    """The plan for a person: who holds what, predicted step, memory headroom, and why."""
    r = planning.request
    return describe_plan(planning.plan, r.model, planning.topology, r.profiles)
