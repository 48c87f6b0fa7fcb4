"""Feed-forward networks: two matrices and what stands between them. Mixes channels, never positions."""

from __future__ import annotations

from math import pi, sqrt
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from scheduler.job import ModelSpec
from scheduler.mixers import MlpSpec
from worker.model.layer import State
from worker.model.mixer import Mixer
from worker.model.parts import Linear


class Mlp(Mixer):
    """down(gelu(up(x))), GELU in its tanh form (GPT-2's "gelu_new")."""

    residual: ClassVar[str] = "down.weight"

    def __init__(self, model: ModelSpec, options: MlpSpec) -> None:
        super().__init__()
        self.up = Linear(model.hidden, options.inner_in(model), bias=True)
        self.down = Linear(options.inner_in(model), model.hidden, bias=True)

    def forward(self, x_BTD: Tensor, state: State = None) -> tuple[Tensor, State]:
        return self.down(F.gelu(self.up(x_BTD), approximate="tanh")), state

    def dense(self, x_BTD: Tensor) -> Tensor:
        inner = self.up.dense(x_BTD)
        return self.down.dense(0.5 * inner * (1 + (sqrt(2 / pi) * (inner + 0.044715 * inner**3)).tanh()))


class GatedMlp(Mixer):
    """SwiGLU (Shazeer 2020): down(silu(gate(x)) x up(x)). Gate's rows come first in `gate_up`."""

    residual: ClassVar[str] = "down.weight"

    def __init__(self, model: ModelSpec, options: MlpSpec) -> None:
        super().__init__()
        self.inner = options.inner_in(model)
        self.gate_up = Linear(model.hidden, 2 * self.inner, bias=False)
        self.down = Linear(self.inner, model.hidden, bias=False)

    def forward(self, x_BTD: Tensor, state: State = None) -> tuple[Tensor, State]:
        gate, up = self.gate_up(x_BTD).split(self.inner, dim=-1)
        return self.down(F.silu(gate) * up), state

    def dense(self, x_BTD: Tensor) -> Tensor:
        gate, up = self.gate_up.dense(x_BTD).chunk(2, -1)
        return self.down.dense(gate / (1 + (-gate).exp()) * up)


def make_mlp(model: ModelSpec, options: MlpSpec) -> Mlp | GatedMlp:
    """The kind that `options` mean in `model`."""
    return (GatedMlp if options.gated_in(model) else Mlp)(model, options)
