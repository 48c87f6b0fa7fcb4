"""The recurrences of a step's time, compiled: what `engine.py` does event by event where nothing is shared.

A pipeline's actions depend on its own devices only, so its stages' ends follow from one pass over its
table (`action_table.py`): an action begins when its stage is free and its tensor there, a transfer
when the link's last one has left. What couples pipelines comes after: the exchange of each stage's
gradients, the tied weight, the norm, the optimizer. A state keeps the parts apart, so that a
move of devices prices two pipelines and two groups again, not everything.

Shared cores, uplinks and downlinks are left out; `step_time.py` says what that means.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.action_table import (
    BACKWARD,
    FORWARD,
    RECV_ACTIVATION,
    RECV_GRADIENT,
    SEND_ACTIVATION,
)
from scheduler.compiled import compiled, kernel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NORM_BYTES = 8.0


class Prices(NamedTuple):
    """N devices, L layers, K codecs. A stage of layers i .. j - 1 costs a difference of sums, or [i, j]."""

    latency_s: Floats
    """[N, N]"""
    bandwidth_Bps: Floats
    """[N, N]"""
    forward_s: Floats
    """[N, L + 1]: sums over the layers before; so are `backward_s` and `optimizer_s`."""
    backward_s: Floats
    optimizer_s: Floats
    activation_codec: NDArray[np.int8]
    """[N, N]: which of the K codecs a link has; so are `gradient_codec` and `reduce_codec`."""
    activation_bytes: Floats
    """[K, L + 1]: on the wire over the boundary in front of layer j; so is `gradient_bytes`."""
    gradient_codec: NDArray[np.int8]
    gradient_bytes: Floats
    reduce_codec: NDArray[np.int8]
    """The least among a stage's replicas is that of their exchange (`group_codec`)."""
    reduce_bytes: Floats
    """[K, L + 1, L + 1]"""
    tied_bytes: Floats
    """[K]"""
    activation_codec_s: Floats
    """[2, N, K]: encoding and decoding a value; so are `gradient_codec_s` and `reduce_codec_s`."""
    gradient_codec_s: Floats
    reduce_codec_s: Floats
    boundary_values: Floats
    """[L + 1]: in a tensor over the boundary in front of layer j."""
    parameter_values: Floats
    """[L + 1, L + 1]"""
    tied_values: float
    memory_bytes: Floats
    """[N]; infinite where not known."""
    fixed_bytes: Floats
    """[L + 1, L + 1]: needed whatever is in flight; `saved_bytes`: once more for each micro-batch."""
    saved_bytes: Floats
    beside: float
    """1: the exchange begins with the step and goes beside it (local steps); 0: behind the backwards."""


class Tables(NamedTuple):
    """The compiled actions of pipelines of one number of stages, by number of micro-batches."""

    rows: NDArray[np.int32]
    """[K, 3]: all tables, one after the other."""
    begin: Ints
    """[M + 1]: where the table for m micro-batches begins, -1: not made; so is `end`."""
    end: Ints
    in_flight: Ints
    """[M + 1, S]"""


class Layout(NamedTuple):
    """What is judged: who holds which tasklet, the cut, and each replica's share of the batch."""

    cells: Ints
    """[R, S]: device of each tasklet."""
    cut: Ints
    """[S + 1]: first layer of each stage, and the number of layers."""
    shares: Ints
    """[R]: micro-batches."""


class State(NamedTuple):
    """The parts of a layout's time."""

    ends_s: Floats
    """[R, S]: when each tasklet has done its last backward."""
    exchange_s: Floats
    """[S]"""
    tail_s: Floats
    """[R, 4]: tied swap, norm, optimizer of each replica; and `Prices.beside`."""


@compiled
def price_pipeline(prices: Prices, tables: Tables, layout: Layout, replica: int, ends_s: Floats) -> None:
    """Fill ends_s[replica]."""
    cells, cut = layout.cells[replica], layout.cut
    n_stages, n_mb = len(cells), layout.shares[replica]
    forward_s, backward_s = np.empty(n_stages), np.empty(n_stages)
    down_s, down_latency_s = np.zeros(n_stages), np.zeros(n_stages)
    up_s, up_latency_s = np.zeros(n_stages), np.zeros(n_stages)
    down_codec_s, up_codec_s = np.zeros((2, n_stages)), np.zeros((2, n_stages))
    for s in range(n_stages):
        d = cells[s]
        forward_s[s] = prices.forward_s[d, cut[s + 1]] - prices.forward_s[d, cut[s]]
        backward_s[s] = prices.backward_s[d, cut[s + 1]] - prices.backward_s[d, cut[s]]
        if s + 1 < n_stages:
            e = cells[s + 1]
            codec, values = prices.activation_codec[d, e], prices.boundary_values[cut[s + 1]]
            down_s[s] = prices.activation_bytes[codec, cut[s + 1]] / prices.bandwidth_Bps[d, e]
            down_codec_s[0, s] = values * prices.activation_codec_s[0, d, codec]
            down_codec_s[1, s] = values * prices.activation_codec_s[1, e, codec]
            down_latency_s[s] = prices.latency_s[d, e]
        if s > 0:
            e = cells[s - 1]
            codec, values = prices.gradient_codec[d, e], prices.boundary_values[cut[s]]
            up_s[s] = prices.gradient_bytes[codec, cut[s]] / prices.bandwidth_Bps[d, e]
            up_codec_s[0, s] = values * prices.gradient_codec_s[0, d, codec]
            up_codec_s[1, s] = values * prices.gradient_codec_s[1, e, codec]
            up_latency_s[s] = prices.latency_s[d, e]
    clock_s = np.zeros(n_stages)
    encoder_free_s, decoded_s = np.zeros(n_stages), np.zeros((2, n_stages))
    down_free_s, up_free_s = np.zeros(n_stages), np.zeros(n_stages)
    activation_s, gradient_s = np.empty((n_stages, n_mb)), np.empty((n_stages, n_mb))
    rows = tables.rows
    for k in range(tables.begin[n_mb], tables.end[n_mb]):
        what, s, mb = rows[k, 0], rows[k, 1], rows[k, 2]
        if what == FORWARD:
            clock_s[s] += forward_s[s]
        elif what == BACKWARD:
            clock_s[s] += backward_s[s]
        elif what == RECV_ACTIVATION:
            clock_s[s] = max(clock_s[s], activation_s[s, mb])
        elif what == RECV_GRADIENT:
            clock_s[s] = max(clock_s[s], gradient_s[s, mb])
        elif what == SEND_ACTIVATION:
            ready_s = clock_s[s]
            if down_codec_s[0, s] > 0:
                ready_s = encoder_free_s[s] = max(ready_s, encoder_free_s[s]) + down_codec_s[0, s]
            left_s = max(ready_s, down_free_s[s]) + down_s[s]
            down_free_s[s] = left_s
            there_s = left_s + down_latency_s[s]
            if down_codec_s[1, s] > 0:
                there_s = decoded_s[0, s] = max(there_s, decoded_s[0, s]) + down_codec_s[1, s]
            activation_s[s + 1, mb] = there_s
        else:
            ready_s = clock_s[s]
            if up_codec_s[0, s] > 0:
                ready_s = encoder_free_s[s] = max(ready_s, encoder_free_s[s]) + up_codec_s[0, s]
            left_s = max(ready_s, up_free_s[s]) + up_s[s]
            up_free_s[s] = left_s
            there_s = left_s + up_latency_s[s]
            if up_codec_s[1, s] > 0:
                there_s = decoded_s[1, s] = max(there_s, decoded_s[1, s]) + up_codec_s[1, s]
            gradient_s[s - 1, mb] = there_s
    ends_s[replica] = clock_s


@kernel
def group_codec(prices: Prices, layout: Layout, stage: int) -> int:
    """The codec of the exchange among the replicas of `stage`; of one, that of a weight its ends tie."""
    cells, of = layout.cells, prices.reduce_codec
    if len(prices.tied_bytes) == 1:
        return 0
    least = 127
    if len(cells) == 1:
        a, b = cells[0, 0], cells[0, cells.shape[1] - 1]
        least = min(of[a, b], of[b, a])
    for r in range(len(cells)):
        for q in range(len(cells)):
            if q != r:
                least = min(least, of[cells[r, stage], cells[q, stage]])
    return least


@kernel
def price_tail(prices: Prices, layout: Layout, replica: int, tail_s: Floats) -> None:
    """Fill tail_s[replica]: the tied swap, the slowest norm message, the slowest optimizer."""
    tail_s[replica, 3] = prices.beside
    cells, cut = layout.cells, layout.cut
    last = cells.shape[1] - 1
    tied_s, norm_s, optimizer_s = 0.0, 0.0, 0.0
    if last > 0 and prices.tied_bytes[0] > 0:
        codec = group_codec(prices, layout, 0) if len(prices.tied_bytes) > 1 else 0
        for k in range(2):  # there and back
            d, e = cells[replica, k * last], cells[replica, last - k * last]
            codec_s = prices.reduce_codec_s[0, d, codec] + prices.reduce_codec_s[1, e, codec]
            sent_s = prices.tied_bytes[codec] / prices.bandwidth_Bps[d, e] + prices.latency_s[d, e]
            tied_s = max(tied_s, sent_s + prices.tied_values * codec_s)
    for s in range(last + 1):
        d = cells[replica, s]
        optimizer_s = max(optimizer_s, prices.optimizer_s[d, cut[s + 1]] - prices.optimizer_s[d, cut[s]])
        for t in range(last + 1):
            if t != s:
                e = cells[replica, t]
                over_s = norm_s - prices.latency_s[d, e]
                if over_s * prices.bandwidth_Bps[d, e] < NORM_BYTES:  # to divide for each takes long
                    norm_s = NORM_BYTES / prices.bandwidth_Bps[d, e] + prices.latency_s[d, e]
    tail_s[replica, 0], tail_s[replica, 1], tail_s[replica, 2] = tied_s, norm_s, optimizer_s


@kernel
def exchange_s(prices: Prices, layout: Layout, stage: int) -> float:
    """Both rounds of a stage's gradient exchange."""
    cells, latency, bandwidth = layout.cells, prices.latency_s, prices.bandwidth_Bps
    encode, decode = prices.reduce_codec_s[0], prices.reduce_codec_s[1]
    n_replicas = len(cells)
    codec = group_codec(prices, layout, stage) if len(prices.tied_bytes) > 1 else 0
    shard_bytes = prices.reduce_bytes[codec, layout.cut[stage], layout.cut[stage + 1]] / n_replicas
    shard_values = prices.parameter_values[layout.cut[stage], layout.cut[stage + 1]] / n_replicas
    first_s, second_s = 0.0, 0.0
    for r in range(n_replicas):
        d = cells[r, stage]
        sent_s = 0.0
        for q in range(n_replicas):
            if q != r:
                e = cells[q, stage]
                sent_s += shard_bytes / bandwidth[d, e] + latency[d, e]
                if decode[e, codec] > 0:
                    sent_s += shard_values * decode[e, codec]
        encode_s = shard_values * encode[d, codec]
        first_s = max(first_s, sent_s + (n_replicas - 1) * encode_s)
        second_s = max(second_s, sent_s + encode_s if n_replicas > 1 else 0.0)
    return first_s + second_s


@compiled
def price_all(prices: Prices, tables: Tables, layout: Layout, state: State) -> None:
    """Every part of the state, from scratch."""
    for r in range(len(layout.cells)):
        price_pipeline(prices, tables, layout, r, state.ends_s)
        price_tail(prices, layout, r, state.tail_s)
    for s in range(layout.cells.shape[1]):
        state.exchange_s[s] = exchange_s(prices, layout, s)


@kernel
def total_s(state: State) -> tuple[float, float]:
    """(the step's time, the mean over stages and replicas of when they are through).

    The second says what the first, a maximum, cannot: whether something behind the slowest got better.
    """
    ends, exchange, tail = state.ends_s, state.exchange_s, state.tail_s
    n_replicas, n_stages = ends.shape
    last = n_stages - 1
    beside = tail[0, 3] > 0
    reduced_s, tied_from_s, mean_s, outer_s = 0.0, 0.0, 0.0, 0.0
    for s in range(n_stages):
        slowest_s = 0.0
        for r in range(n_replicas):
            slowest_s = max(slowest_s, ends[r, s])
        if beside:
            slowest_s = max(slowest_s, exchange[s])
            outer_s = max(outer_s, exchange[s])
        else:
            slowest_s += exchange[s]
        mean_s += slowest_s
        reduced_s = max(reduced_s, slowest_s)
        if s in (0, last):
            tied_from_s = max(tied_from_s, slowest_s)
    mean_s /= n_stages
    step_s, own_s = 0.0, 0.0
    for r in range(n_replicas):
        start_s = max(reduced_s, tied_from_s + tail[r, 0])
        if beside:  # replicas wait for one another's pieces, not for one another's backwards
            start_s = max(outer_s, max(ends[r, 0], ends[r, last]) + tail[r, 0])
            for s in range(n_stages):
                start_s = max(start_s, ends[r, s])
        end_s = start_s + tail[r, 1] + tail[r, 2]
        step_s = max(step_s, end_s)
        slowest_s = 0.0
        for s in range(n_stages):
            slowest_s = max(slowest_s, ends[r, s])
        own_s += slowest_s + tail[r, 0] + tail[r, 1] + tail[r, 2]
    return step_s, 0.5 * (mean_s + own_s / n_replicas)


@kernel
def missing_bytes(prices: Prices, tables: Tables, layout: Layout) -> float:
    """How much memory lacks on the device that lacks most; 0 or less: the layout fits."""
    cells, cut, shares = layout.cells, layout.cut, layout.shares
    memory, in_flight = prices.memory_bytes, tables.in_flight
    worst = -np.inf
    n_replicas, n_stages = cells.shape
    for s in range(n_stages):
        fixed = prices.fixed_bytes[cut[s], cut[s + 1]]
        saved = prices.saved_bytes[cut[s], cut[s + 1]]
        for r in range(n_replicas):
            needed = fixed + in_flight[shares[r], s] * saved
            worst = max(worst, needed - memory[cells[r, s]])
    return worst
