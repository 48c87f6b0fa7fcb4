"""A causal convolution over a few positions, a filter a channel. Shapes: W taps, D channels."""

from __future__ import annotations

from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.model.layer import blank


class ShortConv(nn.Module):
    """y_t = sum_w weight[w] x[t - (W-1) + w], what lies before the first position being 0.

    Its state is the last W - 1 inputs, (B,W-1,D).
    """

    def __init__(self, taps: int, width: int) -> None:
        super().__init__()
        self.taps, self.width = taps, width
        self.weight = blank(taps, width)

    def begin(self) -> Tensor:
        return self.weight.new_zeros(1, self.taps - 1, self.width)

    def forward(
        self, x_BTD: Tensor, state: Tensor | None = None, documents_BT: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        before = self.begin().to(x_BTD.dtype) if state is None else state
        padded = torch.cat((before.expand(len(x_BTD), -1, -1), x_BTD), dim=1)
        length = x_BTD.shape[1]
        y = self._taken(padded, 0, length, documents_BT)
        for tap in range(1, self.taps):
            y = y + self._taken(padded, tap, length, documents_BT)
        return y, padded[:, length:]

    def _taken(self, padded: Tensor, tap: int, length: int, documents_BT: Tensor | None) -> Tensor:
        """What each position takes by one tap, if need be from its own document alone."""
        taken = padded[:, tap : tap + length] * self.weight[tap]
        back = self.taps - 1 - tap
        if documents_BT is None or not back:
            return taken
        there = F.pad(documents_BT, (back, 0), value=-1)[:, :length]
        return taken * (there == documents_BT)[..., None]

    def initial(self, rng: torch.Generator) -> Tensor:
        """Uniform within 1 / sqrt(taps), as PyTorch's depthwise convolutions begin."""
        return (2 * torch.rand(self.weight.shape, generator=rng) - 1) / sqrt(self.taps)

    def to_dense(self, length: int) -> Tensor:
        """(D,T,T): row t, column s."""
        matrix = self.weight.new_zeros(self.width, length, length)
        for tap in range(self.taps):
            back = self.taps - 1 - tap
            for t in range(back, length):
                matrix[:, t, t - back] = self.weight[tap]
        return matrix
