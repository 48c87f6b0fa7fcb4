"""Sequences divided among the replicas of a stage: who holds which positions. Pure arithmetic."""

from __future__ import annotations

from typing import Literal

Split = Literal["batch", "sequence"]
"""What the replicas of a stage share: the batch, sample by sample, or every sample's sequence."""


def shard_bounds(n: int, shards: int) -> list[tuple[int, int]]:
    """[start, stop) of each shard of `n`: contiguous, all of them, sizes that differ by at most 1."""
    return [(n * j // shards, n * (j + 1) // shards) for j in range(shards)]
