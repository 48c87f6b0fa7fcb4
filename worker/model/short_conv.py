"""A causal convolution over a few positions, a filter a channel. Shapes: W taps, D channels."""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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
        y: Tensor = _Taps.apply(padded, self.weight, documents_BT)  # type: ignore[no-untyped-call]
        return y, padded[:, x_BTD.shape[1] :]

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


class _Taps(torch.autograd.Function):
    """y_t = sum_w weight[w] padded[t + w], all terms made in one place.

    Autograd would make each anew, and for each tap a gradient as large as `padded`; bytes written are most of
    what this costs.
    """

    @staticmethod
    def forward(ctx: Any, padded: Tensor, weight: Tensor, documents_BT: Tensor | None) -> Tensor:
        ctx.save_for_backward(padded, weight, documents_BT)
        y, term = None, None
        for tap, (given, same) in enumerate(_given(padded, len(weight), documents_BT)):
            term = torch.mul(given, weight[tap], out=term)
            if same is not None:
                term *= same
            if y is None:
                y, term = term, torch.empty_like(term)
            else:
                y += term
        assert y is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BTD: Tensor) -> tuple[Tensor | None, ...]:
        padded, weight, documents = ctx.saved_tensors
        dpadded, dweight = dy_BTD.new_zeros(padded.shape), torch.empty_like(weight)
        term = torch.empty_like(dy_BTD)
        for tap, (given, same) in reversed([*enumerate(_given(padded, len(weight), documents))]):
            dy = dy_BTD if same is None else dy_BTD * same
            dpadded[:, tap : tap + dy.shape[1]] += torch.mul(dy, weight[tap], out=term)
            dweight[tap] = torch.mul(dy, given, out=term).sum((0, 1))
        return dpadded.to(padded.dtype), dweight, None


def _given(padded: Tensor, taps: int, documents_BT: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """What each tap is given, (B,T,D), and whether that is of the position's own document, (B,T,1); None: all
    of it is."""
    length = padded.shape[1] - taps + 1
    for tap in range(taps):
        back, same = taps - 1 - tap, None
        if documents_BT is not None and back:
            there = F.pad(documents_BT, (back, 0), value=-1)[:, :length]
            same = (there == documents_BT)[..., None]
        yield padded[:, tap : tap + length], same
