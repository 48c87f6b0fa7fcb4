# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-untyped-calls=False
"""Compiled passes of the k-bit quantizer over a tensor: blocks of 1024 values, each read and written once.

A block is loaded, scaled, rounded and packed while it lies in the first-level cache. Where a group lies
within a block its scale is found on the way (`encode`, `encode_change`, `encode_owed`); other scales are
found before (`encode_scaled`). Knows arrays; refuses to know tensors.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from compression.grid import BLOCK
from compression.kernels_packing import pack, unpack
from compression.kernels_rounding import (
    code_groups,
    draw,
    inverses_of,
    put_groups,
    put_values,
    put_values_each,
    round_codes,
    round_each,
)
from compression.machine import loaded, scale_of

U32, F32 = np.uint32, np.float32
FUSED, GROUP, TENSOR, CHANNEL = range(4)
"""Which scale a value has. FUSED: groups that lie within a block, whose scales are found on the way."""


@njit(cache=True, nogil=True)
def encode(x, scales, packed, first, last, bits, half, group, seed, stochastic):
    """Blocks first .. last - 1; the bits of their largest magnitude."""
    code, shift = np.zeros(BLOCK, np.uint8), np.full(BLOCK, F32(0.5), np.float32)
    most = U32(0)
    for block in range(first, last):
        at = block * BLOCK
        v = x[at : at + BLOCK]
        if stochastic:
            draw(shift, block, seed)
        most = max(most, code_groups(v, scales, at // group, shift, code, group, half))
        pack(code, packed, block, bits, v.size)
    return most


@njit(cache=True, nogil=True)
def encode_change(x, memory, scales, packed, first, last, bits, half, group, seed, stochastic):
    """As `encode`, of x - memory; memory becomes memory + what the other end decodes."""
    code, shift = np.zeros(BLOCK, np.uint8), np.full(BLOCK, F32(0.5), np.float32)
    buffer, most = np.empty(BLOCK, np.float32), U32(0)
    for block in range(first, last):
        at = block * BLOCK
        v, m = x[at : at + BLOCK], memory[at : at + BLOCK]
        d = buffer[: v.size]
        for i in range(v.size):
            d[i] = loaded(v[i]) - loaded(m[i])
        if stochastic:
            draw(shift, block, seed)
        most = max(most, code_groups(d, scales, at // group, shift, code, group, half))
        put_groups(code, scales, at // group, group, half, m, True)
        pack(code, packed, block, bits, v.size)
    return most


@njit(cache=True, nogil=True)
def encode_owed(x, owed, scales, packed, first, last, bits, half, group, seed, stochastic):
    """As `encode`, of x + owed; owed becomes what the other end lacks of that."""
    code, shift = np.zeros(BLOCK, np.uint8), np.full(BLOCK, F32(0.5), np.float32)
    read, most = np.empty(BLOCK, np.float32), U32(0)
    for block in range(first, last):
        at = block * BLOCK
        v, r = x[at : at + BLOCK], owed[at : at + BLOCK]
        y = read[: v.size]
        for i in range(v.size):
            r[i] += loaded(v[i])
        if stochastic:
            draw(shift, block, seed)
        most = max(most, code_groups(r, scales, at // group, shift, code, group, half))
        put_groups(code, scales, at // group, group, half, y, False)
        for i in range(v.size):
            r[i] -= y[i]
        pack(code, packed, block, bits, v.size)
    return most


@njit(cache=True, nogil=True)
def encode_scaled(x, scales, packed, first, last, bits, half, mode, group, seed, stochastic):
    """Blocks first .. last - 1 under scales that are known. `group`: values that follow one another under
    a scale, or (CHANNEL) scales that follow one another."""
    code, shift = np.zeros(BLOCK, np.uint8), np.full(BLOCK, F32(0.5), np.float32)
    each = inverses_of(scales) if mode == CHANNEL else np.empty(0, np.float32)
    for block in range(first, last):
        at = block * BLOCK
        v = x[at : at + BLOCK]
        if stochastic:
            draw(shift, block, seed)
        start = 0
        while start < v.size:
            k = (at + start) // group
            stop = min(v.size, (k + 1) * group - at)
            w, u, c = v[start:stop], shift[start:stop], code[start:stop]
            if mode == CHANNEL:
                round_each(w, each[(at + start) % group :], u, c, half)
            else:
                round_codes(w, scale_of(scales[k]), u, c, half)
            start = stop
        pack(code, packed, block, bits, v.size)


@njit(cache=True, nogil=True)
def decode(y, scales, packed, first, last, bits, half, mode, group, add):
    """Write, or add, the values of blocks first .. last - 1."""
    code, inverse = np.empty(BLOCK, np.uint8), F32(1) / half
    steps = np.empty(scales.size if mode == CHANNEL else 0, np.float32)
    for i in range(steps.size):
        steps[i] = scale_of(scales[i]) * inverse
    for block in range(first, last):
        at = block * BLOCK
        v = y[at : at + BLOCK]
        unpack(packed, code, block, bits, v.size)
        if mode == FUSED:
            put_groups(code, scales, at // group, group, half, v, add)
            continue
        start = 0
        while start < v.size:
            k = (at + start) // group
            stop = min(v.size, (k + 1) * group - at)
            c, w = code[start:stop], v[start:stop]
            if mode == CHANNEL:
                put_values_each(c, steps[(at + start) % group :], half, w, add)
            else:
                put_values(c, scale_of(scales[k]) * inverse, half, w, add)
            start = stop
