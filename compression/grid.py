"""The grid of a k-bit quantizer: how many bits, which values share a scale, how it rounds; bytes and error.

Torch-free. `quantize.py` and its twins do what is counted here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod, sqrt
from statistics import NormalDist
from typing import Literal, get_args

BLOCK = 1024
"""Codes that are packed together."""
SCALE_BYTES = 2
"""A scale is the upper half of a float32, rounded up so that no value lies beyond it."""

ScaleOf = Literal["tensor", "channel", "group"]


class CodecError(ValueError):
    """A codec that cannot be, a tensor it cannot take, a payload it did not make: found and required."""


class NotFinite(CodecError):
    """A tensor that holds an infinite value or no number at all."""


@dataclass(frozen=True, slots=True)
class Grid:
    """`bits` a value; a scale is shared by all, by a channel (last axis), or by `group` neighbours."""

    bits: int
    scale: ScaleOf = "group"
    group: int = 64
    stochastic: bool = False
    """Round at random so that the mean is right; else to the nearest level."""

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise CodecError(f"bits: found {self.bits}; required 1 to 8")
        if self.scale not in get_args(ScaleOf):
            raise CodecError(f"scale: found {self.scale!r}; required one of: {', '.join(get_args(ScaleOf))}")
        if self.group < 1:
            raise CodecError(f"group: found {self.group}; required 1 or more")

    def n_scales(self, shape: Sequence[int]) -> int:
        """How many scales a tensor of `shape` has. CodecError if its rows are no whole number of groups.

        A tensor of one dimension has no rows: its last group may be shorter.
        """
        n = numel(shape)
        if n == 0:
            return 0
        match self.scale:
            case "tensor":
                return 1
            case "channel":
                return shape[-1] if shape else 1
            case "group":
                if len(shape) > 1 and shape[-1] % self.group:
                    raise CodecError(
                        f"found rows of {shape[-1]} values; required a multiple of the group, {self.group}:"
                        " give a group that divides them"
                    )
                return -(-n // self.group)

    def payload_bytes(self, shape: Sequence[int]) -> int:
        """Scales and codes together."""
        return SCALE_BYTES * self.n_scales(shape) + packed_bytes(numel(shape), self.bits)

    def relative_error(self, shape: Sequence[int]) -> float:
        """Root mean square error over root mean square, expected for independent normal values."""
        n, n_scales = numel(shape), self.n_scales(shape)
        return normal_error(self.bits, max(1, n // max(1, n_scales)), self.stochastic) if n else 0.0


def require_rounding(rounding: str) -> None:
    """Raises CodecError for another than the two there are."""
    if rounding not in ("nearest", "stochastic"):
        raise CodecError(f"rounding: found {rounding!r}; required nearest or stochastic")


def numel(shape: Sequence[int]) -> int:
    """Values in a tensor of `shape`. CodecError for a negative size."""
    if any(n < 0 for n in shape):
        raise CodecError(f"found shape {tuple(shape)}; required sizes of 0 or more")
    return prod(shape)


def steps_of(bits: int) -> int:
    """Steps between the least and the greatest level: even from 3 bits on, so that zero is a level."""
    return (1 << bits) - (2 if bits >= 3 else 1)


def parts_of(bits: int) -> tuple[tuple[int, int], ...]:
    """(width, shift) of the parts in which codes are packed, lowest bits last: 7 = 4 + 2 + 1."""
    return tuple((w, bits & (w - 1)) for w in (8, 4, 2, 1) if bits & w)


def packed_bytes(n: int, bits: int) -> int:
    """Bytes of `n` packed codes: n bits / 8, and below 3 more where the last block is not full."""
    blocks, rest = divmod(n, BLOCK)
    return blocks * (BLOCK * bits // 8) + sum(-(-rest * w // 8) for w, _ in parts_of(bits))


@lru_cache(maxsize=256)
def normal_error(bits: int, sharing: int, stochastic: bool) -> float:
    """Relative error of standard normal values, `sharing` of which have a scale.

    The scale is taken to be the expected largest magnitude (Blom's approximation); the error is
    integrated over the density: (v - level)^2, or f (1 - f) step^2 where the rounding is random.
    """
    normal = NormalDist()
    scale = normal.inv_cdf(0.5 + 0.5 * (sharing - 0.375) / (sharing + 0.25))
    step = 2 * scale / steps_of(bits)
    points = 4000
    total = weight = 0.0
    for i in range(points):
        v = scale * (2 * (i + 0.5) / points - 1)
        p = normal.pdf(v)
        f = ((v + scale) / step) % 1.0
        total += p * step * step * (f * (1 - f) if stochastic else min(f, 1 - f) ** 2)
        weight += p
    return sqrt(total / weight)
