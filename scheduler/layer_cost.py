"""What closed forms of layers are made of: the sizes they are computed for, and the figures they give.

Letters: B samples, T positions, D hidden. Knows no layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

FLOAT_BYTES = 4
TOKEN_BYTES = 8

Mode = Literal["forward", "backward", "step"]
"""All positions; their gradients; one position more, after those of `length`."""


@dataclass(frozen=True, slots=True)
class LayerCost:
    """A layer's cost in one mode, as a plan sees it that was made before there is a worker."""

    flops: float
    """Of products, 2 x m x n x k each, and of Fourier transforms (`Sizes.transforms`)."""
    memory_bytes: int
    """Held beside parameters and state while it runs: what forward keeps for backward, and scratch space."""
    parameter_bytes: int
    boundary_bytes: int
    """What is handed to the next layer."""
    state_bytes: int
    """What is remembered of `length` positions while text is generated."""


class Keys(NamedTuple):
    """Keys and values that one attention has of all positions of a micro-batch, for sequences divided among
    replicas: those who hold later positions need them."""

    n_bytes: int
    window: int = 0
    """A position sees those fewer than `window` before it, itself included; 0: all of them."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The closed forms of a layer or of a part of one."""

    parameters: int
    forward_flops: float
    backward_flops: float
    saved_bytes: int
    """What forward keeps for backward, without parameters and what all layers share."""
    working_bytes: int = 0
    """What is needed once, however many micro-batches are in flight."""
    step_flops: float = 0.0
    state_bytes: int = 0
    pair_flops: float = 0.0
    """Of `forward_flops`, what grows with the square of the length; of backward's, two and a half times as
    much does."""
    keys: tuple[Keys, ...] = ()
    """Of each attention, in their order."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.parameters + other.parameters,
            self.forward_flops + other.forward_flops,
            self.backward_flops + other.backward_flops,
            self.saved_bytes + other.saved_bytes,
            self.working_bytes + other.working_bytes,
            self.step_flops + other.step_flops,
            self.state_bytes + other.state_bytes,
            self.pair_flops + other.pair_flops,
            self.keys + other.keys,
        )


NOTHING = Cost(0, 0.0, 0.0, 0)


@dataclass(frozen=True, slots=True)
class Sizes:
    """One micro-batch of `batch` samples (B) of `length` positions (T)."""

    batch: int
    length: int
    value_bytes: int
    """Of an activation that products take and give."""
    stream_bytes: int
    """Of a value of the residual stream, which norms take."""
    documents_apart: bool = False
    """Samples hold several documents that do not see each other."""

    @property
    def rows(self) -> int:
        """B x T positions."""
        return self.batch * self.length

    def product(self, inputs: int, outputs: int) -> float:
        """Flops of one product of all rows with a matrix."""
        return 2.0 * self.rows * inputs * outputs

    def linear(self, inputs: int, outputs: int, bias: bool, kept: int) -> Cost:
        """A linear map that keeps `kept` values a row for its backward, two products of forward's size."""
        forward = self.product(inputs, outputs)
        n = inputs * outputs
        return Cost(
            n + (outputs if bias else 0),
            forward,
            2 * forward,
            self.rows * kept * self.value_bytes,
            self.copies(n),
            forward / self.length,
        )

    def copies(self, n_weights: int) -> int:
        """Matrices that are wider than the products' values are copied in their width."""
        return n_weights * self.value_bytes if self.stream_bytes > self.value_bytes else 0
