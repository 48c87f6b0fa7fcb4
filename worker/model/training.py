"""What layers do only while they are trained: losses of their own beside the model's, and choices that look
at the whole micro-batch.

A stage opens `training()` around the forwards whose gradients it will ask for, also when it does one again,
and gives the losses to autograd with its output. Without it (evaluation, generation) there are none.
Knows no layer and no stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_LOSSES: ContextVar[list[Tensor] | None] = ContextVar("losses of layers", default=None)


@contextmanager
def training() -> Iterator[list[Tensor]]:
    """Within it layers train. Gives the list to which they add their losses: scalars in float32 or more,
    each summed over the positions of the micro-batch as the cross entropy is."""
    losses: list[Tensor] = []
    token = _LOSSES.set(losses)
    try:
        yield losses
    finally:
        _LOSSES.reset(token)


def is_training() -> bool:
    return _LOSSES.get() is not None


def add_loss(loss: Tensor) -> None:
    """Of a layer that `is_training`."""
    losses = _LOSSES.get()
    assert losses is not None
    losses.append(loss)
