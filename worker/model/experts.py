"""Mixture of experts (Shazeer et al. 2017): each position takes the few experts that its router likes best.

Positions are put into the experts' order once, and every expert multiplies its own, all of them: none is
dropped, so a position's result does not depend on the others'. Only what backward needs is kept, which is
neither what experts are given nor what they give (Guo et al. 2025, "SonicMoE", section 4). Nothing pushes the
router to balance. Parameters: `router.weight`, `gate_up` (experts, 2 x inner, hidden), `down` (experts,
hidden, inner).

Shapes: R rows (positions), K experts of each, E experts, D hidden, F inner width.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from scheduler.job import ModelSpec
from scheduler.mixers import ExpertsSpec
from worker.model.layer import State, blank
from worker.model.mixer import Mixer
from worker.model.parts import Linear


class Experts(Mixer):
    residual: ClassVar[str] = "down"

    def __init__(self, model: ModelSpec, options: ExpertsSpec) -> None:
        super().__init__()
        width, inner = model.hidden, options.inner_in(model)
        self.top = options.top
        self.router = Linear(width, options.experts, bias=False)
        self.gate_up = blank(options.experts, 2 * inner, width)
        self.down = blank(options.experts, width, inner)

    def forward(self, x_BTD: Tensor, state: State = None) -> tuple[Tensor, State]:
        weights_RK, chosen_RK = self._routed(x_BTD)
        inputs = x_BTD.flatten(0, 1), weights_RK, self.gate_up, self.down
        if torch.is_autocast_enabled(x_BTD.device.type):
            narrow = torch.get_autocast_dtype(x_BTD.device.type)
            inputs = tuple(x.to(narrow) for x in inputs)  # type: ignore[assignment]
        y_RD: Tensor = _Chosen.apply(chosen_RK, *inputs)  # type: ignore[no-untyped-call]
        return y_RD.view_as(x_BTD), state

    def dense(self, x_BTD: Tensor) -> Tensor:
        """Every expert for every position, those not chosen weighing nothing."""
        weights_RK, chosen_RK = self._routed(x_BTD)
        x_RD = x_BTD.flatten(0, 1)
        weights_RE = x_RD.new_zeros(len(x_RD), len(self.down)).scatter(1, chosen_RK, weights_RK)
        gate, up = (x_RD @ self.gate_up.mT).chunk(2, dim=-1)
        y_ERD = (gate * gate.sigmoid() * up) @ self.down.mT
        return torch.einsum("re,erd->rd", weights_RE, y_ERD).view_as(x_BTD)

    def _routed(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        liked, chosen = self.router(x_BTD).flatten(0, 1).topk(self.top, dim=-1)
        return liked.softmax(-1), chosen


class _Chosen(torch.autograd.Function):
    """sum over a row's experts of weight x expert(row)."""

    @staticmethod
    def forward(
        ctx: Any, chosen_RK: Tensor, x_RD: Tensor, weights_RK: Tensor, gate_up: Tensor, down: Tensor
    ) -> Tensor:
        order = chosen_RK.flatten().argsort(stable=True)
        counts = chosen_RK.flatten().bincount(minlength=len(down)).tolist()
        y_RD = torch.zeros_like(x_RD)
        inner = []
        for e, mine in enumerate(torch.split(order, counts)):
            rows = mine // chosen_RK.shape[1]
            inner.append(x_RD[rows] @ gate_up[e].mT)
            gate, up = inner[-1].chunk(2, dim=-1)
            y = (F.silu(gate) * up) @ down[e].mT
            y_RD.index_add_(0, rows, y * weights_RK.flatten()[mine, None])
        ctx.save_for_backward(x_RD, weights_RK, gate_up, down, order, torch.cat(inner))
        ctx.counts = counts
        return y_RD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_RD: Tensor) -> tuple[None, Tensor, Tensor, Tensor, Tensor]:
        """The gradient of a choice's weight is dy . y = (down^T dy) . a, so no y is needed."""
        x_RD, weights_RK, gate_up, down, order, inner = ctx.saved_tensors
        dx, dweights = torch.zeros_like(x_RD), torch.empty_like(weights_RK).flatten()
        dgate_up, ddown = torch.empty_like(gate_up), torch.empty_like(down)
        places = zip(order.split(ctx.counts), inner.split(ctx.counts), strict=True)
        for e, (mine, values) in enumerate(places):
            rows, weights = mine // weights_RK.shape[1], weights_RK.flatten()[mine, None]
            gate, up = values.chunk(2, dim=-1)
            sigma = gate.sigmoid()
            a, dy = gate * sigma * up, dy_RD[rows]
            da = dy @ down[e]
            dweights[mine] = (da * a).sum(-1)
            da = da * weights
            ddown[e] = (dy * weights).mT @ a
            dvalues = torch.cat((da * up * sigma * (1 + gate * (1 - sigma)), da * gate * sigma), dim=-1)
            dgate_up[e] = dvalues.mT @ x_RD[rows]
            dx.index_add_(0, rows, dvalues @ gate_up[e])
        return None, dx, dweights.view_as(weights_RK), dgate_up, ddown
