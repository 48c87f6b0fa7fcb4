"""What a codec leaves of a tensor, in bytes, so that whoever prices a plan need not import torch.

Knows shapes and widths only; refuses to know values, samples and links. Each spec has a twin in
`codec.py` that makes exactly as many bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol


class CodecError(Exception):
    """A codec that does not exist, or a payload that is not what its codec makes: found and required."""


class CodecSpec(Protocol):
    """The cost of a codec."""

    @property
    def name(self) -> str:
        """What jobs and frames call the codec."""

    def wire_bytes(self, shape: Sequence[int], dtype_bytes: int) -> int:
        """Bytes of the payload of a tensor of `shape` whose values are `dtype_bytes` wide. Exact."""


@dataclass(frozen=True, slots=True)
class IdentitySpec:
    """The values themselves, as they lie in memory."""

    name: str = "identity"

    def wire_bytes(self, shape: Sequence[int], dtype_bytes: int) -> int:
        if dtype_bytes < 1 or any(n < 0 for n in shape):
            raise CodecError(
                f"found shape {tuple(shape)} of values {dtype_bytes} bytes wide; required sizes of 0 or"
                " more and a width of 1 or more"
            )
        return prod(shape) * dtype_bytes


SPECS: dict[str, CodecSpec] = {"identity": IdentitySpec()}
"""By name; `codec.CODECS` has the same names."""


def codec_spec(name: str) -> CodecSpec:
    """The spec of that name. Raises CodecError, naming those there are."""
    if name not in SPECS:
        raise CodecError(f"found the codec {name!r}; required one of: {', '.join(SPECS)}")
    return SPECS[name]
