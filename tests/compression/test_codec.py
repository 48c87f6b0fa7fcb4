"""The identity codec gives back every bit, copies nothing, and refuses what does not fit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compression.codec import CODECS, DTYPES, CodecError, Encoded, IdentityCodec, make_codec
from compression.spec import SPECS, IdentitySpec, codec_spec

shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@given(shape=shapes, dtype=st.sampled_from(sorted(DTYPES)), seed=st.integers(0, 2**20))
def test_identity_gives_back_every_bit_in_exactly_the_promised_bytes(
    shape: tuple[int, ...], dtype: str, seed: int
) -> None:
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 1e3).to(DTYPES[dtype])
    codec = make_codec("identity")
    encoded = codec.encode(x, ())
    assert encoded.n_bytes == codec.spec.wire_bytes(shape, x.element_size())
    y = codec.decode(encoded, ())
    assert y.dtype == x.dtype
    assert y.shape == x.shape
    assert torch.equal(x, y)


def test_not_a_number_and_negative_zero_survive() -> None:
    x = torch.tensor([float("nan"), -0.0, float("-inf")], dtype=torch.bfloat16)
    codec = IdentityCodec()
    y = codec.decode(codec.encode(x, ()), ())
    assert torch.equal(x.view(torch.int16), y.view(torch.int16))


def test_a_contiguous_tensor_is_neither_copied_out_nor_in() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    codec = IdentityCodec()
    assert codec.decode(codec.encode(x, ()), ()).data_ptr() == x.data_ptr()


def test_a_view_with_holes_travels_as_its_values() -> None:
    x = torch.arange(12.0).reshape(3, 4)[:, 1:3]
    codec = IdentityCodec()
    assert torch.equal(codec.decode(codec.encode(x, ()), ()), x)


def test_a_read_only_payload_and_one_in_pieces_are_read() -> None:
    codec = IdentityCodec()
    raw = torch.arange(4.0).numpy().tobytes()
    whole = Encoded((memoryview(raw),), "float32", (2, 2), "identity")
    pieces = Encoded((memoryview(raw)[:5], memoryview(raw)[5:]), "float32", (2, 2), "identity")
    assert torch.equal(codec.decode(whole, ()), torch.arange(4.0).reshape(2, 2))
    assert torch.equal(codec.decode(pieces, ()), torch.arange(4.0).reshape(2, 2))


def test_a_gradient_is_not_part_of_a_payload() -> None:
    x = torch.ones(2, requires_grad=True)
    assert IdentityCodec().encode(x * 2, ()).n_bytes == 8


@pytest.mark.parametrize(
    ("encoded", "said"),
    [
        (Encoded((memoryview(b"1234567"),), "float32", (2,), "identity"), "found 7 bytes; required 8"),
        (Encoded((memoryview(b"12345678"),), "float31", (2,), "identity"), "found the dtype 'float31'"),
        (Encoded((memoryview(b"12345678"),), "float32", (2,), "delta4"), "found a payload of codec 'delta4'"),
        (Encoded((memoryview(b""),), "float32", (-1, 2), "identity"), "found shape (-1, 2)"),
    ],
)
def test_a_payload_that_does_not_fit_is_refused(encoded: Encoded, said: str) -> None:
    with pytest.raises(CodecError) as e:
        IdentityCodec().decode(encoded, ())
    assert said in str(e.value)


def test_a_dtype_that_does_not_travel_is_refused() -> None:
    with pytest.raises(CodecError, match=r"found a tensor of torch\.complex64"):
        IdentityCodec().encode(torch.zeros(2, dtype=torch.complex64), ())


def test_every_codec_has_a_spec_of_its_name_and_unknown_names_are_named() -> None:
    assert set(CODECS) == set(SPECS)
    for name, make in CODECS.items():
        assert make().spec.name == codec_spec(name).name == name
    for look_up in (make_codec, codec_spec):
        with pytest.raises(CodecError, match="found the codec 'zip'; required one of: identity"):
            look_up("zip")


@given(shape=shapes, width=st.sampled_from([1, 2, 4, 8]))
def test_identity_costs_the_tensor_itself(shape: tuple[int, ...], width: int) -> None:
    assert IdentitySpec().wire_bytes(shape, width) == torch.empty(shape).numel() * width
