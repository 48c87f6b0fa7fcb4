"""Cores of mixers that are done again in backward: what they keep is what they are given.

A state-space layer, a long convolution and their like make many tensors out of few; kept, these would be
most of a stage's memory. Knows no layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Result = TypeVar("Result")


def recomputed(core: Callable[..., Result], *inputs: Any) -> Result:
    """core(*inputs), whose backward does it again up to the last tensor that it needs. `core` draws no
    random numbers."""
    again = checkpoint(core, *inputs, use_reentrant=False, preserve_rng_state=False)
    return cast(Result, again)


def in_full_precision(x: Tensor) -> torch.autocast:
    """Within it no product on x's device is made in 16 bits, whatever autocast is on around it."""
    return torch.autocast(x.device.type, enabled=False)
