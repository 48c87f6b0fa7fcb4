"""Dataclass <-> message: the only place that knows both.

Reads only what it was sent: sizes are capped and values checked before anything is built, and
a message that cannot be becomes a ConvertError that says what was found and what is required.
Knows nothing of streams, sessions or who sends what.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import cast, get_args

from compression.spec import CodecError, codec_spec
from protos import orchestrator_pb2 as pb
from scheduler.checkpoint_layout import LayerFileInfo, ManifestError, safe_file_name
from scheduler.codec_speed import CodecSpeed
from scheduler.layer_cost import Keys
from scheduler.link_use import LinkUse
from scheduler.plan import Plan
from scheduler.plan_codecs import PlanCodecs
from scheduler.profile import DeviceProfile, LayerProfile
from scheduler.spot_checks import SpotCheck
from scheduler.timeline import Span, SpanKind, Timeline
from scheduler.topology import Device

MAX_LAYERS = 4096
MAX_PARTS = 256
"""Of a layer."""
MAX_RANKS = 4096
MAX_CODECS = 128
MAX_SPANS = 200_000
MAX_LINKS = 20_000
MAX_NAME = 128
_SPAN_KINDS = frozenset(get_args(SpanKind))


class ConvertError(ValueError):
    """A message whose content cannot be: says what was found and what is required."""


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """Where a worker's tensors arrive; `curve_public_key` is empty when the link is not encrypted."""

    name: str
    data_address: str
    curve_public_key: bytes = b""


CURVE_KEY_BYTES = 40
"""Of a CURVE key as Z85 text."""
_Z85 = frozenset(b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#")


def is_curve_key(key: bytes) -> bool:
    """Whether `key` is a CURVE key as Z85 text, or empty: none."""
    return not key or (len(key) == CURVE_KEY_BYTES and _Z85.issuperset(key))


def _finite(label: str, value: float, least: float = 0.0) -> float:
    if not math.isfinite(value) or value < least:
        raise ConvertError(f"{label}: found {value}, required a finite number of at least {least:g}")
    return value


def _at_most(label: str, n: int, most: int) -> None:
    if n > most:
        raise ConvertError(f"{label}: found {n} entries, required at most {most}")


# ---- plan


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
    _at_most("plan.placement", len(m.placement), MAX_RANKS)
    _at_most("plan.partition", len(m.partition), MAX_LAYERS)
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
        predicted_step_s=_finite("plan.predicted_step_s", m.predicted_step_s),
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


# ---- profiles


def layer_to_message(layer: LayerProfile) -> pb.Layer:
    return pb.Layer(
        name=layer.name,
        forward_flops=layer.forward_flops,
        backward_flops=layer.backward_flops,
        parameter_bytes=layer.parameter_bytes,
        boundary_bytes=layer.boundary_bytes,
        saved_bytes=layer.saved_bytes,
        state_bytes=layer.state_bytes,
        tied_to=layer.tied_to,
        working_bytes=layer.working_bytes,
        pair_flops=layer.pair_flops,
        keys=[pb.Keys(n_bytes=k.n_bytes, window=k.window) for k in layer.keys],
    )


def layer_from_message(m: pb.Layer) -> LayerProfile:
    """Raises ConvertError for flops that are negative or not finite, and for too many attentions."""
    _at_most(f"layer {m.name}: keys", len(m.keys), MAX_PARTS)
    return LayerProfile(
        name=m.name,
        forward_flops=_finite(f"layer {m.name}: forward_flops", m.forward_flops),
        backward_flops=_finite(f"layer {m.name}: backward_flops", m.backward_flops),
        parameter_bytes=m.parameter_bytes,
        boundary_bytes=m.boundary_bytes,
        saved_bytes=m.saved_bytes,
        state_bytes=m.state_bytes,
        tied_to=m.tied_to,
        working_bytes=m.working_bytes,
        pair_flops=_finite(f"layer {m.name}: pair_flops", m.pair_flops),
        keys=tuple(Keys(k.n_bytes, k.window) for k in m.keys),
    )


def profiled_to_message(
    layers: Iterable[LayerProfile],
    profile: DeviceProfile,
    data_digest: str,
    n_samples: int,
    n_eval_samples: int,
) -> pb.Profiled:
    return pb.Profiled(
        layers=[layer_to_message(x) for x in layers],
        forward_s=profile.forward_s,
        backward_s=profile.backward_s,
        optimizer_s=profile.optimizer_s,
        data_digest=data_digest,
        n_samples=n_samples,
        n_eval_samples=n_eval_samples,
        forward_fixed_s=profile.forward_fixed_s,
        backward_fixed_s=profile.backward_fixed_s,
        forward_pairs_s=profile.forward_pairs_s,
        backward_pairs_s=profile.backward_pairs_s,
        codecs=[pb.CodecSpeed(name=s.name, encode_s=s.encode_s, decode_s=s.decode_s) for s in profile.codecs],
    )


def profile_from_message(m: pb.Profiled, device: str) -> tuple[tuple[LayerProfile, ...], DeviceProfile]:
    """The layers and what they cost on `device`. Raises ConvertError if the lists differ in length."""
    _at_most("profiled.layers", len(m.layers), MAX_LAYERS)
    layers = tuple(layer_from_message(x) for x in m.layers)
    if not layers:
        raise ConvertError("profiled.layers: found none, required one or more")
    times: list[tuple[float, ...]] = []
    for label, values in (
        ("forward_s", m.forward_s),
        ("backward_s", m.backward_s),
        ("optimizer_s", m.optimizer_s),
        ("forward_fixed_s", m.forward_fixed_s),
        ("backward_fixed_s", m.backward_fixed_s),
        ("forward_pairs_s", m.forward_pairs_s),
        ("backward_pairs_s", m.backward_pairs_s),
    ):
        if len(values) != len(layers) and (values or not label.endswith(("_fixed_s", "_pairs_s"))):
            raise ConvertError(
                f"profiled.{label}: found {len(values)} entries, required {len(layers)}, one a layer"
            )
        times.append(tuple(_finite(f"profiled.{label}", v) for v in values))
    _at_most("profiled.codecs", len(m.codecs), MAX_CODECS)
    *times, forward_pairs_s, backward_pairs_s = times
    profile = DeviceProfile(
        device,
        *times,
        codecs=tuple(_codec_speed(s) for s in m.codecs),
        forward_pairs_s=forward_pairs_s,
        backward_pairs_s=backward_pairs_s,
    )
    return layers, profile


def _codec_speed(m: pb.CodecSpeed) -> CodecSpeed:
    """Raises ConvertError for a codec that cannot be, or a time that is none."""
    try:
        codec_spec(m.name)
    except CodecError as e:
        raise ConvertError(f"profiled.codecs: {e}") from e
    times = (_finite(f"codec {m.name}: {x}", getattr(m, x)) for x in ("encode_s", "decode_s"))
    return CodecSpeed(m.name, *times)


# ---- devices and peers


def device_to_message(device: Device, *, kind: str, model: str) -> pb.DeviceInfo:
    """`kind` is cpu or cuda, `model` the hardware's name; the rest of the name travels in JoinRequest."""
    return pb.DeviceInfo(
        kind=kind,
        model=model,
        memory_bytes=device.memory_bytes,
        host=device.host,
        host_cores=device.host_cores,
        region=device.region,
    )


def device_from_message(m: pb.DeviceInfo, name: str) -> Device:
    return Device(
        name=name,
        region=m.region,
        host=m.host or name,
        memory_bytes=m.memory_bytes,
        host_cores=m.host_cores,
    )


def spot_check_to_message(check: SpotCheck) -> pb.SpotCheck:
    return pb.SpotCheck(
        stage=check.stage, replica=check.replica, micro_batch=check.micro_batch, checkers=check.checkers
    )


def spot_check_from_message(m: pb.SpotCheck, step: int) -> SpotCheck:
    """`step`: the one behind the commit that it came with."""
    return SpotCheck(step, m.stage, m.replica, m.micro_batch, tuple(m.checkers))


def peer_to_message(peer: PeerInfo) -> pb.Peer:
    return pb.Peer(name=peer.name, data_address=peer.data_address, curve_public_key=peer.curve_public_key)


def peer_from_message(m: pb.Peer) -> PeerInfo:
    return PeerInfo(m.name, m.data_address, m.curve_public_key)


# ---- spans


def span_to_message(span: Span) -> pb.SpanMsg:
    """The rank does not travel: it is the sender's."""
    return pb.SpanMsg(
        kind=span.kind,
        start_s=span.start_s,
        end_s=span.end_s,
        mb=span.mb,
        peer=span.peer,
        n_bytes=span.n_bytes,
    )


def span_from_message(m: pb.SpanMsg, rank: int) -> Span:
    """Raises ConvertError for a kind that is not known or a span that ends before it starts."""
    if m.kind not in _SPAN_KINDS:
        raise ConvertError(
            f"span.kind: found {m.kind[:40]!r}, required one of {', '.join(sorted(_SPAN_KINDS))}"
        )
    if not (math.isfinite(m.start_s) and math.isfinite(m.end_s) and m.start_s <= m.end_s):
        raise ConvertError(
            f"span {m.kind}: found {m.start_s} .. {m.end_s}, required a start no later than its end"
        )
    return Span(rank, cast(SpanKind, m.kind), m.start_s, m.end_s, m.mb, m.peer, m.n_bytes)


def spans_to_messages(timeline: Timeline, rank: int) -> list[pb.SpanMsg]:
    """The messages of one rank's spans."""
    return [span_to_message(s) for s in timeline.spans if s.rank == rank]


def spans_from_messages(messages: Iterable[pb.SpanMsg], rank: int) -> tuple[Span, ...]:
    """Raises ConvertError, also for more than MAX_SPANS."""
    found: list[Span] = []
    for m in messages:
        _at_most("spans", len(found) + 1, MAX_SPANS)
        found.append(span_from_message(m, rank))
    return tuple(found)


def timeline_from_messages(n_ranks: int, by_rank: Mapping[int, Iterable[pb.SpanMsg]]) -> Timeline:
    """The timeline of a step from every rank's messages. Raises ConvertError."""
    spans: list[Span] = []
    for rank in sorted(by_rank):
        if not 0 <= rank < n_ranks:
            raise ConvertError(f"timeline: found rank {rank}, required 0 .. {n_ranks - 1}")
        spans.extend(spans_from_messages(by_rank[rank], rank))
    return Timeline(n_ranks, tuple(spans))


# ---- links


def link_use_to_message(use: LinkUse) -> pb.LinkUse:
    """The rank does not travel: it is the sender's."""
    return pb.LinkUse(
        peer=use.peer,
        kind=use.kind,
        codec=use.codec,
        sent_bytes=use.sent_bytes,
        raw_bytes=use.raw_bytes,
        encode_s=use.encode_s,
        decode_s=use.decode_s,
        relative_error=use.relative_error,
        resends=use.resends,
    )


def link_use_from_message(m: pb.LinkUse, rank: int) -> LinkUse:
    """Raises ConvertError for a number that is not finite."""
    return LinkUse(
        rank,
        m.peer,
        m.kind[:MAX_NAME],
        m.codec[:MAX_NAME],
        m.sent_bytes,
        m.raw_bytes,
        _finite("link.encode_s", m.encode_s),
        _finite("link.decode_s", m.decode_s),
        _finite("link.relative_error", m.relative_error),
        m.resends,
    )


def links_from_messages(messages: Iterable[pb.LinkUse], rank: int) -> tuple[LinkUse, ...]:
    """Raises ConvertError, also for more than MAX_LINKS."""
    found: list[LinkUse] = []
    for m in messages:
        _at_most("links", len(found) + 1, MAX_LINKS)
        found.append(link_use_from_message(m, rank))
    return tuple(found)


# ---- checkpoint files


def file_to_message(f: LayerFileInfo) -> pb.LayerFile:
    return pb.LayerFile(name=f.name, sha256=f.sha256, n_bytes=f.n_bytes)


def file_from_message(m: pb.LayerFile) -> LayerFileInfo:
    """Raises ConvertError for a name that is not a layer file's."""
    try:
        return LayerFileInfo(safe_file_name(m.name), m.sha256, m.n_bytes)
    except ManifestError as e:
        raise ConvertError(str(e)) from e
