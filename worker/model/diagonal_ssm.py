"""A diagonal state space for each channel: as a convolution, or as a recurrence.

    s' = A s + u,  y = 2 Re(C s) + skip u,  with A diagonal and complex

in steps of length `step`, u held between them (zero-order hold; Gu, Goel, Gupta and Ré 2022, section 3):

    s_t = exp(step A) s_{t-1} + (exp(step A) - 1) / A u_t

Its vectors are flat, because weight decay is for matrices.

Shapes: B samples, T positions, D channels, N modes of each (complex), of which each stands for itself and its
conjugate.
"""

from __future__ import annotations

from math import log, sqrt
from typing import Literal

import torch
from torch import Tensor, nn

from scheduler.mixers.convolution import digits
from worker.model.cores import recomputed
from worker.model.fft_conv import Conv, conv_by, toeplitz
from worker.model.hippo import Init, modes
from worker.model.layer import blank


class DiagonalSsm(nn.Module):
    """`log_step` and `skip` a channel; `rates` (log of -Re A, then Im A) and `reads` (Re C, then Im C)."""

    def __init__(
        self, width: int, state: int, init: Init, transform: Literal["fft", "matrix"] = "fft"
    ) -> None:
        super().__init__()
        self.width, self.state, self.init = width, state, init
        self.conv = conv_by(transform)
        n = width * state // 2
        self.log_step, self.skip = blank(width), blank(width)
        self.rates, self.reads = blank(2 * n), blank(2 * n)

    def initial(self, parameter: str, rng: torch.Generator) -> Tensor | None:
        """Steps 0.001 to 0.1; reads of unit size."""
        match parameter:
            case "log_step":
                return torch.rand(self.width, generator=rng) * log(100) + log(0.001)
            case "rates":
                a = modes(self.init, self.state)
                both = torch.stack(((-a.real).log(), a.imag))
                return both[:, None].expand(-1, self.width, -1).flatten()
            case "reads":
                return torch.randn(self.reads.shape, generator=rng) * sqrt(0.5)
            case _:
                return None

    def begin(self) -> Tensor:
        """The state before the first position, (1,D,N) complex."""
        zeros: Tensor = torch.view_as_complex(self.skip.new_zeros(1, self.width, self.state // 2, 2))
        return zeros

    def forward(self, x_BTD: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        parameters = self.log_step, self.rates, self.reads
        skipped = self.skip * x_BTD
        if state is None:
            return recomputed(_convolved, self.conv, x_BTD, *parameters) + skipped, None
        power_DN, write_DN, read_DN = _discrete(*parameters)
        length = x_BTD.shape[1]
        if length == 1:
            state = power_DN * state + write_DN * x_BTD.mT
            taken: Tensor = 2 * (read_DN * state).sum(-1).real[:, None]
            return taken + skipped, state
        powers_DNT = _powers(power_DN, length)
        begun = state * power_DN
        remembered = 2 * torch.einsum("bdn,dnt->btd", begun * read_DN, powers_DNT).real
        y = self.conv(x_BTD, _filter(read_DN * write_DN, power_DN, length)) + remembered + skipped
        written = torch.einsum("btd,dnt->bdn", x_BTD.to(state.dtype), powers_DNT.flip(-1)) * write_DN
        return y, begun * power_DN ** (length - 1) + written

    def to_dense(self, length: int) -> Tensor:
        """(D,T,T): the state followed position by position from a single 1."""
        power, state, read = _discrete(self.log_step, self.rates, self.reads)
        taken = []
        for _ in range(length):
            taken.append(2 * (read * state).sum(-1).real)
            state = state * power
        identity = torch.eye(length, dtype=self.skip.dtype)
        return toeplitz(torch.stack(taken, 1)) + self.skip[:, None, None] * identity


def _discrete(log_step_D: Tensor, rates: Tensor, reads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(step A), (exp(step A) - 1) / A and C, (D,N) complex each."""
    decay, turn = rates.view(2, len(log_step_D), -1)
    a_DN = torch.complex(-decay.exp(), turn)
    power_DN = (a_DN * log_step_D.exp()[:, None]).exp()
    return power_DN, (power_DN - 1) / a_DN, torch.complex(*reads.view(2, len(log_step_D), -1))


def _filter(taken_DN: Tensor, power_DN: Tensor, length: int) -> Tensor:
    """2 Re sum_n taken power^t for t below `length`, (D,T): as a product of the powers of t's high digit with
    those of its low one, so that of T powers only about 2 sqrt(T) are made."""
    high, low = digits(length)
    near_DNl = _powers(power_DN, low)
    far_DNh = taken_DN[..., None] * _powers(power_DN**low, high)
    return 2 * (far_DNh.mT @ near_DNl).real.flatten(1)[:, :length]


def _powers(power_DN: Tensor, n: int) -> Tensor:
    """(D,N,n) from power^0 on, by doubling: products are many times cheaper than complex powers."""
    powers, step = torch.ones_like(power_DN)[..., None], power_DN[..., None]
    while powers.shape[-1] < n:
        powers, step = torch.cat((powers, powers * step), dim=-1), step * step
    return powers[..., :n]


def _convolved(conv: Conv, x_BTD: Tensor, log_step_D: Tensor, rates: Tensor, reads: Tensor) -> Tensor:
    power, write, read = _discrete(log_step_D, rates, reads)
    return conv(x_BTD, _filter(read * write, power, x_BTD.shape[1]))
