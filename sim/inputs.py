"""What simulating commands are told: a network, a job, devices; read from options, checked, and made objects.

The options' declarations are here once, for every command that takes them. Each `read_*` raises a
ValueError (its subclasses) that names the option, what was found and what is required.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_args

import typer
import yaml

from scheduler.analytic import accelerator_profile, device_profile, model_profile
from scheduler.combinations import BYTE_VOCAB
from scheduler.gpus import ACCELERATORS, ACHIEVABLE, Accelerator, Precision, accelerator
from scheduler.job import JobError, JobSpec, job_from_json, job_to_json, parse_job
from scheduler.presets import PRESETS
from scheduler.profile import DeviceProfile, ModelProfile
from scheduler.reasons import reason_of
from scheduler.scenarios import NAMES, POSITIONS, scenario
from scheduler.topology import Device, Topology
from scheduler.units import MBIT_BPS
from scheduler.visits import Visits
from sim.network import Conventions, NetworkOverTime, StillNetwork, TraceNetwork, devices_of
from sim.replay import Work
from sim.topology_file import Positions, read_topology
from sim.trace import load

T = TypeVar("T")


class InputError(ValueError):
    """Options that do not go together or name nothing: says what was found and what is required."""


class OptionsError(JobError):
    """A job that no file has and that cannot be: what was said on the command line, or by a script."""


# ---- options, as every command declares them

Scenario = Annotated[
    str | None, typer.Option("--scenario", help=f"A network of DT-FM: {', '.join(NAMES)}, or 1 to 5.")
]
Variant = Annotated[str, typer.Option(help="Which of the authors' figures: scheduler or traffic_control.")]
Devices = Annotated[int, typer.Option(help="Devices of the scenario, in its proportions.")]
TraceName = Annotated[
    str | None, typer.Option("--trace", help="A recorded network: a shipped trace's name, or a file.")
]
TopologyPath = Annotated[
    Path | None, typer.Option("--topology", help="A network measured once: JSON of devices and matrices.")
]
Delay = Annotated[
    str,
    typer.Option(
        help="One-way delay of a recorded one: paper (all of it, as DT-FM), physical (half a round trip); "
        "default: as the trace says, for a scenario paper."
    ),
]
CapMbps = Annotated[
    float, typer.Option(min=0, help="What a recorded link carries at most, Mbit/s; 0: what was recorded.")
]
WindowBytes = Annotated[float, typer.Option(min=0, help="Window of one flow, in bytes; 0: none.")]
CardMbps = Annotated[
    float, typer.Option(min=0, help="What a device's network card carries, each way, Mbit/s; 0: no limit.")
]
EgressMbps = Annotated[
    float, typer.Option(min=0, help="What a region sends to others at most, Mbit/s; 0: no limit.")
]
Start = Annotated[float, typer.Option(min=0, help="Moment of the trace at which the run begins, in s.")]
JobFile = Annotated[Path | None, typer.Option("--job", help="A job file: model, batch, schedule.")]
Model = Annotated[
    str | None, typer.Option("--model", help=f"A preset instead of a job: {', '.join(PRESETS)}.")
]
SequenceLength = Annotated[int, typer.Option(help="With --model: tokens of a sample.")]
GlobalBatch = Annotated[int, typer.Option(help="With --model: samples of a step.")]
MicroBatch = Annotated[int, typer.Option(help="With --model: samples of a micro-batch.")]
Gpu = Annotated[
    list[str] | None,
    typer.Option(
        "--gpu", help=f"What devices are: NAME, or REGION=NAME, repeated. Known: {', '.join(ACCELERATORS)}."
    ),
]
PrecisionOption = Annotated[
    str, typer.Option("--precision", help="Of products and of what is sent: fp16, bf16, tf32, fp32.")
]
Efficiency = Annotated[float, typer.Option(help="Share of a device's peak that training reaches.")]
Streams = Annotated[int, typer.Option(min=0, help="Flows of each link; 0: as the job says.")]
Schedule = Annotated[str, typer.Option(help="Order within a pipeline: gpipe or 1f1b; default: the job's.")]
Stages = Annotated[int | None, typer.Option(min=1, help="Pipeline stages; default: the job's.")]
Replicas = Annotated[int | None, typer.Option(min=1, help="Replicas of each stage.")]
Codec = Annotated[
    str,
    typer.Option(
        help="Of activations and their gradients: identity, fp16, kbit:bits=4, auto; default: the job's."
    ),
]
GradientCodec = Annotated[str, typer.Option(help="Of weights' gradients between replicas; or the job's.")]
Seed = Annotated[int, typer.Option(help="Same seed, same result.")]


def chosen(kind: type[T], given: Mapping[str, Any]) -> T:
    """The dataclass `kind` from the command's options, which have its fields' names among others."""
    return kind(**{f.name: given[f.name] for f in fields(cast(Any, kind))})


# ---- a network


@dataclass(frozen=True)
class NetworkInput:
    """Exactly one of `scenario`, `trace` and `topology`."""

    scenario: str | None = None
    variant: str = "scheduler"
    devices: int = 64
    trace: str | None = None
    topology: Path | None = None
    delay: str = ""
    cap_mbps: float = 0.0
    window_bytes: float = 0.0
    card_mbps: float = 0.0
    egress_mbps: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class NetworkRead:
    """A network and where its regions lie on a map."""

    network: NetworkOverTime
    positions: Positions
    name: str


def read_network(given: NetworkInput, gpus: Gpus) -> NetworkRead:
    """The network, its devices with the memory and the cards they have."""
    if given.delay not in ("", "paper", "physical"):
        raise InputError(f"--delay: found {given.delay!r}, required paper or physical")
    named = [x for x in (given.scenario, given.trace, given.topology) if x is not None]
    if len(named) != 1:
        raise InputError(f"found {len(named)} of --scenario, --trace, --topology; required exactly one")

    def fitted(devices: Sequence[Device]) -> tuple[Device, ...]:
        card_Bps = given.card_mbps * MBIT_BPS
        return tuple(
            replace(
                d,
                memory_bytes=d.memory_bytes or gpus.of(d).memory_bytes,
                uplink_Bps=card_Bps or d.uplink_Bps,
                downlink_Bps=card_Bps or d.downlink_Bps,
            )
            for d in devices
        )

    def ways_out(devices: Sequence[Device], known: Mapping[str, float]) -> Mapping[str, float]:
        """The option's for every region; without it what is known."""
        if not given.egress_mbps:
            return known
        return dict.fromkeys((d.region for d in devices if d.region), given.egress_mbps * MBIT_BPS)

    if given.trace is not None:
        trace = load(given.trace)
        delay: Literal["", "paper", "physical"] = given.delay  # type: ignore[assignment]  # checked above
        conventions = Conventions(delay, given.cap_mbps * MBIT_BPS, given.window_bytes, given.seed)
        devices = fitted(devices_of(trace))
        network = TraceNetwork(trace, devices, conventions, ways_out(devices, {}))
        return NetworkRead(network, trace.positions, trace.name)
    if given.scenario is not None:
        factor = 0.5 if given.delay == "physical" else 1.0
        still = scenario(given.scenario, given.variant, given.devices, factor)
        positions = {r: POSITIONS[r] for r in {d.region for d in still.devices} if r in POSITIONS}
        name = given.scenario
    else:
        assert given.topology is not None
        read = read_topology(given.topology)
        still, positions, name = read.topology, read.positions, given.topology.stem
    still = Topology(
        fitted(still.devices),
        still.latency_s,
        still.bandwidth_Bps,
        still.flow_Bps,
        ways_out(still.devices, still.egress_Bps),
    )
    return NetworkRead(StillNetwork(still), positions, name)


# ---- devices


@dataclass(frozen=True, slots=True)
class Gpus:
    """What devices are: one accelerator for all, others for some regions."""

    default: Accelerator
    by_region: dict[str, Accelerator]
    precision: Precision
    efficiency: float

    def of(self, device: Device) -> Accelerator:
        return self.by_region.get(device.region, self.default)


def read_gpus(given: Sequence[str] | None, precision: str, efficiency: float = ACHIEVABLE) -> Gpus:
    """`given`: NAME or REGION=NAME, each; the last NAME is everybody else's (default: v100)."""
    products = next((p for p in get_args(Precision) if p == precision), None)
    if products is None:
        raise InputError(
            f"--precision: found {precision!r}, required one of: {', '.join(get_args(Precision))}"
        )
    default, by_region = accelerator("v100"), {}
    for text in given or ():
        region, _, name = text.rpartition("=")
        if region:
            by_region[region] = accelerator(name)
        else:
            default = accelerator(name)
    for gpu in (default, *by_region.values()):
        gpu.achieved_flops(products, efficiency)  # refuses what it cannot do before anything is computed
    return Gpus(default, by_region, products, efficiency)


# ---- a job


@dataclass(frozen=True)
class JobInput:
    """Exactly one of `job` and `model`; the sizes are the model's."""

    job: Path | None = None
    model: str | None = None
    sequence_length: int = 2048
    global_batch: int = 1024
    micro_batch: int = 1
    schedule: str = ""
    stages: int | None = None
    replicas: int | None = None
    streams: int = 0
    codec: str = ""
    gradient_codec: str = ""


def read_job(given: JobInput) -> JobSpec:
    """The job, or a preset's with these sizes; schedule, shape, streams and codecs override what it says."""
    job = _base_job(given)
    if (given.stages is None) != (given.replicas is None):
        raise InputError("found one of --stages and --replicas, required both or neither")
    changes: dict[str, Any] = {}
    if given.stages is not None:
        shape = {"stages": given.stages, "replicas": given.replicas}
        asked = "batch" if job.parallelism == "auto" else job.parallelism.split
        changes["parallelism"] = shape if asked == "batch" else {**shape, "split": asked}
    if given.schedule:
        changes["schedule"] = {**job.schedule.model_dump(exclude_unset=True), "name": given.schedule}
    if given.streams:
        changes["streams"] = given.streams
    if given.codec or given.gradient_codec:
        compression = job.compression.model_dump(exclude_unset=True)
        if given.codec:
            compression |= dict.fromkeys(("activations", "gradients"), _codec(given.codec))
        if given.gradient_codec:
            compression["reduce"] = _codec(given.gradient_codec)
        changes["compression"] = compression
    if not changes:
        return job
    return _from_options(json.loads(job_to_json(job)) | changes, "the job with the command's options")


def _from_options(document: Mapping[str, Any], source: str) -> JobSpec:
    """A job that no file has: what cannot be is the command line's fault."""
    try:
        return job_from_json(json.dumps(document), source)
    except JobError as e:
        raise OptionsError(e.source, e.problems) from e


def _codec(text: str) -> dict[str, dict[str, Any]]:
    """`kbit:bits=4` as a job has it: {kbit: {bits: 4}}."""
    family, _, options = text.partition(":")
    pairs = (part.partition("=") for part in options.split(",") if part)
    return {family: {key: yaml.safe_load(value) for key, _, value in pairs}}


def _base_job(given: JobInput) -> JobSpec:
    if (given.job is None) == (given.model is None):
        raise InputError("required exactly one of --job FILE and --model PRESET")
    if given.job is not None:
        try:
            return parse_job(given.job.read_text(encoding="utf-8"), str(given.job))
        except (OSError, UnicodeDecodeError) as e:
            raise InputError(f"--job {given.job}: cannot be read: {reason_of(e)}") from e
    assert given.model is not None
    document: dict[str, Any] = {
        "name": given.model,
        "model": {"preset": given.model},
        "data": {"files": ["-"], "eval_samples": 0},
        "sequence_length": given.sequence_length,
        "global_batch": given.global_batch,
        "micro_batch": given.micro_batch,
        "steps": 1,
        "schedule": {"name": "auto", "warmup_extra": "auto"},  # nobody asked for an order: the plan has one
    }
    job = _from_options(document, "--model")
    return job.model_copy(update={"model": job.shape})


def read_work(job: JobSpec, devices: Sequence[Device], gpus: Gpus) -> Work:
    """What `job` costs on `devices` by its shape and their makers' figures: nothing is measured."""
    model = job.shape
    if model.vocab is None:
        if job.data.tokenizer != "bytes":
            raise InputError(
                "model.vocab: found none; required the tokenizer's size, as nothing is read here"
            )
        model = model.model_copy(update={"vocab": BYTE_VOCAB})
    dtype_bytes = 2 if gpus.precision in ("fp16", "bf16") else 4
    profile = model_profile(
        model, job.profiled_micro_batch, job.sequence_length, dtype_bytes, optimizer=job.optimizer
    )
    profile = replace(profile, visits=Visits(job.data.samples, job.steps * job.global_batch, job.steps))
    return Work(profile, tuple(_profile(profile, d, gpus) for d in devices))


def _profile(model: ModelProfile, device: Device, gpus: Gpus) -> DeviceProfile:
    gpu = gpus.of(device)
    if device.speed_flops > 0:  # the topology's file knows it
        return device_profile(model, device.name, device.speed_flops, gpu.memory_Bps)
    return accelerator_profile(model, device.name, gpu, gpus.precision, gpus.efficiency)
