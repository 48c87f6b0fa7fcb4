"""A long convolution as matrix products: how it is cut, and its closed forms.

Letters: B samples, T positions, D channels, n pieces of h x l positions.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from scheduler.layer_cost import Cost, Sizes

MOST_POSITIONS = 4096
"""Of a piece: a transform of twice as many points is two products with matrices of about 128 x 128."""


class Pieces(NamedTuple):
    n: int
    h: int
    l: int  # noqa: E741
    """A power of two."""

    @property
    def positions(self) -> int:
        """Of one piece."""
        return self.h * self.l


@lru_cache(maxsize=64)
def pieces_of(length: int) -> Pieces:
    """As equal as they go; 2 h and l about alike, so that both matrices are small."""
    n = -(-length // MOST_POSITIONS)
    each = -(-length // n)
    l = 1 << ((2 * each).bit_length() - 1) // 2  # noqa: E741
    h = -(-each // l)
    return Pieces(-(-length // (h * l)), h, l)


def matrix_conv_cost(sizes: Sizes, channels: int, kernel: Cost) -> Cost:
    """As `conv_cost`: two products for each transform of inputs, filters and results. Backward does all but
    the last product again, and has one of each one's size for its gradient. At work are the spectra."""
    n, h, l = pieces_of(sizes.length)  # noqa: E741
    rows = 2 * (h + 1)
    signals = channels * n * (sizes.batch + 1)
    results = channels * n * sizes.batch
    columns = 2.0 * (h + 1) * (2 * l) ** 2
    last = results * 2.0 * rows * l * (h if n == 1 else 2 * h)
    forward = signals * (2.0 * rows * h * l + columns) + results * columns + last
    spectra = 3 * (signals + results) * rows * l * 4
    kept = sizes.rows * channels * sizes.value_bytes
    return kernel + Cost(0, forward, 2 * forward - last, kept, working_bytes=spectra)
