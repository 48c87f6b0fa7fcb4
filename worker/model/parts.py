"""The small modules that layers are made of: linear maps and norms.

Torch's own modules draw random weights when they are made; these are blank until `initialize` or a
checkpoint fills them, so that a weight has exactly one source. Rows = B x T positions.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from worker.kernels import choice
from worker.model.layer import blank

Family = Literal["gpt2", "llama"]


class Linear(nn.Module):
    """y = x W^T + b, with weight (outputs, inputs)."""

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.weight = blank(outputs, inputs)
        self.bias = blank(outputs) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def to_dense(self) -> Tensor:
        """The matrix (outputs, inputs)."""
        return self.weight

    def dense(self, x: Tensor) -> Tensor:
        """The same with the matrix whole."""
        y = x @ self.to_dense().mT
        return y if self.bias is None else y + self.bias


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) x weight + bias, over the last axis."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.width, self.eps = width, eps
        self.weight, self.bias = blank(width), blank(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.width,), self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) x weight, over the last axis (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.width, self.eps = width, eps
        self.weight = blank(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (self.width,), self.weight, self.eps)


Norm = LayerNorm | RMSNorm


def add_norm(x: Tensor, added: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """(x + added, the norm of that), both as x."""
    if choice.runs_here(x):
        from worker.kernels.norm_triton import add_norm as fused

        bias = norm.bias if isinstance(norm, LayerNorm) else None
        return fused(x, added, norm.weight, bias, norm.eps)
    total = x + added
    return total, norm(total)


def make_norm(family: Family, width: int, eps: float) -> Norm:
    """The family's norm over `width` values."""
    return LayerNorm(width, eps) if family == "gpt2" else RMSNorm(width, eps)
