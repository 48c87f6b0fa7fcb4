"""The objective by hand values, against plain loops, and its lower bound against the optimum."""

from __future__ import annotations

import numpy as np
import pytest

from scheduler.bound import lower_bound_s
from scheduler.dtfm import DtfmObjective, Volumes
from scheduler.scenarios import scenario
from scheduler.topology import TopologyError
from tests.scheduler.placements import network, optimum, price


def test_scenario_3_with_four_of_each_campus_in_every_group() -> None:
    objective = DtfmObjective(scenario("universities"), 8, 8)
    groups = np.array([[*range(4 * s, 4 * s + 4), *range(32 + 4 * s, 36 + 4 * s)] for s in range(8)])
    placement = objective.place(groups)
    assert placement.data_parallel_s == pytest.approx(5.5169, abs=5e-5)
    assert 2 * placement.pipeline_s == pytest.approx(10.570, abs=5e-4)
    assert placement.cost_s == pytest.approx(16.087, abs=5e-4)


def test_scenario_5_with_pipelines_or_replicas_inside_a_region() -> None:
    objective = DtfmObjective(scenario("worldwide"), 8, 8)
    regions = np.arange(64).reshape(8, 8)
    inside = objective.place(regions.T)
    assert inside.data_parallel_s == pytest.approx(22.758, abs=5e-4)
    assert 2 * inside.pipeline_s == pytest.approx(26.460, abs=5e-4)
    assert inside.cost_s == pytest.approx(49.218, abs=5e-4)
    assert objective.place(regions).cost_s == pytest.approx(59.437, abs=5e-4)


@pytest.mark.parametrize("kind", ["uniform", "clustered", "random", "asymmetric"])
@pytest.mark.parametrize("shape", [(1, 6), (6, 1), (2, 3), (4, 3), (12, 1), (2, 10)])
def test_a_placement_is_worth_what_plain_loops_say(kind: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(7)
    s, r = shape
    topology = network(kind, s * r, rng)
    volumes = Volumes(3e8, 2e8)
    objective = DtfmObjective(topology, s, r, volumes)
    batch = np.stack([rng.permutation(s * r).reshape(s, r) for _ in range(5)])
    for groups, cost, ordered in zip(
        batch, objective.costs_s(batch), objective.costs_in_order_s(batch), strict=True
    ):
        placement = objective.place(groups)
        assert placement.cost_s == pytest.approx(cost)
        assert price(topology, [list(g) for g in placement.stages], 3e8, 2e8) == pytest.approx(cost)
        assert objective.place(groups, keep_order=True).cost_s == pytest.approx(ordered)
        assert sorted(map(sorted, placement.stages)) == sorted(map(sorted, groups.tolist()))
        assert cost <= ordered + 1e-9


@pytest.mark.parametrize("kind", ["uniform", "clustered", "random", "asymmetric"])
def test_no_placement_is_below_the_bound(kind: str) -> None:
    rng = np.random.default_rng(11)
    for c_dp, c_pp in ((6e8, 1e8), (1e8, 6e8), (3e8, 3e8)):
        for shape in ((2, 3), (3, 2), (2, 4), (4, 2), (6, 1), (1, 6)):
            topology = network(kind, shape[0] * shape[1], rng)
            bound = lower_bound_s(DtfmObjective(topology, *shape, Volumes(c_dp, c_pp)))
            assert 0 < bound <= optimum(topology, shape[0], c_dp, c_pp) * (1 + 1e-9)


def test_the_bound_proves_the_best_of_three_scenarios() -> None:
    for name, cost in (("datacenter", 3.440), ("universities", 16.087), ("regional", 34.802)):
        assert lower_bound_s(DtfmObjective(scenario(name), 8, 8)) == pytest.approx(cost, abs=5e-4)


def test_interchangeable_devices_share_a_kind() -> None:
    assert DtfmObjective(scenario("spot"), 8, 8).kinds.tolist() == [
        *(k for k in range(8) for _ in range(4)),
        *[8] * 32,
    ]


@pytest.mark.parametrize("shape", [(8, 7), (0, 64), (-8, -8), (65, 1)])
def test_a_shape_that_does_not_use_the_devices_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(TopologyError, match="64 devices"):
        DtfmObjective(scenario("worldwide"), *shape)


@pytest.mark.parametrize("volume", [-1.0, float("nan"), float("inf")])
def test_impossible_volumes_are_refused(volume: float) -> None:
    with pytest.raises(ValueError, match="c_pp_bytes"):
        Volumes(1.0, volume)
