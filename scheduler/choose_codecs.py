"""Which codec each link has while a plan is searched for: the job's, or under `auto` one of its ladder.

Under `auto` the search prices every link with what its ladder has that is fastest on that link, so that a
placement is judged by what compression within the error budget can make of it; what turns out not to be
needed is given back when the placement is found (`relax_codecs.py`). Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from compression.spec import codec_spec
from scheduler.codec_speed import speed_of
from scheduler.cost import PARAMETER_BYTES
from scheduler.job import JobSpec
from scheduler.job_compression import Kind, LinkSpec
from scheduler.ladders import REDUCED, Ladder, ladder
from scheduler.link_codecs import CodecTable, LinkCodecs
from scheduler.plan_codecs import IDENTITY
from scheduler.profile import DeviceProfile, ModelProfile
from scheduler.topology import Topology
from scheduler.units import MBIT_BPS

Bools = NDArray[np.bool_]


def link_codecs(
    job: JobSpec,
    model: ModelProfile,
    devices: Sequence[DeviceProfile],
    topology: Topology,
    n_replicas: int = 1,
) -> LinkCodecs:
    """What `job` asks for on the links between `devices`, in their order, with `model`'s micro-batches."""
    index = {d.name: i for i, d in enumerate(topology.devices)}
    at = [index[p.device] for p in devices]
    links = topology if at == list(range(len(topology))) else topology.subset(at)
    kinds: tuple[Kind, ...] = ("activations", "gradients", "reduce")
    return LinkCodecs(*(_table(kind, job, model, devices, links, n_replicas) for kind in kinds))


def _table(
    kind: Kind,
    job: JobSpec,
    model: ModelProfile,
    devices: Sequence[DeviceProfile],
    links: Topology,
    n_replicas: int,
) -> CodecTable:
    names: list[str] = []
    ladders: list[Ladder] = []
    of = np.zeros((len(links), len(links)), dtype=np.int8)
    left = ~np.eye(len(links), dtype=bool)
    for where, choice in job.compression.rules(kind):
        here = left & fitting(where, links) if where is not None else left
        left = left & ~here
        if choice.auto is None:
            if here.any() or where is None:
                of[here] = len(names)
                names.append(choice.spec().name)
                ladders.append(())
            continue
        shape, value_bytes = _tensor(kind, job, model)
        rungs = ladder(kind, choice.auto, shape, value_bytes, model.visits, n_replicas)
        fastest = _fastest(rungs, shape, value_bytes, devices, links)
        for k in reversed(range(len(rungs))):  # in a group, whose link needs most decides
            if (here & (fastest == k)).any():
                of[here & (fastest == k)] = len(names)
                names.append(rungs[k])
                ladders.append(rungs)
        if where is None and not names:  # one device: nobody to send to
            names, ladders = [IDENTITY], [rungs]
    if names == [IDENTITY] and not ladders[0]:
        return CodecTable()
    return CodecTable(tuple(names), of, tuple(ladders))


def _tensor(kind: Kind, job: JobSpec, model: ModelProfile) -> tuple[tuple[int, ...], int]:
    """What a codec of `kind` is judged by, a boundary's tensor or weights: its shape, its values' width."""
    if kind == "reduce":
        return REDUCED, PARAMETER_BYTES
    return (model.micro_batch, model.sequence_length, job.shape.hidden), model.value_bytes


def _fastest(
    rungs: Ladder, shape: tuple[int, ...], value_bytes: int, devices: Sequence[DeviceProfile], links: Topology
) -> NDArray[np.int64]:
    """[N, N]: which rung lets most tensors through a link: encoder, wire and decoder work side by side, so
    the slowest of the three counts, then their sum."""
    n_values, times = prod(shape), []
    bandwidth_Bps = np.where(np.eye(len(links), dtype=bool), np.inf, links.bandwidth_Bps)
    for name in rungs:
        speeds = [speed_of(name, p.codecs) for p in devices]
        encode_s = n_values * np.array([s.encode_s for s in speeds])[:, None]
        decode_s = n_values * np.array([s.decode_s for s in speeds])[None, :]
        wire_s = codec_spec(name).wire_bytes(shape, value_bytes) / bandwidth_Bps
        slowest_s = np.maximum(np.maximum(encode_s, decode_s), wire_s)
        times.append(slowest_s + 1e-6 * (encode_s + decode_s + wire_s))
    fastest: NDArray[np.int64] = np.argmin(np.stack(times), axis=0)
    return fastest


def fitting(where: LinkSpec, topology: Topology) -> Bools:
    """[N, N]: the directed links that `where` means."""
    fits = np.ones((len(topology), len(topology)), dtype=bool)
    if where.between is not None:
        host = _same([d.host or d.name for d in topology.devices])
        region = host | _same([d.region or d.host or d.name for d in topology.devices])
        fits &= {"devices": host, "hosts": region & ~host, "regions": ~region}[where.between]
    if where.below_mbps is not None:
        fits &= topology.bandwidth_Bps < where.below_mbps * MBIT_BPS
    return fits


def _same(names: Sequence[str]) -> Bools:
    known = np.unique(names, return_inverse=True)[1]
    same: Bools = known[:, None] == known[None, :]
    return same
