"""Residuals and the largest values, in one pass: the same bits as by the steps one after the other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compression import kernels_cpu, kernels_topk, quantize
from compression.grid import BLOCK, Grid, NotFinite


def normal(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=40)
@given(
    bits=st.integers(1, 8),
    n=st.integers(0, 3 * BLOCK),
    group=st.sampled_from([32, 64, 96, 100]),
    stochastic=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    threads=st.integers(1, 3),
)
def test_what_is_owed_is_added_and_what_is_lost_is_owed(
    bits: int, n: int, group: int, stochastic: bool, dtype: torch.dtype, threads: int
) -> None:
    grid, x, owed = Grid(bits, "group", group, stochastic), normal(n, bits).to(dtype), normal(n, 99)
    value = x.float() + owed
    scales, packed = quantize.quantize(value, grid, 7)
    left = value - quantize.dequantize(scales, packed, (n,), grid, torch.float32)
    found = kernels_cpu.encode_owed(x, owed, grid, 7, threads)
    assert torch.equal(found[0], scales)
    assert torch.equal(found[1], packed)
    assert torch.equal(owed, left)


@pytest.mark.parametrize("group", [64, 96])
def test_what_is_not_finite_is_refused_with_what_is_owed(group: int) -> None:
    x = torch.full((2000,), 3e38)
    with pytest.raises(NotFinite, match="infinite"):
        kernels_cpu.encode_owed(x, x.clone(), Grid(4, "group", group))
    with pytest.raises(NotFinite):
        kernels_topk.take_largest(x, x.clone(), 5, 1)
    x[1500] = float("nan")
    with pytest.raises(NotFinite, match="no number"):
        kernels_topk.take_largest(x, torch.zeros(2000), 5, 1)


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 5000),
    share=st.floats(0.0, 1.0),
    seed=st.integers(0, 99),
    step=st.sampled_from([0.0, 0.25, 1.0, 100.0]),
    threads=st.integers(1, 3),
)
def test_the_largest_are_taken_and_of_equal_ones_the_first(
    n: int, share: float, seed: int, step: float, threads: int
) -> None:
    x, owed = normal(n, seed), normal(n, seed + 1)
    if step:  # many are equal, of either sign, or zero
        x, owed = (x / step).round() * step, torch.zeros(n)
    k = max(1, int(share * n))
    value = x + owed
    order = sorted(range(n), key=lambda i: (-abs(value[i].item()), i))
    places = kernels_topk.take_largest(x, owed, k, threads)
    assert places.tolist() == sorted(order[:k])
    assert torch.equal(owed, value)


def test_places_of_a_tensor_cut_over_threads_are_the_same() -> None:
    x = normal(300_000, 3)
    one, two = (kernels_topk.take_largest(x, torch.zeros_like(x), 3000, threads) for threads in (1, 3))
    assert torch.equal(one, two)
    assert torch.equal(one.long(), x.abs().topk(3000).indices.sort().values)
