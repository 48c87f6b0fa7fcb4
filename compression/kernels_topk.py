# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False, disallow-untyped-calls=False
"""The compiled choice of the k largest magnitudes of x + owed, two passes over the tensor.

The first adds and counts magnitudes by the upper half of their bits, which orders them as magnitudes are
ordered; so it is known which of these classes the k-th lies in. The second gathers what lies in it or
above, and only that is looked at again. Of equal magnitudes the first places count. Knows tensors; refuses
to know payloads.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from compression.machine import larger_magnitude, loaded
from compression.parallel import in_parts
from compression.quantize import require_finite

U32 = np.uint32
CLASSES = 1 << 15
"""The upper half of a magnitude's bits."""
_PART = 1024
"""Values that are cut over threads together."""


def take_largest(x: Tensor, owed: Tensor, k: int, threads: int) -> Tensor:
    """int32 (k,): the places of the largest magnitudes of x + owed, ascending; `owed` becomes that sum.

    `owed` is float32, contiguous, of x's shape, on the CPU. Raises NotFinite.
    """
    r, n = owed.view(-1).numpy(), owed.numel()
    v = x.float().contiguous().view(-1).numpy()

    def count(start: int, stop: int) -> np.ndarray:
        counts = np.zeros(CLASSES, np.int64)
        _add_and_count(v[start * _PART : stop * _PART], r[start * _PART : stop * _PART], counts)
        return counts

    parts = in_parts(count, -(-n // _PART), threads)
    counts = np.sum(parts, axis=0) if parts else np.zeros(CLASSES, np.int64)
    require_finite(int(counts.nonzero()[0].max(initial=0)) << 16)
    at_least = counts[::-1].cumsum()[::-1]
    lowest = int((at_least >= k).nonzero()[0].max(initial=0))

    def gather(start: int, stop: int) -> np.ndarray:
        found = np.empty(min(int(at_least[lowest]), (stop - start) * _PART), np.int32)
        part = r[start * _PART : stop * _PART]
        return found[: int(_gather(part, U32(lowest << 16), start * _PART, found))]

    gathered = in_parts(gather, -(-n // _PART), threads)
    places = np.concatenate(gathered) if gathered else np.empty(0, np.int32)
    return torch.from_numpy(_first_largest(r, places, k))


def _first_largest(r: np.ndarray, places: np.ndarray, k: int) -> np.ndarray:
    """Of `places`, ascending, the k with the largest magnitudes."""
    magnitudes = np.abs(r[places])
    if len(places) == k:
        return places
    least = np.partition(magnitudes, len(places) - k)[len(places) - k]
    chosen = magnitudes > least
    equal = np.flatnonzero(magnitudes == least)
    chosen[equal[: k - int(chosen.sum())]] = True
    return np.compress(chosen, places)


@njit(cache=True, nogil=True)
def _add_and_count(x, owed, counts):
    for i in range(x.size):
        owed[i] += x[i]
        counts[larger_magnitude(U32(0), loaded(owed[i])) >> U32(16)] += 1


@njit(cache=True, nogil=True)
def _gather(owed, least, first, found):
    n = 0
    for i in range(owed.size):
        if larger_magnitude(U32(0), loaded(owed[i])) >= least:
            found[n] = first + i
            n += 1
    return n
