"""The k-bit quantizer's compiled twin: the same bits as `quantize.py`, block by block, on several cores.

What crosses the memory bus is the tensor once and the payload once (`kernels_passes.py`). Loops hold no
lock of Python's, so `threads` of them run at once. Knows tensors; refuses to know codecs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from compression import kernels_passes as passes
from compression.grid import BLOCK, Grid, numel, packed_bytes, steps_of
from compression.kernels_passes import CHANNEL, FUSED, GROUP, TENSOR
from compression.kernels_rounding import channel_scales, group_scales, largest_of, scale_bits
from compression.parallel import in_parts
from compression.quantize import require_finite, require_sizes

U32, F32 = np.uint32, np.float32


def quantize(x: Tensor, grid: Grid, seed: int = 0, threads: int = 1) -> tuple[Tensor, Tensor]:
    """As `quantize.quantize`, of a tensor on the CPU."""
    scales, packed = room(tuple(x.shape), grid)
    encode_into(x, scales, packed, grid, seed, threads)
    return scales, packed


def room(shape: tuple[int, ...], grid: Grid, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Scales and codes of a tensor of `shape`, not filled in."""
    n_codes = packed_bytes(numel(shape), grid.bits)
    scales = torch.empty(grid.n_scales(shape), dtype=torch.int16, device=device)
    return scales, torch.empty(n_codes, dtype=torch.uint8, device=device)


def encode_into(
    x: Tensor,
    scales: Tensor,
    packed: Tensor,
    grid: Grid,
    seed: int = 0,
    threads: int = 1,
    memory: Tensor | None = None,
) -> None:
    """`quantize` into given tensors (int16, uint8). With `memory` (float32 or float16, contiguous, of x's
    shape) what is quantized is x - memory, and memory becomes memory + what the other end decodes:
    a pass over x, memory and payload, no more."""
    (mode, group), half = _layout(grid, tuple(x.shape)), F32(steps_of(grid.bits) / 2)
    if memory is not None and mode != FUSED:  # scales are found before blocks are: take the difference first
        difference = x.detach().float() - memory.float()
        encode_into(difference, scales, packed, grid, seed, threads)
        decode_into(memory, scales, packed, grid, threads, add=True)
        return
    values = array_of(x.detach().contiguous().view(-1))
    m = None if memory is None else array_of(memory.view(-1))
    s, p = scales.numpy().view(np.uint16), packed.numpy()
    common = (grid.bits, half, group, seed, grid.stochastic)
    if mode != FUSED and values.size:
        require_finite(_find_scales(values, mode, group, s, threads))

    def run(start: int, stop: int) -> int:
        if mode != FUSED:
            passes.encode_scaled(values, s, p, start, stop, grid.bits, half, mode, *common[2:])
            return 0
        if m is not None:
            return int(passes.encode_change(values, m, s, p, start, stop, *common))
        return int(passes.encode(values, s, p, start, stop, *common))

    require_finite(max(in_parts(run, _blocks(values), threads), default=0))


def encode_owed(
    x: Tensor, owed: Tensor, grid: Grid, seed: int = 0, threads: int = 1
) -> tuple[Tensor, Tensor]:
    """`quantize` of x + owed, which then holds what the other end lacks: x + owed - what it decodes.

    `owed` is float32, contiguous, of x's shape. One pass where a block holds whole groups. After
    NotFinite it holds nothing of use.
    """
    scales, packed = room(tuple(x.shape), grid)
    (mode, group), half = _layout(grid, tuple(x.shape)), F32(steps_of(grid.bits) / 2)
    if mode != FUSED:
        owed += x.detach()
        encode_into(owed, scales, packed, grid, seed, threads)
        owed -= dequantize(scales, packed, tuple(x.shape), grid, torch.float32, threads)
        return scales, packed
    values, r = array_of(x.detach().contiguous().view(-1)), owed.view(-1).numpy()
    s, p = scales.numpy().view(np.uint16), packed.numpy()

    def run(start: int, stop: int) -> int:
        return int(
            passes.encode_owed(values, r, s, p, start, stop, grid.bits, half, group, seed, grid.stochastic)
        )

    require_finite(max(in_parts(run, _blocks(values), threads), default=0))
    return scales, packed


def dequantize(
    scales: Tensor, packed: Tensor, shape: tuple[int, ...], grid: Grid, dtype: torch.dtype, threads: int = 1
) -> Tensor:
    """As `quantize.dequantize`, to a tensor on the CPU."""
    require_sizes(scales, packed, shape, grid)
    y = torch.empty(shape, dtype=dtype)
    decode_into(y, scales, packed, grid, threads)
    return y


def decode_into(
    y: Tensor, scales: Tensor, packed: Tensor, grid: Grid, threads: int = 1, add: bool = False
) -> None:
    """Write the values to `y` (contiguous, on the CPU), or add them to what is there, a memory as above."""
    values, s, p = array_of(y.view(-1)), scales.numpy().view(np.uint16), packed.numpy()
    (mode, group), half = _layout(grid, tuple(y.shape)), F32(steps_of(grid.bits) / 2)

    def run(start: int, stop: int) -> int:
        passes.decode(values, s, p, start, stop, grid.bits, half, mode, group, add)
        return 0

    in_parts(run, _blocks(values), threads)


def array_of(flat: Tensor) -> np.ndarray:
    """The values for a loop: float32, or the bits of a half as `machine.loaded` tells them apart."""
    if flat.dtype == torch.bfloat16:
        return flat.view(torch.int16).numpy().view(np.uint16)
    if flat.dtype == torch.float16:
        return flat.view(torch.int16).numpy()
    return flat.float().numpy()


def _blocks(values: np.ndarray) -> int:
    return -(-values.size // BLOCK)


def _layout(grid: Grid, shape: tuple[int, ...]) -> tuple[int, int]:
    """(which scale a value has, how many values share it; how many channels repeat)."""
    match grid.scale:
        case "group":
            return (GROUP if BLOCK % grid.group else FUSED), grid.group
        case "tensor":
            return TENSOR, max(1, numel(shape))
        case "channel":
            return CHANNEL, max(1, shape[-1] if shape else 1)


def _find_scales(values: np.ndarray, mode: int, group: int, scales: np.ndarray, threads: int) -> int:
    """Fill in the scales that no block alone can tell; the largest magnitude's bits."""
    if mode == GROUP:
        found = in_parts(lambda a, b: int(group_scales(values, group, scales, a, b)), scales.size, threads)
        return max(found)
    if mode == TENSOR:
        largest = max(in_parts(lambda a, b: int(largest_of(values[a:b])), values.size, threads))
        scales[0] = scale_bits(U32(largest))
        return largest
    return int(channel_scales(values, scales))
