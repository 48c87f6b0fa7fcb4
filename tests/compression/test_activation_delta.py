"""AC-SGD: convergence, both ends equal whatever happens to frames and memories, budgets, bad input."""

from __future__ import annotations

import math
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compression.activation_delta import ActivationDeltaCodec, Drifted
from compression.boundary_specs import slot_bytes
from compression.codec import make_codec
from compression.grid import CodecError, Grid, NotFinite
from compression.payload import Encoded
from compression.sample_buffers import SampleBuffers
from compression.spec import AcsgdSpec, codec_spec

NAMES = [
    "acsgd",
    "acsgd:bits=2",
    "acsgd:bits=3,first=8",
    "acsgd:store=8",
    "acsgd:bits=2,store=4,first=8",
    "acsgd:memory=disk,scale=channel",
    "acsgd:scale=tensor,rounding=stochastic,bits=6",
]


def ends(name: str, directory: Path | None = None) -> tuple[ActivationDeltaCodec, ActivationDeltaCodec]:
    sender, receiver = make_codec(name, 1, directory), make_codec(name, 2, directory)
    assert isinstance(sender, ActivationDeltaCodec)
    assert isinstance(receiver, ActivationDeltaCodec)
    return sender, receiver


def activations(samples: int, seed: int = 0) -> Tensor:
    return torch.randn(samples, 5, 64, generator=torch.Generator().manual_seed(seed))


def wired(encoded: Encoded) -> Encoded:
    """As it comes from a transport: its own memory, in the parts that were sent."""
    payload = tuple(memoryview(bytearray(p)) for p in encoded.payload)
    return Encoded(payload, encoded.dtype, encoded.shape, encoded.codec, encoded.buffer_version)


def pass_on(
    sender: ActivationDeltaCodec, receiver: ActivationDeltaCodec, x: Tensor, key: tuple[int, ...]
) -> Tensor:
    """A link without faults, but that a receiver who does not remember gets the tensor whole."""
    encoded = sender.encode(x, key)
    try:
        y = receiver.decode(wired(encoded), key)
    except Drifted:
        encoded = sender.encode_first(x, key)
        y = receiver.decode(wired(encoded), key)
    assert torch.equal(y, sender.echo(encoded, key))
    return y


def off(x: Tensor, y: Tensor) -> float:
    return float((x - y).norm() / x.norm())


@pytest.mark.parametrize("name", NAMES)
def test_payloads_have_the_promised_bytes_and_both_ends_remember_the_same(name: str, tmp_path: Path) -> None:
    sender, receiver = ends(name, tmp_path)
    spec = codec_spec(name)
    assert isinstance(spec, AcsgdSpec)
    for visit in range(20):  # past the interval of the checksums
        x = activations(3, visit)
        encoded = sender.encode(x, (7, 1, 4))
        promised = spec.wire_bytes if visit else spec.first_wire_bytes
        assert encoded.n_bytes == promised(tuple(x.shape), 4)
        assert torch.equal(receiver.decode(wired(encoded), (7, 1, 4)), sender.echo(encoded, (7, 1, 4)))
        assert sender.remembered == receiver.remembered
        assert len(sender.remembered) == 3


def test_a_first_visit_is_exact_and_one_in_eight_bits_nearly() -> None:
    x = activations(2)
    assert off(x, pass_on(*ends("acsgd"), x, (1, 2))) == 0.0
    assert 0.0 < off(x, pass_on(*ends("acsgd:first=8"), x, (1, 2))) < 0.01


@pytest.mark.parametrize(("bits", "rate"), [(2, 0.6), (3, 0.35), (4, 0.2)])
def test_at_a_standstill_the_buffer_converges_geometrically_while_direct_quantization_does_not(
    bits: int, rate: float
) -> None:
    """A model that does not move: every visit divides what is left by the quantizer's own factor."""
    sender, receiver = ends(f"acsgd:bits={bits},first=8")
    direct = make_codec(f"kbit:bits={bits}")
    x, key = activations(2), (0, 1)
    pass_on(sender, receiver, 3.0 * activations(2, seed=5), key)  # it begins somewhere else
    errors = [off(x, pass_on(sender, receiver, x, key)) for _ in range(12)]
    floor = 4e-4  # of float16 buffers
    assert errors[0] > 0.1
    for before, after in pairwise(errors):
        assert after < max(rate * before, floor)
    assert errors[-1] < floor
    unmoved = [off(x, direct.decode(direct.encode(x, ()), ())) for _ in range(3)]
    assert min(unmoved) > 100 * floor


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(["acsgd:bits=3", "acsgd:bits=2,store=8,first=8,check_every=2"]),
    seed=st.integers(0, 1000),
    faults=st.lists(
        st.sampled_from(["none", "lost", "twice", "old again", "sender forgot", "receiver forgot", "both"]),
        min_size=3,
        max_size=12,
    ),
)
def test_whatever_happens_the_ends_agree_after_the_next_visit(
    name: str, seed: int, faults: list[str]
) -> None:
    sender, receiver = ends(name)
    rng = torch.Generator().manual_seed(seed)
    history: list[tuple[Encoded, tuple[int, ...]]] = []
    for i, fault in enumerate(faults):
        key = tuple(torch.randperm(4, generator=rng)[:2].tolist())
        x = activations(2, seed + i)
        if fault == "lost":
            sender.encode(x, key)
        if fault == "sender forgot" or fault == "both":
            sender.reset()
        if fault == "receiver forgot" or fault == "both":
            receiver.reset()
        if fault == "old again" and history:
            old, old_key = history[0]
            with suppress(Drifted):
                receiver.decode(wired(old), old_key)
        if fault == "twice":
            encoded = sender.encode(x, key)
            for _ in range(2):
                with suppress(Drifted):
                    receiver.decode(wired(encoded), key)
            history.append((encoded, key))
        y = pass_on(sender, receiver, x, key)
        assert off(x, y) < 1.0
        for sample in key:
            assert sender.remembered[sample] == receiver.remembered[sample]


def test_a_change_to_what_is_not_remembered_is_refused_and_takes_nothing() -> None:
    sender, receiver = ends("acsgd")
    pass_on(sender, receiver, activations(2), (1, 2))
    sender.encode(activations(2, 1), (1, 3))  # lost: 3 is new to the receiver, 1 has moved on
    before = receiver.remembered
    encoded = sender.encode(activations(2, 2), (2, 1))
    with pytest.raises(Drifted, match=r"samples \[1\]: found changes to other versions"):
        receiver.decode(wired(encoded), (2, 1))
    assert receiver.remembered == before


def test_a_lost_first_visit_is_not_mistaken_for_an_older_history() -> None:
    sender, receiver = ends("acsgd")
    for visit in range(3):
        pass_on(sender, receiver, activations(1, visit), (1,))
    sender.reset()
    for visit in range(3):
        encoded = sender.encode(activations(1, 10 + visit), (1,))  # all lost but the last: as many visits
    with pytest.raises(Drifted):
        receiver.decode(wired(encoded), (1,))


def test_a_buffer_that_changed_by_itself_is_noticed_by_its_checksum() -> None:
    sender, receiver = ends("acsgd:check_every=4")
    for visit in range(3):
        pass_on(sender, receiver, activations(1, visit), (1,))
    found = receiver._buffers.find(1)
    assert found is not None
    receiver._buffers.read(found)[0, 0] += 1.0  # a broken memory
    encoded = sender.encode(activations(1, 3), (1,))  # the fourth visit, which is checked
    with pytest.raises(Drifted, match="another checksum"):
        receiver.decode(wired(encoded), (1,))
    y = pass_on(sender, receiver, activations(1, 9), (1,))
    assert sender.remembered == receiver.remembered
    assert off(activations(1, 9), y) == 0.0


def test_beyond_the_budget_the_sample_used_longest_ago_is_new_again_at_both_ends() -> None:
    sender, receiver = ends("acsgd:budget_mb=1")
    x = torch.randn(2, 250, 1000)[:, :, :960]  # 480 kB a sample in float16: two of them
    first = sender.spec.first_wire_bytes(tuple(x.shape), 4)
    change = sender.spec.wire_bytes(tuple(x.shape), 4)
    sizes = []
    for key in ((0, 1), (1, 0), (2, 0), (1, 2)):
        encoded = sender.encode(x, key)
        receiver.decode(wired(encoded), key)
        sizes.append(encoded.n_bytes)
        assert sender.remembered == receiver.remembered
        assert len(sender.remembered) == 2
    each = (first // 2, change // 2)
    assert sizes == [2 * each[0], 2 * each[1], each[0] + each[1], each[0] + each[1]]


def test_a_budget_too_small_for_one_tensor_is_refused() -> None:
    with pytest.raises(CodecError, match="required room for a micro-batch's 3: raise budget_mb"):
        ends("acsgd:budget_mb=1")[0].encode(torch.zeros(3, 250, 960), (1, 2, 3))


def test_another_shape_starts_afresh() -> None:
    sender, receiver = ends("acsgd")
    pass_on(sender, receiver, activations(2), (1, 2))
    x = torch.randn(1, 3, 64)
    assert off(x, pass_on(sender, receiver, x, (1,))) == 0.0
    assert len(sender.remembered) == len(receiver.remembered) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_on_any_visit_and_leaves_no_trace(bad: float) -> None:
    sender, receiver = ends("acsgd")
    broken = activations(1)
    broken[0, 2, 3] = bad
    for _ in range(2):
        with pytest.raises(NotFinite):
            sender.encode(broken, (1,))
        assert off(activations(1), pass_on(sender, receiver, activations(1), (1,))) == 0.0


def test_keys_and_payloads_that_do_not_fit_are_refused() -> None:
    sender, receiver = ends("acsgd")
    with pytest.raises(CodecError, match="found 1 sample ids for a tensor of shape"):
        sender.encode(activations(2), (1,))
    with pytest.raises(CodecError, match="required each of them once"):
        sender.encode(activations(2), (1, 1))
    good = sender.encode(activations(2), (1, 2))
    whole = b"".join(good.payload)
    for payload, said in (
        (whole[:-1], "bytes; required"),
        (whole[:5], "found 5 bytes; required 18"),
        (b"\x09" + whole[1:], "found a sample of kind 9"),
        (b"\x02" + whole[1:], "bytes; required"),
    ):
        with pytest.raises(CodecError, match=said):
            receiver.decode(Encoded((memoryview(payload),), "float32", (2, 5, 64), "acsgd"), (1, 2))
    assert receiver.remembered == {}


def test_slots_in_a_file_are_those_in_memory(tmp_path: Path) -> None:
    on_disk, in_memory = ends("acsgd:memory=disk", tmp_path)[0], ends("acsgd")[0]
    for visit in range(3):
        for sample in range(70):  # more than a chunk
            for codec in (on_disk, in_memory):
                codec.encode(activations(1, 100 * visit + sample), (sample,))
        on_disk.prefetch(range(80))
    assert on_disk.remembered == in_memory.remembered
    assert list(tmp_path.iterdir()) == []  # unlinked as soon as mapped


@settings(deadline=None, max_examples=30)
@given(operations=st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60), room=st.integers(1, 5))
def test_buffers_hold_at_most_their_budget_and_forget_in_order_of_use(
    operations: list[tuple[bool, int]], room: int
) -> None:
    each = slot_bytes((3, 64), None)
    buffers = SampleBuffers(None, room * each)
    expected: dict[int, float] = {}
    for put, sample in operations:
        if put:
            buffers.begin([sample], (3, 64))
            expected.pop(sample, None)
            while len(expected) >= room:
                del expected[next(iter(expected))]
            expected[sample] = float(len(expected))
            buffers.write(buffers.take(sample, [sample]), torch.full((3, 64), float(sample)))
        else:
            buffers.forget(sample)
            expected.pop(sample, None)
        assert list(buffers.samples) == list(expected)
        for held in buffers.samples:
            found = buffers.find(held)
            assert found is not None
            assert bool((buffers.read(found) == held).all())


def test_slots_of_a_grid_hold_its_payload() -> None:
    assert slot_bytes((5, 64), Grid(4)) == 5 * 32 + 5 * 2
    assert slot_bytes((5, 64), None) == 2 * 5 * 64


@given(
    bits=st.integers(1, 8),
    first=st.sampled_from([32, 8]),
    store=st.sampled_from([16, 8, 4]),
    memory=st.sampled_from(["ram", "disk"]),
    budget_mb=st.integers(1, 10**9),
)
def test_a_name_says_all_of_the_spec_and_fits_in_a_frame(
    bits: int, first: int, store: int, memory: str, budget_mb: int
) -> None:
    spec = AcsgdSpec(bits, "channel", 128, "stochastic", first, store, memory, budget_mb, 7)
    assert codec_spec(spec.name) == spec
    assert len(spec.name) <= 128


@pytest.mark.parametrize("options", ["bits=2", "bits=4", "bits=4,store=4", "bits=3,store=8"])
@pytest.mark.parametrize("change", [0.2, 0.8])
def test_the_error_of_activations_that_drift_stays_below_the_spec_s_figure_and_near_it(
    options: str, change: float
) -> None:
    name = f"acsgd:{options}"
    rng = torch.Generator().manual_seed(0)
    (sender, receiver), spec = ends(name), codec_spec(name)
    assert isinstance(spec, AcsgdSpec)
    x = torch.randn(4, 64, 64, generator=rng)
    errors = []
    for _ in range(12):
        encoded = sender.encode(x, (0, 1, 2, 3))
        errors.append(off(receiver.decode(wired(encoded), (0, 1, 2, 3)), x))
        # as large as before, and `change` away: cos a x + sin a y is 2 sin (a / 2) from x
        a = 2 * math.asin(change / 2)
        x = math.cos(a) * x + math.sin(a) * torch.randn(x.shape, generator=rng)
    bound = spec.error_at(x.shape, change)
    assert max(errors[4:]) <= bound
    assert max(errors[4:]) >= 0.45 * bound
    assert spec.relative_error(x.shape) == spec.error_at(x.shape, 1.0)
