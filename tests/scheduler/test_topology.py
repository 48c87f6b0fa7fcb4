"""Topologies refuse what cannot be, name where it stands, and stripe links over several flows."""

from __future__ import annotations

import numpy as np
import pytest

from scheduler.topology import Device, Topology, TopologyError


def three(flow_Bps: list[list[float]] | None = None) -> Topology:
    bandwidth = np.array([[1.0, 100, 200], [100, 1, 50], [200, 50, 1]])
    return Topology(
        tuple(Device(name) for name in "abc"),
        np.full((3, 3), 0.1),
        bandwidth,
        None if flow_Bps is None else np.array(flow_Bps),
    )


def test_striping_takes_the_flows_up_to_the_link() -> None:
    topology = three([[1, 30, 30], [30, 1, 30], [30, 30, 1]])
    assert topology.striped(1).bandwidth_Bps[0].tolist() == [1, 30, 30]
    assert topology.striped(4).bandwidth_Bps[0].tolist() == [1, 100, 120]
    assert topology.striped(1).transfer_s(0, 1, 60) == pytest.approx(0.1 + 2)
    unlimited = three()
    assert unlimited.striped(1) is unlimited


def test_a_subset_keeps_its_flows() -> None:
    part = three([[1, 30, 31], [32, 1, 33], [34, 35, 1]]).subset([2, 0])
    assert part.flow_Bps is not None
    assert part.flow_Bps.tolist() == [[1, 34], [31, 1]]


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_flow_that_cannot_be_is_named(bad: float) -> None:
    with pytest.raises(TopologyError, match=r"flow_Bps\[a, c\]: found .*required"):
        three([[1, 30, bad], [30, 1, 30], [30, 30, 1]])


def test_no_streams_are_refused() -> None:
    with pytest.raises(TopologyError, match="found 0 streams a link, required at least 1"):
        three().striped(0)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_an_uplink_that_cannot_be_is_named(bad: float) -> None:
    with pytest.raises(TopologyError, match=r"device a, uplink_Bps: found .*required"):
        Device("a", uplink_Bps=bad)
