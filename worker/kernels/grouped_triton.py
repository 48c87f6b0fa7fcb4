# mypy: disable-error-code="no-untyped-call, no-untyped-def, untyped-decorator, name-defined"
"""The products of `grouped.py` as Triton kernels: one launch for all groups, however uneven they are.

A program takes a tile of one group's rows, so a group whose rows are a multiple of `ROWS` has no padding (a
job's `tile`; Guo et al. 2025, "SonicMoE", section 5). Rows are gathered as they are read (section 4), and
matrices wider than the rows are narrowed tile by tile, so neither is copied. Sums in float32. Nothing waits
for the counts to come to the CPU. Shapes as there.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import triton
import triton.language as tl
from torch import Tensor

from worker.kernels.grouped import ALL, Portion, Taken

ROWS, COLUMNS, DEPTH = 64, 64, 32
"""Of a tile of results, and how many products are added at once."""
WIDTH = 512
"""Values of a collected row that one program adds up."""


class _Triton:
    def portions(self, counts_E: Tensor) -> Iterable[Portion]:
        del counts_E
        return (ALL,)

    def product(self, x: Taken, matrices_EIO: Tensor, counts_E: Tensor) -> Tensor:
        x_RI, at_n = _pointers(x)
        n = len(x_RI if x.at_n is None else at_n)
        _, inputs, outputs = matrices_EIO.shape
        y_nO = x_RI.new_empty(n, outputs)
        groups_t, firsts_t, ends_E = tiles(counts_E, n)
        _product[len(groups_t), triton.cdiv(outputs, COLUMNS)](
            x_RI, at_n, matrices_EIO, y_nO, groups_t, firsts_t, ends_E, inputs, outputs,
            *matrices_EIO.stride(), x.at_n is not None, ROWS, COLUMNS, DEPTH,
        )  # fmt: skip
        return y_nO

    def outer(self, left: Taken, right: Taken, counts_E: Tensor, sums_ELM: Tensor) -> None:
        (left_L, left_at_n), (right_M, right_at_n) = _pointers(left), _pointers(right)
        groups, lefts, rights = sums_ELM.shape
        _outer[triton.cdiv(lefts, ROWS), triton.cdiv(rights, COLUMNS), groups](
            left_L, left_at_n, right_M, right_at_n, sums_ELM, counts_E, counts_E.cumsum(0), lefts, rights,
            left.at_n is not None, right.at_n is not None, ROWS, COLUMNS, DEPTH,
        )  # fmt: skip

    def collect(
        self,
        y_nO: Tensor,
        places_n: Tensor,
        weights_RW: Tensor,
        weighed: bool,
        before_RO: Tensor | None = None,
    ) -> Tensor:
        rows, places = weights_RW.shape
        taken_RW = torch.full_like(weights_RW, -1, dtype=torch.int64)
        taken_RW.view(-1)[places_n] = torch.arange(len(places_n), device=places_n.device)
        y_nO, sums = y_nO.contiguous(), y_nO.new_empty(rows, y_nO.shape[1])
        _collect[rows, triton.cdiv(y_nO.shape[1], WIDTH)](
            y_nO, taken_RW, weights_RW.contiguous(), sums, places, y_nO.shape[1], weighed, WIDTH
        )
        return sums if before_RO is None else before_RO.add_(sums)


TRITON = _Triton()


def _pointers(x: Taken) -> tuple[Tensor, Tensor]:
    """Rows, and where they are taken; without that any pointer will do: it is not read."""
    rows = x.rows_RI.contiguous()
    return rows, rows if x.at_n is None else x.at_n


def tiles(counts_E: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """(group, first row) of each tile, and where each group ends. As many tiles as `n` rows can need, found
    without knowing the counts here; those that are too many have the group -1."""
    tiles_E = (counts_E + ROWS - 1) // ROWS
    ends_E, until_E = counts_E.cumsum(0), tiles_E.cumsum(0)
    most = (n + len(counts_E) * (ROWS - 1)) // ROWS
    at_t = torch.arange(most, device=counts_E.device)
    groups_t = torch.searchsorted(until_E, at_t, right=True)
    its_t = groups_t.clamp(max=len(counts_E) - 1)
    firsts_t = (ends_E - counts_E)[its_t] + (at_t - (until_E - tiles_E)[its_t]) * ROWS
    return groups_t.masked_fill(at_t >= until_E[-1], -1), firsts_t, ends_E


@triton.jit
def _product(
    x, at, matrices, y, groups, firsts, ends, inputs, outputs, of_group, of_input, of_output,
    GATHER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """A tile of y: one group's rows, some outputs. `of_*`: strides of the matrices."""
    # Tiles of one group follow one another, so that its matrix is still in the cache.
    group = tl.load(groups + tl.program_id(0))
    if group < 0:
        return
    rows = tl.load(firsts + tl.program_id(0)) + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    end = tl.load(ends + group)
    mine, wanted = rows < end, columns < outputs
    taken = tl.load(at + rows, mask=mine, other=0) if GATHER else rows
    summed = tl.zeros([ROWS, COLUMNS], tl.float32)
    for begin in range(0, inputs, DEPTH):
        deep = begin + tl.arange(0, DEPTH)
        there = deep < inputs
        x_tile = tl.load(
            x + taken[:, None] * inputs + deep[None, :], mask=mine[:, None] & there[None, :], other=0.0
        )
        its = group * of_group + deep[:, None] * of_input + columns[None, :] * of_output
        m_tile = tl.load(matrices + its, mask=there[:, None] & wanted[None, :], other=0.0)
        summed += tl.dot(x_tile, m_tile.to(x_tile.dtype), input_precision="ieee")
    to = y + rows[:, None] * outputs + columns[None, :]
    tl.store(to, summed.to(y.dtype.element_ty), mask=mine[:, None] & wanted[None, :])


@triton.jit
def _outer(
    left, left_at, right, right_at, sums, counts, ends, lefts, rights,
    LEFT_AT: tl.constexpr, RIGHT_AT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):  # fmt: skip
    """A tile of one group's sum, over its rows in their order."""
    group = tl.program_id(2).to(tl.int64)
    end = tl.load(ends + group)
    begin = end - tl.load(counts + group)
    down = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    across = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    summed = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(begin, end, DEPTH):
        rows = first + tl.arange(0, DEPTH)
        mine = rows < end
        of_left = tl.load(left_at + rows, mask=mine, other=0) if LEFT_AT else rows
        of_right = tl.load(right_at + rows, mask=mine, other=0) if RIGHT_AT else rows
        l_tile = tl.load(
            left + of_left[None, :] * lefts + down[:, None],
            mask=mine[None, :] & (down < lefts)[:, None],
            other=0.0,
        )
        r_tile = tl.load(
            right + of_right[:, None] * rights + across[None, :],
            mask=mine[:, None] & (across < rights)[None, :],
            other=0.0,
        )
        summed += tl.dot(l_tile, r_tile, input_precision="ieee")
    to = sums + (group * lefts + down[:, None]) * rights + across[None, :]
    tl.store(to, summed.to(sums.dtype.element_ty), mask=(down < lefts)[:, None] & (across < rights)[None, :])


@triton.jit
def _collect(y, taken, weights, sums, places, width, WEIGHED: tl.constexpr, WIDTH: tl.constexpr):
    """Some values of one row: the sum over its places. `taken`: which y stands at a place, -1 for none."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    wanted = columns < width
    summed = tl.zeros([WIDTH], tl.float32)
    for place in range(places):
        at = tl.load(taken + row * places + place)
        if at >= 0:
            values = tl.load(y + at * width + columns, mask=wanted, other=0.0).to(tl.float32)
            if WEIGHED:
                values *= tl.load(weights + row * places + place).to(tl.float32)
            summed += values
    tl.store(sums + row * width + columns, summed.to(sums.dtype.element_ty), mask=wanted)
