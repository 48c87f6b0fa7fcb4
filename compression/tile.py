"""Groups of neighbours in b or b - 1 bits, those with an outlier rotated: remembers nothing, for any data.

After TAH-Quant: in every tensor a fixed share of the groups gets the higher width, those in which the
lower one would err most. A group's error is in proportion to its largest magnitude, so that tells which.
Where one value stands out, a Hadamard rotation spreads it over its group before, and is undone after.

Payload: two bits a group (rotated, higher width), scales, the codes of the higher width, those of the lower.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from compression import kernels, kernels_tile, quantize
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
from compression.quantize import scales_of
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
        n_high, seeds = self.spec.n_high(shape), (self._seeds.next(), self._seeds.next())
        if x.device.type == "cpu":
            tiles = encode_compiled(x, self.spec, n_high, seeds, torch.get_num_threads())
        else:
            tiles = encode_plain(x, self.spec, n_high, seeds)
        payload = (_flags(tiles.rotated), _flags(tiles.is_high), *map(to_bytes, (tiles.scales, *tiles.codes)))
        return Encoded(payload, name, shape, self.spec.name)

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
        rotated, is_high, scales, high, low = parts(encoded, sizes)
        tiles = Tiles(
            _unflag(rotated, n), _unflag(is_high, n), aligned(scales).view(torch.int16), (high, low)
        )
        if (found := int(tiles.is_high.sum())) != n_high:
            raise CodecError(f"found {found} groups of the higher width; required {n_high}")
        return decode_compiled(tiles, self.spec, dtype, torch.get_num_threads()).view(shape)

    def echo(self, encoded: Encoded, key: Key) -> Tensor:
        return self.decode(encoded, key)

    def reset(self) -> None:
        """Nothing is remembered."""


class Tiles(NamedTuple):
    """A tensor of n groups, encoded; all on the CPU."""

    rotated: Tensor
    """bool (n,)"""
    is_high: Tensor
    """bool (n,): which groups have the higher width."""
    scales: Tensor
    """int16 (n,): of the groups of the higher width, then of the others."""
    codes: tuple[Tensor, Tensor]
    """uint8: of the groups of the higher width; of the others."""


def encode_plain(x: Tensor, spec: TileSpec, n_high: int, seeds: tuple[int, int]) -> Tiles:
    """The reference in torch, on any device. `seeds` draw the roundings of the two widths."""
    groups, rotated, _ = rotate_outliers(x.detach().float().reshape(-1, spec.group))
    is_high = choose(scales_of(groups.flatten(), tuple(groups.shape), spec.high), n_high)
    rows, twin = (groups[is_high], groups[~is_high]), kernels.twin_of(x.device)
    high, low = (twin.quantize(r, g, s) for r, g, s in zip(rows, (spec.high, spec.low), seeds, strict=True))
    scales = torch.cat((high[0], low[0])).cpu()
    return Tiles(rotated.cpu(), is_high.cpu(), scales, (high[1].cpu(), low[1].cpu()))


def decode_plain(tiles: Tiles, spec: TileSpec, dtype: torch.dtype) -> Tensor:
    """The reference: (n, group) values."""
    groups = torch.empty(len(tiles.is_high), spec.group)
    n_high = int(tiles.is_high.sum())
    each = torch.split(tiles.scales, [n_high, len(groups) - n_high])
    for where, s, c, grid in zip(
        (tiles.is_high, ~tiles.is_high), each, tiles.codes, (spec.high, spec.low), strict=True
    ):
        groups[where] = quantize.dequantize(s, c, (len(s), spec.group), grid, torch.float32)
    groups[tiles.rotated] = hadamard(groups[tiles.rotated])
    return groups.to(dtype)


def encode_compiled(x: Tensor, spec: TileSpec, n_high: int, seeds: tuple[int, int], threads: int) -> Tiles:
    """As `encode_plain`, of a tensor on the CPU."""
    x = x.detach().contiguous()
    rotated, scales = kernels_tile.scan(x, spec.group, OUTLIER, threads)
    is_high = kernels_tile.choose(scales, n_high)
    places = _places(is_high)
    grids = (spec.high, spec.low)
    codes = kernels_tile.encode_rows(x, places, rotated, scales, grids, seeds, threads)
    return Tiles(rotated, is_high, scales[torch.from_numpy(np.concatenate(places))], codes)


def decode_compiled(tiles: Tiles, spec: TileSpec, dtype: torch.dtype, threads: int) -> Tensor:
    """As `decode_plain`."""
    y = torch.empty(len(tiles.is_high), spec.group, dtype=dtype)
    places = _places(tiles.is_high)
    each = torch.split(tiles.scales, [len(rows) for rows in places])
    grids = (spec.high, spec.low)
    kernels_tile.decode_rows(y, places, tiles.rotated, (each[0], each[1]), tiles.codes, grids, threads)
    return y


def choose(scales: Tensor, n_high: int) -> Tensor:
    """bool (n,): which groups get the higher width: those of the largest scales, of equal ones the first."""
    is_high = torch.zeros(len(scales), dtype=torch.bool, device=scales.device)
    is_high[scales.sort(descending=True, stable=True).indices[:n_high]] = True
    return is_high


def _places(is_high: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The groups of the higher width, and the others, in order."""
    flags = is_high.numpy()
    return np.flatnonzero(flags), np.flatnonzero(~flags)


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
    return np.packbits(bits.numpy(), bitorder="little").data


def _unflag(packed: Tensor, n: int) -> Tensor:
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=n, bitorder="little").astype(bool))
