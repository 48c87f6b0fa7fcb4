"""Moves from layout to layout, compiled, each priced by what it touches.

Before its pipelines are replayed a move is priced with a floor of their times, and most bad moves end
there. Which moves are made is `step_walk.py`'s.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scheduler.compiled import compiled, kernel
from scheduler.step_cut import cut_layers
from scheduler.step_floor import floor_pipeline
from scheduler.step_kernels import (
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

SWAP, REPLACE, CROSS, STAGES, REVERSE, LAYER, SHARE, REGIONS, TRADE = range(9)
"""Two devices change places; one with a device left out; two pipelines exchange what follows a
stage; two stages change places; the stages from one to another are turned round; a stage gives a layer to
another, and those between pass one on; a micro-batch changes replica; the devices of two regions change
places, those that are left out among them; two stages trade a device, each newcomer going to the pipeline
that its links suit best."""
N_MOVES = 9

MOVE_WORK, TASKLET_WORK, GROUP_WORK = 200, 3, 1
"""What a move costs besides its replays, in actions: in any case, a tasklet, a pair of a group."""
BEHIND = 0.02
"""Weight of what is behind the slowest (`total_s`) when a move is judged: it slopes the plateaus."""


class Search(NamedTuple):
    """A layout under way, with the devices it leaves out, and what the last move touched."""

    layout: Layout
    spare: Ints
    state: State
    pipelines: NDArray[np.bool_]
    """[R]: whose times are to be worked out anew."""
    groups: NDArray[np.bool_]
    """[S]: whose exchange is."""
    keys: NDArray[np.uint64]
    """[R]: what a pipeline's replay will be remembered by, 0: it is not to be replayed."""
    partner: Ints
    """[N]: whom each device changes places with where regions do."""


def search_of(layout: Layout, spare: Ints, state: State) -> Search:
    """A search that has not moved yet."""
    r, s = layout.cells.shape
    pipelines, groups = np.zeros(r, dtype=np.bool_), np.zeros(s, dtype=np.bool_)
    partner = np.zeros(r * s + len(spare), dtype=np.int64)
    return Search(layout, spare, state, pipelines, groups, np.zeros(r, dtype=np.uint64), partner)


@kernel
def energy(state: State) -> tuple[float, float]:
    """(the step's time, what a move is judged by)."""
    step_s, behind_s = total_s(state)
    return step_s, step_s + BEHIND * behind_s


@kernel
def copy_search(source: Search, target: Search) -> None:
    """Make `target` what `source` is."""
    # Element by element: a copy of a slice costs several times what so few elements do.
    cells, ends, tail = source.layout.cells, source.state.ends_s, source.state.tail_s
    cells_to, ends_to, tail_to = target.layout.cells, target.state.ends_s, target.state.tail_s
    shares, shares_to = source.layout.shares, target.layout.shares
    cut, cut_to = source.layout.cut, target.layout.cut
    exchange, exchange_to = source.state.exchange_s, target.state.exchange_s
    spare, spare_to = source.spare, target.spare
    n_replicas, n_stages = cells.shape
    for r in range(n_replicas):
        shares_to[r] = shares[r]
        for k in range(4):
            tail_to[r, k] = tail[r, k]
        for s in range(n_stages):
            cells_to[r, s] = cells[r, s]
            ends_to[r, s] = ends[r, s]
    for s in range(n_stages):
        cut_to[s] = cut[s]
        exchange_to[s] = exchange[s]
    cut_to[n_stages] = cut[n_stages]
    for k in range(len(spare)):
        spare_to[k] = spare[k]


@kernel
def exchange_regions(trial: Search, regions: Ints, x: int, y: int) -> bool:
    """Put the devices of region x where those of y are and the other way round, as far as either has some.

    False if neither is in use.
    """
    n_devices, partner = len(regions), trial.partner
    partner[:] = -1
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
    cells = trial.layout.cells
    for r in range(cells.shape[0]):
        for s in range(cells.shape[1]):
            if partner[cells[r, s]] >= 0:
                cells[r, s] = partner[cells[r, s]]
                moved = True
    for k in range(len(trial.spare)):
        if partner[trial.spare[k]] >= 0:
            trial.spare[k] = partner[trial.spare[k]]
    return moved


@kernel
def pace_s(prices: Prices, layout: Layout, replica: int, stage: int) -> float:
    """What the pipeline's batch keeps this stage's device, or a link of it, busy at least."""
    cells, cut = layout.cells, layout.cut
    d, i, j = cells[replica, stage], cut[stage], cut[stage + 1]
    most_s = (
        prices.forward_s[d, j] - prices.forward_s[d, i] + prices.backward_s[d, j] - prices.backward_s[d, i]
    )
    if stage > 0:
        e = cells[replica, stage - 1]
        down = prices.activation_bytes[prices.activation_codec[e, d], i] / prices.bandwidth_Bps[e, d]
        up = prices.gradient_bytes[prices.gradient_codec[d, e], i] / prices.bandwidth_Bps[d, e]
        most_s = max(most_s, down, up)
    if stage + 1 < cells.shape[1]:
        e = cells[replica, stage + 1]
        down = prices.activation_bytes[prices.activation_codec[d, e], j] / prices.bandwidth_Bps[d, e]
        up = prices.gradient_bytes[prices.gradient_codec[e, d], j] / prices.bandwidth_Bps[e, d]
        most_s = max(most_s, down, up)
    batch_s: float = most_s * layout.shares[replica]
    return batch_s


@kernel
def settle(prices: Prices, trial: Search, replica: int, stage: int) -> None:
    """Let this pipeline's device of the stage change places with the one of the pipeline where the slower of
    both gains most, if any gains."""
    layout, cells = trial.layout, trial.layout.cells
    best, least_s = replica, 0.0
    own_s = pace_s(prices, layout, replica, stage)
    for q in range(len(cells)):
        if q == replica:
            continue
        before_s = max(own_s, pace_s(prices, layout, q, stage))
        cells[replica, stage], cells[q, stage] = cells[q, stage], cells[replica, stage]
        after_s = max(pace_s(prices, layout, replica, stage), pace_s(prices, layout, q, stage))
        cells[replica, stage], cells[q, stage] = cells[q, stage], cells[replica, stage]
        if after_s - before_s < least_s:
            best, least_s = q, after_s - before_s
    if best != replica:
        cells[replica, stage], cells[best, stage] = cells[best, stage], cells[replica, stage]
        trial.pipelines[best] = True


@kernel
def make(
    prices: Prices,
    tables: Tables,
    alike: Ints,
    regions: Ints,
    trial: Search,
    what: int,
    x: int,
    y: int,
    z: int,
) -> bool:
    """Make the move in `trial`, and note what it touches. False, and `trial` spoilt, where it is none."""
    layout = trial.layout
    cells, cut, shares = layout.cells, layout.cut, layout.shares
    pipelines, groups = trial.pipelines, trial.groups
    n_replicas, n_stages = cells.shape
    pipelines[:] = False
    groups[:] = False
    if what in (SWAP, TRADE):
        r, s, q, t = x // n_stages, x % n_stages, y // n_stages, y % n_stages
        if alike[cells[r, s]] == alike[cells[q, t]] or (what == TRADE and s == t):
            return False
        cells[r, s], cells[q, t] = cells[q, t], cells[r, s]
        pipelines[r] = True
        pipelines[q] = True
        if s != t:
            groups[t] = True
            groups[s] = True
        if what == TRADE:
            settle(prices, trial, r, s)
            settle(prices, trial, q, t)
    elif what == REPLACE:
        r, s = x // n_stages, x % n_stages
        if alike[cells[r, s]] == alike[trial.spare[y]]:
            return False
        cells[r, s], trial.spare[y] = trial.spare[y], cells[r, s]
        pipelines[r] = True
        groups[s] = True
    elif what == CROSS:
        if x == y or z < 1 or z >= n_stages:
            return False
        for s in range(z, n_stages):
            cells[x, s], cells[y, s] = cells[y, s], cells[x, s]
        pipelines[x] = True
        pipelines[y] = True
    elif what in (STAGES, REVERSE):
        low, high = min(x, y), max(x, y)
        if low == high or (what == REVERSE and high - low < 3):  # shorter ones are exchanges
            return False
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
    elif what == LAYER:
        if x == y or cut[x + 1] - cut[x] < 2:
            return False
        for k in range(min(x, y) + 1, max(x, y) + 1):
            cut[k] += -1 if x < y else 1
        pipelines[:] = True
        for k in range(min(x, y), max(x, y) + 1):
            groups[k] = True
    elif what == REGIONS:
        if x == y or not exchange_regions(trial, regions, x, y):
            return False
        pipelines[:] = True
        groups[:] = True
    else:
        if x == y or shares[x] < 2:
            return False
        more, less = shares[y] + 1, shares[x] - 1
        if more >= len(tables.begin) or tables.begin[more] < 0 or tables.begin[less] < 0:
            return False
        shares[x], shares[y] = less, more
        pipelines[x] = True
        pipelines[y] = True
    return True


@kernel
def price(prices: Prices, alike: Ints, memo: Memo, trial: Search, replay: bool) -> bool:
    """Price what the move touched: exchanges, and pipelines by what is known of them or by their floors.
    Whether any of them is still to be replayed (`Search.keys`), which `replay` asks for."""
    layout, state, pipelines, keys = trial.layout, trial.state, trial.pipelines, trial.keys
    n_replicas, n_stages = layout.cells.shape
    for s in range(n_stages):
        if trial.groups[s]:
            state.exchange_s[s] = exchange_s(prices, layout, s)
            memo.work[0] += GROUP_WORK * n_replicas * n_replicas
    # The tied swap of every replica has the codec of the first stage's exchange.
    own_swaps = len(prices.tied_bytes) > 1 and prices.tied_bytes[0] > 0
    waiting = False
    for r in range(n_replicas):
        known = False
        keys[r] = 0
        if pipelines[r]:
            if replay:
                keys[r] = key_of(alike, layout, r)
                known = recall(memo, keys[r], state.ends_s, state.tail_s, r)
            if known:
                keys[r] = 0
            else:
                floor_pipeline(prices, layout, r, state.ends_s)
                waiting = replay
        if (pipelines[r] and not known) or (own_swaps and (pipelines[r] or trial.groups[0])):
            price_tail(prices, layout, r, state.tail_s)
    return waiting


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
    SWAP, TRADE: cells x, y; REPLACE: cell x, spare y; CROSS: replicas x, y from stage z on; STAGES, REVERSE:
    x, y; LAYER: from stage x to y; SHARE: from replica x to y; REGIONS: x, y.
    """
    layout, state, keys = trial.layout, trial.state, trial.keys
    n_replicas, n_stages = layout.cells.shape
    none = (np.inf, np.inf)
    memo.work[0] += MOVE_WORK + TASKLET_WORK * n_replicas * n_stages
    if not make(prices, tables, alike, regions, trial, what, x, y, z):
        return none
    if cut_again:
        if not cut_layers(prices, tables, layout):
            return none
        trial.pipelines[:] = True
        trial.groups[:] = True
    if missing_bytes(prices, tables, layout) > 0:
        return none
    waiting = price(prices, alike, memo, trial, replay)
    if energy(state)[1] > allowed:
        return none
    for r in range(n_replicas if waiting else 0):
        if keys[r] != 0 and not recall(memo, keys[r], state.ends_s, state.tail_s, r):
            price_pipeline(prices, tables, layout, r, state.ends_s)
            remember(memo, keys[r], state.ends_s, state.tail_s, r)
            memo.work[0] += tables.end[layout.shares[r]] - tables.begin[layout.shares[r]]
            if energy(state)[1] > allowed:
                return none
    return energy(state)
