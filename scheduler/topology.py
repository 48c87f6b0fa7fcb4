"""Devices and the directed links between them, as they were measured.

Knows nothing of models, plans or how anything was measured. All units are SI: seconds,
bytes, bytes a second; whoever reads milliseconds or Mbit/s converts at the edge, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True, eq=False)
class Topology:
    """N devices; `latency_s[i, j]` and `bandwidth_Bps[i, j]` of the directed link i -> j.

    Latency is one-way. The diagonal is ignored (a device reaches itself at once).
    Raises TopologyError for shapes, negative or non-finite values, and zero bandwidth.
    """

    devices: tuple[Device, ...]
    latency_s: Matrix
    bandwidth_Bps: Matrix

    def __post_init__(self) -> None:
        n = len(self.devices)
        if n == 0:
            raise TopologyError("found no device; a topology needs at least one")
        names = [d.name for d in self.devices]
        if len(set(names)) != n:
            twice = sorted({x for x in names if names.count(x) > 1})
            raise TopologyError(f"found device names used twice: {', '.join(twice)}; each needs its own")
        off = ~np.eye(n, dtype=bool)
        for label, m in (("latency_s", self.latency_s), ("bandwidth_Bps", self.bandwidth_Bps)):
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
        if (self.bandwidth_Bps[off] <= 0).any():
            i, j = np.argwhere(off & (self.bandwidth_Bps <= 0))[0]
            raise TopologyError(
                f"bandwidth_Bps[{names[i]}, {names[j]}]: found {self.bandwidth_Bps[i, j]}, "
                "required more than 0; "
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
        )
