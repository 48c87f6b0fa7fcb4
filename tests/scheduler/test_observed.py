"""Spans of running steps say which device or link has changed, whatever the ranks' clocks say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from scheduler.analytic import device_profile, model_profile
from scheduler.cost import predict
from scheduler.job import ModelSpec
from scheduler.observed import FIRST, LAST, SETTLE, Factors, Observed
from scheduler.plan import Plan
from scheduler.profile import DeviceProfile
from scheduler.timeline import Span
from scheduler.topology import Device, Topology

NAMES = ("a", "b", "c", "d")
MODEL = model_profile(ModelSpec(layers=4, hidden=64, heads=4, vocab=300, max_positions=64), 4, 64)
DEVICES = tuple(device_profile(MODEL, n, 5e9) for n in NAMES)
PLAN = Plan(1, (("a", "b"), ("c", "d")), ((0, 3), (3, 6)), (4, 4), "1f1b", micro_batch=4)
CLOCKS_S = (0.0, 7.5, -3.0, 0.25)
"""What each rank's clock is off by."""


def network(slower: Mapping[tuple[str, str], float] | None = None) -> Topology:
    """1 MB/s and 10 ms each way; links in `slower` take so many times as long."""
    latency_s, bandwidth_Bps = np.full((4, 4), 0.01), np.full((4, 4), 1e6)
    for (a, b), factor in (slower or {}).items():
        i, j = NAMES.index(a), NAMES.index(b)
        latency_s[i, j] *= factor
        bandwidth_Bps[i, j] /= factor
    return Topology(tuple(Device(n) for n in NAMES), latency_s, bandwidth_Bps)


def spans(topology: Topology, devices: tuple[DeviceProfile, ...] = DEVICES) -> tuple[Span, ...]:
    """One step as the engine has it, each rank by its own clock."""
    found = predict(PLAN, MODEL, devices, topology).spans
    return tuple(
        replace(s, start_s=s.start_s + CLOCKS_S[s.rank], end_s=s.end_s + CLOCKS_S[s.rank]) for s in found
    )


def watched(before: tuple[Span, ...], now: tuple[Span, ...], n: int = LAST) -> Factors:
    """The plan settles as it was made, and then `n` steps are as they are `now`."""
    seen = Observed()
    for _ in range(SETTLE + FIRST):
        seen = seen.add(PLAN, before)
    for _ in range(n):
        seen = seen.add(PLAN, now)
    return seen.factors(PLAN, network())


def test_what_has_not_changed_has_the_factor_1() -> None:
    same = watched(spans(network()), spans(network()))
    assert set(same.devices) == set(NAMES)
    assert {("a", "b"), ("b", "a"), ("c", "d"), ("a", "c"), ("d", "b")} <= set(same.links)
    assert same.largest == pytest.approx(1.0)


def test_a_straggler_is_found_by_name() -> None:
    slow = tuple(
        replace(d, forward_s=tuple(3 * x for x in d.forward_s), backward_s=tuple(3 * x for x in d.backward_s))
        if d.device == "b"
        else d
        for d in DEVICES
    )
    found = watched(spans(network()), spans(network(), slow))
    assert found.devices == pytest.approx({"a": 1.0, "b": 3.0, "c": 1.0, "d": 1.0})
    assert "b computes in 3 times the time" in found.worst()
    assert found.profile(DEVICES[1]).forward_s == pytest.approx(slow[1].forward_s)
    assert Factors().profile(DEVICES[0]) == DEVICES[0]


@pytest.mark.parametrize("factor", [0.3, 5.0])
def test_a_link_that_has_changed_both_ways_is_found(factor: float) -> None:
    slower = {("c", "d"): factor, ("d", "c"): factor}
    found = watched(spans(network()), spans(network(slower)))
    assert found.link("c", "d") == found.link("d", "c") == pytest.approx(factor, rel=0.2)
    assert found.link("a", "b") == pytest.approx(1.0, abs=0.05)
    assert max(found.devices.values()) == pytest.approx(1.0)


def test_of_a_link_that_has_changed_one_way_both_have_half() -> None:
    """The sum of both ways is all that two clocks can tell."""
    found = watched(spans(network()), spans(network({("a", "b"): 9.0})))
    assert found.link("a", "b") == found.link("b", "a") == pytest.approx(5.0, rel=0.2)


def test_replicas_links_are_seen_by_the_reduction() -> None:
    slower = {("a", "c"): 4.0, ("c", "a"): 4.0}
    found = watched(spans(network()), spans(network(slower)))
    assert found.link("a", "c") > 2.0
    assert found.link("b", "d") == pytest.approx(1.0, abs=0.05)


def test_a_step_that_stutters_says_nothing_and_nothing_is_said_too_early() -> None:
    steady, slow = spans(network()), spans(network({("a", "b"): 50.0, ("b", "a"): 50.0}))
    seen = Observed()
    for _ in range(SETTLE + FIRST + LAST - 1):
        seen = seen.add(PLAN, steady)
        assert seen.factors(PLAN, network()) == Factors()
    seen = seen.add(PLAN, slow)
    assert seen.factors(PLAN, network()).largest == pytest.approx(1.0)
    seen = seen.add(PLAN, slow)
    assert seen.factors(PLAN, network()).link("a", "b") > 10


def test_first_steps_that_build_kernels_are_no_yardstick() -> None:
    slow = tuple(replace(d, forward_s=tuple(20 * x for x in d.forward_s)) for d in DEVICES)
    seen = Observed()
    for _ in range(SETTLE):
        seen = seen.add(PLAN, spans(network(), slow))
    for _ in range(FIRST + LAST):
        seen = seen.add(PLAN, spans(network()))
    assert seen.factors(PLAN, network()).largest == pytest.approx(1.0)


def test_other_bytes_begin_anew() -> None:
    """A codec's first visits are whole, later ones are small: the link has not become faster by that."""
    seen = Observed()
    small = tuple(replace(s, n_bytes=s.n_bytes // 8) if s.kind == "send" else s for s in spans(network()))
    for _ in range(SETTLE + FIRST + LAST):
        seen = seen.add(PLAN, spans(network()))
    seen = seen.add(PLAN, small)
    assert ("a", "b") not in seen.factors(PLAN, network()).links


def test_spans_that_lack_half_say_nothing_of_that_half() -> None:
    no_sends = tuple(s for s in spans(network()) if s.kind != "send" and s.kind != "reduce")
    found = watched(no_sends, no_sends)
    assert found.links == {}
    assert set(found.devices) == set(NAMES)
