"""The optimizer of a stage: one a layer, so that its state follows the layer through any plan. It is torch's,
or, for AdamW on a GPU that Triton knows, `worker/adamw.py`'s, with the same state under the same names.

Knows no gradients' origin, no clipping and no clock. `learning_rate` is a pure function of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import cos, pi

import torch
from torch import Tensor, nn

from scheduler.job import OptimizerSpec
from worker.adamw import FlatAdamW
from worker.kernels import choice
from worker.model import Layer
from worker.stage import owned_parameters


class OptimizerStateError(Exception):
    """A layer's saved optimizer state that does not fit the layer or the job's optimizer."""


def learning_rate(spec: OptimizerSpec, step: int, steps: int) -> float:
    """The rate of `step` (0 .. steps - 1).

    lr (step + 1) / warmup_steps while step < warmup_steps; then from lr in the first step after it to
    lr x final_lr_fraction in the last step of the run, along a line or half a cosine, or constant.
    """
    if step < spec.warmup_steps:
        return spec.lr * (step + 1) / spec.warmup_steps
    progress = min(1.0, (step - spec.warmup_steps) / max(1, steps - 1 - spec.warmup_steps))
    match spec.decay:
        case "constant":
            left = 1.0
        case "linear":
            left = 1.0 - progress
        case "cosine":
            left = 0.5 * (1.0 + cos(pi * progress))
    return spec.lr * (spec.final_lr_fraction + (1.0 - spec.final_lr_fraction) * left)


def load_early() -> None:
    """Have torch load now what it loads with a process's first optimizer. It takes a second, which workers of
    one host, profiled one after the other, would all wait for once a worker."""
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.0).zero_grad()


class StageOptimizer:
    """AdamW or SGD over the layers of a stage. Weight decay is for matrices, not for norms and biases.

    A weight that two layers share is stepped once; its state is saved, and loaded, with both.
    """

    def __init__(self, layers: Sequence[Layer], spec: OptimizerSpec) -> None:
        self._layers, self._spec = list(layers), spec
        self._owned = owned_parameters(layers)
        self._optimizers = [_make(parameters, spec) if parameters else None for parameters in self._owned]
        self._owner = {id(p): i for i, parameters in enumerate(self._owned) for p in parameters}
        if spec.name == "adamw":
            self._slots = frozenset({"step", "exp_avg", "exp_avg_sq"})
        else:
            self._slots = frozenset({"momentum_buffer"} if spec.momentum else ())

    def step(self, lr: float) -> None:
        """Step every layer with the gradients it has, then forget them."""
        for i in range(len(self._layers)):
            self.step_layer(i, lr)

    def step_layer(self, i: int, lr: float) -> None:
        """Step the i-th layer of the stage, then forget its gradients."""
        optimizer = self._optimizers[i]
        if optimizer is None:
            return
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def to_momentum(self, i: int, share: Callable[[nn.Parameter], float]) -> None:
        """Make the i-th layer's gradients g this replica's part of the new momentum: share b1 m + (1 - b1) g.

        m is the momentum so far, which all replicas have in common; the shares of all add up to 1, so that
        the parts add up to b1 m + (1 - b1) sum g.
        """
        beta1 = self._spec.betas[0]
        for p in self._owned[i]:
            gradient = torch.zeros_like(p) if p.grad is None else p.grad
            p.grad = gradient.mul_(1 - beta1).add_(self._moments(p)["exp_avg"], alpha=beta1 * share(p))

    @torch.no_grad()
    def step_by_momentum(self, lr: float, frozen_after: int) -> None:
        """Step every layer by its gradients, which are its new momentum; its variance is that after
        `frozen_after` steps.

        p -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^frozen)) + eps), and the decay. Where Adam would not go
        further than its bound (Kingma & Ba, section 2.1: lr, or more where b1 and b2 are far apart), neither
        does this: the rounding of a momentum over a tiny variance is no step.
        """
        (beta1, beta2), eps = self._spec.betas, self._spec.eps
        most = max(1.0, (1 - beta1) / (1 - beta2) ** 0.5)
        for optimizer in filter(None, self._optimizers):
            for group in optimizer.param_groups:
                for p in group["params"]:
                    state = self._moments(p)
                    state["step"] += 1
                    if p.grad is not None:
                        state["exp_avg"].copy_(p.grad)
                    root = (state["exp_avg_sq"] / (1 - beta2**frozen_after)).sqrt_().add_(eps)
                    update = state["exp_avg"] / (1 - beta1 ** float(state["step"]))
                    p.mul_(1 - lr * group["weight_decay"])
                    p.add_(update.div_(root).clamp_(-most, most), alpha=-lr)
            optimizer.zero_grad(set_to_none=True)

    def layer_state(self, i: int) -> dict[str, Tensor]:
        """The i-th layer's state as `parameter.slot` -> tensor; empty before the first step.

        The tensors are the optimizer's own: save them before the next step.
        """
        return {
            f"{name}.{slot}": value.detach()
            for name, p in self._layers[i].named_parameters()
            for slot, value in sorted(self._state_of(p).items())
            if isinstance(value, Tensor)
        }

    def load_layer_state(self, i: int, state: Mapping[str, Tensor]) -> None:
        """Copy what `layer_state` gave, for the same layer of any plan. Raises OptimizerStateError."""
        layer = self._layers[i]
        parameters = dict(layer.named_parameters())
        required = {f"{name}.{slot}" for name in parameters for slot in self._slots} if state else set()
        if set(state) != required:
            wrong = sorted(set(state) ^ required)
            raise OptimizerStateError(
                f"{layer.name}: found the optimizer state {'with' if wrong[0] in state else 'without'}"
                f" {wrong[0]!r} ({len(wrong)} names differ); required that of this layer under the job's"
                " optimizer: resume with the optimizer that the checkpoint was made with"
            )
        for name, p in parameters.items():
            self._load(f"{layer.name}.{name}", p, {s: state[f"{name}.{s}"] for s in self._slots if state})

    def _moments(self, p: nn.Parameter) -> dict[str, Tensor]:
        """AdamW's state of `p`, which a warm-up or a checkpoint has left."""
        state = self._state_of(p)
        if not state:
            raise OptimizerStateError(
                "found no momentum and no variance behind the warm-up of compressed momentum; required"
                " AdamW's state: resume from a checkpoint with it, or begin at step 0"
            )
        return state

    def _state_of(self, p: nn.Parameter) -> dict[str, Tensor]:
        optimizer = self._optimizers[self._owner[id(p)]]
        assert optimizer is not None
        found: dict[str, Tensor] = optimizer.state.get(p, {})
        return found

    def _load(self, name: str, p: nn.Parameter, slots: Mapping[str, Tensor]) -> None:
        for slot, value in slots.items():
            shape = torch.Size() if slot == "step" else p.shape
            if value.shape != shape:
                raise OptimizerStateError(
                    f"{name}.{slot}: found the shape {tuple(value.shape)}; required {tuple(shape)}"
                )
        optimizer = self._optimizers[self._owner[id(p)]]
        assert optimizer is not None
        if slots:
            step_device = "cpu" if isinstance(optimizer, FlatAdamW) else p.device
            optimizer.state[p] = {
                s: v.detach().to(step_device if s == "step" else p.device, copy=True)
                for s, v in slots.items()
            }
        else:
            optimizer.state.pop(p, None)


def _make(parameters: Sequence[nn.Parameter], spec: OptimizerSpec) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if spec.name == "adamw" and all(map(choice.runs_here, parameters)):
        return FlatAdamW(groups, spec.lr, spec.betas, spec.eps)
    # One pass over memory instead of one an operation, where torch has it.
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    if spec.name == "adamw":
        return torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps, fused=fused)
    return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, fused=fused)
