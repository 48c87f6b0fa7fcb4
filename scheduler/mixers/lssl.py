"""LSSL, a state space with a whole matrix: options and closed forms. Letters: T positions, D hidden, N values
of state a channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from scheduler.layer_cost import Cost, Sizes
from scheduler.mixers.convolution import Convolved

if TYPE_CHECKING:
    from scheduler.job import ModelSpec


def doublings(length: int) -> tuple[int, int]:
    """How often powers are doubled for a position's low and for its high digit, whose products make `length`
    positions: low takes 2^first values, high at most 2^second."""
    bits = (length - 1).bit_length()
    return (bits + 1) // 2, bits // 2


def solve_flops(n: int, columns: int, factored: bool = False) -> float:
    """A system of `n` equations for so many right sides: factors (2/3 n^3, rounded down), then two triangles
    for each."""
    return 2.0 * n * n * columns + (0 if factored else 2 * n**3 // 3)


class LsslSpec(Convolved):
    """A state space whose matrix is whole and learned (Gu et al. 2021), HiPPO-LegS's to begin with; then GELU
    and a gated projection. What `s4d` is the cheap form of."""

    name: ClassVar[str] = "lssl"

    state: Annotated[int, Field(ge=1)] = 64
    """Values of state a channel. The matrix is all channels' in common; their steps differ."""

    def cost(self, model: ModelSpec, sizes: Sizes) -> Cost:
        """Kept, as of S4D: the input, the filtered, GELU's output, the projection's halves and the gate."""
        d = model.hidden
        conv = self.conv_cost(sizes, d, self._filters(d, sizes))
        return conv + sizes.linear(d, 2 * d, bias=False, kept=(1 + 1 + 2 + 1) * d)

    def _filters(self, channels: int, sizes: Sizes) -> Cost:
        """The matrix of a step, solved for, and its powers with the writes and with the reads; all of it done
        again in backward. A step solves for that matrix too."""
        n = self.state
        low, high = doublings(sizes.length)
        solved = channels * solve_flops(n, n + 1)
        solved_back = channels * (solve_flops(n, n + 1, factored=True) + 2.0 * n * n * (n + 1))
        squares = low + max(0, high - 1)
        krylov = 2.0 * n * n * ((1 << low) - 1 + (1 << high) - 1) + squares * 2.0 * n**3
        products = channels * (krylov + 2.0 * n * (1 << low) * (1 << high))
        parameters = n * n + n + channels * (2 + n)  # the matrix, writes; step, skip and reads
        step = solved + 2.0 * sizes.batch * channels * (n * n + n)
        return Cost(
            parameters,
            solved + products,
            solved + solved_back + 3 * products,
            0,
            working_bytes=4 * channels * n * n * (2 + low + high),
            step_flops=step,
            state_bytes=sizes.batch * channels * n * sizes.value_bytes,
        )
