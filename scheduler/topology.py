"""Devices and the directed links between them, as they were measured.

Knows nothing of models, plans or how anything was measured. All units are SI: seconds,
bytes, bytes a second; whoever reads milliseconds or Mbit/s converts at the edge, once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


class TopologyError(ValueError):
    """A topology that cannot be: says what was found and what is required."""


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator (or CPU) that can hold a tasklet.

    `host` names the machine whose cores and network card it shares with other devices;
    `speed_flops` is the achieved rate in flop/s (0: unknown, then profiles are measured).
    """

    name: str
    region: str = ""
    host: str = ""
    memory_bytes: int = 0
    speed_flops: float = 0.0
    host_cores: int = 0
    """Cores of the host that its devices share; 0: the device shares nothing (a GPU)."""
    uplink_Bps: float = 0.0
    """What it can send to all other hosts together, with the devices of its own host; 0: as much as its
    links carry."""
    downlink_Bps: float = 0.0
    """What it can receive from all other hosts together, with the devices of its own host; 0: no limit."""

    def __post_init__(self) -> None:
        for label in ("uplink_Bps", "downlink_Bps"):
            value = getattr(self, label)
            if not (np.isfinite(value) and value >= 0):
                raise TopologyError(
                    f"device {self.name}, {label}: found {value}, required a finite number of 0 or more"
                )


@dataclass(frozen=True, slots=True, eq=False)
class Topology:
    """N devices; `latency_s[i, j]` and `bandwidth_Bps[i, j]` of the directed link i -> j.

    Latency is one-way. `bandwidth_Bps` is what a link carries at most; `flow_Bps`, where known, what
    one of its flows does (window / round trip on a long link), so a transfer striped over k
    flows gets min(bandwidth, k x flow). The diagonal is ignored (a device reaches itself at once).
    Raises TopologyError for shapes, negative or non-finite values, and zero bandwidth.
    """

    devices: tuple[Device, ...]
    latency_s: Matrix
    bandwidth_Bps: Matrix
    flow_Bps: Matrix | None = None
    """None: one flow fills every link."""
    egress_Bps: Mapping[str, float] = field(default_factory=dict)
    """By region: what leaves it for others at most, all its devices together; no entry: no limit."""

    def __post_init__(self) -> None:
        n = len(self.devices)
        if n == 0:
            raise TopologyError("found no device; a topology needs at least one")
        names = [d.name for d in self.devices]
        if len(set(names)) != n:
            twice = sorted({x for x in names if names.count(x) > 1})
            raise TopologyError(f"found device names used twice: {', '.join(twice)}; each needs its own")
        off = ~np.eye(n, dtype=bool)
        matrices = [("latency_s", self.latency_s), ("bandwidth_Bps", self.bandwidth_Bps)]
        if self.flow_Bps is not None:
            matrices.append(("flow_Bps", self.flow_Bps))
        for label, m in matrices:
            if m.shape != (n, n):
                raise TopologyError(f"{label}: found shape {m.shape}, required ({n}, {n}) for {n} devices")
            bad = off & ~np.isfinite(m)
            if bad.any():
                i, j = np.argwhere(bad)[0]
                raise TopologyError(
                    f"{label}[{names[i]}, {names[j]}]: found {m[i, j]}, required a finite number"
                )
        if (self.latency_s[off] < 0).any():
            i, j = np.argwhere(off & (self.latency_s < 0))[0]
            raise TopologyError(
                f"latency_s[{names[i]}, {names[j]}]: found {self.latency_s[i, j]}, required 0 or more"
            )
        for region, value in self.egress_Bps.items():
            if not (np.isfinite(value) and value > 0):
                raise TopologyError(
                    f"egress_Bps[{region}]: found {value}, required a finite number above 0; "
                    "leave a region out that has no limit"
                )
        for label, m in matrices[1:]:
            if (m[off] <= 0).any():
                i, j = np.argwhere(off & (m <= 0))[0]
                raise TopologyError(
                    f"{label}[{names[i]}, {names[j]}]: found {m[i, j]}, required more than 0; "
                    "leave out a device that cannot be reached"
                )

    def __len__(self) -> int:
        return len(self.devices)

    def index(self, name: str) -> int:
        """Index of the device called `name`. KeyError if there is none."""
        for i, d in enumerate(self.devices):
            if d.name == name:
                return i
        raise KeyError(f"no device named {name!r}; known: {', '.join(d.name for d in self.devices)}")

    def striped(self, streams: int) -> Topology:
        """The topology whose links carry what `streams` flows do: min(bandwidth, streams x flow)."""
        if streams < 1:
            raise TopologyError(f"found {streams} streams a link, required at least 1")
        if self.flow_Bps is None:
            return self
        carried = np.minimum(self.bandwidth_Bps, streams * self.flow_Bps)
        return Topology(self.devices, self.latency_s, carried, egress_Bps=self.egress_Bps)

    def transfer_s(self, src: int, dst: int, n_bytes: float) -> float:
        """Seconds for `n_bytes` from src to dst with the link to itself: latency + bytes / bandwidth."""
        if src == dst:
            return 0.0
        return float(self.latency_s[src, dst] + n_bytes / self.bandwidth_Bps[src, dst])

    def subset(self, indices: Sequence[int]) -> Topology:
        """The topology of the devices at `indices`, in that order."""
        ix = np.asarray(indices)
        return Topology(
            tuple(self.devices[i] for i in indices),
            self.latency_s[np.ix_(ix, ix)].copy(),
            self.bandwidth_Bps[np.ix_(ix, ix)].copy(),
            None if self.flow_Bps is None else self.flow_Bps[np.ix_(ix, ix)].copy(),
            self.egress_Bps,
        )
