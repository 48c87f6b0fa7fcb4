"""Codecs that remember nothing: what they give back, in how many bytes, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.codec import CODECS, DTYPES, CodecError, Encoded, IdentityCodec, NotFinite, make_codec
from compression.payload import parts
from compression.spec import SPECS, IdentitySpec, KBitSpec, codec_spec

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
    for name in CODECS:
        assert make_codec(name).spec.name == codec_spec(name).name == name
    for look_up in (make_codec, codec_spec):
        with pytest.raises(CodecError, match="found the codec 'zip'; required one of: identity"):
            look_up("zip")


@given(shape=shapes, width=st.sampled_from([1, 2, 4, 8]))
def test_identity_costs_the_tensor_itself(shape: tuple[int, ...], width: int) -> None:
    assert IdentitySpec().wire_bytes(shape, width) == torch.empty(shape).numel() * width


floats = st.sampled_from(["float32", "float16", "bfloat16"])
lossy = st.sampled_from(
    ["fp16", "kbit", "kbit:bits=3,group=32", "kbit:bits=5,scale=tensor,rounding=stochastic"]
)


@settings(deadline=None)
@given(name=lossy, dtype=floats, rows=st.integers(0, 4), seed=st.integers(0, 1000))
def test_lossy_codecs_make_the_promised_bytes_and_a_tensor_of_the_same_kind(
    name: str, dtype: str, rows: int, seed: int
) -> None:
    x = torch.randn((rows, 3, 64), generator=torch.Generator().manual_seed(seed)).to(DTYPES[dtype])
    sender, receiver = make_codec(name, seed), make_codec(name)
    encoded = sender.encode(x, ())
    assert encoded.n_bytes == sender.spec.wire_bytes(x.shape, x.element_size())
    assert encoded.codec == name
    # As it comes over a wire: in one piece, in one's own memory, at an odd address.
    wire = memoryview(bytearray(b"x" + b"".join(encoded.payload)))[1:]
    y = receiver.decode(Encoded((wire,), encoded.dtype, encoded.shape, encoded.codec), ())
    assert y.dtype == x.dtype
    assert y.shape == x.shape
    if x.numel():
        error = float((y.double() - x.double()).norm() / x.double().norm())
        assert error < 1.5 * sender.spec.relative_error(x.shape) + 0.01


def test_payloads_share_memory_with_the_codes() -> None:
    encoded = make_codec("kbit:bits=4").encode(torch.ones(4096), ())
    assert [p.nbytes for p in encoded.payload] == [2048, 128]
    received = Encoded(
        tuple(memoryview(bytearray(p)) for p in encoded.payload), "float32", (4096,), encoded.codec
    )
    assert torch.equal(make_codec("kbit:bits=4").decode(received, ()), torch.ones(4096))
    assert (
        parts(received, [2048, 128])[0].data_ptr() == np.frombuffer(received.payload[0], np.uint8).ctypes.data
    )


@pytest.mark.parametrize("name", ["fp16", "kbit"])
def test_corrupt_payloads_and_tensors_that_are_no_floats_are_refused(name: str) -> None:
    codec = make_codec(name)
    good = codec.encode(torch.ones(130), ())
    whole = b"".join(good.payload)
    for bad, said in (
        (Encoded((memoryview(whole[:-1]),), "float32", (130,), name), "bytes; required"),
        (Encoded((memoryview(whole),), "float32", (1 << 40,), name), "bytes; required"),
        (Encoded((memoryview(whole),), "int64", (130,), name), "found the dtype 'int64'"),
        (Encoded((memoryview(whole),), "float32", (130,), name + ":x=1"), "found a payload of codec"),
    ):
        with pytest.raises(CodecError, match=said):
            codec.decode(bad, ())
    with pytest.raises(CodecError, match=r"found a tensor of torch\.int64"):
        codec.encode(torch.ones(3, dtype=torch.int64), ())


def test_half_refuses_what_it_cannot_hold() -> None:
    for bad in (1e6, float("nan")):
        with pytest.raises(NotFinite, match="float16 cannot hold"):
            make_codec("fp16").encode(torch.tensor([1.0, bad]), ())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("kbit:bits=9", "bits: found 9; required 1 to 8"),
        ("kbit:bits=four", "kbit's bits: found 'four'; required int"),
        ("kbit:bit=4", "found kbit's option 'bit'; required one of: bits, scale, group, rounding"),
        ("kbit:rounding=up", "rounding: found 'up'"),
        ("identity:x=1", "found identity's option 'x'; required one of: none"),
    ],
)
def test_names_that_cannot_be_are_refused(name: str, said: str) -> None:
    with pytest.raises(CodecError, match=said):
        make_codec(name)


@given(
    bits=st.integers(1, 8),
    scale=st.sampled_from(["tensor", "channel", "group"]),
    group=st.integers(1, 4096),
    rounding=st.sampled_from(["nearest", "stochastic"]),
)
def test_a_spec_s_name_says_all_of_it_and_fits_in_a_frame(
    bits: int, scale: str, group: int, rounding: str
) -> None:
    spec = KBitSpec(bits, scale, group, rounding)
    assert codec_spec(spec.name) == spec
    assert len(spec.name) <= 64
