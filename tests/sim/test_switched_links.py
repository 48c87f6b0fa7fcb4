"""A trace's links become a switch's: units, scales, what is unknown, which pairs."""

from __future__ import annotations

from math import inf

import pytest

from scheduler.trace import About, LinkState, Node, Trace, TraceError, series
from sim.emulate import ShapeOptions
from sim.shaped_link import Conditions
from sim.switched_links import LEAST_QUEUE_BYTES, QueueOptions, conditions, switched_links

MBPS = 1e6 / 8


def trace() -> Trace:
    nodes = {name: Node(name) for name in "ab"}
    links = {
        ("a", "b"): series([(0.0, 0.1, 100 * MBPS, None, None), (60.0, 0.3, 50 * MBPS, None, None)]),
        ("b", "a"): series([(0.0, 0.1, None, None, None)]),
    }
    return Trace("t", nodes, links, About(one_way_factor=0.5))


def test_conditions_are_the_traces_in_its_scales() -> None:
    state = LinkState(0.1, 0.05, 100 * MBPS, 0.004, 0.01)
    assert conditions(state, ShapeOptions(), QueueOptions()) == Conditions(
        0.05, 100 * MBPS, 0.004, 0.01, 100 * MBPS * 0.1
    )
    scaled = conditions(
        state, ShapeOptions(delay_scale=2, bandwidth_scale=0.5), QueueOptions(queue_bytes=5000)
    )
    assert scaled == Conditions(0.1, 50 * MBPS, 0.008, 0.01, 5000)


def test_what_a_trace_does_not_know_holds_nothing_back() -> None:
    unknown = conditions(LinkState(None, None, None), ShapeOptions(), QueueOptions())
    assert unknown == Conditions(0.0, inf, 0.0, 0.0, inf)
    near = conditions(LinkState(0.001, 0.0005, MBPS), ShapeOptions(), QueueOptions())
    assert near.queue_bytes == LEAST_QUEUE_BYTES


def test_links_follow_the_trace_in_scaled_time_from_their_start() -> None:
    links = switched_links(trace(), ["a", "b"], ShapeOptions(time_scale=10.0), QueueOptions(), start_s=1000.0)
    assert set(links) == {(0, 1), (1, 0)}
    assert links[0, 1].take(1000.0, 1, 125, 125)[0][0] == pytest.approx(1000.05 + 1e-5)
    assert links[0, 1].take(1005.9, 1, 125, 125)[0][0] == pytest.approx(1005.95 + 1e-5)
    assert links[0, 1].take(1006.0, 1, 125, 125)[0][0] == pytest.approx(1006.15 + 2e-5)


def test_a_time_scale_of_zero_stays_at_the_start() -> None:
    links = switched_links(trace(), ["a", "b"], ShapeOptions(time_scale=0.0), QueueOptions(), start_s=0.0)
    assert links[0, 1].take(1e6, 1, 125, 125)[0][0] == pytest.approx(1e6 + 0.05 + 1e-5)


def test_nodes_of_one_place_are_not_held_back() -> None:
    links = switched_links(trace(), ["a", "b", "a"], ShapeOptions(), QueueOptions(), start_s=0.0)
    assert len(links) == 6
    assert links[0, 2].take(7.0, 9, 1500, 1500) == [(7.0, 0, 9)]


def test_places_the_trace_does_not_have_are_named() -> None:
    with pytest.raises(TraceError, match="Atlantis"):
        switched_links(trace(), ["a", "Atlantis"], ShapeOptions(), QueueOptions(), start_s=0.0)
