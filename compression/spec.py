"""What a codec leaves of a tensor, in bytes, and how far off it is, so that a planner need not import torch.

A spec is a codec's name with its options, and back: `kbit:bits=4,rounding=stochastic`. Plans and frames
carry that text, so two ends that were told different things notice. Knows shapes and widths only;
refuses to know values, samples and links. Each spec has a twin in `codec.py` that makes exactly as many
bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, cast

from compression.grid import CodecError, Grid, ScaleOf, numel

__all__ = [
    "IDENTITY",
    "SPECS",
    "AcsgdSpec",
    "CodecError",
    "CodecSpec",
    "HalfSpec",
    "IdentitySpec",
    "KBitSpec",
    "codec_spec",
]


class CodecSpec(Protocol):
    """The cost of a codec."""

    @property
    def name(self) -> str:
        """What plans and frames call the codec, options included. `codec_spec` inverts it."""

    def wire_bytes(self, shape: Sequence[int], dtype_bytes: int) -> int:
        """Bytes of the payload of a tensor of `shape` whose values are `dtype_bytes` wide. Exact."""

    def relative_error(self, shape: Sequence[int]) -> float:
        """Expected root mean square error over root mean square, of independent normal values."""


@dataclass(frozen=True, slots=True)
class _Named:
    """The name of a dataclass of options: its family, and the options that are not the default."""

    family: ClassVar[str]

    @property
    def name(self) -> str:
        options = [
            f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default
        ]
        return f"{self.family}:{','.join(options)}" if options else self.family


@dataclass(frozen=True, slots=True)
class IdentitySpec(_Named):
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
class HalfSpec(_Named):
    """float16: half of float32's bytes, magnitudes up to 65504."""

    family: ClassVar[str] = "fp16"

    def wire_bytes(self, shape: Sequence[int], dtype_bytes: int) -> int:
        del dtype_bytes
        return 2 * numel(shape)

    def relative_error(self, shape: Sequence[int]) -> float:
        del shape
        return 2.0**-11 / 3**0.5  # half a unit in the last place of 11 bits, uniform, at worst


@dataclass(frozen=True, slots=True)
class KBitSpec(_Named):
    """Uniform quantization to `bits` a value (`quantize.py`)."""

    family: ClassVar[str] = "kbit"
    bits: int = 8
    scale: str = "group"
    """`tensor`, `channel` or `group`."""
    group: int = 64
    rounding: str = "nearest"
    """`nearest`, or `stochastic`: its mean is the value."""

    def __post_init__(self) -> None:
        if self.rounding not in ("nearest", "stochastic"):
            raise CodecError(f"rounding: found {self.rounding!r}; required nearest or stochastic")
        _ = self.grid

    @property
    def grid(self) -> Grid:
        return Grid(self.bits, cast(ScaleOf, self.scale), self.group, self.rounding == "stochastic")

    def wire_bytes(self, shape: Sequence[int], dtype_bytes: int) -> int:
        del dtype_bytes
        return self.grid.payload_bytes(shape)

    def relative_error(self, shape: Sequence[int]) -> float:
        return self.grid.relative_error(shape)


@dataclass(frozen=True, slots=True)
class AcsgdSpec(_Named):
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
    CHANGE: ClassVar[float] = 0.3
    """Of an activation from one epoch to the next, taken for the error figure; the run measures the error."""

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
    def budget_bytes(self) -> int:
        return self.budget_mb * 1_000_000

    def wire_bytes(self, shape: Sequence[int], dtype_bytes: int) -> int:
        """Of a tensor all of whose samples came before."""
        del dtype_bytes
        return _n_samples(shape) * (self.META_BYTES + self.grid.payload_bytes(shape[1:]))

    def first_wire_bytes(self, shape: Sequence[int], dtype_bytes: int) -> int:
        """Of a tensor none of whose samples came before."""
        each = Grid(8, "group", self.group).payload_bytes(shape[1:]) if self.first == 8 else 0
        return _n_samples(shape) * (self.META_BYTES + (each or numel(shape[1:]) * dtype_bytes))

    def relative_error(self, shape: Sequence[int]) -> float:
        return self.CHANGE * self.grid.relative_error(shape[1:])


def _n_samples(shape: Sequence[int]) -> int:
    if len(shape) < 2:
        raise CodecError(f"found shape {tuple(shape)}; required samples along a first axis of two or more")
    return shape[0]


IDENTITY = IdentitySpec()

SPECS: dict[str, type[Any]] = {s.family: s for s in (IdentitySpec, HalfSpec, KBitSpec, AcsgdSpec)}
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
