"""A plan, as it travels."""

from __future__ import annotations

from itertools import chain

from compression.spec import CodecError, codec_spec
from protos import orchestrator_pb2 as pb
from scheduler.plan import Plan
from scheduler.plan_codecs import PlanCodecs

from .checked import (
    MAX_LAYERS,
    MAX_RANKS,
    ConvertError,
    at_most,
    finite,
)


def plan_to_message(plan: Plan) -> pb.PlanMsg:
    return pb.PlanMsg(
        version=plan.version,
        placement=[pb.Placement(device=row) for row in plan.placement],
        partition=[pb.Range(start=a, stop=b) for a, b in plan.partition],
        micro_batches=plan.micro_batches,
        schedule=plan.schedule,
        warmup_extra=plan.warmup_extra,
        micro_batch=plan.micro_batch,
        recompute=plan.recompute,
        streams=plan.streams,
        local_steps=plan.local_steps,
        split_sequence=plan.split == "sequence",
        shard_sizes=plan.shard_sizes,
        predicted_step_s=plan.predicted_step_s,
        reasons=plan.reasons,
        activation_codecs=chain(*plan.codecs.activation),
        gradient_codecs=chain(*plan.codecs.gradient),
        reduce_codecs=plan.codecs.reduce,
    )


def plan_from_message(m: pb.PlanMsg) -> Plan:
    """Raises ConvertError if placement, partition and micro-batches do not fit together."""
    at_most("plan.placement", len(m.placement), MAX_RANKS)
    at_most("plan.partition", len(m.partition), MAX_LAYERS)
    placement = tuple(tuple(row.device) for row in m.placement)
    partition = tuple((r.start, r.stop) for r in m.partition)
    if not partition or not placement:
        raise ConvertError("plan: found no stage or no replica, required one of each")
    for i, row in enumerate(placement):
        if len(row) != len(partition):
            raise ConvertError(
                f"plan.placement[{i}]: found {len(row)} devices, required {len(partition)}, one a stage"
            )
    expected = 0
    for i, (start, stop) in enumerate(partition):
        if start != expected or stop <= start:
            raise ConvertError(
                f"plan.partition[{i}]: found layers {start}..{stop}, required a range from {expected} on"
            )
        expected = stop
    if len(m.micro_batches) != len(placement):
        raise ConvertError(
            f"plan.micro_batches: found {len(m.micro_batches)}, required {len(placement)}, one a replica"
        )
    if m.micro_batch < 1:
        raise ConvertError("plan.micro_batch: found 0 samples, required 1 or more")
    if m.split_sequence and len(set(m.micro_batches)) > 1:
        found = ", ".join(map(str, sorted(set(m.micro_batches))))
        raise ConvertError(
            f"plan.micro_batches: found {found} of replicas that share every sequence; required one number"
        )
    parts = len(m.placement) if m.split_sequence else 0
    if m.shard_sizes and (len(m.shard_sizes) != parts or min(m.shard_sizes) < 1):
        raise ConvertError(
            f"plan.shard_sizes: found {len(m.shard_sizes)}, the least {min(m.shard_sizes)}; required none, or"
            " of replicas that share every sequence one each, 1 or more"
        )
    return Plan(
        version=m.version,
        placement=placement,
        partition=partition,
        micro_batches=tuple(m.micro_batches),
        schedule=m.schedule,
        warmup_extra=m.warmup_extra,
        micro_batch=m.micro_batch,
        recompute=m.recompute,
        streams=m.streams,
        local_steps=m.local_steps,
        split="sequence" if m.split_sequence else "batch",
        shard_sizes=tuple(m.shard_sizes),
        predicted_step_s=finite("plan.predicted_step_s", m.predicted_step_s),
        reasons=tuple(m.reasons),
        codecs=_codecs_from_message(m),
    )


def _codecs_from_message(m: pb.PlanMsg) -> PlanCodecs:
    """Raises ConvertError for a codec that cannot be, or one too many or few."""
    stages, replicas = len(m.partition), len(m.placement)
    for label, found, required, of in (
        ("activation_codecs", m.activation_codecs, replicas * (stages - 1), "boundary of each replica"),
        ("gradient_codecs", m.gradient_codecs, replicas * (stages - 1), "boundary of each replica"),
        ("reduce_codecs", m.reduce_codecs, stages, "stage"),
    ):
        if found and len(found) != required:
            raise ConvertError(f"plan.{label}: found {len(found)}; required {required}, one a {of}, or none")
        for name in set(found):
            try:
                codec_spec(name)
            except CodecError as e:
                raise ConvertError(f"plan.{label}: {e}") from e
    across, back = (
        tuple(tuple(names[r * (stages - 1) : (r + 1) * (stages - 1)]) for r in range(replicas))
        if names
        else ()
        for names in (m.activation_codecs, m.gradient_codecs)
    )
    return PlanCodecs(across, back, tuple(m.reduce_codecs))
