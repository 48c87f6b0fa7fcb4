"""What benchmarks train on: tokens drawn anew for every step, the same for whoever asks."""

from __future__ import annotations

import torch
from torch import Tensor

from scheduler.job import JobSpec


def tokens_of(job: JobSpec, step: int) -> Tensor:
    """The global batch of a step: int64 (global_batch, sequence_length + 1)."""
    rng = torch.Generator().manual_seed(step)
    return torch.randint(257, (job.global_batch, job.sequence_length + 1), generator=rng)
