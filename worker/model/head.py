"""The last layer: final norm, projection to the vocabulary, and the loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from scheduler.job import ModelSpec
from worker.model.layer import Layer, State, blank
from worker.model.parts import make_norm

LOSS_CHUNK_BYTES = 256 << 20
"""Logits (float32) that the loss holds at once. Above it, they are made in chunks and made again in
backward: a product more, but 4 x 2048 positions of 128k tokens would take 4 GB otherwise."""


class Head(Layer):
    """(B,T,D) -> logits (B,T,V). `weight` (V,D) is the embedding's where the model is tied."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        assert model.vocab is not None
        self.name, self.width, self.tied = "head", 0, model.tied
        self.vocab, self.hidden = model.vocab, model.hidden
        self.norm = make_norm(model.family, model.hidden, model.norm_eps)
        self.weight = blank(model.vocab, model.hidden)

    def begin(self) -> State:
        return ()

    def forward(self, x_BTD: Tensor, state: State = None) -> tuple[Tensor, State]:
        return F.linear(self.norm(x_BTD), self.weight), state

    def loss(self, x_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        """Cross entropy summed over all positions, a float32 scalar (float64 of a float64 model).

        The target -100 leaves a position out. Divide by the targets of the global batch.
        """
        x_RD, targets_R = self.norm(x_BTD).flatten(0, 1), targets_BT.flatten()
        rows = self._chunk_rows()
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

    def _chunk_rows(self) -> int:
        return max(1, LOSS_CHUNK_BYTES // (4 * self.vocab))

    def forward_flops(self, batch: int, length: int) -> float:
        return 2.0 * batch * length * self.hidden * self.vocab

    def backward_flops(self, batch: int, length: int) -> float:
        """Of `loss`: the logits again where they were made in chunks."""
        again = 1 if batch * length > self._chunk_rows() else 0
        return (2 + again) * self.forward_flops(batch, length)

    def saved_bytes(self, batch: int, length: int, bytes_per_value: int) -> int:
        """Of `loss`: what the norm keeps, its output, targets and their weight, and log-probabilities in
        float32; of the last, a chunk is the most that is held at a time."""
        rows = batch * length
        chunk = min(rows, self._chunk_rows()) * self.vocab * 4
        normed = rows * self.hidden * bytes_per_value
        return self.norm.saved_bytes(rows, bytes_per_value) + normed + rows * 8 + chunk
