"""Rotary tables: made once, whoever asks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from worker.model.rotary import _table, rotate

THREADS = 8


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty")
def test_threads_that_ask_at_once_share_one_table() -> None:
    """Else two layers of a stage may keep one each for backward, and the stage more than its profile says."""
    x, together = torch.ones(1, 1, 64, 8), Barrier(THREADS)

    def ask(_: int) -> None:
        together.wait()
        rotate(x, 0, 1e4)

    with ThreadPoolExecutor(THREADS) as threads:
        for _ in range(20):
            _table.cache_clear()
            list(threads.map(ask, range(THREADS)))
            assert _table.cache_info().misses == 1
