# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-untyped-calls=False
"""Compiled loops that pack codes of 1 to 8 bits into bytes, a block of 1024 at a time, and unpack them.

The layout is `quantize.py`'s: a width is cut into parts, a part's lanes lie over one another, so that eight
codes are moved as one word. Knows arrays of one block; refuses to know what a code means.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from compression.grid import BLOCK

U64 = np.uint64
MASKS = np.array([0, 0x0101010101010101, 0x0303030303030303, 0, 0x0F0F0F0F0F0F0F0F], dtype=np.uint64)
"""[width]: that many low bits of each of eight bytes."""


@njit(cache=True, nogil=True)
def pack(code, packed, block, bits, m):
    """Put the `m` codes of block `block` where they belong in `packed`."""
    out = packed[block * (BLOCK * bits // 8) :]
    if m == BLOCK:
        _pack_whole(code, out[: BLOCK * bits // 8], bits)
    else:
        _pack_rest(code, out, bits, m)


@njit(cache=True, nogil=True)
def unpack(packed, code, block, bits, m):
    """Inverse of `pack`."""
    out = packed[block * (BLOCK * bits // 8) :]
    if m == BLOCK:
        _unpack_whole(out[: BLOCK * bits // 8], code, bits)
    else:
        _unpack_rest(out, code, bits, m)


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
