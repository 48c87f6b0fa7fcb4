"""Where state spaces begin: HiPPO-LegS and the ladders that stand in for it.

HiPPO-LegS (Gu, Dao, Ermon, Rudra and Ré 2020, theorem 2) remembers a function by its coefficients of
Legendre polynomials over all of the past. Float64; knows no layer.
"""

from __future__ import annotations

from math import pi
from typing import Literal

import torch
from torch import Tensor

Init = Literal["legs", "lin", "inv"]


def legs_matrix(n: int) -> Tensor:
    """A (n,n): -sqrt((2i+1)(2j+1)) below the diagonal, -(i+1) on it, 0 above."""
    scale = (2 * torch.arange(n, dtype=torch.float64) + 1).sqrt()
    below = -torch.outer(scale, scale).tril(-1)
    return below - torch.diag(torch.arange(1, n + 1, dtype=torch.float64))


def legs_modes(n: int) -> Tensor:
    """The n/2 eigenvalues with positive imaginary part of LegS's normal part, A + p p^T with p_i =
    sqrt(i + 1/2) (Gu et al. 2022, "On the parameterization and initialization of diagonal state space
    models", section 4.1): complex128, by size."""
    p = (torch.arange(n, dtype=torch.float64) + 0.5).sqrt()
    normal = legs_matrix(n) + torch.outer(p, p)
    # It is -1/2 and a skew matrix, whose eigenvalues are those of a Hermitian one, turned.
    skew = normal + 0.5 * torch.eye(n, dtype=torch.float64)
    turns = torch.linalg.eigvalsh(-1j * skew)
    return torch.complex(torch.full((n // 2,), -0.5, dtype=torch.float64), turns[-(n // 2) :])


def modes(init: Init, n: int) -> Tensor:
    """n/2 modes, complex128: LegS's, or the same paper's S4D-Lin and S4D-Inv (equations 9 and 8)."""
    if init == "legs":
        return legs_modes(n)
    i = torch.arange(n // 2, dtype=torch.float64)
    turns = pi * i if init == "lin" else n / pi * (n / (2 * i + 1) - 1)
    return torch.complex(torch.full_like(i, -0.5), turns)
