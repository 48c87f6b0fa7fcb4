"""Fenwick's tree over positions: which stretch of the past a position is in, seen from another.

Position t is its own level 0. The positions before it fall into one stretch for each 1 in t's binary digits,
that of digit l - 1 being level l and 2^(l-1) long, so s is at level bit_length(t XOR s). Knows no layer.

Shapes: B samples, T positions, H heads, M levels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from worker.model.layer import TooManyPositions


def levels_between(length: int, device: torch.device | None = None) -> Tensor:
    """(T,T) int64: the level of s (column) seen from t (row)."""
    at = torch.arange(length, device=device)
    apart, level = at[:, None] ^ at, torch.zeros(length, length, dtype=torch.int64, device=device)
    while bool((apart > 0).any()):
        level += apart > 0
        apart = apart >> 1
    return level


def spread(weights_BTHM: Tensor) -> Tensor:
    """(B,H,T,T): the weight of each pair's level at row t, column s."""
    length = weights_BTHM.shape[1]
    levels = levels_between(length, weights_BTHM.device)
    # Later positions have no level of t's; where the matrix is 0 any will do.
    levels = levels.tril()
    return weights_BTHM.transpose(1, 2).gather(-1, levels.expand(*weights_BTHM.shape[0:3:2], -1, -1))


def tree_lengths(n: int) -> tuple[int, int]:
    """The leaves of a whole tree over `n`, and its levels."""
    levels = (n - 1).bit_length()
    return 1 << levels, levels


def in_pairs(x: Tensor, half: int) -> Tensor:
    """(B,c,…) -> (B,pairs,2,half,…): neighbouring stretches of `half` chunks, left and right."""
    return x.reshape(len(x), -1, 2, half, *x.shape[2:])


class TreeState(NamedTuple):
    """What was written in each stretch of the positions seen: `stretches` (B,M-1,…) at levels 1, 2, …,
    0 where there is none."""

    stretches: Tensor
    seen: int

    @staticmethod
    def empty(like: Tensor, n_levels: int, shape: tuple[int, ...]) -> TreeState:
        return TreeState(like.new_zeros(1, n_levels - 1, *shape), 0)

    def faded(self, factor: Tensor) -> TreeState:
        return TreeState(self.stretches * factor, self.seen)

    def behind(self, written: Tensor) -> TreeState:
        """With a position more, which wrote `written` (B,…): as in counting, it takes up every stretch up to
        the first that there is none of."""
        ones = (~self.seen & (self.seen + 1)).bit_length() - 1
        kept = self.stretches.expand(len(written), *self.stretches.shape[1:])
        whole = kept[:, :ones].sum(1) + written
        if ones == kept.shape[1]:  # the last position that there are levels for
            return TreeState(torch.zeros_like(kept), self.seen + 1)
        parts = (torch.zeros_like(kept[:, :ones]), whole[:, None], kept[:, ones + 1 :])
        return TreeState(torch.cat(parts, dim=1), self.seen + 1)


def check_levels(new: int, state: TreeState | None, most: int) -> None:
    """Refuse more positions than there are levels for."""
    found = new + (0 if state is None else state.seen)
    if found > most:
        raise TooManyPositions(
            f"found a sequence of {found} positions; required at most {most}, for which there are levels:"
            " shorten it, or train a model with more (max_positions, or length= of the part)"
        )
