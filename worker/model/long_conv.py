"""Convolutions with filters that are learned as they are (Fu et al. 2023, "Simple hardware-efficient long
convolutions for sequence modeling"): squash(k) = sign(k) max(|k| - squash, 0), GELU, a gated projection.

Parameters: `filters` (hidden, positions), `skip`, `out.weight` (value's rows, then gate's).
"""

from __future__ import annotations

import torch
from torch import Tensor

from scheduler.job import ModelSpec
from scheduler.mixers import LongConvSpec
from worker.model.cores import recomputed
from worker.model.fft_conv import Conv, conv_behind, conv_by, toeplitz
from worker.model.layer import TooManyPositions, blank
from worker.model.parts import Linear
from worker.model.s4d import Gated


class LongConv(Gated):
    """Its state is all inputs so far, (B,S,D)."""

    def __init__(self, model: ModelSpec, options: LongConvSpec) -> None:
        super().__init__()
        self.length, self.width, self.squash = options.length_in(model), model.hidden, options.squash
        self.conv = conv_by(options.transform)
        self.filters, self.skip = blank(model.hidden, self.length), blank(model.hidden)
        self.out = Linear(model.hidden, 2 * model.hidden, bias=False)

    def initial(self, parameter: str, rng: torch.Generator) -> Tensor | None:
        """Noise that fades, over a few positions in the first channel and over all of them in the last."""
        if parameter != "filters":
            return None
        reach = self.length ** torch.linspace(0, 1, self.width)[:, None]
        fading = (-3 * torch.arange(self.length) / reach).exp()
        return torch.randn(self.filters.shape, generator=rng) * fading / reach.sqrt()

    def begin(self) -> Tensor:
        return self.skip.new_zeros(1, 0, self.width)

    def forward(self, x_BTD: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        check_length(x_BTD, state, self.length)
        if state is None:
            filtered = recomputed(_squashed_conv, self.conv, x_BTD, self.filters, self.squash)
            return self.gated(filtered + self.skip * x_BTD), None
        whole = torch.cat((state.expand(len(x_BTD), -1, -1), x_BTD), dim=1)
        filters = squashed(self.filters[:, : whole.shape[1]], self.squash)
        return self.gated(conv_behind(self.conv, x_BTD, filters, state) + self.skip * x_BTD), whole

    def filter_matrix(self, length: int) -> Tensor:
        filters = self.filters[:, :length]
        simple = torch.where(filters.abs() > self.squash, filters - self.squash * filters.sign(), 0.0)
        return toeplitz(simple) + self.skip[:, None, None] * torch.eye(length, dtype=self.skip.dtype)


def squashed(filters: Tensor, squash: float) -> Tensor:
    return filters.sign() * (filters.abs() - squash).relu()


def check_length(x_BTD: Tensor, past_BSD: Tensor | None, most: int) -> None:
    """Refuse more positions than filters were made for."""
    found = x_BTD.shape[1] + (0 if past_BSD is None else past_BSD.shape[1])
    if found > most:
        raise TooManyPositions(
            f"found a sequence of {found} positions; required at most {most}, for which the filters were"
            " made: shorten it, or train a model with longer filters (max_positions, or length= of the part)"
        )


def _squashed_conv(conv: Conv, x_BTD: Tensor, filters: Tensor, squash: float) -> Tensor:
    return conv(x_BTD, squashed(filters[:, : x_BTD.shape[1]], squash))
