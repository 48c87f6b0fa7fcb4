# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-untyped-calls=False
"""Compiled inner loops of the k-bit quantizer: largest magnitudes, codes from values, values from codes.

Small, because a loop that does one thing to one array is what a compiler makes vectors of. Knows arrays that
share a scale, or one scale a channel; refuses to know blocks and payloads.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from compression.grid import BLOCK
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

U32, F32 = np.uint32, np.float32


@njit(cache=True, nogil=True)
def largest_of(x):
    largest = U32(0)
    for i in range(x.size):
        largest = larger_magnitude(largest, loaded(x[i]))
    return largest


@njit(cache=True, nogil=True)
def group_scales(x, group, scales, start, stop):
    all_largest = U32(0)
    for k in range(start, stop):
        largest = largest_of(x[k * group : (k + 1) * group])
        scales[k] = upper_half(largest)
        all_largest = max(all_largest, largest)
    return all_largest


@njit(cache=True, nogil=True)
def channel_scales(x, scales):
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
def draw(shift, block, seed):
    low, high = shift[: BLOCK // 2], shift[BLOCK // 2 :]
    for j in range(BLOCK // 2):
        h = hash32(counter32(block * (BLOCK // 2) + j + seed))
        low[j] = low_uniform(h)
        high[j] = high_uniform(h)


@njit(cache=True, nogil=True)
def inverse_of(scale):
    return F32(1) / scale if scale > F32(0) else F32(0)


@njit(cache=True, nogil=True)
def inverses_of(scales):
    inverses = np.empty(scales.size, np.float32)
    for i in range(scales.size):
        inverses[i] = inverse_of(scale_of(scales[i]))
    return inverses


@njit(cache=True, nogil=True)
def round_codes(v, scale, shift, code, half):
    inverse = inverse_of(scale)
    for i in range(v.size):
        code[i] = rounded(loaded(v[i]), inverse, half, shift[i])


@njit(cache=True, nogil=True)
def round_each(v, inverses, shift, code, half):
    for i in range(v.size):
        code[i] = rounded(loaded(v[i]), inverses[i], half, shift[i])


@njit(cache=True, nogil=True)
def put_values(code, step, half, y, add):
    if add:
        for i in range(y.size):
            y[i] = kept(loaded(y[i]) + (level_of(code[i]) - half) * step, y[i])
    else:
        for i in range(y.size):
            y[i] = stored((level_of(code[i]) - half) * step, y[i])


@njit(cache=True, nogil=True)
def put_values_each(code, steps, half, y, add):
    for i in range(y.size):
        value = (level_of(code[i]) - half) * steps[i]
        y[i] = kept(loaded(y[i]) + value, y[i]) if add else stored(value, y[i])


@njit(cache=True, nogil=True)
def scale_bits(magnitude):
    """A magnitude's bits -> the scale that holds it."""
    return upper_half(magnitude)


@njit(cache=True, nogil=True)
def code_groups(v, scales, first, shift, code, group, half):
    """Scales (from `first` on) and codes of the groups of `v`; the bits of the largest magnitude."""
    most = U32(0)
    for g in range((v.size + group - 1) // group):
        start, stop = g * group, min(v.size, (g + 1) * group)
        w = v[start:stop]
        largest = largest_of(w)
        most = max(most, largest)
        scale = upper_half(largest)
        scales[first + g] = scale
        round_codes(w, scale_of(scale), shift[start:stop], code[start:stop], half)
    return most


@njit(cache=True, nogil=True)
def put_groups(code, scales, first, group, half, y, add):
    """Write, or add, the values of the groups of `y`, whose scales are those from `first` on."""
    inverse = F32(1) / half
    for g in range((y.size + group - 1) // group):
        start, stop = g * group, min(y.size, (g + 1) * group)
        put_values(code[start:stop], scale_of(scales[first + g]) * inverse, half, y[start:stop], add)
