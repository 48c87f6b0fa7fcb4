"""The last layer: final norm, projection to the vocabulary, and the loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from scheduler.analytic import loss_rows
from scheduler.job import ModelSpec
from worker.model.layer import Layer, State, blank
from worker.model.parts import make_norm


class Head(Layer):
    """(B,T,D) -> logits (B,T,V). `weight` (V,D) is the embedding's where the model is tied."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__(model, model.depth + 1)
        assert model.vocab is not None
        self.name, self.width, self.tied = "head", 0, model.tied
        self.vocab, self.hidden = model.vocab, model.hidden
        self.norm = make_norm(model.family, model.hidden, model.norm_eps)
        self.weight = blank(model.vocab, model.hidden)

    def begin(self) -> State:
        return ()

    def forward(
        self, x_BTD: Tensor, state: State = None, documents_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        del documents_BT
        return F.linear(self.norm(x_BTD), self.weight), state

    def loss(self, x_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        """Cross entropy summed over all positions, a float32 scalar (float64 of a float64 model).

        The target -100 leaves a position out. Divide by the targets of the global batch.
        """
        x_RD, targets_R = self.norm(x_BTD).flatten(0, 1), targets_BT.flatten()
        rows = loss_rows(self.vocab)
        if len(x_RD) <= rows:
            return self._summed(x_RD, targets_R)
        chunks = [
            checkpoint(
                self._summed,
                x_RD[start : start + rows],
                targets_R[start : start + rows],
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for start in range(0, len(x_RD), rows)
        ]
        return torch.stack(chunks).sum()

    def _summed(self, x_RD: Tensor, targets_R: Tensor) -> Tensor:
        logits = F.linear(x_RD, self.weight)
        if logits.dtype != torch.float64:
            logits = logits.float()
        return F.cross_entropy(logits, targets_R, reduction="sum")
