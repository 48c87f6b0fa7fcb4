# mypy: disable-error-code="no-untyped-call, no-untyped-def, untyped-decorator, name-defined"
"""Rotary positions in one pass: the twin of `worker.model.rotary`, forward and, turned back, backward.

Reads queries or keys where they stand, between the rows of the projection, so that nothing is copied before.

Shapes: B samples, H heads, T positions, C the width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 16
"""Positions of a program."""


def turn(x_BHTC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    """x turned by the angles of its positions; both halves of a row of `cos_TC` and `sin_TC` are the same."""
    y: Tensor = _Turn.apply(x_BHTC, cos_TC, sin_TC)
    return y


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turned(dy, cos, sin, back=True), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    if x.stride(-1) != 1:
        x = x.contiguous()
    y = torch.empty_like(x)
    samples, heads, length, width = x.shape
    _kernel[(triton.cdiv(length, TILE), samples * heads)](
        x, y, cos, sin, heads, length, *x.stride()[:3], *y.stride()[:3], width // 2,
        triton.next_power_of_2(width // 2), TILE, back,
    )  # fmt: skip
    return y


@triton.jit
def _kernel(
    x, y, cos, sin, heads, length, x_sample, x_head, x_position, y_sample, y_head, y_position,
    HALF: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    positions, pairs = tl.program_id(0) * TILE + tl.arange(0, TILE), tl.arange(0, BLOCK)
    sample, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    good = (positions < length)[:, None] & (pairs < HALF)[None, :]
    at = sample * x_sample + head * x_head + positions[:, None] * x_position + pairs[None, :]
    angle = positions[:, None] * (2 * HALF) + pairs[None, :]
    c = tl.load(cos + angle, mask=good, other=0.0).to(tl.float32)
    s = tl.load(sin + angle, mask=good, other=0.0).to(tl.float32)
    if BACK:
        s = -s
    low = tl.load(x + at, mask=good, other=0.0).to(tl.float32)
    high = tl.load(x + at + HALF, mask=good, other=0.0).to(tl.float32)
    to = sample * y_sample + head * y_head + positions[:, None] * y_position + pairs[None, :]
    tl.store(y + to, (low * c - high * s).to(y.dtype.element_ty), mask=good)
    tl.store(y + to + HALF, (high * c + low * s).to(y.dtype.element_ty), mask=good)
