"""Which positions see which, as masks, and attention computed only in the blocks that hold such pairs.

`scheduler.mixers.Sight` says what is meant. Shapes: B samples, T new of S positions, H heads, K key-value
heads, C the width of a head; n blocks of b positions, each reading m blocks of keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from scheduler.mixers import Sight


def visible(sight: Sight, q_positions: Tensor, k_positions: Tensor) -> Tensor:
    """Whether each query's position (..., Q) sees each key's (..., S): (..., Q, S) bool."""
    q, k = q_positions[..., :, None], k_positions[..., None, :]
    seen = q >= k if sight.causal else torch.ones_like(q >= k)
    if sight.window is not None:
        seen = seen & ((q - k).abs() < sight.window)
    if sight.butterfly is not None:
        a, b = q // sight.butterfly, k // sight.butterfly
        apart = a ^ b
        # 0 or a power of two
        seen = seen & ((b == 0) | ((apart & (apart - 1)) == 0))
    return seen


def attend_in_blocks(
    q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor, sight: Sight, documents_BT: Tensor | None = None
) -> Tensor:
    """softmax over the positions that `sight` shows, (B,H,T,C), reading only the blocks with such pairs."""
    length, size = q_BHTC.shape[2], sight.block
    n = sight.blocks_of(length)
    assert n is not None
    assert size is not None
    rest = n * size - length
    q, k, v = (F.pad(x, (0, 0, 0, rest)).view(*x.shape[:2], n, size, -1) for x in (q_BHTC, k_BKTC, v_BKTC))
    table = torch.tensor(sight.key_blocks(n), device=q.device)
    at = torch.arange(n * size, device=q.device).view(n, size)
    k_at = at[table.clamp(min=0)]  # (n,m,b)
    there = ((table >= 0)[..., None] & (k_at < length)).flatten(1)
    mask = visible(sight, at, k_at.flatten(1)) & there[:, None]
    # A padded query sees itself, so that its row is no softmax over nothing; it is cut off below.
    mask = (mask | ((at >= length)[..., None] & (at[..., None] == k_at.flatten(1)[:, None])))[None]
    if documents_BT is not None:
        of = F.pad(documents_BT, (0, rest)).view(-1, n, size)
        mask = mask & (of[..., None] == of[:, table.clamp(min=0)].flatten(2)[:, :, None])
    # Blocks of queries are further samples.
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, _blocks(k, table), _blocks(v, table)))
    mask = mask.expand(len(q_BHTC), -1, -1, -1).flatten(0, 1)[:, None]
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
    return y.view(len(q_BHTC), n, *y.shape[1:]).transpose(1, 2).flatten(2, 3)[:, :, :length]


def _blocks(x_BKnbC: Tensor, table: Tensor) -> Tensor:
    """(B,K,n,mb,C): the blocks that each block of queries reads."""
    read = x_BKnbC.index_select(2, table.clamp(min=0).flatten())
    return read.view(*x_BKnbC.shape[:2], len(table), -1, x_BKnbC.shape[-1])
