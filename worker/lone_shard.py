"""A shard of a sequence without the others, for timing layers whose sequences are to be divided.

So a device is timed with what it will hold, never with a context that is too long for it. Two timings say the
rest: of a shard that sees itself alone, and of one with another before it; their difference is what a square
of pairs costs. Knows no clock.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scheduler.job import JobSpec
from worker.model.ring import Shard

OPEN_SHARDS = 4
"""Of which one is timed, where the planner chooses how many there are."""


class _Nobody:
    """An exchange that takes everything and gives what is as good as keys: their values change no time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def send_keys(self, call: int, block: int, x: Tensor) -> None: ...

    def receive_keys(self, call: int, block: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        del call, block
        return torch.zeros(shape, dtype=dtype, device=self._device)

    def send_gradient(self, call: int, block: int, x: Tensor) -> None: ...

    def receive_gradient(self, call: int, block: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        del call, block
        return torch.zeros(shape, dtype=dtype, device=self._device)


def shard_length(job: JobSpec) -> int:
    """Positions of the largest shard; the whole sequence, where replicas share the batch. Where the planner
    may choose sequences, too, it is timed with what fits either way."""
    if "sequence" not in job.splits:
        return job.sequence_length
    shards = OPEN_SHARDS if job.asked_shape is None else job.asked_shape[1]
    return -(-job.sequence_length // shards)


def lone_shard(length: int, before: int, device: torch.device) -> Shard:
    """A shard of `length` positions with `before` as long before it, and nobody behind."""
    bounds = tuple((i * length, (i + 1) * length) for i in range(before + 1))
    return Shard(bounds, before, _Nobody(device))


def extrapolated(alone_s: float, second_s: float, growth: float, squares: bool) -> tuple[float, float]:
    """(seconds of all positions, those of them that grow with the square of the length), from a shard alone
    and one with another before it; `growth`: how many times as long the sequence is.

    A shard that sees itself has half a square of pairs (each position those before it), the second one and a
    half. Where pairs do not grow with the square (`squares` false: windows), every shard is like the second.
    """
    if not squares:
        return second_s * growth, 0.0
    half_s = min(max(0.0, second_s - alone_s) / 2, alone_s)
    pairs_s = half_s * growth**2
    return (alone_s - half_s) * growth + pairs_s, pairs_s
