"""The norm of the whole model's gradient, the same bits on every rank, and clipping by it.

Every layer's sum of squares travels, not a stage's, and they are added in the order of the layers: so
the norm does not depend on where the model was cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, sqrt

import torch
from torch import Tensor, nn

from worker.peers import Peers
from worker.step_context import StepContext


def layer_squares(owned: Sequence[Sequence[nn.Parameter]], left_out: nn.Parameter | None) -> Tensor:
    """Sum of squares of each layer's gradients, float64 on the CPU. `left_out` is counted elsewhere."""
    sums = [
        sum((_square(p) for p in parameters if p is not left_out and p.grad is not None), start=_ZERO)
        for parameters in owned
    ]
    return torch.stack(sums).cpu()


def global_norm(context: StepContext, peers: Peers, own: Tensor) -> float:
    """The norm over all stages, from every stage's `layer_squares`; waits for the others of the replica."""
    plan = context.plan
    for stage in range(plan.n_stages):
        if stage != context.stage:
            peers.send("norm", plan.rank(context.replica, stage), own, quiet=True)
    total = 0.0
    for stage, (start, stop) in enumerate(plan.partition):
        squares = own
        if stage != context.stage:
            src = plan.rank(context.replica, stage)
            squares = peers.receive("norm", src, (stop - start,), torch.float64).cpu()
        for square in squares.tolist():
            total += square
    return sqrt(total) if isfinite(total) else float("nan")


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
