"""The one cost model: what a plan's compute, transfers, reductions and memory cost.

The search's objective, the simulator's durations and the "predicted" column beside every
measured step all come from here. Knows profiles, a topology and how many bytes a codec leaves;
refuses to know how any of them was measured.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TypedDict

from compression.spec import AcsgdSpec, CodecSpec, IdentitySpec, codec_spec
from scheduler.codec_speed import CodecSpeed, speed_of
from scheduler.durations import CodecSeconds
from scheduler.engine import NOMINAL, Durations, Network, TopologyNetwork, replay
from scheduler.layer_cost import Keys
from scheduler.plan import Plan, PlanError
from scheduler.profile import DeviceProfile, ModelProfile
from scheduler.settings import Setting, priced
from scheduler.shard_rows import Call, Rows, pieces
from scheduler.speed import Speed
from scheduler.timeline import Timeline
from scheduler.topology import Topology
from scheduler.visits import UNKNOWN, Visits, acsgd_bytes, flat_bytes

PARAMETER_BYTES = 4
"""Of a weight's gradient, as it is exchanged: float32."""
WireBytes = Callable[[int], int]
"""Raw bytes of a tensor -> bytes on the wire, headers of the codec included."""


def _as_it_is(n_bytes: int) -> int:
    return n_bytes


def wire_bytes_of(
    spec: CodecSpec, model: ModelProfile, dtype_bytes: int = 4, n_replicas: int = 1
) -> WireBytes:
    """The pricing of tensors (micro_batch, sequence_length, width) of `dtype_bytes` values under `spec`, on
    average over the model's visits, which `n_replicas` share.

    A tensor that is no whole number of such rows (weights) is taken as flat.
    """
    if isinstance(spec, IdentitySpec):
        return _as_it_is
    batch, length = model.micro_batch, model.sequence_length

    def wire_bytes(n_bytes: int) -> int:
        n_values = n_bytes // dtype_bytes
        width, rest = divmod(n_values, batch * length)
        shape = (n_values,) if rest else (batch, length, width)
        if isinstance(spec, AcsgdSpec):
            return acsgd_bytes(spec, shape, dtype_bytes, model.visits, n_replicas)
        return spec.wire_bytes(shape, dtype_bytes)

    return wire_bytes


def flat_wire_bytes_of(
    spec: CodecSpec, dtype_bytes: int = PARAMETER_BYTES, visits: Visits = UNKNOWN
) -> WireBytes:
    """The pricing of weights and their gradients, which go end to end as one row, on average over the run."""
    if isinstance(spec, IdentitySpec):
        return _as_it_is
    return lambda n_bytes: flat_bytes(spec, n_bytes // dtype_bytes, dtype_bytes, visits)


@dataclass(frozen=True, slots=True)
class StageMemory:
    """Bytes that a stage needs. A weight that two of its layers share counts once."""

    parameter_bytes: int
    state_bytes: int
    """The optimizer's."""
    saved_bytes: int
    """What one micro-batch's forward keeps for its backward: with recomputation its input alone."""
    boundary_bytes: int
    """The largest tensor between two layers, the stage's input and output included."""
    kept_bytes: int = 0
    """What codecs remember from step to step."""
    working_bytes: int = 0
    """What is needed once, however many micro-batches are in flight: the layers' own, and with recomputation
    what the one micro-batch whose forward is done again keeps meanwhile."""

    def total_bytes(self, in_flight: int) -> int:
        """Parameters + gradients + state + saved activations of `in_flight` micro-batches + a boundary + what
        is needed once + what codecs keep."""
        fixed = 2 * self.parameter_bytes + self.state_bytes + self.boundary_bytes + self.working_bytes
        fixed += self.kept_bytes
        return fixed + in_flight * self.saved_bytes


def stage_memory(model: ModelProfile, start: int, stop: int) -> StageMemory:
    """What layers start .. stop - 1 need together."""
    layers = model.layers[start:stop]
    crossing = model.layers[max(0, start - 1) : stop]
    parameter_bytes = sum(x.parameter_bytes for x in layers)
    state_bytes = sum(x.state_bytes for x in layers)
    for first, second in tied_pairs(model):
        if start <= first and second < stop:
            a, b = model.layers[first], model.layers[second]
            parameter_bytes -= min(a.parameter_bytes, b.parameter_bytes)
            state_bytes -= min(a.state_bytes, b.state_bytes)
    saved_bytes, working_bytes = sum(x.saved_bytes for x in layers), sum(x.working_bytes for x in layers)
    largest = max((x.boundary_bytes for x in crossing), default=0)
    if model.local_steps:
        state_bytes += 2 * parameter_bytes  # where the weights were, and the outer momentum
    ends = (start > 0) + (stop < len(model.layers))
    kept = ends * model.buffer_bytes + (parameter_bytes if model.keeps_residuals else 0)
    if not model.recompute:
        return StageMemory(parameter_bytes, state_bytes, saved_bytes, largest, kept, working_bytes)
    inputs = model.tokens_bytes if start == 0 else model.layers[start - 1].boundary_bytes
    targets = model.tokens_bytes if stop == len(model.layers) else 0
    again = working_bytes + saved_bytes
    return StageMemory(parameter_bytes, state_bytes, inputs + targets, largest, kept, again)


def stage_memory_bytes(model: ModelProfile, start: int, stop: int, in_flight: int) -> int:
    """Bytes that layers start .. stop - 1 need with `in_flight` micro-batches saved at once."""
    return stage_memory(model, start, stop).total_bytes(in_flight)


def exchanged_bytes(model: ModelProfile, parameter_bytes: int) -> int:
    """Of so many bytes of weights, what replicas exchange in a step, before a codec: all gradients, or with
    local steps one of so many pieces."""
    if not model.local_steps:
        return parameter_bytes
    return -(-parameter_bytes // (PARAMETER_BYTES * model.local_steps)) * PARAMETER_BYTES


@lru_cache(maxsize=64)
def tied_pairs(model: ModelProfile) -> tuple[tuple[int, int], ...]:
    """(earlier, later) indices of layers that share a weight. PlanError if the earlier one does not exist."""
    index = {x.name: i for i, x in enumerate(model.layers)}
    pairs = []
    for i, x in enumerate(model.layers):
        if not x.tied_to:
            continue
        first = index.get(x.tied_to)
        if first is None or first >= i:
            raise PlanError(
                f"layer {x.name}: found tied_to {x.tied_to!r}, required the name of an earlier layer"
            )
        pairs.append((first, i))
    return tuple(pairs)


def tied_bytes(model: ModelProfile, n_stages: int) -> int:
    """The gradient that first and last stage swap: of the weights that first and last layer share.

    The shared weight is taken to be the smaller layer's parameters (an embedding may also hold
    positions, a head a norm). 0 within one stage.
    """
    first, last = 0, len(model.layers) - 1
    if n_stages == 1:
        return 0
    return sum(
        min(model.layers[a].parameter_bytes, model.layers[b].parameter_bytes)
        for a, b in tied_pairs(model)
        if (a, b) == (first, last)
    )


def profiles_by_name(model: ModelProfile, devices: Sequence[DeviceProfile]) -> dict[str, DeviceProfile]:
    """Profiles by device. PlanError for a device profiled twice, or with other layers than the model's."""
    by_name: dict[str, DeviceProfile] = {}
    for p in devices:
        found = {len(p.forward_s), len(p.backward_s), len(p.optimizer_s)}
        if found != {len(model.layers)}:
            raise PlanError(
                f"device {p.device}: found profiles of {sorted(found)} layers, "
                f"required {len(model.layers)}; profile it again for this model"
            )
        if p.device in by_name:
            raise PlanError(f"device {p.device}: found two profiles, required one")
        by_name[p.device] = p
    return by_name


def durations(
    plan: Plan, model: ModelProfile, devices: Sequence[DeviceProfile], topology: Topology
) -> Durations:
    """What every action of `plan` costs, its micro-batches, recomputation, streams and codecs applied to
    profiles and links. PlanError if a device of the plan has no profile or no place, or its shards are of
    other sequences."""
    if not model.bounds:
        plan.shard_bounds(model.sequence_length)
    model, devices, topology = priced(Setting.of(plan), model, devices, topology)
    by_name = profiles_by_name(model, devices)
    for name in (plan.device(r) for r in range(plan.n_ranks)):
        if name not in by_name:
            raise PlanError(f"device {name}: found no profile; required one for every device of the plan")
    ranks = [
        (_at(by_name[plan.device(r)], model, plan.replica_of(r)), plan.partition[plan.stage_of(r)])
        for r in range(plan.n_ranks)
    ]
    cuts = tuple(enumerate(plan.partition))
    held = [model.of_replica(r) for r in range(plan.n_replicas)] if model.bounds else [model]

    @cache
    def crossing(name: str, boundary: int, part: int) -> int:
        price = wire_bytes_of(codec_spec(name), held[part], model.value_bytes, plan.batch_shares)
        return price(held[part].layers[plan.partition[boundary][1] - 1].boundary_bytes)

    def sent(kind: str, rank: int) -> int:
        boundary = plan.stage_of(rank) - (kind == "gradient")
        if not 0 <= boundary < plan.n_stages - 1:
            return 0
        replica = plan.replica_of(rank)
        name = plan.codecs.of_boundary(kind, replica, boundary)
        return crossing(name, boundary, replica if model.bounds else 0)

    def reduced(stage: int, n_bytes: int) -> int:
        spec = codec_spec(plan.codecs.of_stage(stage))
        return flat_wire_bytes_of(spec, visits=model.visits)(n_bytes)

    return Durations(
        forward_s=tuple(sum(p.forward_s[a:b]) for p, (a, b) in ranks),
        backward_s=tuple(sum(p.backward_s[a:b]) for p, (a, b) in ranks),
        optimizer_s=tuple(sum(p.optimizer_s[a:b]) for p, (a, b) in ranks),
        activation_bytes=tuple(sent("activation", r) for r in range(plan.n_ranks)),
        gradient_bytes=tuple(sent("gradient", r) for r in range(plan.n_ranks)),
        reduce_bytes=tuple(
            reduced(s, exchanged_bytes(model, stage_memory(model, *cut).parameter_bytes)) for s, cut in cuts
        ),
        tied_bytes=reduced(0, tied_bytes(model, plan.n_stages)),
        **_codec_seconds(plan, model, by_name),
        shared_cores=shared_cores(plan, topology),
        rows=_rows(plan, model, ranks) if model.bounds else None,
    )


def _at(profile: DeviceProfile, model: ModelProfile, replica: int) -> DeviceProfile:
    """What the replica's micro-batches cost the device: of a shard of every sequence, or all of it."""
    if not model.bounds:
        return profile
    return profile.in_shard(*model.bounds[replica], model.bounds[-1][1])


def _rows(plan: Plan, model: ModelProfile, ranks: Sequence[tuple[DeviceProfile, tuple[int, int]]]) -> Rows:
    """What replicas that share every sequence send each other, and what they compute between."""
    length = model.bounds[-1][1]
    n_calls = [len(x.keys) for x in model.layers]

    def blocks(keys: Keys) -> Call:
        n_bytes = tuple(keys.n_bytes * (stop - start) // length for start, stop in model.bounds)
        return Call(n_bytes, keys.window)

    def backward(p: DeviceProfile) -> tuple[float, ...]:
        if not model.recompute:
            return p.backward_s
        return tuple(b - f for b, f in zip(p.backward_s, p.forward_s, strict=True))

    return Rows(
        model.bounds,
        tuple(tuple(blocks(k) for x in model.layers[a:b] for k in x.keys) for a, b in plan.partition),
        tuple(pieces(p.forward_s[a:b], n_calls[a:b]) for p, (a, b) in ranks),
        tuple(pieces(backward(p)[a:b], n_calls[a:b]) for p, (a, b) in ranks),
        model.recompute,
    )


class _CodecSeconds(TypedDict, total=False):
    """The fields of Durations that codecs decide."""

    activation_codec_s: tuple[CodecSeconds, ...]
    gradient_codec_s: tuple[CodecSeconds, ...]
    reduce_codec_s: tuple[CodecSeconds, ...]
    tied_codec_s: tuple[CodecSeconds, ...]


def _codec_seconds(plan: Plan, model: ModelProfile, by_name: Mapping[str, DeviceProfile]) -> _CodecSeconds:
    """What encoding and decoding takes; nothing for traffic that has no codec."""
    stages = plan.n_stages
    exchanged = [exchanged_bytes(model, stage_memory(model, *cut).parameter_bytes) for cut in plan.partition]
    tied = tied_bytes(model, stages) / PARAMETER_BYTES

    def at(rank: int, name: str) -> CodecSpeed:
        return speed_of(name, by_name[plan.device(rank)].codecs)

    def crossing(kind: str, rank: int, step: int) -> CodecSeconds:
        stage, boundary = plan.stage_of(rank), plan.stage_of(rank) - (step < 0)
        if not 0 <= stage + step < stages:
            return 0.0, 0.0
        name = plan.codecs.of_boundary(kind, plan.replica_of(rank), boundary)
        values = model.layers[plan.partition[boundary][1] - 1].boundary_bytes / model.value_bytes
        return values * at(rank, name).encode_s, values * at(rank + step, name).decode_s

    def summed(rank: int, name: str, values: float) -> CodecSeconds:
        speed = at(rank, name)
        return values * speed.encode_s, values * speed.decode_s

    ranks = range(plan.n_ranks)
    found: _CodecSeconds = {}
    if plan.codecs.activation:
        found["activation_codec_s"] = tuple(crossing("activation", r, 1) for r in ranks)
    if plan.codecs.gradient:
        found["gradient_codec_s"] = tuple(crossing("gradient", r, -1) for r in ranks)
    if plan.codecs.reduce:
        own = [(r, plan.stage_of(r)) for r in ranks]
        found["reduce_codec_s"] = tuple(
            summed(r, plan.codecs.of_stage(s), exchanged[s] / PARAMETER_BYTES) for r, s in own
        )
        found["tied_codec_s"] = tuple(summed(r, plan.codecs.of_stage(0), tied) for r in ranks)
    return found


def shared_cores(plan: Plan, topology: Topology) -> tuple[tuple[tuple[int, ...], int], ...]:
    """(ranks, cores) of every host that runs several ranks on cores they share."""
    by_host: dict[str, list[int]] = defaultdict(list)
    cores: dict[str, int] = {}
    known = {d.name: d for d in topology.devices}
    for rank in range(plan.n_ranks):
        device = known.get(plan.device(rank))
        if device is None:
            raise PlanError(f"device {plan.device(rank)}: found no such device in the topology")
        if device.host and device.host_cores > 0:
            by_host[device.host].append(rank)
            # Devices of one host should agree; the least is the safe reading where they do not.
            cores[device.host] = min(device.host_cores, cores.get(device.host, device.host_cores))
    return tuple((tuple(ranks), cores[host]) for host, ranks in by_host.items() if len(ranks) > 1)


def predict(
    plan: Plan,
    model: ModelProfile,
    devices: Sequence[DeviceProfile],
    topology: Topology,
    network: Network | None = None,
    speeds: Mapping[str, Speed] = NOMINAL,
) -> Timeline:
    """The timeline of one step of `plan`; over `network` instead of the topology's links if given, and with
    devices as fast as `speeds` says."""
    costs = durations(plan, model, devices, topology)
    return replay(plan, costs, network or TopologyNetwork(topology, plan.streams), speeds)


def step_time_s(
    plan: Plan,
    model: ModelProfile,
    devices: Sequence[DeviceProfile],
    topology: Topology,
) -> float:
    """Predicted seconds of one step: the objective that plans are chosen by."""
    return predict(plan, model, devices, topology).duration_s
