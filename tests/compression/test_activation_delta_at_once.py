"""Samples that all come again are passed over at once: the same payloads and buffers as one by one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from compression.activation_delta import ActivationDeltaCodec
from compression.grid import NotFinite
from compression.payload import Encoded
from compression.spec import AcsgdSpec

KEYS = [(0, 1, 2), (3, 4, 5), (70, 2, 0), (2, 0, 70), (1, 4, 9), (4, 1, 5), (0, 2, 70)]


def walk(key: tuple[int, ...], visit: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1000 * visit + sum(key))
    return torch.randn((len(key), 16, 128), generator=rng)


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> Callable[[ActivationDeltaCodec], ActivationDeltaCodec]:
    def made(codec: ActivationDeltaCodec) -> ActivationDeltaCodec:
        monkeypatch.setattr(codec, "_goes_at_once", lambda _: False)
        return codec

    return made


@pytest.mark.parametrize("bits", [2, 4])
def test_payloads_values_and_buffers_are_the_same(
    bits: int, one_by_one: Callable[[ActivationDeltaCodec], ActivationDeltaCodec]
) -> None:
    spec = AcsgdSpec(bits=bits, check_every=2)
    fast = [ActivationDeltaCodec(spec) for _ in range(2)]
    slow = [one_by_one(ActivationDeltaCodec(spec)) for _ in range(2)]
    went = 0
    for visit, key in enumerate(KEYS * 2):
        x = walk(key, visit)
        fast[0]._buffers.begin(key, tuple(x.shape[1:]))
        went += fast[0]._goes_at_once(key)
        frames = [a.encode(x, key) for a in (fast[0], slow[0])]
        wires = [b"".join(f.payload) for f in frames]
        assert wires[0] == wires[1]
        read = []
        for f, wire, receiver in zip(frames, wires, (fast[1], slow[1]), strict=True):
            e = Encoded((memoryview(bytearray(wire)),), f.dtype, f.shape, f.codec, f.buffer_version)
            read.append(receiver.decode(e, key))
        assert torch.equal(read[0], read[1])
        assert torch.equal(fast[0].echo(frames[0], key), read[0])
        assert fast[0].remembered == fast[1].remembered == slow[0].remembered == slow[1].remembered
    assert went == 10  # the first two tensors, and those with 70 and 9 in them, hold new samples


def test_what_is_not_finite_leaves_nothing_of_its_tensor() -> None:
    codec, x = ActivationDeltaCodec(AcsgdSpec()), torch.ones(2, 8, 128)
    codec.encode(x, (1, 2))
    x[1, 3, 7] = float("nan")
    with pytest.raises(NotFinite):
        codec.encode(x, (1, 2))
    assert not codec.remembered
