"""A stage computes what its layers compute, keeps activations no longer than needed, refuses wrong orders."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import Tensor

from scheduler.analytic import job_profile
from tests.worker.model.shapes import kept
from tests.worker.pipelines import fresh_layers, make_job, tokens_of
from worker.stage import Stage, StageError, owned_parameters


def test_stages_in_a_row_give_the_gradients_of_the_whole() -> None:
    job = make_job("llama")
    tokens = tokens_of(job, 0)
    x, targets = tokens[:, :-1], tokens[:, 1:]
    whole = Stage(fresh_layers(job, 0, 5), True, True)
    loss = whole.forward(0, x, targets)
    assert whole.backward(0, None, 0.25) is None
    front, back = Stage(fresh_layers(job, 0, 2), True, False), Stage(fresh_layers(job, 2, 5), False, True)
    boundary = front.forward(0, x)
    assert not boundary.requires_grad
    assert torch.equal(back.forward(0, boundary, targets), loss)
    gradient = back.backward(0, None, 0.25)
    assert gradient is not None
    assert front.backward(0, gradient, 0.25) is None
    for a, b in zip(whole.owned, front.owned + back.owned, strict=True):
        for p, q in zip(a, b, strict=True):
            assert p.grad is not None
            assert q.grad is not None
            assert torch.equal(p.grad, q.grad)


def test_activations_are_kept_from_forward_to_backward_only() -> None:
    job = make_job()
    tokens = tokens_of(job, 0)
    stage = Stage(fresh_layers(job, 0, 2), True, False)
    for mb in range(3):
        y = stage.forward(mb, tokens[:, :-1])
    assert stage.in_flight == 3
    stage.backward(1, torch.ones_like(y), 1.0)
    assert stage.in_flight == 2
    stage.clear()
    assert stage.in_flight == 0
    assert all(p.grad is None for parameters in stage.owned for p in parameters)
    stage.evaluate(tokens[:, :-1])
    assert stage.in_flight == 0


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("start", [0, 2])
def test_recomputing_keeps_the_inputs_alone_and_changes_no_bit(
    start: int, autocast: torch.dtype | None
) -> None:
    job = make_job("llama")
    tokens = tokens_of(job, 0)
    x = tokens[:, :-1] if start == 0 else torch.randn(8, 8, 32, generator=torch.Generator().manual_seed(1))
    found: list[list[Tensor | None]] = []
    for recompute in (False, True):
        stage = Stage(fresh_layers(job, start, 5), start == 0, True, autocast, recompute)
        parameters = [p for ps in stage.owned for p in ps]
        loss, n_bytes = kept(partial(stage.forward, 0, x, tokens[:, 1:]), parameters)
        assert (n_bytes == 0) == recompute
        x_gradient = stage.backward(0, None, 0.25)
        assert stage.in_flight == 0
        found.append([loss, x_gradient, *(p.grad for p in parameters)])
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (b is not None and torch.equal(a, b))


def test_copies_of_weights_are_held_for_a_step_and_change_no_bit() -> None:
    """Four micro-batches keep one 16-bit copy of the matrices, not four; the next step makes new ones."""
    job = make_job("llama")
    model = job_profile(job.model_copy(update={"precision": "bf16"}))
    tokens = torch.split(tokens_of(job, 0), 2)
    found = {}
    for held in (False, True):
        stage = Stage(fresh_layers(job, 0, 5), True, True, torch.bfloat16)
        parameters = [p for ps in stage.owned for p in ps]
        results: list[Tensor] = []
        sizes = []
        for _ in range(2):

            def forwards(stage: Stage = stage, results: list[Tensor] = results) -> Tensor:
                results += [stage.forward(mb, x[:, :-1], x[:, 1:]) for mb, x in enumerate(tokens)]
                return results[-1]

            with stage.copies_held() if held else nullcontext():
                sizes.append(kept(forwards, parameters)[1])
                for mb in range(4):
                    stage.backward(mb, None, 0.25)
            with torch.no_grad():
                for p in parameters:
                    assert p.grad is not None
                    p.sub_(0.1 * p.grad)
        found[held] = (sizes, [*results, *parameters])
    copies = sum(x.working_bytes for x in model.layers)
    assert copies > 0
    for once, each in zip(found[True][0], found[False][0], strict=True):
        assert each - once == 3 * copies
    for a, b in zip(found[True][1], found[False][1], strict=True):
        assert torch.equal(a, b)


def test_layers_are_done_from_the_last_to_the_first_each_once_with_its_gradient() -> None:
    job = make_job()
    tokens = tokens_of(job, 0)
    stage = Stage(fresh_layers(job, 0, 5), True, True)
    done: list[int] = []

    def note(layer: int) -> None:
        assert all(p.grad is not None for p in stage.owned[layer])
        done.append(layer)

    for mb in range(2):
        stage.forward(mb, tokens[:, :-1], tokens[:, 1:])
    stage.backward(0, None, 1.0)
    assert done == []
    stage.backward(1, None, 1.0, note)
    assert done == [4, 3, 2, 1, 0]


def test_a_parameter_that_gets_no_gradient_does_not_keep_its_layer_from_being_done() -> None:
    job = make_job()
    layers = fresh_layers(job, 1, 3)
    layers[0].register_parameter("unused", torch.nn.Parameter(torch.zeros(3)))
    stage = Stage(layers, False, False)
    y = stage.forward(0, torch.ones(2, 8, 32))
    done: list[int] = []
    stage.backward(0, torch.ones_like(y), 1.0, done.append)
    assert done == [1, 0]


def test_an_error_in_done_reaches_the_caller_and_leaves_no_hook() -> None:
    job = make_job()
    stage = Stage(fresh_layers(job, 1, 2), False, False)

    def fail(layer: int) -> None:
        raise ConnectionError(f"layer {layer}")

    y = stage.forward(0, torch.ones(2, 8, 32))
    with pytest.raises(ConnectionError, match="layer 0"):
        stage.backward(0, torch.ones_like(y), 1.0, fail)
    stage.forward(0, torch.ones(2, 8, 32))
    stage.backward(0, torch.ones_like(y), 1.0)


def test_a_tied_weight_is_owned_once_and_known_to_both_ends() -> None:
    job = make_job()
    whole = Stage(fresh_layers(job, 0, 5), True, True)
    assert whole.tied is None
    assert sum(p is whole.layers[0].weight for parameters in whole.owned for p in parameters) == 1
    front, back = Stage(fresh_layers(job, 0, 2), True, False), Stage(fresh_layers(job, 2, 5), False, True)
    assert front.tied is front.layers[0].weight
    assert back.tied is back.layers[-1].weight
    assert Stage(fresh_layers(job, 1, 2), False, False).tied is None
    assert Stage(fresh_layers(make_job("llama"), 0, 2), True, False).tied is None
    assert [len(p) for p in owned_parameters(whole.layers)][-1] == 2  # the head's norm: weight and bias


def test_bf16_boundaries_leave_weights_and_gradients_in_fp32() -> None:
    job = make_job()
    tokens = tokens_of(job, 0)
    front = Stage(fresh_layers(job, 0, 2), True, False, torch.bfloat16)
    back = Stage(fresh_layers(job, 2, 5), False, True, torch.bfloat16)
    boundary = front.forward(0, tokens[:, :-1])
    loss = back.forward(0, boundary, tokens[:, 1:])
    gradient = back.backward(0, None, 1.0)
    assert gradient is not None
    assert boundary.dtype == gradient.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    front.backward(0, gradient, 1.0)
    assert all(
        p.grad is not None and p.grad.dtype == torch.float32 for ps in front.owned + back.owned for p in ps
    )


def test_wrong_orders_are_refused() -> None:
    job = make_job()
    inner = Stage(fresh_layers(job, 1, 2), False, False)
    x = torch.ones(2, 8, 32)
    with pytest.raises(StageError, match="micro-batch 3: found a backward; required its forward first"):
        inner.backward(3, x, 1.0)
    inner.forward(3, x)
    with pytest.raises(StageError, match="micro-batch 3: found a second forward"):
        inner.forward(3, x)
    with pytest.raises(StageError, match="micro-batch 3: found no gradient"):
        inner.backward(3, None, 1.0)
    with pytest.raises(StageError, match="found targets in an inner stage"):
        inner.forward(4, x, torch.zeros(2, 8, dtype=torch.int64))
    with pytest.raises(StageError, match="found a stage without layers"):
        Stage([], True, False)
    with pytest.raises(StageError, match=r"found block\.00 at the end of the last stage"):
        Stage(fresh_layers(job, 1, 2), False, True)
