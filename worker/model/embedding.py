"""The first layer: tokens to vectors, plus learned positions where the family has them.

It is also where a sequence that is too long for the model is refused, before any work is spent on it.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from scheduler.job import ModelSpec
from worker.model.documents import positions_in
from worker.model.layer import Layer, ModelError, State, TooManyPositions, blank
from worker.model.ring import Shard


class Embedding(Layer):
    """(B,T) int64 -> (B,T,D). Its state is the number of positions seen."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__(model, 0)
        assert model.vocab is not None
        self.name, self.width = "embedding", model.hidden
        self.tied, self.max_positions = model.tied, model.max_positions
        self.weight = blank(model.vocab, model.hidden)
        self.positions = None
        if model.family == "gpt2":
            if model.max_positions is None:
                raise ModelError(
                    "model.max_positions: found none; required for family gpt2, which learns a vector for"
                    " each position (the job's sequence_length, or more to generate longer texts)"
                )
            self.positions = blank(model.max_positions, model.hidden)

    def begin(self) -> State:
        return 0

    def in_shard(self, shard: Shard) -> State:
        return shard.first

    def forward(
        self, tokens_BT: Tensor, state: State = None, documents_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        first: int = state or 0
        last = first + tokens_BT.shape[1]
        if self.max_positions is not None and last > self.max_positions:
            raise TooManyPositions(
                f"found a sequence of {last} positions; required at most {self.max_positions}"
                " (model.max_positions): shorten it, or train a model with more positions"
            )
        x_BTD = F.embedding(tokens_BT, self.weight)
        if self.positions is not None:
            at = slice(first, last) if documents_BT is None else positions_in(documents_BT)
            x_BTD = x_BTD + self.positions[at]
        return x_BTD, None if state is None else last
