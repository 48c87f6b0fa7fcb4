"""Causal convolution of each channel with a filter as long as the text, as matrix products: the twin of
`fft_conv.py` for devices whose products are many times faster than their Fourier transforms.

A transform of 2 h l points is two products with the matrices of small ones and an elementwise turn between
them (Cooley and Tukey 1965; as in FlashConv: Fu, Dao et al. 2023, "Hungry Hungry Hippos", section 4, and Fu
et al. 2023, "FlashFFTConv", section 3). With point n = l a + b and frequency k = c + 2 h d:

    X[c, d] = sum_b w_l^(b d) w_N^(b c) sum_a w_2h^(a c) x[a, b],   w_m = exp(-2 pi i / m)

Half of the points are zeros that keep the end from wrapping round, so a takes h values, not 2 h; the signal
is real, so c takes h + 1, the others being their conjugates. All in real numbers, parts beside each other.

A long text goes in pieces (`Pieces`), each transformed alone: a piece of the output is a sum over the pieces
before it of products of spectra, and the second half of each result is added to the piece behind (overlap and
add). What follows an earlier text is computed from the pieces that it needs.

Shapes: B samples, T positions, D channels, n pieces of h x l positions, R = h + 1 frequencies c.
"""

from __future__ import annotations

from math import pi
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scheduler.mixers.matrix_conv import Pieces, pieces_of
from worker.model.cores import in_full_precision
from worker.model.tables import Table


def matrix_conv(x_BTD: Tensor, filter_DT: Tensor, new: int | None = None) -> Tensor:
    """As `fft_conv.Conv`: y_t = sum over s <= t of filter[t - s] x_s, (B,T,D), or the last `new` of these."""
    length = x_BTD.shape[1]
    pieces = pieces_of(length)
    first = 0 if new is None else (length - new) // pieces.positions
    wide = torch.promote_types(x_BTD.dtype, torch.float32)
    with in_full_precision(x_BTD):
        tables = _tables(pieces.h, pieces.l, wide, str(x_BTD.device))
        x_spectra = _spectra(x_BTD.to(wide), pieces, tables)
        filter_spectra = _spectra(filter_DT.mT[None].to(wide), pieces, tables)
        if pieces.n == 1:
            y = _signal(_times(x_spectra, filter_spectra), tables, pieces.h).flatten(1, 2)
        else:
            summed = _summed(x_spectra, filter_spectra, max(0, first - 1))
            y = _added(_signal(summed, tables, 2 * pieces.h), first > 0)
    begin = first * pieces.positions
    return y[:, (0 if new is None else length - new - begin) : length - begin].to(x_BTD.dtype)


class _Tables(NamedTuple):
    """Constants of a transform of 2 h l points: cosines and sines, real parts' rows before imaginary ones."""

    rows: Tensor
    """(2R,h): x's rows to frequencies c."""
    turn: Tensor
    """(2,R,l,1): by b and c."""
    columns: Tensor
    """(2l,2l): complex products over b, as real ones of parts beside each other."""
    back: Tensor
    """(2h,2R): from frequencies c to rows, over the number of points, a pair of conjugates counted twice."""


@Table
def _tables(h: int, l: int, dtype: torch.dtype, device: str) -> _Tables:  # noqa: E741
    a, b, c = (torch.arange(n) for n in (2 * h, l, h + 1))
    row, turn = _angles(torch.outer(c, a), 2 * h), _angles(torch.outer(c, b), 2 * h * l)
    column = _angles(torch.outer(b, b), l)
    cos, sin = column.cos(), column.sin()
    weight = torch.where((c == 0) | (c == h), 1.0, 2.0).double()[:, None] / (2 * h * l)
    tables = _Tables(
        torch.cat((row.cos(), -row.sin()))[:, :h],
        torch.stack((turn.cos(), -turn.sin()))[..., None],
        torch.cat((torch.cat((cos, sin), 1), torch.cat((-sin, cos), 1))),
        torch.cat((weight * row.cos(), -weight * row.sin())).mT,
    )
    return _Tables(*(table.to(device, dtype).contiguous() for table in tables))


def _angles(turns: Tensor, points: int) -> Tensor:
    """2 pi turns / points in float64, full turns taken off before they cost precision."""
    return 2 * pi * (turns % points).double() / points


def _spectra(x_BTD: Tensor, pieces: Pieces, tables: _Tables) -> Tensor:
    """(B,n,R,2l,D): of each piece, frequencies c and d, real parts d before imaginary ones."""
    n, h, l = pieces  # noqa: E741
    batch, length, width = x_BTD.shape
    x = F.pad(x_BTD, (0, 0, 0, n * h * l - length)).reshape(batch, n, h, l * width)
    real, imaginary = (tables.rows @ x).view(batch, n, 2, h + 1, l, width).unbind(2)
    cos, sin = tables.turn
    turned = torch.cat((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-2)
    return tables.columns @ turned


def _signal(spectra_BnRlD: Tensor, tables: _Tables, rows: int) -> Tensor:
    """(B,n,rows x l,D): the real signals, of the 2 h rows the first so many."""
    batch, n, _, twice, width = spectra_BnRlD.shape
    real, imaginary = (tables.columns.mT @ spectra_BnRlD).chunk(2, dim=-2)
    cos, sin = tables.turn
    # Turned back: by the conjugate.
    turned = torch.cat((real * cos + imaginary * sin, imaginary * cos - real * sin), dim=2)
    return (tables.back[:rows] @ turned.flatten(3)).view(batch, n, rows * twice // 2, width)


def _times(a: Tensor, b: Tensor) -> Tensor:
    """The products of complex numbers whose parts are beside each other in the last axis but one."""
    (a_real, a_imaginary), (b_real, b_imaginary) = a.chunk(2, dim=-2), b.chunk(2, dim=-2)
    real = a_real * b_real - a_imaginary * b_imaginary
    return torch.cat((real, a_real * b_imaginary + a_imaginary * b_real), dim=-2)


def _summed(x_BnRlD: Tensor, filter_1nRlD: Tensor, first: int) -> Tensor:
    """Of each piece of the output from `first` on, the sum over the input's pieces up to it."""
    n = x_BnRlD.shape[1]
    total = torch.zeros_like(x_BnRlD[:, first:])
    for apart in range(n):
        begin = max(first, apart)
        part = _times(x_BnRlD[:, begin - apart : n - apart], filter_1nRlD[:, apart : apart + 1])
        total = total + F.pad(part, (0, 0) * 3 + (begin - first, 0))
    return total


def _added(y_BnPD: Tensor, is_behind: bool) -> Tensor:
    """Each piece's first half and the second half of the one before, in a row; `is_behind`: the first piece
    gives its second half alone."""
    early, late = y_BnPD.chunk(2, dim=2)
    joined = early[:, 1:] + late[:, :-1]
    return (joined if is_behind else torch.cat((early[:, :1], joined), 1)).flatten(1, 2)
