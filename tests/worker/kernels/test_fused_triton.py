"""The kernels around attention give the reference's values and gradients, by Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.worker.model.shapes import layers_of, spec
from worker.kernels import choice
from worker.model.rotary import _table, rotate

pytest.importorskip("triton", reason="triton is not here: it comes with the extras `gpu`, and `dev` on Linux")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Function = Callable[..., Tensor | tuple[Tensor, ...]]


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def same(fused: Function, reference: Function, *inputs: Tensor) -> None:
    """Values and gradients in float32 beside the reference's in float64: some roundings of 6e-8 of sums."""
    ours = [x.to(DEVICE).requires_grad_() for x in inputs]
    exact = [x.double().requires_grad_() for x in inputs]
    found, expected = fused(*ours), reference(*exact)
    found, expected = ((y,) if isinstance(y, Tensor) else y for y in (found, expected))
    above = [drawn(*y.shape, seed=90 + i) for i, y in enumerate(expected)]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.cpu().double(), b, atol=2e-6, rtol=1e-5)
    theirs = torch.autograd.grad(expected, exact, [g.double() for g in above])
    for a, b in zip(torch.autograd.grad(found, ours, [g.to(DEVICE) for g in above]), theirs, strict=True):
        torch.testing.assert_close(a.cpu().double(), b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("rows", "width"), [(1, 96), (5, 1), (5, 64), (300, 7)])
@pytest.mark.parametrize("layer", [False, True], ids=["rms", "layer"])
def test_residual_add_and_norm(rows: int, width: int, layer: bool) -> None:
    from worker.kernels.norm_triton import add_norm

    if layer and width == 1:
        pytest.skip("a LayerNorm of one value is its bias, and its gradient only rounding")

    def reference(x: Tensor, added: Tensor, weight: Tensor, *bias: Tensor) -> tuple[Tensor, Tensor]:
        total = x + added
        if layer:
            return total, F.layer_norm(total, (width,), weight, bias[0], 1e-5)
        return total, F.rms_norm(total, (width,), weight, 1e-5)

    inputs = [drawn(rows, width, seed=0), drawn(rows, width, seed=1), drawn(width, seed=2)]
    if layer:
        inputs.append(drawn(width, seed=3))
    same(lambda x, a, w, *b: add_norm(x, a, w, b[0] if b else None, 1e-5), reference, *inputs)


def test_the_sum_is_rounded_before_it_is_normed_as_the_residual_stream_is() -> None:
    from worker.kernels.norm_triton import add_norm

    x, added = (drawn(4, 32, seed=s).to(DEVICE) for s in (0, 1))
    weight = torch.ones(32, device=DEVICE)
    total, y = add_norm(x.half(), added.half(), weight, None, 1e-6)
    assert total.dtype == y.dtype == torch.float16
    assert torch.equal(total, x.half() + added.half())
    torch.testing.assert_close(y.float(), F.rms_norm(total.float(), (32,), None, 1e-6), atol=1e-2, rtol=1e-2)
    wide, _ = add_norm(x, added.half(), weight, None, 1e-6)
    assert wide.dtype == torch.float32  # as under autocast, whose products are narrow and whose stream is not


@pytest.mark.parametrize("width", [2, 16, 24])
@pytest.mark.parametrize(("first", "length"), [(0, 1), (0, 21), (5, 16)])
def test_rotary_positions(width: int, first: int, length: int) -> None:
    from worker.kernels.rotary_triton import turn

    def fused(x: Tensor) -> Tensor:
        cos, sin = _table(64, width, 10000.0, x.dtype, str(x.device))
        between = x.transpose(1, 2).contiguous().transpose(1, 2)  # positions before heads, as projected
        return turn(between, cos[first : first + length], sin[first : first + length])

    same(fused, lambda x: rotate(x, first, 10000.0), drawn(2, 3, length, width, seed=4))


@pytest.mark.parametrize("width", [1, 48, 1030])
def test_what_stands_between_the_matrices(width: int) -> None:
    from worker.kernels.gates_triton import bias_gelu, swiglu

    def gated(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up

    same(swiglu, gated, drawn(2, 3, 2 * width, seed=5))
    same(
        bias_gelu,
        lambda x, bias: F.gelu(x + bias, approximate="tanh"),
        drawn(2, 3, width, seed=6) * 2,
        drawn(width, seed=7),
    )


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_block_with_all_of_them_is_the_block_without(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = spec(family=family, layers=1, hidden=32, heads=2)
    _, block, _ = layers_of(model, dtype=torch.float32)
    block.to(DEVICE)
    parameters = list(block.parameters())
    x = drawn(2, 9, 32, seed=8).to(DEVICE).requires_grad_()
    asked: list[torch.Size] = []

    def everywhere(x: Tensor) -> bool:
        asked.append(x.shape)
        return True

    results = []
    for fused in (False, True):
        monkeypatch.setattr(choice, "runs_here", everywhere if fused else (lambda _: False))
        y = block(x)[0]
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *parameters])])
    assert len(asked) == (2 if family == "gpt2" else 4)  # add and norm, the gate; queries and keys
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)
