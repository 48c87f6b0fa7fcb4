"""What a part of a block is: it mixes positions, or the channels of each position.

Knows no norms and no residual stream; those are the block's. Shapes: B samples, T positions, D hidden;
G groups of channels that are mixed alike, E channels of a group (G x E values a position).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from worker.model.layer import ModelError, State
from worker.model.ring import Shard


class Mixer(nn.Module):
    """One part: (B,T,D) -> (B,T,D)."""

    residual: ClassVar[str] = "out.weight"
    """The parameter whose product is added to the residual stream; drawn smaller the deeper the model."""

    def begin(self) -> State:
        """The state before the first position; () where positions are not mixed."""
        return ()

    def in_shard(self, shard: Shard) -> State:
        """As `Layer.in_shard`; () where positions are not mixed."""
        del shard
        return ()

    @abstractmethod
    def forward(self, x_BTD: Tensor, state: State = None) -> tuple[Tensor, State]:
        """As `Layer.forward`."""

    @abstractmethod
    def dense(self, x_BTD: Tensor) -> Tensor:
        """The same from its definition, with every matrix whole: for small sizes, and for comparing."""

    def initial(self, parameter: str, rng: torch.Generator) -> Tensor | None:
        """What a parameter begins with that is neither a matrix, a norm's scale nor a bias."""
        del parameter, rng
        return None


class SequenceMixer(Mixer):
    """A part that multiplies values with a matrix of (positions, positions), which may depend on x.

    If its spec `keeps_documents_apart`, forward takes a third argument: (B,T), the number of each position's
    document in the sample. No position then takes anything of another document.
    """

    def in_shard(self, shard: Shard) -> State:
        del shard
        raise ModelError(
            f"found {type(self).__name__} in a stage that holds shards of sequences; required attention, the"
            " one part that looks at other positions and can be so divided"
        )

    @abstractmethod
    def as_matrix(self, x_BTD: Tensor) -> Tensor:
        """(B,G,T,T): what position t (row) takes of position s (column)."""

    @abstractmethod
    def values(self, x_BTD: Tensor) -> Tensor:
        """(B,G,T,E): what is mixed."""

    @abstractmethod
    def finish(self, x_BTD: Tensor, mixed_BGTE: Tensor) -> Tensor:
        """(B,T,D): what becomes of the mixed values."""

    def dense(self, x_BTD: Tensor) -> Tensor:
        return self.finish(x_BTD, self.as_matrix(x_BTD) @ self.values(x_BTD))
