"""The search for the step time against the optimum of small networks, its bound, its baselines, itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import combinations, pairwise, permutations
from typing import Any

import numpy as np
import pytest

from scheduler.analytic import device_profile, model_profile
from scheduler.cost import step_time_s
from scheduler.job import ModelSpec
from scheduler.partition import DoesNotFit, partition
from scheduler.plan import Plan
from scheduler.plan_search import shapes
from scheduler.profile import DeviceProfile, LayerProfile, ModelProfile
from scheduler.scenarios import NAMES, scenario, with_noise
from scheduler.step_baselines import step_baselines
from scheduler.step_bound import lower_bound_s
from scheduler.step_case import (
    Case,
    Found,
    even_shares,
    fair_shares,
    glide,
    open_case,
    openings,
    place,
)
from scheduler.step_cut import cut_layers
from scheduler.step_kernels import Ints, Layout, exchange_s, price_all, price_pipeline, price_tail
from scheduler.step_memo import new_memo
from scheduler.step_moves import (
    CROSS,
    N_MOVES,
    REGIONS,
    REPLACE,
    SHARE,
    SWAP,
    TRADE,
    copy_search,
    make,
    propose,
    search_of,
)
from scheduler.step_search import StepSearchOptions, StepSearchResult, Task, search_steps
from scheduler.step_seeds import grounds_of
from scheduler.step_time import layout_step_s, new_state, pricing_of, tables_for
from scheduler.step_walk import descend, walk
from scheduler.topology import Device, Topology
from tests.scheduler.placements import network

WALKS = StepSearchOptions(actions=2e6, exhaustive=0, dtfm=False)


def a_model(
    n_layers: int, boundary: int = 10**7, parameters: int = 10**8, saved: int = 10**6
) -> ModelProfile:
    return ModelProfile(
        tuple(
            LayerProfile(f"l{i}", 1, 2, parameters, boundary, saved, 2 * parameters) for i in range(n_layers)
        ),
        1,
        8,
    )


def equal_devices(topology: Topology, seconds: Sequence[float]) -> list[DeviceProfile]:
    forward, backward = tuple(seconds), tuple(2 * x for x in seconds)
    return [DeviceProfile(d.name, forward, backward, (0.001,) * len(forward)) for d in topology.devices]


def a_case(
    topology: Topology,
    model: ModelProfile,
    devices: Sequence[DeviceProfile],
    shape: tuple[int, int],
    micro_batches: int,
    schedule: str = "1f1b",
    number: int = 0,
) -> Case:
    pricing = pricing_of(model, devices, topology)
    grounds = grounds_of(pricing, [d.region for d in topology.devices])
    return Case(pricing, grounds, schedule, 0, micro_batches, *shape, number)


def optimum(case: Case) -> float:
    """The least step over every assignment of devices to tasklets and every cut, with even shares.

    Pipelines and groups are priced once each; placements are walked and added up by plain loops.
    """
    n_layers = case.prices.forward_s.shape[1] - 1
    shares = even_shares(case.micro_batches, case.n_replicas)
    inner = combinations(range(1, n_layers), case.n_stages - 1)
    return min(_optimum(case, np.array([0, *ends, n_layers]), shares) for ends in inner)


def _optimum(case: Case, cut: Ints, shares: Ints) -> float:
    prices, s, r, n = case.prices, case.n_stages, case.n_replicas, len(case.pricing.names)
    ends: dict[tuple[int, tuple[int, ...]], tuple[list[float], list[float]]] = {}
    for m in {int(m) for m in shares}:
        tables = tables_for(case.schedule, s, [m])
        for row in permutations(range(n), s):
            one, state = Layout(np.array([row]), cut, np.array([m])), new_state(1, s)
            price_pipeline(prices, tables, one, 0, state.ends_s)
            price_tail(prices, one, 0, state.tail_s)
            ends[m, row] = state.ends_s[0].tolist(), state.tail_s[0].tolist()
    group: dict[tuple[int, tuple[int, ...]], float] = {}
    for members in combinations(range(n), r):
        for k in range(s):
            cells = np.zeros((r, s), dtype=np.int64)
            cells[:, k] = members
            group[k, members] = exchange_s(prices, Layout(cells, cut, shares), k)
    best = np.inf

    def extend(rows: list[tuple[int, ...]], left: tuple[int, ...]) -> None:
        nonlocal best
        k = len(rows)
        if k < r:
            for row in permutations(left, s):
                if not (k and shares[k] == shares[k - 1] and row < rows[-1]):
                    extend([*rows, row], tuple(d for d in left if d not in row))
            return
        parts = [ends[int(m), row] for m, row in zip(shares, rows, strict=True)]
        through = [
            max(e[i] for e, _ in parts) + group[i, tuple(sorted(row[i] for row in rows))] for i in range(s)
        ]
        tied = max(through[0], through[-1])
        best = min(best, max(max(*through, tied + t[0]) + t[1] + t[2] for _, t in parts))

    extend([], tuple(range(n)))
    return float(best)


SHAPES = ((2, 2), (3, 2), (2, 3), (5, 1), (1, 6), (4, 1), (2, 2), (3, 2))


def small_cases() -> Iterable[tuple[int, Case]]:
    """100 of them, with up to 8 devices; every third leaves one out."""
    rng = np.random.default_rng(3)
    for k in range(100):
        kind = ("uniform", "clustered", "random", "asymmetric")[k % 4]
        s, r = (4, 2) if k in (33, 66) else (2, 4) if k in (11, 77) else SHAPES[(k // 4) % len(SHAPES)]
        spare = 1 if k % 3 == 0 and s * r < 6 else 0
        topology = network(kind, s * r + spare, rng)
        n_layers = s + (int(rng.integers(3)) if s < 4 else 0)
        model = a_model(n_layers, int(rng.integers(10**5, 3 * 10**7)), int(rng.integers(10**6, 3 * 10**8)))
        seconds = rng.uniform(0.005, 0.1, n_layers)
        devices = equal_devices(topology, seconds.tolist())
        if k % 2:
            slow = rng.choice([1.0, 2.0, 5.0], size=len(devices))
            devices = [
                replace(
                    p,
                    forward_s=tuple(x * f for x in p.forward_s),
                    backward_s=tuple(x * f for x in p.backward_s),
                )
                for p, f in zip(devices, slow.tolist(), strict=True)
            ]
        schedule = "gpipe" if k % 5 == 0 else "1f1b"
        yield k, a_case(topology, model, devices, (s, r), int(rng.integers(r, 9)), schedule)


def test_the_optimum_is_found_on_small_networks() -> None:
    """By trying all, and by walking; never below the bound. The search may also share unevenly."""
    missed = {"all": 0, "walks": 0}
    for k, case in small_cases():
        best = optimum(case)
        assert lower_bound_s(case) <= best * (1 + 1e-9)
        for name, options in (("all", StepSearchOptions(dtfm=False)), ("walks", WALKS)):
            result = search_steps([case], k, options)
            assert result is not None
            assert result.best.exhausted == (name == "all")
            assert result.best.step_s <= 1.02 * best, (k, name)
            missed[name] += result.best.step_s > best * (1 + 1e-9)
    assert missed["all"] == 0
    assert missed["walks"] <= 1


@pytest.mark.parametrize("sharing", ["cores", "cards", "ways out"])
def test_the_bound_holds_where_something_is_shared(sharing: str) -> None:
    """Below the engine's time of every placement of two pipelines, the devices two to a host and a region."""
    rng = np.random.default_rng(9)
    for _ in range(4):
        plain = network("random", 4, rng)
        up_Bps, down_Bps = (2e7, 3e7) if sharing == "cards" else (0.0, 0.0)
        cores = 1 if sharing == "cores" else 0
        shared = tuple(
            replace(
                d,
                region=f"r{i % 2}",
                host=f"h{i % 2}",
                host_cores=cores,
                uplink_Bps=up_Bps,
                downlink_Bps=down_Bps,
            )
            for i, d in enumerate(plain.devices)
        )
        out = {"r0": 1.5e7, "r1": 4e7} if sharing == "ways out" else {}
        topology = replace(plain, devices=shared, egress_Bps=out)
        model = a_model(2, int(rng.integers(10**5, 10**7)), int(rng.integers(10**5, 10**7)))
        devices = equal_devices(topology, rng.uniform(0.01, 0.2, 2).tolist())
        case = a_case(topology, model, devices, (2, 2), 6)
        assert not case.pricing.exact
        names = [d.name for d in topology.devices]
        engine_s = []
        for a, b, c, d in permutations(names):
            plan = Plan(1, ((a, b), (c, d)), ((0, 1), (1, 2)), (3, 3), "1f1b")
            engine_s.append(step_time_s(plan, model, devices, topology))
        assert 0.2 * min(engine_s) < lower_bound_s(case) <= min(engine_s) * (1 + 1e-9)


def v100s(topology: Topology, batch: int = 128, shape: tuple[int, int] = (8, 8)) -> Case:
    model = model_profile(ModelSpec(preset="gpt3-xl-24"), 1, 2048, 2)
    devices = [device_profile(model, d.name, 5e13) for d in topology.devices]
    return a_case(topology, model, devices, shape, batch)


QUICK = StepSearchOptions(actions=5e7)


@pytest.mark.parametrize("name", NAMES)
def test_no_baseline_and_no_seed_beats_the_search(name: str) -> None:
    case = v100s(scenario(name))
    result = search_steps([case], 0, QUICK)
    assert result is not None
    best_s = result.best.step_s
    assert best_s <= min(result.seeds_s.values()) * (1 + 1e-9)
    for other in step_baselines(case, np.random.default_rng(0), 20, 20):
        assert best_s <= other.cost_s * (1 + 1e-9), other.name
    assert lower_bound_s(case) <= best_s


@pytest.mark.parametrize("what", range(N_MOVES))
def test_a_move_keeps_every_device_once_and_prices_what_it_touched(what: int) -> None:
    """Three shapes' layouts, each moved 60 times at random: as priced from scratch, whatever was known."""
    rng = np.random.default_rng(what)
    topology = with_noise(scenario("regional", n_devices=16), 0.3, rng)
    made = 0
    for s, r in ((4, 3), (2, 8), (5, 3)):
        case = v100s(topology, 64, (s, r))
        first = open_case(case, openings(case))[0].layout
        tables, memo = case.tables(first.shares, 2), new_memo(s)
        spare = np.setdiff1d(np.arange(16), first.cells)
        now, trial = (search_of(_copy(first), spare.copy(), new_state(r, s)) for _ in range(2))
        price_all(case.prices, tables, now.layout, now.state)
        bound = {SWAP: (r * s, r * s), TRADE: (r * s, r * s), REPLACE: (r * s, len(spare)),
                 CROSS: (r, r), SHARE: (r, r), REGIONS: (4, 4)}.get(what, (s, s))  # fmt: skip
        for _ in range(60 if min(bound) else 0):
            x, y, z = (int(rng.integers(n)) for n in (*bound, s))
            copy_search(now, trial)
            grounds = case.grounds
            given = (case.prices, tables, grounds.kinds, grounds.places, memo, trial, what, x, y, z)
            step_s, _ = propose(*given, False, np.inf, True)
            if np.isfinite(step_s):
                made += 1
                assert step_s == pytest.approx(layout_step_s(case.pricing, tables, trial.layout), rel=1e-9)
                assert sorted([*trial.layout.cells.ravel(), *trial.spare]) == list(range(16))
                copy_search(trial, now)
    assert made > 10


def _copy(layout: Layout) -> Layout:
    return Layout(layout.cells.copy(), layout.cut.copy(), layout.shares.copy())


def test_of_two_that_trade_each_goes_where_its_links_suit_best() -> None:
    """Pipelines 0-3, 1-4, 2-5 with 0 and 4 traded are 4-3, 1-0, 2-5; 4 is near 5, so it goes to that row."""
    bandwidth = np.full((6, 6), 1e7)
    for a, b in ((4, 5), (2, 3), (0, 1)):
        bandwidth[a, b] = bandwidth[b, a] = 1e9
    devices = tuple(Device(f"d{k}") for k in range(6))
    topology = Topology(devices, np.full((6, 6), 0.01), bandwidth)
    case = a_case(topology, a_model(2), equal_devices(topology, [0.02] * 2), (2, 3), 6)
    layout = Layout(np.array([[0, 3], [1, 4], [2, 5]]), np.array([0, 1, 2]), even_shares(6, 3))
    trial = search_of(layout, np.zeros(0, dtype=np.int64), new_state(3, 2))
    grounds, tables = case.grounds, case.tables(layout.shares)
    assert make(case.prices, tables, grounds.kinds, grounds.places, trial, TRADE, 0, 3, 0)
    assert layout.cells.tolist() == [[2, 3], [1, 0], [4, 5]]
    assert trial.pipelines.all()


def test_a_walk_over_floors_ends_in_a_layout_with_its_true_price() -> None:
    """On noisy links, where a walk over replays of as much effort gets no further."""
    case = v100s(with_noise(scenario("universities"), 0.3, np.random.default_rng(1)), 128)
    start = open_case(case, openings(case), keep=3)[2]
    found = glide(start, 4e6, np.random.default_rng(0), 0.02, 0.0002)
    assert found.step_s == layout_step_s(case.pricing, case.tables(found.layout.shares), found.layout)
    assert sorted(found.layout.cells.ravel().tolist()) == list(range(64))
    assert found.step_s < 0.9 * start.step_s


def three_kinds(topology: Topology) -> tuple[ModelProfile, list[DeviceProfile]]:
    """A third of the devices is twice, another five times as slow as the first."""
    model = a_model(12, 10**6, 10**6)
    devices = []
    for k, d in enumerate(topology.devices):
        forward = (0.01 * (1, 2, 5)[k % 3],) * 12
        devices.append(DeviceProfile(d.name, forward, tuple(2 * x for x in forward), (0.001,) * 12))
    return model, devices


@pytest.mark.parametrize("shape", [(3, 2), (6, 1), (1, 6), (2, 3)])
def test_unlike_devices_are_told_apart(shape: tuple[int, int]) -> None:
    """The plan beats the best one of a search to which all devices look like their mean."""
    topology = network("clustered", 6, np.random.default_rng(4))
    model, devices = three_kinds(topology)
    case = a_case(topology, model, devices, shape, 24)
    mean = np.mean([p.forward_s for p in devices], axis=0).tolist()
    equal = a_case(topology, model, equal_devices(topology, mean), shape, 24)
    told, blind = search_steps([case], 0, QUICK), search_steps([equal], 0, QUICK)
    assert told is not None
    assert blind is not None
    layout = blind.best.layout
    blind_s = layout_step_s(case.pricing, case.tables(layout.shares), layout)
    assert told.best.step_s < 0.9 * blind_s


def test_shares_follow_speeds_and_add_up() -> None:
    topology = network("uniform", 6, np.random.default_rng(0))
    model, devices = three_kinds(topology)
    case = a_case(topology, model, devices, (1, 6), 34)
    found = place(case, np.arange(6).reshape(6, 1), "as they stand")
    assert found is not None
    assert found.layout.shares.tolist() == [10, 5, 2, 10, 5, 2]
    assert fair_shares(case.prices, found.layout, 6).tolist() == [1] * 6


def test_a_layout_stays_within_memory() -> None:
    """Small devices hold few layers, whatever that costs; nothing fits where all are too small."""
    topology = network("uniform", 4, np.random.default_rng(0))
    sizes = [10**10, 4 * 10**8 + 10**7, 10**10, 10**10]
    limited = Topology(
        tuple(replace(d, memory_bytes=m) for d, m in zip(topology.devices, sizes, strict=True)),
        topology.latency_s,
        topology.bandwidth_Bps,
    )
    model = a_model(8, boundary=10**6, parameters=10**8, saved=10**6)
    case = a_case(limited, model, equal_devices(limited, [0.01] * 8), (4, 1), 4)
    for options in (QUICK, replace(WALKS, actions=1e6)):
        result = search_steps([case], 0, options)
        assert result is not None
        stage = result.best.layout.cells[0].tolist().index(1)
        assert np.diff(result.best.layout.cut)[stage] == 1
    tiny = Topology(
        tuple(replace(d, memory_bytes=10**8) for d in topology.devices),
        topology.latency_s,
        topology.bandwidth_Bps,
    )
    assert search_steps([a_case(tiny, model, equal_devices(tiny, [0.01] * 8), (4, 1), 4)]) is None


def test_the_compiled_cut_is_the_reference_cut() -> None:
    """`cut_layers` against `partition`, with unlike devices, memory, and micro-batches in flight."""
    rng = np.random.default_rng(8)
    refused = 0
    for _ in range(60):
        s, r = int(rng.integers(1, 5)), int(rng.integers(1, 4))
        n_layers = s + int(rng.integers(5))
        plain = network("random", s * r, rng)
        memory = rng.integers(3 * 10**8, 3 * 10**9, size=s * r).tolist()
        limited = tuple(replace(d, memory_bytes=m) for d, m in zip(plain.devices, memory, strict=True))
        topology = Topology(limited, plain.latency_s, plain.bandwidth_Bps)
        model = a_model(n_layers, boundary=10**6, parameters=10**8, saved=10**7)
        devices = [
            DeviceProfile(d.name, *(tuple(rng.uniform(0.01, 0.1, n_layers).tolist()) for _ in range(3)))
            for d in topology.devices
        ]
        case = a_case(topology, model, devices, (s, r), 5 * r)
        cells = rng.permutation(s * r).reshape(r, s)
        layout = Layout(cells, np.zeros(s + 1, dtype=np.int64), even_shares(5 * r, r))
        tables = case.tables(layout.shares)
        fits = cut_layers(case.prices, tables, layout)
        columns = [[devices[d] for d in column] for column in cells.T.tolist()]
        in_flight = tables.in_flight[5].tolist()
        limits = {d.name: d.memory_bytes for d in topology.devices}
        if fits:
            assert partition(model, columns, limits, in_flight) == tuple(pairwise(layout.cut.tolist()))
        else:
            refused += 1
            with pytest.raises(DoesNotFit):
                partition(model, columns, limits, in_flight)
    assert 5 < refused < 55


def test_hundreds_of_devices_are_searched_within_the_same_effort() -> None:
    """256 devices in 8 regions: the effort counts actions, so larger ones get fewer moves, not more time."""
    case = v100s(scenario("worldwide", n_devices=256), 256, (8, 32))
    result = search_steps([case], 0, replace(QUICK, dtfm=False))
    assert result is not None
    assert result.best.step_s <= min(result.seeds_s.values())
    assert result.evaluations < 30_000
    assert len(shapes(4096, 26, 1024)) < 2200


def test_the_same_seed_gives_the_same_plan_in_any_order_of_work() -> None:
    topology = network("random", 12, np.random.default_rng(1))
    model = a_model(6)
    cases = [
        a_case(topology, model, equal_devices(topology, [0.02] * 6), shape, 12, number=k)
        for k, shape in enumerate(((4, 3), (3, 4), (6, 2)))
    ]

    def backwards(do: Callable[[Task], Found], tasks: Iterable[Task]) -> list[Found]:
        return [do(t) for t in list(tasks)[::-1]][::-1]

    options = StepSearchOptions(actions=5e6)
    one, other = (search_steps(cases, 7, options, m) for m in (map, backwards))
    assert isinstance(one, StepSearchResult)
    assert isinstance(other, StepSearchResult)
    assert one.best.step_s == other.best.step_s
    assert np.array_equal(one.best.layout.cells, other.best.layout.cells)
    assert one.curve == other.curve


def test_the_second_round_begins_at_the_best_ends_and_where_their_walks_began() -> None:
    topology = with_noise(scenario("worldwide", n_devices=32), 0.3, np.random.default_rng(3))
    model = a_model(6)
    case = a_case(topology, model, equal_devices(topology, [0.02] * 6), (4, 8), 32)
    rounds: list[list[tuple[Task, Found]]] = []

    def noted(do: Callable[[Task], Found], tasks: Iterable[Task]) -> list[Found]:
        rounds.append([(t, do(t)) for t in tasks])
        return [f for _, f in rounds[-1]]

    search_steps([case], 0, StepSearchOptions(actions=5e6), noted)
    first, second = ([x for x in r if x[0].glides] for r in rounds if any(t.glides for t, _ in r))
    begun = [t.found.layout.cells.tolist() for t, _ in second]
    origin, end = min(first, key=lambda x: x[1].step_s)
    for cells in (origin.found.layout.cells, end.layout.cells):
        assert cells.tolist() in begun
    assert not np.array_equal(origin.found.layout.cells, end.layout.cells)


def test_arrays_that_may_only_be_read_are_taken_as_they_come() -> None:
    """As Ray hands them over: the same plan, and no kernel compiled anew for another type of array."""

    def read_only(found: Found) -> Found:
        case, layout = found.case, found.layout
        locked = [x for x in case.prices if isinstance(x, np.ndarray)]
        for array in (*locked, case.grounds.kinds, case.grounds.places, *layout):
            array.flags.writeable = False
        return found

    def through_shared_memory(do: Callable[[Task], Found], tasks: Iterable[Task]) -> list[Found]:
        sent = [copy.deepcopy(t) for t in tasks]
        return [read_only(copy.deepcopy(do(replace(t, found=read_only(t.found))))) for t in sent]

    topology = network("random", 12, np.random.default_rng(1))
    options = StepSearchOptions(actions=2e6)
    cases = [a_case(topology, a_model(6), equal_devices(topology, [0.02] * 6), (4, 3), 12)]
    here = search_steps(cases, 7, options)
    kernels: list[Any] = [walk, descend]
    compiled = [len(k.signatures) for k in kernels]
    there = search_steps(cases, 7, options, through_shared_memory)
    assert here is not None
    assert there is not None
    assert np.array_equal(here.best.layout.cells, there.best.layout.cells)
    assert here.curve == there.curve
    assert [len(k.signatures) for k in kernels] == compiled


def test_a_search_that_is_stopped_gives_the_best_so_far() -> None:
    case = v100s(scenario("worldwide"), 64)
    result = search_steps([case], 0, QUICK, should_stop=lambda: True)
    assert result is not None
    assert result.ended_early
    assert result.best.step_s == min(result.seeds_s.values())


@pytest.mark.parametrize("change", [{"actions": 0.0}, {"heat": -1.0}, {"cold": 0.0}])
def test_options_out_of_range_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="required more than 0"):
        StepSearchOptions(**change)  # type: ignore[arg-type]
