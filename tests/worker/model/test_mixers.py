"""One oracle for every part that a block can be made of.

Output and gradients are those of its dense form, written from the definition; all at once, in chunks and
step by step are the same; in two stages it is what it is in one; and its closed forms are what is counted.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.autograd import backward

from scheduler.analytic import layer_costs
from scheduler.job import ModelSpec
from scheduler.layer_cost import Sizes
from scheduler.mixers import MIXERS
from scheduler.pattern import parse_part
from tests.worker.model.counting import counting, memory_changes
from tests.worker.model.shapes import kept, layers_of, logits_of, loss_of, spec, tokens_of
from worker.generate import generate
from worker.model import Block, ModelError
from worker.model.mixer import Mixer, SequenceMixer

PARTS = (
    "attention",
    "attention heads=4 kv_heads=2",
    "attention kv_heads=1 positions=none",
    "attention window=1",
    "attention window=3",
    "attention window=3 kv_heads=2",
    "attention window=20",
    "attention butterfly=2",
    "attention butterfly=2 kv_heads=1",
    "attention causal=false",
    "attention causal=false window=2",
    "attention causal=false butterfly=2",
    "mlp",
    "mlp activation=gelu",
    "mlp inner=24",
    "mlp linear=monarch blocks=4 inner=24",
    "mlp linear=monarch blocks=2 activation=gelu",
    "mlp linear=pixelfly blocks=4 rank=3 inner=24",
    "mlp linear=pixelfly blocks=8 rank=2 activation=gelu",
    "experts experts=4 inner=12",
    "experts experts=5 top=3",
    "experts experts=1 top=1 inner=8",
    "lssl state=8",
    "lssl state=5",
    "lssl state=4 transform=matrix",
    "s4d state=8",
    "s4d state=4 init=lin",
    "s4d state=6 init=inv",
    "s4d state=8 transform=matrix",
    "h3 state=8",
    "h3 state=4 taps=2 init=lin",
    "longconv",
    "longconv squash=0.01 length=41",
    "longconv transform=matrix",
    "hyena width=8",
    "hyena width=6 taps=1 bands=2 length=64",
    "hyena width=8 transform=matrix",
    "ssd state=4",
    "ssd state=6 chunk=4 heads=2 expand=1 taps=2",
    "ssd state=4 chunk=8 taps=1",
    "log_ssd state=4",
    "log_ssd state=6 chunk=4 heads=2 expand=1 taps=2",
    "log_ssd state=4 chunk=2 length=41",
    "hydra state=4",
    "hydra state=6 chunk=4 heads=2 expand=1 taps=3",
    "delta",
    "delta chunk=4 key=3 heads=2",
    "delta chunk=16 taps=1",
    "log_delta",
    "log_delta chunk=4 key=3 heads=2",
    "log_delta chunk=2 length=41",
)
CAUSAL = tuple(part for part in PARTS if parse_part(part).is_causal)
LENGTH = 21

every_part = pytest.mark.parametrize("part", PARTS)
causal_part = pytest.mark.parametrize("part", CAUSAL)


def model_of(*parts: str) -> ModelSpec:
    return spec(family="llama", hidden=16, heads=4, tied=False, layers=(parts,) if parts else 1)


def block_of(part: str, dtype: torch.dtype = torch.float64) -> Block:
    """A block with this part alone, of weights large enough that what they do shows."""
    (block,) = layers_of(model_of(part), 1, 2, dtype)
    assert isinstance(block, Block)
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            drawn_small = block.initial(name, torch.Generator()) is None and parameter.ndim > 1
            if drawn_small or name.endswith(("tiles", "left", "second")):  # of structured matrices
                parameter.mul_(15)
            if name.endswith("levels.weight"):  # begins at 0
                drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
                parameter.copy_(0.3 * drawn)
    return block


def mixer_of(part: str) -> Mixer:
    block = block_of(part)
    return block.mixer_of(block.parts[0])


def input_of(batch: int = 2, length: int = LENGTH, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, length, 16, generator=torch.Generator().manual_seed(0)).to(dtype)


def close(found: Tensor, expected: Tensor, message: str = "") -> None:
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(found, expected, atol=1e-10 * scale, rtol=1e-8, msg=message or None)


def test_every_part_that_a_job_can_name_is_tested_here() -> None:
    assert {part.split()[0] for part in PARTS} == set(MIXERS)


@every_part
@pytest.mark.parametrize("length", [1, 2, 8, LENGTH])
def test_output_and_gradients_are_those_of_the_dense_form(part: str, length: int) -> None:
    mixer = mixer_of(part)
    x = input_of(length=length).requires_grad_()
    inputs = (x, *mixer.parameters())
    y, dense = mixer(x)[0], mixer.dense(x)
    assert y.shape == x.shape
    assert y.abs().max() > 1e-3, "the comparison is of something"
    close(y, dense)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    ours, theirs = (
        torch.autograd.grad(z, inputs, g, allow_unused=True, materialize_grads=True) for z in (y, dense)
    )
    for name, a, b in zip(("x", *dict(mixer.named_parameters())), ours, theirs, strict=True):
        close(a, b, name)


@causal_part
def test_chunks_and_steps_are_the_parallel_form(part: str) -> None:
    block, x = block_of(part), input_of()
    whole, none = block(x)
    assert none is None
    for edges in ((0, 4, 5, 16, LENGTH), (0, 8, 16, LENGTH), tuple(range(LENGTH + 1))):
        state = block.begin()
        for start, stop in pairwise(edges):
            y, state = block(x[:, start:stop], state)
            close(y, whole[:, start:stop], f"{start}:{stop} of {edges}")
    state = None
    for t in range(LENGTH):
        y, state = block.step(x[:, t], state)
        close(y, whole[:, t], str(t))


@causal_part
def test_later_positions_do_not_change_earlier_ones(part: str) -> None:
    block, x = block_of(part), input_of()
    changed = x.clone()
    changed[:, 9:] += 1
    close(block(changed)[0][:, :9], block(x)[0][:, :9])


@pytest.mark.parametrize("part", [part for part in PARTS if part not in CAUSAL])
def test_what_sees_later_positions_does_not_generate(part: str) -> None:
    block = block_of(part)
    with pytest.raises(ModelError, match="to generate"):
        block.step(input_of()[:, 0])


@pytest.mark.parametrize("part", [part for part in PARTS if parse_part(part).is_sequence])
def test_a_sequence_mixers_matrix_is_causal_where_it_says_so(part: str) -> None:
    mixer = mixer_of(part)
    assert isinstance(mixer, SequenceMixer)
    later = mixer.as_matrix(input_of()).triu(1)
    assert (later == 0).all() == parse_part(part).is_causal


@causal_part
def test_two_stages_train_as_one(part: str) -> None:
    model = model_of(part, "mlp", part)
    tokens, targets = tokens_of(model, 2, LENGTH), tokens_of(model, 2, LENGTH, seed=5)
    whole = layers_of(model)
    loss = loss_of(whole, tokens, targets)
    backward((loss,))
    front, back = layers_of(model, 0, 2), layers_of(model, 2, 3)
    y = front[1](front[0](tokens)[0])[0]
    x = y.detach().requires_grad_()
    staged = loss_of(back, x, targets)
    backward((staged,))
    backward((y,), (x.grad,))
    assert torch.equal(staged, loss)
    for one, other in zip(whole, (*front, *back), strict=True):
        for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
            torch.testing.assert_close(b.grad, a.grad, atol=1e-12, rtol=1e-9, msg=name)


@every_part
@pytest.mark.parametrize(("batch", "length"), [(1, 8), (3, 40)])
def test_closed_forms_are_what_is_counted(part: str, batch: int, length: int) -> None:
    """Flops exactly; bytes kept for backward within a tenth, and what all layers share."""
    block, x = block_of(part, torch.float32), input_of(batch, length, torch.float32).requires_grad_()
    cost = {mode: block.cost(batch, length, torch.float32, mode) for mode in ("forward", "backward")}
    parameters = list(block.parameters())
    block(x)  # tables that are made once
    with counting() as forwards:
        y, size = kept(lambda: block(x)[0], parameters)
    with counting() as backwards:
        backward((y.sum(),))
    assert cost["forward"].flops == forwards.get_total_flops()
    assert cost["backward"].flops == backwards.get_total_flops()
    assert cost["forward"].parameter_bytes == sum(p.nbytes for p in parameters)
    assert cost["forward"].boundary_bytes == y.nbytes
    shared = 2 * 64 * 4 * 4  # rotations
    expected = layer_costs(block.model, Sizes(batch, length, 4, 4))["block.00"].saved_bytes
    assert 0.9 * expected <= size <= 1.1 * expected + shared
    assert cost["forward"].memory_bytes >= expected


@pytest.mark.parametrize("part", [part for part in PARTS if "length=" not in part])
def test_memory_given_out_in_all_grows_with_the_length(part: str) -> None:
    """Not with its square, though each piece be given back at once: an allocator may keep such pieces apart,
    and filling them takes time. Twice the positions may cost a level of a tree, a tenth, more."""
    model = spec(family="llama", hidden=16, heads=4, tied=False, layers=((part,),), max_positions=2048)
    (block,) = layers_of(model, 1, 2, torch.float32)

    def given_out(length: int) -> int:
        x = input_of(1, length, torch.float32).requires_grad_()
        block(x)  # tables that are made once
        return sum(n for n in memory_changes(lambda: backward((block(x)[0].sum(),))) if n > 0)

    assert given_out(2048) <= 2.25 * given_out(1024)


@causal_part
@pytest.mark.parametrize("past", [1, 20])
def test_a_steps_closed_forms_are_what_is_counted(part: str, past: int) -> None:
    block, x = block_of(part, torch.float32), input_of(3, past + 1, torch.float32)
    cost = block.cost(3, past, torch.float32, "step")
    with torch.no_grad():
        _, state = block(x[:, :past], block.begin())
        with counting() as counter:
            y, _ = block.step(x[:, past], state)
    assert cost.flops == counter.get_total_flops()
    assert cost.boundary_bytes == y.nbytes
    assert cost.state_bytes == bytes_of(state)


def test_a_model_of_all_causal_parts_generates_what_its_parallel_form_says() -> None:
    model = spec(
        family="llama", hidden=16, heads=4, layers=tuple((part,) for part in CAUSAL), max_positions=40
    )
    layers = layers_of(model)
    prompt = tokens_of(model, 1, 7)[0].tolist()
    new = generate(layers, prompt, 6, temperature=0, top_k=0, rng=torch.Generator())
    assert len(new) == 6
    for i, token in enumerate(new):
        logits = logits_of(layers, torch.tensor([prompt + new[:i]]))
        assert token == logits[0, -1].argmax()


@every_part
def test_mixed_precision_is_near(part: str) -> None:
    """Products in bfloat16, whose values are off by up to 0.4 %: results within 3 % of float32's, and
    gradients within 10 (the delta rule solves a system, an error of which adds up)."""
    block = block_of(part, torch.float32)

    def run(enabled: bool) -> tuple[Tensor, Tensor]:
        x = input_of(dtype=torch.float32).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = block(x)[0]
        (gradient,) = torch.autograd.grad(y.float().square().sum(), x)
        return y.float(), gradient

    for found, expected, most in zip(run(True), run(False), (0.03, 0.1), strict=True):
        assert (found - expected).norm() <= most * expected.norm()


def bytes_of(state: object) -> int:
    if isinstance(state, Tensor):
        return state.nbytes
    return sum(map(bytes_of, state)) if isinstance(state, tuple | list) else 0
