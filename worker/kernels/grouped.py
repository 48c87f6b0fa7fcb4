"""Products of rows that stand in the order of their groups, each group with a matrix of its own: what a
mixture's experts do. Knows neither routers nor experts.

Three ways of one signature. `LOOP`: a product a group, the reference and what a CPU is fastest with. `TORCH`:
PyTorch's grouped product. `grouped_triton.TRITON`: this project's kernel, which gathers rows as it reads them
and narrows matrices tile by tile. Each says what to give it at a time: the loop a group, the others all.

Shapes: E groups, n rows in the groups' order, the first counts_E[0] of the first group and so on; R rows that
these n are taken of, W places a row, of which some are taken; I inputs, O outputs, L and M widths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.kernels import choice

Kernel = Literal["auto", "torch", "triton"]


class Taken(NamedTuple):
    """n rows: those of `rows_RI`, or of them the ones at `at_n`, some more than once."""

    rows_RI: Tensor
    at_n: Tensor | None = None

    def of(self, counts_E: Tensor) -> Iterator[Tensor]:
        """Each group's rows. All, if there is one group: no GPU is waited for to count them."""
        whole = self.rows_RI if self.at_n is None else self.at_n
        parts = torch.split(whole, counts_E.tolist()) if len(counts_E) > 1 else (whole,)
        yield from parts if self.at_n is None else (self.rows_RI[part] for part in parts)

    def gathered(self) -> Tensor:
        return self.rows_RI.contiguous() if self.at_n is None else self.rows_RI[self.at_n]


class Portion(NamedTuple):
    """Groups that follow one another, and where among the n rows theirs are."""

    groups: slice
    rows: slice


ALL = Portion(slice(None), slice(None))


class Ways(Protocol):
    def portions(self, counts_E: Tensor) -> Iterable[Portion]:
        """What to take at a time through several products, in order: `ALL` where a product of all groups is
        the fastest; else each group by itself, so that the values between are those of its rows alone."""
        ...

    def product(self, x: Taken, matrices_EIO: Tensor, counts_E: Tensor) -> Tensor:
        """(n,O), in x's type: row i of x times the matrix of its group."""
        ...

    def outer(self, left: Taken, right: Taken, counts_E: Tensor, sums_ELM: Tensor) -> None:
        """Makes `sums_ELM`, which is contiguous and of any type, of each group the sum over its rows i of
        left[i]^T right[i]; 0 where there is none."""
        ...

    def collect(
        self,
        y_nO: Tensor,
        places_n: Tensor,
        weights_RW: Tensor,
        weighed: bool,
        before_RO: Tensor | None = None,
    ) -> Tensor:
        """(R,O): of each row the sum of the y at its places, times their weights if `weighed`, added to what
        the portions before gave, which is changed. `places_n` are places in weights_RW laid flat, none twice.
        Of a portion the same bits each time, on a GPU too."""
        ...


class _Loop:
    def portions(self, counts_E: Tensor) -> Iterable[Portion]:
        end = 0
        for group, count in enumerate(counts_E.tolist()):
            begin, end = end, end + count
            yield Portion(slice(group, group + 1), slice(begin, end))

    def product(self, x: Taken, matrices_EIO: Tensor, counts_E: Tensor) -> Tensor:
        groups = zip(x.of(counts_E), matrices_EIO.unbind(), strict=True)
        return joined([rows @ matrix.to(rows.dtype) for rows, matrix in groups])

    def outer(self, left: Taken, right: Taken, counts_E: Tensor, sums_ELM: Tensor) -> None:
        for total, a, b in zip(sums_ELM.unbind(), left.of(counts_E), right.of(counts_E), strict=True):
            total.copy_(a.mT @ b)

    def collect(
        self,
        y_nO: Tensor,
        places_n: Tensor,
        weights_RW: Tensor,
        weighed: bool,
        before_RO: Tensor | None = None,
    ) -> Tensor:
        """In one group a row has one place, so a GPU's adding has an order too."""
        rows_n = places_n // weights_RW.shape[1]
        if weighed:
            y_nO = y_nO * weights_RW.flatten()[places_n, None]
        if before_RO is None:
            before_RO = y_nO.new_zeros(len(weights_RW), y_nO.shape[1])
        return before_RO.index_add_(0, rows_n, y_nO)


class _Torch:
    def portions(self, counts_E: Tensor) -> Iterable[Portion]:
        del counts_E
        return (ALL,)

    def product(self, x: Taken, matrices_EIO: Tensor, counts_E: Tensor) -> Tensor:
        x_nI = x.gathered()
        if not len(x_nI):
            return x_nI.new_empty(0, matrices_EIO.shape[2])
        y: Tensor = _grouped()(x_nI, matrices_EIO.to(x_nI.dtype), offs=_ends(counts_E))
        return y

    def outer(self, left: Taken, right: Taken, counts_E: Tensor, sums_ELM: Tensor) -> None:
        left_nL, right_nM = left.gathered(), right.gathered()
        if len(left_nL):
            sums_ELM.copy_(_grouped()(left_nL.mT, right_nM, offs=_ends(counts_E)))
        # What it leaves in groups without rows is not 0 on every GPU (pytorch issue 172439).
        sums_ELM.masked_fill_((counts_E == 0)[:, None, None], 0)

    def collect(
        self,
        y_nO: Tensor,
        places_n: Tensor,
        weights_RW: Tensor,
        weighed: bool,
        before_RO: Tensor | None = None,
    ) -> Tensor:
        """Sums of neighbours: adding to rows where they lie would go in any order on a GPU."""
        order_n = places_n.argsort()
        y_nO, places_n = y_nO[order_n], places_n[order_n]
        if weighed:
            y_nO = y_nO * weights_RW.flatten()[places_n, None]
        taken_RW = torch.zeros_like(weights_RW, dtype=torch.int64)
        taken_RW.view(-1)[places_n] = 1
        sums = torch.segment_reduce(y_nO, "sum", lengths=taken_RW.sum(1), axis=0, unsafe=True)
        return sums if before_RO is None else before_RO.add_(sums)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """One after the other; no copy of a single one."""
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts))


LOOP: Ways = _Loop()
TORCH: Ways = _Torch()


def way(kernel: Kernel, x: Tensor, widths: tuple[int, ...]) -> Ways | None:
    """Which way `x` goes through matrices of these widths; None: it cannot go the one asked for. `auto`: on a
    GPU PyTorch's where it takes bfloat16 there, else the project's for 16 bits; else the loop, whose products
    are the fastest in float32."""
    if kernel == "auto" and (not x.is_cuda or x.element_size() > 2):
        return LOOP
    if kernel != "triton" and (kernel == "torch" or x.dtype == torch.bfloat16) and _fits(x, widths):
        return TORCH
    if kernel != "torch" and (choice.runs_here(x) or (kernel == "triton" and choice.interprets(x))):
        from worker.kernels.grouped_triton import TRITON

        return TRITON
    return LOOP if kernel == "auto" else None


def _fits(x: Tensor, widths: tuple[int, ...]) -> bool:
    """It wants rows of whole 16 bytes."""
    aligned = all(width * x.element_size() % 16 == 0 for width in widths)
    return aligned and _takes(str(x.device), x.dtype)


@cache
def _takes(device: str, dtype: torch.dtype) -> bool:
    """Whether PyTorch's grouped product works there: tried on two small groups, whatever the versions say."""
    try:
        ones = torch.ones(16, 16, device=device, dtype=dtype)
        ends = torch.tensor([4, 16], device=device, dtype=torch.int32)
        matrices = torch.stack((ones, 2 * ones))
        forward = _grouped()(ones, matrices.mT, offs=ends)
        sums = _grouped()(ones.mT, ones, offs=ends)
        return forward[[3, 4], 0].tolist() == [16, 32] and sums[:, 0, 0].tolist() == [4, 12]
    except (RuntimeError, NotImplementedError, AttributeError):
        return False


def _grouped() -> Callable[..., Tensor]:
    """PyTorch's function, which had another name before 2.10."""
    function: Callable[..., Tensor] | None = getattr(F, "grouped_mm", None)
    return function or torch._grouped_mm


def _ends(counts_E: Tensor) -> Tensor:
    return counts_E.cumsum(0, dtype=torch.int32)
