# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-untyped-calls=False
"""The tile codec's compiled passes on a CPU, twins of `tile.encode_plain` and `tile.decode_plain`.

One pass finds every group's scale and whether to rotate it, a count of the scales tells which groups get the
higher width, and a second pass gathers the groups of either width, rotates, rounds and packs them, block by
block. Decoding is one pass. Knows arrays; refuses to know payloads.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from compression.grid import BLOCK, Grid, packed_bytes, steps_of
from compression.kernels_cpu import array_of
from compression.kernels_packing import pack, unpack
from compression.kernels_rounding import draw, largest_of, put_values, round_codes
from compression.machine import loaded, scale_of, stored, upper_half
from compression.parallel import in_parts
from compression.quantize import require_finite

F32, U32 = np.float32, np.uint32
Rows = tuple[np.ndarray, np.ndarray]
"""Numbers of groups: those of the higher width, the others."""
Grids = tuple[Grid, Grid]
"""Of the two widths, in the same groups."""


def scan(x: Tensor, group: int, outlier: float, threads: int) -> tuple[Tensor, Tensor]:
    """(which groups to rotate: bool (n,), the scale of each afterwards: int16 (n,)) of n x group values.

    A group is rotated if its largest magnitude is above `outlier` times its root mean square, and the
    rotation makes it smaller. Raises NotFinite.
    """
    n = x.numel() // group
    rotated, scales, largest = (
        torch.empty(n, dtype=torch.bool),
        torch.empty(n, dtype=torch.int16),
        np.empty(n, U32),
    )
    values, s = array_of(x.contiguous().view(-1)), scales.numpy().view(np.uint16)
    found = (rotated.numpy(), s, largest, largest.view(F32))
    parts = in_parts(lambda a, b: int(_scan(values, group, F32(outlier**2), *found, a, b)), n, threads)
    require_finite(max(parts, default=0))
    return rotated, scales


def choose(scales: Tensor, n_high: int) -> Tensor:
    """As `tile.choose`."""
    is_high = torch.empty(len(scales), dtype=torch.bool)
    _choose(scales.numpy().view(np.uint16), n_high, is_high.numpy())
    return is_high


def encode_rows(
    x: Tensor, rows: Rows, rotated: Tensor, scales: Tensor, grids: Grids, seeds: tuple[int, int], threads: int
) -> tuple[Tensor, Tensor]:
    """uint8: of each of the two `rows`, the codes of these groups of x, as if they lay end to end."""
    group = grids[0].group
    high, low = (
        torch.empty(packed_bytes(r.size * group, g.bits), dtype=torch.uint8)
        for r, g in zip(rows, grids, strict=True)
    )
    values, s = array_of(x.contiguous().view(-1)), scales.numpy().view(np.uint16)
    of = (values, group, rows, rotated.numpy(), s, (high.numpy(), low.numpy()), _in_turn(rows, group))
    how = (*_told(grids), seeds, grids[0].stochastic)
    in_parts(lambda a, b: int(_encode(*of, a, b, *how)), of[-1].size, threads)
    return high, low


def decode_rows(
    y: Tensor,
    rows: Rows,
    rotated: Tensor,
    scales: tuple[Tensor, Tensor],
    packed: tuple[Tensor, Tensor],
    grids: Grids,
    threads: int,
) -> None:
    """Write the groups of `y` (contiguous) that the two `rows` name, which have `scales` in that order."""
    values, group = array_of(y.view(-1)), grids[0].group
    high, low = (s.numpy().view(np.uint16) for s in scales)
    codes = (packed[0].numpy(), packed[1].numpy())
    of = (values, group, rows, rotated.numpy(), (high, low), codes, _in_turn(rows, group))
    in_parts(lambda a, b: int(_decode(*of, a, b, *_told(grids))), of[-1].size, threads)


def _told(grids: Grids) -> tuple[tuple[int, int], tuple[np.float32, np.float32]]:
    high, low = (F32(steps_of(g.bits) / 2) for g in grids)
    return (grids[0].bits, grids[1].bits), (high, low)


def _in_turn(rows: Rows, group: int) -> np.ndarray:
    """2 u + which: the units of both `rows`, in the order in which they begin in the tensor, so that it
    passes through the caches once. A unit is whole blocks of whole groups, the last one perhaps not full."""
    each = max(group, BLOCK) // group
    starts = [r[::each] for r in rows]
    tags = [2 * np.arange(s.size) + which for which, s in enumerate(starts)]
    turn: np.ndarray = np.concatenate(tags)[np.argsort(np.concatenate(starts), kind="stable")]
    return turn


@njit(cache=True, nogil=True)
def _turn(row, out):
    """The orthonormal Hadamard transform of one row, by the butterflies of `tile.hadamard`."""
    n = row.size
    for i in range(n):
        out[i] = loaded(row[i])
    half = 1
    while half < n:
        for start in range(0, n, 2 * half):
            for i in range(start, start + half):
                a, b = out[i], out[i + half]
                out[i], out[i + half] = a + b, a - b
        half *= 2
    scale = F32(float(n) ** -0.5)
    for i in range(n):
        out[i] *= scale


@njit(cache=True, nogil=True, fastmath={"reassoc"})
def _squares(row):
    total = F32(0)
    for i in range(row.size):
        total += loaded(row[i]) * loaded(row[i])
    return total


@njit(cache=True, nogil=True)
def _scan(x, group, most, rotated, scales, largest, as_float, first, last):
    turned, all_largest = np.empty(group, np.float32), U32(0)
    for k in range(first, last):
        row = x[k * group : (k + 1) * group]
        largest[k] = largest_of(row)
        all_largest = max(all_largest, largest[k])
        rotated[k] = False
        if as_float[k] * as_float[k] * F32(group) > most * _squares(row):
            _turn(row, turned)
            after = largest_of(turned)
            if after < largest[k]:
                rotated[k], largest[k] = True, after
        scales[k] = upper_half(largest[k])
    return all_largest


@njit(cache=True, nogil=True)
def _choose(scales, n_high, is_high):
    counts = np.zeros(1 << 16, np.int64)
    for k in range(scales.size):
        counts[scales[k]] += 1
    left, least = n_high, (1 << 16) - 1
    while counts[least] < left:
        left -= counts[least]
        least -= 1
    for k in range(scales.size):  # all above the least scale, and of those at it the first `left`
        is_high[k] = scales[k] > least
        if scales[k] == least and left:
            is_high[k] = True
            left -= 1


@njit(cache=True, nogil=True)
def _encode(
    x, group, both_rows, rotated, scales, both_packed, turn, first, last, bits, half, seed, stochastic
):
    unit = max(group, BLOCK)
    each, blocks = unit // group, unit // BLOCK
    code, shift = np.zeros(unit, np.uint8), np.full(unit, F32(0.5), np.float32)
    turned = np.empty(group, np.float32)
    for place in range(first, last):
        u, which = turn[place] >> 1, turn[place] & 1
        rows, h = both_rows[which][u * each : (u + 1) * each], half[which]
        if stochastic:
            for b in range(blocks):
                draw(shift[b * BLOCK : (b + 1) * BLOCK], u * blocks + b, seed[which])
        for j in range(rows.size):
            k, start, stop = rows[j], j * group, (j + 1) * group
            row, v, c = x[k * group : (k + 1) * group], shift[start:stop], code[start:stop]
            if rotated[k]:
                _turn(row, turned)
                round_codes(turned, scale_of(scales[k]), v, c, h)
            else:
                round_codes(row, scale_of(scales[k]), v, c, h)
        n = rows.size * group
        for b in range((n + BLOCK - 1) // BLOCK):
            m = min(BLOCK, n - b * BLOCK)
            pack(code[b * BLOCK : (b + 1) * BLOCK], both_packed[which], u * blocks + b, bits[which], m)
    return 0


@njit(cache=True, nogil=True)
def _decode(y, group, both_rows, rotated, both_scales, both_packed, turn, first, last, bits, half):
    unit = max(group, BLOCK)
    each, blocks = unit // group, unit // BLOCK
    code = np.zeros(unit, np.uint8)
    turned, still = np.empty(group, np.float32), np.empty(group, np.float32)
    for place in range(first, last):
        u, which = turn[place] >> 1, turn[place] & 1
        rows, h = both_rows[which][u * each : (u + 1) * each], half[which]
        scales, inverse, n = both_scales[which][u * each : (u + 1) * each], F32(1) / h, rows.size * group
        for b in range((n + BLOCK - 1) // BLOCK):
            m = min(BLOCK, n - b * BLOCK)
            unpack(both_packed[which], code[b * BLOCK : (b + 1) * BLOCK], u * blocks + b, bits[which], m)
        for j in range(rows.size):
            k = rows[j]
            row, c = y[k * group : (k + 1) * group], code[j * group : (j + 1) * group]
            step = scale_of(scales[j]) * inverse
            if rotated[k]:
                put_values(c, step, h, turned, False)
                _turn(turned, still)
                for i in range(group):
                    row[i] = stored(still[i], row[i])
            else:
                put_values(c, step, h, row, False)
    return 0
