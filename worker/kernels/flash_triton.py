# mypy: disable-error-code="no-untyped-call, no-untyped-def, untyped-decorator, name-defined"
"""Attention as one kernel that never holds the scores: the readable twin of flash-attn, in Triton.

Forward goes through the keys tile by tile with a running maximum and sum (online softmax; Dao 2023,
"FlashAttention-2", algorithm 1) and saves of each row the log-sum-exp. Backward computes the scores again
from it: one pass over the tiles of keys for dk and dv, one over those of queries for dq (algorithm 2).
Causal, in a window or in both directions; grouped queries; documents of a sample apart. Triton's interpreter
runs the same code on a CPU.

Shapes: B samples, H heads, K key-value heads, T positions, C the width of a head, a power of two
and 16 at least.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from scheduler.mixers import Sight
from scheduler.mixers.attention import TILE

NOWHERE = 1 << 30
"""A window that is wider than any text."""


def flash_attention(
    q_BHTC: Tensor,
    k_BKTC: Tensor,
    v_BKTC: Tensor,
    sight: Sight,
    documents_BT: Tensor | None = None,
    tile: int = TILE,
) -> Tensor:
    """softmax(q k^T / sqrt(C)) v over the positions that `sight` shows: (B,H,T,C), in q's dtype. With
    `documents_BT` a position sees its own document alone."""
    y: Tensor = _Flash.apply(q_BHTC, k_BKTC, v_BKTC, sight, documents_BT, tile)
    return y


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sight: Sight, documents: Tensor | None, tile: int
    ) -> Tensor:
        q, k, v = (x.contiguous() for x in (q, k, v))
        documents = None if documents is None else documents.int().contiguous()
        y, logs = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
        _forward[_grid(q, tile)](q, k, v, y, logs, *_constants(q, k, sight, documents, tile))
        ctx.save_for_backward(q, k, v, y, logs, documents)
        ctx.sight, ctx.tile = sight, tile
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, y, logs, documents = ctx.saved_tensors
        dy = dy.contiguous()
        # The softmax's own derivative: dS = P (dP - row sum of dy y).
        rowsum = (dy.float() * y.float()).sum(-1)
        constants = _constants(q, k, ctx.sight, documents, ctx.tile)
        dq = torch.empty_like(q)
        _backward_q[_grid(q, ctx.tile)](q, k, v, dy, logs, rowsum, dq, *constants)
        dk, dv = torch.empty_like(k), torch.empty_like(v)
        _backward_kv[_grid(k, ctx.tile)](q, k, v, dy, logs, rowsum, dk, dv, *constants)
        return dq, dk, dv, None, None, None


def _grid(x_BHTC: Tensor, tile: int) -> tuple[int, int]:
    return triton.cdiv(x_BHTC.shape[2], tile), x_BHTC.shape[0] * x_BHTC.shape[1]


def _constants(q: Tensor, k: Tensor, sight: Sight, documents: Tensor | None, tile: int) -> tuple[Any, ...]:
    heads, length, width = q.shape[1:]
    window = NOWHERE if sight.window is None else sight.window
    sizes = (length, heads, k.shape[1], window, 1 / sqrt(width), width, tile, sight.causal)
    # Without documents any pointer will do: it is not read.
    return q if documents is None else documents, *sizes, documents is not None


@triton.jit
def _seen(rows, columns, documents, length, window, CAUSAL: tl.constexpr, APART: tl.constexpr):
    """Which pairs of positions are looked at, (rows, columns). `documents`: of the sample."""
    apart = rows[:, None] - columns[None, :]
    near = (apart < window) & (-apart < window) & (columns[None, :] < length) & (rows[:, None] < length)
    if CAUSAL:
        near = near & (apart >= 0)
    if APART:
        of_rows = tl.load(documents + rows, mask=rows < length, other=-1)
        of_columns = tl.load(documents + columns, mask=columns < length, other=-1)
        near = near & (of_rows[:, None] == of_columns[None, :])
    return near


@triton.jit
def _tile_of(x, first, length, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """TILE rows of a (length, WIDTH) matrix, 0 behind its end; in float32."""
    rows, columns = first + tl.arange(0, TILE), tl.arange(0, WIDTH)
    at = rows[:, None] * WIDTH + columns[None, :]
    return tl.load(x + at, mask=rows[:, None] < length, other=0.0)


@triton.jit
def _put_tile(x, first, length, values, WIDTH: tl.constexpr, TILE: tl.constexpr):
    rows, columns = first + tl.arange(0, TILE), tl.arange(0, WIDTH)
    at = rows[:, None] * WIDTH + columns[None, :]
    tl.store(x + at, values.to(x.dtype.element_ty), mask=rows[:, None] < length)


@triton.jit
def _forward(
    q, k, v, y, logs, documents, length, heads, kv_heads, window, scale,
    WIDTH: tl.constexpr, TILE: tl.constexpr, CAUSAL: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    first, head = tl.program_id(0) * TILE, tl.program_id(1)
    kv = head // heads * kv_heads + head % heads // (heads // kv_heads)
    mine, theirs = head * length * WIDTH, kv * length * WIDTH
    documents += head // heads * length
    rows = first + tl.arange(0, TILE)
    q_tile = _tile_of(q + mine, first, length, WIDTH, TILE)
    highest = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    summed = tl.zeros([TILE, WIDTH], tl.float32)
    begin = tl.maximum(first - window + 1, 0) // TILE * TILE
    end = tl.minimum(length, first + TILE if CAUSAL else first + TILE + window - 1)
    for start in range(begin, end, TILE):
        k_tile = _tile_of(k + theirs, start, length, WIDTH, TILE)
        v_tile = _tile_of(v + theirs, start, length, WIDTH, TILE)
        scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * scale
        seen = _seen(rows, start + tl.arange(0, TILE), documents, length, window, CAUSAL, APART)
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)  # a row that has seen nothing yet
        weights = tl.exp(scores - safe[:, None])
        old = tl.exp(highest - safe)
        total = total * old + tl.sum(weights, 1)
        summed = summed * old[:, None] + tl.dot(weights.to(v_tile.dtype), v_tile, input_precision="ieee")
        highest = higher
    total = tl.where(total == 0.0, 1.0, total)  # rows behind the end
    _put_tile(y + mine, first, length, summed / total[:, None], WIDTH, TILE)
    tl.store(logs + head * length + rows, highest + tl.log(total), mask=rows < length)


@triton.jit
def _again(
    q_tile, k_tile, v_tile, dy_tile, logs, rowsum, rows, columns, documents, length, window, scale,
    CAUSAL: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    """The weights P of a tile, and the gradient dS of its scores."""
    kept_logs = tl.load(logs + rows, mask=rows < length, other=0.0)
    kept_sums = tl.load(rowsum + rows, mask=rows < length, other=0.0)
    scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * scale
    seen = _seen(rows, columns, documents, length, window, CAUSAL, APART)
    weights = tl.where(seen, tl.exp(scores - kept_logs[:, None]), 0.0)
    dweights = tl.dot(dy_tile, tl.trans(v_tile), input_precision="ieee")
    return weights, weights * (dweights - kept_sums[:, None]) * scale


@triton.jit
def _backward_q(
    q, k, v, dy, logs, rowsum, dq, documents, length, heads, kv_heads, window, scale,
    WIDTH: tl.constexpr, TILE: tl.constexpr, CAUSAL: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    first, head = tl.program_id(0) * TILE, tl.program_id(1)
    kv = head // heads * kv_heads + head % heads // (heads // kv_heads)
    mine, theirs = head * length * WIDTH, kv * length * WIDTH
    documents += head // heads * length
    rows = first + tl.arange(0, TILE)
    q_tile = _tile_of(q + mine, first, length, WIDTH, TILE)
    dy_tile = _tile_of(dy + mine, first, length, WIDTH, TILE)
    summed = tl.zeros([TILE, WIDTH], tl.float32)
    begin = tl.maximum(first - window + 1, 0) // TILE * TILE
    end = tl.minimum(length, first + TILE if CAUSAL else first + TILE + window - 1)
    for start in range(begin, end, TILE):
        k_tile = _tile_of(k + theirs, start, length, WIDTH, TILE)
        v_tile = _tile_of(v + theirs, start, length, WIDTH, TILE)
        _, dscores = _again(
            q_tile, k_tile, v_tile, dy_tile, logs + head * length, rowsum + head * length,
            rows, start + tl.arange(0, TILE), documents, length, window, scale, CAUSAL, APART,
        )  # fmt: skip
        summed += tl.dot(dscores.to(k_tile.dtype), k_tile, input_precision="ieee")
    _put_tile(dq + mine, first, length, summed, WIDTH, TILE)


@triton.jit
def _backward_kv(
    q, k, v, dy, logs, rowsum, dk, dv, documents, length, heads, kv_heads, window, scale,
    WIDTH: tl.constexpr, TILE: tl.constexpr, CAUSAL: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    first, kv = tl.program_id(0) * TILE, tl.program_id(1)
    group = heads // kv_heads
    theirs = kv * length * WIDTH
    documents += kv // kv_heads * length
    columns = first + tl.arange(0, TILE)
    k_tile = _tile_of(k + theirs, first, length, WIDTH, TILE)
    v_tile = _tile_of(v + theirs, first, length, WIDTH, TILE)
    dk_tile = tl.zeros([TILE, WIDTH], tl.float32)
    dv_tile = tl.zeros([TILE, WIDTH], tl.float32)
    begin = first if CAUSAL else tl.maximum(first - window + 1, 0) // TILE * TILE
    end = tl.minimum(length, first + TILE + window - 1)
    for member in range(group):  # the heads that read these keys
        head = kv // kv_heads * heads + kv % kv_heads * group + member
        mine = head * length * WIDTH
        for start in range(begin, end, TILE):
            q_tile = _tile_of(q + mine, start, length, WIDTH, TILE)
            dy_tile = _tile_of(dy + mine, start, length, WIDTH, TILE)
            weights, dscores = _again(
                q_tile, k_tile, v_tile, dy_tile, logs + head * length, rowsum + head * length,
                start + tl.arange(0, TILE), columns, documents, length, window, scale, CAUSAL, APART,
            )  # fmt: skip
            dv_tile += tl.dot(tl.trans(weights).to(dy_tile.dtype), dy_tile, input_precision="ieee")
            dk_tile += tl.dot(tl.trans(dscores).to(q_tile.dtype), q_tile, input_precision="ieee")
    _put_tile(dk + theirs, first, length, dk_tile, WIDTH, TILE)
    _put_tile(dv + theirs, first, length, dv_tile, WIDTH, TILE)
