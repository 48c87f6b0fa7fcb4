"""The k-bit quantizer against its definition: levels, bounds, means of many roundings, packing, bad input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.grid import CodecError, Grid, NotFinite, packed_bytes, steps_of
from compression.quantize import dequantize, pack, quantize, scale_index, uniforms, unpack

BITS = range(1, 9)
grids = st.builds(
    Grid,
    bits=st.integers(1, 8),
    scale=st.sampled_from(["tensor", "channel", "group"]),
    group=st.sampled_from([1, 3, 32, 64, 96]),
    stochastic=st.booleans(),
)


def there_and_back(x: torch.Tensor, grid: Grid, seed: int = 0) -> torch.Tensor:
    return dequantize(*quantize(x, grid, seed), tuple(x.shape), grid, x.dtype)


def steps(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The distance of two levels at each value."""
    scales, _ = quantize(x, grid)
    scale = (scales.to(torch.int32) << 16).view(torch.float32)
    return 2 * scale[scale_index(tuple(x.shape), grid)].view(x.shape) / steps_of(grid.bits)


@settings(deadline=None, max_examples=60)
@given(grid=grids, rows=st.integers(0, 5), groups=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
def test_no_value_is_off_by_more_than_a_step_nor_by_more_than_half_where_rounding_is_to_the_nearest(
    grid: Grid, rows: int, groups: int, seed: int
) -> None:
    shape = (rows, groups * grid.group)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 10.0 ** (seed % 21 - 10)
    y = there_and_back(x, grid, seed)
    assert y.shape == x.shape
    bound = steps(x, grid) * (1.0 if grid.stochastic else 0.5) * (1 + 1e-4)
    assert bool(((y - x).abs() <= bound).all())


@pytest.mark.parametrize("bits", BITS)
def test_both_ends_of_the_range_are_levels_and_zero_is_one_from_3_bits_on(bits: int) -> None:
    x = torch.tensor([-2.0, 0.0, 2.0])
    y = there_and_back(x, Grid(bits, "tensor"))
    assert y[0] == -2.0
    assert y[2] == 2.0
    assert (y[1] == 0.0) == (bits >= 3)


@pytest.mark.parametrize("bits", range(3, 9))
def test_a_zero_stays_zero_under_any_draw(bits: int) -> None:
    x = torch.zeros(200_000)
    x[0] = 1.0
    y = there_and_back(x, Grid(bits, "tensor", stochastic=True), seed=11)
    assert int((y != 0).sum()) == 1


@pytest.mark.parametrize("bits", BITS)
def test_the_mean_of_many_roundings_is_the_value_and_their_variance_at_most_a_quarter_step(bits: int) -> None:
    x, n = torch.linspace(-1, 1, 257), 2000
    y = there_and_back(x.repeat(n), Grid(bits, "tensor", stochastic=True), seed=bits).view(n, -1).double()
    step = 2.0 / steps_of(bits)
    off = (y.mean(0) - x.double()).abs()
    assert float(off.max()) < 5 * (step / 2) / n**0.5  # five deviations of the mean
    assert float(off.mean()) < (step / 2) / n**0.5
    variance = y.var(0)
    f = ((x.double() + 1) / step) % 1.0
    assert bool((variance <= step**2 / 4 * 1.02).all())
    torch.testing.assert_close(variance, f * (1 - f) * step**2, atol=0.02 * step**2, rtol=0)


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_the_error_of_normal_values_is_the_spec_s_figure(bits: int, stochastic: bool) -> None:
    x = torch.randn(400, 128, generator=torch.Generator().manual_seed(3))
    grid = Grid(bits, "group", 64, stochastic)
    found = float((there_and_back(x, grid, 5) - x).norm() / x.norm())
    assert found == pytest.approx(grid.relative_error(x.shape), rel=0.05)


def test_uniforms_are_uniform_repeatable_and_new_with_the_seed() -> None:
    u = uniforms(100_000, 5)
    assert torch.equal(u, uniforms(100_000, 5))
    assert float((u == uniforms(100_000, 6)).float().mean()) < 0.01
    assert 0.0 < float(u.min()) < float(u.max()) < 1.0
    counts = torch.histc(u, 64, 0.0, 1.0) / len(u) * 64
    assert float((counts - 1).abs().max()) < 0.1
    ahead = torch.corrcoef(torch.stack((u[:-1], u[1:])))[0, 1]
    assert abs(float(ahead)) < 0.01


@settings(deadline=None, max_examples=40)
@given(bits=st.integers(1, 8), n=st.integers(0, 2100), seed=st.integers(0, 1000))
def test_packed_codes_take_the_bytes_they_need_and_come_back(bits: int, n: int, seed: int) -> None:
    codes = torch.randint(2**bits, (n,), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    packed = pack(codes, bits)
    assert packed.numel() == packed_bytes(n, bits)
    assert -(-n * bits // 8) <= packed.numel() <= -(-n * bits // 8) + 2
    assert torch.equal(unpack(packed, n, bits), codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_types_and_strides_are_their_values(dtype: torch.dtype) -> None:
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    grid = Grid(4, "group", 32)
    a, b = quantize(x.t(), grid), quantize(x.t().contiguous().float(), grid)
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
    assert dequantize(*a, (6, 64), grid, dtype).dtype == dtype


def test_tiny_values_are_zero_and_huge_ones_stay_finite() -> None:
    grid = Grid(8, "tensor")
    assert torch.equal(there_and_back(torch.tensor([1e-39, -1e-40]), grid), torch.zeros(2))
    top = torch.finfo(torch.float32).max
    y = there_and_back(torch.tensor([top, -top, 0.0]), grid)
    assert bool(torch.isfinite(y).all())
    torch.testing.assert_close(y[0].double(), torch.tensor(top, dtype=torch.float64), rtol=0.01, atol=0)


@pytest.mark.parametrize(("bad", "said"), [(float("nan"), "no number"), (float("-inf"), "an infinite value")])
@pytest.mark.parametrize("scale", ["tensor", "channel", "group"])
def test_what_is_not_finite_is_refused(bad: float, said: str, scale: str) -> None:
    x = torch.ones(3, 64)
    x[1, 5] = bad
    with pytest.raises(NotFinite, match=said):
        quantize(x, Grid(4, scale, 32))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Grid(0), "bits: found 0; required 1 to 8"),
        (lambda: Grid(9), "bits: found 9; required 1 to 8"),
        (lambda: Grid(4, group=0), "group: found 0"),
        (lambda: Grid(4, "row"), "scale: found 'row'; required one of: tensor, channel, group"),  # type: ignore[arg-type]
        (
            lambda: Grid(4).n_scales((2, 100)),
            "found rows of 100 values; required a multiple of the group, 64",
        ),
        (lambda: Grid(4).n_scales((2, -1)), r"found shape \(2, -1\)"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(make: object, said: str) -> None:
    with pytest.raises(CodecError, match=said):
        make()  # type: ignore[operator]


def test_a_payload_of_another_size_is_refused() -> None:
    grid = Grid(4)
    scales, packed = quantize(torch.ones(130), grid)
    with pytest.raises(CodecError, match="found 3 scales and 64 bytes of codes; required 3 and 65"):
        dequantize(scales, packed[:-1], (130,), grid, torch.float32)
