"""`sim run`: steps of a job on a network, as the plan, the trace and the faults will have them.

Reads files on behalf of the pure core and shows what it finds; decides nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress

from scheduler.describe import describe
from scheduler.exit_codes import ExitCode
from scheduler.gpus import ACHIEVABLE
from scheduler.timeline import Timeline, use_by_rank
from scheduler.units import count, duration, size
from sim import inputs as i
from sim.codec_curve import throughput
from sim.refusing import refuse
from sim.report import make_directory
from sim.run_report import write_report
from sim.simulation import Settings, Simulation, document, simulate


def run(
    scenario: i.Scenario = None,
    variant: i.Variant = "scheduler",
    devices: i.Devices = 64,
    trace: i.TraceName = None,
    topology: i.TopologyPath = None,
    delay: i.Delay = "",
    cap_mbps: i.CapMbps = 0.0,
    window_bytes: i.WindowBytes = 0.0,
    card_mbps: i.CardMbps = 0.0,
    egress_mbps: i.EgressMbps = 0.0,
    start_s: i.Start = 0.0,
    job: i.JobFile = None,
    model: i.Model = None,
    sequence_length: i.SequenceLength = 2048,
    global_batch: i.GlobalBatch = 1024,
    micro_batch: i.MicroBatch = 1,
    stages: i.Stages = None,
    replicas: i.Replicas = None,
    schedule: i.Schedule = "",
    streams: i.Streams = 0,
    gpu: i.Gpu = None,
    precision: i.PrecisionOption = "fp16",
    efficiency: i.Efficiency = ACHIEVABLE,
    codec: i.Codec = "",
    gradient_codec: i.GradientCodec = "",
    objective: Annotated[
        str,
        typer.Option(help="What a plan is chosen by: step (predicted step time) or dtfm (DT-FM's)."),
    ] = "step",
    plan: Annotated[Path | None, typer.Option(help="A plan to replay (JSON); default: one is made.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps to run.")] = 1,
    faults: Annotated[Path | None, typer.Option(help="A script of faults (YAML), or a rate of them.")] = None,
    prices: Annotated[
        Path | None, typer.Option(help="Prices of device-hours and egress, watts (YAML).")
    ] = None,
    save_every: Annotated[int, typer.Option(min=0, help="Steps between checkpoints.")] = 50,
    settle_s: Annotated[
        float, typer.Option(min=0, help="Seconds from a loss to the next step, beside the layers' way.")
    ] = 5.0,
    restart_s: Annotated[
        float, typer.Option(min=0, help="The same where layers come from the checkpoint.")
    ] = 60.0,
    measure_s: Annotated[
        float, typer.Option(min=0, help="Seconds from a device's coming until plans count on it.")
    ] = 30.0,
    wait_for_workers: Annotated[
        float, typer.Option(min=0, help="Seconds that a run which cannot go on waits for devices.")
    ] = 300.0,
    replan_every: Annotated[
        int, typer.Option(min=0, help="Steps after which a new plan is tried; 0: when devices come or go.")
    ] = 0,
    seed: i.Seed = 0,
    report_dir: Annotated[
        Path | None,
        typer.Option(
            "--report", help="Write a page of the run, its pictures and its first step's trace here."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Simulate steps of a job on a network: how long they take, why, and what they cost."""
    settings = i.chosen(Settings, {**locals(), "gpu": tuple(gpu or ())})
    try:
        if report_dir is not None:
            make_directory(report_dir)
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("planning", total=None)
            found = simulate(
                settings,
                lambda _: bar.update(task, description="steps", total=steps, completed=0),
                lambda done: bar.update(task, completed=done),
            )
        if report_dir is not None:
            links = found.read.network.topology(start_s)
            curves = throughput(found.result.plans[0], found.work, links, found.tokens_a_step)
            page = write_report(report_dir, found.read, found.result, figures(found), curves)
            typer.echo(f"report: {page}", err=True)
    except ValueError as e:  # every error of the core and of the inputs is one
        refuse("sim run", e)
    typer.echo(json.dumps(document(found)) if as_json else report(found))
    raise typer.Exit(int(found.result.code))


def report(found: Simulation) -> str:
    """For a person: the plan, where a step's time goes, what happened, the totals."""
    result, work = found.result, found.work
    links = found.read.network.topology(result.start_s)
    lines = [describe(result.plans[0], work.model, links, work.profiles), ""]
    if result.timelines:
        lines.append(first_step(result.timelines[0]))
    lines += [f"at {duration(e.at_s)}: {e.text}" for e in result.events]
    lines += [f"{name}: {value}" for name, value in figures(found)]
    if result.code is not ExitCode.OK:
        lines.append(f"ended: {result.code.name}: {result.reason}")
    return "\n".join(lines)


def first_step(timeline: Timeline) -> str:
    """Where the devices' time goes."""
    uses = use_by_rank(timeline)
    whole_s = max(timeline.duration_s, 1e-12) * timeline.n_ranks
    busy, wait, reduce, idle = (
        sum(getattr(u, name) for u in uses) / whole_s for name in ("busy_s", "wait_s", "reduce_s", "idle_s")
    )
    return (
        f"first step: {duration(timeline.duration_s)}; of the devices' time {busy:.0%} computing, "
        f"{wait:.0%} waiting, {reduce:.0%} reducing, {idle:.0%} done early"
    )


def figures(simulation: Simulation) -> list[tuple[str, str]]:
    """(what, how much with its unit), of the whole run."""
    result, costs = simulation.result, simulation.costs
    found = []
    step_s = [s.duration_s for s in result.steps]
    if step_s:
        spread = (
            f"median {duration(float(np.median(step_s)))}, {duration(min(step_s))} to {duration(max(step_s))}"
        )
        found.append((count(len(step_s), "step"), spread))
    found.append(("total", duration(result.total_s)))
    found.append(("tokens a second", f"{result.tokens_per_s:,.0f}"))
    if result.recoveries:
        how = f"{result.restarts} from a checkpoint, {count(result.steps_lost, 'step')} done again"
        found.append((count(result.recoveries, "interruption"), how))
    if result.moves:
        found.append(("moved to a better plan", count(result.moves, "time")))
    found.append(("between regions", size(sum(result.egress_bytes.values()))))
    if costs.money is not None:
        known = (("devices", costs.devices), ("egress", costs.egress))
        parts = ", ".join(f"{name} {x:,.2f}" for name, x in known if x is not None)
        found.append(("cost", f"{costs.money:,.2f} {simulation.currency} ({parts})"))
    if costs.energy_J is not None:
        found.append(("energy", f"{costs.energy_J / 3.6e6:,.2f} kWh"))
    if costs.unpriced:
        found.append(("without a price", ", ".join(costs.unpriced)))
    return found
