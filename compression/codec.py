"""Tensor <-> payload: the codec protocol, the codecs that remember nothing, and the registry.

A codec sits at one end of one directed link and may remember what crossed it, so each link, direction
and kind of traffic has an instance of its own. Refuses to know networks, ranks and schedules.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from compression import kernels
from compression.activation_delta import ActivationDeltaCodec, Drifted
from compression.error_feedback import FeedbackCodec
from compression.grid import CodecError, NotFinite, packed_bytes
from compression.payload import (
    DTYPES,
    Encoded,
    Key,
    Seeds,
    aligned,
    dtype_of,
    name_of,
    parts,
    require_bytes,
    to_bytes,
)
from compression.spec import CodecSpec, HalfSpec, IdentitySpec, KBitSpec, codec_spec
from compression.tile import TileCodec

__all__ = [
    "CODECS",
    "DTYPES",
    "ActivationDeltaCodec",
    "Codec",
    "CodecError",
    "Drifted",
    "Encoded",
    "FeedbackCodec",
    "HalfCodec",
    "IdentityCodec",
    "KBitCodec",
    "Key",
    "NotFinite",
    "make_codec",
]


class Codec(Protocol):
    """One end of a link. `decode(encode(x, key), key)` approximates x (identity: equals it, bit by bit)."""

    @property
    def spec(self) -> CodecSpec:
        """What it costs."""

    def encode(self, x: Tensor, key: Key) -> Encoded:
        """The payload of `x`, on any device. Raises CodecError for what it cannot take: NotFinite is one."""

    def decode(self, encoded: Encoded, key: Key) -> Tensor:
        """A tensor to be read only. Raises CodecError for a payload that does not fit."""

    def echo(self, encoded: Encoded, key: Key) -> Tensor:
        """What the other end makes of what this end has just encoded. To be read only."""

    def reset(self) -> None:
        """Forget every sample, as when the other end is lost."""


class IdentityCodec:
    """The values themselves; copies nothing that is on the CPU and contiguous."""

    def __init__(self, spec: IdentitySpec | None = None, seed: int = 0) -> None:
        del seed
        self.spec = spec or IdentitySpec()

    def encode(self, x: Tensor, key: Key) -> Encoded:
        del key
        name = name_of(x)
        payload = to_bytes(x.detach().contiguous().cpu())
        return Encoded((payload,), name, tuple(x.shape), self.spec.name)

    def decode(self, encoded: Encoded, key: Key) -> Tensor:
        del key
        dtype = dtype_of(encoded, self.spec.name)
        required = self.spec.wire_bytes(encoded.shape, dtype.itemsize)
        require_bytes(encoded, required)
        if required == 0:
            return torch.empty(encoded.shape, dtype=dtype)
        return parts(encoded, [required])[0].view(dtype).view(encoded.shape)

    def echo(self, encoded: Encoded, key: Key) -> Tensor:
        return self.decode(encoded, key)

    def reset(self) -> None:
        """Nothing is remembered."""


HALF_INFINITY = 0x7C00
"""The bits of an infinite float16; those of NaNs are above."""


class HalfCodec:
    """float16 on the wire."""

    def __init__(self, spec: HalfSpec, seed: int = 0) -> None:
        del seed
        self.spec = spec

    def encode(self, x: Tensor, key: Key) -> Encoded:
        del key
        name = name_of(x, floats=True)
        half = x.detach().half().contiguous().cpu()
        # As integers, which is several times as fast as torch.isfinite on halves.
        magnitudes = half.view(torch.int16).bitwise_and(0x7FFF)
        if half.numel() and int(magnitudes.max()) >= HALF_INFINITY:
            raise NotFinite(
                "found a value that float16 cannot hold (NaN, or beyond 65504); required smaller ones, or a"
                " codec with scales, such as kbit with 8 bits"
            )
        return Encoded((to_bytes(half),), name, tuple(x.shape), self.spec.name)

    def decode(self, encoded: Encoded, key: Key) -> Tensor:
        del key
        dtype = dtype_of(encoded, self.spec.name, floats=True)
        required = self.spec.wire_bytes(encoded.shape, dtype.itemsize)
        require_bytes(encoded, required)
        return parts(encoded, [required])[0].view(torch.float16).view(encoded.shape).to(dtype)

    def echo(self, encoded: Encoded, key: Key) -> Tensor:
        return self.decode(encoded, key)

    def reset(self) -> None:
        """Nothing is remembered."""


class KBitCodec:
    """Uniform quantization. `seed` draws the roundings, anew for every tensor."""

    def __init__(self, spec: KBitSpec, seed: int = 0) -> None:
        self.spec = spec
        self._grid = spec.grid
        self._seeds = Seeds(seed)

    def encode(self, x: Tensor, key: Key) -> Encoded:
        del key
        name = name_of(x, floats=True)
        twin = kernels.twin_of(x.device)
        scales, packed = twin.quantize(x, self._grid, self._seeds.next(), torch.get_num_threads())
        # Codes first: they then begin where words may, wherever the payload lies.
        payload = (to_bytes(packed.cpu()), to_bytes(scales.cpu()))
        return Encoded(payload, name, tuple(x.shape), self.spec.name)

    def decode(self, encoded: Encoded, key: Key) -> Tensor:
        del key
        dtype, grid = dtype_of(encoded, self.spec.name, floats=True), self._grid
        require_bytes(encoded, self.spec.wire_bytes(encoded.shape, dtype.itemsize))
        n_codes = packed_bytes(torch.Size(encoded.shape).numel(), grid.bits)
        packed, scales = parts(encoded, [n_codes, encoded.n_bytes - n_codes])
        twin = kernels.twin_of(packed.device)
        return twin.dequantize(
            aligned(scales).view(torch.int16), packed, encoded.shape, grid, dtype, torch.get_num_threads()
        )

    def echo(self, encoded: Encoded, key: Key) -> Tensor:
        return self.decode(encoded, key)

    def reset(self) -> None:
        """Nothing is remembered."""


CODECS: dict[str, Callable[[Any, int, Path | None], Codec]] = {
    "identity": lambda spec, seed, _: IdentityCodec(spec, seed),
    "fp16": lambda spec, seed, _: HalfCodec(spec, seed),
    "kbit": lambda spec, seed, _: KBitCodec(spec, seed),
    "tile": lambda spec, seed, _: TileCodec(spec, seed),
    "acsgd": ActivationDeltaCodec,
    "feedback": lambda spec, seed, _: FeedbackCodec(spec, seed),
    "momentum": lambda spec, seed, _: FeedbackCodec(spec, seed),
    "topk": lambda spec, seed, _: FeedbackCodec(spec, seed),
}
"""How to make a codec of a spec, a seed and a directory for what it remembers, by the spec's family."""


def make_codec(name: str, seed: int = 0, directory: Path | None = None) -> Codec:
    """A new codec, which remembers nothing yet. Raises CodecError, naming what there is.

    `directory` is where buffers on disk lie; without one they lie in memory.
    """
    spec = codec_spec(name)
    return CODECS[name.partition(":")[0]](spec, seed, directory)
