"""`sim plan`: search a placement for a network, say what it costs and why, draw it.

Under `step_time` a job's step is planned as the coordinator would (`sim/step_plan.py`); under `dtfm` volumes
come as bytes and no model is known. Reads files and the clock on behalf of the pure searches.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from scheduler.bottleneck import bottleneck
from scheduler.bound import lower_bound_s
from scheduler.dtfm import PAPER_C_DP_BYTES, PAPER_C_PP_BYTES, DtfmObjective, Volumes
from scheduler.dtfm_blocks import search_any
from scheduler.encoding import places_of
from scheduler.explain_placement import bottleneck_device, bottleneck_hops, explain
from scheduler.gpus import ACHIEVABLE
from scheduler.reasons import reason_of
from scheduler.scenarios import NAMES, POSITIONS, scenario
from scheduler.search import SearchOptions, SearchResult
from scheduler.topology import Topology, TopologyError
from scheduler.units import duration
from sim import inputs as i
from sim.placed import Placed, placed_by, placed_of
from sim.plot import draw_placement
from sim.refusing import refuse
from sim.spread import HERE, spread
from sim.step_plan import StepPlanned, plan_step
from sim.topology_file import Positions, read_topology


@dataclass(frozen=True, slots=True)
class Planned:
    """What the command found, before it is printed."""

    topology: Topology
    positions: Positions
    objective: DtfmObjective
    result: SearchResult
    lower_bound_s: float
    reasons: tuple[str, ...]
    elapsed_s: float

    def document(self) -> dict[str, Any]:
        """The JSON that `--json` prints. The cost follows from `stages` and the matrices alone."""
        return {
            "objective": "dtfm",
            "cost_s": self.result.placement.cost_s,
            "lower_bound_s": self.lower_bound_s,
            "stages": [list(stage) for stage in self.result.placement.stages],
            "layers_per_stage": [],
            "elapsed_s": self.elapsed_s,
            "evaluations": self.result.evaluations,
            "explain": list(self.reasons),
        }


def shape_of(n_devices: int, stages: int | None, replicas: int | None) -> tuple[int, int]:
    """(stages, replicas) for all devices. What is not given follows; neither: the squarest, stages first."""
    for name, value in (("--stages", stages), ("--replicas", replicas)):
        if value is not None and value < 1:
            raise TopologyError(f"{name}: found {value}, required 1 or more")
    if stages is None and replicas is None:
        divisors = [r for r in range(1, n_devices + 1) if n_devices % r == 0 and r * r <= n_devices]
        return n_devices // divisors[-1], divisors[-1]
    given = stages or replicas or 1
    if stages is not None and replicas is not None:
        return stages, replicas
    if n_devices % given:
        raise TopologyError(f"found {given} for {n_devices} devices; required a divisor of {n_devices}")
    return (given, n_devices // given) if stages is not None else (n_devices // given, given)


def make_plan(
    topology: Topology,
    positions: Positions,
    stages: int | None = None,
    replicas: int | None = None,
    volumes: Volumes | None = None,
    seed: int = 0,
    budget_s: float | None = None,
    options: SearchOptions | None = None,
    processes: int = 1,
    ray: str | None = None,
) -> Planned:
    """Search and explain. A budget ends the search between generations; else the seed alone decides."""
    began = time.monotonic()

    def over() -> bool:
        return budget_s is not None and time.monotonic() - began >= 0.8 * budget_s

    objective = DtfmObjective(topology, *shape_of(len(topology), stages, replicas), volumes)
    floor = lower_bound_s(objective)
    places = places_of(topology, objective)
    if budget_s is not None:  # shorter generations, so that the budget is met more closely
        options = replace(options or SearchOptions(), generations=20, exchange_every=7)
    with spread(processes, ray) as map_tasks:
        result = search_any(objective, places, seed, options, map_tasks, over, floor)
    reasons = explain(topology, objective, result)
    return Planned(topology, positions, objective, result, floor, reasons, time.monotonic() - began)


def plan(
    scenario_name: Annotated[
        str | None, typer.Option("--scenario", help=f"A network of DT-FM: {', '.join(NAMES)}, or 1 to 5.")
    ] = None,
    topology_file: Annotated[
        Path | None, typer.Option("--topology", help="A link-trace/1 csv, or JSON of devices and matrices.")
    ] = None,
    objective: Annotated[
        str,
        typer.Option(help="What a plan costs: step_time (default with --job or --model), or dtfm."),
    ] = "",
    job: i.JobFile = None,
    model: i.Model = None,
    batch: Annotated[
        int, typer.Option("--batch", "--global-batch", help="With --model: samples of a step.")
    ] = 1024,
    micro_batch: i.MicroBatch = 1,
    sequence: Annotated[
        int, typer.Option("--sequence", "--sequence-length", help="With --model: tokens of a sample.")
    ] = 2048,
    gpu: i.Gpu = None,
    precision: i.PrecisionOption = "fp16",
    efficiency: i.Efficiency = ACHIEVABLE,
    stages: Annotated[
        int | None,
        typer.Option(help="Pipeline stages; default: the best, under dtfm as square as can be."),
    ] = None,
    replicas: Annotated[int | None, typer.Option(help="Replicas of each stage.")] = None,
    c_pp_bytes: Annotated[
        float, typer.Option(help="Activation bytes a step over a stage boundary of one pipeline.")
    ] = PAPER_C_PP_BYTES,
    c_dp_bytes: Annotated[float, typer.Option(help="Gradient bytes of a stage.")] = PAPER_C_DP_BYTES,
    variant: Annotated[
        str, typer.Option(help="Which of the authors' figures: scheduler or traffic_control.")
    ] = "scheduler",
    devices: Annotated[int, typer.Option(help="Devices of the scenario, in its proportions.")] = 64,
    seed: Annotated[int, typer.Option(help="Same seed, same plan.")] = 0,
    budget: Annotated[
        float | None, typer.Option(help="Seconds after which the best so far is taken.")
    ] = None,
    evaluations: Annotated[
        int | None, typer.Option(help="Placements to judge, about; by default what takes some seconds.")
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes to search with; the plan stays the same.")
    ] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            help=f"Search over a Ray cluster: its address, auto or {HERE}; the plan stays the same."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the placement into this file (png, svg, pdf).")
    ] = None,
) -> None:
    """Find the placement of pipeline stages and replicas that costs least on a network, and say why."""
    try:
        objective = objective or ("dtfm" if job is None and model is None else "step_time")
        if objective not in ("dtfm", "step_time"):
            raise TopologyError(f"--objective: found {objective!r}, required step_time or dtfm")
        if objective == "dtfm" and (job is not None or model is not None):
            raise TopologyError("--objective dtfm knows volumes, no model; leave --job and --model out")
        if (scenario_name is None) == (topology_file is None):
            raise TopologyError("required exactly one of --scenario NAME and --topology FILE")
        if budget is not None and not budget > 0:
            raise TopologyError(f"--budget: found {budget}, required more than 0 seconds")
        if topology_file is not None:
            read = read_topology(topology_file)
            topology, positions = read.topology, read.positions
        else:
            topology = scenario(scenario_name or "", variant, devices)
            positions = {r: POSITIONS[r] for r in {d.region for d in topology.devices} if r in POSITIONS}
        found: Planned | StepPlanned
        if objective == "step_time":
            gpus = i.read_gpus(gpu, precision, efficiency)
            topology = _with_memory(topology, gpus)
            sizes = i.JobInput(job, model, sequence, batch, micro_batch, stages=stages, replicas=replicas)
            spec = i.read_job(sizes)
            work = i.read_work(spec, topology.devices, gpus)
            found = plan_step(spec, work, topology, seed, budget, evaluations, processes, ray)
        else:
            options = SearchOptions() if evaluations is None else SearchOptions(evaluations=evaluations)
            volumes = Volumes(c_dp_bytes, c_pp_bytes)
            found = make_plan(
                topology, positions, stages, replicas, volumes, seed, budget, options, processes, ray
            )
    except ValueError as e:  # TopologyError is one
        refuse("sim plan", e)
    if plot is not None:
        try:
            draw_placement(plot, *_picture(found, positions))
        except (OSError, ValueError) as e:
            refuse("sim plan", i.InputError(f"--plot {plot}: {reason_of(e)}"))
    if as_json:
        typer.echo(json.dumps(found.document()))
    else:
        typer.echo(found.report() if isinstance(found, StepPlanned) else _report(found))
        if plot is not None:
            typer.echo(f"- drawn: {plot}")


def _with_memory(topology: Topology, gpus: i.Gpus) -> Topology:
    """What the file does not say of a device's memory is its accelerator's."""
    known = tuple(
        replace(d, memory_bytes=d.memory_bytes or gpus.of(d).memory_bytes) for d in topology.devices
    )
    return replace(topology, devices=known)


def _picture(found: Planned | StepPlanned, positions: Positions) -> tuple[Placed, str]:
    """What `draw_placement` takes: who stands where, and a title."""
    if isinstance(found, StepPlanned):
        plan = found.plan
        regions = {d.name: d.region for d in found.topology.devices}
        title = (
            f"{plan.n_stages} stages x {plan.n_replicas} replicas: {duration(plan.predicted_step_s)} a step "
            f"(at least {duration(found.lower_bound_s)})"
        )
        placed = placed_by(plan, found.timeline, regions, positions)
        worst = bottleneck(plan, found.work.model, found.work.profiles, found.topology)
        return replace(placed, waits={worst.link: worst.link_s} if worst.link else {}), title
    placement = found.result.placement
    title = f"{placement.cost_s:.2f} s a step in communication (at least {found.lower_bound_s:.2f})"
    slowest = bottleneck_device(found.objective, placement)[1] if found.objective.n_replicas > 1 else None
    hops = bottleneck_hops(found.objective, placement)
    return placed_of(found.topology, placement.stages, hops, slowest, found.positions), title


def _report(found: Planned) -> str:
    names = [d.name for d in found.topology.devices]
    width = max(len(n) for n in names)
    rows = ["stage   " + "".join(f"{s:<{width + 2}}" for s in range(found.objective.n_stages))]
    rows += [
        f"rep {r:<4}" + "".join(f"{names[s[r]]:<{width + 2}}" for s in found.result.placement.stages)
        for r in range(found.objective.n_replicas)
    ]
    lines = [*(row.rstrip() for row in rows), "", *(f"- {reason}" for reason in found.reasons)]
    lines.append(f"- {found.result.evaluations} placements judged in {found.elapsed_s:.1f} s")
    return "\n".join(lines)
