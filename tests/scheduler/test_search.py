"""The search against the optimum on small networks, against its seeds on large ones, and its determinism."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.baselines import baselines
from scheduler.bound import lower_bound_s
from scheduler.dtfm import DtfmObjective, Volumes
from scheduler.encoding import balance, crossover, places_of, structured, to_groups, to_stages
from scheduler.explain_placement import explain
from scheduler.refine import Walkers
from scheduler.scenarios import NAMES, scenario, with_noise
from scheduler.search import SearchOptions, SearchResult, n_partitions, partitions, search
from tests.scheduler.placements import network, optimum

SMALL = SearchOptions(evaluations=6000, islands=1, population=10, generations=4)
EVOLVE = SearchOptions(evaluations=2400, islands=1, population=10, generations=3, exhaustive=0)
QUICK = SearchOptions(evaluations=24_000, generations=5)


def found(objective: DtfmObjective, topology: object, seed: int, options: SearchOptions) -> SearchResult:
    return search(objective, places_of(topology, objective), seed, options)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [SMALL, EVOLVE], ids=["exhaustive", "evolution"])
def test_the_optimum_is_found_on_small_networks(options: SearchOptions) -> None:
    """100 networks of up to 9 devices; brute force prices every assignment by its own loops."""
    rng = np.random.default_rng(2)
    shapes = [(2, 2), (3, 2), (2, 3), (4, 2), (2, 4), (3, 3), (6, 1), (1, 7)]
    missed = 0
    for case in range(100):
        kind = ("uniform", "clustered", "random", "asymmetric")[case % 4]
        s, r = shapes[(case // 4) % len(shapes)]
        topology = network(kind, s * r, rng)
        c_dp, c_pp = 0.65e9 / rng.choice([1, 4, 16]), 0.47e9 / rng.choice([1, 4, 16])
        objective = DtfmObjective(topology, s, r, Volumes(c_dp, c_pp))
        cost = found(objective, topology, case, options).placement.cost_s
        best = optimum(topology, s, c_dp, c_pp)
        assert best * (1 - 1e-9) <= cost <= 1.02 * best
        missed += cost > best * (1 + 1e-9)
    assert missed <= 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("activations", "gradients"), [(1, 1), (4, 2), (16, 1), (2, 8)])
def test_no_baseline_and_no_seed_beats_the_search(name: str, activations: int, gradients: int) -> None:
    topology = scenario(name)
    objective = DtfmObjective(topology, 8, 8, Volumes(0.65e9 / gradients, 0.4712492e9 / activations))
    result = search(objective, places_of(topology, objective), 0, QUICK, floor_s=lower_bound_s(objective))
    cost = result.placement.cost_s
    assert cost <= min(result.seeds_s.values()) * (1 + 1e-9)
    for other in baselines(objective, places_of(topology, objective), np.random.default_rng(0), 200, 20, 20):
        assert cost <= other.cost_s * (1 + 1e-9), other.name
    if (activations, gradients) == (1, 1):
        assert cost <= {"universities": 16.087, "worldwide": 49.219}.get(name, np.inf)


def test_under_noise_the_search_improves_on_every_seed() -> None:
    topology = with_noise(scenario("worldwide"), 0.3, np.random.default_rng(3))
    objective = DtfmObjective(topology, 8, 8)
    result = found(objective, topology, 1, QUICK)
    assert result.placement.cost_s < 0.97 * min(result.seeds_s.values())
    costs = [cost for _, cost in result.curve]
    assert costs[-1] == min(costs) == result.placement.cost_s


def test_a_search_gives_up_only_where_devices_are_alike() -> None:
    plain = scenario("spot", n_devices=16)
    options = SearchOptions(evaluations=20_000, islands=1, population=10, generations=10, patience=1)
    judged = []
    for topology in (plain, with_noise(plain, 0.3, np.random.default_rng(1))):
        objective = DtfmObjective(topology, 4, 4)
        judged.append(found(objective, topology, 0, options).evaluations)
    assert judged[0] < 10_000 < 20_000 <= judged[1]


def test_128_devices_in_16_stages() -> None:
    topology = scenario("worldwide", n_devices=128)
    objective = DtfmObjective(topology, 16, 8)
    result = found(objective, topology, 0, SearchOptions(evaluations=8_000, islands=1, generations=3))
    assert result.placement.cost_s <= min(result.seeds_s.values()) * (1 + 1e-9)
    assert sorted(d for stage in result.placement.stages for d in stage) == list(range(128))


def test_same_seed_same_placement_however_the_islands_are_mapped() -> None:
    topology = with_noise(scenario("regional"), 0.3, np.random.default_rng(3))
    objective = DtfmObjective(topology, 8, 8)
    places = places_of(topology, objective)
    options = SearchOptions(evaluations=6_000, islands=3, population=10, generations=4, exchange_every=2)
    one = search(objective, places, 5, options)
    again = search(
        objective, places, 5, options, map_islands=lambda f, i: reversed([f(x) for x in reversed(list(i))])
    )
    with ThreadPoolExecutor(3) as pool:
        threads = search(objective, places, 5, options, map_islands=pool.map)
    assert one.placement == again.placement == threads.placement
    assert one.evaluations == again.evaluations == threads.evaluations
    assert search(objective, places, 6, options).curve != one.curve


def test_a_search_that_is_stopped_returns_the_best_so_far() -> None:
    topology = with_noise(scenario("worldwide"), 0.3, np.random.default_rng(3))
    objective = DtfmObjective(topology, 8, 8)
    result = search(objective, places_of(topology, objective), 0, QUICK, should_stop=lambda: True)
    assert result.ended_early
    assert result.evaluations < 0.5 * QUICK.evaluations
    assert result.placement.cost_s <= min(result.seeds_s.values()) * (1 + 1e-9)
    assert any("ended early" in line for line in explain(topology, objective, result))


def test_walkers_keep_their_prices_true() -> None:
    for shape in ((8, 2), (3, 6), (2, 8), (16, 1)):
        topology = network("asymmetric", 16 if shape != (3, 6) else 18, np.random.default_rng(1))
        objective = DtfmObjective(topology, *shape, Volumes(3e8, 2e8))
        rng = np.random.default_rng(0)
        start = np.stack([rng.permutation(len(topology)).reshape(shape) for _ in range(6)])
        walkers = Walkers(objective, start, rng)
        walkers.walk(200, 0.5, 0.01)
        assert not np.array_equal(walkers.groups, start)
        np.testing.assert_allclose(walkers.costs_s, objective.costs_in_order_s(walkers.groups))
        np.testing.assert_allclose(walkers.best_s, objective.costs_in_order_s(walkers.best_groups))
        assert (np.sort(walkers.groups.reshape(6, -1)) == np.arange(len(topology))).all()


def test_every_partition_is_listed_once() -> None:
    for s, r in ((1, 3), (3, 1), (2, 3), (3, 2), (3, 3)):
        listed = {frozenset(map(frozenset, p)) for p in partitions(tuple(range(s * r)), r)}
        assert len(listed) == n_partitions(s, r) == len(list(partitions(tuple(range(s * r)), r)))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 1000))
def test_children_and_balanced_stages_are_partitions(s: int, r: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = (rng.permutation(np.repeat(np.arange(s), r)) for _ in range(2))
    child = crossover(one, other, s, rng)
    assert (np.bincount(child, minlength=s) == r).all()
    assert np.array_equal(crossover(one, one, s, rng), one)
    assert (np.bincount(balance(rng.integers(s, size=s * r), s, rng), minlength=s) == r).all()
    assert np.array_equal(to_stages(to_groups(child, s)), child)


@pytest.mark.parametrize("shape", [(8, 8), (4, 16), (16, 4), (64, 1), (1, 64)])
def test_structured_placements_use_every_device_once(shape: tuple[int, int]) -> None:
    topology = scenario("worldwide")
    objective = DtfmObjective(topology, *shape)
    for name, groups in structured(objective, places_of(topology, objective)).items():
        assert groups.shape == shape, name
        assert sorted(groups.ravel()) == list(range(64)), name


@pytest.mark.parametrize("bad", [{"evaluations": 0}, {"islands": 0}, {"cold": 0.5}, {"cold": 0.0}])
def test_impossible_options_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="required"):
        SearchOptions(**bad)  # type: ignore[arg-type]
