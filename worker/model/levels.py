"""What log-linear attention has beside the recurrence that it generalizes (Guo et al. 2025, section 3.1): of
each position a weight for each level of Fenwick's tree. Knows no recurrence.

Shapes: B samples, T positions, H heads, M levels.
"""

from __future__ import annotations

from math import e, log
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scheduler.job import ModelSpec
from scheduler.mixers.log_linear import LogLinear
from worker.model.fenwick import TreeState, check_levels
from worker.model.mixer import Mixer
from worker.model.parts import Linear


class LogLinearState(NamedTuple):
    """What the convolution and the tree remember."""

    convolved: Tensor
    tree: TreeState


class Levels(Linear):
    """softplus(linear(x)), which begins at 1, its matrix at 0: then a state a level is the one state of all,
    and what tells the levels apart is learned."""

    def __init__(self, hidden: int, heads: int, most: int, n: int) -> None:
        """`n` levels, for at most so many positions."""
        super().__init__(hidden, heads * n, bias=True)
        self.heads, self.most, self.n = heads, most, n

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B,T,H,M)"""
        return F.softplus(super().forward(x_BTD)).view(*x_BTD.shape[:2], self.heads, self.n)

    def initial(self, parameter: str) -> Tensor:
        if parameter == "weight":
            return torch.zeros_like(self.weight)
        return torch.full_like(self.weight[:, 0], log(e - 1))

    def check(self, x_BTD: Tensor, state: LogLinearState | None) -> None:
        """Refuse more positions than there are levels for."""
        check_levels(x_BTD.shape[1], None if state is None else state.tree, self.most)


class WithLevels(Mixer):
    """In front of the recurrence's own class: what both log-linear forms add to it."""

    heads: int

    def __init__(self, model: ModelSpec, options: LogLinear) -> None:
        super().__init__(model, options)
        self.levels = Levels(model.hidden, self.heads, options.length_in(model), options.levels_in(model))

    def initial(self, parameter: str, rng: torch.Generator) -> Tensor | None:
        name, _, rest = parameter.partition(".")
        return self.levels.initial(rest) if name == "levels" else super().initial(parameter, rng)
