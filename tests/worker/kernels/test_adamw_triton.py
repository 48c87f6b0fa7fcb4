"""AdamW over a flat shard: the reference is torch's, the kernel the reference, and the optimizer of a stage
gives and takes the same state with either."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scheduler.job import OptimizerSpec
from tests.worker.pipelines import fresh_layers, make_job
from worker.adamw import FlatAdamW, Rates, adamw
from worker.kernels import choice
from worker.model import Layer
from worker.optimizer import StageOptimizer

pytest.importorskip("triton", reason="triton is not here: it comes with the extras `gpu`, and `dev` on Linux")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STEPS = 5
Shard = tuple[Tensor, Tensor, Tensor]
"""Weight, mean and square."""


def shard(n: int, dtype: torch.dtype = torch.float32, wide: torch.dtype = torch.float32) -> Shard:
    weight = torch.randn(n, generator=torch.Generator().manual_seed(0)).to(dtype)
    return weight, torch.zeros(n, dtype=wide), torch.zeros(n, dtype=wide)


def gradient(n: int, step: int) -> Tensor:
    """Sizes from tiny to large, as in one layer."""
    rng = torch.Generator().manual_seed(step)
    return torch.randn(n, generator=rng) * 10.0 ** (8 * torch.rand(n, generator=rng) - 7)


def rates(step: int) -> Rates:
    return Rates.of(3e-3, (0.9, 0.95), 1e-8, 0.1, step)


@pytest.mark.parametrize("n", [1, 1000, 1024, 2500])
def test_the_kernel_is_the_reference_to_a_few_roundings(n: int) -> None:
    from worker.kernels.adamw_triton import adamw as fused

    ours, theirs, exact = shard(n), shard(n), shard(n, torch.float64, torch.float64)
    ours = (ours[0].to(DEVICE), ours[1].to(DEVICE), ours[2].to(DEVICE))
    for step in range(1, STEPS + 1):
        g = gradient(n, step)
        fused(ours[0], g.to(DEVICE), ours[1], ours[2], rates(step))
        adamw(theirs[0], g, theirs[1], theirs[2], rates(step))
        adamw(exact[0], g.double(), exact[1], exact[2], rates(step))
    for a, b, c in zip(ours, theirs, exact, strict=True):
        torch.testing.assert_close(a.cpu(), b, atol=0, rtol=1e-6)
        torch.testing.assert_close(a.cpu().double(), c, atol=1e-7, rtol=2e-6)  # a mean of either sign


def test_narrow_weights_have_wide_moments() -> None:
    """In float16: to bfloat16 Triton's interpreter cuts off where a GPU rounds."""
    from worker.kernels.adamw_triton import adamw as fused

    ours, theirs = shard(300, torch.float16), shard(300, torch.float16)
    ours = (ours[0].to(DEVICE), ours[1].to(DEVICE), ours[2].to(DEVICE))
    for step in range(1, STEPS + 1):
        g = gradient(300, step).half()
        fused(ours[0], g.to(DEVICE), ours[1], ours[2], rates(step))
        adamw(theirs[0], g, theirs[1], theirs[2], rates(step))
    assert ours[0].dtype == torch.float16
    assert ours[1].dtype == torch.float32
    torch.testing.assert_close(ours[1].cpu(), theirs[1], atol=0, rtol=1e-6)
    torch.testing.assert_close(ours[0].cpu(), theirs[0], atol=0, rtol=2**-10)  # one rounding's width


def test_the_reference_is_torchs() -> None:
    weight, mean, square = shard(1000, torch.float64, torch.float64)
    parameter = torch.nn.Parameter(weight.clone())
    optimizer = torch.optim.AdamW([parameter], lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for step in range(1, STEPS + 1):
        parameter.grad = gradient(1000, step).double()
        optimizer.step()
        adamw(weight, gradient(1000, step).double(), mean, square, rates(step))
    torch.testing.assert_close(weight, parameter.detach(), atol=1e-15, rtol=1e-12)


@pytest.mark.parametrize("first_is_flat", [True, False])
def test_a_stage_goes_on_from_the_others_state(first_is_flat: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a move from a GPU to a CPU, and back: the steps are those of torch's AdamW throughout."""
    job, spec = make_job(), OptimizerSpec(lr=0.01)

    def stage(flat: bool) -> tuple[list[Layer], StageOptimizer]:
        with monkeypatch.context() as patched:
            patched.setattr(choice, "runs_here", lambda x: flat and x.dtype == torch.float32)
            layers = fresh_layers(job, 0, 5)
            made = StageOptimizer(layers, spec)
        assert all(isinstance(o, FlatAdamW) == flat for o in made._optimizers if o is not None)
        return layers, made

    def train(layers: list[Layer], optimizer: StageOptimizer, seeds: range, flat: bool) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(choice, "runs_here", lambda _: flat)
            for seed in seeds:
                rng = torch.Generator().manual_seed(seed)
                for p in {id(p): p for layer in layers for p in layer.parameters()}.values():
                    p.grad = torch.randn(p.shape, generator=rng)
                optimizer.step(spec.lr)

    through, plain = stage(False)
    train(through, plain, range(4), False)
    begun, first = stage(first_is_flat)
    train(begun, first, range(2), first_is_flat)
    layers, second = stage(not first_is_flat)
    for i, layer in enumerate(layers):
        layer.load_state_dict(begun[i].state_dict())
        second.load_layer_state(i, first.layer_state(i))
        assert second.layer_state(i).keys() == first.layer_state(i).keys()
    train(layers, second, range(2, 4), not first_is_flat)
    for a, b in zip(through, layers, strict=True):
        for name, value in a.state_dict().items():
            torch.testing.assert_close(b.state_dict()[name], value, atol=1e-7, rtol=1e-5)
