"""Attention over a part of the keys, and how parts become the whole: by the log-sum-exp of their scores.

Of each query a part gives its output y and l = log sum exp(score). Two parts are one with
l = log(exp(l1) + exp(l2)) and y = y1 exp(l1 - l) + y2 exp(l2 - l). Backward computes a part's scores again;
with the whole's y and l its gradients are the whole's share (Dao 2023, "FlashAttention-2", sections 2.3 and
3.1). A tile of queries at a time, so memory grows with the length and not with its square; on a CPU by
PyTorch's fused kernel, where a part hides nothing or is plainly causal.

Knows positions, and not who holds them. Shapes: B samples, H heads, K key-value heads, T queries, S keys,
C the width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from scheduler.mixers import Sight
from worker.model.sight import visible

TILE = 256
"""Queries whose scores are held at once."""


class Part(NamedTuple):
    """What some of the keys give: the output (B,H,T,C), and the log-sum-exp of the scores (B,H,T), at least
    float32; 0 and -inf for a query that sees none of them."""

    y: Tensor
    logs: Tensor


def attend_part(
    q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, sight: Sight, q_first: int, k_first: int
) -> Part:
    """softmax(q k^T / sqrt(C)) v over these keys alone. Queries are at positions `q_first`, `q_first` + 1,
    …, keys at `k_first`, …; each query sees what `sight`, which is causal, shows."""
    fused = _fused(q_BHTC, k_BKSC, sight, q_first, k_first)
    if fused is None:
        return attend_part_in_tiles(q_BHTC, k_BKSC, v_BKSC, sight, q_first, k_first)
    group = q_BHTC.shape[1] // k_BKSC.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) for x in (k_BKSC, v_BKSC))
    op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return Part(*op(q_BHTC, k, v, 0.0, fused == "causal"))


def part_gradients(
    dy_BHTC: Tensor,
    q_BHTC: Tensor,
    k_BKSC: Tensor,
    v_BKSC: Tensor,
    whole: Part,
    sight: Sight,
    q_first: int,
    k_first: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """What these keys add to the gradient of q, and the gradients that these queries give k and v; `whole`
    is the output over all keys, `dy_BHTC` its gradient."""
    fused = _fused(q_BHTC, k_BKSC, sight, q_first, k_first)
    if fused is None:
        return part_gradients_in_tiles(dy_BHTC, q_BHTC, k_BKSC, v_BKSC, whole, sight, q_first, k_first)
    heads = k_BKSC.shape[1]
    group = q_BHTC.shape[1] // heads
    k, v = (x.repeat_interleave(group, dim=1) for x in (k_BKSC, v_BKSC))
    op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    dq, dk, dv = op(dy_BHTC, q_BHTC, k, v, whole.y, whole.logs, 0.0, fused == "causal")
    if group > 1:
        dk, dv = (_grouped(x, heads).sum(2) for x in (dk, dv))
    return dq, dk, dv


def merge(a: Part, b: Part) -> Part:
    """The two parts as one, in the logs' type. A query must see a key of `a`."""
    logs = torch.logaddexp(a.logs, b.logs)
    y = a.y * (a.logs - logs).exp()[..., None] + b.y * (b.logs - logs).exp()[..., None]
    return Part(y, logs)


def attend_part_in_tiles(
    q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, sight: Sight, q_first: int, k_first: int
) -> Part:
    """`attend_part` from its definition; it can be differentiated, for parts that are merged are."""
    q, k, v = (x.to(_wide(x)) for x in (q_BHTC, k_BKSC, v_BKSC))
    parts = []
    for t, s in _tiles(sight, q.shape[2], k.shape[2], q_first, k_first):
        scores = _scores(q[:, :, t], k[:, :, s], sight, q_first + t.start, k_first + s.start)
        logs = scores.logsumexp(-1)
        # -inf - -inf would be no number: a row that sees nothing has weights of 0
        weights = (scores - logs.masked_fill(logs == -inf, 0.0)[..., None]).exp()
        y = (weights @ v[:, :, None, s]).flatten(1, 2)
        parts.append(Part(y, logs.flatten(1, 2)))
    return Part(torch.cat([p.y for p in parts], 2).to(q_BHTC.dtype), torch.cat([p.logs for p in parts], 2))


def part_gradients_in_tiles(
    dy_BHTC: Tensor,
    q_BHTC: Tensor,
    k_BKSC: Tensor,
    v_BKSC: Tensor,
    whole: Part,
    sight: Sight,
    q_first: int,
    k_first: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`part_gradients` from its definition: P = exp(S - l), dS = P (dP - row sum of dy y)."""
    dy, q, k, v, y = (x.to(_wide(x)) for x in (dy_BHTC, q_BHTC, k_BKSC, v_BKSC, whole.y))
    heads, scale = k.shape[1], 1 / sqrt(q.shape[-1])
    rowsum = (dy * y).sum(-1)
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)

    def grouped(x: Tensor, t: slice) -> Tensor:
        return _grouped(x[:, :, t], heads)

    for t, s in _tiles(sight, q.shape[2], k.shape[2], q_first, k_first):
        scores = _scores(q[:, :, t], k[:, :, s], sight, q_first + t.start, k_first + s.start)
        weights = (scores - grouped(whole.logs, t)[..., None]).exp()
        dweights = grouped(dy, t) @ v[:, :, None, s].mT
        dscores = weights * (dweights - grouped(rowsum, t)[..., None]) * scale
        dq[:, :, t] = (dscores @ k[:, :, None, s]).flatten(1, 2)
        dk[:, :, s] += (dscores.mT @ grouped(q, t)).sum(2)
        dv[:, :, s] += (weights.mT @ grouped(dy, t)).sum(2)
    return dq.to(q_BHTC.dtype), dk.to(k_BKSC.dtype), dv.to(v_BKSC.dtype)


def _scores(q_BHTC: Tensor, k_BKSC: Tensor, sight: Sight, q_first: int, k_first: int) -> Tensor:
    """(B,K,H/K,T,S), -inf where nothing is seen."""
    q = _grouped(q_BHTC, k_BKSC.shape[1])
    scores: Tensor = q @ k_BKSC[:, :, None].mT / sqrt(q.shape[-1])
    rows = torch.arange(q_first, q_first + q.shape[-2], device=q.device)
    columns = torch.arange(k_first, k_first + k_BKSC.shape[2], device=q.device)
    return scores.masked_fill(~visible(sight, rows, columns), -inf)


def _grouped(x: Tensor, kv_heads: int) -> Tensor:
    """Heads beside those that read the same keys: (B,K,H/K,…)."""
    return x.reshape(x.shape[0], kv_heads, -1, *x.shape[2:])


def _tiles(sight: Sight, n_q: int, n_k: int, q_first: int, k_first: int) -> Iterator[tuple[slice, slice]]:
    """Tiles of queries with the keys that some query of the tile may see; a key at least."""
    for start in range(0, n_q, TILE):
        stop = min(start + TILE, n_q)
        least = 0 if sight.window is None else q_first + start - sight.window + 1 - k_first
        begin = min(max(0, least), n_k - 1)
        yield slice(start, stop), slice(begin, min(max(q_first + stop - k_first, begin + 1), n_k))


def _fused(q: Tensor, k: Tensor, sight: Sight, q_first: int, k_first: int) -> str | None:
    """How PyTorch's kernel for CPUs computes the part: `whole`, where every query sees every key, or
    `causal`; None where it cannot."""
    n_q, n_k = q.shape[2], k.shape[2]
    if q.device.type != "cpu" or sight.butterfly is not None:
        return None
    if sight.window is not None and q_first + n_q - sight.window > k_first:
        return None
    if q_first >= k_first + n_k - 1:
        return "whole"
    return "causal" if (q_first, n_q) == (k_first, n_k) else None


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
