"""A clock that waits for the device first: a GPU's work is only queued when its call returns."""

from __future__ import annotations

from collections.abc import Callable

import torch

Clock = Callable[[], float]


def now(clock: Clock, device: torch.device) -> float:
    """What `clock` shows once everything on `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock()
