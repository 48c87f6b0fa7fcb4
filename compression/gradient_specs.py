"""Specs of the codecs for weights' gradients, whose sums over many steps count: error feedback of gradients
or of momentum, top-k."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import ClassVar

from compression.grid import CodecError, Grid, numel, require_rounding
from compression.naming import Named


@dataclass(frozen=True, slots=True)
class FeedbackSpec(Named):
    """k bits, and what was left out goes with the next message of the same layer (`error_feedback.py`)."""

    family: ClassVar[str] = "feedback"
    bits: int = 4
    group: int = 64
    rounding: str = "nearest"

    def __post_init__(self) -> None:
        require_rounding(self.rounding)
        _ = self.grid

    @property
    def grid(self) -> Grid:
        return Grid(self.bits, "group", self.group, self.rounding == "stochastic")

    def wire_bytes(self, shape: Sequence[int], dtype_bytes: int) -> int:
        del dtype_bytes
        return self.grid.payload_bytes((numel(shape),))

    def relative_error(self, shape: Sequence[int]) -> float:
        return self.grid.relative_error((numel(shape),))


@dataclass(frozen=True, slots=True)
class MomentumSpec(FeedbackSpec):
    """Adam's momentum in k bits with error feedback, once `warmup_steps` steps have gone uncompressed.

    Tang et al., "1-bit Adam" (ICML 2021); what the optimizer does is `worker/momentum.py`'s. Bytes and error
    are those behind the warm-up, which is what nearly all steps cost.
    """

    family: ClassVar[str] = "momentum"
    warmup_steps: int = 100

    def __post_init__(self) -> None:
        FeedbackSpec.__post_init__(self)
        if self.warmup_steps < 1:
            raise CodecError(f"warmup_steps: found {self.warmup_steps}; required 1 or more")


@dataclass(frozen=True, slots=True)
class TopKSpec(Named):
    """The largest magnitudes with their places, and error feedback (`error_feedback.py`)."""

    family: ClassVar[str] = "topk"
    per_mille: int = 10
    """Values sent of a thousand."""
    bits: int = 32
    """Of a value: 32, or 1 to 8."""
    group: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.per_mille <= 1000:
            raise CodecError(f"per_mille: found {self.per_mille}; required 1 to 1000")
        if self.bits != 32:
            _ = self.grid

    @property
    def grid(self) -> Grid | None:
        return None if self.bits == 32 else Grid(self.bits, "group", self.group)

    def k(self, n: int) -> int:
        """How many of `n` values are sent."""
        return min(n, max(1, n * self.per_mille // 1000))

    def wire_bytes(self, shape: Sequence[int], dtype_bytes: int) -> int:
        del dtype_bytes
        k = self.k(numel(shape))
        return 4 * k + (4 * k if self.grid is None else self.grid.payload_bytes((k,)))

    def relative_error(self, shape: Sequence[int]) -> float:
        """Of one message: the energy of the values that are not among the largest."""
        del shape
        share = self.per_mille / 1000
        if share == 1.0:
            return 0.0
        normal = NormalDist()
        t = normal.inv_cdf(1 - share / 2)
        sent = 2 * (t * normal.pdf(t) + 1 - normal.cdf(t))
        return sqrt(max(0.0, 1 - sent))
