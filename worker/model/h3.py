"""H3 (Fu, Dao et al. 2023, "Hungry Hungry Hippos"): y = q x diag(shift(k) x v), heads of width one.

The shift is a state space that holds the last few keys, which is a short convolution. Parameters:
`qkv.weight` (q, k, v), `shift.weight` (taps, hidden), `ssm.*` as in `diagonal_ssm.py`, `out.weight`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scheduler.job import ModelSpec
from scheduler.mixers import H3Spec
from worker.model.diagonal_ssm import DiagonalSsm
from worker.model.mixer import SequenceMixer
from worker.model.parts import Linear
from worker.model.short_conv import ShortConv


class H3State(NamedTuple):
    """The last keys, and the state of the state space."""

    shifted: Tensor
    memory: Tensor


class H3(SequenceMixer):
    def __init__(self, model: ModelSpec, options: H3Spec) -> None:
        super().__init__()
        self.qkv = Linear(model.hidden, 3 * model.hidden, bias=False)
        self.shift = ShortConv(options.taps, model.hidden)
        self.ssm = DiagonalSsm(model.hidden, options.state, options.init, options.transform)
        self.out = Linear(model.hidden, model.hidden, bias=False)

    def initial(self, parameter: str, rng: torch.Generator) -> Tensor | None:
        if parameter == "shift.weight":
            return self.shift.initial(rng)
        return self.ssm.initial(parameter.removeprefix("ssm."), rng)

    def begin(self) -> H3State:
        return H3State(self.shift.begin(), self.ssm.begin())

    def forward(self, x_BTD: Tensor, state: H3State | None = None) -> tuple[Tensor, H3State | None]:
        q, k, v = self.qkv(x_BTD).chunk(3, dim=-1)
        k, shifted = self.shift(k, None if state is None else state.shifted)
        mixed, memory = self.ssm(k * v, None if state is None else state.memory)
        return self.out(q * mixed), None if state is None else H3State(shifted, memory)

    def as_matrix(self, x_BTD: Tensor) -> Tensor:
        length = x_BTD.shape[1]
        q, k, _ = self.qkv(x_BTD).chunk(3, dim=-1)
        shifted = (self.shift.to_dense(length) @ k.mT[..., None])[..., 0]  # (B,D,T)
        matrix: Tensor = q.mT[..., None] * self.ssm.to_dense(length) * shifted[..., None, :]
        return matrix

    def values(self, x_BTD: Tensor) -> Tensor:
        v: Tensor = self.qkv(x_BTD).chunk(3, dim=-1)[2]
        return v.mT[..., None]

    def finish(self, x_BTD: Tensor, mixed_BGTE: Tensor) -> Tensor:
        del x_BTD
        y: Tensor = self.out(mixed_BGTE[..., 0].mT)
        return y
