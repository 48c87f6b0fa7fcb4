"""A recorded network as planner and engine see it: conventions by name, change, what is unknown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scheduler.plan import PlanError
from scheduler.profile import DeviceProfile, LayerProfile, ModelProfile
from scheduler.speed import Speed
from scheduler.topology import Device, Topology
from scheduler.trace import About, Node, Trace, TraceError, series, steady
from sim.network import Conventions, StillNetwork, TraceNetwork, devices_of
from sim.replay import Work, replay_at
from sim.trace import load
from tests.scheduler.test_engine import a_plan
from tests.scheduler.test_flows import arrivals


def a_trace(bw_kind: str = "aggregate of 64 flows", **about: float) -> Trace:
    """A and B, 100 ms apart; the link slows down from 1000 to 500 B/s at 10 s. B has two devices."""
    moving = series([(0, 0.1, 1000.0, None, None), (10, 0.2, 500.0, None, None)])
    return Trace(
        "t",
        {"A": Node("A"), "B": Node("B", n_devices=2)},
        {("A", "B"): moving, ("B", "A"): steady(0.1, 800.0)},
        About(0.5, bw_kind=bw_kind, **({"within_rtt_s": 0.01, "within_bandwidth_Bps": 1e4} | about)),  # type: ignore[arg-type]
    )


def test_devices_stand_at_their_nodes() -> None:
    assert [(d.name, d.region) for d in devices_of(a_trace())] == [("A", "A"), ("B-0", "B"), ("B-1", "B")]
    with pytest.raises(TraceError, match=r"devices at no node of it: x \(region unknown\); required .*A, B"):
        TraceNetwork(a_trace(), (Device("x"),))


@pytest.mark.parametrize(("delay", "one_way_s"), [("", 0.05), ("physical", 0.05), ("paper", 0.1)])
def test_the_delay_is_by_convention(delay: str, one_way_s: float) -> None:
    network = TraceNetwork(a_trace(), conventions=Conventions(delay))  # type: ignore[arg-type]
    assert network.topology(0).latency_s[0, 1] == pytest.approx(one_way_s)
    assert network.topology(0).latency_s[1, 2] == pytest.approx(0.01 * one_way_s / 0.1)
    assert arrivals(network.network(0, 0), [("A", "B-0", 100, 0)]) == pytest.approx([0.1 + one_way_s])


def test_links_move_on_while_a_step_runs() -> None:
    network = TraceNetwork(a_trace())
    assert network.topology(9.9).bandwidth_Bps[0, 1] == 1000
    assert network.topology(10).bandwidth_Bps[0, 1] == 500
    assert arrivals(network.network(8, 0), [("A", "B-1", 3000, 0)]) == pytest.approx([2 + 2 + 0.1])
    assert arrivals(network.network(10, 0), [("A", "B-1", 3000, 0)]) == pytest.approx([6 + 0.1])


@pytest.mark.parametrize(
    ("kind", "conventions", "carried"),
    [
        ("single TCP flow", Conventions(), [1000, 1000, 1000, 1000]),  # no more than was seen
        ("single TCP flow", Conventions(cap_Bps=2500), [1000, 2000, 2500, 2500]),
        ("aggregate of 64 flows", Conventions(), [1000, 1000, 1000, 1000]),
        ("aggregate of 64 flows", Conventions(window_bytes=30), [300, 600, 900, 1000]),
        ("aggregate of 64 flows", Conventions(window_bytes=30, cap_Bps=700), [300, 600, 700, 700]),
    ],
)
def test_a_link_carries_what_its_flows_do_up_to_its_cap(
    kind: str, conventions: Conventions, carried: list[float]
) -> None:
    network = TraceNetwork(a_trace(kind), conventions=conventions)
    topology = network.topology(0)
    for streams, rate in zip((1, 2, 3, 0), carried, strict=True):
        assert network.link("A", "B-0", 0, streams).bandwidth_Bps == pytest.approx(rate)
        striped = topology.striped(streams) if streams else topology
        assert striped.bandwidth_Bps[0, 1] == pytest.approx(rate)


def test_topology_and_network_agree_on_every_link_of_the_shipped_traces() -> None:
    for name in ("four_cities", "dtfm_worldwide"):
        network = TraceNetwork(load(name))
        topology = network.topology(0)
        for i, a in enumerate(network.devices):
            for j, b in enumerate(network.devices):
                if i != j:
                    link = network.link(a.name, b.name, 0, 0)
                    assert link.latency_s == pytest.approx(topology.latency_s[i, j])
                    assert link.bandwidth_Bps == pytest.approx(topology.bandwidth_Bps[i, j])


def test_what_a_trace_does_not_say_is_asked_for() -> None:
    unknown = replace(a_trace(), links={("A", "B"): steady(0.1, None), ("B", "A"): steady(0.1, 1.0)})
    with pytest.raises(TraceError, match=r"A -> B at 3 s: found no bandwidth; required one, or a window"):
        TraceNetwork(unknown).topology(3)
    with pytest.raises(TraceError, match="found no bandwidth"):
        TraceNetwork(unknown).link("A", "B-0", 0, 1)
    windowed = TraceNetwork(unknown, conventions=Conventions(window_bytes=50))
    assert windowed.link("A", "B-0", 0, 1).bandwidth_Bps == pytest.approx(500)
    silent = replace(a_trace(), links={("A", "B"): steady(None, 1.0), ("B", "A"): steady(0.1, 1.0)})
    with pytest.raises(TraceError, match="A -> B at 0 s: found no delay"):
        TraceNetwork(silent).topology(0)
    with pytest.raises(TraceError, match="B -> B at 0 s: found no delay"):
        TraceNetwork(replace(a_trace(), about=About(0.5))).topology(0)
    with pytest.raises(TraceError, match="found no link B -> A"):
        TraceNetwork(replace(a_trace(), links={("A", "B"): steady(0.1, 1.0)}))
    with pytest.raises(TraceError, match="found no link, required one for every pair"):
        TraceNetwork(replace(a_trace(), links={}))


def test_cards_of_devices_hold_for_recorded_links_too() -> None:
    devices = tuple(replace(d, uplink_Bps=600.0) for d in devices_of(a_trace()))
    network = TraceNetwork(a_trace(), devices)
    ends = arrivals(network.network(0, 0), [("A", "B-0", 300, 0), ("A", "B-1", 300, 0)])
    assert ends == pytest.approx([1.05, 1.05])


def work() -> Work:
    layers = tuple(LayerProfile(f"l{i}", 1, 1, 40, 100, 1, 1) for i in range(2))
    profiles = tuple(DeviceProfile(n, (1.0, 1.0), (2.0, 2.0), (0.1, 0.1)) for n in ("A", "B-0", "B-1"))
    return Work(ModelProfile(layers, 1, 1), profiles)


def test_a_step_is_replayed_as_the_network_is_at_its_moment() -> None:
    plan = replace(a_plan(2, 1, 2, "gpipe"), placement=(("A", "B-0"),))
    network = TraceNetwork(a_trace())
    early, late = replay_at(plan, work(), network), replay_at(plan, work(), network, 20.0)
    assert late.duration_s > early.duration_s
    assert early == replay_at(plan, work(), network)
    alone = StillNetwork(network.topology(0))
    assert replay_at(plan, work(), alone) == early  # nothing changes within the first ten seconds
    slow = {"A": Speed((0.0, 5.0), (1.0, 0.5))}
    assert replay_at(plan, work(), network, 0.0, slow).duration_s > early.duration_s
    half = replay_at(plan, work(), network, 100.0, slow)
    assert half == replay_at(plan, work(), network, 100.0, {"A": Speed((0.0,), (0.5,))})


def test_a_plan_for_other_devices_is_refused() -> None:
    with pytest.raises(PlanError, match=r"a plan for other devices \(d0, d1\); required devices among: A, B"):
        replay_at(a_plan(2, 1, 1), work(), TraceNetwork(a_trace()))


def test_a_still_network_stays() -> None:
    pair = (Device("a"), Device("b"))
    flows = np.full((2, 2), 30.0)
    network = StillNetwork(Topology(pair, np.zeros((2, 2)), np.full((2, 2), 100.0), flows))
    ends = [arrivals(network.network(t, k), [("a", "b", 300, 0)])[0] for t, k in ((0, 1), (9, 2), (0, 0))]
    assert ends == [10, 5, 3]
