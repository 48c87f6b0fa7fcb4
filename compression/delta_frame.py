"""What AC-SGD sends of a tensor: how each sample comes, and its body. To bytes and back, sizes checked first.

Payload: 9 bytes a sample (kind, version, checksum), then the bodies, one after the other. Knows layouts;
refuses to know buffers.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor

from compression.grid import CodecError
from compression.payload import Encoded, parts, require_bytes, to_bytes

_META = struct.Struct("<BII")
RAW, EIGHT, CHANGE = range(3)
"""A first visit as it is, one in 8 bits, a change."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What travels of one sample."""

    mode: int
    version: int
    """That a change is to."""
    checksum: int
    """Of the buffer afterwards; 0: none."""
    body: Tensor


def join(samples: Sequence[Sample], dtype: str, shape: tuple[int, ...], codec: str) -> Encoded:
    """The samples of a tensor of `shape` as a payload."""
    meta = b"".join(_META.pack(s.mode, s.version, s.checksum) for s in samples)
    body = torch.cat([s.body for s in samples]) if samples else torch.empty(0, dtype=torch.uint8)
    version = crc32(meta)  # of the frame, so that a log can tell two of them apart
    return Encoded((memoryview(meta), to_bytes(body)), dtype, shape, codec, version)


def split(encoded: Encoded, sizes: Mapping[int, int]) -> list[Sample]:
    """Inverse of `join`. `sizes`: of a body, by mode; checked before memory is taken. Raises CodecError."""
    n = encoded.shape[0]
    if encoded.n_bytes < n * _META.size:
        require_bytes(encoded, n * _META.size)
    buffers = list(encoded.payload)
    whole = buffers[0] if len(buffers) == 2 and buffers[0].nbytes == n * _META.size else None
    head = bytes(whole) if whole is not None else b"".join(buffers)[: n * _META.size]
    meta = [_META.unpack_from(head, i * _META.size) for i in range(n)]
    strange = [mode for mode, _, _ in meta if mode not in sizes]
    if strange:
        raise CodecError(
            f"found a sample of kind {strange[0]}; required one of: {', '.join(map(str, sizes))}"
        )
    body_bytes = [sizes[mode] for mode, _, _ in meta]
    require_bytes(encoded, n * _META.size + sum(body_bytes))
    _, body = parts(encoded, [n * _META.size, sum(body_bytes)])
    bodies = torch.split(body, body_bytes)
    return [Sample(m, v, c, b) for (m, v, c), b in zip(meta, bodies, strict=True)]
