"""What codecs keep from step to step, counted as memory: AC-SGD's buffers and residuals of error feedback.

They lie in the host's memory, so they count where that is the device's: on devices that compute on their
host's cores. While plans are searched the most that any boundary and replica may need counts everywhere;
of a plan, what each rank needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from compression.spec import AcsgdSpec, codec_spec
from scheduler.cost import stage_memory
from scheduler.job import JobSpec
from scheduler.ladders import ladder
from scheduler.plan import Plan
from scheduler.profile import ModelProfile
from scheduler.topology import Topology
from scheduler.visits import UNKNOWN

WITH_RESIDUALS = ("feedback", "topk", "momentum")


def may_remember_samples(job: JobSpec, model: ModelProfile) -> bool:
    """Whether some boundary may have AC-SGD, whose bytes depend on how many replicas share the samples."""
    shape = (model.micro_batch, model.sequence_length, job.shape.hidden)
    return any(isinstance(codec_spec(name), AcsgdSpec) for _, name in _may_use(job, model, shape))


def without_choosing_it(job: JobSpec, model: ModelProfile) -> ModelProfile | None:
    """`model` as an `auto` sees it that may not choose AC-SGD; None where none may or the job asks for it."""
    shape = (model.micro_batch, model.sequence_length, job.shape.hidden)
    chosen = asked = False
    for _, kind, choice in job.compression.choices():
        if choice.auto is None:
            asked |= isinstance(choice.spec(), AcsgdSpec)
        else:
            rungs = ladder(kind, choice.auto, shape, model.value_bytes, model.visits)
            chosen |= any(isinstance(codec_spec(name), AcsgdSpec) for name in rungs)
    return replace(model, visits=UNKNOWN, buffer_bytes=0) if chosen and not asked else None


def remembering(job: JobSpec, model: ModelProfile, topology: Topology) -> ModelProfile:
    """`model` with the most that the job's codecs may keep on these devices."""
    if not any(d.host_cores for d in topology.devices):
        return model
    shape = (model.micro_batch, model.sequence_length, job.shape.hidden)
    kept, residuals = 0, False
    for kind, name in _may_use(job, model, shape):
        spec = codec_spec(name)
        if isinstance(spec, AcsgdSpec):
            kept = max(kept, model.visits.buffer_bytes(spec, shape, 1))
        residuals |= kind == "reduce" and name.partition(":")[0] in WITH_RESIDUALS
    return replace(model, buffer_bytes=kept, keeps_residuals=residuals)


def _may_use(job: JobSpec, model: ModelProfile, shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
    for _, kind, choice in job.compression.choices():
        if choice.auto is None:
            yield kind, choice.spec().name
        else:
            for name in ladder(kind, choice.auto, shape, model.value_bytes, model.visits):
                yield kind, name


def kept_bytes(plan: Plan, rank: int, model: ModelProfile, topology: Topology) -> int:
    """What `rank` needs of its device's memory for what its codecs keep."""
    device = next(d for d in topology.devices if d.name == plan.device(rank))
    if not device.host_cores:
        return 0
    stage, replica = plan.stage_of(rank), plan.replica_of(rank)
    kept = 0
    for boundary in (stage - 1, stage):
        if not 0 <= boundary < plan.n_stages - 1:
            continue
        spec = codec_spec(plan.codecs.of_boundary("activation", replica, boundary))
        if isinstance(spec, AcsgdSpec):
            values = model.layers[plan.partition[boundary][1] - 1].boundary_bytes // model.value_bytes
            width = values // (model.micro_batch * model.sequence_length)
            shape = (model.micro_batch, model.sequence_length, width)
            kept += model.visits.buffer_bytes(spec, shape, plan.batch_shares)
    if plan.n_replicas > 1 and plan.codecs.of_stage(stage).partition(":")[0] in WITH_RESIDUALS:
        kept += stage_memory(model, *plan.partition[stage]).parameter_bytes
    return kept
