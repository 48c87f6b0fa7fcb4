"""`sim run`: steps of a job on a network, as the plan, the trace and the faults will have them.

Reads files on behalf of the pure core and shows what it finds; decides nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress

from scheduler.describe import describe
from scheduler.exit_codes import ExitCode
from scheduler.gpus import ACHIEVABLE
from scheduler.job import JobSpec
from scheduler.plan import Plan
from scheduler.plan_text import plan_document
from scheduler.planner import make_plan
from scheduler.timeline import Timeline, use_by_rank
from scheduler.topology import Topology
from scheduler.units import count, duration, size
from sim import inputs as i
from sim.codec_curve import CODECS, throughput
from sim.fault_script import read_faults
from sim.faults import Faults
from sim.network import NetworkOverTime
from sim.plan_file import read_plan
from sim.prices import Bill, Prices, bill, read_prices
from sim.replay import Work, require_devices
from sim.run import Planner, RunOptions, RunResult, simulate_run
from sim.run_report import write_report

DAY_S = 86400.0


def planner_of(job: JobSpec, work: Work) -> Planner:
    """Plans as the coordinator does, for whoever is there."""

    def planner(topology: Topology, names: Sequence[str], version: int) -> Plan:
        profiles = [p for p in work.profiles if p.device in set(names)]
        there = topology.subset([topology.index(p.device) for p in profiles])
        return make_plan(job, work.model, profiles, there, version, work.codecs)

    return planner


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
    codec: i.Codec = "identity",
    gradient_codec: i.GradientCodec = "identity",
    plan_file: Annotated[
        Path | None, typer.Option("--plan", help="A plan to replay (JSON); default: one is made.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps to run.")] = 1,
    faults_file: Annotated[
        Path | None, typer.Option("--faults", help="A script of faults (YAML), or a rate of them.")
    ] = None,
    prices_file: Annotated[
        Path | None, typer.Option("--prices", help="Prices of device-hours and egress, watts (YAML).")
    ] = None,
    save_every: Annotated[int, typer.Option(min=0, help="Steps between checkpoints.")] = 50,
    restart_s: Annotated[float, typer.Option(min=0, help="Seconds from a loss to the next step.")] = 60.0,
    replan_every: Annotated[
        int, typer.Option(min=0, help="Steps after which a new plan is tried; 0: only after losses.")
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
    console = Console(stderr=True)
    try:
        gpus = i.read_gpus(gpu, precision, efficiency)
        read = i.read_network(
            i.NetworkInput(
                scenario, variant, devices, trace, topology, delay, cap_mbps, window_bytes, card_mbps, seed
            ),
            gpus,
        )
        spec = i.read_job(
            i.JobInput(
                job, model, sequence_length, global_batch, micro_batch, schedule, stages, replicas, streams
            )
        )
        network = read.network
        work = i.read_work(spec, network.devices, gpus, codec, gradient_codec)
        prices = read_prices(prices_file) if prices_file else Prices()
        planner = planner_of(spec, work)
        names = [d.name for d in network.devices]
        if plan_file is not None:
            plan = read_plan(plan_file)
            require_devices(plan, network)
        else:
            with console.status("planning"):
                plan = planner(network.topology(start_s), names, 1)
        faults = Faults()
        if faults_file is not None:
            regions = list(dict.fromkeys(d.region for d in network.devices))
            horizon_s = start_s + max(10 * steps * plan.predicted_step_s, DAY_S)
            faults = read_faults(faults_file, names, regions, horizon_s, np.random.default_rng(seed))
        options = RunOptions(
            steps,
            spec.global_batch * spec.sequence_length,
            start_s,
            save_every,
            restart_s,
            replan_every,
        )
        with Progress(console=console, transient=True, disable=steps == 1) as bar:
            task = bar.add_task("steps", total=steps)
            result = simulate_run(
                work, network, plan, options, planner, faults, lambda done: bar.update(task, completed=done)
            )
    except ValueError as e:  # every error of the core and of the inputs is one
        typer.echo(f"sim run: {e}", err=True)
        raise typer.Exit(int(ExitCode.USAGE)) from e
    costs = bill(prices, network.devices, result.device_s, result.egress_bytes)
    if report_dir is not None:
        works = [(name, i.read_work(spec, network.devices, gpus, a, g)) for name, a, g in CODECS]
        curves = throughput(result.plans[0], works, network.topology(start_s), options.tokens_a_step)
        shown = figures(result, costs, prices.currency)
        typer.echo(f"report: {write_report(report_dir, read, result, shown, curves)}", err=True)
    if as_json:
        typer.echo(json.dumps(document(result, costs, prices.currency)))
    else:
        typer.echo(report(result, work, network, costs, prices.currency))
    raise typer.Exit(int(result.code))


def document(result: RunResult, costs: Bill, currency: str) -> dict[str, Any]:
    """What `--json` prints. Times in s, sizes in bytes."""
    step_s = [s.duration_s for s in result.steps]
    return {
        "total_s": result.total_s,
        "steps": [asdict(s) for s in result.steps],
        "median_step_s": float(np.median(step_s)) if step_s else None,
        "tokens": result.tokens,
        "tokens_per_s": result.tokens_per_s,
        "restarts": result.restarts,
        "steps_lost": result.steps_lost,
        "device_s": dict(result.device_s),
        "egress_bytes": dict(result.egress_bytes),
        "money": costs.money,
        "currency": currency,
        "energy_J": costs.energy_J,
        "unpriced": list(costs.unpriced),
        "code": int(result.code),
        "reason": result.reason,
        "events": [asdict(e) for e in result.events],
        "plan": plan_document(result.plans[0]),
        "plans": [plan_document(p) for p in result.plans],
    }


def report(result: RunResult, work: Work, network: NetworkOverTime, costs: Bill, currency: str) -> str:
    """For a person: the plan, where a step's time goes, what happened, the totals."""
    links = network.topology(result.start_s)
    lines = [describe(result.plans[0], work.model, links, work.profiles, work.codecs), ""]
    if result.timelines:
        lines.append(first_step(result.timelines[0]))
    lines += [f"at {duration(e.at_s)}: {e.text}" for e in result.events]
    lines += [f"{name}: {value}" for name, value in figures(result, costs, currency)]
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


def figures(result: RunResult, costs: Bill, currency: str) -> list[tuple[str, str]]:
    """(what, how much with its unit), of the whole run."""
    found = []
    step_s = [s.duration_s for s in result.steps]
    if step_s:
        spread = (
            f"median {duration(float(np.median(step_s)))}, {duration(min(step_s))} to {duration(max(step_s))}"
        )
        found.append((count(len(step_s), "step"), spread))
    found.append(("total", duration(result.total_s)))
    found.append(("tokens a second", f"{result.tokens_per_s:,.0f}"))
    if result.restarts:
        found.append((count(result.restarts, "restart"), f"{count(result.steps_lost, 'step')} done again"))
    found.append(("between regions", size(sum(result.egress_bytes.values()))))
    if costs.money is not None:
        known = (("devices", costs.devices), ("egress", costs.egress))
        parts = ", ".join(f"{name} {x:,.2f}" for name, x in known if x is not None)
        found.append(("cost", f"{costs.money:,.2f} {currency} ({parts})"))
    if costs.energy_J is not None:
        found.append(("energy", f"{costs.energy_J / 3.6e6:,.2f} kWh"))
    if costs.unpriced:
        found.append(("without a price", ", ".join(costs.unpriced)))
    return found
