"""S4D (Gu, Goel, Gupta and Ré 2022) and LSSL (`dense_ssm.py`): a state space a channel, GELU, and a gated
projection.

Parameters: those of the state space behind `ssm.`, and `out.weight` (value's rows, then gate's).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from scheduler.job import ModelSpec
from scheduler.mixers import LsslSpec, S4dSpec
from worker.model.dense_ssm import DenseSsm
from worker.model.diagonal_ssm import DiagonalSsm
from worker.model.mixer import SequenceMixer
from worker.model.parts import Linear


class Gated(SequenceMixer):
    """Filtered channels behind GELU and a gated linear unit: a child mixes the positions."""

    out: Linear

    def filter_matrix(self, length: int) -> Tensor:
        """(D,T,T): what the positions of each channel are multiplied with."""
        raise NotImplementedError

    def as_matrix(self, x_BTD: Tensor) -> Tensor:
        return self.filter_matrix(x_BTD.shape[1]).expand(len(x_BTD), -1, -1, -1)

    def values(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.mT[..., None]

    def finish(self, x_BTD: Tensor, mixed_BGTE: Tensor) -> Tensor:
        del x_BTD
        return self.gated(mixed_BGTE[..., 0].mT)

    def gated(self, filtered_BTD: Tensor) -> Tensor:
        value, gate = self.out(F.gelu(filtered_BTD, approximate="tanh")).chunk(2, dim=-1)
        y: Tensor = value * gate.sigmoid()
        return y


class GatedSsm(Gated):
    """A state space a channel filters."""

    def __init__(self, ssm: DiagonalSsm | DenseSsm) -> None:
        super().__init__()
        self.ssm = ssm
        self.out = Linear(ssm.width, 2 * ssm.width, bias=False)

    def initial(self, parameter: str, rng: torch.Generator) -> Tensor | None:
        return self.ssm.initial(parameter.removeprefix("ssm."), rng)

    def begin(self) -> Tensor:
        return self.ssm.begin()

    def forward(self, x_BTD: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        filtered, state = self.ssm(x_BTD, state)
        return self.gated(filtered), state

    def filter_matrix(self, length: int) -> Tensor:
        return self.ssm.to_dense(length)


class S4d(GatedSsm):
    def __init__(self, model: ModelSpec, options: S4dSpec) -> None:
        super().__init__(DiagonalSsm(model.hidden, options.state, options.init, options.transform))


class Lssl(GatedSsm):
    def __init__(self, model: ModelSpec, options: LsslSpec) -> None:
        super().__init__(DenseSsm(model.hidden, options.state, options.transform))
