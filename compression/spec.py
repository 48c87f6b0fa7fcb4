"""What a codec leaves of a tensor, in bytes, and how far off it is, so that a planner need not import torch.

A spec is a codec's name with its options, and back: `kbit:bits=4,rounding=stochastic`. Plans and frames
carry that text, so two ends that were told different things notice. Knows shapes and widths only;
refuses to know values, samples and links. Each spec has a twin in `codec.py` that makes exactly as many
bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, cast

from compression.boundary_specs import AcsgdSpec, TileSpec
from compression.gradient_specs import FeedbackSpec, MomentumSpec, TopKSpec
from compression.grid import CodecError, Grid, ScaleOf, numel, require_rounding
from compression.naming import CodecSpec, Named

__all__ = [
    "IDENTITY",
    "SPECS",
    "AcsgdSpec",
    "CodecError",
    "CodecSpec",
    "FeedbackSpec",
    "HalfSpec",
    "IdentitySpec",
    "KBitSpec",
    "MomentumSpec",
    "TileSpec",
    "TopKSpec",
    "codec_spec",
]


@dataclass(frozen=True, slots=True)
class IdentitySpec(Named):
    """The values themselves, as they lie in memory."""

    family: ClassVar[str] = "identity"

    def wire_bytes(self, shape: Sequence[int], dtype_bytes: int) -> int:
        if dtype_bytes < 1:
            raise CodecError(f"found values {dtype_bytes} bytes wide; required a width of 1 or more")
        return numel(shape) * dtype_bytes

    def relative_error(self, shape: Sequence[int]) -> float:
        del shape
        return 0.0


@dataclass(frozen=True, slots=True)
class HalfSpec(Named):
    """float16: half of float32's bytes, magnitudes up to 65504."""

    family: ClassVar[str] = "fp16"

    def wire_bytes(self, shape: Sequence[int], dtype_bytes: int) -> int:
        del dtype_bytes
        return 2 * numel(shape)

    def relative_error(self, shape: Sequence[int]) -> float:
        del shape
        return 2.0**-11 / 3**0.5  # half a unit in the last place of 11 bits, uniform, at worst


@dataclass(frozen=True, slots=True)
class KBitSpec(Named):
    """Uniform quantization to `bits` a value (`quantize.py`)."""

    family: ClassVar[str] = "kbit"
    bits: int = 8
    scale: str = "group"
    """`tensor`, `channel` or `group`."""
    group: int = 64
    rounding: str = "nearest"
    """`nearest`, or `stochastic`: its mean is the value."""

    def __post_init__(self) -> None:
        require_rounding(self.rounding)
        _ = self.grid

    @property
    def grid(self) -> Grid:
        return Grid(self.bits, cast(ScaleOf, self.scale), self.group, self.rounding == "stochastic")

    def wire_bytes(self, shape: Sequence[int], dtype_bytes: int) -> int:
        del dtype_bytes
        return self.grid.payload_bytes(shape)

    def relative_error(self, shape: Sequence[int]) -> float:
        return self.grid.relative_error(shape)


IDENTITY = IdentitySpec()

SPECS: dict[str, type[Any]] = {
    s.family: s
    for s in (IdentitySpec, HalfSpec, KBitSpec, TileSpec, AcsgdSpec, FeedbackSpec, MomentumSpec, TopKSpec)
}
"""By family; `codec.CODECS` has the same."""


def codec_spec(name: str) -> CodecSpec:
    """The spec that has this name. Raises CodecError for an unknown family, option or value."""
    family, _, text = name.partition(":")
    if family not in SPECS:
        raise CodecError(f"found the codec {family!r}; required one of: {', '.join(SPECS)}")
    kind: Callable[..., CodecSpec] = SPECS[family]
    defaults = {f.name: f.default for f in fields(SPECS[family])}
    options: dict[str, object] = {}
    for part in text.split(",") if text else ():
        key, _, value = part.partition("=")
        if key not in defaults:
            raise CodecError(
                f"found {family}'s option {key!r}; required one of: {', '.join(defaults) or 'none'}"
            )
        try:
            options[key] = (int if isinstance(defaults[key], int) else str)(value)
        except ValueError:
            raise CodecError(
                f"{family}'s {key}: found {value!r}; required {type(defaults[key]).__name__}"
            ) from None
    return kind(**options)
