"""Attention over a sequence whose positions several shards hold: keys and values go round, queries stay.

Ring attention (Liu et al. 2023) as causality cuts it: a shard needs the keys of earlier ones only, so they
pass from each shard to the next, and the gradients of keys and values come back the same way, added up. What
a shard received it keeps for its backward, so forward and backward cross each link once. Shards are
contiguous; no shard ever waits for a later one in forward, nor for an earlier one in backward.

Knows neither layers nor transports: the exchange is handed in. Shapes: B samples, T positions of the shard,
H heads, K key-value heads, C the width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from scheduler.mixers import Sight
from scheduler.sequence import earlier_shards, passed_on
from worker.model.partial_attention import Part, attend_part, attend_part_in_tiles, merge, part_gradients


class Exchange(Protocol):
    """A shard's way to its neighbours. Tensors are blocks of keys and values, (2,B,K,S,C), or their
    gradients; `call` tells the attentions of a micro-batch apart, `block` is the shard whose keys they are.
    Sending never waits; receiving may raise, which ends the step."""

    def send_keys(self, call: int, block: int, x: Tensor) -> None:
        """To the next shard."""

    def receive_keys(self, call: int, block: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """From the shard before."""

    def send_gradient(self, call: int, block: int, x: Tensor) -> None:
        """To the shard before."""

    def receive_gradient(self, call: int, block: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """From the next shard."""


@dataclass(slots=True)
class Shard:
    """Which positions of every sample of a micro-batch are here, and the way to the others."""

    bounds: tuple[tuple[int, int], ...]
    """[start, stop) of every shard, one behind the other."""
    index: int
    exchange: Exchange
    _calls: int = field(default=0)

    @property
    def first(self) -> int:
        return self.bounds[self.index][0]

    def next_call(self) -> int:
        """The number of an attention's forward in this micro-batch: every shard counts the same ones."""
        self._calls += 1
        return self._calls - 1

    def earlier(self, sight: Sight) -> range:
        """The shards before this one of whose keys it sees any, the nearest first."""
        return earlier_shards(self.bounds, self.index, sight.window or 0)

    def hands_on(self, sight: Sight) -> range:
        """The blocks that the next shard needs, too."""
        return passed_on(self.bounds, self.index, sight.window or 0)


def ring_attention(q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor, sight: Sight, shard: Shard) -> Tensor:
    """softmax(q k^T / sqrt(C)) v for the queries of this shard over the keys of all shards, (B,H,T,C).
    Called, and differentiated, by every shard of the sequence in the same order."""
    y: Tensor = _Ring.apply(q_BHTC, k_BKTC, v_BKTC, sight, shard)  # type: ignore[no-untyped-call]
    return y


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sight: Sight, shard: Shard) -> Tensor:
        call = shard.next_call()
        with torch.autocast(q.device.type, enabled=False):  # the types are chosen here
            whole, blocks = _outputs(q, torch.stack((k, v)), sight, shard, call)
        y = whole.y.to(q.dtype)
        ctx.save_for_backward(q, y, whole.logs, *blocks)
        ctx.sight, ctx.shard, ctx.call = sight, shard, call
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, y, logs, *blocks = ctx.saved_tensors
        with torch.autocast(q.device.type, enabled=False):
            dq, own = _gradients(dy, q, Part(y, logs), blocks, ctx.sight, ctx.shard, ctx.call)
        return dq, own[0], own[1], None, None


def _outputs(q: Tensor, own: Tensor, sight: Sight, shard: Shard, call: int) -> tuple[Part, list[Tensor]]:
    """The whole, and the blocks it was made of: this shard's `own`, then those before it, nearest first."""
    exchange, me, passes_on = shard.exchange, shard.index, shard.hands_on(sight)
    if me in passes_on:
        exchange.send_keys(call, me, own)
    whole = _wide(attend_part(q, own[0], own[1], sight, shard.first, shard.first))
    blocks = [own]
    for j in shard.earlier(sight):
        first, stop = shard.bounds[j]
        block = exchange.receive_keys(call, j, (*own.shape[:3], stop - first, own.shape[4]), own.dtype)
        if j in passes_on:
            exchange.send_keys(call, j, block)
        whole = merge(whole, _wide(attend_part(q, block[0], block[1], sight, shard.first, first)))
        blocks.append(block)
    return whole, blocks


def _gradients(
    dy: Tensor, q: Tensor, whole: Part, blocks: Sequence[Tensor], sight: Sight, shard: Shard, call: int
) -> tuple[Tensor, Tensor]:
    """The gradients of q and of this shard's own block, behind those that the blocks before it are owed."""
    exchange, me, passes_on = shard.exchange, shard.index, shard.hands_on(sight)

    def part(block: Tensor, first: int) -> tuple[Tensor, Tensor]:
        dq, dk, dv = part_gradients(dy, q, block[0], block[1], whole, sight, shard.first, first)
        return dq, torch.stack((dk, dv))

    dq, own = part(blocks[0], shard.first)
    # The nearest first: the shard that made a block waits for its gradient.
    for j, block in zip(shard.earlier(sight), blocks[1:], strict=True):
        more, owed = part(block, shard.bounds[j][0])
        dq = dq + more
        if j in passes_on:
            owed = owed + exchange.receive_gradient(call, j, tuple(owed.shape), owed.dtype)
        exchange.send_gradient(call, j, owed)
    if me in passes_on:
        own = own + exchange.receive_gradient(call, me, tuple(own.shape), own.dtype)
    return dq, own


def _wide(part: Part) -> Part:
    """Outputs are merged in the type of the logs, float32 at least."""
    return Part(part.y.to(part.logs.dtype), part.logs)


def ring_attention_reference(
    q_DBHTC: Sequence[Tensor], k_DBKTC: Sequence[Tensor], v_DBKTC: Sequence[Tensor], sight: Sight
) -> list[Tensor]:
    """All D shards in one place, from the definition, for autograd to differentiate: each shard's outputs."""
    firsts = [sum(k.shape[2] for k in k_DBKTC[:d]) for d in range(len(k_DBKTC))]
    outputs = []
    for d, q in enumerate(q_DBHTC):
        parts = (
            attend_part_in_tiles(q, k_DBKTC[j], v_DBKTC[j], sight, firsts[d], firsts[j])
            for j in range(d, -1, -1)
        )
        whole = next(parts)
        for part in parts:
            whole = merge(whole, part)
        outputs.append(whole.y)
    return outputs
