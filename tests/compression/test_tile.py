"""The tile codec: bytes, the error's figure, what a rotation brings, bad input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compression.codec import make_codec
from compression.grid import CodecError, NotFinite
from compression.payload import Encoded
from compression.spec import TileSpec, codec_spec
from compression.tile import (
    decode_compiled,
    decode_plain,
    encode_compiled,
    encode_plain,
    hadamard,
    rotate_outliers,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(name: str, x: Tensor) -> float:
    codec = make_codec(name)
    return float((codec.decode(codec.encode(x, ()), ()) - x).norm() / x.norm())


@settings(deadline=None, max_examples=40)
@given(
    bits=st.integers(2, 8),
    group=st.sampled_from([16, 32, 64]),
    percent=st.integers(0, 100),
    rows=st.integers(0, 5),
    seed=st.integers(0, 99),
)
def test_the_payload_has_the_promised_bytes_whatever_the_values(
    bits: int, group: int, percent: int, rows: int, seed: int
) -> None:
    spec = TileSpec(bits, group, percent)
    sender, receiver = make_codec(spec.name), make_codec(spec.name)
    x = normal(rows, 3 * group, seed=seed) ** 3
    encoded = sender.encode(x, ())
    assert encoded.n_bytes == spec.wire_bytes((rows, 3 * group), 4)
    wire = memoryview(bytearray(b"x" + b"".join(encoded.payload)))[1:]
    y = receiver.decode(Encoded((wire,), encoded.dtype, encoded.shape, encoded.codec), ())
    assert torch.equal(y, sender.echo(encoded, ()))
    assert y.shape == x.shape


@pytest.mark.parametrize("bits", [3, 4, 5])
def test_the_error_of_normal_values_is_at_most_the_spec_s_figure(bits: int) -> None:
    found = error(f"tile:bits={bits}", normal(200, 256))
    figure = codec_spec(f"tile:bits={bits}").relative_error((200, 256))
    assert 0.8 * figure < found < figure  # which groups get the higher width was chosen well
    low, high = (error(f"kbit:bits={b},group=32", normal(200, 256)) for b in (bits - 1, bits))
    assert high < found < low


def test_outliers_cost_little_because_their_groups_are_rotated() -> None:
    x = normal(200, 256)
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.005] *= 30
    assert error("tile", x) < 0.8 * error("kbit:bits=4,group=32", x)
    groups, rotated, largest = rotate_outliers(x.view(-1, 32))
    assert 0.05 < float(rotated.float().mean()) < 0.3
    assert bool((largest <= x.view(-1, 32).abs().amax(1)).all())
    torch.testing.assert_close(hadamard(groups[rotated]), x.view(-1, 32)[rotated])
    assert torch.equal(groups[~rotated], x.view(-1, 32)[~rotated])


@settings(deadline=None, max_examples=40)
@given(
    bits=st.integers(2, 8),
    group=st.sampled_from([2, 16, 32, 2048]),
    percent=st.integers(0, 100),
    rows=st.integers(0, 70),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    rounding=st.sampled_from(["nearest", "stochastic"]),
    threads=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_the_compiled_passes_give_the_reference_s_bits(
    bits: int, group: int, percent: int, rows: int, dtype: torch.dtype, rounding: str, threads: int, seed: int
) -> None:
    spec = TileSpec(bits, group, percent, rounding)
    x = normal(rows, 2 * group, seed=seed)
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < 0.01] *= 20
    x = (x.round() if seed % 2 else x).to(dtype).t().contiguous().t()  # with equal scales; with strides
    n_high, seeds = spec.n_high(tuple(x.shape)), (seed, 7 * seed)
    plain, fast = encode_plain(x, spec, n_high, seeds), encode_compiled(x, spec, n_high, seeds, threads)
    assert all(map(torch.equal, (*plain[:3], *plain.codes), (*fast[:3], *fast.codes)))
    expected, found = decode_plain(plain, spec, dtype), decode_compiled(plain, spec, dtype, threads)
    assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("width", [2, 16, 32])
def test_the_rotation_is_the_hadamard_matrix(width: int) -> None:
    matrix = torch.ones(1, 1)
    while len(matrix) < width:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    x = normal(5, width)
    torch.testing.assert_close(hadamard(x), x @ matrix / width**0.5)
    torch.testing.assert_close(hadamard(hadamard(x)), x)
    assert hadamard(x[:0]).shape == (0, width)


def test_zeros_stay_zero_and_what_is_not_finite_is_refused() -> None:
    assert error("tile", torch.cat((torch.zeros(4, 64), torch.ones(1, 64)))) < 0.01
    broken = normal(4, 64)
    broken[2, 3] = float("nan")
    with pytest.raises(NotFinite):
        make_codec("tile").encode(broken, ())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tile:bits=1", "bits: found 1; required 2 to 8"),
        ("tile:group=24", "group: found 24; required a power of two"),
        ("tile:high_percent=101", "high_percent: found 101"),
        ("tile:rounding=up", "rounding: found 'up'"),
    ],
)
def test_options_that_cannot_be_are_refused(name: str, said: str) -> None:
    with pytest.raises(CodecError, match=said):
        make_codec(name)


def test_rows_and_payloads_that_do_not_fit_are_refused() -> None:
    codec = make_codec("tile")
    with pytest.raises(CodecError, match="found rows of 100 values; required a multiple of the group, 32"):
        codec.encode(normal(8, 100), ())
    encoded = codec.encode(normal(4, 64), ())
    whole = bytearray(b"".join(encoded.payload))
    with pytest.raises(CodecError, match="bytes; required"):
        codec.decode(Encoded((memoryview(whole[:-1]),), "float32", (4, 64), "tile"), ())
    whole[1] ^= 1  # a flag of the higher width
    with pytest.raises(CodecError, match="groups of the higher width; required 4"):
        codec.decode(Encoded((memoryview(whole),), "float32", (4, 64), "tile"), ())
