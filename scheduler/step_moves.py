"""Moves from layout to layout, compiled, each priced by what it touches.

Before its pipelines are replayed a move is priced with a floor of their times, and most bad moves end
there. Which moves are made is `step_walk.py`'s.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from scheduler.compiled import compiled
from scheduler.step_kernels import (
    Floats,
    Ints,
    Layout,
    Prices,
    State,
    Tables,
    exchange_s,
    missing_bytes,
    price_pipeline,
    price_tail,
    total_s,
)
from scheduler.step_memo import Memo, key_of, recall, remember

SWAP, REPLACE, CROSS, STAGES, REVERSE, LAYER, SHARE, REGIONS = range(8)
"""Two devices change places; one with a device left out; two pipelines exchange what follows a
stage; two stages change places; the stages from one to another are turned round; a stage gives a layer to
another, and those between pass one on; a micro-batch changes replica; the devices of two regions change
places, those that are left out among them."""
N_MOVES = 8

MOVE_WORK, TASKLET_WORK, GROUP_WORK = 200, 6, 1
"""What a move costs besides its replays, in actions: in any case, a tasklet, a pair of a group."""
BEHIND = 0.02
"""Weight of what is behind the slowest (`total_s`) when a move is judged: it slopes the plateaus."""


class Search(NamedTuple):
    """A layout under way, with the devices it leaves out."""

    layout: Layout
    spare: Ints
    state: State


@compiled
def cut_layers(prices: Prices, tables: Tables, layout: Layout) -> bool:
    """Cut the layers anew: least slowest stage (seconds x share), then most even, within memory.

    Exact by dynamic programming over (stages, layers). False, and nothing changed, if no cut fits.
    """
    cells, shares = layout.cells, layout.shares
    n_replicas, n_stages = cells.shape
    n_layers = prices.forward_s.shape[1] - 1
    cost = np.full((n_stages, n_layers + 1, n_layers + 1), np.inf)
    for s in range(n_stages):
        for i in range(s, n_layers):
            for j in range(i + 1, n_layers - (n_stages - 1 - s) + 1):
                slowest = 0.0
                for r in range(n_replicas):
                    d = cells[r, s]
                    needed = prices.fixed_bytes[i, j]
                    needed += tables.in_flight[shares[r], s] * prices.saved_bytes[i, j]
                    if needed > prices.memory_bytes[d]:
                        slowest = np.inf
                        break
                    seconds = prices.forward_s[d, j] - prices.forward_s[d, i]
                    seconds += prices.backward_s[d, j] - prices.backward_s[d, i]
                    slowest = max(slowest, seconds * shares[r])
                cost[s, i, j] = slowest
    within = np.inf
    choice = np.zeros((n_stages, n_layers + 1), dtype=np.int64)
    for even in range(2):
        best = cost[0, 0].copy()
        if even:
            for j in range(n_layers + 1):
                best[j] = best[j] * best[j] if best[j] <= within else np.inf
        for s in range(1, n_stages):
            following = np.full(n_layers + 1, np.inf)
            for j in range(s + 1, n_layers + 1):
                for i in range(s, j):
                    paid = cost[s, i, j]
                    if even:
                        paid = best[i] + paid * paid if paid <= within else np.inf
                    else:
                        paid = max(best[i], paid)
                    if paid < following[j]:
                        following[j] = paid
                        choice[s, j] = i
            best = following
        if not np.isfinite(best[n_layers]):
            return False
        within = best[n_layers] * (1 + 1e-12)
    at = n_layers
    for s in range(n_stages - 1, -1, -1):
        layout.cut[s + 1] = at
        at = choice[s, at] if s else 0
    layout.cut[0] = 0
    return True


@compiled
def floor_pipeline(prices: Prices, layout: Layout, replica: int, ends_s: Floats) -> None:
    """Fill ends_s[replica] with times that no schedule can end before."""
    cells, cut, n_mb = layout.cells[replica], layout.cut, layout.shares[replica]
    last = len(cells) - 1
    reach_s = 0.0  # when the first micro-batch is there
    worst_s = 0.0
    hop_s = np.zeros(last + 1)
    for s in range(last + 1):
        d = cells[s]
        f = prices.forward_s[d, cut[s + 1]] - prices.forward_s[d, cut[s]]
        b = prices.backward_s[d, cut[s + 1]] - prices.backward_s[d, cut[s]]
        worst_s = max(reach_s + n_mb * (f + b), worst_s + f + b)
        ends_s[replica, s] = worst_s
        if s < last:
            e = cells[s + 1]
            keeps_s = (
                prices.activation_bytes[prices.activation_codec[d, e], cut[s + 1]]
                / prices.bandwidth_Bps[d, e]
            )
            worst_s = reach_s + f + n_mb * keeps_s + prices.latency_s[d, e]
            reach_s += f + keeps_s + prices.latency_s[d, e]
        hop_s[s] = b
    # Gradients come back: after the next stage's end, and no faster than the link carries them all.
    d = cells[last]
    back_s = reach_s + prices.forward_s[d, cut[last + 1]] - prices.forward_s[d, cut[last]] + hop_s[last]
    for s in range(last - 1, -1, -1):
        d, e = cells[s + 1], cells[s]
        keeps_s = prices.gradient_bytes[prices.gradient_codec[d, e], cut[s + 1]] / prices.bandwidth_Bps[d, e]
        latency_s = prices.latency_s[d, e]
        end_s = max(ends_s[replica, s + 1] + keeps_s, back_s + n_mb * keeps_s) + latency_s + hop_s[s]
        ends_s[replica, s] = max(ends_s[replica, s], end_s)
        back_s += keeps_s + latency_s + hop_s[s]


@compiled
def energy(state: State) -> tuple[float, float]:
    """(the step's time, what a move is judged by)."""
    step_s, behind_s = total_s(state)
    return step_s, step_s + BEHIND * behind_s


@compiled
def copy_search(source: Search, target: Search) -> None:
    target.layout.cells[:] = source.layout.cells
    target.layout.cut[:] = source.layout.cut
    target.layout.shares[:] = source.layout.shares
    target.spare[:] = source.spare
    target.state.ends_s[:] = source.state.ends_s
    target.state.exchange_s[:] = source.state.exchange_s
    target.state.tail_s[:] = source.state.tail_s


@compiled
def exchange_regions(trial: Search, regions: Ints, x: int, y: int) -> bool:
    """Put the devices of region x where those of y are and the other way round, as far as either has some.

    False if neither is in use.
    """
    n_devices = len(regions)
    partner = np.full(n_devices, -1, dtype=np.int64)
    a, b = 0, 0
    while True:
        while a < n_devices and regions[a] != x:
            a += 1
        while b < n_devices and regions[b] != y:
            b += 1
        if a == n_devices or b == n_devices:
            break
        partner[a], partner[b] = b, a
        a += 1
        b += 1
    moved = False
    flat = trial.layout.cells.reshape(trial.layout.cells.size)
    for k in range(len(flat)):
        if partner[flat[k]] >= 0:
            flat[k] = partner[flat[k]]
            moved = True
    for k in range(len(trial.spare)):
        if partner[trial.spare[k]] >= 0:
            trial.spare[k] = partner[trial.spare[k]]
    return moved


@compiled
def propose(
    prices: Prices,
    tables: Tables,
    alike: Ints,
    regions: Ints,
    memo: Memo,
    trial: Search,
    what: int,
    x: int,
    y: int,
    z: int,
    cut_again: bool,
    allowed: float,
    replay: bool,
) -> tuple[float, float]:
    """Make the move in `trial` (a copy of where the walk stands) and price it: (step, energy); by floors
    alone unless `replay`.

    Infinite, and `trial` spoilt, where the move is none, does not fit, or costs more than `allowed`.
    SWAP: cells x, y; REPLACE: cell x, spare y; CROSS: replicas x, y from stage z on; STAGES, REVERSE: x, y;
    LAYER: from stage x to y; SHARE: from replica x to y; REGIONS: x, y.
    """
    layout, state = trial.layout, trial.state
    cells, cut, shares = layout.cells, layout.cut, layout.shares
    n_replicas, n_stages = cells.shape
    pipelines = np.zeros(n_replicas, dtype=np.bool_)
    groups = np.zeros(n_stages, dtype=np.bool_)
    none = (np.inf, np.inf)
    memo.work[0] += MOVE_WORK + TASKLET_WORK * n_replicas * n_stages
    if what in (SWAP, REPLACE):
        r, s = x // n_stages, x % n_stages
        a = cells[r, s]
        if what == SWAP:
            q, t = y // n_stages, y % n_stages
            b = cells[q, t]
            if alike[a] == alike[b]:
                return none
            cells[q, t] = a
            pipelines[q] = True
            if s != t:
                groups[t] = True
                groups[s] = True
        else:
            b = trial.spare[y]
            if alike[a] == alike[b]:
                return none
            trial.spare[y] = a
            groups[s] = True
        cells[r, s] = b
        pipelines[r] = True
        if cut_again:
            if not cut_layers(prices, tables, layout):
                return none
            pipelines[:] = True
            groups[:] = True
    elif what == CROSS:
        if x == y or z < 1 or z >= n_stages:
            return none
        for s in range(z, n_stages):
            cells[x, s], cells[y, s] = cells[y, s], cells[x, s]
        pipelines[x] = True
        pipelines[y] = True
    elif what in (STAGES, REVERSE):
        low, high = min(x, y), max(x, y)
        if low == high or (what == REVERSE and high - low < 3):  # shorter ones are exchanges
            return none
        pipelines[:] = True
        while low < high:
            for r in range(n_replicas):
                cells[r, low], cells[r, high] = cells[r, high], cells[r, low]
            groups[low] = True
            groups[high] = True
            if what == STAGES:
                break
            low += 1
            high -= 1
        if cut_again:
            if not cut_layers(prices, tables, layout):
                return none
            groups[:] = True
    elif what == LAYER:
        if x == y or cut[x + 1] - cut[x] < 2:
            return none
        for k in range(min(x, y) + 1, max(x, y) + 1):
            cut[k] += -1 if x < y else 1
        pipelines[:] = True
        for k in range(min(x, y), max(x, y) + 1):
            groups[k] = True
    elif what == REGIONS:
        if x == y or not exchange_regions(trial, regions, x, y):
            return none
        pipelines[:] = True
        groups[:] = True
        if cut_again and not cut_layers(prices, tables, layout):
            return none
    else:
        if x == y or shares[x] < 2:
            return none
        more, less = shares[y] + 1, shares[x] - 1
        if more >= len(tables.begin) or tables.begin[more] < 0 or tables.begin[less] < 0:
            return none
        shares[x], shares[y] = less, more
        pipelines[x] = True
        pipelines[y] = True
    if missing_bytes(prices, tables, layout) > 0:
        return none
    for s in range(n_stages):
        if groups[s]:
            state.exchange_s[s] = exchange_s(prices, layout, s)
            memo.work[0] += GROUP_WORK * n_replicas * n_replicas
    # The tied swap of every replica has the codec of the first stage's exchange.
    own_swaps = len(prices.tied_bytes) > 1 and prices.tied_bytes[0] > 0
    keys = np.zeros(n_replicas, dtype=np.uint64)
    for r in range(n_replicas):
        known = False
        if pipelines[r]:
            key = key_of(alike, layout, r)
            known = replay and recall(memo, key, state.ends_s[r], state.tail_s[r])
            if not known:
                keys[r] = key
                floor_pipeline(prices, layout, r, state.ends_s)
        if (pipelines[r] and not known) or (own_swaps and (pipelines[r] or groups[0])):
            price_tail(prices, layout, r, state.tail_s)
    if energy(state)[1] > allowed:
        return none
    for r in range(n_replicas if replay else 0):
        if keys[r] != 0 and not recall(memo, keys[r], state.ends_s[r], state.tail_s[r]):
            price_pipeline(prices, tables, layout, r, state.ends_s)
            remember(memo, keys[r], state.ends_s[r], state.tail_s[r])
            memo.work[0] += tables.end[shares[r]] - tables.begin[shares[r]]
            if energy(state)[1] > allowed:
                return none
    return energy(state)


@compiled
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
