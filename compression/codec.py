"""Tensor <-> payload: the codec protocol, the identity codec, and the registry.

A codec sits at both ends of one directed link and may remember what crossed it, so each link and
kind of traffic has an instance of its own. Refuses to know networks, ranks and schedules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from compression.spec import CodecError, CodecSpec, IdentitySpec

__all__ = ["CODECS", "DTYPES", "Codec", "CodecError", "Encoded", "IdentityCodec", "Key", "make_codec"]

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


class Codec(Protocol):
    """One end of a link. `decode(encode(x, key), key)` approximates x (identity: equals it, bit by bit)."""

    @property
    def spec(self) -> CodecSpec:
        """What it costs."""

    def encode(self, x: Tensor, key: Key) -> Encoded:
        """The payload of `x`, on any device. Raises CodecError for a dtype that does not travel."""

    def decode(self, encoded: Encoded, key: Key) -> Tensor:
        """A tensor on the CPU, to be read only. Raises CodecError for a payload that does not fit."""

    def reset(self) -> None:
        """Forget every sample, as when the other end is lost."""


class IdentityCodec:
    """The values themselves; copies nothing that is on the CPU and contiguous."""

    spec: CodecSpec = IdentitySpec()

    def encode(self, x: Tensor, key: Key) -> Encoded:
        del key
        if x.dtype not in _NAMES:
            raise CodecError(f"found a tensor of {x.dtype}; required one of: {', '.join(DTYPES)}")
        flat = x.detach().contiguous().cpu().flatten()
        # Through numpy as bytes, because numpy has no bfloat16.
        payload = flat.view(torch.uint8).numpy().data
        return Encoded((payload,), _NAMES[x.dtype], tuple(x.shape), self.spec.name)

    def decode(self, encoded: Encoded, key: Key) -> Tensor:
        del key
        if encoded.codec != self.spec.name:
            raise CodecError(f"found a payload of codec {encoded.codec!r}; required {self.spec.name!r}")
        dtype = DTYPES.get(encoded.dtype)
        if dtype is None:
            raise CodecError(f"found the dtype {encoded.dtype!r}; required one of: {', '.join(DTYPES)}")
        required = self.spec.wire_bytes(encoded.shape, dtype.itemsize)
        if encoded.n_bytes != required:
            raise CodecError(
                f"found {encoded.n_bytes} bytes; required {required} for {encoded.dtype} {encoded.shape}"
            )
        if required == 0:
            return torch.empty(encoded.shape, dtype=dtype)
        parts = encoded.payload
        # torch has no read-only tensors, so what is read-only, or in pieces, is copied.
        whole = parts[0] if len(parts) == 1 and not parts[0].readonly else bytearray(b"".join(parts))
        return torch.frombuffer(whole, dtype=dtype).view(encoded.shape)

    def reset(self) -> None:
        """Nothing is remembered."""


CODECS: dict[str, Callable[[], Codec]] = {"identity": IdentityCodec}
"""How to make a codec, by the name that a job gives it."""


def make_codec(name: str) -> Codec:
    """A new codec, which remembers nothing yet. Raises CodecError, naming those there are."""
    if name not in CODECS:
        raise CodecError(f"found the codec {name!r}; required one of: {', '.join(CODECS)}")
    return CODECS[name]()
