# mypy: disable-error-code="no-untyped-call, no-untyped-def, untyped-decorator, name-defined"
"""Residual add and norm in one pass over the rows: the twin of `worker.model.parts`' norms after an add.

A program holds a row whole: it adds, rounds the sum to the model's type as the reference does, and norms it;
backward reads the sum once more. Gradients of the scale are summed over fixed sets of rows, so the result
does not hang on which program was first. Knows no block.

Shapes: R rows (positions of all samples), D values of a row.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

PARTS = 256
"""Programs that sum the scale's gradient, each over every PARTS-th row."""


def add_norm(
    x: Tensor, added: Tensor, weight_D: Tensor, bias_D: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """(x + added, its norm), of their common dtype: LayerNorm where there is a bias, else RMSNorm."""
    total, y = _AddNorm.apply(x, added, weight_D, bias_D, eps)
    return total, y


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, added: Tensor, weight: Tensor, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        x, added = x.contiguous(), added.contiguous()
        width = x.shape[-1]
        rows = x.numel() // width
        total = torch.empty_like(x, dtype=torch.promote_types(x.dtype, added.dtype))
        y = torch.empty_like(total)
        statistics = x.new_empty((2, rows), dtype=torch.float32)
        layer = bias is not None
        _forward[(rows,)](
            x, added, weight, weight if bias is None else bias, total, y, *statistics, eps, width,
            layer, triton.next_power_of_2(width),
        )  # fmt: skip
        ctx.save_for_backward(total, weight, statistics)
        ctx.layer, ctx.types = layer, (x.dtype, added.dtype)
        return total, y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dtotal: Tensor, dy: Tensor) -> tuple[Tensor | None, ...]:
        total, weight, statistics = ctx.saved_tensors
        width = total.shape[-1]
        rows = total.numel() // width
        parts = min(rows, PARTS)
        dx = torch.empty_like(total)
        sums = total.new_empty((2, parts, width), dtype=torch.float32)
        _backward[(parts,)](
            total, weight, *statistics, dtotal.contiguous(), dy.contiguous(), dx, *sums, rows, width,
            ctx.layer, triton.next_power_of_2(width),
        )  # fmt: skip
        dbias = sums[1].sum(0).to(weight.dtype) if ctx.layer else None
        dadded = dx.to(ctx.types[1])
        return dx.to(ctx.types[0]), dadded, sums[0].sum(0).to(weight.dtype), dbias, None


@triton.jit
def _forward(
    x, added, weight, bias, total, y, means, inverses, eps, width,
    LAYER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, columns = tl.program_id(0), tl.arange(0, BLOCK)
    at, good = row.to(tl.int64) * width + columns, columns < width
    both = tl.load(x + at, mask=good, other=0.0).to(tl.float32)
    both += tl.load(added + at, mask=good, other=0.0).to(tl.float32)
    rounded = both.to(total.dtype.element_ty)
    tl.store(total + at, rounded, mask=good)
    values = rounded.to(tl.float32)
    if LAYER:
        mean = tl.sum(values, 0) / width
        tl.store(means + row, mean)
        values = tl.where(good, values - mean, 0.0)
    inverse = 1 / tl.sqrt(tl.sum(values * values, 0) / width + eps)
    tl.store(inverses + row, inverse)
    normed = values * inverse * tl.load(weight + columns, mask=good, other=0.0).to(tl.float32)
    if LAYER:
        normed += tl.load(bias + columns, mask=good, other=0.0).to(tl.float32)
    tl.store(y + at, normed.to(y.dtype.element_ty), mask=good)


@triton.jit
def _backward(
    total, weight, means, inverses, dtotal, dy, dx, dweights, dbiases, rows, width,
    LAYER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    part, columns = tl.program_id(0), tl.arange(0, BLOCK)
    good = columns < width
    scale = tl.load(weight + columns, mask=good, other=0.0).to(tl.float32)
    dweight = tl.zeros([BLOCK], tl.float32)
    dbias = tl.zeros([BLOCK], tl.float32)
    for row in range(part, rows, tl.num_programs(0)):
        at = tl.cast(row, tl.int64) * width + columns
        values = tl.load(total + at, mask=good, other=0.0).to(tl.float32)
        if LAYER:
            values = tl.where(good, values - tl.load(means + row), 0.0)
        inverse = tl.load(inverses + row)
        normed = values * inverse
        above = tl.load(dy + at, mask=good, other=0.0).to(tl.float32)
        dweight += above * normed
        dbias += above
        scaled = above * scale
        inner = scaled - normed * (tl.sum(scaled * normed, 0) / width)
        if LAYER:
            inner -= tl.sum(scaled, 0) / width
        beside = tl.load(dtotal + at, mask=good, other=0.0).to(tl.float32)
        tl.store(dx + at, (beside + inner * inverse).to(dx.dtype.element_ty), mask=good)
    tl.store(dweights + part * width + columns, dweight, mask=good)
    tl.store(dbiases + part * width + columns, dbias, mask=good)
