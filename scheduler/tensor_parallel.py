"""Tensor parallelism as the one cost model prices it: devices that hold their layers together, as one device.

Megatron's way (Shoeybi et al. 2019; Narayanan et al. 2021, 2.3 and 4.1), to be compared with; our workers do
not do it. t neighbouring devices cut every matrix of a layer between them:

- a block all-reduces its output twice forward and twice backward, over a ring: each time
  2 (t - 1) (latency + bytes / (t bandwidth)), the slowest of the ring's links; the embedding once forward,
  the head once backward; a forward that is done again does so again;
- products, optimizer and the exchange of gradients are a t-th each; a boundary is cut in t parts, each sent
  to its counterpart (putting them together again is left out, which is kind to it);
- memory is taken as that of all of them together, which is kind to it: inputs of blocks are kept t times.

A group goes by the name of its first device, so that plans and pictures need not know of it. What its
devices send each other is part of its computations: it shares no card with anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from scheduler.plan import Plan, PlanError
from scheduler.profile import DeviceProfile, LayerProfile, ModelProfile
from scheduler.topology import Device, Matrix, Topology

MOST = 8
"""Devices of a group: those of one machine, as Megatron has it."""


def reduces(layer: LayerProfile) -> tuple[int, int]:
    """All-reduces of a layer's width, forward and backward."""
    return {"embedding": (1, 0), "head": (0, 1)}.get(layer.name, (2, 2))


def grouped_links(topology: Topology, t: int) -> Topology:
    """Groups of `t` devices as they stand, each as one. PlanError if they do not come out even, or share a
    host's cores."""
    n = len(topology)
    if n % t:
        raise PlanError(f"found {n} devices, required a multiple of {t} for tensor groups")
    if t == 1:
        return topology
    if any(d.host_cores for d in topology.devices):
        raise PlanError("devices that share their host's cores gain nothing from sharing a layer")
    devices = tuple(_together(topology.devices[k : k + t]) for k in range(0, n, t))
    parts = _counterparts(topology, t)
    latency_s = parts(topology.latency_s).max(axis=2)
    bandwidth_Bps = t * parts(topology.bandwidth_Bps).min(axis=2)
    flow_Bps = None if topology.flow_Bps is None else t * parts(topology.flow_Bps).min(axis=2)
    return Topology(devices, latency_s, bandwidth_Bps, flow_Bps, topology.egress_Bps)


def _together(devices: Sequence[Device]) -> Device:
    t, first = len(devices), devices[0]
    return replace(
        first,
        memory_bytes=t * min(d.memory_bytes for d in devices),
        speed_flops=t * min(d.speed_flops for d in devices),
        uplink_Bps=t * min(d.uplink_Bps for d in devices),
        downlink_Bps=t * min(d.downlink_Bps for d in devices),
    )


def _counterparts(topology: Topology, t: int) -> Callable[[Matrix], Matrix]:
    """A matrix over devices as [group, group, t]: links between those in the same place of their groups."""
    at = np.arange(len(topology)).reshape(-1, t)
    return lambda m: m[at[:, None, :], at[None, :, :]]


def grouped_profiles(
    model: ModelProfile, profiles: Sequence[DeviceProfile], topology: Topology, t: int
) -> tuple[DeviceProfile, ...]:
    """What the layers cost a group: its slowest device's t-th, and what all-reduces take on `topology`, on
    which the groups are not formed yet: its devices' order says who stands together."""
    if t == 1:
        return tuple(profiles)
    n_bytes = max(x.boundary_bytes for x in model.layers)
    by_name = {p.device: p for p in profiles}
    members = [by_name[d.name] for d in topology.devices]
    return tuple(
        _shared(model, members[k : k + t], *_ring_s(topology, range(k, k + t), n_bytes))
        for k in range(0, len(members), t)
    )


def _ring_s(topology: Topology, at: Sequence[int], n_bytes: int) -> tuple[float, float]:
    """(all of it, what does not grow with the samples) in seconds of one all-reduce over a ring."""
    t = len(at)
    ring = [(a, at[(k + 1) % t]) for k, a in enumerate(at)]
    rounds = 2 * (t - 1)
    latency_s = max(float(topology.latency_s[link]) for link in ring)
    bandwidth_Bps = min(float(topology.bandwidth_Bps[link]) for link in ring)
    return rounds * (latency_s + n_bytes / (t * bandwidth_Bps)), rounds * latency_s


def _shared(
    model: ModelProfile, members: Sequence[DeviceProfile], reduce_s: float, fixed_s: float
) -> DeviceProfile:
    t = len(members)
    times = [reduces(x) for x in model.layers]

    def slowest(seconds: Sequence[tuple[float, ...]], way: int | None, each_s: float) -> tuple[float, ...]:
        shares = [max(layer) / t for layer in zip(*seconds, strict=True)]
        return tuple(
            share + (times[k][way] * each_s if way is not None else 0.0) for k, share in enumerate(shares)
        )

    nothing = (0.0,) * len(model.layers)
    return DeviceProfile(
        members[0].device,
        slowest([m.forward_s for m in members], 0, reduce_s),
        slowest([m.backward_s for m in members], 1, reduce_s),
        slowest([m.optimizer_s for m in members], None, 0.0),
        slowest([m.forward_fixed_s or nothing for m in members], 0, fixed_s),
        slowest([m.backward_fixed_s or nothing for m in members], 1, fixed_s),
    )


def all_reduce_bytes(plan: Plan, model: ModelProfile, t: int) -> int:
    """What the devices of all groups send each other in a step: a ring carries 2 (t - 1) times the bytes."""
    forward, backward = (sum(reduces(x)[way] for x in model.layers) for way in (0, 1))
    times = forward * (2 if plan.recompute else 1) + backward
    n_bytes = max(x.boundary_bytes for x in model.scaled(plan.micro_batch or model.micro_batch).layers)
    return times * 2 * (t - 1) * n_bytes * sum(plan.micro_batches)
