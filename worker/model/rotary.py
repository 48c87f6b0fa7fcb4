"""Rotary positions (Su et al. 2021), in the half-split order of Llama's published weights.

Pairs are (i, i + width/2), each turned by position x theta^(-2i/width). Knows nothing of attention.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worker.kernels import choice
from worker.model.tables import Table


def rotate(x_BHTC: Tensor, first: int, theta: float) -> Tensor:
    """`x` turned by its positions, which are `first`, `first` + 1, ...; C is the head's width, even."""
    length, width = x_BHTC.shape[-2:]
    last = first + length
    # Tables of powers of two: while text is generated a new one is made only at each doubling.
    cos, sin = _table(1 << (last - 1).bit_length(), width, theta, x_BHTC.dtype, str(x_BHTC.device))
    if choice.runs_here(x_BHTC):
        from worker.kernels.rotary_triton import turn

        return turn(x_BHTC, cos[first:last], sin[first:last])
    low, high = x_BHTC.chunk(2, dim=-1)
    return x_BHTC * cos[first:last] + torch.cat((-high, low), dim=-1) * sin[first:last]


@Table
def _table(length: int, width: int, theta: float, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """cos and sin of every angle, (length, width) each."""
    # float32 whatever x is, as the published models computed them; more only where more was asked for.
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    turns = 1.0 / theta ** (torch.arange(0, width, 2, device=device, dtype=exact) / width)
    angles = torch.outer(torch.arange(length, device=device, dtype=exact), turns).repeat(1, 2)
    return angles.cos().to(dtype), angles.sin().to(dtype)
