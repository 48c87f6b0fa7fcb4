"""Hyena of order 2 (Poli et al. 2023, "Hyena hierarchy"): y = q x (filter * (k x v)).

q, k and v are projected and pass a short convolution. The filters are implicit: a network with sine
activations of the position gives their values, and they fade, at another rate for each channel (section
3.3). Parameters: `qkv.weight`, `short.weight` (taps, 3 hidden), `filter.0.weight` … `filter.2.weight` and
biases of the first two, `skip`, `out.weight`.
"""

from __future__ import annotations

from math import log, pi, sqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scheduler.job import ModelSpec
from scheduler.mixers import HyenaSpec
from worker.model.cores import recomputed
from worker.model.fft_conv import conv_behind, conv_by, toeplitz
from worker.model.layer import blank
from worker.model.long_conv import check_length
from worker.model.mixer import SequenceMixer
from worker.model.parts import Linear
from worker.model.short_conv import ShortConv

FREQUENCY = 10.0
"""Of the sines, as published: without it the filters begin too smooth."""


class HyenaState(NamedTuple):
    """The last inputs of the short convolution, and all of the long one's so far."""

    shifted: Tensor
    past_BSD: Tensor


class Hyena(SequenceMixer):
    def __init__(self, model: ModelSpec, options: HyenaSpec) -> None:
        super().__init__()
        width = model.hidden
        self.width, self.length, self.bands = width, options.length_in(model), options.bands
        self.conv = conv_by(options.transform)
        self.qkv = Linear(width, 3 * width, bias=False)
        self.short = ShortConv(options.taps, 3 * width)
        self.filter = nn.ModuleList(
            (
                Linear(1 + 2 * options.bands, options.width, bias=True),
                Linear(options.width, options.width, bias=True),
                Linear(options.width, width, bias=False),
            )
        )
        self.skip = blank(width)
        self.out = Linear(width, width, bias=False)

    def initial(self, parameter: str, rng: torch.Generator) -> Tensor | None:
        """The network's matrices uniform within 1 / sqrt(inputs), as PyTorch's are."""
        if parameter == "short.weight":
            return self.short.initial(rng)
        if parameter.startswith("filter.") and parameter.endswith("weight"):
            shape = self.get_parameter(parameter).shape
            return (2 * torch.rand(shape, generator=rng) - 1) / sqrt(shape[1])
        return None

    def begin(self) -> HyenaState:
        return HyenaState(self.short.begin(), self.skip.new_zeros(1, 0, self.width))

    def forward(self, x_BTD: Tensor, state: HyenaState | None = None) -> tuple[Tensor, HyenaState | None]:
        check_length(x_BTD, None if state is None else state.past_BSD, self.length)
        mixed, shifted = self.short(self.qkv(x_BTD), None if state is None else state.shifted)
        q, k, v = mixed.chunk(3, dim=-1)
        kv = k * v
        if state is None:
            filtered = recomputed(self._convolved, kv)
            return self.out(q * (filtered + self.skip * kv)), None
        past = torch.cat((state.past_BSD.expand(len(kv), -1, -1), kv), dim=1)
        filtered = conv_behind(self.conv, kv, self.filters(past.shape[1]), state.past_BSD)
        return self.out(q * (filtered + self.skip * kv)), HyenaState(shifted, past)

    def filters(self, length: int) -> Tensor:
        """The filters' first `length` values, (D,T)."""
        like = self.skip
        at = torch.arange(length, device=like.device, dtype=like.dtype)[:, None] / self.length
        turns = 2 * pi * at * torch.arange(1, self.bands + 1, device=like.device)
        z = torch.cat((at, turns.cos(), turns.sin()), dim=1)
        first, second, last = self.filter
        z = last((FREQUENCY * second((FREQUENCY * first(z)).sin())).sin())
        filters: Tensor = (z * self._fading(at)).mT
        return filters

    def _fading(self, at_T1: Tensor) -> Tensor:
        """(T,D): down to a hundredth after 0.3 of the positions in the first channel, 1.5 in the last."""
        rates = -log(0.01) / torch.linspace(0.3, 1.5, self.width, device=at_T1.device, dtype=at_T1.dtype)
        return (-at_T1 * rates).exp()

    def _convolved(self, kv_BTD: Tensor) -> Tensor:
        return self.conv(kv_BTD, self.filters(kv_BTD.shape[1]))

    def as_matrix(self, x_BTD: Tensor) -> Tensor:
        q, k, _ = self._qkv(x_BTD)
        length = x_BTD.shape[1]
        identity = torch.eye(length, dtype=x_BTD.dtype)
        filters = toeplitz(self.filters(length)) + self.skip[:, None, None] * identity
        return q[..., None] * filters * k[..., None, :]

    def values(self, x_BTD: Tensor) -> Tensor:
        return self._qkv(x_BTD)[2][..., None]

    def finish(self, x_BTD: Tensor, mixed_BGTE: Tensor) -> Tensor:
        del x_BTD
        y: Tensor = self.out(mixed_BGTE[..., 0].mT)
        return y

    def _qkv(self, x_BTD: Tensor) -> tuple[Tensor, ...]:
        """(B,D,T) each, the short convolution as a matrix."""
        joint = self.short.to_dense(x_BTD.shape[1]) @ self.qkv(x_BTD).mT[..., None]
        q, k, v = joint[..., 0].chunk(3, dim=1)
        return q, k, v
