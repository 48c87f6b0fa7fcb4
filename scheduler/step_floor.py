"""Floors of a layout's time, compiled: what no schedule ends before, for a hundredth of a replay's work."""

from __future__ import annotations

from scheduler.compiled import kernel
from scheduler.step_kernels import Floats, Layout, Prices, State, exchange_s, price_tail, total_s


@kernel
def floor_pipeline(prices: Prices, layout: Layout, replica: int, ends_s: Floats) -> None:
    """Fill ends_s[replica] with times that no schedule can end before."""
    cells, cut, n_mb = layout.cells, layout.cut, layout.shares[replica]
    last = cells.shape[1] - 1
    reach_s = 0.0  # when the first micro-batch is there
    worst_s = 0.0
    for s in range(last + 1):
        d = cells[replica, s]
        f = prices.forward_s[d, cut[s + 1]] - prices.forward_s[d, cut[s]]
        b = prices.backward_s[d, cut[s + 1]] - prices.backward_s[d, cut[s]]
        worst_s = max(reach_s + n_mb * (f + b), worst_s + f + b)
        ends_s[replica, s] = worst_s
        reach_s += f
        if s < last:
            e = cells[replica, s + 1]
            keeps_s = (
                prices.activation_bytes[prices.activation_codec[d, e], cut[s + 1]]
                / prices.bandwidth_Bps[d, e]
            )
            latency_s = prices.latency_s[d, e]
            worst_s = reach_s + n_mb * keeps_s + latency_s
            reach_s += keeps_s + latency_s
    # Gradients come back: after the next stage's end, and no faster than the link carries them all.
    d = cells[replica, last]
    back_s = reach_s + prices.backward_s[d, cut[last + 1]] - prices.backward_s[d, cut[last]]
    for s in range(last - 1, -1, -1):
        d, e = cells[replica, s + 1], cells[replica, s]
        b = prices.backward_s[e, cut[s + 1]] - prices.backward_s[e, cut[s]]
        keeps_s = prices.gradient_bytes[prices.gradient_codec[d, e], cut[s + 1]] / prices.bandwidth_Bps[d, e]
        latency_s = prices.latency_s[d, e]
        end_s = max(ends_s[replica, s + 1] + keeps_s, back_s + n_mb * keeps_s) + latency_s + b
        ends_s[replica, s] = max(ends_s[replica, s], end_s)
        back_s += keeps_s + latency_s + b


@kernel
def floor_s(prices: Prices, layout: Layout, state: State) -> float:
    """A step time that `layout` cannot stay below under any schedule, from its devices, cut and shares."""
    n_replicas, n_stages = layout.cells.shape
    for r in range(n_replicas):
        floor_pipeline(prices, layout, r, state.ends_s)
        price_tail(prices, layout, r, state.tail_s)
    for s in range(n_stages):
        state.exchange_s[s] = exchange_s(prices, layout, s)
    step_s: float = total_s(state)[0]
    return step_s
