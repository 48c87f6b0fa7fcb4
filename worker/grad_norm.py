"""What a stage adds to the norm of the whole model's gradient, and clipping by that norm.

Every layer's sum of squares is told, not a stage's (`scheduler/gradient_norm.py` adds them).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def layer_squares(owned: Sequence[Sequence[nn.Parameter]], left_out: nn.Parameter | None) -> Tensor:
    """Sum of squares of each layer's gradients, float64 on the CPU. `left_out` is counted elsewhere."""
    sums = [
        sum((_square(p) for p in parameters if p is not left_out and p.grad is not None), start=_ZERO)
        for parameters in owned
    ]
    return torch.stack(sums).cpu()


def clip(owned: Sequence[Sequence[nn.Parameter]], norm: float, most: float) -> None:
    """Scale the gradients by most / norm if that is below 1; most = 0: leave them.

    The same formula, with its 1e-6, as torch.nn.utils.clip_grad_norm_.
    """
    scale = most / (norm + 1e-6)
    if most == 0.0 or scale >= 1.0:
        return
    torch._foreach_mul_([p.grad for parameters in owned for p in parameters if p.grad is not None], scale)


_ZERO = torch.zeros((), dtype=torch.float64)


def _square(p: nn.Parameter) -> Tensor:
    # The norm in the gradient's own type, as torch's clipping has it; the sum in float64.
    assert p.grad is not None
    norm: Tensor = torch.linalg.vector_norm(p.grad)
    return norm.double().square()
