"""The compiled loops give the reference's bits: every width, type, size, scale and number of threads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compression import kernels_cpu, quantize
from compression.grid import BLOCK, Grid, NotFinite
from compression.kernels import twin_of

SHAPES = [(0,), (1,), (7,), (BLOCK,), (2 * BLOCK + 13,), (3, 192), (2, 5, 192), (11, 960)]
SCALES = [("tensor", 1), ("channel", 1), ("group", 32), ("group", 64), ("group", 96)]


def tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=rng) * 10.0 ** torch.randint(-3, 3, (), generator=rng).item()
    x[x.abs() > 2.0 * x.abs().mean()] = 0.0  # zeros of both signs
    return x.to(dtype)


def require_same_bits(x: torch.Tensor, grid: Grid, seed: int, threads: int) -> None:
    scales, packed = quantize.quantize(x, grid, seed)
    found = kernels_cpu.quantize(x, grid, seed, threads)
    assert torch.equal(found[0], scales)
    assert torch.equal(found[1], packed)
    y = quantize.dequantize(scales, packed, tuple(x.shape), grid, x.dtype)
    z = kernels_cpu.dequantize(scales, packed, tuple(x.shape), grid, x.dtype, threads)
    assert torch.equal(y.view(torch.uint8), z.view(torch.uint8))  # the sign of zero too


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", range(1, 9))
def test_the_same_bits_for_every_width_type_scale_and_shape(
    bits: int, dtype: torch.dtype, stochastic: bool
) -> None:
    for shape in SHAPES:
        for scale, group in SCALES:
            if len(shape) == 1 or shape[-1] % group == 0:
                require_same_bits(tensor(shape, dtype, bits), Grid(bits, scale, group, stochastic), 99, 2)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=40)
@given(
    bits=st.integers(1, 8),
    n=st.integers(0, 3 * BLOCK),
    group=st.integers(1, 300),
    seed=st.integers(0, 2**32 - 1),
    threads=st.integers(1, 3),
)
def test_the_same_bits_for_any_size_group_seed_and_threads(
    bits: int, n: int, group: int, seed: int, threads: int
) -> None:
    require_same_bits(tensor((n,), torch.float32, seed), Grid(bits, "group", group, True), seed, threads)


def test_work_is_cut_over_threads_without_a_change() -> None:
    x = tensor((400 * BLOCK + 5,), torch.float32, 1)
    require_same_bits(x, Grid(3, "group", 64, True), 12345, 3)
    require_same_bits(x, Grid(3, "tensor"), 0, 3)


def test_values_are_added_to_what_is_there() -> None:
    x, grid = tensor((3 * BLOCK + 9,), torch.float32, 2), Grid(4)
    scales, packed = kernels_cpu.quantize(x, grid)
    y = torch.arange(float(x.numel()))
    expected = y + kernels_cpu.dequantize(scales, packed, tuple(x.shape), grid, torch.float32)
    kernels_cpu.decode_into(y, scales, packed, grid, 2, add=True)
    assert torch.equal(y, expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("scale", "group"), SCALES)
def test_what_is_not_finite_is_refused_wherever_it_stands(bad: float, scale: str, group: int) -> None:
    for at in (0, BLOCK, 100 * BLOCK - 1):
        x = torch.ones(100 * BLOCK)
        x[at] = bad
        with pytest.raises(NotFinite):
            kernels_cpu.quantize(x, Grid(4, scale, group), 0, 2)  # type: ignore[arg-type]


def test_a_cpu_has_the_compiled_twin() -> None:
    assert twin_of(torch.device("cpu")) is kernels_cpu
    assert twin_of(torch.device("meta")) is quantize
