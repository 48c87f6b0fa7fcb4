"""A state space with a whole matrix (Gu, Johnson, Goel, Saab, Dao, Rudra and Ré 2021, "Combining recurrent,
convolutional, and continuous-time models with linear state-space layers": LSSL).

    s' = A s + B u,  y = C s + skip u,  A and B HiPPO-LegS's to begin with

in steps of a length that each channel learns, by the bilinear rule (their equation 3):

    s_t = (1 - step/2 A)^-1 ((1 + step/2 A) s_{t-1} + step B u_t)

All at once it is a convolution with C A^t B, whose Krylov vectors are made by doubling; in steps, the
recurrence. S4D has A's diagonal form instead, whose step costs N where this one's costs N^2, and N^3 to be
solved for. Its vectors are flat, because weight decay is for matrices.

Shapes: B samples, T positions, D channels, N values of state.
"""

from __future__ import annotations

from math import log
from typing import Literal

import torch
from torch import Tensor, nn

from scheduler.mixers.lssl import doublings
from worker.model.cores import in_full_precision, recomputed
from worker.model.fft_conv import Conv, conv_by, toeplitz
from worker.model.hippo import legs_matrix
from worker.model.layer import blank


class DenseSsm(nn.Module):
    """`log_step` and `skip` a channel; `rates` (A, row by row) and `writes` (B) of all channels in common;
    `reads` (C, channel by channel)."""

    def __init__(self, width: int, state: int, transform: Literal["fft", "matrix"] = "fft") -> None:
        super().__init__()
        self.width, self.state = width, state
        self.conv = conv_by(transform)
        self.log_step, self.skip = blank(width), blank(width)
        self.rates, self.writes, self.reads = blank(state * state), blank(state), blank(width * state)

    def initial(self, parameter: str, rng: torch.Generator) -> Tensor | None:
        """Steps 0.001 to 0.1; A and B of LegS (Gu et al. 2020, theorem 2); reads of unit size."""
        match parameter:
            case "log_step":
                return torch.rand(self.width, generator=rng) * log(100) + log(0.001)
            case "rates":
                return legs_matrix(self.state).flatten()
            case "writes":
                return (2 * torch.arange(self.state, dtype=torch.float64) + 1).sqrt()
            case "reads":
                return torch.randn(self.reads.shape, generator=rng)
            case _:
                return None

    def begin(self) -> Tensor:
        """The state before the first position, (1,D,N)."""
        return self.skip.new_zeros(1, self.width, self.state)

    def forward(self, x_BTD: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        parameters = self.log_step, self.rates, self.writes, self.reads
        skipped = self.skip * x_BTD
        if state is None:
            return recomputed(_convolved, self.conv, x_BTD, *parameters) + skipped, None
        with in_full_precision(x_BTD):  # what is off in a step is off to the power of the length
            over_DNN, write_DN1 = _discrete(self.log_step, self.rates, self.writes)
            read_D1N, taken = self.reads.view(self.width, 1, -1), []
            for x_BD in x_BTD.to(over_DNN.dtype).unbind(1):
                # Channels are the batch of products, samples their columns.
                state_DNB = over_DNN @ state.permute(1, 2, 0) + write_DN1 * x_BD.mT[:, None]
                taken.append((read_D1N @ state_DNB)[:, 0].mT)
                state = state_DNB.permute(2, 0, 1)
        return torch.stack(taken, 1) + skipped, state

    def to_dense(self, length: int) -> Tensor:
        """(D,T,T): the state followed position by position from a single 1."""
        over, state = _discrete(self.log_step, self.rates, self.writes)
        taken = []
        for _ in range(length):
            taken.append((self.reads.view(self.width, -1) * state[..., 0]).sum(-1))
            state = over @ state
        identity = torch.eye(length, dtype=self.skip.dtype)
        return toeplitz(torch.stack(taken, 1)) + self.skip[:, None, None] * identity


def _discrete(log_step_D: Tensor, rates: Tensor, writes_N: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix (D,N,N) that a step takes the state over by, and what it writes (D,N,1)."""
    step_D11 = log_step_D.exp()[:, None, None]
    half_DNN = step_D11 / 2 * rates.view(len(writes_N), -1)
    identity = torch.eye(len(writes_N), dtype=rates.dtype, device=rates.device)
    right = torch.cat((identity + half_DNN, step_D11 * writes_N[:, None]), dim=-1)
    solved: Tensor = torch.linalg.solve(identity - half_DNN, right)
    return solved[..., :-1], solved[..., -1:]


def _filter(over_DNN: Tensor, write_DN1: Tensor, read_D1N: Tensor, length: int) -> Tensor:
    """read over^t write for t below `length`, (D,T): the powers of t's low digit with what is written, those
    of its high digit with what is read, and one product of the two."""
    low, high = doublings(length)
    near_DNl = write_DN1
    for _ in range(low):
        near_DNl = torch.cat((near_DNl, over_DNN @ near_DNl), dim=-1)
        over_DNN = over_DNN @ over_DNN
    far_DhN = read_D1N
    for i in range(high):
        far_DhN = torch.cat((far_DhN, far_DhN @ over_DNN), dim=-2)
        if i + 1 < high:
            over_DNN = over_DNN @ over_DNN
    return (far_DhN @ near_DNl).flatten(1)[:, :length]


def _convolved(
    conv: Conv, x_BTD: Tensor, log_step_D: Tensor, rates: Tensor, writes_N: Tensor, reads: Tensor
) -> Tensor:
    with in_full_precision(x_BTD):
        over, write = _discrete(log_step_D, rates, writes_N)
        filters = _filter(over, write, reads.view(len(log_step_D), 1, -1), x_BTD.shape[1])
        return conv(x_BTD, filters)
