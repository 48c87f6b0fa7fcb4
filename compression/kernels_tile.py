# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-untyped-calls=False
"""The tile codec's compiled loops on a CPU: which groups to rotate, and rows in and out of their two widths.

Twins of `tile.rotate_outliers` and of the indexing around it, a pass over the tensor each. Knows arrays;
refuses to know payloads.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from compression.parallel import in_parts

F32 = np.float32


def scan(x: Tensor, outlier: float, threads: int) -> tuple[Tensor, Tensor]:
    """(which rows to rotate: bool (n,), the largest magnitude of each afterwards: float32 (n,)).

    `x` is float32 (n, group). A row is rotated if its largest magnitude is above `outlier` times its root
    mean square, and the rotation makes it smaller.
    """
    rotated, largest = torch.empty(len(x), dtype=torch.bool), torch.empty(len(x))
    r, m, v = rotated.numpy(), largest.numpy(), x.numpy()
    in_parts(lambda a, b: int(_scan(v, F32(outlier * outlier), r, m, a, b)), len(x), threads)
    return rotated, largest


def split(x: Tensor, rotated: Tensor, is_high: Tensor, threads: int) -> tuple[Tensor, Tensor]:
    """The rows of (n, group), rotated where that is said, in two tensors: those that are high, the others."""
    n_high, group = int(is_high.sum()), x.shape[1]
    high, low = torch.empty(n_high, group), torch.empty(len(x) - n_high, group)
    places, flags = _places(is_high), (rotated.numpy(), is_high.numpy())
    arrays = (x.numpy(), high.numpy(), low.numpy())
    in_parts(lambda a, b: int(_split(*arrays, *flags, places, a, b)), len(x), threads)
    return high, low


def join(high: Tensor, low: Tensor, rotated: Tensor, is_high: Tensor, threads: int) -> Tensor:
    """Inverse of `split`: float32 (n, group)."""
    x = torch.empty(len(is_high), high.shape[1])
    places, flags = _places(is_high), (rotated.numpy(), is_high.numpy())
    arrays = (x.numpy(), high.numpy(), low.numpy())
    in_parts(lambda a, b: int(_join(*arrays, *flags, places, a, b)), len(is_high), threads)
    return x


def _places(is_high: Tensor) -> np.ndarray:
    """int64 (n,): the row of each group in its own tensor."""
    flags = is_high.numpy()
    above = np.cumsum(flags)
    return np.where(flags, above - 1, np.arange(len(flags)) - above)


@njit(cache=True, nogil=True)
def _turn(row, out):
    """The orthonormal Hadamard transform of one row, by the butterflies of `tile.hadamard`."""
    n = row.size
    for i in range(n):
        out[i] = row[i]
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
        total += row[i] * row[i]
    return total


@njit(cache=True, nogil=True, fastmath={"reassoc", "nnan", "nsz"})
def _largest(row):
    largest = F32(0)
    for i in range(row.size):
        largest = max(largest, abs(row[i]))
    return largest


@njit(cache=True, nogil=True)
def _scan(x, most, rotated, largest, first, last):
    turned = np.empty(x.shape[1], np.float32)
    for k in range(first, last):
        row = x[k]
        here = _largest(row)
        rotated[k] = False
        if here * here * F32(row.size) > most * _squares(row):
            _turn(row, turned)
            after = _largest(turned)
            if after < here:
                rotated[k], here = True, after
        largest[k] = here
    return 0


@njit(cache=True, nogil=True)
def _split(x, high, low, rotated, is_high, places, first, last):
    for k in range(first, last):
        into = high[places[k]] if is_high[k] else low[places[k]]
        if rotated[k]:
            _turn(x[k], into)
        else:
            into[:] = x[k]
    return 0


@njit(cache=True, nogil=True)
def _join(x, high, low, rotated, is_high, places, first, last):
    for k in range(first, last):
        source = high[places[k]] if is_high[k] else low[places[k]]
        if rotated[k]:
            _turn(source, x[k])
        else:
            x[k][:] = source
    return 0
