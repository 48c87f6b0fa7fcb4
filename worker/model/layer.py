"""What a layer of a model is: the unit of partition, of cost, of checkpoints and of recovery.

Says nothing of attention: a block with another sequence mixer (a recurrence, a convolution) is a Layer
too, whose state is something other than keys and values. Knows no stages, devices or optimizers.

Shapes: B samples, T positions, D hidden, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from scheduler.analytic import layer_cost
from scheduler.job import ModelSpec
from scheduler.layer_cost import LayerCost, Mode
from worker.model.ring import Shard

State = Any
"""What a layer remembers of earlier positions while text is generated; only that layer reads it."""


class ModelError(Exception):
    """A model that cannot be built, loaded, saved or run as asked; says what was found and required."""


class TooManyPositions(ModelError):
    """A sequence longer than the model has positions for."""


class Layer(nn.Module):
    """One layer. `name` is its name in profiles, checkpoints and messages ("embedding", "block.00", "head").

    `width` is the number of values per position that it hands on, 0 for the head.
    """

    name: str
    width: int

    def __init__(self, model: ModelSpec, index: int) -> None:
        super().__init__()
        self.model, self.index = model, index

    def cost(self, batch: int, length: int, dtype: torch.dtype, mode: Mode) -> LayerCost:
        """What `mode` costs for `batch` samples of `length` positions, all of it in `dtype`: the closed form
        that plans are made with (`scheduler/analytic.py`)."""
        return layer_cost(self.model, self.index, batch, length, dtype.itemsize, mode)

    @abstractmethod
    def forward(
        self, x: Tensor, state: State = None, documents_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """All positions of `x` at once: the embedding takes (B,T) int64, the others (B,T,D).

        Without a state (training) the positions begin at 0 and the second result is None. With one
        (from `begin`, `forward` or `step`) they follow those seen before, and a new state comes back;
        the one passed in is left as it was. With `documents_BT`
        (training, of samples that hold several documents) each document is as if alone.
        """

    @abstractmethod
    def begin(self) -> State:
        """The state before the first position."""

    def in_shard(self, shard: Shard) -> State:
        """The state with which `forward` takes one shard of a sequence, for training: its positions follow
        those that other shards hold. Raises ModelError for a layer that cannot be so divided."""
        del shard
        return ()

    def step(self, x_t: Tensor, state: State = None) -> tuple[Tensor, State]:
        """One position, (B,) or (B,D) without the T axis; no state means the first position."""
        y, state = self(x_t.unsqueeze(1), self.begin() if state is None else state)
        return y.squeeze(1), state

    def initial(self, parameter: str, rng: torch.Generator) -> Tensor | None:
        """What `initialize` fills this parameter with where it is not drawn as all matrices are."""
        del parameter, rng
        return None

    def initial_std(self, parameter: str) -> float:
        """Standard deviation that `initialize` draws this matrix's values with."""
        del parameter
        return 0.02


def blank(*shape: int) -> nn.Parameter:
    """A parameter that was never initialised nor loaded: NaN, so that forgetting it cannot go unnoticed."""
    return nn.Parameter(torch.full(shape, torch.nan))
