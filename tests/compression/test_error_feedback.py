"""Error feedback: what was sent follows what was to be sent, for k bits and for the largest values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compression.codec import FeedbackCodec, make_codec
from compression.grid import CodecError, NotFinite
from compression.payload import Encoded
from compression.spec import codec_spec

NAMES = [
    "feedback:bits=2",
    "feedback",
    "feedback:bits=8,rounding=stochastic",
    "topk:per_mille=100",
    "topk:bits=4",
]


def made(name: str, seed: int = 0) -> FeedbackCodec:
    codec = make_codec(name, seed)
    assert isinstance(codec, FeedbackCodec)
    return codec


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=40)
@given(name=st.sampled_from(NAMES), n=st.integers(1, 700), seed=st.integers(0, 99))
def test_what_was_sent_and_what_is_owed_add_up(name: str, n: int, seed: int) -> None:
    codec = made(name, seed)
    sent, given_ = torch.zeros(n), torch.zeros(n)
    for step in range(5):
        x = normal(n, seed=seed + step)
        encoded = codec.encode(x, (3,))
        assert encoded.n_bytes == codec.spec.wire_bytes((n,), 4)
        wire = memoryview(bytearray(b"".join(encoded.payload)))
        read = make_codec(name).decode(Encoded((wire,), encoded.dtype, encoded.shape, encoded.codec), (3,))
        assert torch.equal(read, codec.echo(encoded, (3,)))
        sent, given_ = sent + read, given_ + x
    torch.testing.assert_close(sent + codec.residuals[3,], given_, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["feedback:bits=2", "topk:per_mille=100"])
def test_the_mean_of_what_was_sent_becomes_the_mean_of_what_was_to_be_sent(name: str) -> None:
    """A gradient that stays: the error of the mean falls as 1 / n, where without feedback it stays."""
    x, codec = normal(2000), made(name)
    total, off = torch.zeros_like(x), []
    for n in range(1, 101):
        total += codec.decode(codec.encode(x, (0,)), (0,))
        off.append(float((total / n - x).norm() / x.norm()))
    assert off[99] < 0.15 * off[0]
    assert off[99] < 0.6 * off[49] + 0.01


def test_keys_owe_apart_and_a_reset_forgets() -> None:
    codec = made("feedback:bits=2")
    codec.encode(normal(64), (1,))
    codec.encode(normal(32), (2,))
    assert {key: tuple(r.shape) for key, r in codec.residuals.items()} == {(1,): (64,), (2,): (32,)}
    codec.encode(normal(10), (1,))  # another plan's shard: what was owed does not fit
    assert codec.residuals[1,].shape == (10,)
    codec.reset()
    assert not codec.residuals


def test_top_k_sends_the_largest_values_as_they_are() -> None:
    x = torch.tensor([0.1, -5.0, 0.2, 4.0, -0.3, 0.0, 0.0, 0.0, 0.0, 0.0])
    codec = made("topk:per_mille=200")
    assert codec.decode(codec.encode(x, (0,)), (0,)).tolist() == [0, -5, 0, 4, 0, 0, 0, 0, 0, 0]
    torch.testing.assert_close(codec.residuals[0,], torch.tensor([0.1, 0, 0.2, 0, -0.3, 0, 0, 0, 0, 0]))


@pytest.mark.parametrize("per_mille", [10, 100, 500, 1000])
def test_the_figure_of_top_k_is_its_first_message_s_error(per_mille: int) -> None:
    name = f"topk:per_mille={per_mille}"
    x, codec = normal(20_000), made(name)
    found = float((codec.decode(codec.encode(x, (0,)), (0,)) - x).norm() / x.norm())
    assert found == pytest.approx(codec_spec(name).relative_error((20_000,)), rel=0.03)


@pytest.mark.parametrize("name", ["feedback", "topk"])
def test_what_is_not_finite_is_refused_and_owed_to_nobody(name: str) -> None:
    codec = made(name)
    for key in (0, 1):
        codec.encode(normal(100), (key,))
    owed = codec.residuals[1,].clone()
    with pytest.raises(NotFinite):
        codec.encode(torch.full((100,), float("inf")), (0,))
    assert (0,) not in codec.residuals  # a sum with what is no number is nothing to go on with
    assert torch.equal(codec.residuals[1,], owed)


def test_payloads_and_options_that_cannot_be_are_refused() -> None:
    codec = made("topk:per_mille=100")
    encoded = codec.encode(normal(50), (0,))
    whole = bytearray(b"".join(encoded.payload))
    with pytest.raises(CodecError, match="bytes; required 40"):
        codec.decode(Encoded((memoryview(whole[:-4]),), "float32", (50,), "topk:per_mille=100"), (0,))
    whole[0:4] = (99).to_bytes(4, "little")
    with pytest.raises(CodecError, match="to 99; required 0 to 49"):
        codec.decode(Encoded((memoryview(whole),), "float32", (50,), "topk:per_mille=100"), (0,))
    for name, said in (
        ("topk:per_mille=0", "per_mille: found 0; required 1 to 1000"),
        ("topk:bits=9", "bits: found 9"),
        ("feedback:bits=0", "bits: found 0"),
        ("feedback:rounding=up", "rounding: found 'up'"),
    ):
        with pytest.raises(CodecError, match=said):
            make_codec(name)
