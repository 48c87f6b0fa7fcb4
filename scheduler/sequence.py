"""Sequences divided among the replicas of a stage: who holds which positions. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Literal

Split = Literal["batch", "sequence"]
"""What the replicas of a stage share: the batch, sample by sample, or every sample's sequence."""


def shard_bounds(n: int, shards: int) -> list[tuple[int, int]]:
    """[start, stop) of each shard of `n`: contiguous, all of them, sizes that differ by at most 1."""
    return [(n * j // shards, n * (j + 1) // shards) for j in range(shards)]


def bounds_of(sizes: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """[start, stop) of contiguous shards of these sizes."""
    return tuple(pairwise(accumulate(sizes, initial=0)))


def earlier_shards(bounds: Sequence[tuple[int, int]], index: int, window: int = 0) -> range:
    """The shards before `index` of which it sees any position, the nearest first; `window`: a position sees
    those fewer than so many before it, 0: all."""
    least = bounds[index][0] - window + 1 if window else 0
    last = next(j for j in range(index + 1) if bounds[j][1] > least)
    return range(index - 1, last - 1, -1)


def passed_on(bounds: Sequence[tuple[int, int]], index: int, window: int = 0) -> range:
    """The shards, `index` among them, that the next one sees: it hands these on."""
    if index + 1 == len(bounds):
        return range(0)
    return earlier_shards(bounds, index + 1, window)
