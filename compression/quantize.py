"""The k-bit reference in plain torch: scale, round, pack. Its fast twins give the same bits (`kernels.py`).

A value v under the scale s (the largest magnitude that shares it) becomes

    code = floor(v / s * h + h + u),  0 <= code <= 2 h       decoded: (code - h) * s / h

with h half the number of steps: 2^k - 2 steps from 3 bits on, so that zero is a level and nothing is
added to gradients that are zero; 2^k - 1 below, where a level less would cost too much. Both ends of
the range are levels. u is 1/2 (nearest) or uniform in (0, 1) (stochastic: the mean is v), drawn by
counting, so that it is the same on every device.

Codes are packed in blocks of 1024: a width is cut into parts of 4, 2 and 1 bits, and a part of w bits
lays the first 8 / w quarters (halves, eighths) of the block over one another, which vector units do
without shuffling. Knows tensors; refuses to know samples, links and codecs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from compression.grid import BLOCK, CodecError, Grid, NotFinite, packed_bytes, parts_of, steps_of

__all__ = ["dequantize", "pack", "quantize", "require_finite", "uniforms", "unpack"]

MASK = 0xFFFFFFFF
SMALLEST_SCALE_BITS = 0x0080
"""The smallest normal number's upper half: values below it count as zero."""
LARGEST_SCALE_BITS = 0x7F7F


def quantize(x: Tensor, grid: Grid, seed: int = 0, threads: int = 1) -> tuple[Tensor, Tensor]:
    """(scales, packed) of `x`: int16 with the upper halves of float32 scales, uint8 with the codes.

    `x` may be float32, float16 or bfloat16, of any shape and strides. `seed` (0 .. 2^32 - 1) draws the
    roundings of a stochastic grid. `threads` is for the twins. Raises NotFinite.
    """
    del threads
    values = x.detach().float().contiguous().flatten()
    n = values.numel()
    owner = scale_index(tuple(x.shape), grid).to(x.device)
    upper = scales_of(values, tuple(x.shape), grid).to(torch.int32)
    scales = (upper << 16).view(torch.float32)
    inverse = torch.where(scales > 0, 1.0 / scales, torch.zeros_like(scales))
    half = steps_of(grid.bits) / 2
    shift = uniforms(n, seed).to(x.device) if grid.stochastic else 0.5
    position = values * inverse[owner] * half + half + shift
    codes = position.clamp(0, 2 * half).to(torch.uint8)
    return upper.to(torch.int16), pack(codes, grid.bits)


def scales_of(values: Tensor, shape: tuple[int, ...], grid: Grid) -> Tensor:
    """int16: the upper half of each largest magnitude of float32 values (n,) of a tensor of `shape`,
    rounded up, within the numbers that are normal and finite. Raises NotFinite."""
    largest = torch.zeros(grid.n_scales(shape), dtype=torch.int32, device=values.device)
    magnitude = values.view(torch.int32) & 0x7FFFFFFF  # ordered as the magnitudes are, NaN above all
    owner = scale_index(shape, grid).to(values.device)
    largest.scatter_reduce_(0, owner, magnitude, "amax")
    require_finite(int(largest.max()) if values.numel() else 0)
    upper = ((largest.long() + 0xFFFF) >> 16).clamp(max=LARGEST_SCALE_BITS)
    upper[upper < SMALLEST_SCALE_BITS] = 0
    return upper.to(torch.int16)


def dequantize(
    scales: Tensor, packed: Tensor, shape: tuple[int, ...], grid: Grid, dtype: torch.dtype, threads: int = 1
) -> Tensor:
    """The tensor of `shape` and `dtype` that `quantize` packed. Raises CodecError when sizes do not fit."""
    del threads
    require_sizes(scales, packed, shape, grid)
    n = torch.Size(shape).numel()
    half = steps_of(grid.bits) / 2
    step = (scales.to(torch.int32) << 16).view(torch.float32) * torch.tensor(1.0 / half, dtype=torch.float32)
    codes = unpack(packed, n, grid.bits).float()
    values = (codes - half) * step[scale_index(shape, grid).to(scales.device)]
    return values.to(dtype).view(shape)


def require_sizes(scales: Tensor, packed: Tensor, shape: tuple[int, ...], grid: Grid) -> None:
    """Raises CodecError unless scales and codes are those of a tensor of `shape`."""
    n, found = torch.Size(shape).numel(), (scales.numel(), packed.numel())
    required = (grid.n_scales(shape), packed_bytes(n, grid.bits))
    if found != required:
        raise CodecError(
            f"found {found[0]} scales and {found[1]} bytes of codes; required {required[0]} and {required[1]}"
            f" for {n} values of {grid.bits} bits"
        )


def require_finite(largest_bits: int) -> None:
    """Raises NotFinite if the largest magnitude, as the bits of a float32, is infinite or no number."""
    if largest_bits >= 0x7F800000:
        what = "an infinite value" if largest_bits == 0x7F800000 else "a value that is no number (NaN)"
        raise NotFinite(
            f"found {what}; required finite ones: lower the learning rate, or look for what overflowed"
        )


def scale_index(shape: tuple[int, ...], grid: Grid) -> Tensor:
    """int64 (n,): which scale each value has, row by row."""
    n = torch.Size(shape).numel()
    match grid.scale:
        case "tensor":
            return torch.zeros(n, dtype=torch.int64)
        case "channel":
            return torch.arange(n) % (shape[-1] if shape and n else 1)
        case "group":
            return torch.arange(n) // grid.group


def uniforms(n: int, seed: int) -> Tensor:
    """float32 (n,) in (0, 1): (m + 1/2) / 2^16, m the halves of a hash of the counter.

    The values at j and j + 512 of a block share the hash of 512 x block + j + seed (C. Wellons' lowbias32).
    """
    blocks = -(-n // BLOCK)
    h = (torch.arange(blocks * (BLOCK // 2)) + seed) & MASK
    h ^= h >> 16
    h = (h * 0x7FEB352D) & MASK
    h ^= h >> 15
    h = (h * 0x846CA68B) & MASK
    h ^= h >> 16
    halves = torch.stack((h & 0xFFFF, h >> 16)).view(2, blocks, BLOCK // 2).transpose(0, 1)
    return ((halves.flatten()[:n].float() + 0.5) * 2.0**-16).contiguous()


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 (packed_bytes(n, bits),) of uint8 (n,) codes below 2^bits."""
    return torch.cat(
        [part for block in torch.split(codes, BLOCK) for part in _pack_block(block, bits)] or [codes]
    )


def _pack_block(codes: Tensor, bits: int) -> Iterator[Tensor]:
    for width, shift in parts_of(bits):
        lanes, each = 8 // width, packed_bytes(codes.numel(), width)
        part = torch.nn.functional.pad(
            (codes >> shift) & ((1 << width) - 1), (0, lanes * each - codes.numel())
        )
        packed = torch.zeros(each, dtype=torch.uint8, device=codes.device)
        for lane, values in enumerate(torch.split(part, each)):
            packed |= values << (width * lane)
        yield packed


def unpack(packed: Tensor, n: int, bits: int) -> Tensor:
    """uint8 (n,): the codes that `pack` packed."""
    blocks, at = [], 0
    for start in range(0, n, BLOCK):
        m = min(BLOCK, n - start)
        codes = torch.zeros(m, dtype=torch.uint8, device=packed.device)
        for width, shift in parts_of(bits):
            each = packed_bytes(m, width)
            part = packed[at : at + each]
            lanes = [(part >> (width * lane)) & ((1 << width) - 1) for lane in range(8 // width)]
            codes |= torch.cat(lanes)[:m] << shift
            at += each
        blocks.append(codes)
    return torch.cat(blocks) if blocks else packed.new_zeros(0)
