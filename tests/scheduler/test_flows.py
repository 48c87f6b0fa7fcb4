"""The fluid network against closed forms: queues, shared cards, ways out, change, jitter and loss."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.clock import At, Clock, Happening
from scheduler.engine import Network, replay
from scheduler.flows import FlowNetwork, TopologyNetwork
from scheduler.lane import PACKET_BYTES, RECOVERY_ROUND_TRIPS
from scheduler.limits import Limits
from scheduler.network import LinkNow, Links
from scheduler.topology import Device, Topology
from tests.scheduler.test_engine import a_plan, equal, of_kind

Sends = list[tuple[str, str, float, float]]
"""(src, dst, bytes, handed over at)."""


class Alike:
    """Every link the same, or as `changes` say: (from when, link)."""

    def __init__(self, *changes: tuple[float, LinkNow]) -> None:
        self._changes = changes

    def link(self, src: str, dst: str, now_s: float) -> LinkNow:  # noqa: ARG002
        return [link for since_s, link in self._changes if since_s <= now_s][-1]


def arrivals(network: Network, sends: Sends) -> list[float]:
    """When each of `sends` arrives."""
    clock = Clock()
    links = network.open(clock.at)
    found = [float("nan")] * len(sends)

    def note(i: int) -> None:
        found[i] = clock.now_s

    for i, (src, dst, n_bytes, at_s) in enumerate(sends):
        clock.at(at_s, partial(links.send, src, dst, n_bytes, at_s, partial(note, i)))
    clock.run()
    return found


def steady(latency_s: float, bandwidth_Bps: float, **limits: dict[str, float]) -> FlowNetwork:
    return FlowNetwork(Alike((0, LinkNow(latency_s, bandwidth_Bps))), Limits(**limits))  # type: ignore[arg-type]


def test_one_transfer_takes_its_delay_and_its_bytes_over_the_bandwidth() -> None:
    assert arrivals(steady(0.5, 100), [("a", "b", 300, 2)]) == [2 + 3 + 0.5]
    assert arrivals(steady(0.5, 100, uplink_Bps={"a": 60}), [("a", "b", 300, 2)]) == [2 + 5 + 0.5]


@pytest.mark.parametrize("n", [1, 2, 3, 7])
@pytest.mark.parametrize("limit", ["uplink", "downlink", "egress"])
def test_equal_transfers_through_one_limit_take_as_many_times_as_long(n: int, limit: str) -> None:
    others = [f"d{i}" for i in range(n)]
    region = {"a": "here"} | dict.fromkeys(others, "there")
    limits = {
        "uplink": Limits(uplink_Bps={"a": 100}),
        "downlink": Limits(downlink_Bps={"a": 100}),
        "egress": Limits(region=region, egress_Bps={"here": 100}),
    }[limit]
    network = FlowNetwork(Alike((0, LinkNow(0.25, 100))), limits)
    pairs = [(d, "a") if limit == "downlink" else ("a", d) for d in others]
    assert arrivals(network, [(*pair, 300, 1) for pair in pairs]) == pytest.approx([1 + n * 3 + 0.25] * n)


def test_a_short_transfer_that_ends_leaves_the_long_one_the_whole_card() -> None:
    """100 B/s shared by 100 and 300 bytes: 50 each until 2 s, then 100 for what is left."""
    network = steady(0, 100, uplink_Bps={"a": 100})
    assert arrivals(network, [("a", "b", 100, 0), ("a", "c", 300, 0)]) == pytest.approx([2, 4])
    late = arrivals(network, [("a", "b", 300, 0), ("a", "c", 100, 1)])
    assert late == pytest.approx([4, 3])


def test_what_stays_within_a_host_or_a_region_passes_no_limit() -> None:
    limits = Limits(
        host={"a": "h", "b": "h"}, region={"a": "r", "b": "r", "c": "r", "d": "s"},
        uplink_Bps={"h": 50}, egress_Bps={"r": 10},
    )  # fmt: skip
    network = FlowNetwork(Alike((0, LinkNow(0, 100))), limits)
    assert arrivals(network, [("a", "b", 100, 0)]) == [1]
    assert arrivals(network, [("a", "c", 100, 0)]) == [2]
    assert arrivals(network, [("a", "d", 100, 0)]) == [10]


def test_devices_of_a_host_share_its_card() -> None:
    devices = (Device("a", host="h", uplink_Bps=100), Device("b", host="h", uplink_Bps=100), Device("c"))
    topology = Topology(devices, np.zeros((3, 3)), np.full((3, 3), 100.0))
    assert arrivals(TopologyNetwork(topology), [("a", "c", 100, 0), ("b", "c", 100, 0)]) == [2, 2]


def test_a_link_of_several_streams_carries_what_they_do() -> None:
    pair = (Device("a"), Device("b"))
    topology = Topology(pair, np.zeros((2, 2)), np.full((2, 2), 100.0), np.full((2, 2), 30.0))
    ends = [arrivals(TopologyNetwork(topology, k), [("a", "b", 300, 0)])[0] for k in (1, 2, 4)]
    assert ends == [10, 5, 3]


def test_a_link_that_changes_carries_each_byte_at_the_rate_of_its_moment() -> None:
    changes = ((0.0, LinkNow(0.5, 100, until_s=2)), (2.0, LinkNow(1.5, 50, until_s=6)), (6.0, LinkNow(0, 10)))
    network = FlowNetwork(Alike(*changes))
    assert arrivals(network, [("a", "b", 300, 0)]) == [2 + 2 + 1.5]
    assert arrivals(network, [("a", "b", 300, 1)]) == [1 + 5 + 0]
    assert arrivals(network, [("a", "b", 10, 7)]) == [8]
    queued = arrivals(network, [("a", "b", 100, 0), ("a", "b", 100, 0), ("a", "b", 300, 0)])
    assert queued == [1.5, 2 + 1.5, 6 + 10]
    assert arrivals(network, [("a", "b", 100, 0), ("a", "b", 100, 5.5)])[1] == pytest.approx(5.5 + 0.5 + 7.5)


def test_jitter_spreads_arrivals_and_overtakes_nothing() -> None:
    network = FlowNetwork(Alike((0, LinkNow(1.0, 1e9, jitter_s=0.2))), seed=3)
    sends: Sends = [("a", "b", 1, i * 10.0) for i in range(400)]
    delays = np.array(arrivals(network, sends)) - np.array([s[3] for s in sends])
    assert delays.std() == pytest.approx(0.2, rel=0.1)
    assert delays.mean() == pytest.approx(1.0, rel=0.05)
    close = arrivals(network, [("a", "b", 1, i * 0.01) for i in range(400)])
    assert close == sorted(close)


@pytest.mark.parametrize("streams", [1, 4])
def test_a_loss_costs_a_round_trip_and_halves_the_rate_for_a_while(streams: int) -> None:
    """Of one stream: a round trip at nothing, twenty at half. Where losses are rare, most that happen
    happen alone and well before the end."""
    rtt_s, rate_Bps, n_bytes = 0.1, 1e6, 20e6
    link = LinkNow(0, rate_Bps, loss=1e-5, round_trip_s=rtt_s, streams=streams)
    extra_s = [
        arrivals(FlowNetwork(Alike((0, link)), seed=i), [("a", "b", n_bytes, 0)])[0] - n_bytes / rate_Bps
        for i in range(60)
    ]
    lost = sorted(e for e in extra_s if e > 1e-9)
    assert 2 <= len(lost) <= 20
    assert lost[len(lost) // 2] == pytest.approx((rtt_s + RECOVERY_ROUND_TRIPS * rtt_s / 2) / streams)


def test_losses_are_as_many_as_the_rate_says() -> None:
    """With a round trip of next to nothing, each loss costs its stall only: count them."""
    rtt_s, n_bytes = 1e-6, 1e6
    network = FlowNetwork(Alike((0, LinkNow(0, 1e6, loss=0.05, round_trip_s=rtt_s))), seed=1)
    n = 200
    end_s = arrivals(network, [("a", "b", n_bytes, 0)] * n)[-1]
    losses = (end_s - n * n_bytes / 1e6) / (rtt_s + RECOVERY_ROUND_TRIPS * rtt_s / 2)
    assert losses == pytest.approx(0.05 * n * n_bytes / PACKET_BYTES, rel=0.05)


@st.composite
def crowds(draw: st.DrawFn) -> Sends:
    names = ["a", "b", "c", "d"]
    pair = st.lists(st.sampled_from(names), min_size=2, max_size=2, unique=True)
    return [
        (*draw(pair), draw(st.integers(0, 500)), draw(st.integers(0, 5)))  # type: ignore[misc]
        for _ in range(draw(st.integers(1, 14)))
    ]


@settings(deadline=None)  # the first time, the crowd is compiled
@given(crowds())
def test_cards_carry_what_they_are_given_as_fast_as_they_can(sends: Sends) -> None:
    """Every byte arrives; no card carries more than it can; a busy period is no longer than all its bytes."""
    network = steady(0, 70, uplink_Bps=dict.fromkeys("abcd", 100.0), downlink_Bps=dict.fromkeys("abcd", 90.0))
    found = arrivals(network, sends)
    assert all(end_s == end_s for end_s in found)
    by_card: dict[str, list[int]] = defaultdict(list)
    for i, (src, dst, _, _) in enumerate(sends):
        by_card[f"up {src}"].append(i)
        by_card[f"down {dst}"].append(i)
    for card, members in by_card.items():
        capacity = 100 if card.startswith("up") else 90
        first_s, last_s = min(sends[i][3] for i in members), max(found[i] for i in members)
        assert sum(sends[i][2] for i in members) <= capacity * (last_s - first_s) * (1 + 1e-9) + 1e-9
    assert max(found) <= 5 + sum(s[2] for s in sends) / 70 + 1e-9


@settings(deadline=None)  # the first time, the crowd is compiled
@given(crowds())
def test_limits_that_never_bind_change_nothing(sends: Sends) -> None:
    wide = dict.fromkeys("abcd", 1e9)
    bound = arrivals(steady(0.5, 70, uplink_Bps=wide, downlink_Bps=wide), sends)
    assert bound == arrivals(steady(0.5, 70), sends)


class Counted:
    """A network that counts what is handed to it and what arrives."""

    def __init__(self, inner: Network) -> None:
        self._inner = inner
        self.sent: dict[tuple[str, str], float] = defaultdict(float)
        self.received: dict[tuple[str, str], float] = defaultdict(float)

    def open(self, at: At) -> Links:
        self._links = self._inner.open(at)
        return self

    def send(self, src: str, dst: str, n_bytes: float, now_s: float, arrived: Happening) -> None:
        self.sent[src, dst] += n_bytes

        def count() -> None:
            self.received[src, dst] += n_bytes
            arrived()

        self._links.send(src, dst, n_bytes, now_s, count)


def test_a_step_sends_receives_and_plans_the_same_bytes() -> None:
    plan = a_plan(3, 2, 5)
    d = replace(equal(plan, 1, 2, n_bytes=700, reduce=900), tied_bytes=50)
    names = [plan.device(r) for r in range(6)]
    cards = dict.fromkeys(names, 150.0)
    network = Counted(steady(0.1, 100, uplink_Bps=cards, downlink_Bps=cards))
    t = replay(plan, d, network)
    assert network.sent == network.received
    pipeline = 2 * 2 * 2 * 5 * 700  # replicas x boundaries x directions x micro-batches
    exchange = 3 * 2 * 2 * 900 / 2  # stages x members x rounds x a shard of a half
    swaps, norms = 2 * 2 * 50, 2 * 3 * 2 * 8
    assert sum(network.sent.values()) == pipeline + exchange + swaps + norms
    assert sum(s.n_bytes for s in of_kind(t, "send")) == pipeline


def test_the_volumes_of_dtfm_s_testbed() -> None:
    """64 GPUs, 8 stages x 8 replicas, batch 1024, micro-batch 1, fp16 activations of 2048 x 2048, fp32
    gradients of 1.3 G parameters: the paper's 15.03 GB are one pipeline's links, its 10.4 GB what one
    pipeline's gradients are, there and back; an eighth of these stays with their owner."""
    plan = a_plan(8, 8, 128, "gpipe")
    gradients = 1_300_000_000 * 4
    d = equal(plan, 0.1, 0.2, n_bytes=2048 * 2048 * 2, reduce=gradients // 8)
    network = Counted(steady(0.01, 1e9))
    t = replay(plan, d, network)
    by_pipeline = [0] * 8
    for s in of_kind(t, "send"):
        by_pipeline[plan.replica_of(s.rank)] += s.n_bytes
    assert by_pipeline == [15_032_385_536] * 8
    replica = {plan.device(r): plan.replica_of(r) for r in range(plan.n_ranks)}
    across = sum(n for (a, b), n in network.sent.items() if replica[a] == 0 != replica[b])
    assert across * 8 / 7 == 10_400_000_000


def test_shared_cards_make_the_exchange_no_faster_and_chance_is_seeded() -> None:
    plan = a_plan(2, 4, 3)
    d = equal(plan, 0.1, 0.1, n_bytes=300, reduce=4000)
    cards = {plan.device(r): 60.0 for r in range(8)}
    free, shared = replay(plan, d, steady(0.1, 100)), replay(plan, d, steady(0.1, 100, downlink_Bps=cards))
    assert shared.duration_s > free.duration_s
    lossy = Alike((0, LinkNow(0.1, 100, jitter_s=0.05, loss=0.2, round_trip_s=0.2)))
    assert replay(plan, d, FlowNetwork(lossy, seed=1)) == replay(plan, d, FlowNetwork(lossy, seed=1))
    assert replay(plan, d, FlowNetwork(lossy, seed=1)) != replay(plan, d, FlowNetwork(lossy, seed=2))
