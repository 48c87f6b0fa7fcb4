"""Two small graph problems under the placement search: bottleneck matching and the open tour.

*Bottleneck perfect matching*: pair the rows of a square matrix with its columns so that the
largest chosen entry is as small as possible. *Open tour*: visit every node once along a
directed path of least total weight, from any node to any other. Knows only matrices.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import minimum_spanning_tree

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

EXACT_TOUR = 14
"""Nodes up to which the open tour is solved exactly (Held-Karp: 2^n n^2 work)."""

BATCHED_MATCHING = 8
"""Size up to which many matchings at once go through the subset recursion (2^n n work, vectorised)."""

_CHUNK = 256


def bottleneck_matching(weight: NDArray[np.generic]) -> tuple[float, list[int]]:
    """The least possible largest entry of a perfect matching of `weight` [n, n], and column[row].

    Threshold method (Gross 1959, with augmenting paths): start from the bound "every row and every
    column takes at least its own minimum"; grow a matching with entries up to the threshold; when
    no augmenting path exists, the threshold must rise to the cheapest entry that leaves the
    explored rows. O(n^4) at worst, near n^2 where the bound is tight. ValueError if not square.
    """
    if weight.ndim != 2 or weight.shape[0] != weight.shape[1] or weight.shape[0] == 0:
        raise ValueError(f"found a matrix of shape {weight.shape}, required a square one")
    rows = weight.tolist()
    n = len(rows)
    threshold = float(matching_bound(weight[None])[0])
    row_of: list[int] = [-1] * n
    for root in range(n):
        # `parent[c]`: the row from which column c was reached; the tree grows until a free column.
        parent = [-1] * n
        reached_rows, frontier = [root], [root]
        end = -1
        while end < 0:
            while frontier and end < 0:
                row = frontier.pop()
                for col, value in enumerate(rows[row]):
                    if parent[col] < 0 and value <= threshold:
                        parent[col] = row
                        if row_of[col] < 0:
                            end = col
                            break
                        reached_rows.append(row_of[col])
                        frontier.append(row_of[col])
            if end < 0:
                threshold = min(rows[r][c] for r in reached_rows for c in range(n) if parent[c] < 0)
                frontier = list(reached_rows)
        while end >= 0:  # flip the path back to the root
            row = parent[end]
            before = row_of.index(row) if row in row_of else -1
            row_of[end] = row
            end = before if row != root else -1
    column_of = [0] * n
    for col, row in enumerate(row_of):
        column_of[row] = col
    return float(max(rows[r][c] for r, c in enumerate(column_of))), column_of


def matching_bound(weight: NDArray[np.generic]) -> NDArray[np.generic]:
    """A lower bound on the bottleneck of each matrix [B, n, n] -> [B]: the largest row or column minimum."""
    by_row = weight.min(axis=2).max(axis=1)
    by_col = weight.min(axis=1).max(axis=1)
    bound: NDArray[np.generic] = np.maximum(by_row, by_col)
    return bound


@cache
def _subset_steps(n: int) -> tuple[tuple[Ints, Ints], ...]:
    """A row each: [subsets of that size, size] -> position of the subset less a column, and the column."""
    steps = []
    position = {0: 0}
    for size in range(1, n + 1):
        before, columns, here = [], [], {}
        for at, subset in enumerate(combinations(range(n), size)):
            mask = sum(1 << c for c in subset)
            here[mask] = at
            before.append([position[mask ^ (1 << c)] for c in subset])
            columns.append(list(subset))
        steps.append((np.array(before), np.array(columns)))
        position = here
    return tuple(steps)


def bottleneck_values(weight: NDArray[np.generic]) -> NDArray[np.generic]:
    """The bottleneck of each matrix [B, n, n] -> [B], in the matrices' own type (integers are fastest).

    Up to n = 8: f(subset of columns) = min over its last column of max(f(rest), entry), all matrices
    at once. Larger: a matching each, one after the other.
    """
    b, n = weight.shape[0], weight.shape[1]
    if b == 0 or n == 1:
        one: NDArray[np.generic] = weight[:, 0, 0]
        return one
    out = np.empty(b, weight.dtype)
    if n > BATCHED_MATCHING:
        for k in range(b):
            out[k] = bottleneck_matching(weight[k])[0]
        return out
    for start in range(0, b, _CHUNK):
        part = np.ascontiguousarray(weight[start : start + _CHUNK].transpose(1, 2, 0))
        f = part[0]
        for row, (before, columns) in enumerate(_subset_steps(n)):
            if row:
                f = np.maximum(f[before], part[row][columns]).min(axis=1)
        out[start : start + _CHUNK] = f[0]
    return out


def path_cost(weight: Floats, order: list[int]) -> float:
    """The sum of `weight` [n, n] along `order`."""
    return float(sum(weight[a, b] for a, b in pairwise(order)))


def open_tour(weight: Floats) -> tuple[float, list[int]]:
    """The shortest directed path through all nodes of `weight` [n, n] and its length.

    Exact up to EXACT_TOUR nodes; beyond, greedy and bisected starts improved by moving, turning and
    swapping segments until nothing helps (`tour_bound` says how far from the best it can be).
    """
    n = weight.shape[0]
    if n <= 1:
        return 0.0, list(range(n))
    return _held_karp(weight) if n <= EXACT_TOUR else _improved_tour(weight)


@cache
def _levels(n: int) -> tuple[Ints, ...]:
    """Masks of 1, 2, … n bits."""
    masks = np.arange(1 << n)
    count = np.array([m.bit_count() for m in range(1 << n)])
    return tuple(masks[count == size] for size in range(1, n + 1))


def _subset_table(weight: Floats) -> Floats:
    """f[mask, last, b]: the shortest path over the nodes of mask that ends in last; weight [n, n, B]."""
    n, _, b = weight.shape
    f = np.full((1 << n, n, b), np.inf)
    nodes = np.arange(n)
    f[1 << nodes, nodes] = 0.0
    for masks in _levels(n)[:-1]:
        for j in range(n):
            free = masks[(masks >> j) & 1 == 0]
            f[free | (1 << j), j] = (f[free] + weight[None, :, j]).min(axis=1)
    return f


def tour_lengths(weight: Floats) -> Floats:
    """The open tour's length for each matrix [B, n, n] -> [B], n at most EXACT_TOUR."""
    if weight.shape[1] <= 1:
        return np.zeros(weight.shape[0])
    out = [
        _subset_table(np.ascontiguousarray(weight[k : k + 64].transpose(1, 2, 0)))[-1].min(axis=0)
        for k in range(0, len(weight), 64)
    ]
    return np.concatenate(out) if out else np.zeros(0)


def _held_karp(weight: Floats) -> tuple[float, list[int]]:
    f = _subset_table(weight[:, :, None])[:, :, 0]
    mask = len(f) - 1
    last = int(f[mask].argmin())
    length = float(f[mask, last])
    order = [last]
    while mask & (mask - 1):
        mask ^= 1 << last
        last = int((f[mask] + weight[:, last]).argmin())
        order.append(last)
    return length, order[::-1]


def _improved_tour(weight: Floats) -> tuple[float, list[int]]:
    n = weight.shape[0]
    masked = weight + np.diag(np.full(n, np.inf))
    from scheduler.tour_moves import move_segments  # compiled: who has few stages does not wait for it

    starts = np.argsort(masked.min(axis=1), kind="stable")[: min(n, 8)]
    found = []
    for s in starts:
        order = np.array(_nearest_neighbour(masked, int(s)))
        move_segments(np.ascontiguousarray(weight), order)
        found.append((path_cost(weight, order.tolist()), order.tolist()))
    return min(found)


def _nearest_neighbour(masked: Floats, start: int) -> list[int]:
    free = np.ones(len(masked), dtype=bool)
    order = [start]
    free[start] = False
    while free.any():
        nearest = int(np.where(free, masked[order[-1]], np.inf).argmin())
        order.append(nearest)
        free[nearest] = False
    return order


def tour_bound(weight: Floats) -> float:
    """A lower bound on the open tour: its length up to EXACT_TOUR nodes; beyond, the larger of the
    minimum spanning tree (links both ways at their cheaper direction) and the cheapest successor
    assignment with one end left open."""
    n = weight.shape[0]
    if n <= EXACT_TOUR:
        exact, _ = open_tour(weight)
        return exact
    both = np.minimum(weight, weight.T)
    shift = 1.0 + float(np.abs(both).max())  # csgraph takes 0 as "no edge": every tree has n - 1 edges
    tree = float(minimum_spanning_tree(both + shift).sum()) - shift * (n - 1)
    padded = np.full((n + 1, n + 1), 0.0)
    padded[:n, :n] = weight
    np.fill_diagonal(padded, shift * n)
    rows, cols = linear_sum_assignment(padded)
    successors = float(padded[rows, cols].sum())
    bound: float = max(tree, successors)
    return bound
