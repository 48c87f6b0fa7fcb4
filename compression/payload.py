"""A tensor as bytes: what travels, the types that may, and the way back to arrays without copies.

Knows no codec; refuses to know what the bytes mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compression.grid import CodecError

Key = tuple[int, ...]
"""The ids of the samples along a tensor's first axis, for codecs that remember samples; () if it has none."""

DTYPES: dict[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
}
"""Names on the wire. What is not here does not travel."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tensor as bytes. `payload` is buffers that follow one another; `dtype` and `shape` are the tensor's.

    Buffers may share memory with the tensor that was encoded: it must not be written to afterwards.
    """

    payload: Sequence[memoryview]
    dtype: str
    shape: tuple[int, ...]
    codec: str
    buffer_version: int = 0
    """Of what the codec remembers at its sending end; 0: it remembers nothing."""

    @property
    def n_bytes(self) -> int:
        return sum(p.nbytes for p in self.payload)


def name_of(x: Tensor, floats: bool = False) -> str:
    """The name of its type on the wire. CodecError for one that does not travel (`floats`: as floats)."""
    name, required = _NAMES.get(x.dtype), _FLOATS if floats else tuple(DTYPES)
    if name not in required:
        raise CodecError(f"found a tensor of {x.dtype}; required one of: {', '.join(required)}")
    return name


def dtype_of(encoded: Encoded, codec: str, floats: bool = False) -> torch.dtype:
    """The type that `encoded` decodes to. CodecError if another codec made it or no such type travels."""
    if encoded.codec != codec:
        raise CodecError(f"found a payload of codec {encoded.codec!r}; required {codec!r}")
    required = _FLOATS if floats else tuple(DTYPES)
    if encoded.dtype not in required:
        raise CodecError(f"found the dtype {encoded.dtype!r}; required one of: {', '.join(required)}")
    return DTYPES[encoded.dtype]


def require_bytes(encoded: Encoded, required: int) -> None:
    """CodecError unless the payload has that many bytes. To be asked before memory is taken."""
    if encoded.n_bytes != required:
        raise CodecError(
            f"found {encoded.n_bytes} bytes; required {required} for {encoded.dtype} {encoded.shape}"
        )


def to_bytes(x: Tensor) -> memoryview:
    """The values of a contiguous tensor on the CPU, in its own memory."""
    # Through numpy as bytes, because numpy has no bfloat16.
    return x.flatten().view(torch.uint8).numpy().data if x.numel() else memoryview(b"")


def parts(encoded: Encoded, sizes: Sequence[int]) -> list[Tensor]:
    """The payload as uint8 tensors of these sizes, whose sum it must have.

    Copied only where the payload is read-only (torch has no such tensors) or cut in other places.
    """
    buffers = list(encoded.payload)
    if [b.nbytes for b in buffers] != list(sizes) or any(b.readonly for b in buffers):
        buffers = [memoryview(bytearray(b"".join(buffers)))]
    if len(buffers) == len(sizes):
        return [torch.from_numpy(np.frombuffer(b, np.uint8)) for b in buffers]
    return list(torch.split(torch.from_numpy(np.frombuffer(buffers[0], np.uint8)), list(sizes)))


class Seeds:
    """A new 32-bit seed a call, by steps of the golden ratio: far from the seeds before it."""

    def __init__(self, seed: int) -> None:
        self._next = seed & 0xFFFFFFFF

    def next(self) -> int:
        self._next = (self._next + 0x9E3779B9) & 0xFFFFFFFF
        return self._next


def aligned(part: Tensor) -> Tensor:
    """The same bytes, at an address where any type's values may lie."""
    return part.clone() if part.data_ptr() % 8 or part.storage_offset() % 8 else part
