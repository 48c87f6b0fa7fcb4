"""The five networks hold the published figures."""

from __future__ import annotations

import numpy as np
import pytest

from scheduler.scenarios import GBIT_BPS, NAMES, scenario, with_noise
from scheduler.topology import TopologyError


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [64, 128])
def test_each_scenario_is_symmetric_and_of_the_size_asked_for(name: str, n: int) -> None:
    topology = scenario(name, n_devices=n)
    assert len(topology) == n
    assert np.array_equal(topology.latency_s, topology.latency_s.T)
    assert np.array_equal(topology.bandwidth_Bps, topology.bandwidth_Bps.T)


@pytest.mark.parametrize(
    ("name", "delays_ms", "gbit"),
    [
        ("datacenter", (0, 0, 0), (3.125, 3.125, 100)),
        ("spot", (0, 0, 0), (1.25, 1.25, 100)),
        ("universities", (1, 11, 11), (1.12, 1.12, 5)),
        ("regional", (5, 49, 67), (1.02, 1.12, 2)),
        ("worldwide", (5, 96, 238), (0.335, 0.79, 2)),
    ],
)
def test_smallest_median_and_largest_link_are_those_of_the_authors_code(
    name: str, delays_ms: tuple[float, ...], gbit: tuple[float, ...]
) -> None:
    topology = scenario(name)
    off = ~np.eye(64, dtype=bool)
    for matrix, unit, expected in (
        (topology.latency_s, 1e-3, delays_ms),
        (topology.bandwidth_Bps, GBIT_BPS, gbit),
    ):
        values = matrix[off] / unit
        assert (values.min(), np.median(values), values.max()) == pytest.approx(expected)


def test_code_and_test_bed_differ_within_a_region() -> None:
    for name in ("regional", "worldwide"):
        assert scenario(name).latency_s[0, 1] == pytest.approx(0.005)
        assert scenario(name, "traffic_control").latency_s[0, 1] == pytest.approx(0.010)
    virginia, oregon = 0, 16
    assert scenario("regional").bandwidth_Bps[virginia, oregon] == pytest.approx(1.15 * GBIT_BPS)
    assert scenario("worldwide").bandwidth_Bps[0, 8] == pytest.approx(0.79 * GBIT_BPS)


def test_numbers_and_long_names_are_the_same_scenarios() -> None:
    assert scenario("5").devices == scenario("worldwide").devices
    assert scenario("multi_universities").devices == scenario("3").devices


def test_half_the_delay_is_the_physical_network() -> None:
    half, whole = scenario("5", one_way_factor=0.5), scenario("5")
    assert np.allclose(2 * half.latency_s, whole.latency_s)


def test_noise_keeps_links_symmetric_and_within_its_share() -> None:
    topology = scenario("worldwide")
    noisy = with_noise(topology, 0.3, np.random.default_rng(0))
    off = ~np.eye(64, dtype=bool)
    ratio = noisy.bandwidth_Bps[off] / topology.bandwidth_Bps[off]
    assert 0.7 <= ratio.min() < 0.75
    assert 1.25 < ratio.max() <= 1.3
    assert np.array_equal(noisy.latency_s, noisy.latency_s.T)


@pytest.mark.parametrize(
    ("name", "kwargs"), [("mars", {}), ("5", {"variant": "paper"}), ("5", {"n_devices": 60})]
)
def test_unknown_names_and_sizes_are_refused(name: str, kwargs: dict[str, str | int]) -> None:
    with pytest.raises(TopologyError, match="found"):
        scenario(name, **kwargs)  # type: ignore[arg-type]
