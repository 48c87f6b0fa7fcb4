"""Mixture of experts (Shazeer et al. 2017): each position takes the few experts that its router likes best.

Positions are put into the experts' order once, and every expert multiplies its own, all in one grouped
product where there is one (`worker/kernels/grouped.py`). Only what backward needs is kept, which is neither
what experts are given nor what they give (Guo et al. 2025, "SonicMoE", section 4), nor, in mixed precision,
copies of their matrices. Parameters: `router.weight`, `gate_up` (experts, 2 x inner, hidden), `down`
(experts, hidden, inner).

None is dropped, so a position's result does not depend on the others'; nor does anything push the router to
balance. A job may ask for either while it trains: `tile` (`rounded`) and `balance` (`unevenness`).

Shapes: B samples, T positions, R rows (B x T), K experts of each, E experts, W weights a row (K or E), n
chosen pairs of row and expert, D hidden, F inner width.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from scheduler.job import ModelSpec
from scheduler.mixers import ExpertsSpec
from worker.kernels.grouped import Taken, Ways, joined, way
from worker.model.layer import ModelError, State, blank
from worker.model.mixer import Mixer
from worker.model.parts import Linear
from worker.model.ring import Shard
from worker.model.training import add_loss, is_training


class Routes(NamedTuple):
    """Who takes what, and how much it weighs."""

    weights_RW: Tensor
    places_n: Tensor
    """Into the flat weights, in the order of experts and then of rows."""
    counts_E: Tensor
    """Rows of each expert."""


class Experts(Mixer):
    residual: ClassVar[str] = "down"

    def __init__(self, model: ModelSpec, options: ExpertsSpec) -> None:
        super().__init__()
        width, inner = model.hidden, options.inner_in(model)
        self.top, self.tile, self.balance = options.top, options.tile, options.balance
        self.kernel = options.kernel
        self.router = Linear(width, options.experts, bias=False)
        self.gate_up = blank(options.experts, 2 * inner, width)
        self.down = blank(options.experts, width, inner)

    def in_shard(self, shard: Shard) -> State:
        if self.tile or self.balance:
            raise ModelError(
                "found experts with tile or balance, which look at all of a sample, in a stage that holds"
                " shards of sequences; required experts without, or replicas that share the batch"
            )
        return super().in_shard(shard)

    def forward(self, x_BTD: Tensor, state: State = None) -> tuple[Tensor, State]:
        logits_BTE = self.router(x_BTD)
        routes = self._routed(logits_BTE)
        if self.balance and is_training():
            add_loss(self.balance * unevenness(logits_BTE, self.top))
        x_RD, weights_RW = x_BTD.flatten(0, 1), routes.weights_RW
        if torch.is_autocast_enabled(x_BTD.device.type):
            narrow = torch.get_autocast_dtype(x_BTD.device.type)
            x_RD, weights_RW = x_RD.to(narrow), weights_RW.to(narrow)
        ways = way(self.kernel, x_RD, self.down.shape[1:])
        if ways is None:
            raise ModelError(
                f"found experts kernel={self.kernel} for {x_RD.dtype} on {x_RD.device}; required a device and"
                " a type that it takes (torch: rows of whole 16 bytes; triton: a GPU that Triton knows and"
                " at most float32), or kernel=auto"
            )
        y_RD: Tensor = _Chosen.apply(  # type: ignore[no-untyped-call]
            ways, routes.places_n, routes.counts_E, x_RD, weights_RW, self.gate_up, self.down
        )
        return y_RD.view_as(x_BTD), state

    def dense(self, x_BTD: Tensor) -> Tensor:
        """Every expert for every position, those not chosen weighing nothing."""
        weights_RW, places_n, counts_E = self._routed(self.router(x_BTD))
        x_RD = x_BTD.flatten(0, 1)
        experts_n = torch.arange(len(counts_E)).repeat_interleave(counts_E)
        taken_n = weights_RW.flatten()[places_n]
        rows_n = places_n // weights_RW.shape[1]
        weights_RE = x_RD.new_zeros(len(x_RD), len(counts_E)).index_put((rows_n, experts_n), taken_n)
        gate, up = (x_RD @ self.gate_up.mT).chunk(2, dim=-1)
        y_ERD = (gate * gate.sigmoid() * up) @ self.down.mT
        return torch.einsum("re,erd->rd", weights_RE, y_ERD).view_as(x_BTD)

    def _routed(self, logits_BTE: Tensor) -> Routes:
        logits_RE = logits_BTE.flatten(0, 1)
        liked_RK, chosen_RK = logits_RE.topk(self.top, dim=-1)
        if self.tile and is_training() and len(logits_RE) >= self.tile:
            return rounded(logits_RE, chosen_RK, self.tile)
        order = chosen_RK.flatten().argsort(stable=True)
        counts_E = order.new_zeros(logits_RE.shape[1])
        counts_E.scatter_add_(0, chosen_RK.flatten(), torch.ones_like(order))
        return Routes(liked_RK.softmax(-1), order, counts_E)


def rounded(logits_RE: Tensor, chosen_RK: Tensor, tile: int) -> Routes:
    """Token rounding (Guo et al. 2025, "SonicMoE", section 5): each expert's rows are made a multiple of
    `tile`, the nearest to what it was chosen for, so that no tile of its matrix products is padded.

    An expert with too many gives up those that like it least; one with too few takes, of the rows that did
    not choose it, those that like it best. A row weighs the experts that it is left with, maybe none or more
    than K, by the softmax over those. Which rows these are follows from all of the micro-batch, later
    positions too: for training alone.
    """
    rows = len(logits_RE)
    mine_RE = torch.zeros_like(logits_RE, dtype=torch.bool).scatter(1, chosen_RK, True)
    most = rows // tile * tile
    counts_E = ((mine_RE.sum(0) + tile // 2) // tile * tile).clamp(max=most)
    with torch.no_grad():
        # Rows that chose an expert come before all that did not: likings are below 1.
        likings_RE = logits_RE.softmax(-1, dtype=torch.float32) + mine_RE
        order_RE = likings_RE.argsort(dim=0, descending=True, stable=True)
        rank_RE = torch.empty_like(order_RE)
        at_R1 = torch.arange(rows, device=order_RE.device)[:, None].expand_as(order_RE)
        rank_RE.scatter_(0, order_RE, at_R1)
        taken_RE = rank_RE < counts_E
    # Not -inf, for a row may be left without any: its weights are then made 0.
    lowest = torch.finfo(logits_RE.dtype).min
    weights_RE = logits_RE.masked_fill(~taken_RE, lowest).softmax(-1) * taken_RE
    experts_n, rows_n = taken_RE.mT.nonzero().unbind(1)
    return Routes(weights_RE, rows_n * logits_RE.shape[1] + experts_n, counts_E)


def unevenness(logits_BTE: Tensor, top: int) -> Tensor:
    """The load-balancing loss of Switch (Fedus, Zoph and Shazeer 2022, equations 4 to 6), with K experts a
    position (GShard), of each sample by itself (DeepSeek-V3, section 2.1.2):

        sum_e f_e P_e,  f_e = E / (K T) x positions that chose e,  P_e = mean of the router's softmax

    1 where all experts are chosen alike. Weighed by the sample's positions and summed over samples, as the
    cross entropy is: so it is the same however samples are put into micro-batches and replicas.
    """
    length, experts = logits_BTE.shape[1:]
    chosen_BTK = logits_BTE.detach().topk(top, dim=-1).indices
    ones = torch.ones_like(chosen_BTK, dtype=torch.float32).flatten(1)
    counts_BE = ones.new_zeros(len(logits_BTE), experts).scatter_add(1, chosen_BTK.flatten(1), ones)
    wide = torch.promote_types(logits_BTE.dtype, torch.float32)
    likings_BE = logits_BTE.softmax(-1, dtype=wide).mean(1)
    return (counts_BE * experts / (top * length) * likings_BE).sum() * length


class _Chosen(torch.autograd.Function):
    """sum over a row's experts of weight x expert(row), in x's type, gradients in the parameters'."""

    @staticmethod
    def forward(
        ctx: Any,
        ways: Ways,
        places_n: Tensor,
        counts_E: Tensor,
        x_RD: Tensor,
        weights_RW: Tensor,
        gate_up: Tensor,
        down: Tensor,
    ) -> Tensor:
        rows_n = places_n // weights_RW.shape[1]
        inner, y_RD = list[Tensor](), None
        for groups, at in ways.portions(counts_E):
            counts = counts_E[groups]
            inner.append(ways.product(Taken(x_RD, rows_n[at]), gate_up[groups].mT, counts))
            gate, up = inner[-1].chunk(2, dim=-1)
            y_nD = ways.product(Taken(F.silu(gate) * up), down[groups].mT, counts)
            y_RD = ways.collect(y_nD, places_n[at], weights_RW, True, y_RD)
        assert y_RD is not None, "there are experts"
        ctx.save_for_backward(x_RD, weights_RW, gate_up, down, places_n, counts_E, joined(inner))
        ctx.ways = ways
        return y_RD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_RD: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of a choice's weight is dy . y = (down^T dy) . a, so no y is needed."""
        x_RD, weights_RW, gate_up, down, places_n, counts_E, inner = ctx.saved_tensors
        ways: Ways = ctx.ways
        dx, dweights = None, torch.zeros_like(weights_RW)
        dgate_up, ddown = torch.empty_like(gate_up), torch.empty_like(down)
        for groups, at in ways.portions(counts_E):
            counts, places = counts_E[groups], places_n[at]
            rows, weights_n1 = places // weights_RW.shape[1], weights_RW.flatten()[places, None]
            x, dy = Taken(x_RD, rows), Taken(dy_RD, rows)
            gate, up = inner[at].chunk(2, dim=-1)
            sigma = gate.sigmoid()
            a = gate * sigma * up
            da = ways.product(dy, down[groups], counts)
            dweights.view(-1)[places] = (da * a).sum(-1)
            da = da * weights_n1
            ways.outer(dy, Taken(a * weights_n1), counts, ddown[groups])
            dinner = torch.cat((da * up * sigma * (1 + gate * (1 - sigma)), da * gate * sigma), dim=-1)
            ways.outer(Taken(dinner), x, counts, dgate_up[groups])
            dx = ways.collect(
                ways.product(Taken(dinner), gate_up[groups], counts), places, weights_RW, False, dx
            )
        return None, None, None, dx, dweights, dgate_up, ddown
