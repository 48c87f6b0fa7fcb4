"""A codec's name with its options as one text, and what every spec can tell. Torch-free; knows no codec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Protocol


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
class Named:
    """The name of a dataclass of options: its family, and the options that are not the default."""

    family: ClassVar[str]

    @property
    def name(self) -> str:
        options = [
            f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default
        ]
        return f"{self.family}:{','.join(options)}" if options else self.family
