"""How a run goes on: a spare, fewer replicas, another plan, back to a checkpoint, or waiting."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.flows import TopologyNetwork
from scheduler.layer_sources import Holding, Source, holdings_of, layer_sources, loading_s, orphans
from scheduler.plan import Plan
from scheduler.plan_codecs import PlanCodecs
from scheduler.profile import DeviceProfile, LayerProfile, ModelProfile
from scheduler.recovery import Gather, GoOn, Standing, recover
from scheduler.replan import Measured
from scheduler.topology import Device, Topology

NAMES = ("a", "b", "c", "d", "e", "f")
MODEL = ModelProfile(tuple(LayerProfile(f"l{i}", 1e6, 2e6, 1000, 10, 10, 2000) for i in range(4)), 2, 8)


def a_plan(*placement: tuple[str, ...], samples: int = 16) -> Plan:
    stages = len(placement[0])
    cuts = [4 * s // stages for s in range(stages + 1)]
    shares = (samples // 2 // len(placement),) * len(placement)
    return Plan(1, placement, tuple(pairwise(cuts)), shares, "1f1b", micro_batch=2)


def measured(
    here: tuple[str, ...], bandwidth_Bps: float = 1e5, slow: str = "", memory_bytes: int = 0
) -> Measured:
    devices = tuple(Device(n, memory_bytes=memory_bytes) for n in here)
    n = len(here)
    profiles = [
        DeviceProfile(x, *(tuple([s * (4 if x == slow else 1)] * 4) for s in (0.01, 0.02, 0.001)))
        for x in here
    ]
    topology = Topology(devices, np.full((n, n), 0.01), np.full((n, n), bandwidth_Bps))
    return Measured(MODEL, profiles, topology)


def standing(running: Plan, here: tuple[str, ...], step: int = 7, saved: int | None = 5) -> Standing:
    return Standing(running, here, holdings_of(running, step, here), step, 100, saved)


def test_pipelines_that_go_on_keep_the_codecs_of_their_links() -> None:
    rows = ("a", "b"), ("c", "d"), ("e", "f")
    names = ("kbit:scale=tensor",), ("fp16",), ("identity",)
    plan = replace(a_plan(*rows, samples=12), codecs=PlanCodecs(names, (), ("identity", "fp16")))
    here = ("a", "d", "e", "f")
    found = recover(standing(plan, here), "too few", measured(here))
    assert isinstance(found, GoOn)
    assert found.plan.placement == (("e", "f"), ("a", "d"))
    assert found.plan.codecs == PlanCodecs((("identity",), ("kbit:scale=tensor",)), (), ("identity", "fp16"))


def test_a_spare_takes_the_place_and_fetches_from_the_replica_that_lives() -> None:
    here = ("a", "b", "c", "e")
    found = recover(standing(a_plan(("a", "b"), ("c", "d")), here), "too few", measured(here))
    assert isinstance(found, GoOn)
    assert (found.way, found.step, found.plan.placement) == ("repair", 7, (("a", "b"), ("c", "e")))
    assert found.sources["e"] == (Source(2, ("b",)), Source(3, ("b",)))
    assert found.sources["a"] == (Source(0, ("a",)), Source(1, ("a",)))
    assert found.loading_s == pytest.approx(0.01 + 2 * 3000 / 1e5)
    assert found.reason.startswith("d is gone: e takes the place")
    assert "come from b" in found.reason


def test_without_a_spare_the_other_replica_takes_the_whole_batch_and_no_layer_moves() -> None:
    here = ("a", "b", "c")
    running = a_plan(("a", "b"), ("c", "d"))
    found = recover(standing(running, here), "too few", measured(here))
    assert isinstance(found, GoOn)
    assert (found.way, found.plan.placement, found.plan.micro_batches) == (
        "fewer replicas",
        (("a", "b"),),
        (8,),
    )
    assert found.plan.samples == running.samples
    assert found.loading_s == 0
    assert not found.from_checkpoint


def test_a_shape_that_is_asked_for_is_kept_while_there_are_devices_for_it() -> None:
    here = ("a", "b", "c", "e")
    slow = measured(here, slow="e", bandwidth_Bps=1e3)
    open_to_all = standing(a_plan(("a", "b"), ("c", "d")), here)
    asked = replace(open_to_all, shape=(2, 2))
    ways = [recover(s, "too few", slow) for s in (open_to_all, asked)]
    assert [w.way for w in ways if isinstance(w, GoOn)] == ["fewer replicas", "repair"]
    none_left = recover(replace(asked, here=("a", "b")), "too few", measured(("a", "b")))
    assert isinstance(none_left, GoOn)
    assert none_left.way == "fewer replicas"


def test_two_broken_pipelines_make_one_whole() -> None:
    here = ("b", "c")
    found = recover(standing(a_plan(("a", "b"), ("c", "d")), here), "too few", measured(here))
    assert isinstance(found, GoOn)
    assert found.plan.placement == (("c", "b"),)
    assert not orphans(found.sources)


def test_a_stage_lost_with_all_replicas_takes_all_back_to_the_checkpoint() -> None:
    here = ("a", "c", "e")
    spare = a_plan(("a", "e"))
    found = recover(standing(a_plan(("a", "b")), here), spare, measured(here))
    assert isinstance(found, GoOn)
    assert found.from_checkpoint
    assert found.step == 5
    assert all(s.donors == () for layers in found.sources.values() for s in layers)
    assert "nobody holds layers 2, 3: back to the checkpoint of step 5, 2 steps again" in found.reason
    never = recover(standing(a_plan(("a", "b")), here, saved=None), spare, measured(here))
    assert isinstance(never, GoOn)
    assert (never.step, "back to the beginning, 7 steps again" in never.reason) == (0, True)
    strangers = recover(standing(a_plan(("a", "b")), ("c", "e")), a_plan(("c", "e")), measured(("c", "e")))
    assert isinstance(strangers, GoOn)
    assert "nobody holds layers 0 to 3: back to" in strangers.reason


def test_nobody_to_go_on_with_waits_and_says_why() -> None:
    found = recover(standing(a_plan(("a", "b")), ("a",)), "2 devices are required", measured(("a",)))
    assert found == Gather("b is gone; 1 device left: 2 devices are required")


def test_a_better_plan_is_taken_only_if_it_ends_the_run_sooner_with_its_moves() -> None:
    """Three stages against a replica that carries on: early in the run they pay, late they do not."""
    here = ("a", "b", "c")
    running = a_plan(("a", "b"), ("c", "d"))
    wide = replace(a_plan(("a", "b", "c")), partition=((0, 1), (1, 3), (3, 4)))
    early = recover(replace(standing(running, here), steps=10_000), wide, measured(here, 1e6))
    late = recover(replace(standing(running, here), steps=8), wide, measured(here, 1e3))
    assert isinstance(early, GoOn)
    assert isinstance(late, GoOn)
    assert (early.way, late.way) == ("redistribute", "fewer replicas")


def test_the_better_of_two_spares_is_taken_and_one_that_is_too_small_never() -> None:
    here = ("a", "b", "c", "e", "f")
    running = a_plan(("a", "b"), ("c", "d"))
    found = recover(standing(running, here), "too few", measured(here, slow="e"))
    assert isinstance(found, GoOn)
    assert found.plan.placement[1] == ("c", "f")
    small = measured(here, memory_bytes=100)
    assert isinstance(recover(standing(running, here), "too few", small), Gather)


def test_two_lost_at_once_are_both_replaced() -> None:
    here = ("a", "d", "e", "f")
    found = recover(standing(a_plan(("a", "b"), ("c", "d")), here), "no", measured(here, 1e7))
    assert isinstance(found, GoOn)
    assert (found.way, {n for row in found.plan.placement for n in row}) == ("repair", set(here))
    assert not orphans(found.sources)


def test_where_nobody_is_lost_the_plan_goes_on_as_it_is() -> None:
    plan, here = a_plan(("a", "b"), ("c", "d")), ("a", "b", "c", "d", "e")
    found = recover(standing(plan, here), "the plan that was given needs f", measured(here), version=9)
    assert isinstance(found, GoOn)
    assert (found.plan.placement, found.plan.version, found.loading_s) == (plan.placement, 9, 0.0)
    assert found.reason.startswith("nobody is lost: as before")


def test_a_holding_of_another_step_is_none() -> None:
    plan, here = a_plan(("a", "b")), ("a", "b")
    stale = {"a": Holding(7, frozenset({0, 1})), "b": Holding(6, frozenset({2, 3}))}
    assert orphans(layer_sources(plan, 7, stale, MODEL, measured(here).topology)) == (2, 3)


def test_several_donors_share_a_layer_where_that_is_sooner() -> None:
    running, here = a_plan(("a",), ("b",), ("c",)), ("a", "b", "c", "d")
    holdings = holdings_of(running, 3, here)
    plan = a_plan(("a",), ("d",))
    thin, far = measured(here, 1e4).topology, measured(here, 1e9).topology
    found = layer_sources(plan, 3, holdings, MODEL, thin)
    assert {len(s.donors) for s in found["d"]} == {3}
    assert loading_s(found, MODEL, TopologyNetwork(thin)) == pytest.approx(0.01 + 4 * 1000 / 1e4)
    assert len(layer_sources(plan, 3, holdings, MODEL, far)["d"]) == 4


@given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=6, unique=True), st.booleans())
def test_whoever_is_lost_the_way_is_one_of_those_who_are_there(names: list[str], planner: bool) -> None:
    here = tuple(names)
    running = a_plan(("a", "b"), ("c", "d"))
    planned: Plan | str = a_plan(here[:1]) if planner else "none"
    found = recover(standing(running, here), planned, measured(here))
    if isinstance(found, Gather):
        assert not planner
        return
    devices = [found.plan.device(r) for r in range(found.plan.n_ranks)]
    assert set(devices) <= set(here)
    assert len(set(devices)) == len(devices)
    assert found.plan.samples == running.samples
    assert found.plan.partition[-1][1] == 4
    assert set(found.sources) == set(devices)
    alive = {layer for h in holdings_of(running, 7, here).values() for layer in h.layers}
    assert found.from_checkpoint == (alive != {0, 1, 2, 3})
    assert found.step == (5 if found.from_checkpoint else 7)
