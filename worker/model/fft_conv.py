"""Causal convolution of each channel with a filter as long as the text, by Fourier transforms; and which
way of it a part takes.

Shapes: B samples, T positions, D channels; filters (D,T).
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from scheduler.mixers.convolution import transform_length
from worker.model.matrix_conv import matrix_conv


class Conv(Protocol):
    """A way to convolve."""

    def __call__(self, x_BTD: Tensor, filter_DT: Tensor, new: int | None = None) -> Tensor:
        """y_t = sum over s <= t of filter[t - s] x_s, (B,T,D); of it, the last `new` positions if given. In
        float32 at least: no 16-bit transforms."""


def conv_by(transform: Literal["fft", "matrix"]) -> Conv:
    """The way that a part's option asks for."""
    return matrix_conv if transform == "matrix" else fft_conv


def fft_conv(x_BTD: Tensor, filter_DT: Tensor, new: int | None = None) -> Tensor:
    """As `Conv`."""
    length = x_BTD.shape[1]
    points = transform_length(length)
    wide = torch.promote_types(x_BTD.dtype, torch.float32)
    x_BDF = torch.fft.rfft(x_BTD.mT.to(wide), n=points)
    filter_DF = torch.fft.rfft(filter_DT.to(wide), n=points)
    y_BDT: Tensor = torch.fft.irfft(x_BDF * filter_DF, n=points)
    return y_BDT[..., length - (new or length) : length].mT.to(x_BTD.dtype)


def conv_behind(conv: Conv, x_BTD: Tensor, filter_DS: Tensor, past_BSD: Tensor) -> Tensor:
    """The last T positions of the convolution over `past` and `x`, whose filter covers both."""
    whole = torch.cat((past_BSD.expand(len(x_BTD), -1, -1), x_BTD), dim=1)
    if x_BTD.shape[1] == 1:
        return torch.einsum("bsd,ds->bd", whole, filter_DS.flip(1))[:, None]
    return conv(whole, filter_DS, x_BTD.shape[1])


def toeplitz(filter_DT: Tensor) -> Tensor:
    """(D,T,T): filter[t - s] at row t, column s, by its definition."""
    channels, length = filter_DT.shape
    matrix = filter_DT.new_zeros(channels, length, length)
    for t in range(length):
        for s in range(t + 1):
            matrix[:, t, s] = filter_DT[:, t - s]
    return matrix
