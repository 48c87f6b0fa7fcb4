"""Flops as PyTorch counts them, with kernels that its counter passes over; and the memory it gives out."""

from __future__ import annotations

import os
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils import flop_counter
from torch.utils.flop_counter import FlopCounterMode

from scheduler.mixers.convolution import transform_flops
from scheduler.mixers.lssl import solve_flops

_ATEN: Any = torch.ops.aten
_COUNT: Any = flop_counter


def _transforms(points: int, numel: int, flops: float) -> float:
    return numel // points * flops


def _real_to_complex(x: Any, dims: Any, *_: Any, **__: Any) -> float:
    return _transforms(x[dims[0]], prod(x), transform_flops(x[dims[0]]))


def _complex_to_real(x: Any, dims: Any, _: Any, points: int, **__: Any) -> float:
    return _transforms(x[dims[0]], prod(x), transform_flops(points))


def _complex_to_complex(x: Any, dims: Any, *_: Any, **__: Any) -> float:
    return _transforms(x[dims[0]], prod(x), 2 * transform_flops(x[dims[0]]))


def _solved(a: Any, b: Any, *_: Any, **__: Any) -> float:
    return float(prod(a[:-2]) * solve_flops(a[-1], b[-1]))


def _solved_again(a: Any, _: Any, b: Any, **__: Any) -> float:
    return float(prod(a[:-2]) * solve_flops(a[-1], b[-1], factored=True))


def _grouped(a: Any, b: Any, *_: Any, out_shape: Any, **__: Any) -> float:
    """Rows of groups with a matrix each, or of each group's rows the sum: what is taken of `a` meets each
    column of `b` once."""
    del out_shape
    return float(2 * prod(a) * b[-1])


_UNKNOWN = {  # the counter knows the GPU's attention kernels, and counts nothing for the CPU's
    _ATEN._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: _COUNT.sdpa_flop_count(
        q, (*q[:2], *k[2:]), (*q[:2], *v[2:])
    ),
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
        _COUNT.sdpa_backward_flop_count(g, q, (*q[:2], *k[2:]), (*q[:2], *v[2:]))
    ),
    _ATEN._fft_r2c: _real_to_complex,  # and no transforms
    _ATEN._fft_c2r: _complex_to_real,
    _ATEN._fft_c2c: _complex_to_complex,
    _ATEN._grouped_mm: _grouped,
    _ATEN._linalg_solve_ex: _solved,  # and no systems
    _ATEN.linalg_lu_solve: _solved_again,
}


def counting() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=_UNKNOWN)


def memory_changes(run: Callable[[], object]) -> list[int]:
    """Bytes that PyTorch's allocator gave out (above 0) and got back (below) on the CPU while `run` ran, in
    order."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler says on stderr that it starts and stops
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        run()
    assert watched.profiler is not None
    # straight from what was recorded: a trace in JSON of a long run takes many times its memory
    events = watched.profiler.kineto_results.events()
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    return [n_bytes for _, n_bytes in sorted(changes, key=lambda change: change[0])]
