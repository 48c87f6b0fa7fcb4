"""Grouped products: PyTorch's and the project's Triton kernel (by its interpreter) beside the loop, and a
mixture of experts that trains alike whichever it is told to take."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import accumulate
from typing import cast

import pytest
import torch
from torch import Tensor
from torch.autograd import backward

from scheduler.analytic import layer_costs
from scheduler.layer_cost import Sizes
from scheduler.mixers import ExpertsSpec
from scheduler.pattern import parse_part
from tests.worker.model.counting import counting, memory_changes
from tests.worker.model.shapes import kept, spec
from tests.worker.model.test_mixers import block_of, input_of
from worker.kernels import choice, grouped
from worker.kernels.grouped import LOOP, TORCH, Taken, Ways, joined, way
from worker.model import ModelError
from worker.model.experts import Experts
from worker.model.training import training

pytest.importorskip("triton", reason="triton is not here: it comes with the extras `gpu`, and `dev` on Linux")

from worker.kernels.grouped_triton import COLUMNS, ROWS, TRITON, tiles

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
COUNTS = ((1,), (0, 5, 0), (3, 0, 70, 2), (ROWS, 2 * ROWS, 0), (0, 0))

# The interpreter multiplies bfloat16 as the integers that it keeps it in.
NARROW = {"auto": torch.bfloat16, "torch": torch.bfloat16, "triton": torch.float16}

both = pytest.mark.parametrize("ways", [TORCH, TRITON], ids=["torch", "triton"])
all_counts = pytest.mark.parametrize("counts", COUNTS, ids=str)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def places_of(n: int, rows: int, seed: int = 5) -> Tensor:
    return torch.randint(0, rows, (n,), generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def outer_of(ways: Ways, left: Taken, right: Taken, counts_E: Tensor, dtype: torch.dtype) -> Tensor:
    """Sums where something else was."""
    widths = left.rows_RI.shape[1], right.rows_RI.shape[1]
    sums_ELM = torch.full((len(counts_E), *widths), torch.nan, dtype=dtype, device=DEVICE)
    ways.outer(left, right, counts_E, sums_ELM)
    return sums_ELM


def near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@all_counts
def test_the_loop_is_what_it_says_row_by_row(counts: tuple[int, ...]) -> None:
    n, counts_E = sum(counts), torch.tensor(counts)
    x, dy, matrices = drawn(7, 6, seed=0), drawn(n, 5, seed=1), drawn(len(counts), 6, 5, seed=2)
    at = places_of(n, 7)
    groups = [e for e, count in enumerate(counts) for _ in range(count)]
    taken = Taken(x, at)
    y = LOOP.product(taken, matrices, counts_E)
    sums = outer_of(LOOP, taken, Taken(dy), counts_E, torch.float32)
    expected = torch.zeros(len(counts), 6, 5)
    for i, e in enumerate(groups):
        near(y[i], x[at[i]] @ matrices[e])
        expected[e] += x[at[i], :, None] * dy[i]
    near(sums, expected)


@both
@all_counts
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 24), (40, COLUMNS + 8)])
def test_products_and_sums_are_the_loops(
    ways: Ways, counts: tuple[int, ...], inputs: int, outputs: int
) -> None:
    n, counts_E = sum(counts), torch.tensor(counts, device=DEVICE)
    rows, at = drawn(9, inputs, seed=0), places_of(n, 9)
    straight, dy = drawn(n, inputs, seed=1), drawn(n, outputs, seed=2)
    matrices = drawn(len(counts), outputs, inputs, seed=3)
    given = Taken(dy)
    for x in (Taken(rows, at), Taken(straight)):
        near(ways.product(x, matrices.mT, counts_E), LOOP.product(x, matrices.mT, counts_E))
        found, expected = (outer_of(each, given, x, counts_E, torch.float32) for each in (ways, LOOP))
        near(found, expected)
        found, expected = (outer_of(each, x, given, counts_E, torch.float64) for each in (ways, LOOP))
        near(found, expected)
    near(ways.product(given, matrices, counts_E), LOOP.product(given, matrices, counts_E))


@both
def test_narrow_rows_take_wide_matrices_and_give_wide_sums(ways: Ways) -> None:
    counts_E, at = torch.tensor([3, 0, 20], device=DEVICE), places_of(23, 9)
    narrow = NARROW["torch" if ways is TORCH else "triton"]
    x, matrices = drawn(9, 16, seed=0).to(narrow), drawn(3, 24, 16, seed=1)
    taken = Taken(x, at)
    y, expected = (f(taken, matrices.mT, counts_E) for f in (ways.product, LOOP.product))
    assert y.dtype == narrow
    torch.testing.assert_close(y, expected, atol=0.05, rtol=0.01)
    sums = outer_of(ways, Taken(y), taken, counts_E, torch.float32)
    wide = outer_of(LOOP, Taken(y.float()), Taken(x.float(), at), counts_E, torch.float32)
    torch.testing.assert_close(sums, wide, atol=0.05, rtol=0.01)
    assert not sums[1].any()


@both
@pytest.mark.parametrize("weighed", [True, False])
def test_collected_rows_are_the_loops(ways: Ways, weighed: bool) -> None:
    weights = drawn(11, 4, seed=0)
    weights[3] = 0  # a row whose places are all left out
    picked = drawn(11, 4, seed=1) > 0
    picked[3] = False
    places = picked.flatten().nonzero()[:, 0]
    places = places[torch.randperm(len(places), generator=torch.Generator().manual_seed(2)).to(DEVICE)]
    y = drawn(len(places), 40, seed=3)
    found, expected = (f(y, places, weights, weighed) for f in (ways.collect, LOOP.collect))
    near(found, expected)
    assert found.shape == (11, 40)
    assert not found[3].any()
    again = ways.collect(y, places, weights, weighed, found.clone())
    near(again, 2 * expected)


@pytest.mark.parametrize("ways", [LOOP, TORCH, TRITON], ids=["loop", "torch", "triton"])
@all_counts
def test_portions_are_the_whole(ways: Ways, counts: tuple[int, ...]) -> None:
    n, counts_E = sum(counts), torch.tensor(counts, device=DEVICE)
    portions = list(ways.portions(counts_E))
    assert len(portions) == (len(counts) if ways is LOOP else 1)
    assert torch.cat([counts_E[groups] for groups, _ in portions]).tolist() == list(counts)
    assert torch.cat([torch.arange(n)[rows] for _, rows in portions]).tolist() == list(range(n))
    x, y = drawn(n, 16, seed=0), drawn(n, 24, seed=1)
    matrices, weights = drawn(len(counts), 16, 24, seed=2), drawn(n, 1, seed=3)
    places = torch.randperm(n, generator=torch.Generator().manual_seed(4)).to(DEVICE)
    products, sums, collected = list[Tensor](), torch.full_like(matrices, torch.nan), None
    for groups, at in portions:
        its = counts_E[groups]
        products.append(ways.product(Taken(x[at]), matrices[groups], its))
        ways.outer(Taken(x[at]), Taken(y[at]), its, sums[groups])
        collected = ways.collect(y[at], places[at], weights, True, collected)
    near(joined(products), LOOP.product(Taken(x), matrices, counts_E))
    near(sums, outer_of(LOOP, Taken(x), Taken(y), counts_E, torch.float32))
    assert collected is not None
    near(collected, LOOP.collect(y, places, weights, True))


@all_counts
def test_tiles_cover_every_row_once(counts: tuple[int, ...]) -> None:
    groups, firsts, ends = tiles(torch.tensor(counts), sum(counts))
    assert ends.tolist() == torch.tensor(counts).cumsum(0).tolist()
    covered = [
        (group, row)
        for group, first in zip(groups.tolist(), firsts.tolist(), strict=True)
        if group >= 0
        for row in range(first, min(first + ROWS, int(ends[group])))
    ]
    assert covered == [
        (e, row) for e, count in enumerate(counts) for row in range(int(ends[e]) - count, int(ends[e]))
    ]


def trained(kernel: str, options: str, narrow: torch.dtype | None) -> list[Tensor]:
    block = block_of(f"experts experts=4 inner=24 kernel={kernel} {options}", torch.float32).to(DEVICE)
    x = input_of(3, 50, torch.float32).to(DEVICE).requires_grad_()
    with training(), torch.autocast(DEVICE.type, narrow, enabled=narrow is not None):
        y = block(x)[0]
    gradients = torch.autograd.grad(y.float().square().sum(), [x, *block.parameters()])
    return [y, *gradients]


@pytest.mark.parametrize("kernel", ["torch", "triton"])
@pytest.mark.parametrize("options", ["", "top=3", "tile=16", "top=1 tile=8"])
@pytest.mark.parametrize("narrow", [False, True])
def test_a_mixture_with_either_is_the_one_without(kernel: str, options: str, narrow: bool) -> None:
    dtype = NARROW[kernel] if narrow else None
    ours, theirs = (trained(name, options, dtype) for name in (kernel, "auto"))
    for found, expected in zip(ours, theirs, strict=True):
        assert found.dtype == expected.dtype
        error = (found.float() - expected.float()).norm() / expected.float().norm()
        assert error < (0.01 if narrow else 1e-6)


@pytest.mark.parametrize("kernel", ["auto", "torch", "triton"])
@pytest.mark.parametrize("narrow", [False, True])
def test_what_is_kept_is_what_is_counted_by_either(kernel: str, narrow: bool) -> None:
    block = block_of(f"experts experts=4 inner=24 kernel={kernel}", torch.float32).to(DEVICE)
    x = input_of(3, 40, torch.float32).to(DEVICE).requires_grad_()
    with torch.autocast(DEVICE.type, NARROW[kernel], enabled=narrow):
        _, size = kept(lambda: block(x)[0], list(block.parameters()))
    expected = layer_costs(block.model, Sizes(3, 40, 2 if narrow else 4, 4))["block.00"].saved_bytes
    assert 0.9 * expected <= size <= 1.1 * expected


@pytest.mark.skipif(DEVICE.type != "cpu", reason="a GPU's allocator is not what is watched")
def test_a_cpu_holds_the_values_of_one_expert_at_a_time() -> None:
    peaks = {}
    for kernel in ("auto", "torch"):
        block = block_of(f"experts experts=8 inner=96 kernel={kernel}", torch.float32)
        x = input_of(4, 256, torch.float32).requires_grad_()
        changes = memory_changes(lambda: backward((block(x)[0].sum(),)))  # noqa: B023
        peaks[kernel] = max(accumulate(changes))
    assert peaks["auto"] < 0.7 * peaks["torch"]


def plainly(mixer: Experts, x_BTD: Tensor) -> Tensor:
    """A mixture as autograd alone would train it."""
    x_RD, logits_RE = x_BTD.flatten(0, 1), mixer.router(x_BTD).flatten(0, 1)
    liked_RK, chosen_RK = logits_RE.topk(mixer.top, dim=-1)
    weights_RK, y_RD = liked_RK.softmax(-1), torch.zeros_like(x_RD)
    for e, (gate_up, down) in enumerate(zip(mixer.gate_up, mixer.down, strict=True)):
        rows, places = (chosen_RK == e).nonzero(as_tuple=True)
        gate, up = (x_RD[rows] @ gate_up.mT).chunk(2, dim=-1)
        y = (torch.nn.functional.silu(gate) * up) @ down.mT
        y_RD = y_RD.index_add(0, rows, weights_RK[rows, places, None] * y)
    return y_RD.view_as(x_BTD)


@pytest.mark.parametrize("kernel", ["auto", "torch", "triton"])
def test_backward_is_kept_less_than_half_of_what_autograd_would(kernel: str) -> None:
    block = block_of(f"experts experts=4 inner=24 kernel={kernel}", torch.float32).to(DEVICE)
    mixer, x = block.mixer_of(block.parts[0]), input_of(3, 40, torch.float32).to(DEVICE).requires_grad_()
    assert isinstance(mixer, Experts)
    y, ours = kept(lambda: mixer(x)[0], list(mixer.parameters()))
    expected, plain = kept(lambda: plainly(mixer, x), list(mixer.parameters()))
    near(y, expected)
    assert ours < 0.5 * plain


def test_flops_of_pytorchs_grouped_product_are_what_is_counted() -> None:
    block = block_of("experts experts=4 inner=24 kernel=torch", torch.float32).to(DEVICE)
    x = input_of(3, 40, torch.float32).to(DEVICE).requires_grad_()
    cost = {mode: block.cost(3, 40, torch.float32, mode) for mode in ("forward", "backward")}
    with counting() as forwards:
        y = block(x)[0]
    with counting() as backwards:
        backward((y.sum(),))
    assert cost["forward"].flops == forwards.get_total_flops()
    assert cost["backward"].flops == backwards.get_total_flops()


class OnGpu:
    """What a choice looks at, as a tensor on a GPU answers."""

    is_cuda, device = True, torch.device("cuda:0")

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def element_size(self) -> int:
        return self.dtype.itemsize


def test_the_way_is_chosen_by_what_the_device_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_gpu(dtype: torch.dtype, widths: tuple[int, ...] = (64, 24)) -> Ways | None:
        return way("auto", cast(Tensor, OnGpu(dtype)), widths)

    x = torch.zeros(4, 64)
    assert way("auto", x, (64, 24)) is LOOP
    assert way("auto", x.bfloat16(), (64, 24)) is LOOP
    assert way("torch", x, (64, 24)) is TORCH
    assert way("torch", x, (64, 23)) is None
    assert way("torch", x.double(), (64, 24)) is None, "PyTorch's takes no float64"
    assert way("triton", x, (64, 23)) is (TRITON if os.environ["TRITON_INTERPRET"] == "1" else None)
    for takes, bf16 in ((True, TORCH), (False, TRITON)):
        monkeypatch.setattr(grouped, "_takes", lambda *_, takes=takes: takes)
        assert on_gpu(torch.bfloat16) is bf16
        assert on_gpu(torch.bfloat16, (64, 23)) is TRITON
        assert on_gpu(torch.float16) is TRITON
        assert on_gpu(torch.float32) is LOOP
    monkeypatch.setattr(choice, "_installed", lambda: False)
    assert on_gpu(torch.float16) is LOOP
    assert way("triton", x, (64, 24)) is None


@pytest.mark.parametrize("broken", [RuntimeError, NotImplementedError, AttributeError])
def test_a_grouped_product_that_fails_or_is_not_there_is_not_taken(
    broken: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing() -> Callable[..., Tensor]:
        raise broken("not for this device")

    assert grouped._takes.__wrapped__("cpu", torch.bfloat16)
    monkeypatch.setattr(grouped, "_grouped", failing)
    assert not grouped._takes.__wrapped__("cpu", torch.bfloat16)


def test_a_kernel_that_cannot_be_is_refused() -> None:
    part = parse_part("experts kernel=torch inner=12")
    assert isinstance(part, ExpertsSpec)
    found = list(part.misfits(spec(hidden=32)))
    assert found == [("kernel=torch for hidden 32 and inner 12", "multiples of 8, or kernel=auto")]
    block = block_of("experts experts=2 inner=8 kernel=torch")
    mixer = block.mixer_of(block.parts[0])
    assert isinstance(mixer, Experts)
    with pytest.raises(ModelError, match=r"kernel=torch for torch\.float64 on cpu; required a device"):
        mixer(input_of())
