"""Keys and values between the replicas of a stage that share every sequence (`worker/model/ring.py`).

Each replica holds a shard of the positions; its neighbours in the row of shards are the replicas before and
behind it. Knows ranks and frames, nothing of attention.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from worker.model.ring import Shard
from worker.peers import Peers
from worker.step_context import StepContext

KEYS, OWED = "keys", "owed"
"""Kinds of frame: keys with values, and the gradients that they are owed."""


class _Row:
    """The exchange of one micro-batch; see `shard_of`."""

    def __init__(
        self, context: StepContext, peers: Peers, mb: int, waits: Callable[[bool], None], kind: str
    ) -> None:
        stage, replica, plan = context.stage, context.replica, context.plan
        self._before, self._behind = (
            plan.rank(r, stage) if 0 <= r < plan.n_replicas else -1 for r in (replica - 1, replica + 1)
        )
        self._shards = plan.n_replicas
        self._peers, self._mb, self._waits, self._keys = peers, mb, waits, kind

    def send_keys(self, call: int, block: int, x: Tensor) -> None:
        self._send(self._keys, self._behind, call, block, x)

    def receive_keys(self, call: int, block: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self._receive(self._keys, self._before, call, block, shape, dtype)

    def send_gradient(self, call: int, block: int, x: Tensor) -> None:
        self._send(OWED, self._before, call, block, x)

    def receive_gradient(self, call: int, block: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self._receive(OWED, self._behind, call, block, shape, dtype)

    def _send(self, kind: str, dst: int, call: int, block: int, x: Tensor) -> None:
        self._peers.send(kind, dst, x, self._mb, tag=self._tag(call, block), quiet=True)

    def _receive(
        self, kind: str, src: int, call: int, block: int, shape: tuple[int, ...], dtype: torch.dtype
    ) -> Tensor:
        tag = self._tag(call, block)
        waits = not self._peers.ready(kind, src, self._mb, tag)
        if waits:
            self._waits(True)
        x = self._peers.receive(kind, src, shape, dtype, self._mb, tag, quiet=not waits)
        if waits:
            self._waits(False)
        return x

    def _tag(self, call: int, block: int) -> int:
        return call * self._shards + block


def shard_of(
    context: StepContext, peers: Peers, mb: int, waits: Callable[[bool], None], kind: str = KEYS
) -> Shard | None:
    """This rank's shard of micro-batch `mb`; None where replicas share the batch. `waits` is told True in
    front of every wait for another shard and False behind it."""
    bounds = context.plan.shard_bounds(context.job.sequence_length)
    if len(bounds) == 1:
        return None
    return Shard(bounds, context.replica, _Row(context, peers, mb, waits, kind))
