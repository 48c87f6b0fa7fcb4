"""Ways through the layouts of a case, compiled: a walk, a descent, all of them.

A walk proposes moves (`step_moves.py`) and accepts by Metropolis' rule; a descent tries every move of every
kind until none gains; few placements are all tried. Chance is handed in as numbers drawn before;
nothing here draws.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.compiled import compiled, kernel
from scheduler.step_cut import cut_layers
from scheduler.step_floor import floor_s
from scheduler.step_kernels import Floats, Ints, Prices, Tables, missing_bytes, price_all, total_s
from scheduler.step_memo import Memo
from scheduler.step_moves import (
    CROSS,
    LAYER,
    N_MOVES,
    REGIONS,
    REPLACE,
    REVERSE,
    SHARE,
    STAGES,
    SWAP,
    TRADE,
    Search,
    copy_search,
    energy,
    propose,
)

NEAR = 0.5
"""Share of exchanges within a region: they leave alone which regions hold which stages."""


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


@kernel
def next_near(cells: Ints, alike: Ints, regions: Ints, x: int, y: int) -> int:
    """The first cell from y on whose device is of the region of cell x's and not its like; y if there is
    none."""
    n_stages = cells.shape[1]
    n_cells = cells.size
    own = cells[x // n_stages, x % n_stages]
    for k in range(n_cells):
        at = (y + k) % n_cells
        d = cells[at // n_stages, at % n_stages]
        if regions[d] == regions[own] and alike[d] != alike[own]:
            return at
    return y


@compiled
def walk(
    prices: Prices,
    tables: Tables,
    alike: Ints,
    regions: Ints,
    memo: Memo,
    now: Search,
    trial: Search,
    best: Search,
    draws: Draws,
    temperature_s: tuple[float, float],
    until: int,
    replay: bool,
) -> int:
    """Move on from `now`, both priced, until the draws or the work (`memo.work`) are spent; `replay` as in
    `propose`.

    The temperature falls geometrically with the work, from the first to the second. `best` becomes the
    fastest layout met. Returns the moves made.
    """
    n_replicas, n_stages = now.layout.cells.shape
    n_cells, n_spare, n_regions = n_replicas * n_stages, len(now.spare), regions.max() + 1
    best_s, current = total_s(best.state)[0], energy(now.state)[1]
    hot_s, cold_s = temperature_s
    cooling = np.log(cold_s / hot_s) / until
    for k in range(len(draws.what)):
        if memo.work[0] >= until:
            return k
        what = draws.what[k]
        x, y, z = 0, 0, 0
        if what == REPLACE:
            x, y = int(draws.x[k] * n_cells), int(draws.y[k] * n_spare)
        elif what in (SWAP, TRADE):
            x, y = int(draws.x[k] * n_cells), int(draws.y[k] * n_cells)
            if draws.z[k] < NEAR:
                y = next_near(now.layout.cells, alike, regions, x, y)
        elif what == CROSS:
            x, y = int(draws.x[k] * n_replicas), int(draws.y[k] * n_replicas)
            z = 1 + int(draws.z[k] * (n_stages - 1))
        elif what in (STAGES, REVERSE, LAYER):
            x, y = int(draws.x[k] * n_stages), int(draws.y[k] * n_stages)
        elif what == REGIONS:
            x, y = int(draws.x[k] * n_regions), int(draws.y[k] * n_regions)
        else:
            x, y = int(draws.x[k] * n_replicas), int(draws.y[k] * n_replicas)
        temperature = hot_s * np.exp(cooling * memo.work[0])
        allowed = current - temperature * np.log(1.0 - draws.luck[k])
        copy_search(now, trial)
        step_s, judged = propose(
            prices, tables, alike, regions, memo, trial, what, x, y, z, draws.cut_again[k], allowed, replay
        )
        if judged <= allowed:
            copy_search(trial, now)
            current = judged
            if step_s < best_s * (1 - 1e-12):
                best_s = step_s
                copy_search(now, best)
    return len(draws.what)


@compiled
def descend(
    prices: Prices,
    tables: Tables,
    alike: Ints,
    regions: Ints,
    memo: Memo,
    now: Search,
    trial: Search,
    unlike: bool,
    whole_stages: bool,
    until: int,
) -> int:
    """Take every move that gains, kind after kind, until a whole round gains nothing or the work is spent.

    `now` is priced. `unlike`: devices differ in speed or memory, so their moves are tried with the layers
    cut anew as well; `whole_stages`: only moves of whole stages and layers. Returns the moves tried.
    """
    n_replicas, n_stages = now.layout.cells.shape
    n_cells = n_replicas * n_stages
    step_s, current = energy(now.state)
    tried, since = 0, 0
    n_regions = regions.max() + 1
    if n_regions == len(regions):  # then they are devices, and SWAP is the same
        n_regions = 0
    sizes = np.zeros((N_MOVES, 3), dtype=np.int64)
    sizes[STAGES] = n_stages, n_stages, 1
    sizes[REVERSE] = n_stages, n_stages, 1
    sizes[LAYER] = n_stages, n_stages, 1
    if not whole_stages:
        sizes[SWAP] = n_cells, n_cells, 1
        sizes[TRADE] = n_cells, n_cells, 1
        sizes[REPLACE] = n_cells, len(now.spare), 1
        sizes[CROSS] = n_replicas, n_replicas, n_stages
        sizes[SHARE] = n_replicas, n_replicas, 1
        sizes[REGIONS] = n_regions, n_regions, 1
    again = np.ones(N_MOVES, dtype=np.int64)
    if unlike:
        for what in (SWAP, TRADE, REPLACE, STAGES, REVERSE):
            again[what] = 2
    whole = 0
    for what in range(N_MOVES):
        whole += sizes[what].prod() * again[what]
    while since < whole:
        for what in range(N_MOVES):
            for x in range(sizes[what, 0]):
                for y in range(sizes[what, 1]):
                    if y <= x and what in (SWAP, TRADE, CROSS, STAGES, REVERSE, REGIONS):
                        since += sizes[what, 2] * again[what]
                        continue
                    for z in range(sizes[what, 2]):
                        for cut_again in range(again[what]):
                            since += 1
                            if memo.work[0] >= until or since > whole:
                                return tried
                            tried += 1
                            copy_search(now, trial)
                            found_s, judged = propose(
                                prices,
                                tables,
                                alike,
                                regions,
                                memo,
                                trial,
                                what,
                                x,
                                y,
                                z,
                                cut_again == 1,
                                current,
                                True,
                            )
                            if judged < current * (1 - 1e-12) and found_s <= step_s:
                                copy_search(trial, now)
                                step_s, current, since = found_s, judged, 0
    return tried


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
