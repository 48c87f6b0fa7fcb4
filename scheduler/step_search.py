"""The search for the layout with the shortest step, over shapes and settings: wide at first, then deep.

Every case opens with structured layouts, sorted by a floor of their time, so most shapes cost no
replay. From the best cases' openings many short walks glide over floors alone, because which
valley a walk ends in is decided by where it begins; DT-FM's objective, with the model's own volumes,
proposes further places to begin. The best few valleys of each case are then walked in rounds that keep
fewer cases and go deeper. Where placements are few, all are tried.

Pure: chance comes from the seed, effort is counted in actions replayed, `map_tasks` may spread a round
over processes (the result does not depend on it), and only `should_stop`, which a shell may pass,
knows a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from scheduler.step_case import (
    Case,
    Found,
    arrange,
    dtfm_cells,
    glide,
    improve,
    n_cuts,
    n_placements,
    open_case,
    openings,
    owned,
    owned_layout,
    place,
    try_all,
)

DEFAULT_ACTIONS = 1.3e9
HOTTEST = 1.0
STEEP = 2.25
"""By which power of the number of tasklets the first temperature is lower: few have steep valleys."""
PROPOSED = 4
"""Cases, the best, for which DT-FM's objective proposes a placement."""
BEHIND = 0.05
"""Cases whose best is so much slower than the best of all, as a share, are not gone on with after the second
round: what is left gains less."""
VALLEYS = 4
"""Layouts of a case that are gone on with, the best."""
COMPARED = 8
"""Cases replayed at least, even those whose floor shows that they cannot win: reasons tell of them."""


@dataclass(frozen=True, slots=True)
class StepSearchOptions:
    """How hard to look. The defaults take some seconds for 64 devices."""

    actions: float = DEFAULT_ACTIONS
    """Actions replayed at most by walks and descents: what an evaluation costs depends on its shape."""
    open_cases: int = 40
    """Cases whose openings are replayed, least floor first."""
    arranged: tuple[int, float] = (16, 0.1)
    """(cases whose best openings have their stages arranged before anything walks, share of the effort)."""
    rounds: tuple[tuple[int, int, float], ...] = ((6, 6, 0.25), (3, 4, 0.2), (2, 2, 0.3), (1, 1, 0.35))
    """(cases kept, walks of each, share of the effort), round by round."""
    large_rounds: tuple[tuple[int, int, float], ...] = ((6, 6, 0.35), (4, 4, 0.25), (2, 4, 0.2), (1, 4, 0.2))
    """The same for networks that are placed by blocks, where only the first glides: which shape is best shows
    later there."""
    glides: int = 2
    """Rounds, the first, whose walks glide, to find the valleys."""
    heat: float = 68.0
    """First temperature as a share of the step: this over the number of tasklets to the power of `STEEP`, at
    most `HOTTEST`; a quarter of it in the last round."""
    cold: float = 0.0002
    exhaustive: float = 2e8
    """Try every placement of a case when that replays no more actions; 0: never."""
    blocks: int = 192
    """Of more devices, blocks of like ones are placed first (`blocks.py`)."""
    dtfm: bool = True
    """Whether DT-FM's objective proposes placements."""

    def __post_init__(self) -> None:
        if not self.actions > 0:
            raise ValueError(f"actions: found {self.actions}, required more than 0")
        for name in ("heat", "cold"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: found {getattr(self, name)}, required more than 0")


@dataclass(frozen=True, slots=True)
class Task:
    """A walk to be done, here or in another process."""

    found: Found
    actions: float
    seed: tuple[int, ...]
    hot: float
    """First temperature; 0: no walk, whole stages are arranged."""
    cold: float
    glides: bool = False
    """Whether it walks over floors."""


def work(task: Task) -> Found:
    """Do the task."""
    found = owned(task.found)
    if task.hot == 0.0:
        return arrange(found, task.actions)
    rng = np.random.default_rng(task.seed)
    go = glide if task.glides else improve
    return go(found, task.actions, rng, task.hot, task.cold)


MapTasks = Callable[[Callable[[Task], Found], Iterable[Task]], Iterable[Found]]


@dataclass(frozen=True, slots=True)
class StepSearchResult:
    """What was found, and what it was compared with."""

    best: Found
    by_case: tuple[Found, ...]
    """The best of every case that was replayed, fastest first."""
    seeds_s: dict[str, float]
    """Step times of the best case's structured layouts."""
    evaluations: int
    curve: tuple[tuple[int, float], ...]
    """(layouts judged so far, best step so far)."""
    method: str
    """`exhaustive` or `walks`."""
    ended_early: bool = False
    not_opened: int = 0
    """Cases whose floors were too high to be replayed."""
    unfit: tuple[Case, ...] = ()
    """Cases whose memory does not suffice for any opening."""


def search_steps(
    cases: Sequence[Case],
    seed: int = 0,
    options: StepSearchOptions | None = None,
    map_tasks: MapTasks = map,
    should_stop: Callable[[], bool] = lambda: False,
    floors_s: Sequence[float] | None = None,
    starts: Sequence[Found] = (),
) -> StepSearchResult | None:
    """The best layout over all cases; None if none fits in memory.

    `floors_s`: a lower bound of each case, where the caller has one; cases that cannot win are skipped.
    `starts`: layouts to begin with as well.
    """
    options = options or StepSearchOptions()
    pool, unfit, opened, skipped = _open(cases, options, floors_s)
    pool = _best_of_each(pool, starts)
    if not pool:
        return None
    judged = sum(f.evaluations for f in pool)
    curve = [(judged, pool[0].step_s)]
    stopped, begun = False, opened

    def improved(tasks: Sequence[Task]) -> list[Found]:
        nonlocal judged, stopped
        done = []
        for task, came in zip(tasks, map_tasks(work, tasks), strict=False):
            found = replace(came, case=task.found.case, layout=owned_layout(came.layout))
            done.append(found)
            judged += found.evaluations
            curve.append((judged, min(curve[-1][1], found.step_s)))
            stopped = should_stop()
            if stopped:
                break
        return done

    if options.rounds and not should_stop():
        pool, begun = _arranged(pool, opened, options, improved)
    valleys: dict[int, list[Found]] = {}
    origins: dict[tuple[int, str], Found] = {}
    for number, (kept, walks, share) in enumerate(options.rounds):
        stopped = stopped or should_stop()
        if stopped:
            break
        if number == 0:
            begin = _beginnings(pool[:kept], begun, walks, seed, options)
            origins = {(f.case.number, f.how): f for own in begin for f in own}
        else:
            most_s = pool[0].step_s * (1 + BEHIND) if number > 1 else np.inf
            able = [f for f in pool[:kept] if not f.exhausted and f.step_s <= most_s]
            ends = [valleys[f.case.number] for f in able]
            again = origins if number < min(2, options.glides) else {}
            begin = [_with_origins(own, again)[:walks] for own in ends]
        starts = [replace(own[k % len(own)], evaluations=0) for own in begin for k in range(walks)]
        cooler = options.heat * 0.25 ** (number / max(1, len(options.rounds) - 1))
        open_tasks = [
            Task(
                f,
                options.actions * share / len(starts),
                (seed, number, k),
                max(min(HOTTEST, cooler / f.layout.cells.size**STEEP), options.cold),
                options.cold,
                glides=number < options.glides,
            )
            for k, f in enumerate(starts)
        ]
        done = improved(open_tasks)
        valleys = _deepest(pool, valleys, done)
        pool = _best_of_each(pool, done)
        if stopped:
            break
    best = pool[0]
    method = "exhaustive" if all(f.exhausted for f in pool) and not skipped else "walks"
    return StepSearchResult(
        best,
        tuple(pool),
        {f.how: f.step_s for f in opened.get(best.case.number, ())},
        judged,
        tuple(curve),
        method,
        stopped,
        skipped,
        tuple(unfit),
    )


def _open(
    cases: Sequence[Case], options: StepSearchOptions, floors_s: Sequence[float] | None
) -> tuple[list[Found], list[Case], dict[int, list[Found]], int]:
    """The best opening of every case worth replaying, fastest first; what fits nowhere; the best few
    openings by case; how many cases were not replayed."""
    least = list(floors_s) if floors_s is not None else [0.0] * len(cases)
    opened = [(openings(case), floor, case) for case, floor in zip(cases, least, strict=True)]
    opened.sort(key=lambda o: max(o[1], o[0][0].floor_s) if o[0] else np.inf)
    pool: list[Found] = []
    unfit: list[Case] = []
    kept: dict[int, list[Found]] = {}
    skipped, best_s, replayed = 0, np.inf, 0
    for first, floor, case in opened:
        if not first:
            unfit.append(case)
            continue
        hopeless = max(floor, first[0].floor_s) >= best_s
        if replayed >= (COMPARED if hopeless else options.open_cases):
            skipped += 1
            continue
        found = _exhausted(case, options)
        few = open_case(case, first, keep=4)
        if found is None:
            if not few:
                unfit.append(case)
                continue
            found = few[0]
        kept[case.number] = few
        replayed += 1
        pool.append(found)
        best_s = min(best_s, found.step_s)
    return sorted(pool, key=lambda f: f.key), unfit, kept, skipped


def _arranged(
    pool: Sequence[Found],
    opened: dict[int, list[Found]],
    options: StepSearchOptions,
    improved: Callable[[Sequence[Task]], list[Found]],
) -> tuple[list[Found], dict[int, list[Found]]]:
    """The pool and the openings, the stages of the best cases' openings arranged."""
    kept, share = options.arranged
    tasks = []
    for f in [f for f in pool if not f.exhausted][:kept]:
        places = [f, *(o for o in opened.get(f.case.number, ()) if o.how != f.how)]
        tasks += [Task(replace(o, evaluations=0), 0.0, (), 0.0, 0.0) for o in places]
    each = options.actions * share / max(1, len(tasks))
    done = improved([replace(t, actions=each) for t in tasks])
    better = dict(opened)
    for number in {f.case.number for f in done}:
        own = [f for f in done if f.case.number == number]
        left = [o for o in opened.get(number, ()) if o.how not in {f.how for f in own}]
        better[number] = sorted([*own, *left], key=lambda f: f.key)
    return _best_of_each(pool, done), better


def _exhausted(case: Case, options: StepSearchOptions) -> Found | None:
    """The best of all placements where those are few."""
    if case.n_stages * case.n_replicas > 12:
        return None
    most = int(options.exhaustive / (case.rows * case.n_replicas))
    count = n_placements(case, most)
    if count < 0:
        return None
    return try_all(case, most, count * n_cuts(case) <= most)


def _beginnings(
    pool: Sequence[Found],
    opened: Mapping[int, Sequence[Found]],
    walks: int,
    seed: int,
    options: StepSearchOptions,
) -> list[list[Found]]:
    """Where the first round's walks of each case begin, in turn: at its best openings, and where DT-FM's
    objective would have it."""
    begin = []
    for k, f in enumerate(f for f in pool if not f.exhausted):
        places = [f]
        if options.glides:
            places += [o for o in opened.get(f.case.number, ()) if o.how != f.how]
        both = f.case.n_stages > 1 and f.case.n_replicas > 1
        if options.dtfm and k < PROPOSED and walks > 1 and both and f.layout.cells.size <= 256:
            other = place(f.case, dtfm_cells(f, seed), "DT-FM's objective with the model's volumes")
            places[walks - 1 :] = [other] if other is not None else []
        begin.append(places)
    return begin


def _deepest(
    pool: Sequence[Found], valleys: Mapping[int, list[Found]], done: Sequence[Found]
) -> dict[int, list[Found]]:
    """The best few layouts of each case, fastest first, none twice."""
    by_case: dict[int, dict[float, Found]] = {}
    for f in (*pool, *(v for own in valleys.values() for v in own), *done):
        by_case.setdefault(f.case.number, {}).setdefault(f.step_s, f)
    return {n: sorted(own.values(), key=lambda f: f.key)[:VALLEYS] for n, own in by_case.items()}


def _with_origins(ends: Sequence[Found], origins: Mapping[tuple[int, str], Found]) -> list[Found]:
    """Each end, followed by where its walk began, the first time that it comes up: a longer walk from there
    often ends deeper than one that goes on from where a hot, short one was left."""
    places, left = [], dict(origins)
    for end in ends:
        origin = left.pop((end.case.number, end.how), None)
        places += [end] if origin is None else [end, origin]
    return places


def _best_of_each(pool: Sequence[Found], improved: Sequence[Found]) -> list[Found]:
    best: dict[int, Found] = {}
    for f in (*pool, *improved):
        known = best.get(f.case.number)
        if known is None or f.key < known.key:
            best[f.case.number] = f
    return sorted(best.values(), key=lambda f: f.key)
