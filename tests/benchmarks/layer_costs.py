"""What one run of a layer costs: seconds of forward and backward, and the most memory they hold at once.

Memory is what PyTorch's allocator gave out beyond what was there before: on a CPU as its profiler saw it, on
a GPU as the allocator counts. Knows no particular layer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

REPETITIONS, LONG_S = 3, 2.0


@dataclass(frozen=True, slots=True)
class Run:
    """`seconds` (CPU or GPU): the least of three, or of one where one takes more than two seconds."""

    seconds: float
    peak_bytes: int


def measured(forward: Callable[[Tensor], Tensor], x: Tensor) -> Run:
    """Of forward and backward from `x`, whose gradient is asked for too."""
    x = x.detach().requires_grad_()

    def once() -> None:
        x.grad = None
        torch.autograd.backward(forward(x).sum())

    if x.is_cuda:
        return _on_a_gpu(once)
    watched = _watched(once)
    if watched.seconds > LONG_S:
        return watched
    seconds = []
    for _ in range(REPETITIONS):
        begin = time.process_time()
        once()
        seconds.append(time.process_time() - begin)
    return Run(min(seconds), watched.peak_bytes)


def _watched(once: Callable[[], None]) -> Run:
    """With the profiler's part of the seconds: little, but where there are very many small steps."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler says on stderr that it starts and stops
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        begin = time.process_time()
        once()
        seconds = time.process_time() - begin
    assert watched.profiler is not None
    # straight from what was recorded: a trace in JSON of a long run takes many times its memory
    events = watched.profiler.kineto_results.events()
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        held += change
        peak = max(peak, held)
    return Run(seconds, peak)


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
