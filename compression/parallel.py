"""Splits loops that hold no lock of Python's over threads of one shared pool.

numba's own pool may be entered by one thread at a time, while the ranks of a test are threads and a
worker encodes beside its compute: hence this one. Knows only ranges.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_LEAST = 64
"""Items (blocks of 4 kB) below which another thread costs more than it brings."""

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_threads = 0


def in_parts(work: Callable[[int, int], T], n: int, threads: int) -> list[T]:
    """`work(start, stop)` over 0 .. n - 1, cut in up to `threads` equal parts that run at once."""
    parts = max(1, min(threads, n // _LEAST))
    if n == 0:
        return []
    if parts == 1:
        return [work(0, n)]
    bounds = [n * i // parts for i in range(parts + 1)]
    others = [_executor(threads).submit(work, bounds[i], bounds[i + 1]) for i in range(1, parts)]
    first = work(bounds[0], bounds[1])
    return [first, *(f.result() for f in others)]


def _executor(threads: int) -> ThreadPoolExecutor:
    global _pool, _pool_threads
    with _lock:
        if _pool is None or _pool_threads < threads:
            _pool, _pool_threads = ThreadPoolExecutor(threads, thread_name_prefix="codec"), threads
        return _pool
