"""What `layers.py` measures and works out, on forms whose costs are known."""

from __future__ import annotations

import pytest
import torch

from tests.benchmarks.layer_costs import Run, measured
from tests.benchmarks.layer_forms import HIDDEN, by_a_matrix, fading, fused, naive
from tests.benchmarks.layers import MOST_BYTES, Row, crossover, growth, row_of
from worker.model.fft_conv import fft_conv

VALUES = 1 << 18


def row(*seconds: float) -> Row:
    return Row({512 << k: Run(s, 1) for k, s in enumerate(seconds)})


def test_peak_memory_is_what_is_held_at_once() -> None:
    """exp keeps its result, and the input gets a gradient; that of a sum is one value, expanded."""
    x = torch.ones(VALUES)
    assert measured(torch.exp, x).peak_bytes == pytest.approx(2 * 4 * VALUES, rel=0.01)
    held = measured(lambda x: x.exp().exp().exp(), x).peak_bytes
    assert held == pytest.approx(4 * 4 * VALUES, rel=0.01)


def test_one_length_after_the_other_until_the_next_would_take_too_much() -> None:
    lengths = (64, 128, 256, 512)
    assert list(row_of(naive, lengths, 1e9).runs) == [*lengths]
    short = row_of(naive, lengths, 0.0)
    assert list(short.runs) == [64]
    assert short.ended.startswith("128:")
    assert short.ended.endswith("s")
    large = row_of(naive, (256, 512, MOST_BYTES // 512), 1e9)
    assert list(large.runs) == [256, 512]
    assert large.ended.endswith("GiB")


def test_where_one_begins_to_cost_less_is_interpolated_in_logs() -> None:
    linear, quadratic = row(1, 2, 4, 8), row(0.25, 1, 4, 16)
    assert crossover(linear, quadratic) == "2048"
    assert crossover(quadratic, linear) == "above 4096"
    assert crossover(row(1, 2, 4, 8), row(2, 4, 8, 16)) == "below 512"
    assert crossover(row(2, 2), row(1, 4)) == "724"  # 512 x sqrt 2


def test_growth_is_of_a_position() -> None:
    assert growth(10, 80, (512, 1024, 4096)) == 1.0
    assert growth(10, 160, (512, 1024)) == 8.0


def test_naive_forms_say_what_the_fast_ones_do() -> None:
    x = torch.randn(1, 48, HIDDEN, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(naive(x), fused(x), atol=1e-5)
    assert torch.allclose(by_a_matrix(x)[..., 0].mT, fft_conv(x, fading(48)), atol=1e-4)
