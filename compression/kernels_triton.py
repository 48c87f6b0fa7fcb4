# mypy: disable-error-code="no-untyped-call, no-untyped-def, untyped-decorator, name-defined"
"""The k-bit quantizer's twin for a GPU: the same bits as `quantize.py`, a block a program.

A program reads its block once and writes its codes and scales once; with a memory the change to it is
quantized, and the memory brought up to date, in the same pass. Fusion of products and sums is off
(`enable_fp_fusion`), or the last bit would differ. Scales that no block alone can tell (per tensor, per
channel, groups that cross blocks) are found by torch before. Triton's interpreter runs the same code on a
CPU, which is how tests run it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from compression.grid import BLOCK, Grid, numel, packed_bytes, steps_of
from compression.quantize import require_finite, require_sizes, scales_of

HALF_BLOCK = BLOCK // 2


def quantize(x: Tensor, grid: Grid, seed: int = 0, threads: int = 1) -> tuple[Tensor, Tensor]:
    """As `quantize.quantize`."""
    shape = tuple(x.shape)
    scales = torch.empty(grid.n_scales(shape), dtype=torch.int16, device=x.device)
    packed = torch.empty(packed_bytes(x.numel(), grid.bits), dtype=torch.uint8, device=x.device)
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
    """As `kernels_cpu.encode_into`; all on one device."""
    shape, values = tuple(x.shape), x.detach().contiguous().flatten()
    n, fused = values.numel(), _fused(grid)
    if n == 0:
        return
    if memory is not None and not fused:  # scales are found before blocks are: take the difference first
        encode_into(x.detach().float() - memory.float(), scales, packed, grid, seed, threads)
        decode_into(memory, scales, packed, grid, threads, add=True)
        return
    if not fused:
        scales.copy_(scales_of(values.float(), shape, grid))
    blocks = -(-n // BLOCK)
    largest = torch.zeros(blocks, dtype=torch.int32, device=x.device)
    _encode[(blocks,)](
        values, values if memory is None else memory.view(-1), scales, packed, largest, n, scales.numel(),
        steps_of(grid.bits) / 2, _inverse_half(grid), seed - (seed >> 31 << 32),
        grid.bits, grid.stochastic, fused, memory is not None, *_layout(grid, shape),
        grid.group if fused else 1, BLOCK, enable_fp_fusion=False,
    )  # fmt: skip
    require_finite(int(largest.max()))


def dequantize(
    scales: Tensor, packed: Tensor, shape: tuple[int, ...], grid: Grid, dtype: torch.dtype, threads: int = 1
) -> Tensor:
    """As `quantize.dequantize`, on the device of `packed`."""
    require_sizes(scales, packed, shape, grid)
    y = torch.empty(shape, dtype=dtype, device=packed.device)
    decode_into(y, scales, packed, grid, threads)
    return y


def decode_into(
    y: Tensor, scales: Tensor, packed: Tensor, grid: Grid, threads: int = 1, add: bool = False
) -> None:
    """As `kernels_cpu.decode_into`; what is added to is float32 or float16."""
    del threads
    n = y.numel()
    if n:
        step = (scales.to(torch.int32) << 16).view(torch.float32) * torch.tensor(
            _inverse_half(grid), dtype=torch.float32
        )
        brain = y.dtype == torch.bfloat16
        into = y.view(torch.int16) if brain else y
        _decode[(-(-n // BLOCK),)](
            packed, step, into.view(-1), n, steps_of(grid.bits) / 2, grid.bits, brain, add,
            *_layout(grid, tuple(y.shape)), BLOCK, enable_fp_fusion=False,
        )  # fmt: skip


def _fused(grid: Grid) -> bool:
    """Whether a block holds whole groups, so that it finds their scales itself."""
    return grid.scale == "group" and BLOCK % grid.group == 0


def _inverse_half(grid: Grid) -> float:
    """1 / half the steps, as a float32 has it."""
    return torch.tensor(1.0 / (steps_of(grid.bits) / 2), dtype=torch.float32).item()


def _layout(grid: Grid, shape: tuple[int, ...]) -> tuple[int, int]:
    """(divisor, modulus): value i has the scale i // divisor, or where the modulus is not 0, i % modulus."""
    match grid.scale:
        case "tensor":
            return numel(shape), 0
        case "channel":
            return 1, shape[-1] if shape else 1
        case "group":
            return grid.group, 0


@triton.jit
def _hash(h):
    """C. Wellons' lowbias32 of uint32."""
    h ^= h >> 16
    h *= 0x7FEB352D
    h ^= h >> 15
    h *= 0x846CA68B
    h ^= h >> 16
    return h


@triton.jit
def _kept(value, like):
    """float32 -> what a memory of the type of `like` holds of it: a float16 at most 65504."""
    if like.dtype.element_ty == tl.float16:
        value = tl.minimum(tl.maximum(value, -65504.0), 65504.0)
    return value.to(like.dtype.element_ty)


@triton.jit
def _load(x_at, memory_at, place, good, MEMORY: tl.constexpr):
    """What is quantized: the value, or its difference from the memory."""
    x = tl.load(x_at + place, mask=good, other=0.0).to(tl.float32)
    if MEMORY:
        x -= tl.load(memory_at + place, mask=good, other=0.0).to(tl.float32)
    return x


@triton.jit
def _code(x, scale, i, block, half, seed, STOCHASTIC: tl.constexpr, SIZE: tl.constexpr):
    """int32: the codes of float32 values at `i` of a block."""
    inverse = tl.where(scale > 0, tl.div_rn(1.0, tl.where(scale > 0, scale, 1.0)), 0.0)
    if STOCHASTIC:
        counter = block * (SIZE // 2) + (i % (SIZE // 2)) + seed
        h = _hash(counter.to(tl.uint32, bitcast=True))
        word = tl.where(i < SIZE // 2, h & 0xFFFF, h >> 16)
        u = (word.to(tl.float32) + 0.5) * 0.0000152587890625
    else:
        u = 0.5
    t = x * inverse * half + half + u
    return tl.minimum(tl.maximum(t, 0.0), 2.0 * half).to(tl.int32)


@triton.jit
def _scale(scales_at, place, good, divisor, modulus):
    """float32: the scales of values at `place` of the tensor."""
    index = place // divisor
    if modulus > 0:
        index = place % modulus
    upper = tl.load(scales_at + index, mask=good, other=0).to(tl.int32)
    return (upper << 16).to(tl.float32, bitcast=True)


@triton.jit
def _pack(
    x_at, memory_at, scales_at, out, at, m, each, block, half, seed, divisor, modulus,
    MEMORY: tl.constexpr, STOCHASTIC: tl.constexpr, SIZE: tl.constexpr,
    WIDTH: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """The WIDTH bits above SHIFT of the codes of a block, `each` bytes of them."""
    j = tl.arange(0, SIZE * WIDTH // 8)
    byte = tl.zeros((SIZE * WIDTH // 8,), tl.int32)
    for lane in tl.static_range(8 // WIDTH):
        i = lane * each + j
        good = (j < each) & (i < m)
        x = _load(x_at, memory_at, at + i, good, MEMORY)
        scale = _scale(scales_at, at + i, good, divisor, modulus)
        code = _code(x, scale, i, block, half, seed, STOCHASTIC, SIZE)
        part = (code >> SHIFT) & ((1 << WIDTH) - 1)
        byte |= tl.where(good, part, 0) << (WIDTH * lane)
    tl.store(out + j, byte.to(tl.uint8), mask=j < each)


@triton.jit
def _encode(
    x_at, memory_at, scales_at, packed_at, largest_at, n, n_scales, half: tl.float32,
    inverse_half: tl.float32, seed,
    BITS: tl.constexpr, STOCHASTIC: tl.constexpr, FUSED: tl.constexpr, MEMORY: tl.constexpr,
    divisor, modulus, GROUP: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    at = block.to(tl.int64) * SIZE
    m = tl.minimum(n - at, SIZE).to(tl.int32)
    if FUSED:
        i = tl.arange(0, SIZE)
        x = _load(x_at, memory_at, at + i, i < m, MEMORY)
        magnitude = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        largest = tl.max(tl.reshape(magnitude, (SIZE // GROUP, GROUP)), axis=1)
        upper = (largest.to(tl.int64) + 0xFFFF) >> 16
        upper = tl.minimum(tl.where(upper < 0x0080, 0, upper), 0x7F7F)
        k = tl.arange(0, SIZE // GROUP)
        first = at // GROUP
        tl.store(scales_at + first + k, upper.to(tl.int16), mask=first + k < n_scales)
        tl.store(largest_at + block, tl.max(largest, axis=0))
        tl.debug_barrier()  # scales are read again below, lane by lane
    out = packed_at + block.to(tl.int64) * (SIZE * BITS // 8)
    for position in tl.static_range(4):
        if BITS & (8 >> position):
            each = (m * (8 >> position) + 7) // 8
            _pack(
                x_at, memory_at, scales_at, out, at, m, each, block, half, seed, divisor, modulus,
                MEMORY, STOCHASTIC, SIZE, 8 >> position, BITS & ((8 >> position) - 1),
            )  # fmt: skip
            out += each
    if MEMORY:
        tl.debug_barrier()  # every lane has read the memory as it was
        i = tl.arange(0, SIZE)
        good = i < m
        x = _load(x_at, memory_at, at + i, good, MEMORY)
        scale = _scale(scales_at, at + i, good, divisor, modulus)
        code = _code(x, scale, i, block, half, seed, STOCHASTIC, SIZE)
        before = tl.load(memory_at + at + i, mask=good, other=0.0).to(tl.float32)
        after = before + (code.to(tl.float32) - half) * (scale * inverse_half)
        tl.debug_barrier()
        tl.store(memory_at + at + i, _kept(after, memory_at), mask=good)


@triton.jit
def _unpack(source, i, m, WIDTH: tl.constexpr):
    """The values at `i` of the m that are packed in WIDTH bits each, lane after lane."""
    each = (m * WIDTH + 7) // 8
    byte = tl.load(source + i % each, mask=i < m, other=0).to(tl.int32)
    return (byte >> (WIDTH * (i // each))) & ((1 << WIDTH) - 1)


@triton.jit
def _decode(
    packed_at, step_at, y_at, n, half: tl.float32,
    BITS: tl.constexpr, BRAIN: tl.constexpr, ADD: tl.constexpr, divisor, modulus, SIZE: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    at = block.to(tl.int64) * SIZE
    m = tl.minimum(n - at, SIZE).to(tl.int32)
    i = tl.arange(0, SIZE)
    code = tl.zeros((SIZE,), tl.int32)
    source = packed_at + block.to(tl.int64) * (SIZE * BITS // 8)
    for position in tl.static_range(4):
        if BITS & (8 >> position):
            code |= _unpack(source, i, m, 8 >> position) << (BITS & ((8 >> position) - 1))
            source += (m * (8 >> position) + 7) // 8
    place = at + i
    index = place // divisor
    if modulus > 0:
        index = place % modulus
    step = tl.load(step_at + index, mask=i < m, other=0.0)
    value = (code.to(tl.float32) - half) * step
    if ADD:
        value += tl.load(y_at + at + i, mask=i < m, other=0.0).to(tl.float32)
        tl.store(y_at + at + i, _kept(value, y_at), mask=i < m)
    elif BRAIN:  # bfloat16's bits, rounded to the nearest even by hand: the interpreter would cut them off
        bits = value.to(tl.int32, bitcast=True)
        tl.store(y_at + at + i, ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.int16), mask=i < m)
    else:
        tl.store(y_at + at + i, value.to(y_at.dtype.element_ty), mask=i < m)
