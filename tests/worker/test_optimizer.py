"""The rate's curve, torch's arithmetic layer by layer, and state that follows a layer through plans."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scheduler.job import OptimizerSpec
from tests.worker.pipelines import fresh_layers, make_job
from worker.model import Layer, build_layers
from worker.optimizer import OptimizerStateError, StageOptimizer, learning_rate

specs = st.builds(
    OptimizerSpec,
    lr=st.floats(1e-6, 1.0),
    warmup_steps=st.integers(0, 30),
    decay=st.sampled_from(["constant", "linear", "cosine"]),
    final_lr_fraction=st.floats(0, 1),
)


@given(spec=specs, steps=st.integers(1, 60))
def test_the_rate_rises_to_lr_and_falls_to_its_final_fraction(spec: OptimizerSpec, steps: int) -> None:
    rates = [learning_rate(spec, step, steps) for step in range(steps)]
    assert all(0 <= r <= spec.lr * (1 + 1e-12) for r in rates)
    warm = rates[: spec.warmup_steps]
    assert warm == sorted(warm)
    if len(rates) > spec.warmup_steps:
        after = rates[spec.warmup_steps :]
        assert after[0] == pytest.approx(spec.lr)
        assert all(b <= a * (1 + 1e-12) for a, b in pairwise(after))
        if len(after) > 1:
            final = 1.0 if spec.decay == "constant" else spec.final_lr_fraction
            assert after[-1] == pytest.approx(spec.lr * final, abs=1e-12)


def test_the_middle_of_each_decay() -> None:
    at = {
        decay: learning_rate(OptimizerSpec(lr=1.0, decay=decay, final_lr_fraction=0.0), 2, 9)
        for decay in ("constant", "linear", "cosine")
    }
    assert at == pytest.approx({"constant": 1.0, "linear": 0.75, "cosine": 0.5 * (1 + 0.5**0.5)})


def with_gradients(layers: list[Layer], seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    for p in {id(p): p for layer in layers for p in layer.parameters()}.values():
        p.grad = torch.randn(p.shape, generator=rng)


@pytest.mark.parametrize(
    "spec",
    [
        OptimizerSpec(lr=0.01),
        OptimizerSpec(name="sgd", lr=0.1, momentum=0.9),
        OptimizerSpec(name="sgd", lr=0.1),
    ],
    ids=["adamw", "momentum", "sgd"],
)
def test_state_saved_and_loaded_continues_as_if_nothing_had_happened(spec: OptimizerSpec) -> None:
    job = make_job()
    through, saved = fresh_layers(job, 0, 5), fresh_layers(job, 0, 5)
    optimizer, first = StageOptimizer(through, spec), StageOptimizer(saved, spec)
    assert first.layer_state(0) == {}
    for seed in range(2):
        for layers, it in ((through, optimizer), (saved, first)):
            with_gradients(layers, seed)
            it.step(spec.lr)
            assert all(p.grad is None for layer in layers for p in layer.parameters())
    # Another plan: embedding and blocks on one stage, the head, with its copy of the tied weight, on another.
    front, back = build_layers(job.shape, 0, 4), build_layers(job.shape, 4, 5)
    optimizers = [StageOptimizer(front, spec), StageOptimizer(back, spec)]
    for i, layer in enumerate(front + back):
        layer.load_state_dict(saved[i].state_dict())
        state = {name: value.clone() for name, value in first.layer_state(i).items()}
        optimizers[i // 4].load_layer_state(i % 4, state)
        assert optimizers[i // 4].layer_state(i % 4).keys() == state.keys()
    with_gradients(through, 7)
    for a, b in zip(through, front + back, strict=True):
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            assert p.grad is not None
            q.grad = p.grad.clone()
    optimizer.step(spec.lr)
    for o in optimizers:
        o.step(spec.lr)
    for a, b in zip(through, front + back, strict=True):
        for name, value in a.state_dict().items():
            assert torch.equal(value, b.state_dict()[name]), f"{a.name}.{name}"


def test_norms_and_biases_do_not_decay_and_a_shared_weight_steps_once() -> None:
    job = make_job()
    layers = fresh_layers(job, 0, 5)
    before = {n: p.detach().clone() for n, p in torch.nn.ModuleList(layers).named_parameters()}
    for layer in layers:
        for p in layer.parameters():
            p.grad = torch.zeros_like(p)
    spec = OptimizerSpec(lr=0.1, weight_decay=0.5)
    StageOptimizer(layers, spec).step(spec.lr)
    for name, p in torch.nn.ModuleList(layers).named_parameters():
        required = before[name] * (1 - 0.1 * 0.5) if p.ndim >= 2 else before[name]
        assert torch.allclose(p, required, rtol=1e-6), name


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_state_of_another_layer_or_optimizer_is_refused(change: str) -> None:
    job = make_job()
    layers = fresh_layers(job, 1, 2)
    optimizer = StageOptimizer(layers, job.optimizer)
    with_gradients(layers, 0)
    optimizer.step(1e-3)
    state = dict(optimizer.layer_state(0))
    name = "ffn.up.weight.exp_avg"
    if change == "missing":
        del state[name]
    elif change == "extra":
        state["ffn.up.weight.momentum_buffer"] = state[name]
    else:
        state[name] = state[name][:1]
    with pytest.raises(OptimizerStateError, match=r"block\.00.*found.*required"):
        optimizer.load_layer_state(0, state)


def test_empty_state_is_that_before_the_first_step() -> None:
    job = make_job()
    layers = fresh_layers(job, 1, 2)
    optimizer = StageOptimizer(layers, job.optimizer)
    with_gradients(layers, 0)
    optimizer.step(1e-3)
    optimizer.load_layer_state(0, {})
    assert optimizer.layer_state(0) == {}
