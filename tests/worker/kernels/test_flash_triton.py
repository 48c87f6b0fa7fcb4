"""The Triton kernel gives attention and its gradients, run by Triton's interpreter where there is no GPU."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from scheduler.layer_cost import Sizes
from scheduler.mixers import AttentionSpec, Sight
from tests.worker.model.shapes import kept, spec
from worker.model.attention import Attention, attend

pytest.importorskip("triton", reason="triton is not here: it comes with the extras `gpu`, and `dev` on Linux")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIGHTS = [Sight(), Sight(causal=False), Sight(window=5), Sight(window=40), Sight(window=9, causal=False)]


@pytest.fixture(scope="module")
def twin() -> ModuleType:
    from worker.kernels import flash_triton

    return flash_triton


def drawn(heads: int, length: int, seed: int) -> Tensor:
    return torch.randn(1, heads, length, 16, generator=torch.Generator().manual_seed(seed))


CASES = [(sight, 1, 37) for sight in SIGHTS] + [(Sight(window=5), 2, 16), (Sight(), 2, 1)]


@pytest.mark.parametrize(("sight", "kv_heads", "length"), CASES, ids=str)
def test_output_and_gradients_are_the_references(
    twin: ModuleType, sight: Sight, kv_heads: int, length: int
) -> None:
    """float32 against float64: sums of some dozens of values, so some dozens of roundings of 6e-8."""
    inputs = [drawn(2, length, 0), drawn(kv_heads, length, 1), drawn(kv_heads, length, 2)]
    exact = [x.double().requires_grad_() for x in inputs]
    ours = [x.to(DEVICE).requires_grad_() for x in inputs]
    q, k, v = exact
    expected = attend(q, k, v, sight)
    found = twin.flash_attention(*ours, sight, tile=16).transpose(1, 2).flatten(2)
    torch.testing.assert_close(found.cpu().double(), expected, atol=3e-6, rtol=1e-5)
    g = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3))
    theirs = torch.autograd.grad(expected, exact, g.double())
    for a, b in zip(torch.autograd.grad(found, ours, g.to(DEVICE)), theirs, strict=True):
        torch.testing.assert_close(a.cpu().double(), b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sight", SIGHTS, ids=str)
def test_documents_are_kept_apart(twin: ModuleType, sight: Sight) -> None:
    """Two samples, borders within tiles and at their ends."""
    length = 37
    at = torch.arange(length)
    documents = torch.stack([(at >= 3).long() + (at >= 16) + (at >= 29), (at >= 36).long() + (at >= 1)])
    shapes = ((2, 2, length, 16), (2, 1, length, 16), (2, 1, length, 16))
    inputs = [torch.randn(s, generator=torch.Generator().manual_seed(i)) for i, s in enumerate(shapes)]
    exact = [x.double().requires_grad_() for x in inputs]
    ours = [x.to(DEVICE).requires_grad_() for x in inputs]
    q, k, v = exact
    expected = attend(q, k, v, sight, documents)
    found = twin.flash_attention(*ours, sight, documents.to(DEVICE), tile=16).transpose(1, 2).flatten(2)
    torch.testing.assert_close(found.cpu().double(), expected, atol=3e-6, rtol=1e-5)
    g = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3))
    theirs = torch.autograd.grad(expected, exact, g.double())
    for a, b in zip(torch.autograd.grad(found, ours, g.to(DEVICE)), theirs, strict=True):
        torch.testing.assert_close(a.cpu().double(), b, atol=1e-5, rtol=1e-5)


def test_it_keeps_inputs_output_and_a_number_a_row(twin: ModuleType) -> None:
    q, k, v = (x.to(DEVICE).requires_grad_() for x in (drawn(2, 48, 0), drawn(1, 48, 1), drawn(1, 48, 2)))
    saved: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        saved.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        twin.flash_attention(q, k, v, Sight())
    assert sum(x.nbytes for x in saved) == 4 * (2 * q.numel() + k.numel() + v.numel() + q.numel() // 16)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="the interpreter's products are counted")
@pytest.mark.parametrize("length", [64, 150])
@pytest.mark.parametrize(
    "sight", [Sight(window=w, causal=c) for w in (1, 65, 66, 200) for c in (True, False)], ids=str
)
def test_in_a_window_the_price_is_what_is_multiplied(
    twin: ModuleType, monkeypatch: pytest.MonkeyPatch, sight: Sight, length: int
) -> None:
    from triton.runtime.interpreter import InterpreterBuilder

    counted: list[int] = []
    product = InterpreterBuilder.create_dot

    def counting(builder: object, a: Any, b: Any, *more: object) -> object:
        counted.append(2 * a.data.size * b.data.shape[-1])
        return product(builder, a, b, *more)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", counting)
    model = spec(family="llama", hidden=32, heads=2, kv_heads=1)
    options = AttentionSpec(window=sight.window, causal=sight.causal, kernel="triton")
    sizes = Sizes(1, length, 4, 4)
    price, products = options.cost(model, sizes), sizes.product(32, 64) + sizes.product(32, 32)
    shapes = ((1, 2, length, 16), (1, 1, length, 16), (1, 1, length, 16))
    y = twin.flash_attention(*(torch.zeros(s, requires_grad=True) for s in shapes), sight)
    forward = sum(counted)
    torch.autograd.backward(y.sum())
    assert price.forward_flops - products == forward
    assert price.backward_flops - 2 * products == sum(counted) - forward


@pytest.mark.parametrize("options", [{}, {"window": 5}, {"window": 40, "positions": "none"}], ids=str)
@pytest.mark.parametrize("length", [16, 70])
def test_what_it_keeps_is_what_the_price_says(twin: ModuleType, options: Any, length: int) -> None:
    del twin
    model = spec(family="llama", hidden=32, heads=2, kv_heads=1)
    options = AttentionSpec(**options, kernel="triton")
    mixer = Attention(model, options).to(DEVICE)
    for parameter in mixer.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.zeros(2, length, 32, device=DEVICE, requires_grad=True)
    mixer(x)  # tables that are made once
    _, size = kept(lambda: mixer(x)[0], list(mixer.parameters()))
    expected = options.cost(model, Sizes(2, length, 4, 4)).saved_bytes
    shared = 2 * 256 * 8 * 4  # rotations
    assert expected <= size <= expected + shared


def test_a_job_may_ask_for_it(twin: ModuleType) -> None:
    del twin
    model = spec(family="llama", hidden=32, heads=2, kv_heads=1)
    ours, reference = (
        Attention(model, AttentionSpec(window=4, kernel=kernel)).to(DEVICE) for kernel in ("triton", "auto")
    )
    for mixer in (ours, reference):
        for parameter in mixer.parameters():
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator(DEVICE).manual_seed(0))
    x = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    torch.testing.assert_close(ours(x)[0], reference(x)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("heads", "options"), [(4, {}), (2, {"butterfly": 4})])
def test_what_it_cannot_do_is_refused(heads: int, options: dict[str, int]) -> None:
    model = spec(family="llama", hidden=32, heads=heads)
    ((_, required),) = AttentionSpec(kernel="triton", **options).misfits(model)  # type: ignore[arg-type]
    assert "a power of two" in required
