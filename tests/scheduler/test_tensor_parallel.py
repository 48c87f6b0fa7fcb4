"""Tensor groups against closed forms: rings, shares of the work, counterparts; and what cannot be grouped."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scheduler.cost import step_time_s
from scheduler.plan import Plan, PlanError
from scheduler.profile import DeviceProfile, LayerProfile, ModelProfile
from scheduler.tensor_parallel import all_reduce_bytes, grouped_links, grouped_profiles, reduces
from scheduler.topology import Device, Topology

N_BYTES = 1000


def a_model() -> ModelProfile:
    names = ("embedding", "block.00", "block.01", "head")
    sizes = (N_BYTES, N_BYTES, N_BYTES, 0)
    return ModelProfile(
        tuple(LayerProfile(n, 1, 2, 40, b, 8, 8) for n, b in zip(names, sizes, strict=True)), 1, 4
    )


def links(n: int, latency_s: float = 0.25, bandwidth_Bps: float = 100.0) -> Topology:
    devices = tuple(Device(f"d{i}", region=f"r{i // 2}", memory_bytes=100) for i in range(n))
    return Topology(devices, np.full((n, n), latency_s), np.full((n, n), bandwidth_Bps))


def profiles(n: int) -> tuple[DeviceProfile, ...]:
    one = DeviceProfile("", (1.0,) * 4, (2.0,) * 4, (0.5,) * 4)
    return tuple(replace(one, device=f"d{i}") for i in range(n))


def test_a_group_of_one_is_a_device() -> None:
    topology = links(4)
    assert grouped_links(topology, 1) is topology
    assert grouped_profiles(a_model(), profiles(4), topology, 1) == profiles(4)
    plan = Plan(1, (("d0",),), ((0, 4),), (3,), "gpipe")
    assert all_reduce_bytes(plan, a_model(), 1) == 0


@pytest.mark.parametrize("t", [2, 4])
def test_a_layer_costs_its_share_and_its_rings(t: int) -> None:
    """A ring of t takes 2 (t - 1) rounds of a latency and a t-th of the bytes."""
    model, topology = a_model(), links(4)
    group = grouped_profiles(model, profiles(4), topology, t)[0]
    ring_s = 2 * (t - 1) * (0.25 + N_BYTES / (t * 100))
    assert [reduces(x) for x in model.layers] == [(1, 0), (2, 2), (2, 2), (0, 1)]
    assert group.device == "d0"
    assert group.forward_s == pytest.approx([1 / t + k * ring_s for k in (1, 2, 2, 0)])
    assert group.backward_s == pytest.approx([2 / t + k * ring_s for k in (0, 2, 2, 1)])
    assert group.optimizer_s == pytest.approx([0.5 / t] * 4)
    assert group.scaled(2).forward_s[1] == pytest.approx(2 / t + 2 * (2 * ring_s - 2 * (t - 1) * 0.25))


def test_the_slowest_member_and_the_slowest_link_count() -> None:
    topology = links(4)
    topology.latency_s[0, 1] = 5.0
    topology.bandwidth_Bps[1, 3] = 10.0
    slow = (profiles(4)[0], replace(profiles(4)[1], forward_s=(3.0,) * 4), *profiles(4)[2:])
    group = grouped_profiles(a_model(), slow, topology, 2)[0]
    assert group.forward_s[3] == 1.5
    assert group.forward_s[0] == pytest.approx(1.5 + 2 * (5.0 + N_BYTES / 200))
    grouped = grouped_links(topology, 2)
    assert [d.name for d in grouped.devices] == ["d0", "d2"]
    assert grouped.devices[0].memory_bytes == 200
    assert grouped.bandwidth_Bps[0, 1] == 2 * 10.0, "the counterpart of d1 in the other group is d3"
    assert grouped.bandwidth_Bps[1, 0] == 2 * 100.0
    assert grouped.latency_s[0, 1] == 0.25


def test_devices_in_any_order_are_grouped_as_their_links_are() -> None:
    topology = links(4).subset([3, 0, 2, 1])
    slow = (*profiles(4)[:3], replace(profiles(4)[3], forward_s=(3.0,) * 4))
    groups = grouped_profiles(a_model(), slow, topology, 2)
    assert [g.device for g in groups] == [d.name for d in grouped_links(topology, 2).devices] == ["d3", "d2"]
    assert [g.forward_s[3] for g in groups] == [1.5, 0.5]


def test_on_links_without_cost_a_group_is_as_many_times_as_fast() -> None:
    model, topology = a_model(), links(4, 0.0, 1e18)
    for t in (1, 2, 4):
        there = grouped_links(topology, t)
        plan = Plan(1, (("d0",),), ((0, 4),), (5,), "gpipe")
        step_s = step_time_s(plan, model, grouped_profiles(model, profiles(4), topology, t), there)
        assert step_s == pytest.approx((5 * 12 + 2) / t)


def test_bytes_of_the_rings_count_recomputed_forwards_twice() -> None:
    plan = Plan(1, (("d0",), ("d4",)), ((0, 4),), (3, 2), "gpipe")
    assert all_reduce_bytes(plan, a_model(), 4) == (5 + 5) * 2 * 3 * N_BYTES * 5
    assert all_reduce_bytes(replace(plan, recompute=True), a_model(), 4) == (10 + 5) * 2 * 3 * N_BYTES * 5


def test_what_cannot_be_grouped_is_refused() -> None:
    with pytest.raises(PlanError, match="found 4 devices, required a multiple of 3 for tensor groups"):
        grouped_links(links(4), 3)
    shared = tuple(replace(d, host="h", host_cores=2) for d in links(4).devices)
    with pytest.raises(PlanError, match="share their host's cores"):
        grouped_links(replace(links(4), devices=shared), 2)
