"""For scripts: read a job, open a network, plan, simulate. Starts no process and needs no torch.

    job = load_job("jobs/demo.yaml")
    network = open_network(trace="four_cities", gpu="t4")
    found = plan(job, network)
    result = simulate(job, network, plan=found.plan, steps=20)

The same code as behind `sim plan` and `sim run`. A cluster of real processes is `deploy.api`. What is not
named here may change.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from scheduler.gpus import ACHIEVABLE
from scheduler.job import JobError, JobSpec
from scheduler.plan import Plan, PlanError
from scheduler.timeline import Span, Timeline
from scheduler.topology import Device, Topology
from sim.faults import Faults
from sim.inputs import (
    Gpus,
    InputError,
    JobInput,
    NetworkInput,
    NetworkRead,
    read_gpus,
    read_job,
    read_network,
    read_work,
)
from sim.presence import there_at_first
from sim.replay import Work
from sim.run import simulate_run
from sim.run_records import RunEvent, RunOptions, RunResult, StepDone
from sim.simulation import planner_of
from sim.step_plan import StepPlanned, plan_step

__all__ = [
    "Device",
    "Faults",
    "InputError",
    "JobError",
    "JobSpec",
    "Network",
    "Plan",
    "PlanError",
    "RunEvent",
    "RunResult",
    "Span",
    "StepDone",
    "StepPlanned",
    "Timeline",
    "Topology",
    "load_job",
    "open_network",
    "plan",
    "preset_job",
    "simulate",
]


@dataclass(frozen=True, slots=True)
class Network:
    """Devices and the links between them over time, as `open_network` made it."""

    read: NetworkRead
    gpus: Gpus

    @property
    def devices(self) -> tuple[Device, ...]:
        return self.read.network.devices

    def at(self, t_s: float = 0.0) -> Topology:
        """The links as they are `t_s` seconds into the recording: latencies in s, bandwidths in bytes/s."""
        return self.read.network.topology(t_s)

    def work(self, job: JobSpec) -> Work:
        """What `job` costs on each device, by its shape and the makers' figures. Raises InputError."""
        return read_work(job, self.devices, self.gpus)


def load_job(path: Path | str) -> JobSpec:
    """The job in a YAML file, checked, its model's preset resolved.

    Raises JobError, which names file, line, key, what was found and what is required; InputError for a file
    that cannot be read.
    """
    return read_job(JobInput(job=Path(path)))


def preset_job(
    model: str, *, sequence_length: int = 2048, global_batch: int = 1024, micro_batch: int = 1
) -> JobSpec:
    """A job for planning alone: a model of `scheduler.presets`, sizes in tokens and samples, no data.

    Raises JobError for an unknown preset, or sizes that do not go together.
    """
    sizes = JobInput(
        model=model, sequence_length=sequence_length, global_batch=global_batch, micro_batch=micro_batch
    )
    return read_job(sizes)


def open_network(
    *,
    trace: Path | str | None = None,
    scenario: str | None = None,
    topology: Path | str | None = None,
    devices: int = 64,
    gpu: str | tuple[str, ...] = "v100",
    precision: str = "fp16",
    efficiency: float = ACHIEVABLE,
    cap_mbps: float = 0.0,
    window_bytes: float = 0.0,
    card_mbps: float = 0.0,
    egress_mbps: float = 0.0,
    seed: int = 0,
) -> Network:
    """A network, and what its devices are: the options of `sim run`, by their names.

    Args:
        trace: a recorded network: a shipped trace's name (`sim traces list`) or a file; a run's own is
            `STATE/links.csv`.
        scenario: one of DT-FM's networks, with `devices` devices in its proportions.
        topology: a file of devices and matrices. Exactly one of the three.
        gpu: NAME for all devices, or (NAME, REGION=NAME, …).
        precision: of products and of what is sent: fp16, bf16, tf32, fp32.
        efficiency: share of the makers' flops that is reached.
        cap_mbps: what a recorded link carries at most, Mbit/s; 0: what was recorded.
        window_bytes: of one TCP flow; 0: none.
        card_mbps: what a device's network card carries each way, Mbit/s; 0: no limit.
        egress_mbps: what a region sends to others at most, Mbit/s; 0: no limit.
        seed: of jitter and losses.

    Raises:
        ValueError: (InputError, TraceError, TopologyError) what was found and what is required.
    """
    gpus = read_gpus((gpu,) if isinstance(gpu, str) else gpu, precision, efficiency)
    given = NetworkInput(
        scenario=scenario,
        devices=devices,
        trace=None if trace is None else str(trace),
        topology=None if topology is None else Path(topology),
        cap_mbps=cap_mbps,
        window_bytes=window_bytes,
        card_mbps=card_mbps,
        egress_mbps=egress_mbps,
        seed=seed,
    )
    return Network(read_network(given, gpus), gpus)


def plan(
    job: JobSpec,
    network: Network,
    *,
    at_s: float = 0.0,
    evaluations: int | None = None,
    budget_s: float | None = None,
    processes: int = 1,
) -> StepPlanned:
    """The placement of `job` with the shortest predicted step on the links as they are at `at_s`.

    The coordinator's search. The job's seed decides, and neither the clock nor `processes`, unless `budget_s`
    ends the search early. `found.plan` is the plan, `found.plan.reasons` why, `found.timeline` its step.

    Raises PlanError, with what to do, where the job does not fit.
    """
    work, links = network.work(job), network.at(at_s)
    return plan_step(job, work, links, job.seed, budget_s, evaluations, processes)


def simulate(
    job: JobSpec,
    network: Network,
    *,
    steps: int = 1,
    plan: Plan | None = None,
    faults: Faults = Faults(),
    start_s: float = 0.0,
    save_every: int = 50,
    replan_every: int = 0,
) -> RunResult:
    """`steps` steps of `job`, the links as they were recorded from `start_s` on.

    `plan`: the one to begin with; None: one is made for the links of that moment. `save_every`: steps between
    checkpoints. `replan_every`: steps after which another plan is considered; 0: when devices come or go.
    A run that cannot go on ends with `result.code` and `result.reason`, as a real one does. Raises PlanError
    for a plan of other devices.
    """
    work, links = network.work(job), network.read.network
    planner = planner_of(job, work)
    options = replace(
        RunOptions.of(job, steps), start_s=start_s, save_every=save_every, replan_every=replan_every
    )
    there = there_at_first(network.devices, faults, start_s, options.measure_s)
    first = plan or planner(network.at(start_s), there, 1)
    return simulate_run(work, links, first, options, planner, faults)
