"""The baselines are what they are called, and DT-FM's own search searches."""

from __future__ import annotations

import numpy as np
import pytest

from scheduler.baselines import baselines, data_innermost, pipeline_innermost, region_order
from scheduler.dtfm import DtfmObjective
from scheduler.dtfm_search import circulate, dtfm_search
from scheduler.encoding import greedy, places_of, to_stages
from scheduler.scenarios import scenario


def test_orders_lay_devices_out_as_named() -> None:
    topology = scenario("worldwide")
    objective = DtfmObjective(topology, 8, 8)
    regions = np.array(places_of(topology, objective))
    assert (regions[data_innermost(objective)] == np.arange(8)[:, None]).all()
    assert (regions[pipeline_innermost(objective)] == np.arange(8)[None, :]).all()
    assert np.array_equal(region_order(objective, regions), pipeline_innermost(objective))
    assert (np.sort(regions[greedy(objective)], axis=1) == regions[greedy(objective)][:, :1]).all()


def test_costs_are_those_of_the_known_layouts() -> None:
    topology = scenario("worldwide")
    objective = DtfmObjective(topology, 8, 8)
    found = {
        b.name: b.cost_s
        for b in baselines(objective, places_of(topology, objective), np.random.default_rng(0), 50, 30, 20)
    }
    assert found["region order"] == pytest.approx(49.218, abs=5e-4)
    assert found["greedy"] == pytest.approx(59.437, abs=5e-4)
    assert found["random, best of 50"] < found["random, mean"]
    assert found["DT-FM's search"] < found["random, mean"]


def test_the_papers_local_search_keeps_groups_balanced_and_frees_fast_links() -> None:
    objective = DtfmObjective(scenario("worldwide"), 8, 8)
    rng = np.random.default_rng(0)
    stage = to_stages(np.arange(64).reshape(8, 8))  # every fast link lies inside a group
    for _ in range(30):
        stage = circulate(objective, stage)
        assert (np.bincount(stage) == 8).all()
    inside = objective.costs_s(np.argsort(stage, kind="stable").reshape(1, 8, 8))[0]
    assert inside != pytest.approx(59.437, abs=1e-2)
    one, again = (dtfm_search(objective, np.random.default_rng(4), 10, 40) for _ in range(2))
    assert np.array_equal(one, again)
    start = objective.costs_s(np.stack([rng.permutation(64).reshape(8, 8) for _ in range(50)]))
    assert objective.costs_s(one[None])[0] < start.mean()
