"""Feed-forward networks: two matrices and what stands between them. Mixes channels, never positions.

Parameters: `up.*` or, gated, `gate_up.*` (gate's rows first), and `down.*`: `weight` and `bias`, or those of
`structured.py`.
"""

from __future__ import annotations

from math import pi, sqrt
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from scheduler.job import ModelSpec
from scheduler.mixers import MlpSpec
from worker.kernels import choice
from worker.model.layer import State
from worker.model.mixer import Mixer
from worker.model.parts import Linear
from worker.model.structured import Structured, make_linear


class _Mlp(Mixer):
    residual: ClassVar[str] = "down.weight"

    def initial(self, parameter: str, rng: torch.Generator) -> Tensor | None:
        name, _, rest = parameter.partition(".")
        linear = self.get_submodule(name)
        return linear.initial(rest, rng) if isinstance(linear, Structured) else None


class Mlp(_Mlp):
    """down(gelu(up(x))), GELU in its tanh form (GPT-2's "gelu_new")."""

    def __init__(self, model: ModelSpec, options: MlpSpec) -> None:
        super().__init__()
        up, down = options.shapes_in(model)
        self.up = make_linear(options, *up, bias=True)
        self.down = make_linear(options, *down, bias=True, std=0.02 / sqrt(model.parts))

    def forward(self, x_BTD: Tensor, state: State = None) -> tuple[Tensor, State]:
        if choice.runs_here(x_BTD) and isinstance(self.up, Linear) and self.up.bias is not None:
            from worker.kernels.gates_triton import bias_gelu

            return self.down(bias_gelu(F.linear(x_BTD, self.up.weight), self.up.bias)), state
        return self.down(F.gelu(self.up(x_BTD), approximate="tanh")), state

    def dense(self, x_BTD: Tensor) -> Tensor:
        inner = self.up.dense(x_BTD)
        return self.down.dense(0.5 * inner * (1 + (sqrt(2 / pi) * (inner + 0.044715 * inner**3)).tanh()))


class GatedMlp(_Mlp):
    """SwiGLU (Shazeer 2020): down(silu(gate(x)) x up(x))."""

    def __init__(self, model: ModelSpec, options: MlpSpec) -> None:
        super().__init__()
        up, down = options.shapes_in(model)
        self.gate_up = make_linear(options, *up, bias=False)
        self.down = make_linear(options, *down, bias=False, std=0.02 / sqrt(model.parts))

    def forward(self, x_BTD: Tensor, state: State = None) -> tuple[Tensor, State]:
        if choice.runs_here(x_BTD):
            from worker.kernels.gates_triton import swiglu

            return self.down(swiglu(self.gate_up(x_BTD))), state
        gate, up = self.gate_up(x_BTD).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up), state

    def dense(self, x_BTD: Tensor) -> Tensor:
        gate, up = self.gate_up.dense(x_BTD).chunk(2, -1)
        return self.down.dense(gate / (1 + (-gate).exp()) * up)


def make_mlp(model: ModelSpec, options: MlpSpec) -> Mlp | GatedMlp:
    """The kind that `options` mean in `model`."""
    return (GatedMlp if options.gated_in(model) else Mlp)(model, options)
