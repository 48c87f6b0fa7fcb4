"""The k-bit quantizer's compiled twin: the same bits as `quantize.py`, block by block, on several cores.

A block is loaded, scaled, rounded and packed while it lies in the first-level cache: what crosses the
memory bus is the tensor once and the payload once. Loops hold no lock of Python's, so `threads` of
them run at once. Knows arrays; refuses to know codecs.
"""

# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-untyped-calls=False
from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from compression.grid import BLOCK, Grid, numel, packed_bytes, steps_of
from compression.machine import (
    counter32,
    hash32,
    high_uniform,
    kept,
    larger_magnitude,
    level_of,
    loaded,
    low_uniform,
    rounded,
    scale_of,
    stored,
    upper_half,
)
from compression.parallel import in_parts
from compression.quantize import require_finite, require_sizes

U32, F32, U64 = np.uint32, np.float32, np.uint64
FUSED, GROUP, TENSOR, CHANNEL = range(4)
"""Which scale a value has. FUSED: groups that lie within a block, whose scales are found on the way."""
MASKS = np.array([0, 0x0101010101010101, 0x0303030303030303, 0, 0x0F0F0F0F0F0F0F0F], dtype=np.uint64)
"""[width]: that many low bits of each of eight bytes."""


def quantize(x: Tensor, grid: Grid, seed: int = 0, threads: int = 1) -> tuple[Tensor, Tensor]:
    """As `quantize.quantize`, of a tensor on the CPU."""
    shape = tuple(x.shape)
    scales = torch.empty(grid.n_scales(shape), dtype=torch.int16)
    packed = torch.empty(packed_bytes(x.numel(), grid.bits), dtype=torch.uint8)
    encode_into(x, scales, packed, grid, seed, threads)
    return scales, packed


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
    values, shape = _array(x.detach().contiguous().view(-1)), tuple(x.shape)
    s, p = scales.numpy().view(np.uint16), packed.numpy()
    m = values[:0] if memory is None else _array(memory.view(-1))
    (mode, group), half = _layout(grid, shape), F32(steps_of(grid.bits) / 2)
    if (
        memory is not None and mode != FUSED
    ):  # scales are asked for before blocks are: take the difference first
        difference = x.detach().float() - memory.float()
        encode_into(difference, scales, packed, grid, seed, threads)
        decode_into(memory, scales, packed, grid, threads, add=True)
        return
    if mode != FUSED and values.size:
        require_finite(_find_scales(values, mode, group, s, threads))

    def run(start: int, stop: int) -> int:
        return int(_encode(values, m, s, p, start, stop, grid.bits, half, mode, group, seed, grid.stochastic))

    require_finite(max(in_parts(run, -(-values.size // BLOCK), threads), default=0))


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
    values, s, p = _array(y.view(-1)), scales.numpy().view(np.uint16), packed.numpy()
    (mode, group), half = _layout(grid, tuple(y.shape)), F32(steps_of(grid.bits) / 2)

    def run(start: int, stop: int) -> int:
        _decode(values, s, p, start, stop, grid.bits, half, F32(1) / half, mode, group, add)
        return 0

    in_parts(run, -(-values.size // BLOCK), threads)


def _array(flat: Tensor) -> np.ndarray:
    """The values for a loop: float32, or the bits of a half as `machine.loaded` tells them apart."""
    if flat.dtype == torch.bfloat16:
        return flat.view(torch.int16).numpy().view(np.uint16)
    if flat.dtype == torch.float16:
        return flat.view(torch.int16).numpy()
    return flat.float().numpy()


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
        found = in_parts(lambda a, b: int(_group_scales(values, group, scales, a, b)), scales.size, threads)
        return max(found)
    if mode == TENSOR:
        largest = max(in_parts(lambda a, b: int(_largest(values[a:b])), values.size, threads))
        scales[0] = _upper(U32(largest))
        return largest
    return int(_channel_scales(values, scales))


@njit(cache=True, nogil=True)
def _upper(bits):
    return upper_half(bits)


@njit(cache=True, nogil=True)
def _largest(x):
    largest = U32(0)
    for i in range(x.size):
        largest = larger_magnitude(largest, loaded(x[i]))
    return largest


@njit(cache=True, nogil=True)
def _group_scales(x, group, scales, start, stop):
    all_largest = U32(0)
    for k in range(start, stop):
        largest = _largest(x[k * group : (k + 1) * group])
        scales[k] = upper_half(largest)
        all_largest = max(all_largest, largest)
    return all_largest


@njit(cache=True, nogil=True)
def _channel_scales(x, scales):
    largest = np.zeros(scales.size, np.uint32)
    for start in range(0, x.size, scales.size):
        row = x[start : start + scales.size]
        for c in range(row.size):
            largest[c] = larger_magnitude(largest[c], loaded(row[c]))
    all_largest = U32(0)
    for c in range(scales.size):
        scales[c] = upper_half(largest[c])
        all_largest = max(all_largest, largest[c])
    return all_largest


@njit(cache=True, nogil=True)
def _encode(x, memory, scales, packed, first, last, bits, half, mode, group, seed, stochastic):
    """Blocks first .. last - 1. The largest magnitude's bits (0 unless FUSED, where it is not known before).

    `group` is how many values follow one another under a scale (GROUP, FUSED) or scales (CHANNEL).
    """
    buffer = np.empty(BLOCK, np.float32)
    code = np.zeros(BLOCK, np.uint8)
    shift = np.full(BLOCK, F32(0.5), np.float32)
    inverses = _inverses(scales) if mode == CHANNEL else buffer
    all_largest = U32(0)
    for block in range(first, last):
        at = block * BLOCK
        values = x[at : at + BLOCK]
        m = values.size
        remembered = memory[at : at + BLOCK]
        for i in range(m):
            buffer[i] = loaded(values[i])
        for i in range(remembered.size):
            buffer[i] -= loaded(remembered[i])
        if stochastic:
            _draw(shift, block, seed)
        start = 0
        while start < m:
            k = (at + start) // group
            stop = min(m, (k + 1) * group - at)
            v, u, c = buffer[start:stop], shift[start:stop], code[start:stop]
            if mode == CHANNEL:
                _round_each(v, inverses[(at + start) % group :], u, c, half)
            else:
                if mode == FUSED:
                    largest = _largest(v)
                    all_largest = max(all_largest, largest)
                    scales[k] = upper_half(largest)
                _round(v, scale_of(scales[k]), u, c, half)
            start = stop
        if remembered.size:
            _remember(code, scales, at, group, half, remembered)
        out = packed[block * (BLOCK * bits // 8) :]
        if m == BLOCK:
            _pack_whole(code, out[: BLOCK * bits // 8], bits)
        else:
            _pack_rest(code, out, bits, m)
    return all_largest


@njit(cache=True, nogil=True)
def _draw(shift, block, seed):
    low, high = shift[: BLOCK // 2], shift[BLOCK // 2 :]
    for j in range(BLOCK // 2):
        h = hash32(counter32(block * (BLOCK // 2) + j + seed))
        low[j] = low_uniform(h)
        high[j] = high_uniform(h)


@njit(cache=True, nogil=True)
def _inverse(scale):
    return F32(1) / scale if scale > F32(0) else F32(0)


@njit(cache=True, nogil=True)
def _inverses(scales):
    inverses = np.empty(scales.size, np.float32)
    for i in range(scales.size):
        inverses[i] = _inverse(scale_of(scales[i]))
    return inverses


@njit(cache=True, nogil=True)
def _round(v, scale, shift, code, half):
    inverse = _inverse(scale)
    for i in range(v.size):
        code[i] = rounded(v[i], inverse, half, shift[i])


@njit(cache=True, nogil=True)
def _remember(code, scales, at, group, half, memory):
    """Add what the other end decodes, apart from the loop above, which is fast because it is small."""
    start = 0
    while start < memory.size:
        k = (at + start) // group
        stop = min(memory.size, (k + 1) * group - at)
        _values(code[start:stop], scale_of(scales[k]) * (F32(1) / half), half, memory[start:stop], True)
        start = stop


@njit(cache=True, nogil=True)
def _round_each(v, inverses, shift, code, half):
    for i in range(v.size):
        code[i] = rounded(v[i], inverses[i], half, shift[i])


@njit(cache=True, nogil=True)
def _pack_whole(code, out, bits):
    """Eight codes at a time: a part's lanes are whole words, and no bit leaves its byte."""
    words, into = code.view(np.uint64), out.view(np.uint64)
    at, shift = 0, bits
    for width in (8, 4, 2, 1):
        if not bits & width:
            continue
        shift -= width
        each, mask, s = 16 * width, MASKS[width % 8], U64(shift)
        if width == 8:
            for j in range(each):
                into[j] = words[j]
        elif width == 4:
            for j in range(each):
                into[at + j] = ((words[j] >> s) & mask) | (((words[j + each] >> s) & mask) << U64(4))
        elif width == 2:
            for j in range(each):
                into[at + j] = (
                    ((words[j] >> s) & mask)
                    | (((words[j + each] >> s) & mask) << U64(2))
                    | (((words[j + 2 * each] >> s) & mask) << U64(4))
                    | (((words[j + 3 * each] >> s) & mask) << U64(6))
                )
        else:
            for j in range(each):
                low = ((words[j] >> s) & mask) | (((words[j + each] >> s) & mask) << U64(1))
                low |= ((words[j + 2 * each] >> s) & mask) << U64(2)
                low |= ((words[j + 3 * each] >> s) & mask) << U64(3)
                low |= ((words[j + 4 * each] >> s) & mask) << U64(4)
                low |= ((words[j + 5 * each] >> s) & mask) << U64(5)
                low |= ((words[j + 6 * each] >> s) & mask) << U64(6)
                into[at + j] = low | (((words[j + 7 * each] >> s) & mask) << U64(7))
        at += each


@njit(cache=True, nogil=True)
def _unpack_whole(packed, code, bits):
    words, out = packed.view(np.uint64), code.view(np.uint64)
    at, shift = 0, bits
    for j in range(BLOCK // 8):
        out[j] = U64(0)
    for width in (8, 4, 2, 1):
        if not bits & width:
            continue
        shift -= width
        each, mask, s = 16 * width, MASKS[width % 8], U64(shift)
        if width == 8:
            for j in range(each):
                out[j] = words[j]
        else:
            for lane in range(8 // width):
                down = U64(width * lane)
                for j in range(each):
                    out[lane * each + j] |= ((words[at + j] >> down) & mask) << s
        at += each


@njit(cache=True, nogil=True)
def _pack_rest(code, out, bits, m):
    at, shift = 0, bits
    for width in (8, 4, 2, 1):
        if not bits & width:
            continue
        shift -= width
        each = (m * width + 7) // 8
        for j in range(each):
            byte = 0
            for lane in range(8 // width):
                i = lane * each + j
                if i < m:
                    byte |= ((code[i] >> shift) & ((1 << width) - 1)) << (width * lane)
            out[at + j] = byte
        at += each


@njit(cache=True, nogil=True)
def _unpack_rest(packed, code, bits, m):
    at, shift = 0, bits
    code[:m] = 0
    for width in (8, 4, 2, 1):
        if not bits & width:
            continue
        shift -= width
        each = (m * width + 7) // 8
        for lane in range(8 // width):
            for j in range(min(each, m - lane * each)):
                code[lane * each + j] |= ((packed[at + j] >> (width * lane)) & ((1 << width) - 1)) << shift
        at += each


@njit(cache=True, nogil=True)
def _decode(y, scales, packed, first, last, bits, half, inverse, mode, group, add):
    """Write, or add, the values of blocks first .. last - 1."""
    codes = np.empty(BLOCK, np.uint8)
    steps = np.empty(scales.size if mode == CHANNEL else 0, np.float32)
    for i in range(steps.size):
        steps[i] = scale_of(scales[i]) * inverse
    for block in range(first, last):
        at = block * BLOCK
        values = y[at : at + BLOCK]
        m = values.size
        out = packed[block * (BLOCK * bits // 8) :]
        if m == BLOCK:
            _unpack_whole(out[: BLOCK * bits // 8], codes, bits)
        else:
            _unpack_rest(out, codes, bits, m)
        start = 0
        while start < m:
            k = (at + start) // group
            stop = min(m, (k + 1) * group - at)
            c, v = codes[start:stop], values[start:stop]
            if mode == CHANNEL:
                _values_each(c, steps[(at + start) % group :], half, v, add)
            else:
                _values(c, scale_of(scales[k]) * inverse, half, v, add)
            start = stop


@njit(cache=True, nogil=True)
def _values(code, step, half, y, add):
    if add:
        for i in range(y.size):
            y[i] = kept(loaded(y[i]) + (level_of(code[i]) - half) * step, y[i])
    else:
        for i in range(y.size):
            y[i] = stored((level_of(code[i]) - half) * step, y[i])


@njit(cache=True, nogil=True)
def _values_each(code, steps, half, y, add):
    for i in range(y.size):
        value = (level_of(code[i]) - half) * steps[i]
        y[i] = kept(loaded(y[i]) + value, y[i]) if add else stored(value, y[i])
