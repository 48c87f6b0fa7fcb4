"""What travels when a plan changes: which layers, from whom, how long, and what nobody holds any more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scheduler.moving import MovingCost, moving_cost, transfer_deadline_s
from scheduler.plan import Plan
from scheduler.profile import LayerProfile, ModelProfile
from scheduler.topology import Device, Topology

NAMES = ("a", "b", "c", "d")
MODEL = ModelProfile(tuple(LayerProfile(f"l{i}", 1, 2, 100, 10, 10, 200) for i in range(4)), 1, 8)
TOPOLOGY = Topology(tuple(Device(n) for n in NAMES), np.full((4, 4), 0.5), np.full((4, 4), 100.0))


def a_plan(*placement: tuple[str, ...], cut: tuple[int, ...] = (2,)) -> Plan:
    ends = (*cut, 4)
    return Plan(1, placement, tuple(zip((0, *cut), ends, strict=True)), (1,) * len(placement), "1f1b")


RUNNING = a_plan(("a", "b"))


def test_what_stays_where_it_is_costs_the_restart() -> None:
    assert moving_cost(RUNNING, RUNNING, MODEL, TOPOLOGY, 3.0) == MovingCost(0, 3.0, 0, ())
    assert moving_cost(RUNNING, replace(RUNNING, micro_batches=(9,)), MODEL, TOPOLOGY).seconds == 0


def test_a_boundary_that_shifts_moves_the_layers_between() -> None:
    """One layer with its state: 300 bytes at 100 a second, half a second away."""
    cost = moving_cost(RUNNING, a_plan(("a", "b"), cut=(3,)), MODEL, TOPOLOGY)
    assert cost == MovingCost(300, 0.5 + 3.0, 1, ())
    assert cost.sentence() == "1 layer (300 B) moves in 3.50 s"


def test_links_work_side_by_side_and_transfers_of_one_link_in_turn() -> None:
    swapped = moving_cost(RUNNING, a_plan(("b", "a")), MODEL, TOPOLOGY)
    assert swapped == MovingCost(1200, 0.5 + 6.0, 4, ())
    new_replica = moving_cost(RUNNING, a_plan(("a", "b"), ("c", "d")), MODEL, TOPOLOGY)
    assert new_replica == MovingCost(1200, 0.5 + 6.0, 4, ())


def test_several_holders_share_the_work() -> None:
    running = a_plan(("a", "b"), ("c", "d"))
    one = moving_cost(running, a_plan(("a",), ("b",), ("c",), ("d",), cut=()), MODEL, TOPOLOGY)
    assert one.n_bytes == 4 * 600
    assert one.seconds == pytest.approx(0.5 + 3.0)  # each fetches a layer from each of two


def test_one_card_is_shared() -> None:
    devices = (Device("a", uplink_Bps=100.0), *TOPOLOGY.devices[1:])
    narrow = Topology(devices, TOPOLOGY.latency_s, TOPOLOGY.bandwidth_Bps)
    plan = a_plan(("b", "c", "d"), cut=(1, 2))
    assert moving_cost(a_plan(("a", "b")), plan, MODEL, narrow).seconds == pytest.approx(0.5 + 6.0)


def test_what_only_a_lost_device_held_is_an_orphan() -> None:
    there = TOPOLOGY.subset([1, 2, 3])
    cost = moving_cost(RUNNING, a_plan(("b", "c")), MODEL, there)
    assert cost.orphans == (0, 1)
    assert cost == MovingCost(600, 0.5 + 6.0, 2, (0, 1))
    assert "2 layers must come from a checkpoint" in cost.sentence()
    kept = moving_cost(a_plan(("a", "b"), ("c", "d")), a_plan(("c", "d")), MODEL, there)
    assert kept == MovingCost(0, 0.0, 0, ())


@pytest.mark.parametrize(
    ("expected_s", "deadline_s"), [(0.0, 60.0), (12.0, 60.0), (12.1, 60.5), (3600.0, 18000.0)]
)
def test_layers_may_take_some_times_as_long_as_expected_but_never_no_time(
    expected_s: float, deadline_s: float
) -> None:
    assert transfer_deadline_s(expected_s) == pytest.approx(deadline_s)
