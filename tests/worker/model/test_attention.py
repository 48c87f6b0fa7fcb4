"""Attention against its definition written out densely, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import backward

from scheduler.mixers import AttentionSpec, Sight
from tests.worker.model.shapes import kept, spec
from worker.model.attention import Attention, attend, choose_attention
from worker.model.rotary import rotate

torch.set_num_threads(1)


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(C) + causal mask) v, loop by loop."""
    batch, heads, new, width = q.shape
    group, seen = heads // k.shape[1], k.shape[2]
    y = torch.empty(batch, new, heads * width, dtype=q.dtype)
    for b in range(batch):
        for h in range(heads):
            for t in range(new):
                visible = seen - new + t + 1
                scores = k[b, h // group, :visible] @ q[b, h, t] / math.sqrt(width)
                weights = scores.exp() / scores.exp().sum()
                y[b, t, h * width : (h + 1) * width] = weights @ v[b, h // group, :visible]
    return y


@settings(max_examples=25, deadline=None)
@given(
    kv_heads=st.sampled_from([1, 2, 4]),
    seen=st.integers(1, 9),
    new=st.integers(1, 9),
    seed=st.integers(0, 2**31),
)
def test_attention_is_the_dense_softmax_form(kv_heads: int, seen: int, new: int, seed: int) -> None:
    new = min(new, seen)
    rng = torch.Generator().manual_seed(seed)
    q = torch.randn(2, 4, new, 8, generator=rng, dtype=torch.float64)
    k, v = torch.randn(2, 2, kv_heads, seen, 8, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(attend(q, k, v), dense(q, k, v), atol=1e-12, rtol=1e-10)


def test_gradients_of_attention_are_those_of_the_dense_form() -> None:
    rng = torch.Generator().manual_seed(1)
    q = torch.randn(1, 4, 6, 8, generator=rng, dtype=torch.float64, requires_grad=True)
    k = torch.randn(1, 2, 6, 8, generator=rng, dtype=torch.float64, requires_grad=True)
    v = torch.randn(1, 2, 6, 8, generator=rng, dtype=torch.float64, requires_grad=True)
    g = torch.randn(1, 6, 32, generator=rng, dtype=torch.float64)
    ours = torch.autograd.grad(attend(q, k, v), (q, k, v), g)
    theirs = torch.autograd.grad(dense(q, k, v), (q, k, v), g)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)


def test_rotation_turns_each_pair_by_position_times_its_frequency() -> None:
    x = torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = rotate(x, first=3, theta=100.0)
    for t in range(5):
        for i in range(4):
            turn = complex(0, (3 + t) * 100.0 ** (-2 * i / 8))
            before = x[0, 1, t, i].item() + 1j * x[0, 1, t, i + 4].item()
            after = before * (math.cos(turn.imag) + 1j * math.sin(turn.imag))
            assert y[0, 1, t, i].item() == pytest.approx(after.real, abs=1e-12)
            assert y[0, 1, t, i + 4].item() == pytest.approx(after.imag, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(first=st.integers(0, 3000), shift=st.integers(0, 900))
def test_rotary_scores_depend_on_distance_alone(first: int, shift: int) -> None:
    rng = torch.Generator().manual_seed(2)
    q, k = torch.randn(2, 1, 1, 1, 16, generator=rng, dtype=torch.float64)
    here = (rotate(q, first + 5, 1e4) * rotate(k, first, 1e4)).sum()
    there = (rotate(q, first + 5 + shift, 1e4) * rotate(k, first + shift, 1e4)).sum()
    torch.testing.assert_close(here, there, atol=1e-10, rtol=0)


def test_a_rotary_table_first_used_in_inference_serves_training() -> None:
    theta = 12345.5  # a base of its own, so that no other test has made its table
    x = torch.randn(1, 1, 4, 8)
    with torch.inference_mode():
        before = rotate(x, 0, theta)
    trained = x.clone().requires_grad_()
    backward((rotate(trained, 0, theta).sum(),))
    assert trained.grad is not None
    assert torch.equal(rotate(x, 0, theta), before)


def test_a_state_passed_in_is_left_as_it_was() -> None:
    model = spec(family="llama", hidden=16, heads=2, kv_heads=1)
    mixer = Attention(model, AttentionSpec())
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1))
    _, early = mixer(x, mixer.begin())
    keys = early.keys.clone()
    first, later = mixer(x[:, :1], early)
    again, _ = mixer(x[:, :1], early)
    assert torch.equal(first, again)
    assert (early.length, later.length) == (3, 4)
    assert torch.equal(early.keys, keys)


@pytest.mark.parametrize(
    ("device", "dtype", "installed", "head_width", "capability", "chosen"),
    [
        ("cuda", torch.bfloat16, True, 64, (8, 0), "flash"),
        ("cuda", torch.float16, True, 256, (9, 0), "flash"),
        ("cuda", torch.bfloat16, False, 64, (9, 0), "sdpa"),
        ("cuda", torch.float32, True, 64, (9, 0), "sdpa"),
        ("cuda", torch.bfloat16, True, 64, (7, 5), "sdpa"),
        ("cuda", torch.bfloat16, True, 264, (9, 0), "sdpa"),
        ("cuda", torch.bfloat16, True, 60, (9, 0), "sdpa"),
        ("cpu", torch.bfloat16, True, 64, (9, 0), "sdpa"),
        ("mps", torch.float16, True, 64, (9, 0), "sdpa"),
    ],
)
def test_flash_attention_is_chosen_only_where_it_can_run(
    device: str,
    dtype: torch.dtype,
    installed: bool,
    head_width: int,
    capability: tuple[int, int],
    chosen: str,
) -> None:
    assert choose_attention(device, dtype, installed, head_width, capability) == chosen


SIGHTS = [
    Sight(),
    Sight(causal=False),
    Sight(window=2),
    Sight(window=3, causal=False),
    Sight(butterfly=2),
    Sight(butterfly=3, causal=False),
]


@pytest.mark.parametrize("sight", SIGHTS, ids=str)
@pytest.mark.parametrize("length", [4, 9, 26])
def test_packed_documents_do_not_see_each_other(sight: Sight, length: int) -> None:
    """Each document attends as if it were alone, where blocks are not counted from the sample's start."""
    mixer = attention_of(sight)
    x = torch.randn(2, length, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    documents = torch.tensor([[min(t // 4, 3) for t in range(length)], [t // 7 for t in range(length)]])
    packed = mixer(x, documents_BT=documents)[0]
    dense = mixer.finish(x, mixer.as_matrix(x, documents) @ mixer.values(x))
    torch.testing.assert_close(packed, dense, atol=1e-12, rtol=1e-10)
    if sight.butterfly is None:
        for sample in range(2):
            for document in set(documents[sample].tolist()):
                at = documents[sample] == document
                alone = mixer(x[sample : sample + 1, at])[0][0]
                torch.testing.assert_close(packed[sample, at], alone, atol=1e-12, rtol=1e-10)


def attention_of(sight: Sight) -> Attention:
    """Without positions, so that a document may begin anywhere."""
    options = AttentionSpec(
        causal=sight.causal, window=sight.window, butterfly=sight.butterfly, positions="none"
    )
    mixer = Attention(spec(family="llama", hidden=16, heads=4, kv_heads=2), options).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    return mixer


@pytest.mark.parametrize(
    ("options", "per_position"),
    [(AttentionSpec(), 1.0), (AttentionSpec(window=16), 1.0), (AttentionSpec(butterfly=16), 1.6)],
    ids=lambda x: getattr(x, "text", ""),
)
def test_what_attention_keeps_grows_linearly_with_length(options: AttentionSpec, per_position: float) -> None:
    """Bytes a position at 8 times the length over those at once, counted; a butterfly adds a block at each
    doubling."""
    mixer = Attention(spec(family="llama", hidden=16, heads=4, max_positions=2048), options)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))

    def kept_of(length: int) -> float:
        x = torch.randn(1, length, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
        return kept(lambda: mixer(x)[0], list(mixer.parameters()))[1] / length

    assert kept_of(2048) / kept_of(256) <= 1.1 * per_position


def test_windows_and_butterflies_multiply_fewer_pairs() -> None:
    assert Sight().pairs(4096) == 4096**2
    assert Sight(window=128).pairs(4096) == 2 * 128 * 4096
    assert Sight(butterfly=128).pairs(4096) <= 7 * 128 * 4096
    assert Sight(window=128).pairs(200) == 200**2
