"""Convolution as matrix products: a direct sum, its gradients, its float32, in pieces and behind others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from scheduler.layer_cost import NOTHING, Sizes
from scheduler.mixers import matrix_conv as forms
from scheduler.mixers.matrix_conv import matrix_conv_cost, pieces_of
from tests.worker.model.counting import counting
from worker.model.cores import recomputed
from worker.model.fft_conv import conv_behind, fft_conv, toeplitz
from worker.model.matrix_conv import matrix_conv

LENGTHS = (1, 2, 3, 15, 16, 65, 120)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=[4096, 40, 7, 1])
def most(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Positions of a piece at most."""
    monkeypatch.setattr(forms, "MOST_POSITIONS", request.param)
    pieces_of.cache_clear()
    yield request.param
    pieces_of.cache_clear()


def direct(x_BTD: Tensor, filter_DT: Tensor) -> Tensor:
    return (toeplitz(filter_DT) @ x_BTD.mT[..., None])[..., 0].mT


@pytest.mark.parametrize("length", LENGTHS)
def test_pieces_hold_the_text_and_waste_less_than_a_row_each(length: int, most: int) -> None:
    n, h, l = pieces_of(length)  # noqa: E741
    assert n * h * l >= length > (n - 1) * h * l
    assert n <= -(-length // most)
    assert h * l - -(-length // -(-length // most)) < l
    assert l & (l - 1) == 0


@pytest.mark.parametrize("length", LENGTHS)
def test_values_and_gradients_are_the_direct_sums(length: int, most: int) -> None:
    del most
    inputs = [drawn(2, length, 3, seed=0).requires_grad_(), drawn(3, length, seed=1).requires_grad_()]
    x, filters = inputs
    found, expected = matrix_conv(x, filters), direct(x, filters)
    torch.testing.assert_close(found, expected, atol=1e-11, rtol=1e-9)
    g = drawn(2, length, 3, seed=2)
    ours, theirs = (torch.autograd.grad(y, inputs, g) for y in (found, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("past", [0, 1, 30, 80])
@pytest.mark.parametrize("new", [1, 9, 50])
def test_what_follows_an_earlier_text_is_the_end_of_the_whole(past: int, new: int, most: int) -> None:
    del most
    x, filters = drawn(2, past + new, 3, seed=0), drawn(3, past + new, seed=1)
    expected = direct(x, filters)[:, past:]
    for conv in (matrix_conv, fft_conv):
        found = conv_behind(conv, x[:, past:], filters, x[:, :past])
        torch.testing.assert_close(found, expected, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("length", [500, 4096, 9000])
def test_in_float32_it_is_as_exact_as_the_fourier_transform(length: int) -> None:
    x, filters = drawn(1, length, 4, seed=0), drawn(4, length, seed=1) / length**0.5
    exact = fft_conv(x, filters)
    off = [(conv(x.float(), filters.float()) - exact).norm() for conv in (matrix_conv, fft_conv)]
    assert off[0] < 3 * off[1]
    assert off[0] < 2e-6 * exact.norm()


def test_autocast_does_not_reach_it() -> None:
    x, filters = drawn(1, 300, 4, seed=0).float(), drawn(4, 300, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = matrix_conv(x, filters)
    assert torch.equal(found, matrix_conv(x, filters))


def test_its_closed_forms_are_what_is_counted(most: int) -> None:
    del most
    x, filters = (drawn(*shape, seed=0).requires_grad_() for shape in ((2, 65, 3), (3, 65)))
    cost = matrix_conv_cost(Sizes(2, 65, 8, 8), 3, NOTHING)
    with counting() as forwards:
        y = recomputed(matrix_conv, x, filters)
    with counting() as backwards:
        torch.autograd.backward(y.sum())
    assert cost.forward_flops == forwards.get_total_flops()
    assert cost.backward_flops == backwards.get_total_flops()
