"""The engine's fast twin: the predicted step time of a layout, some ten thousand times a second.

Where no cores, cards or ways out of a region are shared it equals `engine.replay` but for rounding: a step
is then a graph without choices, and its longest path is computed from the same actions. Where
something is shared it is an estimate (`exact` is False): a host's ranks are taken to compute all at
once, a device's link to carry no more than its card or its region's way out, each by itself. That is
enough to sort layouts by; the engine has the last word. So it is where replicas share sequences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from compression.spec import codec_spec
from scheduler.action_table import pipeline_table
from scheduler.codec_speed import speed_of
from scheduler.cost import (
    PARAMETER_BYTES,
    exchanged_bytes,
    flat_wire_bytes_of,
    stage_memory,
    tied_bytes,
    wire_bytes_of,
)
from scheduler.limits import limits_of
from scheduler.link_codecs import CodecTable, LinkCodecs
from scheduler.plan import Plan
from scheduler.profile import DeviceProfile, ModelProfile
from scheduler.sequence import passed_on
from scheduler.step_kernels import Layout, Prices, State, Tables, missing_bytes, price_all, total_s
from scheduler.topology import Topology

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pricing:
    """What layouts of one model on one set of devices are priced with, in the devices' order."""

    names: tuple[str, ...]
    prices: Prices
    exact: bool
    """Whether the twin is the engine; else an estimate that the engine must confirm."""
    crowd: Floats
    """[N]: how many times slower the prices have a device compute because all of its host do at once."""


def pricing_of(
    model: ModelProfile,
    devices: Sequence[DeviceProfile],
    topology: Topology,
    codecs: LinkCodecs | None = None,
    n_replicas: int = 1,
    samples: int = 0,
) -> Pricing:
    """The prices of `devices` (all of them in the topology), links and layers as a setting leaves them;
    `codecs`: of the links between them, in their order; `n_replicas`: among whom samples are shared;
    `samples`: of one step, where replicas share sequences.

    Where they do it is an estimate: every shard is taken to be a mean one, and keys to travel with the
    gradients of weights, behind the backwards, where in truth most hide behind compute.
    """
    codecs = codecs or LinkCodecs()
    index = {d.name: i for i, d in enumerate(topology.devices)}
    at = [index[p.device] for p in devices]
    chosen = [topology.devices[i] for i in at]
    whole = at == list(range(len(topology)))
    latency_s = topology.latency_s if whole else topology.latency_s[np.ix_(at, at)]
    bandwidth_Bps = topology.bandwidth_Bps if whole else topology.bandwidth_Bps[np.ix_(at, at)]
    limits = limits_of(chosen, topology.egress_Bps)
    at_host = [limits.host[d.name] for d in chosen]
    up = np.array([limits.uplink_Bps.get(h, np.inf) for h in at_host])
    down = np.array([limits.downlink_Bps.get(h, np.inf) for h in at_host])
    capped = bool(np.isfinite(up).any() or np.isfinite(down).any())
    _, host = np.unique(at_host, return_inverse=True)
    if capped:
        cards = np.where(host[:, None] != host, np.minimum(up[:, None], down[None, :]), np.inf)
        bandwidth_Bps = np.minimum(bandwidth_Bps, cards)
    if topology.egress_Bps:
        regions = np.array([d.region for d in chosen])
        out = np.array([topology.egress_Bps.get(d.region, np.inf) for d in chosen])
        leaves = (regions[:, None] != regions) & (host[:, None] != host)
        bandwidth_Bps = np.where(leaves, np.minimum(bandwidth_Bps, out[:, None]), bandwidth_Bps)
    hosts = Counter(d.host for d in chosen if d.host and d.host_cores > 0)
    crowd = np.array(
        [max(1.0, hosts[d.host] / d.host_cores) if d.host and d.host_cores > 0 else 1.0 for d in chosen]
    )
    fixed, saved, parameters = _ranges(model)
    boundary = [0, *(x.boundary_bytes for x in model.layers)]
    boundary[-1] = 0
    across, back = (
        [wire_bytes_of(codec_spec(name), model, model.value_bytes, n_replicas) for name in table.names]
        for table in (codecs.activation, codecs.gradient)
    )
    flat = [flat_wire_bytes_of(codec_spec(name), visits=model.visits) for name in codecs.reduce.names]
    n, shards = len(devices), max(1, len(model.bounds))
    keys = _keys_bytes(model) * (samples / model.micro_batch)
    prices = Prices(
        latency_s=np.ascontiguousarray(latency_s, dtype=np.float64),
        bandwidth_Bps=np.ascontiguousarray(bandwidth_Bps, dtype=np.float64),
        forward_s=_sums([p.forward_s for p in devices]) * crowd[:, None] / shards,
        backward_s=_sums([p.backward_s for p in devices]) * crowd[:, None] / shards,
        optimizer_s=_sums([p.optimizer_s for p in devices]) * crowd[:, None],
        activation_codec=codecs.activation.codes(n),
        activation_bytes=np.array([[float(price(x)) for x in boundary] for price in across]),
        gradient_codec=codecs.gradient.codes(n),
        gradient_bytes=np.array([[float(price(x)) for x in boundary] for price in back]),
        reduce_codec=codecs.reduce.codes(n),
        reduce_bytes=keys
        + np.array([[[float(price(x)) for x in row] for row in parameters] for price in flat]),
        tied_bytes=np.array([float(price(tied_bytes(model, 2))) for price in flat]),
        activation_codec_s=_codec_seconds(devices, codecs.activation),
        gradient_codec_s=_codec_seconds(devices, codecs.gradient),
        reduce_codec_s=_codec_seconds(devices, codecs.reduce),
        boundary_values=np.array(boundary) / model.value_bytes,
        parameter_values=np.array(parameters) / PARAMETER_BYTES,
        tied_values=tied_bytes(model, 2) / PARAMETER_BYTES,
        memory_bytes=np.array([d.memory_bytes or np.inf for d in chosen], dtype=np.float64),
        fixed_bytes=fixed,
        saved_bytes=saved,
        beside=float(model.local_steps > 0),
    )
    shared = capped or bool(topology.egress_Bps) or any(n > 1 for n in hosts.values()) or shards > 1
    return Pricing(tuple(p.device for p in devices), prices, not shared, crowd)


def _codec_seconds(devices: Sequence[DeviceProfile], table: CodecTable) -> Floats:
    """[2, N, K]: encoding and decoding a value."""
    speeds = [[speed_of(name, p.codecs) for name in table.names] for p in devices]
    return np.array(
        [[[s.encode_s for s in row] for row in speeds], [[s.decode_s for s in row] for row in speeds]]
    )


def _sums(seconds: Sequence[tuple[float, ...]]) -> Floats:
    """[N, L + 1]: what the layers before each layer take."""
    sums: Floats = np.zeros((len(seconds), len(seconds[0]) + 1))
    np.cumsum(np.array(seconds), axis=1, out=sums[:, 1:])
    return sums


def _ranges(model: ModelProfile) -> tuple[Floats, Floats, list[list[int]]]:
    """[i, j] of layers i .. j - 1: needed always, more a micro-batch in flight, exchanged (bytes)."""
    n = len(model.layers)
    fixed, saved = (np.zeros((n + 1, n + 1)) for _ in range(2))
    parameters = [[0] * (n + 1) for _ in range(n + 1)]
    for i in range(n):
        for j in range(i + 1, n + 1):
            memory = stage_memory(model, i, j)
            fixed[i, j], saved[i, j] = memory.total_bytes(0), memory.saved_bytes
            parameters[i][j] = exchanged_bytes(model, memory.parameter_bytes)
    return fixed, saved, parameters


def _keys_bytes(model: ModelProfile) -> Floats:
    """[L + 1, L + 1]: of layers i .. j - 1, what counts for the keys of one micro-batch as if it were summed:
    the busiest of a row's links carries D - 1 of D parts each way, as a member of a sharded sum does."""
    shards, n = len(model.bounds), len(model.layers)
    found: Floats = np.zeros((n + 1, n + 1))
    if shards < 2:
        return found
    busiest = [
        sum(k.n_bytes * len(passed_on(model.bounds, shards - 2, k.window)) / (shards - 1) for k in x.keys)
        for x in model.layers
    ]
    upto = np.concatenate([[0.0], np.cumsum(busiest)])
    found[:] = np.maximum(upto[None, :] - upto[:, None], 0.0)
    return found


def tables_for(
    schedule: str, n_stages: int, micro_batches: Sequence[int], warmup_extra: int = 0, behind: int = 0
) -> Tables:
    """The compiled actions of pipelines of `n_stages` with any of these numbers of micro-batches; where they
    hold shards of sequences, of the one with most `behind` it, which keeps most in flight."""
    return _tables(schedule, n_stages, tuple(sorted(set(micro_batches))), warmup_extra, behind)


@lru_cache(maxsize=64)
def _tables(
    schedule: str, n_stages: int, micro_batches: tuple[int, ...], warmup_extra: int, behind: int
) -> Tables:
    most = micro_batches[-1]
    begin, end = np.full(most + 1, -1, dtype=np.int64), np.full(most + 1, -1, dtype=np.int64)
    in_flight = np.zeros((most + 1, n_stages), dtype=np.int64)
    parts = []
    at = 0
    for m in micro_batches:
        table = pipeline_table(schedule, n_stages, m, warmup_extra, behind)
        begin[m], end[m] = at, at + len(table.rows)
        at = int(end[m])
        in_flight[m] = table.in_flight
        parts.append(table.rows)
    return Tables(np.concatenate(parts), begin, end, in_flight)


def new_state(n_replicas: int, n_stages: int) -> State:
    return State(np.zeros((n_replicas, n_stages)), np.zeros(n_stages), np.zeros((n_replicas, 4)))


def layout_of(pricing: Pricing, plan: Plan) -> Layout:
    """The plan's placement, cut and shares as arrays."""
    index = {name: i for i, name in enumerate(pricing.names)}
    cells = np.array([[index[n] for n in pipeline] for pipeline in plan.placement], dtype=np.int64)
    cut = np.array([a for a, _ in plan.partition] + [plan.partition[-1][1]], dtype=np.int64)
    return Layout(cells, cut, np.array(plan.micro_batches, dtype=np.int64))


def layout_step_s(pricing: Pricing, tables: Tables, layout: Layout) -> float:
    """Seconds of one step of `layout`."""
    state = new_state(*layout.cells.shape)
    price_all(pricing.prices, tables, layout, state)
    return total_s(state)[0]


def plan_step_s(pricing: Pricing, plan: Plan) -> float:
    """Seconds of one step of `plan`."""
    order = plan.schedule, plan.n_stages, plan.micro_batches, plan.warmup_extra
    tables = tables_for(*order, plan.sequence_shards - 1)
    return layout_step_s(pricing, tables, layout_of(pricing, plan))


def layout_missing_bytes(pricing: Pricing, tables: Tables, layout: Layout) -> float:
    """How much memory lacks on the device that lacks most; 0 or less: `layout` fits."""
    return missing_bytes(pricing.prices, tables, layout)
