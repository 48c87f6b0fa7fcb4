"""One shape under one setting, and layouts of it: opening ones, better ones, the best of all where few exist.

Chance comes from the generator handed in, effort is counted in actions replayed; no clock, no processes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from math import comb
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from scheduler.dtfm import DtfmObjective, Volumes
from scheduler.plan import split_micro_batches
from scheduler.search import SearchOptions, search
from scheduler.step_cut import cut_layers
from scheduler.step_floor import floor_s
from scheduler.step_kernels import Ints, Layout, Prices, Tables, price_all
from scheduler.step_memo import Memo, new_memo
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
    search_of,
)
from scheduler.step_seeds import Grounds, seeds
from scheduler.step_time import Pricing, layout_missing_bytes, layout_step_s, new_state, tables_for
from scheduler.step_walk import Draws, descend, exhaust, walk
from scheduler.topology import Device, Topology

A = TypeVar("A", bound=NDArray[Any])

PRICED_SEEDS = 8
"""Seeds of a shape that are replayed, after all were sorted by their floor."""
BLOCK = 4096
"""Moves of a walk that are drawn at once."""
WINDOW = 2
"""How far a replica's share of the batch may move from where it began, in micro-batches either way."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is searched in: devices, links and layers as a setting leaves them, an order, a shape."""

    pricing: Pricing
    grounds: Grounds
    schedule: str
    warmup_extra: int
    micro_batches: int
    """Of one step, over all replicas."""
    n_stages: int
    n_replicas: int
    number: int = 0
    """What the caller knows the case by; no two cases of a search share one."""
    in_rows: bool = False
    """Whether replicas share sequences: then every one takes all micro-batches."""

    @property
    def prices(self) -> Prices:
        return self.pricing.prices

    def tables(self, shares: Ints, window: int = 0) -> Tables:
        """The actions for these shares, and for those up to `window` away, where they may move."""
        window = 0 if self.in_rows else window
        wanted = {int(m) for m in shares}
        if self.n_replicas > 1:
            wanted |= {m + k for m in wanted for k in range(-window, window + 1) if m + k > 0}
        behind = self.n_replicas - 1 if self.in_rows else 0
        return tables_for(self.schedule, self.n_stages, sorted(wanted), self.warmup_extra, behind)

    @property
    def rows(self) -> int:
        """Actions of one pipeline, about."""
        return 6 * self.n_stages * -(-self.micro_batches // self.n_replicas)


@dataclass(frozen=True, slots=True)
class Found:
    """A layout of a case that fits, and its step time by the fast twin."""

    case: Case
    layout: Layout
    step_s: float
    how: str
    """What it began as."""
    evaluations: int = 0
    exhausted: bool = False
    """Whether every placement of the case was tried."""

    @property
    def key(self) -> tuple[float, int, int]:
        """Fastest first; of equals the one with fewer replicas, then fewer stages."""
        return (self.step_s, self.case.n_replicas, self.case.n_stages)


def owned(found: Found) -> Found:
    """`found` with arrays that may be written to. Those that came through Ray's shared memory may not, which
    to numba is another type: every kernel would be compiled once more for it, for some ten seconds each time.
    """
    case = found.case
    pricing = replace(case.pricing, prices=_owned(case.pricing.prices), crowd=_own(case.pricing.crowd))
    grounds = replace(case.grounds, kinds=_own(case.grounds.kinds), places=_own(case.grounds.places))
    return replace(
        found, case=replace(case, pricing=pricing, grounds=grounds), layout=owned_layout(found.layout)
    )


def owned_layout(layout: Layout) -> Layout:
    return Layout(_own(layout.cells), _own(layout.cut), _own(layout.shares))


def _owned(prices: Prices) -> Prices:
    arrays: dict[str, Any] = {name: x for name, x in prices._asdict().items() if isinstance(x, np.ndarray)}
    return prices._replace(**{name: _own(x) for name, x in arrays.items()})


def _own(array: A) -> A:
    return array if array.flags.writeable else array.copy()


def even_shares(n_micro_batches: int, n_replicas: int) -> Ints:
    """`split_micro_batches` as an array."""
    return np.array(split_micro_batches(n_micro_batches, n_replicas), dtype=np.int64)


def fair_shares(prices: Prices, layout: Layout, n_micro_batches: int) -> Ints:
    """Shares in proportion to the pipelines' speeds: that of the slowest stage or link; at least one each."""
    cells, cut = layout.cells, layout.cut
    first, last = cut[:-1], cut[1:]
    compute = prices.forward_s[cells, last] - prices.forward_s[cells, first]
    compute += prices.backward_s[cells, last] - prices.backward_s[cells, first]
    pace_s = compute.max(axis=1)
    if cells.shape[1] > 1:
        inner, there, back = cut[1:-1], (cells[:, :-1], cells[:, 1:]), (cells[:, 1:], cells[:, :-1])
        down = prices.activation_bytes[prices.activation_codec[there], inner] / prices.bandwidth_Bps[there]
        up = prices.gradient_bytes[prices.gradient_codec[back], inner] / prices.bandwidth_Bps[back]
        pace_s = np.maximum(pace_s, np.maximum(down, up).max(axis=1))
    if not (pace_s > 0).all():
        return even_shares(n_micro_batches, len(cells))
    exact = n_micro_batches / pace_s / (1 / pace_s).sum()
    shares: Ints = np.maximum(1, np.floor(exact)).astype(np.int64)
    while shares.sum() < n_micro_batches:  # the next goes to whoever ends first with one more
        shares[int(np.argmin((shares + 1) * pace_s))] += 1
    while shares.sum() > n_micro_batches:
        shares[int(np.argmax(np.where(shares > 1, shares * pace_s, -np.inf)))] -= 1
    return shares


@dataclass(frozen=True, slots=True)
class Opening:
    """A structured layout before it is replayed: no schedule makes it faster than its floor."""

    floor_s: float
    name: str
    cells: Ints


def openings(case: Case) -> list[Opening]:
    """The case's structured placements, least floor first. Memory is judged as if one were in flight."""
    prices, s, r = case.prices, case.n_stages, case.n_replicas
    shares = even_shares(case.micro_batches, r)
    most = int(shares.max())
    light = Tables(
        np.zeros((0, 3), dtype=np.int32),
        np.zeros(1, dtype=np.int64),
        np.zeros(1, dtype=np.int64),
        np.ones((most + 1, s), dtype=np.int64),
    )
    state = new_state(r, s)
    found = []
    cut = np.zeros(s + 1, dtype=np.int64)
    is_cut = False
    even = not case.grounds.unlike and prices.memory_bytes.min() == prices.memory_bytes.max()
    for name, cells in seeds(case.grounds, s, r):
        layout = Layout(cells, cut, shares)
        if not (is_cut and even):
            is_cut = cut_layers(prices, light, layout)
            if not is_cut:
                continue
        if case.grounds.unlike and r > 1 and not case.in_rows:
            layout = layout._replace(shares=fair_shares(prices, layout, case.micro_batches))
        found.append(Opening(floor_s(prices, layout, state), name, cells))
    return sorted(found, key=lambda o: o.floor_s)


def open_case(case: Case, opened: list[Opening], keep: int = 1) -> list[Found]:
    """The fastest few of the openings, replayed; [] if none fits in memory."""
    found: list[Found] = []
    for k, o in enumerate(opened):
        if len(found) >= keep and (k >= PRICED_SEEDS or o.floor_s > found[-1].step_s):
            break
        best = place(case, o.cells, o.name, case.grounds.unlike)
        if best is not None:
            found = sorted([*found, best], key=lambda f: f.key)[:keep]
    return [replace(f, evaluations=min(len(opened), PRICED_SEEDS)) if f is found[0] else f for f in found]


def place(case: Case, cells: Ints, how: str, fair: bool = True) -> Found | None:
    """The placement with its layers cut and its batch shared, evenly or (`fair`, if that is faster) by the
    pipelines' speeds; None if no cut fits."""
    prices = case.prices
    found = None
    shares = even_shares(case.micro_batches, case.n_replicas)
    fair = fair and case.n_replicas > 1 and not case.in_rows
    for _ in range(3 if fair else 1):
        layout = Layout(cells.copy(), np.zeros(case.n_stages + 1, dtype=np.int64), shares)
        tables = case.tables(shares)
        if not cut_layers(prices, tables, layout):
            break
        step_s = layout_step_s(case.pricing, tables, layout)
        if found is None or step_s < found.step_s:
            found = Found(case, layout, step_s, how)
        if np.array_equal(following := fair_shares(prices, layout, case.micro_batches), shares):
            break
        shares = following
    return found


def as_it_is(case: Case, layout: Layout, how: str) -> Found | None:
    """The layout as it is, under this case's setting; None if it does not fit."""
    tables = case.tables(layout.shares)
    if layout_missing_bytes(case.pricing, tables, layout) > 0:
        return None
    return Found(case, layout, layout_step_s(case.pricing, tables, layout), how)


def faster(one: Found | None, other: Found | None) -> Found | None:
    """The faster of what there is."""
    return min((f for f in (one, other) if f is not None), key=lambda f: f.key, default=None)


def _search_of(case: Case, layout: Layout) -> Search:
    spare = np.setdiff1d(np.arange(len(case.pricing.names)), layout.cells)
    copy = Layout(layout.cells.copy(), layout.cut.copy(), layout.shares.copy())
    return search_of(copy, spare, new_state(case.n_replicas, case.n_stages))


def improve(found: Found, actions: float, rng: np.random.Generator, hot: float, cold: float) -> Found:
    """A walk from `found`, then a descent from the best it met; about `actions` replayed.

    The temperature falls from `hot` to `cold`, shares of the step.
    """
    case = found.case
    tables = case.tables(found.layout.shares, WINDOW)
    best, trial = _search_of(case, found.layout), _search_of(case, found.layout)
    memo = new_memo(case.n_stages)
    price_all(case.prices, tables, best.layout, best.state)
    heat_s = (hot * found.step_s, cold * found.step_s)
    moves = _walk(case, tables, memo, best, rng, heat_s, int(0.8 * actions))
    moves += _descend(case, tables, memo, best, trial, False, int(actions))
    return _at(found, tables, best, moves)


def glide(found: Found, actions: float, rng: np.random.Generator, hot: float, cold: float) -> Found:
    """A walk over the floors of layouts, which cost a tenth of a replay and less, then a descent from its
    best; where transfers hide behind compute a floor is almost the step. It may end worse than `found`."""
    case = found.case
    tables = case.tables(found.layout.shares, WINDOW)
    best, trial = _search_of(case, found.layout), _search_of(case, found.layout)
    floor = floor_s(case.prices, best.layout, best.state)
    heat_s, memo = (hot * floor, cold * floor), new_memo(case.n_stages)
    moves = _walk(case, tables, memo, best, rng, heat_s, int(0.8 * actions), replay=False)
    moves += _descend(case, tables, memo, best, trial, False, int(actions))
    step_s = layout_step_s(case.pricing, tables, best.layout)
    return replace(found, layout=best.layout, step_s=step_s, evaluations=found.evaluations + moves)


def _walk(
    case: Case,
    tables: Tables,
    memo: Memo,
    best: Search,
    rng: np.random.Generator,
    heat_s: tuple[float, float],
    until: int,
    replay: bool = True,
) -> int:
    """Walk from `best`, which is priced and becomes the best layout met; the moves tried."""
    grounds = case.grounds
    now, trial = _search_of(case, best.layout), _search_of(case, best.layout)
    copy_search(best, now)
    args = (case.prices, tables, grounds.kinds, grounds.places, memo, now, trial, best)
    moves = 0
    while memo.work[0] < until:
        draws = _draws(case, len(now.spare), BLOCK, rng)
        if not len(draws.what):
            break
        moves += walk(*args, draws, heat_s, until, replay)
    return moves


def arrange(found: Found, actions: float) -> Found:
    """Its stages in a better order with a better cut, where moves of whole stages find one."""
    case = found.case
    tables = case.tables(found.layout.shares)
    best, trial = _search_of(case, found.layout), _search_of(case, found.layout)
    moves = _descend(case, tables, new_memo(case.n_stages), best, trial, True, int(actions))
    return _at(found, tables, best, moves)


def _at(found: Found, tables: Tables, best: Search, moves: int) -> Found:
    """What `found` has become, priced anew, if that is faster."""
    step_s = layout_step_s(found.case.pricing, tables, best.layout)
    used = found.evaluations + moves
    if step_s < found.step_s:
        return replace(found, layout=best.layout, step_s=step_s, evaluations=used)
    return replace(found, evaluations=used)


def _descend(
    case: Case, tables: Tables, memo: Memo, best: Search, trial: Search, whole_stages: bool, until: int
) -> int:
    """Down to where no move gains; the moves tried."""
    grounds, memory = case.grounds, case.prices.memory_bytes
    unlike = grounds.unlike or bool(memory.min() < memory.max())
    price_all(case.prices, tables, best.layout, best.state)
    args = (case.prices, tables, grounds.kinds, grounds.places, memo, best, trial)
    return descend(*args, unlike, whole_stages, until)


def _draws(case: Case, n_spare: int, n: int, rng: np.random.Generator) -> Draws:
    s, r = case.n_stages, case.n_replicas
    weight = np.zeros(N_MOVES)
    weight[SWAP] = 0.35 if s * r > 1 else 0.0
    weight[TRADE] = 0.15 if s > 1 and r > 1 else 0.0
    weight[REPLACE] = 0.2 if n_spare else 0.0
    weight[CROSS] = 0.2 if s > 1 and r > 1 else 0.0
    weight[STAGES] = 0.02 if s > 1 else 0.0
    weight[REVERSE] = 0.02 if s > 3 else 0.0
    weight[LAYER] = 0.04 if s > 1 else 0.0
    weight[SHARE] = 0.05 if r > 1 and not case.in_rows else 0.0
    if 1 < case.grounds.places.max() + 1 < len(case.grounds.places):
        weight[REGIONS] = 0.02
    if not weight.any():  # one device and no other: nothing can move
        n, weight[SWAP] = 0, 1.0
    again = rng.random(n) < 0.5 if case.grounds.unlike else np.zeros(n, dtype=bool)
    return Draws(
        rng.choice(N_MOVES, size=n, p=weight / weight.sum()).astype(np.int8),
        rng.random(n),
        rng.random(n),
        rng.random(n),
        rng.random(n),
        again,
    )


def n_placements(case: Case, most: int) -> int:
    """Placements of the case that differ, or -1 if more than `most`."""
    blank = Layout(
        np.zeros((case.n_replicas, case.n_stages), dtype=np.int64),
        np.zeros(case.n_stages + 1, dtype=np.int64),
        even_shares(case.micro_batches, case.n_replicas),
    )
    now, best = _search_of(case, blank), _search_of(case, blank)
    no_cuts = np.zeros((0, case.n_stages + 1), dtype=np.int64)
    empty = Tables(
        np.zeros((0, 3), dtype=np.int32),
        np.zeros(1, dtype=np.int64),
        np.zeros(1, dtype=np.int64),
        np.zeros((1, case.n_stages), dtype=np.int64),
    )
    return exhaust(case.prices, empty, case.grounds.kinds, no_cuts, now, best, False, most)[1]


def try_all(case: Case, most: int, every_cut: bool) -> Found | None:
    """The best of all placements, with every cut or with the one that balances compute; then of its
    neighbours. None if nothing fits."""
    shares = even_shares(case.micro_batches, case.n_replicas)
    tables = case.tables(shares, WINDOW)
    blank = Layout(
        np.zeros((case.n_replicas, case.n_stages), dtype=np.int64),
        np.zeros(case.n_stages + 1, dtype=np.int64),
        shares,
    )
    now, best = _search_of(case, blank), _search_of(case, blank)
    best = best._replace(spare=np.zeros(len(case.pricing.names) - blank.cells.size, dtype=np.int64))
    cuts = _cuts(case) if every_cut else np.zeros((0, case.n_stages + 1), dtype=np.int64)
    step_s, count = exhaust(case.prices, tables, case.grounds.kinds, cuts, now, best, True, most)
    if not np.isfinite(step_s):
        return None
    trial = _search_of(case, best.layout)
    tried = _descend(case, tables, new_memo(case.n_stages), best, trial, False, 20_000 * case.rows)
    step_s = layout_step_s(case.pricing, tables, best.layout)
    return Found(case, best.layout, step_s, "all placements", count * max(1, len(cuts)) + tried, every_cut)


def n_cuts(case: Case) -> int:
    """Ways to cut the layers into the case's stages."""
    return comb(case.prices.forward_s.shape[1] - 2, case.n_stages - 1)


def _cuts(case: Case) -> Ints:
    """[C, S + 1]: every cut."""
    n_layers = case.prices.forward_s.shape[1] - 1
    ends = combinations(range(1, n_layers), case.n_stages - 1)
    return np.array([[0, *inner, n_layers] for inner in ends], dtype=np.int64)


def dtfm_objective(found: Found) -> DtfmObjective:
    """DT-FM's objective over the layout's devices (ascending), with its volumes of a step."""
    case, prices, layout = found.case, found.case.prices, found.layout
    used = np.sort(layout.cells.ravel())
    names = case.pricing.names
    topology = Topology(
        tuple(Device(names[d]) for d in used),
        prices.latency_s[np.ix_(used, used)],
        prices.bandwidth_Bps[np.ix_(used, used)],
    )
    stages = list(zip(layout.cut[:-1], layout.cut[1:], strict=True))
    # Its volumes are the same on every link: those of the slowest, which decides.
    apart = np.where(np.eye(len(prices.bandwidth_Bps), dtype=bool), np.inf, prices.bandwidth_Bps)
    slow = np.unravel_index(int(apart.argmin()), apart.shape)
    reduce_bytes = prices.reduce_bytes[prices.reduce_codec[slow]]
    activation_bytes = prices.activation_bytes[prices.activation_codec[slow]]
    c_dp = max(float(reduce_bytes[a, b]) for a, b in stages)
    boundary = max((float(activation_bytes[a]) for a, _ in stages[1:]), default=0.0)
    volumes = Volumes(c_dp, boundary * float(layout.shares.max()))
    return DtfmObjective(topology, case.n_stages, case.n_replicas, volumes)


def dtfm_cells(found: Found, seed: int, evaluations: int = 3000) -> Ints:
    """The same devices as DT-FM's objective would place them, with this layout's volumes: [R, S]."""
    used = np.sort(found.layout.cells.ravel())
    _, places = np.unique(found.case.grounds.places[used], return_inverse=True)
    options = SearchOptions(evaluations=evaluations, islands=1, population=12, generations=2)
    result = search(dtfm_objective(found), places.astype(np.int64), seed, options)
    return np.ascontiguousarray(used[result.placement.groups].T)
