"""Moves from layout to layout, compiled, each priced by what it touches.

A walk proposes moves and accepts by Metropolis' rule; a descent tries every move of every kind until
none gains. Before its pipelines are replayed a move is priced with a floor of their times, and most
bad moves end there. Chance is handed in as numbers drawn before; nothing here draws.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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
    price_all,
    price_pipeline,
    price_tail,
    total_s,
)

SWAP, REPLACE, CROSS, STAGES, BOUNDARY, SHARE, REGIONS = range(7)
"""Two devices change places; one with a device left out; two pipelines exchange what follows a
stage; two stages change places; a layer crosses a boundary; a micro-batch changes replica; the devices
of two regions change places, those that are left out among them."""
N_MOVES = 7

BEHIND = 0.02
"""Weight of what is behind the slowest (`total_s`) when a move is judged: it slopes the plateaus."""


class Draws(NamedTuple):
    """A walk's chance, [moves] each."""

    what: NDArray[np.int8]
    x: Floats
    """In [0, 1), like `y`, `z` and `luck`: what the move is made of, and how bad it may be."""
    y: Floats
    z: Floats
    luck: Floats
    cut_again: NDArray[np.bool_]
    """Whether a move of unlike devices cuts the layers anew."""


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
            keeps_s = prices.activation_bytes[cut[s + 1]] / prices.bandwidth_Bps[d, e]
            worst_s = reach_s + f + n_mb * keeps_s + prices.latency_s[d, e]
            reach_s += f + keeps_s + prices.latency_s[d, e]
        hop_s[s] = b
    # Gradients come back: after the next stage's end, and no faster than the link carries them all.
    d = cells[last]
    back_s = reach_s + prices.forward_s[d, cut[last + 1]] - prices.forward_s[d, cut[last]] + hop_s[last]
    for s in range(last - 1, -1, -1):
        d, e = cells[s + 1], cells[s]
        keeps_s = prices.gradient_bytes[cut[s + 1]] / prices.bandwidth_Bps[d, e]
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
    trial: Search,
    what: int,
    x: int,
    y: int,
    z: int,
    cut_again: bool,
    allowed: float,
) -> tuple[float, float]:
    """Make the move in `trial` (a copy of where the walk stands) and price it: (step, energy).

    Infinite, and `trial` spoilt, where the move is none, does not fit, or costs more than `allowed`.
    SWAP: cells x and y; REPLACE: cell x, spare y; CROSS: replicas x, y from stage z on; STAGES: x, y;
    BOUNDARY: the cut before stage x, down if y is 0 else up; SHARE: from replica x to y; REGIONS: x, y.
    """
    layout, state = trial.layout, trial.state
    cells, cut, shares = layout.cells, layout.cut, layout.shares
    n_replicas, n_stages = cells.shape
    pipelines = np.zeros(n_replicas, dtype=np.bool_)
    groups = np.zeros(n_stages, dtype=np.bool_)
    none = (np.inf, np.inf)
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
    elif what == STAGES:
        if x == y:
            return none
        for r in range(n_replicas):
            cells[r, x], cells[r, y] = cells[r, y], cells[r, x]
        pipelines[:] = True
        groups[x] = True
        groups[y] = True
    elif what == BOUNDARY:
        to = cut[x] + (1 if y else -1)
        if x < 1 or x >= n_stages or to <= cut[x - 1] or to >= cut[x + 1]:
            return none
        cut[x] = to
        pipelines[:] = True
        groups[x] = True
        groups[x - 1] = True
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
    for r in range(n_replicas):
        if pipelines[r]:
            price_tail(prices, layout, r, state.tail_s)
            floor_pipeline(prices, layout, r, state.ends_s)
    if energy(state)[1] > allowed:
        return none
    for r in range(n_replicas):
        if pipelines[r]:
            price_pipeline(prices, tables, layout, r, state.ends_s)
    return energy(state)


@compiled
def walk(
    prices: Prices,
    tables: Tables,
    alike: Ints,
    regions: Ints,
    now: Search,
    trial: Search,
    best: Search,
    draws: Draws,
    hot: float,
    cold: float,
) -> tuple[float, int]:
    """Move from `now`, the temperature falling geometrically (shares of the first step's time).

    `best` becomes the fastest layout met. Returns (its step, the move it was met at, -1: the start).
    """
    price_all(prices, tables, now.layout, now.state)
    n_replicas, n_stages = now.layout.cells.shape
    n_cells, n_spare, n_regions = n_replicas * n_stages, len(now.spare), regions.max() + 1
    best_s, current = energy(now.state)
    copy_search(now, best)
    found_at = -1
    n = len(draws.what)
    cooling = (cold / hot) ** (1.0 / max(1, n - 1))
    temperature = hot * best_s
    for k in range(n):
        what = draws.what[k]
        x, y, z = 0, 0, 0
        if what in (SWAP, REPLACE):
            x = int(draws.x[k] * n_cells)
            y = int(draws.y[k] * (n_cells if what == SWAP else n_spare))
        elif what == CROSS:
            x, y = int(draws.x[k] * n_replicas), int(draws.y[k] * n_replicas)
            z = 1 + int(draws.z[k] * (n_stages - 1))
        elif what == STAGES:
            x, y = int(draws.x[k] * n_stages), int(draws.y[k] * n_stages)
        elif what == REGIONS:
            x, y = int(draws.x[k] * n_regions), int(draws.y[k] * n_regions)
        elif what == BOUNDARY:
            x, y = 1 + int(draws.x[k] * (n_stages - 1)), int(draws.y[k] * 2)
        else:
            x, y = int(draws.x[k] * n_replicas), int(draws.y[k] * n_replicas)
        allowed = current - temperature * np.log(1.0 - draws.luck[k])
        copy_search(now, trial)
        step_s, judged = propose(
            prices, tables, alike, regions, trial, what, x, y, z, draws.cut_again[k], allowed
        )
        if judged <= allowed:
            copy_search(trial, now)
            current = judged
            if step_s < best_s * (1 - 1e-12):
                best_s = step_s
                copy_search(now, best)
                found_at = k
        temperature *= cooling
    return best_s, found_at


@compiled
def descend(
    prices: Prices,
    tables: Tables,
    alike: Ints,
    regions: Ints,
    now: Search,
    trial: Search,
    unlike: bool,
    most: int,
) -> tuple[float, int]:
    """Take every move that gains, kind after kind, until a whole round gains nothing or `most` were tried.

    `unlike`: devices differ in speed or memory, so their moves are tried with the layers cut anew as
    well. Returns (the step, moves tried).
    """
    price_all(prices, tables, now.layout, now.state)
    n_replicas, n_stages = now.layout.cells.shape
    n_cells = n_replicas * n_stages
    step_s, current = energy(now.state)
    tried, since = 0, 0
    n_regions = regions.max() + 1
    if n_regions == len(regions):  # then they are devices, and SWAP is the same
        n_regions = 0
    sizes = np.array(
        [
            [n_cells, n_cells, 1],
            [n_cells, len(now.spare), 1],
            [n_replicas, n_replicas, n_stages],
            [n_stages, n_stages, 1],
            [n_stages, 2, 1],
            [n_replicas, n_replicas, 1],
            [n_regions, n_regions, 1],
        ]
    )
    whole = 0
    for what in range(N_MOVES):
        whole += sizes[what].prod() * (2 if unlike and what <= REPLACE else 1)
    while since < whole:
        for what in range(N_MOVES):
            again = 2 if unlike and what <= REPLACE else 1
            for x in range(sizes[what, 0]):
                for y in range(sizes[what, 1]):
                    if y <= x and what in (SWAP, CROSS, STAGES, REGIONS):
                        since += sizes[what, 2] * again
                        continue
                    for z in range(sizes[what, 2]):
                        for cut_again in range(again):
                            since += 1
                            if tried >= most or since > whole:
                                return step_s, tried
                            tried += 1
                            copy_search(now, trial)
                            found_s, judged = propose(
                                prices, tables, alike, regions, trial, what, x, y, z, cut_again == 1, current
                            )
                            if judged < current * (1 - 1e-12) and found_s <= step_s:
                                copy_search(trial, now)
                                step_s, current, since = found_s, judged, 0
    return step_s, tried


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


@compiled
def exhaust(
    prices: Prices,
    tables: Tables,
    kinds: Ints,
    cuts: Ints,
    now: Search,
    best: Search,
    price: bool,
    most: int,
) -> tuple[float, int]:
    """Try every placement on all devices, with every cut of `cuts` [C, S + 1] (none given: `cut_layers`).

    Placements that differ only in interchangeable devices, or in the order of replicas with equal
    shares, count once. `best` becomes the fastest that fits. Returns (its step, placements met), -1
    placements when there are more than `most`; without `price` they are only counted.
    """
    layout, state = now.layout, now.state
    n_replicas, n_stages = layout.cells.shape
    n_devices, n_cells = len(kinds), n_replicas * n_stages
    equal = layout.shares.min() == layout.shares.max()
    flat = layout.cells.reshape(n_cells)
    used = np.zeros(n_devices, dtype=np.bool_)
    at, count = 0, 0
    best_s = np.inf
    flat[:] = -1
    while at >= 0:
        if flat[at] >= 0:
            used[flat[at]] = False
        d = flat[at] + 1
        while d < n_devices:
            free = not used[d]
            for e in range(d):  # of interchangeable devices the first free one stands for all
                if free and not used[e] and kinds[e] == kinds[d]:
                    free = False
            if free and equal and at % n_stages == 0 and at > 0:
                free = kinds[d] >= kinds[flat[at - n_stages]]
            if free:
                break
            d += 1
        if d == n_devices:
            flat[at] = -1
            at -= 1
            continue
        flat[at] = d
        used[d] = True
        if at < n_cells - 1:
            at += 1
            continue
        count += 1
        if count > most:
            return best_s, -1
        if not price:
            continue
        for c in range(max(1, len(cuts))):
            if len(cuts):
                layout.cut[:] = cuts[c]
            elif not cut_layers(prices, tables, layout):
                continue
            if missing_bytes(prices, tables, layout) > 0:
                continue
            if floor_s(prices, layout, state) >= best_s:
                continue
            price_all(prices, tables, layout, state)
            step_s = total_s(state)[0]
            if step_s < best_s:
                best_s = step_s
                best.layout.cells[:] = layout.cells
                best.layout.cut[:] = layout.cut
                best.layout.shares[:] = layout.shares
    used[:] = False
    for r in range(n_replicas):
        for s in range(n_stages):
            used[best.layout.cells[r, s]] = True
    k = 0
    for d in range(n_devices):
        if not used[d] and k < len(best.spare):
            best.spare[k] = d
            k += 1
    return best_s, count
