"""Specs of the codecs for what crosses a stage boundary: tiles, and changes since a sample's last visit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import ClassVar, cast

from compression.grid import SCALE_BYTES, CodecError, Grid, ScaleOf, numel, require_rounding
from compression.naming import Named


@dataclass(frozen=True, slots=True)
class TileSpec(Named):
    """Groups in `bits` and `bits` - 1, outliers rotated (`tile.py`)."""

    family: ClassVar[str] = "tile"
    bits: int = 4
    group: int = 32
    """A power of two, for the rotation."""
    high_percent: int = 50
    """Share of the groups that get `bits`, those that err most; the others get one less."""
    rounding: str = "nearest"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise CodecError(f"bits: found {self.bits}; required 2 to 8")
        if self.group < 2 or self.group & (self.group - 1):
            raise CodecError(f"group: found {self.group}; required a power of two: 16, 32, 64")
        if not 0 <= self.high_percent <= 100:
            raise CodecError(f"high_percent: found {self.high_percent}; required 0 to 100")
        require_rounding(self.rounding)

    @property
    def high(self) -> Grid:
        return Grid(self.bits, "group", self.group, self.rounding == "stochastic")

    @property
    def low(self) -> Grid:
        return Grid(self.bits - 1, "group", self.group, self.rounding == "stochastic")

    def n_groups(self, shape: Sequence[int]) -> int:
        n = numel(shape)
        if n % self.group or (n and shape[-1] % self.group):
            raise CodecError(
                f"found rows of {shape[-1] if shape else 1} values; required a multiple of the group,"
                f" {self.group}: give a group that divides them"
            )
        return n // self.group

    def n_high(self, shape: Sequence[int]) -> int:
        return self.n_groups(shape) * self.high_percent // 100

    def wire_bytes(self, shape: Sequence[int], dtype_bytes: int) -> int:
        del dtype_bytes
        n, n_high = self.n_groups(shape), self.n_high(shape)
        flags = 2 * -(-n // 8)
        high, low = (n_high, self.group), (n - n_high, self.group)
        return flags + self.high.payload_bytes(high) + self.low.payload_bytes(low)

    def relative_error(self, shape: Sequence[int]) -> float:
        high, low = self.high.relative_error((self.group,)), self.low.relative_error((self.group,))
        share = self.high_percent / 100
        return (share * high**2 + (1 - share) * low**2) ** 0.5 if self.n_groups(shape) else 0.0


@dataclass(frozen=True, slots=True)
class AcsgdSpec(Named):
    """Changes since the sample's last visit in `bits` a value (`activation_delta.py`)."""

    family: ClassVar[str] = "acsgd"
    bits: int = 4
    scale: str = "group"
    group: int = 64
    rounding: str = "nearest"
    first: int = 32
    """Bits of a first visit: 32 (the values themselves) or 8."""
    store: int = 16
    """Bits of the buffers: 16, 8 or 4."""
    memory: str = "ram"
    """`ram` or `disk`: where the buffers lie."""
    budget_mb: int = 4096
    """Of one end's buffers; beyond it the samples used longest ago become first visits."""
    check_every: int = 16
    """Visits of a sample from one checksum of its buffer to the next."""

    META_BYTES: ClassVar[int] = 9
    """A sample's: kind, version, checksum."""

    def __post_init__(self) -> None:
        for label, found, required in (
            ("first", self.first, (32, 8)),
            ("store", self.store, (16, 8, 4)),
            ("memory", self.memory, ("ram", "disk")),
            ("rounding", self.rounding, ("nearest", "stochastic")),
        ):
            if found not in required:
                raise CodecError(
                    f"{label}: found {found!r}; required one of: {', '.join(map(str, required))}"
                )
        if self.budget_mb < 1 or self.check_every < 1:
            raise CodecError(
                f"budget_mb, check_every: found {self.budget_mb}, {self.check_every}; required 1 or more"
            )
        _ = self.grid

    @property
    def grid(self) -> Grid:
        return Grid(self.bits, cast(ScaleOf, self.scale), self.group, self.rounding == "stochastic")

    @property
    def stored(self) -> Grid | None:
        """Of the buffers; None: float16."""
        return None if self.store == 16 else Grid(self.store, "group", self.group)

    @property
    def budget_bytes(self) -> int:
        return self.budget_mb * 1_000_000

    def slot_bytes(self, shape: Sequence[int]) -> int:
        """What one end remembers of a sample of a tensor of `shape`."""
        return slot_bytes(shape[1:], self.stored)

    def wire_bytes(self, shape: Sequence[int], dtype_bytes: int) -> int:
        """Of a tensor all of whose samples came before."""
        del dtype_bytes
        return _n_samples(shape) * (self.META_BYTES + self.grid.payload_bytes(shape[1:]))

    def first_wire_bytes(self, shape: Sequence[int], dtype_bytes: int) -> int:
        """Of a tensor none of whose samples came before."""
        each = Grid(8, "group", self.group).payload_bytes(shape[1:]) if self.first == 8 else 0
        return _n_samples(shape) * (self.META_BYTES + (each or numel(shape[1:]) * dtype_bytes))

    def error_at(self, shape: Sequence[int], change: float) -> float:
        """Of a sample that came often, if it changes by `change` of itself (root mean square) between visits.

        With q the quantizer's error and s the buffers', what is quantized is the change, the last error and
        what the buffers lost of it: e = q (change + e + s), so e = q (change + s) / (1 - q). That is the
        worst case, in which all three point the same way. From q = 1 on the error need not stay bounded.
        """
        q = self.grid.relative_error(shape[1:])
        store = self.stored.relative_error(shape[1:]) if self.stored is not None else 2.0**-11
        return q * (change + store) / (1 - q) if q < 1 else inf

    def relative_error(self, shape: Sequence[int]) -> float:
        """As if an activation were as far from its last visit as it is large."""
        return self.error_at(shape, 1.0)


def slot_bytes(shape: Sequence[int], grid: Grid | None) -> int:
    """Bytes that a sample of `shape` takes in a buffer, as float16 or on `grid`; rounded up so that every
    slot begins where words may."""
    n = 2 * numel(shape) if grid is None else grid.payload_bytes(shape)
    return -(-n // SCALE_BYTES) * SCALE_BYTES


def _n_samples(shape: Sequence[int]) -> int:
    if len(shape) < 2:
        raise CodecError(f"found shape {tuple(shape)}; required samples along a first axis of two or more")
    return shape[0]
