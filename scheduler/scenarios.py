"""The five networks of DT-FM as topologies, in both variants where its code and its paper's set-up differ.

Delays in ms and bandwidths in Gbit/s as published (DS3Lab/DT-FM, MIT licence, commit cda948f:
`config.py` of the scheduler, and the traffic-control script), turned into seconds and bytes a
second here, once. The delays look like round trips that the authors apply one way;
`one_way_factor` 1.0 reproduces the paper, 0.5 the physical network. Links are per pair of
devices: no limit of a machine's network card is modelled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scheduler.topology import Device, Matrix, Topology, TopologyError

GBIT_BPS = 1e9 / 8

NAMES = ("datacenter", "spot", "universities", "regional", "worldwide")
ALIASES = {
    "1": "datacenter",
    "2": "spot",
    "3": "universities",
    "4": "regional",
    "5": "worldwide",
    "datacenter_ondemand": "datacenter",
    "datacenter_spot": "spot",
    "multi_universities": "universities",
}
VARIANTS = ("scheduler", "traffic_control")
"""`scheduler`: the matrices DT-FM's search was given; `traffic_control`: those its testbed was shaped to."""

_PAIRS: dict[tuple[str, str], tuple[float, float]] = {
    ("Oregon", "Virginia"): (67, 0.79),
    ("Oregon", "Ohio"): (49, 1.1),
    ("Oregon", "Tokyo"): (96, 0.523),
    ("Oregon", "Seoul"): (124, 0.46),
    ("Oregon", "London"): (136, 0.42),
    ("Oregon", "Frankfurt"): (143, 0.404),
    ("Oregon", "Ireland"): (124, 0.482),
    ("Virginia", "Ohio"): (11, 1.12),
    ("Virginia", "Tokyo"): (143, 0.524),
    ("Virginia", "Seoul"): (172, 0.5),
    ("Virginia", "London"): (76, 1.16),
    ("Virginia", "Frankfurt"): (90, 1.02),
    ("Virginia", "Ireland"): (67, 1.05),
    ("Ohio", "Tokyo"): (130, 0.694),
    ("Ohio", "Seoul"): (159, 0.529),
    ("Ohio", "London"): (86, 1.05),
    ("Ohio", "Frankfurt"): (99, 0.799),
    ("Ohio", "Ireland"): (77, 1.14),
    ("Tokyo", "Seoul"): (34, 1.1),
    ("Tokyo", "London"): (210, 0.366),
    ("Tokyo", "Frankfurt"): (223, 0.36),
    ("Tokyo", "Ireland"): (199, 0.465),
    ("Seoul", "London"): (238, 0.342),
    ("Seoul", "Frankfurt"): (235, 0.358),
    ("Seoul", "Ireland"): (228, 0.335),
    ("London", "Frankfurt"): (14, 1.14),
    ("London", "Ireland"): (12, 1.09),
    ("Frankfurt", "Ireland"): (24, 1.08),
    # One country. Virginia - Oregon stands in the authors' files with 0.79 and with 1.15 Gbit/s.
    ("Virginia", "California"): (59, 1.05),
    ("Oregon", "California"): (12, 1.25),
    ("California", "Ohio"): (52, 1.02),
}
"""Delay in ms and bandwidth in Gbit/s between AWS regions, both ways alike."""

POSITIONS: dict[str, tuple[float, float]] = {
    "Oregon": (45.523064, -122.676483),
    "Virginia": (39.02876, -77.458263),
    "Ohio": (40.367474, -82.996216),
    "California": (37.774929, -122.419418),
    "Tokyo": (35.689487, 139.691711),
    "Seoul": (37.566535, 126.977969),
    "London": (51.507351, -0.127758),
    "Frankfurt": (50.110924, 8.682127),
    "Ireland": (53.35014, -6.266155),
}
"""Latitude and longitude in degrees."""

WORLD = ("Oregon", "Virginia", "Ohio", "Tokyo", "Seoul", "London", "Frankfurt", "Ireland")
COUNTRY = ("Virginia", "Oregon", "California", "Ohio")


def scenario(
    name: str, variant: str = "scheduler", n_devices: int = 64, one_way_factor: float = 1.0
) -> Topology:
    """One of NAMES (or "1" to "5") with `n_devices` in the published proportions.

    TopologyError for an unknown name or variant, and for a number of devices that the
    proportions do not divide.
    """
    key = ALIASES.get(name, name)
    if key not in NAMES:
        raise TopologyError(f"found scenario {name!r}; known: {', '.join(NAMES)} (or 1 to 5)")
    if variant not in VARIANTS:
        raise TopologyError(f"found variant {variant!r}; known: {', '.join(VARIANTS)}")
    within_ms = 5.0 if variant == "scheduler" else 10.0
    if key == "datacenter":
        places = [f"machine{i}" for i in range(_share(key, n_devices, 8))]
        return _topology(places, [8] * len(places), (0, 100), {}, (0, 3.125), one_way_factor)
    if key == "spot":
        unit = _share(key, n_devices, 8)  # eight devices: one machine of four and four of one
        sizes = [4] * unit + [1] * (4 * unit)
        places = [f"machine{i}" for i in range(len(sizes))]
        return _topology(places, sizes, (0, 100), {}, (0, 1.25), one_way_factor)
    if key == "universities":
        half = _share(key, n_devices, 2)
        return _topology(
            ["Ohio", "Virginia"], [half] * 2, (1, 5), {("Ohio", "Virginia"): (11, 1.12)}, None, one_way_factor
        )
    regions = COUNTRY if key == "regional" else WORLD
    pairs = dict(_PAIRS)
    if key == "regional":
        pairs["Oregon", "Virginia"] = (67, 1.15)
    size = _share(key, n_devices, len(regions))
    return _topology(list(regions), [size] * len(regions), (within_ms, 2), pairs, None, one_way_factor)


def _share(name: str, n_devices: int, parts: int) -> int:
    if n_devices < parts or n_devices % parts:
        raise TopologyError(f"scenario {name}: found {n_devices} devices, required a multiple of {parts}")
    return n_devices // parts


def _topology(
    places: Sequence[str],
    sizes: Sequence[int],
    within: tuple[float, float],
    pairs: dict[tuple[str, str], tuple[float, float]],
    otherwise: tuple[float, float] | None,
    one_way_factor: float,
) -> Topology:
    """Devices place by place; `pairs` either way round, `otherwise` where a pair is not named."""
    devices = tuple(
        Device(f"{place}-{i}", region=place, host=f"{place}-{i}" if place in POSITIONS else place)
        for place, size in zip(places, sizes, strict=True)
        for i in range(size)
    )
    at = np.repeat(np.arange(len(places)), sizes)
    delay_ms = np.empty((len(places), len(places)))
    gbit = np.empty_like(delay_ms)
    for i, a in enumerate(places):
        for j, b in enumerate(places):
            link = within if i == j else pairs.get((a, b)) or pairs.get((b, a)) or otherwise
            if link is None:
                raise TopologyError(f"no figure for the link {a} - {b}")
            delay_ms[i, j], gbit[i, j] = link
    latency_s: Matrix = delay_ms[np.ix_(at, at)] * (one_way_factor / 1e3)
    bandwidth_Bps: Matrix = gbit[np.ix_(at, at)] * GBIT_BPS
    return Topology(devices, latency_s, bandwidth_Bps)


def with_noise(topology: Topology, share: float, rng: np.random.Generator) -> Topology:
    """Each pair's latency and bandwidth times its own factor in [1 - share, 1 + share], both ways alike."""
    n = len(topology)

    def factors() -> Matrix:
        upper = np.triu(rng.uniform(1 - share, 1 + share, (n, n)), 1)
        symmetric: Matrix = upper + upper.T + np.eye(n)
        return symmetric

    return Topology(topology.devices, topology.latency_s * factors(), topology.bandwidth_Bps * factors())
