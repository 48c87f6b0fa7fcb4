"""Accelerators by name: what their makers say they can do, and the part of it that training gets.

Data, for plans made before any machine is rented; a device that is there is measured instead. Knows
no models. Peak rates are dense (without sparsity), products accumulated in float32. Sources:

- NVIDIA's data sheets of V100 (SXM2, 16 GB), T4, A10, A100 (SXM4, 40 and 80 GB), H100 (SXM5) and
  H200 (SXM5); H200 has H100's rates;
- NVIDIA's Ampere GA102 and Ada architecture papers, specification tables, for RTX 3090 and 4090;
- Apple's announcements of M1 (2020), M1 Max (2021), M2 Ultra (2023): one rate for 32 and 16 bits;
- a CPU of 8 cores that do two 256-bit fused multiply-adds a cycle at 2.5 GHz (32 flop x 8 x 2.5e9)
  and two channels of DDR4-3200 (2 x 8 bytes x 3.2e9).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from scheduler.names import nearest

Precision = Literal["fp32", "tf32", "fp16", "bf16"]
"""What products are computed in: fp32 exactly, tf32 on tensor cores, 16 bits on tensor cores."""

ACHIEVABLE = 0.45
"""Share of the peak that training a transformer reaches: 44 % (1.7B parameters) to 52 % (1T) on A100
(Narayanan et al. 2021, "Efficient Large-Scale Language Model Training", table 1), 46 % on TPU v4
(Chowdhery et al. 2022, PaLM, table 3). One share for every accelerator: comparisons stay fair."""


class AcceleratorError(ValueError):
    """An accelerator, or a precision of it, that is not known: says which are."""


@dataclass(frozen=True, slots=True)
class Accelerator:
    """`memory_bytes` are the nominal ones; driver and context take some of them."""

    name: str
    peak_flops: Mapping[Precision, float]
    """Flop/s by precision; one that the device has no units for is absent."""
    memory_bytes: int
    memory_Bps: float
    """Bandwidth between the chip and its memory."""

    def achieved_flops(self, precision: Precision, fraction: float = ACHIEVABLE) -> float:
        """Flop/s that a product of `precision` runs at. AcceleratorError for one it does not have."""
        if not 0 < fraction <= 1:
            raise AcceleratorError(f"found the achieved fraction {fraction}, required more than 0, at most 1")
        if precision not in self.peak_flops:
            known = ", ".join(self.peak_flops)
            raise AcceleratorError(f"{self.name}: found no units for {precision}, required one of: {known}")
        return fraction * self.peak_flops[precision]


def _nvidia(
    name: str, gib: int, memory_Bps: float, fp32: float, tf32: float, bits16: float, bf16: bool = True
) -> Accelerator:
    """Rates in flop/s. Tensor cores before Ampere know neither tf32 nor bf16."""
    peak: dict[Precision, float] = {"fp32": fp32, "fp16": bits16}
    if bf16:
        peak |= {"tf32": tf32, "bf16": bits16}
    return Accelerator(name, peak, gib << 30, memory_Bps)


def _apple(name: str, gib: int, memory_Bps: float, rate: float) -> Accelerator:
    return Accelerator(name, {"fp32": rate, "fp16": rate, "bf16": rate}, gib << 30, memory_Bps)


ACCELERATORS: Mapping[str, Accelerator] = {
    a.name: a
    for a in (
        _nvidia("v100", 16, 900e9, 15.7e12, 0.0, 125e12, bf16=False),
        _nvidia("t4", 16, 320e9, 8.1e12, 0.0, 65e12, bf16=False),
        _nvidia("a10", 24, 600e9, 31.2e12, 62.5e12, 125e12),
        _nvidia("a100-40", 40, 1555e9, 19.5e12, 156e12, 312e12),
        _nvidia("a100-80", 80, 2039e9, 19.5e12, 156e12, 312e12),
        _nvidia("h100", 80, 3350e9, 66.9e12, 494.7e12, 989.4e12),
        _nvidia("h200", 141, 4800e9, 66.9e12, 494.7e12, 989.4e12),
        _nvidia("rtx3090", 24, 936e9, 35.6e12, 35.6e12, 71e12),
        _nvidia("rtx4090", 24, 1008e9, 82.6e12, 82.6e12, 165.2e12),
        _apple("m1", 16, 68.3e9, 2.6e12),
        _apple("m1-max", 64, 400e9, 10.4e12),
        _apple("m2-ultra", 192, 800e9, 27.2e12),
        Accelerator("cpu", {"fp32": 0.64e12}, 32 << 30, 51.2e9),
    )
}
"""Name -> accelerator."""


def accelerator(name: str) -> Accelerator:
    """The accelerator called `name` (in any case). AcceleratorError, naming the nearest, if there is none."""
    found = ACCELERATORS.get(name.lower())
    if found is None:
        known = ", ".join(ACCELERATORS)
        near = nearest(name.lower(), list(ACCELERATORS))
        raise AcceleratorError(f"found the accelerator {name!r}{near}, required one of: {known}")
    return found
