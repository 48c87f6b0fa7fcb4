"""What a worker measured of the model's layers and of its device."""

from __future__ import annotations

from collections.abc import Iterable

from compression.spec import CodecError, codec_spec
from protos import orchestrator_pb2 as pb
from scheduler.codec_speed import CodecSpeed
from scheduler.layer_cost import Keys
from scheduler.profile import DeviceProfile, LayerProfile

from .checked import (
    MAX_CODECS,
    MAX_LAYERS,
    MAX_PARTS,
    ConvertError,
    at_most,
    finite,
)


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
    at_most(f"layer {m.name}: keys", len(m.keys), MAX_PARTS)
    return LayerProfile(
        name=m.name,
        forward_flops=finite(f"layer {m.name}: forward_flops", m.forward_flops),
        backward_flops=finite(f"layer {m.name}: backward_flops", m.backward_flops),
        parameter_bytes=m.parameter_bytes,
        boundary_bytes=m.boundary_bytes,
        saved_bytes=m.saved_bytes,
        state_bytes=m.state_bytes,
        tied_to=m.tied_to,
        working_bytes=m.working_bytes,
        pair_flops=finite(f"layer {m.name}: pair_flops", m.pair_flops),
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
    at_most("profiled.layers", len(m.layers), MAX_LAYERS)
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
        times.append(tuple(finite(f"profiled.{label}", v) for v in values))
    at_most("profiled.codecs", len(m.codecs), MAX_CODECS)
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
    times = (finite(f"codec {m.name}: {x}", getattr(m, x)) for x in ("encode_s", "decode_s"))
    return CodecSpeed(m.name, *times)
