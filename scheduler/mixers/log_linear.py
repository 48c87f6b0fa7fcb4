"""Log-linear attention, over whichever recurrence: a state for each level of Fenwick's tree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.layer_cost import Cost, Sizes
from scheduler.mixers.spec import Limited

if TYPE_CHECKING:
    from scheduler.job import ModelSpec


class LogLinear(Limited):
    """`length`: positions that there are levels for."""

    def levels_in(self, model: ModelSpec) -> int:
        """A position's own, and one for each binary digit of the last position."""
        return 1 + (self.length_in(model) - 1).bit_length()

    def levels_cost(self, model: ModelSpec, sizes: Sizes, heads: int, values: int) -> Cost:
        """The levels' weights before and after softplus; of the states of `values` each, those that the plain
        recurrence has not."""
        n = heads * self.levels_in(model)
        states = (self.levels_in(model) - 2) * sizes.batch * values
        weights = sizes.linear(model.hidden, n, bias=True, kept=2 * n)
        return weights + Cost(0, 0.0, 0.0, 0, state_bytes=states * sizes.value_bytes)
