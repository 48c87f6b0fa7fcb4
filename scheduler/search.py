"""The evolutionary search for the placement that costs least under DT-FM's objective.

Islands of placements evolve on DEAP's toolbox: each generation walks (`refine.py`: swaps judged by
the whole objective), the better half stays, the rest are children of balanced crossover. They
start from structured placements and random ones, and now and then hand their best to the next
island. Few partitions (small clusters) are all tried instead. This is the one module that
imports DEAP.

Pure: chance comes from the seed, the budget is counted in evaluations, `map_islands` may spread
islands over processes (the result does not depend on it), and only `should_stop`, which a shell
may pass, knows a clock: a search that it ends early is the best so far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from math import factorial

import numpy as np
from deap import base, tools

from scheduler.dtfm import DtfmObjective, Groups, Placement
from scheduler.encoding import Stages, crossover, random_groups, signature, structured, to_groups, to_stages
from scheduler.matching import EXACT_TOUR
from scheduler.refine import Walkers, polish

MapIslands = Callable[[Callable[["_Island"], "_Island"], Iterable["_Island"]], Iterable["_Island"]]


DEFAULT_EVALUATIONS = 400_000


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How hard to look. The defaults find the best known plans of DT-FM's scenarios in seconds."""

    evaluations: int = DEFAULT_EVALUATIONS
    """Placements judged at most, over all islands (a filtered one counts: the bound judged it)."""
    islands: int = 2
    population: int = 24
    """Placements an island."""
    generations: int = 10
    patience: int = 3
    """Generations without a gain after which the search ends: a settled population walks in place. It goes on
    where no two devices are alike: there are too many costs for a population to settle."""
    exchange_every: int = 5
    """Generations after which islands hand their best on."""
    hot: float = 0.02
    """First temperature as a share of the best cost; the last generation's is a tenth of it."""
    cold: float = 0.0003
    exhaustive: int = 20_000
    """Try every partition when there are no more than this; 0: never."""

    def __post_init__(self) -> None:
        for name in ("evaluations", "islands", "population", "generations", "patience", "exchange_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, required at least 1")
        if not 0 < self.cold <= self.hot:
            raise ValueError(f"found hot {self.hot} and cold {self.cold}, required 0 < cold <= hot")


@dataclass(frozen=True, slots=True)
class SearchResult:
    placement: Placement
    evaluations: int
    method: str
    """`exhaustive`, `bound met` (a structured placement is provably best) or `evolution`."""
    seeds_s: dict[str, float]
    """What the structured placements cost that the search began with."""
    curve: tuple[tuple[int, float], ...]
    """(evaluations so far, best cost so far)."""
    ended_early: bool = False


class _Cost(base.Fitness):  # type: ignore[misc]
    weights = (-1.0,)


@dataclass(eq=False)
class _Individual:
    """`stage[d]` with DEAP's fitness, which compares as less cost is better."""

    stage: Stages
    fitness: _Cost = field(default_factory=_Cost)

    @property
    def cost_s(self) -> float:
        return float(self.fitness.values[0])


@dataclass
class _Island:
    """Everything an island needs to go on, so that it can travel to another process and back."""

    objective: DtfmObjective
    options: SearchOptions
    rng: np.random.Generator
    population: list[_Individual]
    size: int
    moves: int
    """Moves of each walker in a generation."""
    generation: int = 0
    evaluations: int = 0


def search(
    objective: DtfmObjective,
    places: Stages,
    seed: int = 0,
    options: SearchOptions | None = None,
    map_islands: MapIslands = map,
    should_stop: Callable[[], bool] = lambda: False,
    floor_s: float = 0.0,
) -> SearchResult:
    """The best placement found. `places[d]` numbers d's region (see `encoding.places_of`).

    Ends as soon as `floor_s`, a lower bound, is reached. The same seed and options give the same
    placement on any number of processes, unless `should_stop` ended the search.
    """
    options = options or SearchOptions()
    seeds = structured(objective, places)
    named = np.stack(list(seeds.values()))
    seeds_s = dict(zip(seeds, objective.costs_s(named).tolist(), strict=True))
    if n_partitions(objective.n_stages, objective.n_replicas) <= options.exhaustive:
        placement, used = _exhaustive(objective)
        return SearchResult(placement, used, "exhaustive", seeds_s, ((used, placement.cost_s),))
    if min(seeds_s.values()) <= floor_s * (1 + 1e-12):
        best = objective.place(named[int(np.argmin(list(seeds_s.values())))])
        return SearchResult(best, len(named), "bound met", seeds_s, ((len(named), best.cost_s),))
    islands = _settle(objective, options, named, seed)
    curve = [(len(named), min(seeds_s.values()))]
    stopped, settles = False, len(np.unique(objective.kinds)) < objective.n_devices
    for generation in range(options.generations):
        stopped = generation > 0 and should_stop()
        if stopped:
            break
        islands = list(map_islands(_evolve, islands))
        judged = len(named) + sum(i.evaluations for i in islands)
        curve.append((judged, min(i.population[0].cost_s for i in islands)))
        if curve[-1][1] <= floor_s * (1 + 1e-12):
            break
        past = [cost for _, cost in curve[-1 - options.patience :]]
        if settles and len(past) > options.patience and past[0] <= past[-1] * (1 + 1e-12):
            break
        if (generation + 1) % options.exchange_every == 0:
            _migrate(islands)
    placement, used = _finish(objective, islands, options)
    total = sum(i.evaluations for i in islands) + used + len(named)
    curve.append((total, placement.cost_s))
    return SearchResult(placement, total, "evolution", seeds_s, tuple(curve), stopped)


def n_partitions(n_stages: int, n_replicas: int) -> int:
    """Ways to split the devices into groups, the groups' order left aside (the tour is solved exactly).

    More than can be ordered exactly count as countless.
    """
    if n_stages > EXACT_TOUR - 2:
        return 10**18
    n = factorial(n_stages * n_replicas)
    count: int = n // (factorial(n_replicas) ** n_stages * factorial(n_stages))
    return count


def partitions(devices: tuple[int, ...], n_replicas: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Every split of `devices` into groups of `n_replicas`, each split once."""
    if not devices:
        yield ()
        return
    first, rest = devices[0], devices[1:]
    for others in combinations(rest, n_replicas - 1):
        left = tuple(d for d in rest if d not in others)
        for following in partitions(left, n_replicas):
            yield ((first, *others), *following)


def _exhaustive(objective: DtfmObjective) -> tuple[Placement, int]:
    every = np.array(
        list(partitions(tuple(range(objective.n_devices)), objective.n_replicas)), dtype=np.int64
    )
    costs = np.concatenate([objective.costs_s(every[k : k + 512]) for k in range(0, len(every), 512)])
    return objective.place(every[int(costs.argmin())]), len(every)


def _settle(objective: DtfmObjective, options: SearchOptions, named: Groups, seed: int) -> list[_Island]:
    """Islands with their own streams of chance: every structured placement, and random ones."""
    generators = np.random.default_rng(seed).spawn(options.islands)
    size = max(options.population, len(named) + 2)
    moves = max(1, options.evaluations // (options.islands * size * options.generations))
    islands = []
    for rng in generators:
        start = np.concatenate([named, random_groups(objective, size - len(named), rng)])
        people = [_Individual(to_stages(g)) for g in start]
        islands.append(_Island(objective, options, rng, people, size, moves))
    return islands


def _toolbox(island: _Island) -> base.Toolbox:
    """DEAP's operators, drawing from the island's own generator instead of the global one."""
    toolbox = base.Toolbox()
    toolbox.register("mate", crossover, n_stages=island.objective.n_stages, rng=island.rng)
    toolbox.register("select", tools.selBest)

    def parents(people: list[_Individual]) -> tuple[_Individual, _Individual]:
        """Two tournaments of two."""
        pairs = island.rng.integers(len(people), size=(2, 2))
        one, other = (max((people[k] for k in pair), key=lambda x: x.fitness) for pair in pairs)
        return one, other

    toolbox.register("parents", parents)
    return toolbox


def _evolve(island: _Island) -> _Island:
    """One generation: children fill the island up, everybody walks, the better half stays, best first."""
    options, toolbox = island.options, _toolbox(island)
    if island.generation:
        settled = list(island.population)
        while len(island.population) < island.size:
            one, other = toolbox.parents(settled)
            island.population.append(_Individual(toolbox.mate(one.stage, other.stage)))
    hot = options.hot * 0.1 ** (island.generation / max(1, options.generations - 1))
    _walk(island, max(hot, options.cold), options.cold)
    island.population = toolbox.select(_distinct(island), max(2, island.size // 2))
    island.generation += 1
    return island


def _walk(island: _Island, hot: float, cold: float) -> None:
    """Every individual walks; it becomes the best placement of its walk."""
    objective = island.objective
    groups = np.stack([to_groups(x.stage, objective.n_stages) for x in island.population])
    walkers = Walkers(objective, groups, island.rng)
    walkers.reorder(_worth_reordering(walkers))
    scale = float(walkers.best_s.min())
    walkers.walk(island.moves, hot * scale, cold * scale)
    walkers.groups = walkers.best_groups.copy()
    walkers.reorder(_worth_reordering(walkers))
    for x, g, cost in zip(island.population, walkers.best_groups, walkers.best_s, strict=True):
        x.stage = to_stages(g)
        x.fitness.values = (float(cost),)
    island.evaluations += walkers.evaluations


def _worth_reordering(walkers: Walkers) -> Stages:
    """All walkers while an exact order is cheap, else the few best."""
    n = len(walkers.best_s)
    few = n if walkers.objective.n_stages <= 10 else 3
    return np.argsort(walkers.best_s, kind="stable")[:few]


def _distinct(island: _Island) -> list[_Individual]:
    """The population without twins (up to interchangeable devices)."""
    seen: dict[tuple[tuple[int, ...], ...], _Individual] = {}
    for x in island.population:
        seen.setdefault(signature(island.objective, to_groups(x.stage, island.objective.n_stages)), x)
    return list(seen.values())


def _migrate(islands: list[_Island]) -> None:
    """The best of each island replaces the worst of the next."""
    best = [max(i.population, key=lambda x: x.fitness) for i in islands]
    for k, island in enumerate(islands):
        if len(islands) > 1:
            worst = min(range(len(island.population)), key=lambda j: island.population[j].fitness)
            guest = _Individual(best[k - 1].stage.copy())
            guest.fitness.values = best[k - 1].fitness.values
            island.population[worst] = guest


def _finish(
    objective: DtfmObjective, islands: list[_Island], options: SearchOptions
) -> tuple[Placement, int]:
    """Polish the best few by full neighbourhoods with stages reordered, and place the winner."""
    people = sorted((x for i in islands for x in i.population), key=lambda x: x.cost_s)
    seen, used = set(), 0
    found: list[tuple[float, Groups]] = []
    for x in people:
        groups = to_groups(x.stage, objective.n_stages)
        mark = signature(objective, groups)
        if mark in seen:
            continue
        seen.add(mark)
        groups, cost, evaluations = polish(objective, groups, x.cost_s, max(500, options.evaluations // 100))
        used += evaluations
        found.append((cost, groups))
        if len(found) == 3:
            break
    placements = [objective.place(g) for _, g in found]
    return min(placements, key=lambda p: p.cost_s), used
