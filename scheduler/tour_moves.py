"""Or-opt with turning, compiled: how an open tour of many nodes is made shorter.

Knows a matrix and an order of its nodes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scheduler.compiled import compiled


@compiled
def move_segments(weight: NDArray[np.float64], order: NDArray[np.int64]) -> None:
    """Take a segment of `order`, put it or its reverse where it costs least, until nothing helps.

    The ends of the path are free places, too. 2-opt is included: turning a segment in place.
    """
    n = len(order)
    length = 0.0
    for k in range(n - 1):
        length += weight[order[k], order[k + 1]]
    rest, piece = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
    improved = True
    while improved:
        improved = False
        for size in range(1, n):
            for at in range(n - size + 1):
                left = n - size
                rest[:at] = order[:at]
                rest[at:left] = order[at + size :]
                base = 0.0
                for k in range(left - 1):
                    base += weight[rest[k], rest[k + 1]]
                for turned in range(2):
                    inner = 0.0
                    for k in range(size):
                        piece[k] = order[at + size - 1 - k] if turned else order[at + k]
                        if k:
                            inner += weight[piece[k - 1], piece[k]]
                    first, last = piece[0], piece[size - 1]
                    best, where = np.inf, 0
                    for k in range(left + 1):  # in front of rest[k]
                        put = 0.0
                        if k > 0:
                            put += weight[rest[k - 1], first]
                        if k < left:
                            put += weight[last, rest[k]]
                        if 0 < k < left:
                            put -= weight[rest[k - 1], rest[k]]
                        if put < best:
                            best, where = put, k
                    found = base + inner + best
                    if found < length - 1e-12 * (1 + abs(length)):
                        order[:where] = rest[:where]
                        order[where : where + size] = piece[:size]
                        order[where + size :] = rest[where:left]
                        length = found
                        improved = True
                        break
