"""Mamba-2's mixer (Dao and Gu 2024, "Transformers are SSMs"): a state with a scalar decay a head.

    S_t = exp(dt_t A) S_{t-1} + dt_t B_t x_t^T,   y_t = S_t^T C_t + skip x_t,   A < 0

which is y = (L * C B^T) (dt x) with L_ts = exp(sum of dt A from s + 1 to t): computed chunk by chunk as
matrix products (their section 6). Parameters: `into.weight` (gate z, x, B, C, steps dt), `conv.weight` over
x, B and C, `log_decay`, `step_bias`, `skip` a head, `norm.weight`, `out.weight`.

Shapes: B samples, T positions, H heads of width P, N values of state, c chunks of Q positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scheduler.job import ModelSpec
from scheduler.mixers import SsdSpec
from worker.model.cores import recomputed
from worker.model.documents import Borders
from worker.model.layer import blank
from worker.model.mixer import SequenceMixer
from worker.model.parts import Linear, RMSNorm
from worker.model.short_conv import ShortConv


class SsdState(NamedTuple):
    """What convolution and state space remember."""

    convolved: Tensor
    memory_BNHP: Tensor


class Ssd(SequenceMixer):
    """in -> convolution -> state space -> gate and norm -> out."""

    def __init__(self, model: ModelSpec, options: SsdSpec) -> None:
        super().__init__()
        self.heads, self.state, self.chunk = options.heads_in(model), options.state, options.chunk
        self.inner = options.inner_in(model)
        self.into = Linear(model.hidden, 2 * (self.inner + self.state) + self.heads, bias=False)
        self.conv = ShortConv(options.taps, self.inner + 2 * self.state)
        self.log_decay, self.step_bias, self.skip = (blank(self.heads) for _ in range(3))
        self.norm = RMSNorm(self.inner, model.norm_eps)
        self.out = Linear(self.inner, model.hidden, bias=False)

    def initial(self, parameter: str, rng: torch.Generator) -> Tensor | None:
        if parameter == "conv.weight":
            return self.conv.initial(rng)
        return initial_decays(parameter, self.heads, rng)

    def begin(self) -> SsdState:
        memory = self.log_decay.new_zeros(1, self.state, self.heads, self.inner // self.heads)
        return SsdState(self.conv.begin(), memory)

    def forward(
        self, x_BTD: Tensor, state: SsdState | None = None, documents_BT: Tensor | None = None
    ) -> tuple[Tensor, SsdState | None]:
        before = None if state is None else state.convolved
        gate, x, b, c, step, convolved = self._projected(x_BTD, before, documents_BT)
        memory = None if state is None else state.memory_BNHP
        decay = -self.log_decay.exp()
        y, memory = recomputed(ssd, x, b, c, step, decay, self.chunk, memory, documents_BT)
        y = self._finished(gate, y + self.skip[:, None] * x)
        if state is None:
            return y, None
        assert memory is not None
        return y, SsdState(convolved, memory)

    def as_matrix(self, x_BTD: Tensor) -> Tensor:
        _, _, b, c, step, _ = self._projected(x_BTD, None)
        skip = self.skip[:, None, None] * torch.eye(x_BTD.shape[1], dtype=x_BTD.dtype)
        return ssd_matrix(b, c, step, -self.log_decay.exp()) + skip

    def values(self, x_BTD: Tensor) -> Tensor:
        return self._projected(x_BTD, None)[1].transpose(1, 2)

    def finish(self, x_BTD: Tensor, mixed_BGTE: Tensor) -> Tensor:
        return self._finished(self._projected(x_BTD, None)[0], mixed_BGTE.transpose(1, 2))

    def _projected(
        self, x_BTD: Tensor, state: Tensor | None, documents_BT: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """gate (B,T,HP), x (B,T,H,P), B and C (B,T,N), steps (B,T,H), the convolution's state."""
        widths = [self.inner, self.inner + 2 * self.state, self.heads]
        gate, mixed, step = torch.split(self.into(x_BTD), widths, dim=-1)
        mixed, state = self.conv(mixed, state, documents_BT)
        x, b, c = torch.split(F.silu(mixed), [self.inner, self.state, self.state], dim=-1)
        x = x.reshape(*x.shape[:2], self.heads, -1)
        return gate, x, b, c, F.softplus(step + self.step_bias), state

    def _finished(self, gate_BTD: Tensor, y_BTHP: Tensor) -> Tensor:
        gated = y_BTHP.flatten(2) * F.silu(gate_BTD)
        y: Tensor = self.out(self.norm(gated.to(self.norm.weight.dtype)))
        return y


def initial_decays(parameter: str, heads: int, rng: torch.Generator) -> Tensor | None:
    """Decays 1 to 16, steps 0.001 to 0.1 (softplus of the bias), as published for Mamba-2."""
    match parameter:
        case "log_decay":
            return (1 + 15 * torch.rand(heads, generator=rng)).log()
        case "step_bias":
            steps = 0.001 * 100 ** torch.rand(heads, generator=rng)
            return steps + (-(-steps).expm1()).log()
        case _:
            return None


def ssd_matrix(b_BTN: Tensor, c_BTN: Tensor, step_BTH: Tensor, decay_H: Tensor) -> Tensor:
    """(B,H,T,T): L * C B^T with the steps, entry by entry."""
    batch, length, heads = step_BTH.shape
    decay = step_BTH * decay_H
    matrix = step_BTH.new_zeros(batch, heads, length, length)
    for t in range(length):
        for s in range(t + 1):
            seen = (c_BTN[:, t] * b_BTN[:, s]).sum(-1, keepdim=True)
            matrix[:, :, t, s] = seen * decay[:, s + 1 : t + 1].sum(1).exp() * step_BTH[:, s]
    return matrix


def ssd(
    x_BTHP: Tensor,
    b_BTN: Tensor,
    c_BTN: Tensor,
    step_BTH: Tensor,
    decay_H: Tensor,
    chunk: int,
    memory_BNHP: Tensor | None = None,
    documents_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """y (B,T,H,P) in chunks, and the memory behind the last position (None without one to begin with, if a
    chunk holds all positions: nothing is carried). `decay_H` is A, below 0. With `documents_BT`, and no
    memory, each document begins from nothing."""
    chunks = Chunks.of(x_BTHP, b_BTN, c_BTN, step_BTH, decay_H, chunk, documents_BT)
    read: Tensor | float = 0.0
    if chunks.n > 1 or memory_BNHP is not None:
        # Unbound at once: the gradient of `added[:, i]` is as large as all chunks' together, for each i.
        added, over = chunks.added().unbind(1), chunks.over()[:, :, None, :, None].unbind(1)
        memory = torch.zeros_like(added[0][:1]) if memory_BNHP is None else memory_BNHP
        before = []
        for over_B1H1, added_BNHP in zip(over, added, strict=True):
            before.append(memory.expand(len(x_BTHP), -1, -1, -1))
            memory = memory * over_B1H1 + added_BNHP
        memory_BNHP = memory
        taken = chunks.c @ torch.stack(before, 1).flatten(3)
        read = taken.view_as(chunks.written) * chunks.left_of_before()[..., None]
    y = read + (chunks.scores() @ chunks.written.transpose(2, 3)).transpose(2, 3)
    return y.flatten(1, 2)[:, : x_BTHP.shape[1]], memory_BNHP


class Chunks(NamedTuple):
    """`n` chunks of `size` positions; those added at the end decay nothing and write nothing."""

    n: int
    size: int
    written: Tensor
    """(B,c,Q,H,P): step x."""
    b: Tensor
    c: Tensor
    """(B,c,Q,N)"""
    sums: Tensor
    """(B,c,Q,H): log of the decay from the chunk's begin up to and with each position."""
    borders: Borders | None

    @staticmethod
    def of(
        x_BTHP: Tensor,
        b_BTN: Tensor,
        c_BTN: Tensor,
        step_BTH: Tensor,
        decay_H: Tensor,
        chunk: int,
        documents_BT: Tensor | None = None,
    ) -> Chunks:
        size = min(chunk, x_BTHP.shape[1])
        n = -(-x_BTHP.shape[1] // size)
        values = (x_BTHP * step_BTH[..., None], b_BTN, c_BTN, step_BTH * decay_H)
        written, b, c, decays = (_cut(x, n, size) for x in values)
        borders = None if documents_BT is None else Borders.of(documents_BT, n, size, x_BTHP.dtype)
        return Chunks(n, size, written, b, c, decays.cumsum(2), borders)

    def cut(self, x: Tensor) -> Tensor:
        """(B,T,…) -> (B,c,Q,…)"""
        return _cut(x, self.n, self.size)

    def added(self) -> Tensor:
        """(B,c,N,H,P): what each chunk has written, as its end remembers it."""
        left = (self.sums[:, :, -1:] - self.sums).exp()
        if self.borders is not None:
            left = left * self.borders.last[..., None]
        added = self.b.mT @ (self.written * left[..., None]).flatten(3)
        return added.view(*added.shape[:3], *self.written.shape[3:])

    def over(self) -> Tensor:
        """(B,c,H): what each chunk leaves of the memory before it."""
        left = self.sums[:, :, -1].exp()
        return left if self.borders is None else left * self.borders.through[..., None]

    def left_of_before(self) -> Tensor:
        """(B,c,Q,H): what each position has left of the memory before the chunk."""
        left = self.sums.exp()
        return left if self.borders is None else left * self.borders.carried[..., None]

    def scores(self) -> Tensor:
        """(B,c,H,Q,Q): L * C B^T within the chunk."""
        sums = self.sums.transpose(2, 3)
        between = sums[..., :, None] - sums[..., None, :]
        unseen = torch.ones_like(between, dtype=torch.bool).triu(1)
        if self.borders is not None:
            unseen = unseen | ~self.borders.same[:, :, None]
        return (self.c @ self.b.mT)[:, :, None] * between.masked_fill(unseen, -torch.inf).exp()


def _cut(x: Tensor, n: int, size: int) -> Tensor:
    padding = (0, 0) * (x.ndim - 2) + (0, n * size - x.shape[1])
    return F.pad(x, padding).view(len(x), n, size, *x.shape[2:])
