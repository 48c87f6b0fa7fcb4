"""AdamW (Loshchilov and Hutter 2019, algorithm 2) over flat shards, with the kernel that runs it on a GPU.

A shard is any row of values that step alike: a parameter's, or a part of them. Moments are float32 whatever
the weights are. On a CPU the optimizer is torch's (`worker/optimizer.py`); this is what Triton's twin is held
to. Shapes: N values.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from worker.kernels import choice


class Rates(NamedTuple):
    """Of one step, computed in double precision once."""

    kept: float
    """1 - lr decay: what is left of a weight (decoupled decay)."""
    beta1: float
    beta2: float
    new1: float
    """1 - beta1"""
    new2: float
    step_size: float
    """lr / (1 - beta1^t): the mean's bias, corrected."""
    root_of_square: float
    """sqrt(1 - beta2^t): the root of the square's bias."""
    eps: float

    @staticmethod
    def of(lr: float, betas: tuple[float, float], eps: float, decay: float, step: int) -> Rates:
        """`step` counts from 1."""
        beta1, beta2 = betas
        size, root = lr / (1 - beta1**step), (1 - beta2**step) ** 0.5
        return Rates(1 - lr * decay, beta1, beta2, 1 - beta1, 1 - beta2, size, root, eps)


def adamw(weight_N: Tensor, gradient_N: Tensor, mean_N: Tensor, square_N: Tensor, rates: Rates) -> None:
    """One step, in place:

    m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,
    w = (1 - lr decay) w - lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)
    """
    gradient = gradient_N.to(mean_N.dtype)
    mean_N.mul_(rates.beta1).add_(rates.new1 * gradient)
    square_N.mul_(rates.beta2).add_(rates.new2 * gradient * gradient)
    root = (square_N.sqrt() / rates.root_of_square).add_(rates.eps)
    weight_N.copy_(weight_N.to(mean_N.dtype) * rates.kept - rates.step_size * (mean_N / root))


class FlatAdamW(Optimizer):
    """torch.optim.AdamW's groups and state (`step` on the CPU, `exp_avg`, `exp_avg_sq`), each parameter a
    flat shard."""

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Step every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step(p, group)

    def _step(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        state = self.state[p]
        if not state:
            wide = torch.promote_types(p.dtype, torch.float32)
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(p, dtype=wide, memory_format=torch.contiguous_format)
            state["exp_avg_sq"] = torch.zeros_like(state["exp_avg"])
        state["step"] += 1
        step = int(state["step"])
        rates = Rates.of(group["lr"], group["betas"], group["eps"], group["weight_decay"], step)
        weight, gradient = p.view(-1), p.grad.contiguous().view(-1)
        mean, square = state["exp_avg"].view(-1), state["exp_avg_sq"].view(-1)
        if choice.runs_here(p):
            from worker.kernels import adamw_triton

            adamw_triton.adamw(weight, gradient, mean, square, rates)
        else:
            adamw(weight, gradient, mean, square, rates)
