"""One simulation from its settings: what `sim run` does once, and `sim sweep` for every point of a grid.

Reads the files that the settings name; prints nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from scheduler.gpus import ACHIEVABLE
from scheduler.job import JobSpec
from scheduler.plan import Plan, PlanError
from scheduler.plan_text import plan_document
from scheduler.planner import make_plan
from scheduler.replan import Patience
from scheduler.topology import Topology
from sim.contenders import Field, contend, shape_for
from sim.fault_script import Script, read_script
from sim.inputs import JobInput, NetworkInput, NetworkRead, read_gpus, read_job, read_network, read_work
from sim.plan_file import read_plan
from sim.presence import there_at_first
from sim.prices import Bill, Prices, bill, read_prices
from sim.replay import Work, require_devices
from sim.run import Planner, simulate_run
from sim.run_records import RunOptions, RunResult

DAY_S = 86400.0
OBJECTIVES = ("step", "dtfm")
"""What plans are chosen by."""


@dataclass(frozen=True)
class Settings(NetworkInput, JobInput):
    """Everything that decides a simulation's result, by the names of `sim run`'s options."""

    start_s: float = 0.0
    gpu: tuple[str, ...] = ()
    precision: str = "fp16"
    efficiency: float = ACHIEVABLE
    objective: str = "step"
    plan: Path | None = None
    steps: int = 1
    faults: Path | None = None
    prices: Path | None = None
    save_every: int = 50
    settle_s: float = 5.0
    restart_s: float = 60.0
    measure_s: float = 30.0
    wait_for_workers: float = 300.0
    replan_every: int = 0


@dataclass(frozen=True, slots=True)
class Simulation:
    """What came of it."""

    read: NetworkRead
    work: Work
    result: RunResult
    costs: Bill
    currency: str
    tokens_a_step: int


def planner_of(job: JobSpec, work: Work, objective: str = "step", seed: int = 0) -> Planner:
    """Plans for whoever is there. `objective`: `step`, the predicted step time, as the coordinator does;
    `dtfm`, the paper's own objective and search in the job's shape. PlanError for another."""
    if objective not in OBJECTIVES:
        raise PlanError(f"--objective: found {objective!r}, required {' or '.join(OBJECTIVES)}")

    def planner(topology: Topology, names: Sequence[str], version: int) -> Plan:
        profiles = [p for p in work.profiles if p.device in set(names)]
        if not profiles:
            raise PlanError("found no device that is there, required one or more")
        there = topology.subset([topology.index(p.device) for p in profiles])
        if objective == "step":
            return make_plan(job, work.model, profiles, there, version)
        shape = shape_for(len(there), *(job.asked_shape or (None, None)))
        found = contend("dtfm", Field(job, Work(work.model, tuple(profiles)), there, shape, seed))
        if found.plan is None:
            raise PlanError(found.why_not)
        return replace(found.plan, version=version, reasons=(f"Placed by {found.note}.", *found.plan.reasons))

    return planner


def simulate(
    s: Settings,
    planned: Callable[[Plan], None] = lambda _: None,
    progress: Callable[[int], None] = lambda _: None,
) -> Simulation:
    """Plan (or take the plan that is named) and run. `planned` and `progress` are told how far it is.

    Raises ValueError (its subclasses) for whatever cannot be, saying what was found and required.
    """
    gpus = read_gpus(s.gpu, s.precision, s.efficiency)
    read = read_network(s, gpus)
    job = read_job(s)
    network = read.network
    work = read_work(job, network.devices, gpus)
    prices = read_prices(s.prices) if s.prices else Prices()
    planner = planner_of(job, work, s.objective, s.seed)
    names = [d.name for d in network.devices]
    script = Script()
    if s.faults is not None:
        regions = list(dict.fromkeys(d.region for d in network.devices))
        script = read_script(s.faults, names, regions)
    if s.plan is not None:
        plan = read_plan(s.plan)
        require_devices(plan, network)
    else:
        faults = script.faults(s.start_s, np.random.default_rng(s.seed))
        there = there_at_first(network.devices, faults, s.start_s, s.measure_s)
        plan = planner(network.topology(s.start_s), there, 1)
    planned(plan)
    horizon_s = s.start_s + max(10 * s.steps * plan.predicted_step_s, DAY_S)
    faults = script.faults(horizon_s, np.random.default_rng(s.seed))
    options = replace(
        RunOptions.of(job, s.steps),
        start_s=s.start_s,
        save_every=s.save_every,
        settle_s=s.settle_s,
        restart_s=s.restart_s,
        measure_s=s.measure_s,
        wait_for_workers_s=s.wait_for_workers,
        replan_every=s.replan_every,
        patience=Patience(restart_s=s.settle_s, steps_redone=0.0),
    )
    result = simulate_run(work, network, plan, options, planner, faults, progress)
    costs = bill(prices, network.devices, result.device_s, result.egress_bytes)
    return Simulation(read, work, result, costs, prices.currency, options.tokens_a_step)


def document(simulation: Simulation) -> dict[str, Any]:
    """The result as JSON has it. Times in s, sizes in bytes."""
    result, costs = simulation.result, simulation.costs
    step_s = [s.duration_s for s in result.steps]
    return {
        "total_s": result.total_s,
        "steps": [asdict(s) for s in result.steps],
        "median_step_s": float(np.median(step_s)) if step_s else None,
        "tokens": result.tokens,
        "tokens_per_s": result.tokens_per_s,
        "recoveries": result.recoveries,
        "restarts": result.restarts,
        "moves": result.moves,
        "steps_lost": result.steps_lost,
        "device_s": dict(result.device_s),
        "egress_bytes": dict(result.egress_bytes),
        "money": costs.money,
        "currency": simulation.currency,
        "energy_J": costs.energy_J,
        "unpriced": list(costs.unpriced),
        "code": int(result.code),
        "reason": result.reason,
        "events": [asdict(e) for e in result.events],
        "plan": plan_document(result.plans[0]),
        "plans": [plan_document(p) for p in result.plans],
    }
