"""Blocks of devices that stand for one each: what they hold, and what it costs to place them first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scheduler.blocks import blocks_of, fold_of, unfolded
from scheduler.plan_search import Chosen, Ways
from scheduler.planner import search_for
from scheduler.scenarios import scenario
from scheduler.step_kernels import Layout
from scheduler.step_search import StepSearchOptions
from scheduler.topology import Topology
from tests.scheduler.test_planner import MB, a_job, a_model, names, profiles

OPTIONS = StepSearchOptions(actions=4e7, dtfm=False)


def found(
    topology: Topology, blocks: int, batch: int = 64, shape: tuple[int, int] | None = None
) -> tuple[Ways, Chosen]:
    devices = profiles(names(topology), seconds=0.02)
    job = a_job(batch=batch, shape=shape)
    searched = search_for(job, a_model(boundary=MB), devices, topology, 1, replace(OPTIONS, blocks=blocks))
    return searched.ways, searched.chosen


@pytest.mark.parametrize(
    ("devices", "micro_batches", "most", "replicas", "fold"),
    [
        (64, 1024, 192, [1, 2], 1),
        (512, 1024, 192, [1, 2], 4),
        (4096, 1024, 192, [1, 2], 32),
        (512, 1000, 192, [1, 2], 4),
        (512, 1024, 192, [6], 2),
        (512, 1024, 192, [7], 1),
    ],
)
def test_a_block_has_as_many_devices_as_it_must(
    devices: int, micro_batches: int, most: int, replicas: list[int], fold: int
) -> None:
    assert fold_of(devices, micro_batches, most, replicas) == fold


def test_blocks_keep_to_their_region_and_unfold_into_copies_of_pipelines() -> None:
    topology = scenario("worldwide", n_devices=40)  # five in a region: two blocks, and one left over
    ways, _ = found(topology, 192, shape=(2, 2))
    grounds = ways.case(2, 2, ways.first_setting(2, 2)).grounds
    blocks = blocks_of(grounds, 2)
    assert blocks.shape == (16, 2)
    assert len(set(blocks.ravel().tolist())) == 32
    assert (grounds.places[blocks[:, 0]] == grounds.places[blocks[:, 1]]).all()
    small = Layout(np.array([[0, 5], [3, 4]]), np.array([0, 3, 8]), np.array([2, 4]))
    large = unfolded(small, blocks)
    assert large.shares.tolist() == [2, 2, 4, 4]
    assert large.cells.tolist() == [blocks[[0, 5], k].tolist() for k in (0, 1)] + [
        blocks[[3, 4], k].tolist() for k in (0, 1)
    ]


@pytest.mark.parametrize("name", ["worldwide", "regional"])
def test_placing_blocks_first_costs_little(name: str) -> None:
    """32 devices as 8 blocks of 4, against all of them at once."""
    topology = scenario(name, n_devices=32)
    whole, folded = found(topology, 192)[1], found(topology, 8)[1]
    assert folded.plan.predicted_step_s <= 1.03 * whole.plan.predicted_step_s
    assert folded.bound_s == pytest.approx(whole.bound_s, rel=0.3)


def test_many_like_devices_take_no_more_looking_than_few() -> None:
    """512 devices in 8 regions: layouts judged are counted, not seconds."""
    judged = {}
    for n in (64, 512):
        _, chosen = found(scenario("worldwide", n_devices=n), 64, 4 * n, (4, n // 8))
        assert chosen.plan.n_ranks == n // 2
        judged[n] = chosen.result.evaluations
    assert judged[512] < 2 * judged[64]


def test_where_something_is_shared_the_engine_has_the_last_word() -> None:
    """The plan is the engine's best of the layouts that the twin, an estimate there, handed on."""
    plain = scenario("worldwide", n_devices=8)
    crowded = tuple(
        replace(d, host=f"h{i // 2}", host_cores=1, uplink_Bps=4e7) for i, d in enumerate(plain.devices)
    )
    ways, chosen = found(replace(plain, devices=crowded), 192, 16)
    assert not chosen.found.case.pricing.exact
    handed_on = [ways.plan(f, 1) for f in chosen.result.by_case[:6]]
    assert len({(p.n_stages, p.n_replicas, p.warmup_extra) for p in handed_on}) > 1
    assert chosen.plan.predicted_step_s == min(p.predicted_step_s for p in handed_on)
    assert chosen.bound_s <= chosen.plan.predicted_step_s
