"""DT-FM's objective over blocks of devices: what it says of the network they stand for, what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scheduler.bound import lower_bound_s
from scheduler.dtfm import DtfmObjective, Volumes, recompute
from scheduler.dtfm_blocks import BlockObjective, search_any
from scheduler.encoding import places_of, structured
from scheduler.scenarios import scenario, with_noise
from scheduler.search import SearchOptions, search
from scheduler.topology import Topology, TopologyError

QUICK = SearchOptions(evaluations=4000, islands=1, population=8, generations=3)


def test_blocks_cost_what_their_devices_cost() -> None:
    topology = scenario("worldwide", n_devices=32)
    large = DtfmObjective(topology, 4, 8, Volumes(3e8, 2e8))
    blocks = np.arange(32).reshape(16, 2)
    small = BlockObjective(large, blocks)
    rng = np.random.default_rng(0)
    for _ in range(10):
        groups = rng.permutation(16).reshape(4, 4)
        whole = blocks[groups].reshape(4, 8)
        assert small.costs_s(groups[None])[0] == pytest.approx(large.costs_s(whole[None])[0])


def test_a_block_of_two_regions_counts_the_way_between_them() -> None:
    large = DtfmObjective(scenario("universities", n_devices=8), 2, 4, Volumes(3e8, 2e8))
    blocks = np.array([[0, 4], [1, 5], [2, 6], [3, 7]])  # one of each campus
    small = BlockObjective(large, blocks)
    assert small.exchange_s[0, 0] == pytest.approx(large.exchange_s[0, 4])
    assert len(set(small.kinds.tolist())) == 1


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_large_network_is_placed_no_worse_than_by_structure(noise: float) -> None:
    topology = with_noise(scenario("worldwide", n_devices=32), noise, np.random.default_rng(0))
    objective = DtfmObjective(topology, 4, 8, Volumes(3e8, 2e8))
    places = places_of(topology, objective)
    found = search_any(objective, places, 1, QUICK, most=16)
    assert found == search_any(objective, places, 1, QUICK, most=16)
    placement = found.placement
    assert sorted(d for stage in placement.stages for d in stage) == list(range(32))
    dp_s, pp_s = recompute(objective.exchange_s, objective.transfer_s, placement.stages)
    assert placement.cost_s == dp_s + 2 * pp_s
    seeds = [float(objective.costs_s(g[None])[0]) for g in structured(objective, places).values()]
    assert lower_bound_s(objective) <= placement.cost_s <= min(seeds) * (1 + 0.1 * noise + 1e-9)


def test_few_devices_are_searched_one_by_one() -> None:
    topology = scenario("regional", n_devices=16)
    objective = DtfmObjective(topology, 4, 4)
    places = places_of(topology, objective)
    assert search_any(objective, places, 3, QUICK) == search(objective, places, 3, QUICK)


def test_regions_that_blocks_do_not_divide_share_some() -> None:
    plain = scenario("universities", n_devices=16)
    keep = [*range(7), *range(8, 13)]  # seven and five: blocks of two leave one of each
    topology = Topology(
        tuple(replace(plain.devices[d]) for d in keep),
        plain.latency_s[np.ix_(keep, keep)],
        plain.bandwidth_Bps[np.ix_(keep, keep)],
    )
    objective = DtfmObjective(topology, 3, 4)
    found = search_any(objective, places_of(topology, objective), 0, QUICK, most=6)
    assert sorted(d for stage in found.placement.stages for d in stage) == list(range(12))


def test_too_many_for_one_by_one_without_blocks_is_told() -> None:
    topology = scenario("worldwide", n_devices=1024)
    objective = DtfmObjective(topology, 1024, 1)
    with pytest.raises(TopologyError, match="a divisor of at least 2"):
        search_any(objective, places_of(topology, objective))
