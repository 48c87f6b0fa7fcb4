"""`sim compare`: placements x codecs x schedules side by side, replayed by one engine on one network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from scheduler.cost import durations
from scheduler.gpus import ACHIEVABLE
from scheduler.job import JobSpec
from scheduler.tensor_parallel import all_reduce_bytes
from scheduler.timeline import bubble_fraction
from scheduler.traffic import traffic
from sim import inputs as i
from sim.comparison import Row, contents, document, table
from sim.contenders import NAMES, Contender, Field, contend, shape_for
from sim.network import NetworkOverTime
from sim.refusing import refuse
from sim.replay import replay_at
from sim.report import make_directory, write_report
from sim.spread import spread
from sim.tensor_network import TensorNetwork


@dataclass(frozen=True, slots=True)
class Task:
    """Everything that a row needs, to be sent to a process."""

    contender: str
    job: JobSpec
    network: NetworkOverTime
    gpus: i.Gpus
    start_s: float
    shape: tuple[int, int]
    seed: int


def row_of(task: Task) -> Row:
    """Let one contender plan, and replay its plan."""
    network = task.network
    work = i.read_work(task.job, network.devices, task.gpus)
    topology = network.topology(task.start_s)
    found = contend(task.contender, Field(task.job, work, topology, task.shape, task.seed))
    if found.plan is None:
        return Row(task.contender, *asked(task.job), "-", None, note=found.note, why=found.why_not)
    return _replayed(task, found)


def asked(job: JobSpec) -> tuple[str, str, str]:
    """Schedule, activations' codec and weights' gradients' codec of the job, for the table."""
    c = job.compression
    names = ["auto" if x.auto is not None else x.spec().name for x in (c.activations, c.reduce)]
    return job.schedule.name, names[0], names[1]


def _replayed(task: Task, found: Contender) -> Row:
    plan, work, t = found.plan, found.work, found.tensor
    assert plan is not None
    network: NetworkOverTime = task.network if t == 1 else TensorNetwork(task.network, t)
    timeline = replay_at(plan, work, network, task.start_s)
    costs = durations(plan, work.model, work.profiles, network.topology(task.start_s))
    return Row(
        task.contender,
        *asked(task.job),
        f"{plan.n_stages} x {plan.n_replicas}" + (f" x {t} tensor" if t > 1 else ""),
        (
            timeline.duration_s,
            task.job.global_batch * task.job.sequence_length / timeline.duration_s,
            bubble_fraction(timeline),
            sum(traffic(plan, costs).values()) + all_reduce_bytes(plan, work.model, t),
        ),
        found.note,
        plan=plan,
        timeline=timeline,
    )


def compare(
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
    streams: i.Streams = 0,
    gpu: i.Gpu = None,
    precision: i.PrecisionOption = "fp16",
    efficiency: i.Efficiency = ACHIEVABLE,
    placement: Annotated[
        list[str] | None, typer.Option(help=f"Repeated; default: all of {', '.join(NAMES)}.")
    ] = None,
    schedule: Annotated[list[str] | None, typer.Option(help="Repeated; default: the job's.")] = None,
    codec: Annotated[
        list[str] | None,
        typer.Option(help="Repeated: ACTIVATIONS or ACTIVATIONS/GRADIENTS, such as kbit:bits=4/kbit:bits=8."),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes; the result stays the same.")] = 1,
    seed: i.Seed = 0,
    report_dir: Annotated[
        Path | None, typer.Option("--report", help="Write a page of the comparison and its pictures here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Put placements, codecs and schedules side by side: the same job, network and engine for all."""
    options = {**locals(), "schedule": "", "codec": "", "gradient_codec": ""}
    try:
        if report_dir is not None:
            make_directory(report_dir)
        unknown = sorted(set(placement or ()) - set(NAMES))
        if unknown:
            raise i.InputError(
                f"--placement: found {', '.join(unknown)}, required some of: {', '.join(NAMES)}"
            )
        gpus = i.read_gpus(gpu, precision, efficiency)
        read = i.read_network(i.chosen(i.NetworkInput, options), gpus)
        shape = shape_for(len(read.network.devices), stages, replicas)
        given = i.chosen(i.JobInput, options)
        tasks = []
        for text, name in product(codec or [""], schedule or [""]):
            activations, _, gradients = text.partition("/")
            asked = replace(given, schedule=name, codec=activations, gradient_codec=gradients)
            spec = i.read_job(asked)
            i.read_work(spec, read.network.devices[:1], gpus)  # refused before anything is planned
            tasks += [Task(p, spec, read.network, gpus, start_s, shape, seed) for p in placement or NAMES]
        rows = rows_of(tasks, processes)
        if report_dir is not None:
            typer.echo(f"report: {write_report(report_dir, contents(read, rows))}", err=True)
    except ValueError as e:
        refuse("sim compare", e)
    if as_json:
        typer.echo(json.dumps({"network": read.name, "rows": [document(r) for r in rows]}))
    else:
        typer.echo(table(rows))


def rows_of(tasks: Sequence[Task], processes: int) -> list[Row]:
    """All rows, in the order of the tasks."""
    with spread(processes) as map_tasks, Progress(console=Console(stderr=True), transient=True) as bar:
        return list(bar.track(map_tasks(row_of, tasks), total=len(tasks), description="comparing"))
