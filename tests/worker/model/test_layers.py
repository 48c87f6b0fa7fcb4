"""Layers: slices of a model compose to the whole, steps to the parallel form; costs are what is counted."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import backward
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from scheduler import analytic
from scheduler.analytic import model_profile
from scheduler.job import ModelSpec
from tests.worker.model.counting import counting
from tests.worker.model.shapes import KINDS, kept, layers_of, logits_of, loss_of, spec, tokens_of
from worker.model import (
    Embedding,
    Head,
    ModelError,
    TooManyPositions,
    build_layer,
    build_layers,
    initialize,
    tied_parameter,
)

every_kind = pytest.mark.parametrize("model", KINDS.values(), ids=KINDS)


@every_kind
def test_layers_are_named_in_order(model: ModelSpec) -> None:
    names = [layer.name for layer in build_layers(model, 0, model.depth + 2)]
    assert names == ["embedding", "block.00", "block.01", "block.02", "head"]


@settings(max_examples=20, deadline=None)
@given(kind=st.sampled_from(sorted(KINDS)), cuts=st.sets(st.integers(1, 4)))
def test_any_partition_has_the_whole_models_loss_and_gradients(kind: str, cuts: set[int]) -> None:
    model = KINDS[kind]
    tokens, targets = tokens_of(model), tokens_of(model, seed=4)
    whole = layers_of(model)
    loss = loss_of(whole, tokens, targets)
    backward((loss,))

    edges = [0, *sorted(cuts), model.depth + 2]
    stages = [layers_of(model, a, b) for a, b in pairwise(edges)]
    boundaries, x = [], tokens
    for stage in stages[:-1]:
        y = logits_of(stage, x)
        x = y.detach().requires_grad_()  # what crosses to another process is cut out of the graph
        boundaries.append((y, x))
    staged = loss_of(stages[-1], x, targets)
    backward((staged,))
    for y, received in reversed(boundaries):
        backward((y,), (received.grad,))

    assert torch.equal(staged, loss)
    parts = [layer for stage in stages for layer in stage]
    shared = {id(layer) for layer in (parts[0], parts[-1]) if model.tied}
    for one, other in zip(whole, parts, strict=True):
        for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
            found = b.grad
            if cuts and id(other) in shared and b is tied_parameter(other):
                halves = [tied_parameter(layer) for layer in (parts[0], parts[-1])]
                grads = [half.grad for half in halves if half is not None and half.grad is not None]
                found = torch.stack(grads).sum(0)
            torch.testing.assert_close(found, a.grad, atol=1e-12, rtol=1e-9, msg=f"{one.name}.{name}")


@every_kind
def test_tied_ends_share_one_parameter_in_one_stage_and_begin_alike_in_two(model: ModelSpec) -> None:
    layers = layers_of(model)
    first, last = tied_parameter(layers[0]), tied_parameter(layers[-1])
    apart = layers_of(model, model.depth + 1)[0]
    assert isinstance(apart, Head)
    assert isinstance(layers[0], Embedding)
    if model.tied:
        assert first is not None
        assert first is last
        assert apart.weight is not first
        assert torch.equal(apart.weight, first)
    else:
        assert first is None
        assert last is None
        assert not torch.equal(apart.weight, layers[0].weight)
    assert all(tied_parameter(block) is None for block in layers[1:-1])


def test_initial_weights_depend_on_seed_and_layer_alone() -> None:
    model = KINDS["llama"]
    one, same = build_layer(model, 2), build_layer(model, 2)
    initialize(one, 5, 2)
    torch.manual_seed(99)
    initialize(same, 5, 2)
    for name, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[name])
    for seed, index in ((6, 2), (5, 3)):
        initialize(same, seed, index)
        assert not torch.equal(one.state_dict()["mixer.qkv.weight"], same.state_dict()["mixer.qkv.weight"])


def test_initial_weights_have_gpt2s_spread() -> None:
    model = spec(family="gpt2", hidden=256, layers=8)
    block = build_layer(model, 1)
    initialize(block, 0, 1)
    state = block.state_dict()
    assert state["mixer.qkv.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    for residual in ("mixer.out.weight", "ffn.down.weight"):
        assert state[residual].std().item() == pytest.approx(0.02 / 16**0.5, rel=0.02)
    assert state["mixer_norm.weight"].eq(1).all()
    assert state["mixer.qkv.bias"].eq(0).all()


def test_a_layer_that_was_never_initialised_shows() -> None:
    model = KINDS["gpt2"]
    layers = build_layers(model, 0, model.depth + 2)
    assert logits_of(layers, tokens_of(model)).isnan().all()


@every_kind
def test_step_by_step_is_the_parallel_form(model: ModelSpec) -> None:
    layers, tokens = layers_of(model), tokens_of(model)
    parallel = logits_of(layers, tokens)
    states: list[Any] = [None] * len(layers)
    for t in range(tokens.shape[1]):
        x = tokens[:, t]
        for i, layer in enumerate(layers):
            x, states[i] = layer.step(x, states[i])
        torch.testing.assert_close(x, parallel[:, t], atol=1e-12, rtol=1e-9)


@every_kind
def test_chunks_that_follow_one_another_are_the_parallel_form(model: ModelSpec) -> None:
    layers, tokens = layers_of(model), tokens_of(model)
    parallel = logits_of(layers, tokens)
    states = [layer.begin() for layer in layers]
    for start, stop in ((0, 4), (4, 5), (5, 11)):
        x = tokens[:, start:stop]
        for i, layer in enumerate(layers):
            x, states[i] = layer(x, states[i])
        torch.testing.assert_close(x, parallel[:, start:stop], atol=1e-12, rtol=1e-9)


@every_kind
def test_later_tokens_do_not_change_earlier_positions(model: ModelSpec) -> None:
    layers, tokens = layers_of(model), tokens_of(model)
    changed = tokens.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 61
    before, after = logits_of(layers, tokens), logits_of(layers, changed)
    torch.testing.assert_close(before[:, :6], after[:, :6], atol=1e-12, rtol=1e-9)
    assert not torch.allclose(before[:, 6], after[:, 6])


def test_the_loss_is_the_summed_cross_entropy_in_float32() -> None:
    model = KINDS["llama"]
    layers = layers_of(model, dtype=torch.float32)
    tokens, targets = tokens_of(model), tokens_of(model, seed=9)
    loss = loss_of(layers, tokens, targets)
    logits = logits_of(layers, tokens).double()
    expected = -logits.log_softmax(-1).gather(-1, targets[..., None]).sum()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    left_out = targets.clone()
    left_out[0] = -100
    half = loss_of(layers, tokens[1:], targets[1:])
    assert loss_of(layers, tokens, left_out).item() == pytest.approx(half.item(), rel=1e-6)


def test_a_16_bit_model_has_a_float32_loss() -> None:
    model = KINDS["llama"]
    layers = layers_of(model, dtype=torch.bfloat16)
    loss = loss_of(layers, tokens_of(model), tokens_of(model, seed=9))
    exact = loss_of(layers_of(model), tokens_of(model), tokens_of(model, seed=9))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2)


def test_a_loss_made_in_chunks_is_the_same_and_keeps_less(monkeypatch: pytest.MonkeyPatch) -> None:
    model = spec(family="llama", vocab=3001, tied=False)
    (head,) = layers_of(model, model.depth + 1)
    assert isinstance(head, Head)
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 11, model.hidden, generator=rng, dtype=torch.float64, requires_grad=True)
    targets = tokens_of(model)
    parameters = list(head.parameters())

    def run() -> tuple[list[Tensor], int]:
        loss, size = kept(lambda: head.loss(x, targets), parameters)
        return [loss, *torch.autograd.grad(loss, (x, *parameters))], size

    whole, whole_size = run()
    monkeypatch.setattr(analytic, "LOSS_CHUNK_BYTES", 4 * 3001 * 4)
    chunked, chunked_size = run()
    for a, b in zip(chunked, whole, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)
    assert chunked_size < whole_size / 10


@every_kind
@pytest.mark.parametrize(("batch", "length"), [(1, 7), (3, 24)])
def test_costs_are_what_is_counted(model: ModelSpec, batch: int, length: int) -> None:
    x, targets = tokens_of(model, batch, length), tokens_of(model, batch, length, seed=5)
    profile = model_profile(model, batch, length)
    for layer, cost in zip(layers_of(model, dtype=torch.float32), profile.layers, strict=True):
        assert cost.name == layer.name
        parameters = list(layer.parameters())

        def run(layer: Any = layer, x: Tensor = x) -> Tensor:
            y: Tensor = layer.loss(x, targets) if isinstance(layer, Head) else layer(x)[0]
            return y

        run()  # whatever layers share and keep is made now
        with counting() as forwards:
            y, size = kept(run, parameters)
        with counting() as backwards:
            backward((y.sum(),))
        assert cost.forward_flops == forwards.get_total_flops()
        assert cost.backward_flops == backwards.get_total_flops()
        # Beside what a layer keeps: tables of positions, which all blocks share, and the loss's scalar.
        shared = 2 * 4 * 32 * (model.hidden // model.heads) if model.family == "llama" else 0
        assert cost.saved_bytes <= size <= cost.saved_bytes + max(shared, 4)
        assert cost.parameter_bytes == sum(p.nbytes for p in parameters)
        assert cost.state_bytes == 2 * cost.parameter_bytes
        assert cost.boundary_bytes == (0 if isinstance(layer, Head) else y.nbytes)
        x = y.detach().requires_grad_()


@every_kind
def test_what_mixed_precision_keeps_is_what_is_counted(model: ModelSpec) -> None:
    """float32 weights, products in bfloat16: within what all layers share (rotations, a mask, a scalar)."""
    x, targets = tokens_of(model, 3, 24), tokens_of(model, 3, 24, seed=5)
    whole, half = (model_profile(model, 3 // b, 24, dtype_bytes=2) for b in (1, 3))
    scaled = half.scaled(3)
    for i, layer in enumerate(layers_of(model, dtype=torch.float32)):

        def run(layer: Any = layer, x: Tensor = x) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                y: Tensor = layer.loss(x, targets) if isinstance(layer, Head) else layer(x)[0]
            return y

        run()
        y, size = kept(run, list(layer.parameters()))
        alone = whole.layers[i].saved_bytes + whole.layers[i].working_bytes
        assert alone <= size <= alone + 4096
        assert scaled.layers[i] == whole.layers[i]
        x = y.detach().float().requires_grad_()


def test_forward_flops_agree_with_the_products_written_out() -> None:
    model = KINDS["gpt2"]
    (block,) = layers_of(model, 1, 2, dtype=torch.float32)
    x = torch.randn(2, 9, model.hidden, generator=torch.Generator().manual_seed(0))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        block(x)
    assert model_profile(model, 2, 9).layers[1].forward_flops == counter.get_total_flops()


@every_kind
def test_a_sequence_that_is_too_long_is_refused(model: ModelSpec) -> None:
    (embedding,) = layers_of(model, 0, 1)
    with pytest.raises(TooManyPositions, match="sequence of 41 positions; required at most 40"):
        embedding(tokens_of(model, length=41))
    _, state = embedding(tokens_of(model, length=40), embedding.begin())
    with pytest.raises(TooManyPositions, match="41"):
        embedding.step(torch.tensor([1, 1]), state)


@pytest.mark.parametrize(
    ("model", "index", "message"),
    [
        (spec(family="gpt2", max_positions=None), 0, "model.max_positions: found none"),
        (spec(vocab=None), 0, "model.vocab: found none"),
        (ModelSpec(vocab=9), 1, "model.kv_heads: found none"),
        (spec(heads=5), 1, "model: found 5 heads for hidden 32; required a number of heads that divides"),
        (
            spec(family="llama", kv_heads=3),
            1,
            "model: found 3 key-value heads for 4 heads; required a number that divides heads",
        ),
        (spec(family="gpt2", kv_heads=2), 1, "model.kv_heads: found 2; required 4"),
        (
            spec(family="llama", hidden=36, heads=12),
            1,
            r"heads of width 3 \(hidden 36 / 12\); required an even width",
        ),
        (spec(), 5, "found layer 5; required 0 .. 4"),
        (spec(), -1, "found layer -1"),
    ],
)
def test_a_layer_that_cannot_be_is_refused(model: ModelSpec, index: int, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_layer(model, index)


def test_a_large_model_is_priced_without_its_memory() -> None:
    model = spec(family="llama", layers=2, hidden=8192, heads=64, kv_heads=8, ffn=28672, vocab=32000)
    block = build_layer(model, 1, device="meta")
    cost = model_profile(model, 1, 2048, dtype_bytes=2).layers[1]
    assert cost.parameter_bytes == 4 * sum(p.numel() for p in block.parameters())
    assert cost.parameter_bytes == 4 * (2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28672 + 2 * 8192)
    assert cost.boundary_bytes == 2048 * 8192 * 2
