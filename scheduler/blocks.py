"""A large network made small: blocks of near devices, each of which stands for one.

A plan of the small network, whose batch is as many times smaller, becomes a plan of the large one with that
many copies of every pipeline, side by side. Devices of one block are in one region and as fast as
each other, so what a copy costs is what its model cost, but for latencies within blocks. Knows rows of
devices and numbers; searches nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import gcd

import numpy as np

from scheduler.step_kernels import Ints, Layout
from scheduler.step_seeds import Grounds


def fold_of(n_devices: int, n_micro_batches: int, most: int, replicas: Sequence[int]) -> int:
    """How many devices a block has: the fewest with which at most `most` blocks stand for `n_devices`.

    It divides the micro-batches, so that every copy gets as many, and, if one number of `replicas` alone is
    wanted, that number. 1: the network is small, or cannot be folded.
    """
    if n_devices <= most:
        return 1
    common = n_micro_batches if len(set(replicas)) > 1 else gcd(n_micro_batches, replicas[0])
    divisors = [k for k in range(1, common + 1) if common % k == 0 and k <= n_devices]
    return next((k for k in divisors if n_devices <= most * k), divisors[-1])


def blocks_of(grounds: Grounds, fold: int) -> Ints:
    """[B, fold]: the devices of each block, block by block along the first row; what a region has left over
    after its whole blocks is in none."""
    row = grounds.rows[0][1]
    same = list(zip(grounds.places[row].tolist(), grounds.speeds[row].tolist(), strict=True))
    ends = [0, *(k + 1 for k, (a, b) in enumerate(pairwise(same)) if a != b), len(row)]
    whole = [row[k : k + fold] for a, b in pairwise(ends) for k in range(a, b - fold + 1, fold)]
    return np.array(whole, dtype=np.int64).reshape(-1, fold)


def unfolded(layout: Layout, blocks: Ints) -> Layout:
    """The layout of the large network that `layout`, of the blocks, stands for."""
    fold = blocks.shape[1]
    n_replicas, n_stages = layout.cells.shape
    cells = blocks[layout.cells].transpose(0, 2, 1).reshape(n_replicas * fold, n_stages)
    return Layout(np.ascontiguousarray(cells), layout.cut.copy(), np.repeat(layout.shares, fold))
