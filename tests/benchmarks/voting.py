"""Votes without a coordinator: rank 0 collects them over the links that are measured, and answers.

As in a run, a step so waits for one round trip of every rank with one place.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.gradient_norm import norm_of
from scheduler.plan import Plan
from worker.agreement import Vote
from worker.transport import Frame, FrameKey, Transport

TIMEOUT_S = 300.0


@dataclass(frozen=True)
class ByRankZero:
    """One rank's agreement; every rank must have rank 0 among its peers."""

    plan: Plan
    rank: int
    transport: Transport

    def commit(self, vote: Vote) -> float:
        if self.rank:
            self._send(0, vote.step, vote.squares)
            return self._receive(0, vote.step)[0]
        plan = self.plan
        squares = {0: vote.squares, **{r: self._receive(r, vote.step) for r in range(1, plan.n_ranks)}}
        norms = [
            norm_of(squares[plan.rank(replica, s)] for s in range(plan.n_stages))
            for replica in range(plan.n_replicas)
        ]
        for r in range(1, plan.n_ranks):
            self._send(r, vote.step, norms[plan.replica_of(r) :][:1])
        return norms[0]

    def _send(self, dst: int, step: int, values: Sequence[float]) -> None:
        packed = memoryview(struct.pack(f"<{len(values)}d", *values))
        key = FrameKey("layer", step, 0, self.rank)
        shape = (len(values),)
        self.transport.send(Frame(key, dst, self.plan.version, "identity", "float64", shape, [packed]))

    def _receive(self, src: int, step: int) -> tuple[float, ...]:
        frame = self.transport.receive(FrameKey("layer", step, 0, src), TIMEOUT_S)
        return struct.unpack(f"<{frame.shape[0]}d", b"".join(frame.payload))
