# mypy: disable-error-code="no-untyped-call, no-untyped-def, untyped-decorator, name-defined"
"""What stands between the matrices of a feed-forward network, in one pass: SwiGLU, and GELU with its bias.

The twins of `worker.model.mlp`'s expressions. They keep their inputs alone and find the rest again in
backward. Shapes: R rows, F inner values of a row.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 1024
"""Values of a program."""


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) x up, (..., F), of (..., 2F) whose first half is the gate (Shazeer 2020)."""
    y: Tensor = _SwiGlu.apply(gate_up)
    return y


def bias_gelu(x: Tensor, bias_F: Tensor) -> Tensor:
    """gelu(x + bias) in its tanh form, (..., F)."""
    y: Tensor = _BiasGelu.apply(x, bias_F)
    return y


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate_up = gate_up.contiguous()
        y = gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2))
        _swiglu_forward[_grid(y)](gate_up, y, y.shape[-1], TILE)
        ctx.save_for_backward(gate_up)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        dy, dx = dy.contiguous(), torch.empty_like(gate_up)
        _swiglu_backward[_grid(dy)](gate_up, dy, dx, dy.shape[-1], TILE)
        return dx


class _BiasGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        _gelu_forward[_grid(y)](x, bias, y, y.shape[-1], TILE)
        ctx.save_for_backward(x, bias)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, bias = ctx.saved_tensors
        dy, dx = dy.contiguous(), torch.empty_like(x)
        _gelu_backward[_grid(dy)](x, bias, dy, dx, dy.shape[-1], TILE)
        return dx, dx.flatten(0, -2).sum(0, dtype=torch.float32).to(bias.dtype)


def _grid(y: Tensor) -> tuple[int, int]:
    return y.numel() // y.shape[-1], triton.cdiv(y.shape[-1], TILE)


@triton.jit
def _place(width, TILE: tl.constexpr):
    """(row, columns, which of them there are) of this program."""
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    return tl.program_id(0).to(tl.int64), columns, columns < width


@triton.jit
def _swiglu_forward(gate_up, y, width, TILE: tl.constexpr):
    row, columns, good = _place(width, TILE)
    at = row * 2 * width + columns
    gate = tl.load(gate_up + at, mask=good, other=0.0).to(tl.float32)
    up = tl.load(gate_up + at + width, mask=good, other=0.0).to(tl.float32)
    tl.store(y + row * width + columns, (gate * tl.sigmoid(gate) * up).to(y.dtype.element_ty), mask=good)


@triton.jit
def _swiglu_backward(gate_up, dy, dx, width, TILE: tl.constexpr):
    row, columns, good = _place(width, TILE)
    at = row * 2 * width + columns
    gate = tl.load(gate_up + at, mask=good, other=0.0).to(tl.float32)
    up = tl.load(gate_up + at + width, mask=good, other=0.0).to(tl.float32)
    above = tl.load(dy + row * width + columns, mask=good, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    dgate = above * up * share * (1 + gate * (1 - share))
    tl.store(dx + at, dgate.to(dx.dtype.element_ty), mask=good)
    tl.store(dx + at + width, (above * gate * share).to(dx.dtype.element_ty), mask=good)


@triton.jit
def _inner(x, bias, row, columns, good, width):
    """(value, tanh of sqrt(2/pi) (value + 0.044715 value^3)) of x + bias."""
    value = tl.load(x + row * width + columns, mask=good, other=0.0).to(tl.float32)
    value += tl.load(bias + columns, mask=good, other=0.0).to(tl.float32)
    bent = 0.7978845608028654 * (value + 0.044715 * value * value * value)
    return value, 2 * tl.sigmoid(2 * bent) - 1


@triton.jit
def _gelu_forward(x, bias, y, width, TILE: tl.constexpr):
    row, columns, good = _place(width, TILE)
    value, bent = _inner(x, bias, row, columns, good, width)
    tl.store(y + row * width + columns, (0.5 * value * (1 + bent)).to(y.dtype.element_ty), mask=good)


@triton.jit
def _gelu_backward(x, bias, dy, dx, width, TILE: tl.constexpr):
    row, columns, good = _place(width, TILE)
    value, bent = _inner(x, bias, row, columns, good, width)
    above = tl.load(dy + row * width + columns, mask=good, other=0.0).to(tl.float32)
    slope = 0.7978845608028654 * (1 + 3 * 0.044715 * value * value)
    derivative = 0.5 * (1 + bent) + 0.5 * value * (1 - bent * bent) * slope
    tl.store(dx + row * width + columns, (above * derivative).to(dx.dtype.element_ty), mask=good)
