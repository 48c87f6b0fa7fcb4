"""Tables that layers share: made once, whoever asks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from worker.model.matrix_conv import _tables
from worker.model.rotary import _table, rotate
from worker.model.tables import Table

THREADS = 8


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize(
    ("table", "look_up"),
    [
        (_table, lambda: rotate(torch.ones(1, 1, 64, 8), 0, 1e4)),
        (_tables, lambda: _tables(8, 4, torch.float32, "cpu")),
    ],
    ids=["rotary", "matrix convolution"],
)
@pytest.mark.usefixtures("hasty")
def test_threads_that_ask_at_once_share_one_table(
    table: Table[*tuple[object, ...], object], look_up: Callable[[], object]
) -> None:
    """Else two layers of a stage may keep one each for backward, and the stage more than its profile says."""
    together = Barrier(THREADS)

    def ask(_: int) -> None:
        together.wait()
        look_up()

    with ThreadPoolExecutor(THREADS) as threads:
        for _ in range(20):
            table.cache_clear()
            list(threads.map(ask, range(THREADS)))
            assert table.cache_info().misses == 1


def test_a_table_that_was_made_for_generation_serves_training() -> None:
    _table.cache_clear()
    x = torch.ones(1, 1, 5, 4)
    with torch.inference_mode():
        rotate(x, 0, 1e4)
    y = rotate(x.requires_grad_(), 0, 1e4)
    torch.autograd.backward(y.sum())
    assert x.grad is not None
