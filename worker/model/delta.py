"""Gated DeltaNet (Yang, Kautz and Hatamizadeh 2025): a fading state that corrects what it holds.

    S_t = a_t (1 - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T,   y_t = S_t^T q_t

with keys of length 1: what k_t finds is taken before v_t is written. In chunks (their section 3.3): what is
written, b (v - what is found), follows from a unit triangular system. Parameters: `into.weight` (q, k, v,
gate, strengths b, fading a), `conv.weight` over q, k and v, `log_decay` and `step_bias` a head, `norm.weight`
of a head's width, `out.weight`.

Shapes: B samples, T positions, H heads, N width of a key, P of a value, c chunks of Q positions.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scheduler.job import ModelSpec
from scheduler.mixers import DeltaSpec
from worker.model.cores import recomputed
from worker.model.documents import Borders
from worker.model.layer import blank
from worker.model.mixer import SequenceMixer
from worker.model.parts import Linear, RMSNorm
from worker.model.short_conv import ShortConv
from worker.model.ssd import initial_decays


class DeltaState(NamedTuple):
    """What convolution and rule remember."""

    convolved: Tensor
    memory_BHNP: Tensor


class Inputs(NamedTuple):
    """Of the rule: q and k (B,H,T,N), v (B,H,T,P), strengths and log of the fading (B,H,T)."""

    q: Tensor
    k: Tensor
    v: Tensor
    strength: Tensor
    fading: Tensor


class Delta(SequenceMixer):
    def __init__(self, model: ModelSpec, options: DeltaSpec) -> None:
        super().__init__()
        self.heads, self.key, self.chunk = options.heads_in(model), options.key_in(model), options.chunk
        self.value = model.hidden // self.heads
        qkv = self.heads * (2 * self.key + self.value)
        self.into = Linear(model.hidden, qkv + model.hidden + 2 * self.heads, bias=False)
        self.conv = ShortConv(options.taps, qkv)
        self.log_decay, self.step_bias = blank(self.heads), blank(self.heads)
        self.norm = RMSNorm(self.value, model.norm_eps)
        self.out = Linear(model.hidden, model.hidden, bias=False)

    def initial(self, parameter: str, rng: torch.Generator) -> Tensor | None:
        if parameter == "conv.weight":
            return self.conv.initial(rng)
        return initial_decays(parameter, self.heads, rng)

    def begin(self) -> DeltaState:
        memory = self.log_decay.new_zeros(1, self.heads, self.key, self.value)
        return DeltaState(self.conv.begin(), memory)

    def forward(
        self, x_BTD: Tensor, state: DeltaState | None = None, documents_BT: Tensor | None = None
    ) -> tuple[Tensor, DeltaState | None]:
        before = None if state is None else state.convolved
        given, gate, convolved = self._projected(x_BTD, before, documents_BT)
        if state is None:
            return self._finished(gate, recomputed(delta, *given, self.chunk, documents_BT)), None
        if x_BTD.shape[1] == 1:
            y, memory = one_step(given, state.memory_BHNP)
            return self._finished(gate, y), DeltaState(convolved, memory)
        y, memory = delta_behind(given, self.chunk, state.memory_BHNP)
        return self._finished(gate, y), DeltaState(convolved, memory)

    def as_matrix(self, x_BTD: Tensor) -> Tensor:
        given, _, _ = self._projected(x_BTD, None)
        q, k, _, strength, fading = given
        length = x_BTD.shape[1]
        matrix = q.new_zeros(*q.shape[:2], length, length)
        for s in range(length):
            written = strength[..., s, None] * k[..., s, :]
            matrix[..., s, s] = (q[..., s, :] * written).sum(-1)
            for t in range(s + 1, length):
                key = k[..., t, :]
                found = (key * written).sum(-1, keepdim=True)
                written = fading[..., t, None].exp() * (written - strength[..., t, None] * key * found)
                matrix[..., t, s] = (q[..., t, :] * written).sum(-1)
        return matrix

    def values(self, x_BTD: Tensor) -> Tensor:
        return self._projected(x_BTD, None)[0].v

    def finish(self, x_BTD: Tensor, mixed_BGTE: Tensor) -> Tensor:
        return self._finished(self._projected(x_BTD, None)[1], mixed_BGTE)

    def _projected(
        self, x_BTD: Tensor, state: Tensor | None, documents_BT: Tensor | None = None
    ) -> tuple[Inputs, Tensor, Tensor]:
        """What the rule is given, the gate (B,T,D), the convolution's state."""
        widths = [self.conv.width, self.heads * self.value, self.heads, self.heads]
        qkv, gate, strength, step = torch.split(self.into(x_BTD), widths, dim=-1)
        qkv, state = self.conv(qkv, state, documents_BT)
        q, k, v = (
            x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)
            for x in torch.split(F.silu(qkv), [self.heads * self.key] * 2 + [gate.shape[-1]], dim=-1)
        )
        fading = -self.log_decay.exp() * F.softplus(step + self.step_bias)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        return Inputs(q, k, v, strength.sigmoid().mT, fading.mT), gate, state

    def _finished(self, gate_BTD: Tensor, y_BHTP: Tensor) -> Tensor:
        normed = self.norm(y_BHTP.transpose(1, 2).to(self.norm.weight.dtype))
        y: Tensor = self.out(normed.flatten(2) * F.silu(gate_BTD))
        return y


def one_step(given: Inputs, memory_BHNP: Tensor) -> tuple[Tensor, Tensor]:
    """y (B,H,1,P) and the memory, by the rule as it stands."""
    q, k, v, strength, fading = (x.squeeze(2) for x in given)
    memory = memory_BHNP * fading[..., None, None].exp()
    found = torch.einsum("bhn,bhnp->bhp", k, memory.expand(len(k), -1, -1, -1))
    memory = memory + k[..., None] * (strength[..., None] * (v - found))[..., None, :]
    return torch.einsum("bhn,bhnp->bhp", q, memory)[:, :, None], memory


class DeltaChunks:
    """The rule in `n` chunks of `size` positions; those added at the end write nothing and fade nothing. With
    `documents_BT` each document begins from nothing."""

    def __init__(self, given: Inputs, n: int, size: int, documents_BT: Tensor | None = None) -> None:
        self.n, self.size = n, size
        self.length = given.q.shape[2]
        self.q, self.k, self.v, self.strength, fading = (self.cut(x) for x in given)
        self.sums = fading.cumsum(-1)  # (B,c,H,Q): log of what is left since the chunk's begin
        later = torch.ones(size, size, dtype=torch.bool, device=self.q.device).triu(1)
        between = self.sums[..., :, None] - self.sums[..., None, :]
        self.left = between.masked_fill(later, -torch.inf).exp()
        # What is left of the state before the chunk at each position; of each position's, and of that state,
        # at the chunk's end.
        self.since, self.until = self.sums.exp(), (self.sums[..., -1:] - self.sums).exp()
        self.over = self.sums[..., -1].exp()
        if documents_BT is not None:
            borders = Borders.of(documents_BT, n, size, self.q.dtype)
            self.left = self.left * borders.same[:, :, None]
            self.since = self.since * borders.carried[:, :, None]
            self.until = self.until * borders.last[:, :, None]
            self.over = self.over * borders.through[..., None]

    def cut(self, x: Tensor) -> Tensor:
        """(B,H,T,…) -> (B,c,H,Q,…)"""
        padding = (0, 0) * (x.ndim - 3) + (0, self.n * self.size - x.shape[2])
        return F.pad(x, padding).view(*x.shape[:2], self.n, self.size, *x.shape[3:]).transpose(1, 2)

    def joined(self, y_BcHQP: Tensor) -> Tensor:
        """(B,H,T,P)"""
        return y_BcHQP.transpose(1, 2).flatten(2, 3)[:, :, : self.length]

    @cached_property
    def solved(self) -> Tensor:
        """(1 + L)^-1 with L_ts = b_t left_ts k_t . k_s below the diagonal, (B,c,H,Q,Q).

        L to the power of Q is 0, so this is (1 - L)(1 + L^2)(1 + L^4) … to Q/2.
        """
        power = (self.strength[..., None] * self.left * (self.k @ self.k.mT)).tril(-1)
        solved = torch.eye(self.size, dtype=power.dtype, device=power.device) - power
        for _ in range((self.size - 1).bit_length() - 1):
            power = power @ power
            solved = solved + solved @ power
        return solved

    @cached_property
    def seen(self) -> Tensor:
        """left_ts q_t . k_s, (B,c,H,Q,Q)."""
        return self.left * (self.q @ self.k.mT)

    def matrix(self) -> Tensor:
        """What position t takes of the value of s in its chunk, (B,c,H,Q,Q)."""
        return (self.seen @ self.solved) * self.strength[..., None, :]

    @cached_property
    def found(self) -> Tensor:
        """What the chunk's writing takes of the state before it, for each position: (B,c,H,Q,N)."""
        return self.solved @ ((self.strength * self.since)[..., None] * self.k)

    def queries(self) -> Tensor:
        """Queries to the state before the chunk, (B,c,H,Q,N)."""
        return self.since[..., None] * self.q - self.seen @ self.found

    @cached_property
    def _keys(self) -> Tensor:
        """Keys as the chunk's end has them, transposed: (B,c,H,N,Q)."""
        return (self.until[..., None] * self.k).mT

    def added(self) -> Tensor:
        """What the chunk adds to the state, (B,c,H,N,P)."""
        return self._keys @ (self.solved @ (self.strength[..., None] * self.v))

    def transition(self) -> Tensor:
        """What the chunk leaves of the state before it: (B,c,H,N,N)."""
        identity = torch.eye(self.k.shape[-1], dtype=self.k.dtype, device=self.k.device)
        return self.over[..., None, None] * identity - self._keys @ self.found


def delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    strength: Tensor,
    fading: Tensor,
    chunk: int,
    documents_BT: Tensor | None = None,
) -> Tensor:
    """y (B,H,T,P) from the first position, or from each document's, on, in chunks."""
    size = min(chunk, q.shape[2])
    n = -(-q.shape[2] // size)
    chunks = DeltaChunks(Inputs(q, k, v, strength, fading), n, size, documents_BT)
    matrix = chunks.matrix()
    read: Tensor | float = 0.0
    if chunks.n > 1:
        # Unbound at once: the gradient of `added[:, i]` is as large as all chunks' together, for each i.
        added = chunks.added().unbind(1)[:-1]
        over = chunks.transition().unbind(1)[1:-1] if chunks.n > 2 else ()
        memory = added[0]
        before = [torch.zeros_like(memory), memory]
        for over_BHNN, added_BHNP in zip(over, added[1:], strict=True):
            memory = over_BHNN @ memory + added_BHNP
            before.append(memory)
        read = chunks.queries() @ torch.stack(before, 1)
    return chunks.joined(read + matrix @ chunks.v)


def delta_behind(given: Inputs, chunk: int, memory_BHNP: Tensor) -> tuple[Tensor, Tensor]:
    """y (B,H,T,P) behind the positions that `memory` holds, and the memory then."""
    size = min(chunk, given.q.shape[2])
    chunks = DeltaChunks(given, -(-given.q.shape[2] // size), size)
    added, over = chunks.added().unbind(1), chunks.transition().unbind(1)
    memory, before = memory_BHNP.expand_as(added[0]), []
    for over_BHNN, added_BHNP in zip(over, added, strict=True):
        before.append(memory)
        memory = over_BHNN @ memory + added_BHNP
    y = chunks.queries() @ torch.stack(before, 1) + chunks.matrix() @ chunks.v
    return chunks.joined(y), memory
