"""What one run of a layer costs: seconds of forward and backward, and the most memory they hold at once.

Memory is what PyTorch's allocator gave out beyond what was there before: on a CPU as its profiler saw it, on
a GPU as the allocator counts. Knows no particular layer.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from tests.worker.model.counting import memory_changes

REPETITIONS, LONG_S = 3, 2.0


@dataclass(frozen=True, slots=True)
class Run:
    """`seconds` (CPU or GPU): the least of three, or of one where one takes more than two seconds.
    `process_bytes`: the most that this process has held in memory so far, on a CPU."""

    seconds: float
    peak_bytes: int
    process_bytes: int = 0


def measured(forward: Callable[[Tensor], Tensor], x: Tensor) -> Run:
    """Of forward and backward from `x`, whose gradient is asked for too."""
    x = x.detach().requires_grad_()

    def once() -> None:
        x.grad = None
        torch.autograd.backward(forward(x).sum())

    if x.is_cuda:
        return _on_a_gpu(once)
    seconds: list[float] = []
    while len(seconds) < REPETITIONS and not (seconds and seconds[-1] > LONG_S):
        begin = time.process_time()
        once()
        seconds.append(time.process_time() - begin)
    held = process_bytes()
    x.grad = None  # the profiler knows nothing of what was there before it
    # A profiler takes time and memory, so these are measured before.
    return Run(min(seconds), max(accumulate(memory_changes(once))), held)


def process_bytes() -> int:
    """The most physical memory that this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _on_a_gpu(once: Callable[[], None]) -> Run:
    once()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    seconds = gpu_seconds(once)
    return Run(seconds, torch.cuda.max_memory_allocated() - before)


def gpu_seconds(once: Callable[[], object], repetitions: int = REPETITIONS) -> float:
    """The least of some runs, after one that is not counted."""
    once()
    seconds = []
    for _ in range(repetitions):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(10):  # so many that starting them counts little
            once()
        torch.cuda.synchronize()
        seconds.append((time.perf_counter() - begin) / 10)
    return min(seconds)
