"""Groups of neighbours in b or b - 1 bits, those with an outlier rotated: remembers nothing, for any data.

After TAH-Quant: in every tensor a fixed share of the groups gets the higher width, those in which the
lower one would err most. A group's error is in proportion to its largest magnitude, so that tells which.
Where one value stands out, a Hadamard rotation spreads it over its group before, and is undone after.

Payload: two bits a group (rotated, higher width), scales, the codes of the higher width, those of the lower.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from compression import kernels, kernels_tile
from compression.grid import SCALE_BYTES, CodecError, packed_bytes
from compression.payload import (
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
from compression.spec import TileSpec

OUTLIER = 3.5
"""A largest magnitude of so many times the group's root mean square makes it worth trying a rotation."""


class TileCodec:
    """`seed` draws the roundings of a stochastic spec."""

    def __init__(self, spec: TileSpec, seed: int = 0) -> None:
        self.spec = spec
        self._seeds = Seeds(seed)

    def encode(self, x: Tensor, key: Key) -> Encoded:
        del key
        name, shape = name_of(x, floats=True), tuple(x.shape)
        n_high = self.spec.n_high(shape)
        groups = x.detach().float().reshape(self.spec.n_groups(shape), self.spec.group)
        threads, compiled = torch.get_num_threads(), groups.device.type == "cpu"
        if compiled:
            groups = groups.contiguous()
            rotated, largest = kernels_tile.scan(groups, OUTLIER, threads)
        else:
            groups, rotated, largest = rotate_outliers(groups)
        is_high = torch.zeros(len(groups), dtype=torch.bool, device=x.device)
        is_high[largest.topk(n_high).indices] = True
        rows = (
            kernels_tile.split(groups, rotated, is_high, threads)
            if compiled
            else (groups[is_high], groups[~is_high])
        )
        payload = [_flags(rotated), _flags(is_high)]
        scales, codes = [], []
        for grid, values in zip((self.spec.high, self.spec.low), rows, strict=True):
            s, c = kernels.twin_of(x.device).quantize(values, grid, self._seeds.next(), threads)
            scales.append(s.cpu())
            codes.append(c.cpu())
        payload += [to_bytes(torch.cat(scales)), *map(to_bytes, codes)]
        return Encoded(tuple(payload), name, shape, self.spec.name)

    def decode(self, encoded: Encoded, key: Key) -> Tensor:
        del key
        dtype, shape = dtype_of(encoded, self.spec.name, floats=True), encoded.shape
        require_bytes(encoded, self.spec.wire_bytes(shape, dtype.itemsize))
        n, n_high, group = self.spec.n_groups(shape), self.spec.n_high(shape), self.spec.group
        flags = -(-n // 8)
        counts = [n_high, n - n_high]
        sizes = [flags, flags, SCALE_BYTES * n]
        grids = (self.spec.high, self.spec.low)
        sizes += [packed_bytes(m * group, grid.bits) for m, grid in zip(counts, grids, strict=True)]
        rotated, is_high, scales, *codes = parts(encoded, sizes)
        high = _unflag(is_high, n)
        if int(high.sum()) != n_high:
            raise CodecError(f"found {int(high.sum())} groups of the higher width; required {n_high}")
        each = torch.split(aligned(scales).view(torch.int16), counts)
        threads = torch.get_num_threads()
        high_rows, low_rows = (
            kernels.twin_of(c.device).dequantize(s, c, (m, group), grid, torch.float32, threads)
            for grid, m, s, c in zip(grids, counts, each, codes, strict=True)
        )
        groups = kernels_tile.join(high_rows, low_rows, _unflag(rotated, n), high, threads)
        return groups.view(shape).to(dtype)

    def echo(self, encoded: Encoded, key: Key) -> Tensor:
        return self.decode(encoded, key)

    def reset(self) -> None:
        """Nothing is remembered."""


def rotate_outliers(groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(groups, which were rotated, the largest magnitude of each afterwards), of float32 (n, group).

    A group is rotated where that makes its largest magnitude smaller, and with it the error.
    """
    largest = groups.abs().amax(1) if len(groups) else groups.new_zeros(0)
    rms = groups.square().mean(1).sqrt()
    suspects = (largest > OUTLIER * rms).nonzero().flatten()
    turned = hadamard(groups[suspects])
    after = turned.abs().amax(1) if len(suspects) else groups.new_zeros(0)
    better = after < largest[suspects]
    rotated = torch.zeros(len(groups), dtype=torch.bool, device=groups.device)
    chosen = suspects[better]
    if len(chosen):
        groups = groups.clone()
        groups[chosen], largest[chosen], rotated[chosen] = turned[better], after[better], True
    return groups, rotated, largest


def hadamard(groups: Tensor) -> Tensor:
    """The orthonormal Hadamard transform of each row, its own inverse; the width is a power of two."""
    n, width = groups.shape
    half = 1
    while half < width:
        a, b = groups.reshape(n, width // (2 * half), 2, half).unbind(2)
        groups = torch.stack((a + b, a - b), 2).reshape(n, width)
        half *= 2
    return groups * float(width**-0.5)


def _flags(bits: Tensor) -> memoryview:
    return np.packbits(bits.cpu().numpy(), bitorder="little").data


def _unflag(packed: Tensor, n: int) -> Tensor:
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=n, bitorder="little").astype(bool))
